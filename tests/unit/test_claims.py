"""Figures from scores: worst attribute by window, ratio to truth, differences by system."""

import pytest

from cfbench.claims import ATTRIBUTES, claims, lines, worst_attribute
from cfbench.frame import build_frame
from cfbench.types import WindowScore
from tests.helpers.reports import score, unit_normaliser, world


def _frame(systems=("ours", "rendered-truth", "no-slow", "uniform-1"), last=(0.9, 0.8, 0.7, 0.95)):
    runs, scores = world({name: 0.5 - 0.1 * k for k, name in enumerate(systems)})
    for made in runs:
        film, truth = made.clip.sha256, made.system == "rendered-truth"
        for name, end in zip(ATTRIBUTES, last, strict=True):
            windows = (
                WindowScore(start_s=0, end_s=5, value=1.0 if name != "attr_sky" else 0.6),
                WindowScore(start_s=55, end_s=60, value=end),
            )
            scores.append(score(film, name, 0.9, windows=windows))
        scores.append(score(film, "flow_median", 2.0 if truth else 1.5))
        scores.append(score(film, "sharpness", 4.0 if truth else 3.0))
        scores.append(score(film, "latent_std", 1.0 if truth else 1.05))
        scores.append(score(film, "visible_share", 0.9 if truth else 0.85))
    return build_frame(runs, scores, "tiny")


def test_the_worst_attribute_counts_in_each_window():
    frame = _frame().where(system="ours")
    assert worst_attribute(frame, 0).value == pytest.approx(0.6)
    assert worst_attribute(frame, -1).value == pytest.approx(0.7)


def test_claims_of_a_store():
    found = {claim.name: claim for claim in claims(_frame(), unit_normaliser())}
    assert found["tiny_attributes_first5s"].value == pytest.approx(0.6)
    assert found["tiny_ours_flow_ratio"].value == pytest.approx(0.75)
    assert found["tiny_ours_sharpness_ratio"].value == pytest.approx(0.75)
    assert found["tiny_ours_latent_std_ratio"].value == pytest.approx(1.05)
    assert found["tiny_ours_visible_gap"].value == pytest.approx(-0.05)
    assert found["tiny_diff_total_no_slow"].value == pytest.approx(0.2, abs=1e-6)
    assert found["tiny_diff_total_no_slow"].low is not None
    assert "tiny_diff_total_uniform1" in found
    assert any("tiny_diff_total_rendered_truth" in line for line in lines(list(found.values())))


def test_without_truth_or_ours():
    found = {claim.name for claim in claims(_frame(("ours",)), unit_normaliser())}
    assert "tiny_ours_flow_ratio" not in found
    with pytest.raises(ValueError, match="no films of 'ours'"):
        claims(_frame(("no-slow",)), unit_normaliser())
