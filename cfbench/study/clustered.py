"""Means of votes that cluster twice, by rater and by prompt. Pure: arrays in, numbers out.

N votes, R resamples.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cfbench.stats import (
    MIN_CLUSTERS,
    Floats,
    Interval,
    cluster_sums,
    cluster_weights,
    normal_quantile,
    percentile_interval,
)
from cfbench.study.tables import Analysis

SECOND_KIND = 1  # added to a seed, so that raters and prompts are drawn independently


class Clustered(NamedTuple):
    """A mean over votes that cluster twice.

    Attributes:
        mean: with its interval; no bounds where ``reason`` says why.
        variance: of the mean, None without bounds.
        design_effect: that variance over the one that independent votes would have.
        reason: why there are no bounds; empty otherwise.
    """

    mean: Interval
    variance: float | None
    design_effect: float | None
    reason: str


def two_way_variance(values_N: Floats, a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Variance of the mean of N values that cluster by ``a`` and by ``b`` at once.

    Variances over a and over b are added and the one over their crossing, which both hold, is
    taken off; at least the larger of the two, as the sum may fall below it by chance.

    Example:
        >>> two_way_variance(np.array([0.0, 1.0]), "xy", "xy")
        0.25

    Source: Cameron, Gelbach and Miller 2011, equation 2.11, each part times G / (G - 1).
    """
    crossing = list(zip(a, b, strict=True))
    over_a, over_b, over_both = (
        _one_way_variance(values_N, clusters) for clusters in (a, b, crossing)
    )
    return max(over_a + over_b - over_both, over_a, over_b)


def _one_way_variance(values_N: Floats, clusters: Sequence[Hashable]) -> float:
    sums, _ = cluster_sums((values_N - values_N.mean())[:, None], clusters)
    groups = len(sums)
    if groups < 2:
        return 0.0
    return float((sums**2).sum()) / len(values_N) ** 2 * groups / (groups - 1)


def two_way_draws(
    values_N: Floats, a: Sequence[Hashable], b: Sequence[Hashable], *, resamples: int, seed: int
) -> Floats:
    """Means of R resamples of whole clusters of both kinds, each drawn for itself.

    A vote counts as often as its rater times its prompt was drawn. NaN where none was.

    Source: the pigeonhole bootstrap (Owen 2007).
    """
    index_a, index_b = _codes(a), _codes(b)
    weights_a = cluster_weights(int(index_a.max()) + 1, resamples, seed)
    weights_b = cluster_weights(int(index_b.max()) + 1, resamples, seed + SECOND_KIND)
    totals = np.zeros((index_a.max() + 1, index_b.max() + 1))
    counts = np.zeros_like(totals)
    np.add.at(totals, (index_a, index_b), values_N)
    np.add.at(counts, (index_a, index_b), 1.0)
    mass = ((weights_a @ counts) * weights_b).sum(axis=1)
    found = ((weights_a @ totals) * weights_b).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass > 0, found / mass, np.nan)


def _codes(clusters: Sequence[Hashable]) -> Any:
    order = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    return np.array([order[name] for name in clusters], dtype=np.intp)


def clustered_mean(
    values_N: Floats, a: Sequence[Hashable], b: Sequence[Hashable], plan: Analysis
) -> Clustered:
    """Mean with a cluster-bootstrap interval over both kinds of clusters.

    The draws of ``two_way_draws`` spread too far, since what is particular to a single vote
    enters once for its rater, once for its prompt and once for both. They are drawn together
    around the mean until their variance is ``two_way_variance``, widened as Student's t is against
    the normal for the fewer of the two clusters. Shape from the bootstrap, width from the variance.

    Args:
        values_N: outcomes in [0, 1].
        a: rater of each.
        b: prompt of each.
        plan: level, resamples and seed.
    """
    if not len(values_N):
        return Clustered(Interval(None, None, None), None, None, "no votes")
    value = float(values_N.mean())
    groups = min(len(set(a)), len(set(b)))
    reason = few_clusters(a, b)
    if not reason and values_N.min() == values_N.max():
        reason = "all votes are alike, so resampling them has no spread"
    if reason:
        return Clustered(Interval(value, None, None), None, None, reason)
    variance = two_way_variance(values_N, a, b)
    draws = two_way_draws(values_N, a, b, resamples=plan.replicates, seed=plan.seed)
    spread = float(np.nanvar(draws))
    width = t_quantile(groups, plan.confidence) / normal_quantile((1 + plan.confidence) / 2)
    factor = math.sqrt(variance / spread) * width
    interval = percentile_interval(value, value + factor * (draws - value), groups, plan.confidence)
    low, high = interval.low, interval.high
    bounded = Interval(
        value,
        None if low is None else max(0.0, low),
        None if high is None else min(1.0, high),
    )
    independent = float(values_N.var()) / (len(values_N) - 1)
    return Clustered(bounded, variance, variance / independent, "")


def few_clusters(raters: Sequence[Hashable], prompts: Sequence[Hashable]) -> str:
    """Why there can be no interval over raters and prompts; empty where there can."""
    for what, count in (("raters", len(set(raters))), ("prompts", len(set(prompts)))):
        if count < MIN_CLUSTERS:
            return few_of(what, count)
    return ""


def few_of(what: str, count: int) -> str:
    """The reason why so few clusters of a kind have no interval."""
    return f"too few {what} for an interval: {count} of at least {MIN_CLUSTERS}"


def t_quantile(groups: int, level: float) -> float:
    """Half width, in standard errors, of an interval whose variance ``groups`` clusters estimate.

    Example:
        >>> round(t_quantile(10, 0.95), 3)
        2.262
    """
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, groups - 1))
