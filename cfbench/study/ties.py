"""Bradley-Terry with ties, and Krippendorff's alpha, both with clustered intervals.

S systems, N votes, U units, K categories.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cfbench.stats import (
    Floats,
    Interval,
    cluster_sums,
    cluster_weights,
    percentile_interval,
)
from cfbench.study.answers import TIE
from cfbench.study.clustered import few_clusters, few_of, t_quantile
from cfbench.study.tables import Analysis


class Match(NamedTuple):
    """One judged vote: systems, outcome of the first (1, 1/2 or 0), rater and prompt."""

    ours: str
    baseline: str
    value: float
    rater: str
    prompt: str


class Strengths(NamedTuple):
    """Log-strengths against the first system, which stands at 0.

    Attributes:
        logs: by system, with intervals.
        tie: Davidson's nu: how likely a tie is between equals, nu / (2 + nu).
        reason: why there is no fit, or why it has no bounds; empty otherwise.
    """

    logs: dict[str, Interval]
    tie: float | None
    reason: str


def probabilities(log_ratio_N: Floats, log_nu: float) -> Floats:
    """Chances that the first loses, ties and wins, N x 3.

    Example:
        >>> probabilities(np.zeros(1), 0.0).round(3).tolist()
        [[0.333, 0.333, 0.333]]

    Source: Davidson 1970: win : tie : loss = pi_i : nu sqrt(pi_i pi_j) : pi_j. Here with the
    logarithm of nu, so that any real number is a valid parameter.
    """
    logits = np.stack(
        [-log_ratio_N / 2, np.full_like(log_ratio_N, log_nu), log_ratio_N / 2], axis=1
    )
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def unfit(matches: Sequence[Match]) -> str:
    """Why the likelihood has no finite maximum; empty where it has.

    Source: Ford 1957: every system must be reached from every other by votes lost; a tie counts
    for both sides.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not matches:
        return "no votes"
    if all(match.value == TIE for match in matches):
        return "all votes are ties"
    names = _names(matches)
    lost: set[tuple[int, int]] = set()
    for match in matches:
        i, j = names.index(match.ours), names.index(match.baseline)
        lost |= {(j, i)} if match.value > 0 else set()
        lost |= {(i, j)} if match.value < 1 else set()
    rows, columns = zip(*sorted(lost), strict=True)
    graph = coo_array((np.ones(len(lost)), (rows, columns)), shape=(len(names), len(names)))
    parts, _ = connected_components(graph, directed=True, connection="strong")
    return "" if parts == 1 else "a system won or lost every vote, so its strength has no bound"


def davidson(matches: Sequence[Match], plan: Analysis) -> Strengths:
    """Strengths of the systems, fitted by maximum likelihood, with two-way clustered intervals.

    Without any tie nu is 0 and the model is Bradley and Terry's. Intervals are the sandwich:
    scores of votes are summed by rater and by prompt as in ``preference.two_way_variance``.

    Source: Davidson 1970; Cameron, Gelbach and Miller 2011, section 2.3 (M-estimators).
    """
    reason = unfit(matches)
    if reason:
        return Strengths({}, None, reason)
    names = _names(matches)
    design_NS, outcome_N = _design(matches, names)
    has_ties = bool((outcome_N == 1).any())
    theta = _fit(design_NS, outcome_N, has_ties)
    raters, prompts = [m.rater for m in matches], [m.prompt for m in matches]
    few = few_clusters(raters, prompts)
    logs = {names[0]: Interval(0.0, 0.0, 0.0)}
    logs |= {name: Interval(float(theta[i]), None, None) for i, name in enumerate(names[1:])}
    if not few:
        variances = _sandwich(
            _scores(design_NS, outcome_N, theta, has_ties),
            raters,
            prompts,
            _information(design_NS, theta, has_ties),
        )
        reach = t_quantile(min(len(set(raters)), len(set(prompts))), plan.confidence)
        for name, value, variance in zip(names[1:], theta, variances, strict=False):
            half = reach * math.sqrt(variance)
            logs[name] = Interval(float(value), float(value) - half, float(value) + half)
    return Strengths(logs, math.exp(theta[-1]) if has_ties else 0.0, few)


def _names(matches: Sequence[Match]) -> list[str]:
    return list(dict.fromkeys(name for match in matches for name in (match.ours, match.baseline)))


def _design(matches: Sequence[Match], names: Sequence[str]) -> tuple[Floats, Floats]:
    """Contrasts N x (S - 1), the first system being the reference, and outcomes 0, 1, 2."""
    contrast_NS = np.zeros((len(matches), len(names)))
    for row, match in enumerate(matches):
        contrast_NS[row, names.index(match.ours)] += 1
        contrast_NS[row, names.index(match.baseline)] -= 1
    return contrast_NS[:, 1:], np.array([2 * match.value for match in matches])


def _chances(design_NS: Floats, theta: Floats, has_ties: bool) -> Floats:
    logs = design_NS @ theta[: design_NS.shape[1]]
    return probabilities(logs, float(theta[-1]) if has_ties else -math.inf)


def _scores(design_NS: Floats, outcome_N: Floats, theta: Floats, has_ties: bool) -> Floats:
    """Gradient of each vote's log-likelihood, N x parameters."""
    chance = _chances(design_NS, theta, has_ties)
    # Of the log-ratio: half of (win - loss) seen less what was expected.
    slope = ((outcome_N - 1) - (chance[:, 2] - chance[:, 0])) / 2
    parts = [slope[:, None] * design_NS]
    if has_ties:
        parts.append(((outcome_N == 1) - chance[:, 1])[:, None])
    return np.concatenate(parts, axis=1)


def _fit(design_NS: Floats, outcome_N: Floats, has_ties: bool) -> Floats:
    from scipy.optimize import minimize

    chosen = (np.arange(len(outcome_N)), outcome_N.astype(np.intp))

    def loss(theta: Floats) -> tuple[float, Floats]:
        chance = _chances(design_NS, theta, has_ties)
        gradient = _scores(design_NS, outcome_N, theta, has_ties).mean(axis=0)
        return -float(np.log(chance[chosen]).mean()), -gradient

    start = np.zeros(design_NS.shape[1] + has_ties)
    done = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    return np.asarray(done.x, dtype=np.float64)


def _information(design_NS: Floats, theta: Floats, has_ties: bool) -> Floats:
    """Minus the Hessian of the log-likelihood, which does not depend on the outcomes."""
    chance = _chances(design_NS, theta, has_ties)
    margin, decisive = chance[:, 2] - chance[:, 0], chance[:, 2] + chance[:, 0]
    curve = (decisive - margin**2) / 4
    strengths = (design_NS * curve[:, None]).T @ design_NS
    if not has_ties:
        return strengths
    cross = -(design_NS * (margin * chance[:, 1] / 2)[:, None]).sum(axis=0)
    corner = float((chance[:, 1] * (1 - chance[:, 1])).sum())
    return np.block([[strengths, cross[:, None]], [cross[None, :], np.array([[corner]])]])


def _sandwich(
    scores: Floats, raters: Sequence[str], prompts: Sequence[str], information: Floats
) -> Floats:
    """Clustered variance of each parameter."""
    by_rater, by_prompt = _meat(scores, raters), _meat(scores, prompts)
    both = by_rater + by_prompt - _meat(scores, list(zip(raters, prompts, strict=True)))
    bread = np.linalg.inv(information)
    # The sum may fall below a part by chance; the widest of them is kept for each parameter.
    return np.max([np.diag(bread @ meat @ bread) for meat in (both, by_rater, by_prompt)], axis=0)


def _meat(scores: Floats, clusters: Sequence[Hashable]) -> Floats:
    sums, _ = cluster_sums(scores, clusters)
    return sums.T @ sums * len(sums) / (len(sums) - 1)


class Agreement(NamedTuple):
    """Krippendorff's alpha; ``units`` with two raters or more; ``reason`` where it is null."""

    alpha: Interval
    units: int
    reason: str


def krippendorff(
    values: Sequence[float],
    units: Sequence[Hashable],
    clusters: Sequence[Hashable],
    plan: Analysis,
    *,
    metric: str = "nominal",
) -> Agreement:
    """Agreement of raters beyond chance, with an interval that resamples whole prompts.

    Raters are not resampled: one drawn twice would agree with itself.

    Args:
        values: what each rating says.
        units: what each is about; ratings of equal units are compared.
        clusters: prompt of each; all ratings of a unit have the same.
        plan: level, resamples and seed.
        metric: ``nominal`` (equal or not) or ``interval`` (squared difference).

    Raises:
        ValueError: another metric.

    Source: Krippendorff 2018, section 12.3: 1 - observed over expected disagreement.
    """
    if metric not in ("nominal", "interval"):
        raise ValueError(f"metric {metric!r}; expected nominal or interval")
    levels = np.array(sorted(set(values)))
    coincidences, groups = _coincidences(values, units, clusters, levels)
    if not len(coincidences):
        return Agreement(Interval(None, None, None), 0, "no pair has two raters")
    apart = levels[:, None] - levels[None, :]
    distance = (apart != 0).astype(np.float64) if metric == "nominal" else apart**2
    value = float(_alpha(coincidences.sum(axis=0)[None], distance)[0])
    if math.isnan(value):
        reason = "all answers are alike, so agreement by chance is complete"
        return Agreement(Interval(None, None, None), len(coincidences), reason)
    sums, _ = cluster_sums(coincidences.reshape(len(coincidences), -1), groups)
    weights = cluster_weights(len(sums), plan.replicates, plan.seed)
    draws = _alpha((weights @ sums).reshape(len(weights), *distance.shape), distance)
    interval = percentile_interval(value, draws, len(sums), plan.confidence)
    few = "" if interval.low is not None else few_of("prompts", len(sums))
    return Agreement(interval, len(coincidences), few)


def _coincidences(
    values: Sequence[float],
    units: Sequence[Hashable],
    clusters: Sequence[Hashable],
    levels: Floats,
) -> tuple[Floats, list[Hashable]]:
    """Pairs of ratings within each unit, over its raters less one: U x K x K, and its cluster."""
    counts: dict[Hashable, Floats] = {}
    cluster_of = dict(zip(units, clusters, strict=True))
    for value, unit in zip(values, units, strict=True):
        found = counts.setdefault(unit, np.zeros(len(levels)))
        found[np.searchsorted(levels, value)] += 1
    shared = {unit: found for unit, found in counts.items() if found.sum() > 1}
    made = [
        (np.outer(found, found) - np.diag(found)) / (found.sum() - 1) for found in shared.values()
    ]
    return np.array(made), [cluster_of[unit] for unit in shared]


def _alpha(coincidence_RKK: Floats, distance_KK: Floats) -> Floats:
    """Alpha of each of R coincidence matrices; NaN where no disagreement was possible."""
    marginal = coincidence_RKK.sum(axis=2)
    total = marginal.sum(axis=1)
    observed = (coincidence_RKK * distance_KK).sum(axis=(1, 2))
    expected = np.einsum("rk,kl,rl->r", marginal, distance_KK, marginal) / np.maximum(total - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)
