import json
from pathlib import Path

import pytest

from cfbench import cost
from cfbench.cost import Machines, Part, simulate
from cfbench.errors import CfError
from cfbench.figures import Figure, record

CALM = Machines(start_s=0, slow_share=0, mtbf_h=1e12, dispatch_s=0)


def test_hours_are_frames_over_rates():
    found = cost.cost([Part("a", 10, 3600)], {"make": 10.0, "score": 100.0}, 2)
    assert found["gpu_hours"] == {"make": 1.0, "score": 0.1}
    assert found["wall_hours"] == {"make": 0.5, "score": 0.05}
    assert found["wall_hours_total"] == 0.55


def test_rates_come_from_figures_and_what_is_given_goes_first(tmp_path: Path):
    path = tmp_path / "figures.json"
    record(
        path,
        Figure(
            name="e2e_ms", value=500.0, unit="ms", command="c", commit="c", device="d",
            at="2026-01-01T00:00:00+00:00",
        ),
    )  # fmt: skip
    assert cost.rates(path, ["score=100"]) == {"make": 24.0, "score": 100.0}
    assert cost.rates(path, ["score=100", "make=5"])["make"] == 5.0
    with pytest.raises(CfError, match="no figure score_frames_per_s for stage score"):
        cost.rates(path, [])


@pytest.mark.parametrize("text", ["make", "make=x", "make=0", "make=nan", "paint=3"])
def test_bad_rates_are_refused(text):
    with pytest.raises(CfError, match="--rate"):
        cost.rates(None, [text])


def test_calm_machines_take_the_ideal_time():
    run = simulate([10.0] * 40, 4, CALM, seed=0)
    assert run == (pytest.approx(100.0), pytest.approx(1.0), 0, 0, 1.0)


def test_one_driver_bounds_many_workers():
    run = simulate([1.0] * 1000, 1000, Machines(start_s=0, slow_share=0, dispatch_s=0.01), seed=0)
    assert run.wall_s == pytest.approx(11.0, abs=0.1)


def test_slow_workers_and_failures_cost_time_and_lose_no_job_in_silence():
    jobs = [600.0] * 400
    calm = simulate(jobs, 8, CALM, seed=1)
    slow = simulate(jobs, 8, Machines(start_s=0, slow_share=1, slow_factor=2), seed=1)
    assert slow.wall_s == pytest.approx(2 * calm.wall_s, rel=0.01)
    rough = simulate(jobs, 8, Machines(start_s=0, slow_share=0, mtbf_h=2.0), seed=1)
    assert rough.failures > 0
    assert rough.wall_s > calm.wall_s
    # Whoever finishes gives all jobs; what was tried too often is counted.
    assert rough.given_up <= rough.failures
    assert rough == simulate(jobs, 8, Machines(start_s=0, slow_share=0, mtbf_h=2.0), seed=1)


def test_the_paper_is_worked_at_each_size():
    found = cost.worked_paper({"make": 14.6, "score": 100.0}, [512], Machines(), seed=0)
    run = found["runs"]["gpus512"]
    assert run["films"] == 2500 + 61490 + 37840 + 18920
    assert run["simulated_wall_hours"] > run["wall_hours_total"]
    assert run["bottleneck"] == "make"
    json.dumps(found)
    with pytest.raises(CfError, match="--gpus 0"):
        cost.worked_paper({"make": 1.0, "score": 1.0}, [0], Machines(), seed=0)
