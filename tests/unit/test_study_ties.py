"""Bradley-Terry with ties and Krippendorff's alpha, held to evalica and to worked examples."""

import evalica
import numpy as np
import pandas as pd
import pytest
from evalica import Winner

from cfbench.study.tables import Analysis
from cfbench.study.ties import Match, davidson, krippendorff, probabilities

PLAN = Analysis(replicates=400)
WINNERS = {1.0: Winner.X, 0.0: Winner.Y, 0.5: Winner.Draw}
TRUTH = {"ours": 0.0, "a": -0.8, "b": -0.3}
LOG_NU = np.log(0.7)


def matches(seed, count=600, raters=30, prompts=20, rater_spread=0.0, log_nu=LOG_NU):
    rng = np.random.default_rng(seed)
    tastes = rng.normal(0, rater_spread, raters)
    found = []
    for index in range(count):
        rater, prompt, other = index % raters, rng.integers(prompts), "ab"[rng.integers(2)]
        ratio = TRUTH["ours"] - TRUTH[other] + tastes[rater]
        chance = probabilities(np.array([ratio]), log_nu)[0]
        value = rng.choice(3, p=chance) / 2
        found.append(Match("ours", other, value, f"r{rater}", f"p{prompt}"))
    return found


def test_strengths_and_ties_equal_evalicas():
    # Newman's v is half of Davidson's nu; both maximise the same likelihood.
    found = matches(0)
    ours = davidson(found, PLAN)
    theirs = evalica.newman(
        [match.ours for match in found],
        [match.baseline for match in found],
        [WINNERS[match.value] for match in found],
        tolerance=1e-13,
        limit=100_000,
    )
    logs = np.log(theirs.scores / theirs.scores["ours"])
    for name, interval in ours.logs.items():
        assert interval.value == pytest.approx(logs[name], abs=1e-5)
    assert ours.tie == pytest.approx(2 * theirs.v, abs=1e-5)


def test_without_ties_it_is_bradley_terry_by_hand():
    # Three wins to one: the odds are three.
    found = [Match("ours", "a", value, "r", "p") for value in (1.0, 1.0, 1.0, 0.0)]
    fitted = davidson(found, PLAN)
    assert fitted.logs["a"].value == pytest.approx(-np.log(3), abs=1e-6)
    assert fitted.tie == 0.0
    assert fitted.logs["a"].low is None
    assert "too few raters" in fitted.reason


def test_ties_by_hand():
    # Equal wins and losses, half ties: nu / (2 + nu) = 1/2.
    values = (1.0, 0.0, 0.5, 0.5)
    found = davidson([Match("ours", "a", v, "r", "p") for v in values], PLAN)
    assert found.tie == pytest.approx(2.0, abs=1e-6)
    assert found.logs["a"].value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("rater_spread", [0.0, 0.6])
def test_intervals_cover_the_truth(rater_spread):
    hits = studies = 0
    for seed in range(100):
        found = davidson(matches(seed, count=300, rater_spread=rater_spread), PLAN)
        for name in ("a", "b"):
            interval = found.logs[name]
            assert interval.low is not None
            assert interval.high is not None
            studies += 1
            hits += interval.low <= TRUTH[name] <= interval.high
    # 0.95 less three standard errors of 100 studies (0.022); measured: 0.970 and 0.985.
    assert hits / studies >= 0.885


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((), "no votes"),
        ((0.5, 0.5), "all votes are ties"),
        ((1.0, 1.0), "a system won or lost every vote, so its strength has no bound"),
    ],
)
def test_no_finite_fit_is_named(values, reason):
    found = davidson([Match("ours", "a", v, "r", "p") for v in values], PLAN)
    assert (found.logs, found.tie, found.reason) == ({}, None, reason)


def test_a_tie_keeps_a_winner_of_all_others_finite():
    found = davidson([Match("ours", "a", v, "r", "p") for v in (1.0, 1.0, 0.5)], PLAN)
    assert found.logs["a"].value is not None


@pytest.mark.parametrize("metric", ["nominal", "interval"])
def test_alpha_equals_evalicas_with_missing_ratings(metric):
    rng = np.random.default_rng(3)
    rows = []
    for unit in range(30):
        lean = rng.random()
        for rater in range(8):
            if rng.random() < 0.6:
                value = rng.choice([0.0, 0.5, 1.0], p=[0.8 * (1 - lean), 0.2, 0.8 * lean])
                rows.append((unit, rater, value))
    units, _, values = zip(*rows, strict=True)
    ours = krippendorff(values, units, [unit // 3 for unit in units], PLAN, metric=metric)
    frame = pd.DataFrame(rows, columns=["unit", "rater", "value"])
    table = frame.pivot_table(index="rater", columns="unit", values="value")
    assert ours.alpha.value == pytest.approx(evalica.alpha(table, distance=metric).alpha, abs=1e-12)
    value, low, high = ours.alpha
    assert low is not None
    assert value is not None
    assert high is not None
    assert low < value < high


def test_alpha_by_hand():
    # Units (1, 1), (0, 0), (1, 0): coincidences 2, 2, 2 off; observed 2/6, expected 2*3*3/(6*5).
    found = krippendorff([1, 1, 0, 0, 1, 0], list("aabbcc"), list("aabbcc"), PLAN)
    assert found.alpha.value == pytest.approx(1 - (2 / 6) / (18 / 30))
    assert found.units == 3
    assert found.alpha.low is None
    assert found.reason == "too few prompts for an interval: 3 of at least 5"


def test_alpha_of_full_agreement_and_of_none_possible():
    assert krippendorff([1, 1, 0, 0], list("aabb"), list("aabb"), PLAN).alpha.value == 1.0
    alike = krippendorff([1, 1, 1, 1], list("aabb"), list("aabb"), PLAN)
    assert alike.alpha.value is None
    assert "all answers are alike" in alike.reason
    alone = krippendorff([1, 0], list("ab"), list("ab"), PLAN)
    assert alone.reason == "no pair has two raters"
    assert krippendorff([], [], [], PLAN).reason == "no pair has two raters"
    with pytest.raises(ValueError, match="expected nominal or interval"):
        krippendorff([1], ["a"], ["a"], PLAN, metric="ratio")
