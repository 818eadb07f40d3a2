"""Intervals and tests over films that cluster by prompt. Pure: arrays in, numbers out.

C clusters (prompts), N films, R resamples, D dimensions.
"""

import functools
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
MIN_CLUSTERS = 5  # below, a percentile interval over prompts covers far less than it says
EXACT_FLIPS = 14  # up to 2^14 sign patterns are enumerated


class Interval(NamedTuple):
    """An estimate with its bounds; the bounds are None when there are too few prompts."""

    value: float | None
    low: float | None
    high: float | None


class Paired(NamedTuple):
    """Mean difference over films of equal (prompt, seed); ``expected`` is what could be paired."""

    mean: Interval
    p: float | None
    scored: int
    expected: int
    prompts: int


@functools.lru_cache(maxsize=1)
def cluster_weights(clusters: int, resamples: int, seed: int) -> Floats:
    """How often each of C clusters is drawn in each of R resamples; rows sum to C.

    The last answer is kept, and is read-only: systems of one table have equal clusters.

    Example:
        >>> cluster_weights(3, 2, 0).sum(axis=1).tolist()
        [3.0, 3.0]
    """
    rng = np.random.default_rng(seed)
    share = np.full(clusters, 1 / clusters)
    weights = rng.multinomial(clusters, share, size=resamples).astype(np.float64)
    weights.flags.writeable = False
    return weights


def cluster_sums(values_ND: Floats, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sums and counts by cluster, NaN left out.

    Returns:
        Two arrays C x D; clusters in order of first appearance.
    """
    order = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    index_N = np.array([order[name] for name in clusters], dtype=np.intp)
    present = ~np.isnan(values_ND)
    sums = np.zeros((len(order), values_ND.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, index_N, np.where(present, values_ND, 0.0))
    np.add.at(counts, index_N, present.astype(np.float64))
    return sums, counts


def resampled_means(
    values_ND: Floats,
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Film means of every column in R resamples of whole clusters, R x D.

    NaN films do not count; a resample without any film of a column is NaN there.
    """
    sums, counts = cluster_sums(values_ND, clusters)
    weights = cluster_weights(len(sums), resamples, seed)
    mass = weights @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass > 0, (weights @ sums) / mass, np.nan)


def percentile_interval(
    value: float | None, draws_R: Floats, clusters: int, level: float = LEVEL
) -> Interval:
    """The percentile interval of ``draws_R`` around an estimate; no bounds below 5 clusters."""
    kept = draws_R[~np.isnan(draws_R)]
    if value is None or clusters < MIN_CLUSTERS or not len(kept):
        return Interval(value, None, None)
    tail = (1 - level) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(
    values_N: Floats,
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Mean over films with a cluster-bootstrap interval; NaN films do not count.

    Raises:
        ValueError: not one cluster for each value.

    Source: the cluster bootstrap resamples whole prompts, as films of one prompt are alike
    (Cameron, Gelbach and Miller 2008, section II).
    """
    if len(values_N) != len(clusters):
        raise ValueError(f"{len(values_N)} values for {len(clusters)} clusters; expected as many")
    kept = ~np.isnan(values_N)
    if not kept.any():
        return Interval(None, None, None)
    names = [name for name, keep in zip(clusters, kept, strict=True) if keep]
    values = values_N[kept]
    draws = resampled_means(values[:, None], names, resamples=resamples, seed=seed)[:, 0]
    return percentile_interval(float(values.mean()), draws, len(set(names)), level)


def sign_flip_p(sums_C: Floats, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of "no difference": cluster sums are as likely to be negative as positive.

    Exact (all sign patterns) up to 14 clusters, else ``draws`` random patterns with the observed
    one counted, so p is never 0.

    Example:
        >>> sign_flip_p(np.ones(5))
        0.0625
    """
    observed = abs(float(sums_C.sum()))
    slack = 1e-12 * float(np.abs(sums_C).sum())  # sums in another order differ in the last bit
    if len(sums_C) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums_C))))
        return float(np.mean(np.abs(signs @ sums_C) >= observed - slack))
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([1.0, -1.0]), size=(draws, len(sums_C)))
    extreme = int(np.sum(np.abs(signs @ sums_C) >= observed - slack))
    return (extreme + 1) / (draws + 1)


def deltas(
    a: Mapping[tuple[str, int], float | None], b: Mapping[tuple[str, int], float | None]
) -> dict[tuple[str, int], float]:
    """``a - b`` by (prompt, seed), of films that both have a value of, in order."""
    pairs = [(key, a[key], b[key]) for key in sorted(set(a) & set(b))]
    return {key: x - y for key, x, y in pairs if x is not None and y is not None}


def paired(
    a: Mapping[tuple[str, int], float | None],
    b: Mapping[tuple[str, int], float | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Paired:
    """Mean of ``a - b`` over the (prompt, seed) that both have, clustered by prompt.

    Args:
        a: value of every film by (prompt id, seed); None = no value.
        b: the other system's.
        resamples: bootstrap resamples.
        seed: of the bootstrap and of the sign flips.
        level: of the interval.
    """
    found = deltas(a, b)
    expected = len(set(a) | set(b))
    if not found:
        return Paired(Interval(None, None, None), None, 0, expected, 0)
    prompts = [prompt for prompt, _ in found]
    values = np.array(list(found.values()))
    mean = mean_interval(values, prompts, resamples=resamples, seed=seed, level=level)
    sums, _ = cluster_sums(values[:, None], prompts)
    p = sign_flip_p(sums[:, 0], seed=seed) if len(sums) >= MIN_CLUSTERS else None
    return Paired(mean, p, len(found), expected, len(sums))


def prompt_differences(
    a: Mapping[tuple[str, int], float | None], b: Mapping[tuple[str, int], float | None]
) -> Floats:
    """Mean of ``a - b`` of each prompt, in order of the prompts' names; as for ``paired``.

    Example:
        >>> prompt_differences({("p", 0): 2.0, ("p", 1): 4.0}, {("p", 0): 1.0, ("p", 1): 1.0})
        array([2.])
    """
    found = deltas(a, b)
    if not found:
        return np.zeros(0)
    sums, counts = cluster_sums(
        np.array(list(found.values()))[:, None], [prompt for prompt, _ in found]
    )
    return (sums / counts)[:, 0]


def p_text(p: float | None) -> str:
    """A p value for a table; a dash for none.

    Example:
        >>> p_text(0.0002), p_text(0.0214)
        ('<0.001', '0.021')
    """
    if p is None:
        return "\N{EN DASH}"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Raises:
        ValueError: a value outside [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm 1979; adjusted p = running maximum of (m - rank) p, at most 1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values {list(p_values)}: expected numbers in [0, 1]")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def normal_quantile(p: float) -> float:
    """The value below which a standard normal variable lies with probability ``p``.

    Example:
        >>> round(normal_quantile(0.975), 3)
        1.96
    """
    return NormalDist().inv_cdf(p)


def share_interval(hits: int, count: int, level: float = LEVEL) -> Interval:
    """A share with its Wilson interval, which holds its level near 0 and 1 too.

    Raises:
        ValueError: more hits than there were, or a negative number.

    Example:
        >>> [round(bound, 3) for bound in share_interval(48, 50)]
        [0.96, 0.865, 0.989]

    Source: Wilson 1927; solves (share - p)^2 = z^2 p (1 - p) / count for p.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} hits of {count}; expected 0 to {count}")
    if not count:
        return Interval(None, None, None)
    z2 = normal_quantile((1 + level) / 2) ** 2
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    # At 0 and 1 the bound is the share itself; rounding may put it a bit beyond.
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


class Power(NamedTuple):
    """What a paired comparison of so many prompts can see.

    Attributes:
        prompts: that were paired.
        spread: standard deviation over prompts of their mean difference.
        detectable: smallest true difference that is found with the power asked for.
        needed: prompts that would find the difference observed; None where it is 0.
    """

    prompts: int
    spread: float
    detectable: float
    needed: int | None


def power_note(
    means_C: Floats, *, power: float = 0.8, level: float = LEVEL, tests: int = 1
) -> Power | None:
    """What paired differences over prompts can show; None below 5 prompts.

    The normal approximation: a difference is found when it exceeds (z_alpha + z_power) standard
    errors. The level is split evenly over ``tests``, which is Holm's first step.

    Args:
        means_C: mean difference of each prompt.
        power: probability of finding a true difference.
        level: of the interval; 1 - level is the two-sided error.
        tests: comparisons made together.
    """
    if len(means_C) < MIN_CLUSTERS:
        return None
    alpha = (1 - level) / tests
    reach = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    spread = float(means_C.std(ddof=1))
    seen = abs(float(means_C.mean()))
    # Below a billionth of the spread a difference is rounding.
    needed = math.ceil((reach * spread / seen) ** 2) if seen > 1e-9 * spread else None
    return Power(
        prompts=len(means_C),
        spread=spread,
        detectable=reach * spread / math.sqrt(len(means_C)),
        needed=max(needed, 2) if needed is not None else None,
    )
