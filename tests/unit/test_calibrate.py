"""Promotion rates by event and ages of slow slots."""

import pytest

from cfmodel.calibrate import AGE_BIN_S, Candidate, Observed, observe, rate, report
from cfmodel.pipeline import Request, load
from cfmodel.presets import preset

HOLD = ("A red ball rests on grass. The camera holds still.", 6.0)
ORBIT = ("A red ball rests on grass. An orbiting shot.", 6.0)


def test_observes_every_candidate_with_its_event():
    pipeline = load(preset("nano"), device="cpu")
    observed = observe(pipeline, [Request("a", (HOLD, ORBIT), 0), Request("b", (ORBIT,), 0)], 14)
    # Candidates are chunks 2, 4, ..., 12 of each film, once for each of two layers.
    assert len(observed.candidates) == 2 * 2 * 6
    assert {c.event for c in observed.candidates} == {"hold", "orbit"}
    tau = sorted(c.cosine for c in observed.candidates)[-1] + 1e-4
    assert report(observed, min(tau, 1.0))["moving"] > 0.5
    assert report(observed, -0.9)["quiet"] == 0


def test_rates_and_ages():
    candidates = (
        Candidate("hold", 0.999),
        Candidate("away", 0.9),
        Candidate("pan-away", 0.5),
        Candidate("orbit", 0.97),
        Candidate(None, 0.1),
    )
    tree = report(Observed(candidates, (0.75, 2.0, 3.0, 20.0)), 0.95)
    assert tree["quiet"] == 0.5
    assert tree["moving"] == 0.5
    assert tree["events"]["pan-away"] == 1.0
    assert tree["slot_ages"] == {"0-3 s": 2, "3-6 s": 1, "18-21 s": 1}
    assert AGE_BIN_S == 3
    assert rate(candidates, ["dolly"], 0.95) is None
    moving = [row["moving"] for row in tree["grid"]]
    assert moving == sorted(moving)


def test_uniform_rows_are_refused():
    pipeline = load(preset("nano/uniform-1"), device="cpu")
    with pytest.raises(ValueError, match="surprisal"):
        observe(pipeline, [Request("a", (HOLD,), 0)], 2)
