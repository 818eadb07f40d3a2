import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfbench.stats import (
    cluster_sums,
    cluster_weights,
    holm,
    mean_interval,
    normal_quantile,
    paired,
    percentile_interval,
    power_note,
    resampled_means,
    share_interval,
    sign_flip_p,
)


def test_weights_are_whole_resamples_and_seeded() -> None:
    weights = cluster_weights(7, 400, 3)
    assert weights.shape == (400, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == cluster_weights(7, 400, 3)).all()
    assert not (weights == cluster_weights(7, 400, 4)).all()


def test_bootstrap_spread_matches_the_closed_form() -> None:
    # Equal clusters: the variance of a resampled mean is the variance of cluster means / clusters.
    rng = np.random.default_rng(1)
    clusters = [name for name in range(30) for _ in range(4)]
    values = rng.normal(size=30).repeat(4) + 0.1 * rng.normal(size=120)
    draws = resampled_means(values[:, None], clusters, resamples=20_000, seed=0)[:, 0]
    means = values.reshape(30, 4).mean(axis=1)
    assert draws.std() == pytest.approx(math.sqrt(means.var() / 30), rel=0.03)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_clustered_interval_is_wider_than_independent() -> None:
    values = np.random.default_rng(2).normal(size=12).repeat(10)
    clustered = mean_interval(values, [i // 10 for i in range(120)])
    independent = mean_interval(values, list(range(120)))
    widths = []
    for interval in (clustered, independent):
        assert interval.low is not None
        assert interval.high is not None
        widths.append(interval.high - interval.low)
    assert widths[0] > 2 * widths[1]


def test_vectorised_means_equal_a_plain_loop() -> None:
    values = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0], [7.0, np.nan]])
    names = ["a", "a", "b", "c"]
    weights = cluster_weights(3, 50, 5)
    got = resampled_means(values, names, resamples=50, seed=5)
    for row, counts in enumerate(weights):
        repeats = [int(counts["abc".index(name)]) for name in names]
        for column in range(2):
            pool = np.repeat(values[:, column], repeats)
            pool = pool[~np.isnan(pool)]
            want = pool.mean() if len(pool) else np.nan
            assert got[row, column] == pytest.approx(want, nan_ok=True)


def test_cluster_sums_leave_nan_out() -> None:
    sums, counts = cluster_sums(np.array([[1.0], [np.nan], [4.0]]), ["b", "a", "b"])
    assert sums[:, 0].tolist() == [5, 0]
    assert counts[:, 0].tolist() == [2, 0]


def test_few_prompts_give_no_interval() -> None:
    interval = mean_interval(np.arange(8.0), [0, 0, 1, 1, 2, 2, 3, 3])
    assert interval == (3.5, None, None)
    assert mean_interval(np.array([np.nan]), ["a"]) == (None, None, None)
    with pytest.raises(ValueError, match="2 values for 1 clusters"):
        mean_interval(np.zeros(2), ["a"])


def test_percentile_interval_of_known_draws() -> None:
    interval = percentile_interval(0.5, np.linspace(0, 1, 1001), 10)
    assert interval == pytest.approx((0.5, 0.025, 0.975))


def test_sign_flip_is_exact_for_few_clusters() -> None:
    sums = np.array([0.3, -0.1, 0.4, 0.2, 0.35])
    patterns = itertools.product((1, -1), repeat=5)
    totals = [abs(sum(s * x for s, x in zip(p, sums.tolist(), strict=True))) for p in patterns]
    want = sum(total >= abs(sums.sum()) - 1e-12 for total in totals) / 32
    assert sign_flip_p(sums) == want
    assert sign_flip_p(np.ones(6)) == 2 / 64
    assert sign_flip_p(np.array([1.0, -1.0])) == 1


def test_sign_flip_by_sampling_is_close_and_never_zero() -> None:
    assert sign_flip_p(np.ones(40), draws=500) == 1 / 501
    sums = np.random.default_rng(0).normal(0.6, 1.0, size=14)
    exact = sign_flip_p(sums)
    sampled = sign_flip_p(np.append(sums, 0.0), draws=20_000)  # a zero changes no sum
    assert sampled == pytest.approx(exact, abs=0.01)


def test_paired_uses_the_intersection_and_counts() -> None:
    a = {(f"p{i}", seed): 0.5 + 0.1 * i for i in range(6) for seed in (0, 1)}
    b: dict[tuple[str, int], float | None] = {key: value - 0.2 for key, value in a.items()}
    b["p0", 0] = None
    del b["p1", 0]
    b["p9", 0] = 0.1
    got = paired(a, b)
    assert got.mean == pytest.approx((0.2, 0.2, 0.2))
    assert (got.scored, got.expected, got.prompts) == (10, 13, 6)
    assert got.p == 2 / 64
    swapped = paired(b, a)
    assert swapped.mean.value == pytest.approx(-0.2)
    assert swapped.p == got.p


def test_paired_without_pairs_is_null() -> None:
    got = paired({("p", 0): 1.0}, {("q", 0): 1.0})
    assert got.mean.value is None
    assert (got.p, got.scored, got.expected) == (None, 0, 2)


def test_holm_of_a_textbook_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="numbers in"):
        holm([1.2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    for raw, value in zip(p, adjusted, strict=True):
        assert raw <= value + 1e-15
        assert value <= min(1.0, len(p) * max(q for q in p if q <= raw)) + 1e-12
    order = sorted(range(len(p)), key=lambda index: p[index])
    ranked = [adjusted[index] for index in order]
    assert ranked == sorted(ranked)


def test_share_interval_solves_its_equation() -> None:
    for hits, count in ((0, 7), (3, 7), (48, 50), (50, 50)):
        share, low, high = share_interval(hits, count)
        assert share == hits / count
        assert share is not None
        assert low is not None
        assert high is not None
        for bound in {low, high} - {share}:
            z2 = normal_quantile(0.975) ** 2
            assert (share - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / count)
    assert share_interval(0, 0) == (None, None, None)
    with pytest.raises(ValueError, match="8 hits of 7"):
        share_interval(8, 7)


def test_power_note_keeps_its_promise() -> None:
    # Films whose true difference is the detectable one are found in about 80 % of studies.
    rng = np.random.default_rng(4)
    means = rng.normal(0.3, 1.0, 40)
    note = power_note(means)
    assert note is not None
    assert note.spread == pytest.approx(means.std(ddof=1))
    effect = (normal_quantile(0.975) + normal_quantile(0.8)) / math.sqrt(40)
    assert note.detectable == pytest.approx(effect * note.spread)
    studies = rng.normal(effect, 1.0, (4000, 40))
    errors = studies.std(axis=1, ddof=1) / math.sqrt(40)
    # A t-test needs a little more than the normal approximation says; 0.03 covers it.
    rate = float(np.mean(studies.mean(axis=1) > normal_quantile(0.975) * errors))
    assert rate == pytest.approx(0.8, abs=0.03)


def test_power_needs_prompts_and_falls_with_tests() -> None:
    means = np.linspace(-0.1, 0.3, 20)
    assert power_note(means[:4]) is None
    one, many = power_note(means), power_note(means, tests=10)
    assert one is not None
    assert many is not None
    assert many.detectable > one.detectable
    assert one.needed is not None
    assert one.detectable <= abs(means.mean()) or one.needed > len(means)
    flat = power_note(means - means.mean())
    assert flat is not None
    assert flat.needed is None
