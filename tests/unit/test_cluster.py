"""The Ray engine: the same events as local workers, and what a killed worker costs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfbench import fanout
from cfbench.errors import CfError
from cfbench.store import LocalStore
from tests.helpers.bench import cfbench, untimed
from tests.helpers.work import Squares

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this host, once for all of these tests."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def outcome(count: int, worker: Squares, **how) -> dict[int, tuple[str, object, int]]:
    events: list[fanout.Event] = []
    fanout.run(
        list(range(count)),
        [worker] * 2,
        group=lambda task: str(task % 2),
        on_event=events.append,
        engine=fanout.Engine(name="ray", **how),
    )
    ends = [event for event in events if event.kind != "progress"]
    assert len({event.task for event in ends}) == len(ends) == count
    begun = [event for event in events if event.kind == "progress"]
    assert len(begun) == sum(event.attempts for event in ends)
    assert all(event.worker.startswith("node ") for event in events)
    return {event.task: (event.kind, event.value, event.attempts) for event in ends}


def test_failing_dying_and_good_tasks_end_as_they_do_locally(tmp_path: Path):
    found = outcome(6, Squares(tmp_path, fail=(1,), die=(0,), once=(3,), memory=(5,)))
    assert found[1] == ("failed", "ValueError: task 1 is impossible", 2)
    assert found[0] == ("failed", "the worker died (ActorDiedError)", 2)
    assert found[3] == ("done", 9, 2)
    assert found[5][0] == "failed"
    assert str(found[5][1]).startswith("OutOfMemoryError: CUDA out of memory")
    assert found[5][2] == 2
    assert {task for task, end in found.items() if end[0] == "done"} == {2, 3, 4}
    # Killed workers cannot close; those that live do.
    assert list(tmp_path.glob("closed-*"))


def test_hung_task_is_killed_and_retried_elsewhere_and_a_full_disk_too(tmp_path: Path):
    begin = time.monotonic()
    found = outcome(3, Squares(tmp_path, hang_once=(1,), full=(2,)), limit_s=2.0)
    assert found[0] == ("done", 0, 1)
    assert found[1] == ("done", 1, 2)
    assert found[2][0] == "failed"
    assert "No space left" in str(found[2][1])
    assert time.monotonic() - begin < 60


def test_an_error_of_the_input_stops_everything(tmp_path: Path):
    with pytest.raises(CfError, match="the disk is full") as caught:
        outcome(4, Squares(tmp_path, stop=(0,)))
    assert caught.value.exit_code == 2


def test_devices_are_those_of_the_cluster():
    from cfbench import cluster

    engine = fanout.Engine(name="ray")
    assert cluster.devices(engine, "auto", 0) == ["cpu", "cpu"]
    assert cluster.devices(engine, "cpu", 1) == ["cpu"]
    with pytest.raises(CfError, match="expected auto, cpu or cuda"):
        cluster.devices(engine, "cuda:1", 0)
    with pytest.raises(CfError, match="the cluster has 0 GPUs and 2 CPUs"):
        cluster.devices(engine, "cuda", 0)


@pytest.mark.slow
def test_films_and_records_are_those_of_local_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another engine, another number of workers, another order: the same bytes."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they starve beside other tests
    made = ("generate", "--prompts", "2", "--systems", "nano/ours,nano/no-slow", "--seconds", "1")
    ways = {
        "local": ("--workers", "1"),
        "ray": ("--workers", "2", "--engine", "ray"),
    }
    found: dict[str, list[dict[str, object]]] = {}
    for name, words in ways.items():
        done = cfbench(*made, *words, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found[name] = untimed(tmp_path / name)
        assert LocalStore(tmp_path / name).done_ids() == {run["id"] for run in found[name]}
    assert found["local"] == found["ray"]
    assert len(found["ray"]) == 4
