"""Run tasks in this process or over local worker processes; the results are the same.

A worker is an object with ``__call__(task, emit)`` that must be picklable before its first call.
Each worker process has a pipe of its own: a killed worker cannot leave a shared lock behind.
"""

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from cfbench.errors import CfError

log = logging.getLogger(__name__)

ATTEMPTS = 2
STOP_GRACE_S = 10.0
TASK_ERRORS = (RuntimeError, ValueError, OSError, MemoryError, ArithmeticError, LookupError)

Emit = Callable[[float], None]
Task = TypeVar("Task")
Result = TypeVar("Result")
Task_in = TypeVar("Task_in", contravariant=True)
Result_out = TypeVar("Result_out", covariant=True)


class Worker(Protocol[Task_in, Result_out]):
    """What does the tasks."""

    def __call__(self, task: Task_in, emit: Emit, /) -> Result_out:
        """The result of a task; ``emit`` takes the fraction of it that is done."""
        ...

    def close(self) -> None:
        """Let go of everything; called where the worker worked, after its last task."""
        ...


class Event(NamedTuple):
    """News of a task by its index: a fraction (progress), a result (done) or a reason (failed)."""

    kind: Literal["progress", "done", "failed"]
    task: int
    value: Any
    attempts: int = 1


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    group: str | None = None


def run(
    tasks: Sequence[Task],
    workers: Sequence[Worker[Task, Result]],
    *,
    group: Callable[[Task], str],
    on_event: Callable[[Event], None],
) -> None:
    """Do all tasks; each ends in one ``done`` or ``failed`` event.

    One worker runs here, several run in processes of their own. A task that raises, or whose
    process dies, is tried again up to ``ATTEMPTS`` times in all.

    Args:
        tasks: what to do.
        workers: one for each process; they differ in the device, say.
        group: tasks of one group are kept on one worker where possible, as they share a model.
        on_event: called in this process with the news, as they come.

    Raises:
        CfError: raised by a worker: the input or the disk is at fault, so nothing can go on.
    """
    if len(workers) == 1 or len(tasks) <= 1:
        try:
            _run_here(tasks, workers[0], on_event)
        finally:
            workers[0].close()
    else:
        _run_processes(tasks, workers[: len(tasks)], group, on_event)


def _run_here(
    tasks: Sequence[Task], worker: Worker[Task, Result], on_event: Callable[[Event], None]
) -> None:
    for index, task in enumerate(tasks):

        def emit(fraction: float, index: int = index) -> None:
            on_event(Event("progress", index, fraction))

        for attempt in range(1, ATTEMPTS + 1):
            try:
                result = worker(task, emit)
            except TASK_ERRORS as error:
                log.info("task %d, attempt %d: %s", index, attempt, error)
                if attempt == ATTEMPTS:
                    on_event(Event("failed", index, _reason(error), attempt))
                continue
            on_event(Event("done", index, result, attempt))
            break


def _run_processes(
    tasks: Sequence[Task],
    workers: Sequence[Worker[Task, Result]],
    group: Callable[[Task], str],
    on_event: Callable[[Event], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    pending = deque(range(len(tasks)))
    attempts = [0] * len(tasks)
    left = len(tasks)
    running: dict[int, _Process] = {}
    try:
        for number, worker in enumerate(workers):
            running[number] = _start(context, worker)
        while left:
            for slot in running.values():
                _hand_out(slot, tasks, pending, attempts, group)
            ready = wait([slot.pipe for slot in running.values()])
            for number, slot in list(running.items()):
                if slot.pipe not in ready:
                    continue
                event = _receive(slot)
                if event is None:
                    event = _death(slot)
                    running[number] = _start(context, workers[number])
                if event is None:
                    continue
                event = event._replace(attempts=attempts[event.task])
                if event.kind != "progress":
                    slot.task = None
                if event.kind == "failed" and event.attempts < ATTEMPTS:
                    log.info("task %d failed and is tried again: %s", event.task, event.value)
                    pending.append(event.task)
                    continue
                left -= event.kind != "progress"
                on_event(event)
    finally:
        _stop(list(running.values()))


def _hand_out(
    slot: _Process,
    tasks: Sequence[Task],
    pending: deque[int],
    attempts: list[int],
    group: Callable[[Task], str],
) -> None:
    if slot.task is not None or not pending:
        return
    same = (index for index in pending if group(tasks[index]) == slot.group)
    task = next(same, pending[0])
    pending.remove(task)
    attempts[task] += 1
    slot.task, slot.group = task, group(tasks[task])
    try:
        slot.pipe.send((task, tasks[task]))
    except BrokenPipeError:
        log.debug("the worker of task %d is gone; its pipe says so next", task)


def _receive(slot: _Process) -> Event | None:
    """The next event, or None when the process died; an error of the whole run is raised."""
    try:
        event: Event | CfError = slot.pipe.recv()
    except (EOFError, ConnectionResetError):
        return None
    if isinstance(event, CfError):
        raise event
    return event


def _death(slot: _Process) -> Event | None:
    """The failure of the task that a dead process had in work, if any."""
    slot.process.join(STOP_GRACE_S)
    slot.pipe.close()
    reason = f"the worker process died (exit code {slot.process.exitcode})"
    log.warning("%s", reason)
    return None if slot.task is None else Event("failed", slot.task, reason)


def _start(context: SpawnContext, worker: Any) -> _Process:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(worker, there), daemon=True)
    process.start()
    # Only the child may hold its end: then the end of the child is the end of the pipe.
    there.close()
    return _Process(process, here)


def _stop(slots: list[_Process]) -> None:
    for slot in slots:
        slot.pipe.close()
        if slot.task is not None:
            slot.process.terminate()
    for slot in slots:
        slot.process.join(STOP_GRACE_S)
        if slot.process.is_alive():
            slot.process.kill()
            slot.process.join()


def _serve(worker: Worker[Any, Any], pipe: Connection) -> None:
    """Main of a worker process: ends when the pipe does, so it never outlives its parent."""
    try:
        while True:
            index, task = pipe.recv()

            def emit(fraction: float, index: int = index) -> None:
                pipe.send(Event("progress", index, fraction))

            try:
                event = Event("done", index, worker(task, emit))
            except BrokenPipeError:
                return
            except CfError as error:
                event = error
            except TASK_ERRORS as error:
                event = Event("failed", index, _reason(error))
            pipe.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
    finally:
        worker.close()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
