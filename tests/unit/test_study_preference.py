import numpy as np
import pytest
from scipy.stats import binomtest

from cfbench.stats import MIN_CLUSTERS
from cfbench.study.answers import main_votes
from cfbench.study.clustered import clustered_mean, two_way_draws, two_way_variance
from cfbench.study.preference import (
    Pilot,
    ballots,
    binomial_p,
    independent_votes,
    pilot,
    power_table,
    preferences,
    self_consistency,
    side_bias,
    sign_test,
)
from cfbench.study.tables import Analysis
from tests.helpers.raters import design, simulate, vote

PLAN = Analysis(replicates=500)
STUDIES = 250


def test_rates_by_hand():
    plan = design(prompts=3, questions=1)
    votes = [
        vote("r0", "c0-p0", "left"),
        vote("r0", "c0-p1", "tie"),
        vote("r1", "c0-p0", "left", side_of_ours="right"),
        vote("r1", "c0-p1", "left"),
        vote("r1", "c0-p2", "cannot"),
        vote("r1", "c1-p2", "left"),
    ]
    first, second = preferences(plan, votes)
    assert (first.win, first.tie, first.loss, first.cannot, first.n) == (2, 1, 1, 1, 4)
    assert (first.raters, first.prompts) == (2, 2)
    assert first.rate.mean.value == (1 + 0.5 + 0 + 1) / 4
    assert first.decisive.mean.value == pytest.approx(2 / 3)
    # p0 is even, p1 is won.
    assert first.sign[:3] == (1, 0, 1)
    assert second.rate.mean.value == 1.0
    assert first.rate.mean.low is None
    assert first.rate.reason == f"too few raters for an interval: 2 of at least {MIN_CLUSTERS}"


def test_variance_equals_the_dummy_regression_form():
    # Sum over pairs of votes that share a rater or a prompt of the product of residuals.
    rng = np.random.default_rng(0)
    values = rng.random(60)
    raters, prompts = rng.integers(0, 7, 60).tolist(), rng.integers(0, 9, 60).tolist()
    residual = values - values.mean()

    def part(shared):
        return (np.outer(residual, residual) * shared).sum() / 60**2

    same_rater = np.equal.outer(raters, raters)
    same_prompt = np.equal.outer(prompts, prompts)
    cells = len(set(zip(raters, prompts, strict=True)))
    parts = [
        part(same_rater) * 7 / 6,
        part(same_prompt) * 9 / 8,
        part(same_rater & same_prompt) * cells / (cells - 1),
    ]
    expected = max(parts[0] + parts[1] - parts[2], *parts[:2])
    assert two_way_variance(values, raters, prompts) == pytest.approx(expected)


def test_draws_equal_a_plain_loop():
    values = np.array([1.0, 0.0, 1.0, 0.5])
    raters, prompts = ["a", "a", "b", "c"], ["x", "y", "y", "x"]
    from cfbench.stats import cluster_weights

    weights_a, weights_b = cluster_weights(3, 40, 5), cluster_weights(2, 40, 6)
    found = two_way_draws(values, raters, prompts, resamples=40, seed=5)
    for draw, of_rater, of_prompt in zip(found, weights_a, weights_b, strict=True):
        weight = np.array(
            [
                of_rater["abc".index(a)] * of_prompt["xy".index(b)]
                for a, b in zip(raters, prompts, strict=True)
            ]
        )
        if weight.sum():
            assert draw == pytest.approx((weight * values).sum() / weight.sum())
        else:
            assert np.isnan(draw)


@pytest.mark.parametrize(
    ("of_rater", "of_prompt"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.7)]
)
def test_interval_covers_the_truth_in_95_of_100_studies(of_rater, of_prompt):
    rng = np.random.default_rng(1)
    population = rng.normal(0.3, np.hypot(of_rater, of_prompt), 200_000)
    truth = (1 / (1 + np.exp(-population))).mean()
    hits = 0
    for study in range(STUDIES):
        raters, prompts = np.repeat(np.arange(20), 10), np.tile(np.arange(20), 10)
        tastes, ease = rng.normal(0, of_rater, 20), rng.normal(0, of_prompt, 20)
        logits = 0.3 + tastes[raters] + ease[prompts]
        values = (rng.random(200) < 1 / (1 + np.exp(-logits))).astype(float)
        plan = Analysis(replicates=200, seed=study)
        mean = clustered_mean(values, raters.tolist(), prompts.tolist(), plan).mean
        assert mean.low is not None
        assert mean.high is not None
        hits += mean.low <= truth <= mean.high
    # 0.95 less and more three standard errors of 250 studies (0.014); measured: 0.928 to 0.976.
    assert 0.91 <= hits / STUDIES <= 0.99


def test_design_effect_is_that_of_the_clusters():
    # All votes of a rater alike: 10 raters with 8 votes each are worth 10 votes.
    values = np.repeat(np.array([0.0, 1.0] * 5), 8)
    found = clustered_mean(values, np.repeat(np.arange(10), 8).tolist(), list(range(8)) * 10, PLAN)
    assert found.design_effect == pytest.approx(8 * 79 / 80 * 10 / 9)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 9), (5, 10), (18, 20)])
def test_sign_test_is_the_exact_binomial(hits, count):
    assert binomial_p(hits, count) == pytest.approx(binomtest(hits, count).pvalue)


def test_sign_test_counts_prompts_and_not_votes():
    # Thirty votes on one prompt are one prompt; thirds that sum to one half are even.
    votes = [vote(f"r{i}", "c0-p0", "left") for i in range(30)]
    answers = ("left", "tie", "right")
    votes += [vote(f"r{i}", "c0-p1", answers[i]) for i in range(3)]
    found = sign_test(ballots(votes))
    assert found == (1, 0, 1, 1.0)


def test_holm_runs_over_baselines_and_questions():
    plan = design(prompts=10, questions=2)
    votes = [
        vote("r0", f"c{c}-p{p}", question=f"q{q}")
        for c in (0, 1)
        for q in (0, 1)
        for p in range(10)
    ]
    assert [row.p_holm for row in preferences(plan, votes)] == pytest.approx([4 * 2 / 2**10] * 4)


def test_planted_side_bias_is_found_and_does_not_move_preference():
    plan = design(prompts=16, questions=1, baselines=("longlive",), analysis=PLAN)
    fair = simulate(plan, raters=20, seed=3)
    biased = simulate(plan, raters=20, seed=3, left=1.0)
    quiet, loud = (side_bias(found.votes, PLAN) for found in (fair, biased))
    assert quiet.p is not None
    assert quiet.p > 0.05
    assert loud.p is not None
    assert loud.p < 0.001
    assert loud.share.mean.low is not None
    assert loud.share.mean.low > 0.55
    assert loud.left + loud.right == sum(
        v.answer in ("left", "right") for v in main_votes(biased.votes)
    )
    # Sides are counterbalanced: bias costs power, it does not turn the result.
    (row,) = preferences(plan, biased.votes)
    assert row.rate.mean.low is not None
    assert row.rate.mean.low > 0.5


def test_self_consistency_tells_turned_from_moved():
    first = [vote(f"r{i}", "c0-p0", "left") for i in range(3)]
    answers = ("right", "left", "tie")
    again = [
        vote(f"r{i}", "repeat", answers[i], side_of_ours="right", kind="repeat", of="c0-p0")
        for i in range(3)
    ]
    assert self_consistency([*first, *again]) == (3, 1, 1, 1)


def test_power_of_the_plan():
    assert independent_votes(0.6) == 194
    assert independent_votes(0.4) == 194
    with pytest.raises(ValueError, match="not one half"):
        independent_votes(0.5)


def test_power_holds_in_simulation():
    rng = np.random.default_rng(0)
    wins = rng.binomial(194, 0.6, 4000)
    z = (wins / 194 - 0.5) / np.sqrt(0.25 / 194)
    # Two standard errors of 4,000 studies, and half a vote of 194.
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_plan_scales_by_what_the_pilot_measured():
    sixty = {row.rate: row for row in power_table(Pilot(2.0, 0.8), 6, PLAN)}[0.60]
    assert sixty.independent == 194
    assert sixty.votes == 485
    assert sixty.adjusted == int(np.ceil(independent_votes(0.6, alpha=0.05 / 6) * 2 / 0.8))
    blind = power_table(Pilot(None, None), 6, PLAN)[0]
    assert (blind.votes, blind.adjusted) == (None, None)


def test_pilot_of_a_study():
    plan = design(prompts=12, questions=1)
    found = pilot(preferences(plan, simulate(plan, raters=20, seed=5, rater_spread=1.5).votes))
    assert found.design_effect is not None
    assert found.design_effect > 1.5
    assert found.decisive_share is not None
    assert 0.5 < found.decisive_share < 0.95


@pytest.mark.parametrize("answer", ["tie", "left", "cannot"])
def test_votes_that_are_all_alike_have_a_reason_and_no_interval(answer):
    plan = design(prompts=6, questions=1, baselines=("longlive",))
    votes = [vote(f"r{i}", f"c0-p{p}", answer) for i in range(6) for p in range(6)]
    (row,) = preferences(plan, votes)
    assert row.rate.mean.low is None
    assert row.rate.reason == (
        "no votes"
        if answer == "cannot"
        else "all votes are alike, so resampling them has no spread"
    )
    assert pilot([row]).design_effect is None


def test_no_votes_at_all():
    rows = preferences(design(), [])
    assert {row.rate.reason for row in rows} == {"no votes"}
    assert {row.p_holm for row in rows} == {None}
    assert side_bias([], PLAN).share.reason == "no votes"
    assert self_consistency([]) == (0, 0, 0, 0)
    assert pilot(rows) == (None, None)
