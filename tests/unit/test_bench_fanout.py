from pathlib import Path

import pytest

from cfbench import fanout
from cfbench.errors import CfError
from tests.helpers.work import Squares


def outcome(count: int, workers: int, worker: Squares) -> list[fanout.Event]:
    events: list[fanout.Event] = []
    staff = [worker] * workers
    fanout.run(list(range(count)), staff, group=lambda task: str(task % 2), on_event=events.append)
    return events


def ends(events: list[fanout.Event]) -> dict[int, tuple[str, object, int]]:
    found = [event for event in events if event.kind != "progress"]
    assert len({event.task for event in found}) == len(found)
    return {event.task: (event.kind, event.value, event.attempts) for event in found}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_do_not_depend_on_the_workers(tmp_path: Path, workers):
    events = outcome(5, workers, Squares(tmp_path))
    assert ends(events) == {task: ("done", task * task, 1) for task in range(5)}
    assert {(e.task, e.value) for e in events if e.kind == "progress" and e.value} == {
        (task, 0.5) for task in range(5)
    }
    assert len(list(tmp_path.glob("closed-*"))) == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_fails_twice_is_reported_and_the_rest_goes_on(tmp_path: Path, workers):
    found = ends(outcome(4, workers, Squares(tmp_path, fail=(1,))))
    assert found[1] == ("failed", "ValueError: task 1 is impossible", 2)
    assert {task for task, end in found.items() if end[0] == "done"} == {0, 2, 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_without_room_is_tried_again_and_then_named(tmp_path: Path, workers):
    found = ends(outcome(4, workers, Squares(tmp_path, memory=(1,), memory_once=(2,))))
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert found[1] == ("failed", reason, 2)
    assert found[2] == ("done", 4, 2)
    assert found[0][0] == found[3][0] == "done"


def test_a_killed_worker_is_replaced(tmp_path: Path):
    found = ends(outcome(4, 2, Squares(tmp_path, die=(0,), once=(3,))))
    assert found[0] == ("failed", "the worker process died (exit code -9)", 2)
    assert found[3] == ("done", 9, 2)
    assert found[1][0] == found[2][0] == "done"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_input_or_disk_stops_everything(tmp_path: Path, workers):
    with pytest.raises(CfError, match="the disk is full") as caught:
        outcome(4, workers, Squares(tmp_path, stop=(0,)))
    assert caught.value.exit_code == 2


def test_a_hung_worker_is_killed_and_its_task_tried_again(tmp_path: Path):
    events: list[fanout.Event] = []
    fanout.run(
        [1, 2],
        [Squares(tmp_path, hang_once=(1,))],
        group=str,
        on_event=events.append,
        engine=fanout.Engine(limit_s=1.5),
    )
    assert ends(events) == {0: ("done", 1, 2), 1: ("done", 4, 1)}


def test_what_failed_is_left_to_another_worker_where_there_is_one():
    queue = fanout.Queue(tasks=["a", "b"], group=str, attempts=3)
    assert queue.take(0, None, others=True) == 0
    assert queue.settle(fanout.Event("failed", 0, "why"), 0) is None
    assert queue.take(0, "a", others=True) == 1
    assert queue.take(0, "a", others=True) is None
    assert queue.take(1, None, others=True) == 0
    assert queue.settle(fanout.Event("failed", 0, "why"), 1) is None
    assert queue.take(1, "a", others=False) == 0
    assert queue.settle(fanout.Event("failed", 0, "why"), 1) == ("failed", 0, "why", 3, "")
    assert queue.left == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "slurm"}, "expected local or ray"),
        ({"address": "auto"}, "only --engine ray has one"),
        ({"attempts": 0}, "expected 1 or more"),
        ({"limit_s": -1.0}, "--job-limit -1.0"),
    ],
)
def test_engine_refuses_what_does_not_exist(change, message):
    with pytest.raises(CfError, match=message):
        fanout.Engine(**change)
