"""Run tasks here, over local worker processes or over Ray; the results are the same.

A worker is an object with ``__call__(task, emit)`` that must be picklable before its first call.
Each worker process has a pipe of its own: a killed worker cannot leave a shared lock behind.
"""

import logging
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from cfbench.errors import CfError

log = logging.getLogger(__name__)

ATTEMPTS = 2
STOP_GRACE_S = 10.0
LOOK = 64
"""Waiting tasks that are looked at for one that another worker has not failed."""
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
    """News of a task by its index: a fraction (progress), a result (done) or a reason (failed).

    ``worker`` says where, when there are several; the first news of an attempt is progress 0.
    """

    kind: Literal["progress", "done", "failed"]
    task: int
    value: Any
    attempts: int = 1
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where workers run and how patient they are treated.

    Args:
        name: ``local`` processes of this host, or ``ray`` actors of a cluster.
        address: of the Ray cluster, as ``ray start`` prints it; ``auto`` is the one of this host.
        attempts: times that a task is tried in all.
        limit_s: seconds after which an attempt counts as hung and its worker is killed; 0 is never.
        gpus_each: GPUs that a Ray worker holds.

    Raises:
        CfError: an engine, a count or a limit that does not exist.
    """

    name: str = "local"
    address: str = ""
    attempts: int = ATTEMPTS
    limit_s: float = 0.0
    gpus_each: int = 0

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise CfError(f"--engine {self.name}: expected local or ray")
        if self.address and self.name != "ray":
            raise CfError(f"--address {self.address}: only --engine ray has one")
        if self.attempts < 1:
            raise CfError(f"--attempts {self.attempts}: expected 1 or more")
        if not (math.isfinite(self.limit_s) and self.limit_s >= 0):
            raise CfError(f"--job-limit {self.limit_s}: expected seconds, or 0 for none")

    @property
    def deadline_s(self) -> float:
        """The limit as a number to compare with."""
        return self.limit_s or math.inf


LOCAL = Engine()


@dataclass(kw_only=True)
class Queue(Generic[Task]):
    """Tasks that wait, and how often each was tried; every task ends in one event.

    Args:
        tasks: what to do.
        group: tasks of one group are kept on one worker where possible, as they share a model.
        attempts: times that a task is tried in all.
    """

    tasks: Sequence[Task]
    group: Callable[[Task], str]
    attempts: int
    left: int = 0
    _pending: deque[int] = field(default_factory=deque[int])
    _tried: dict[int, int] = field(default_factory=dict[int, int])
    _failed_on: dict[int, int] = field(default_factory=dict[int, int])

    def __post_init__(self) -> None:
        self.left = len(self.tasks)
        self._pending.extend(range(self.left))

    def take(self, worker: int, group: str | None, *, others: bool) -> int | None:
        """The next task of a worker, or None.

        Args:
            worker: its number.
            group: of its last task; such a task is preferred.
            others: whether other workers live: then what failed here is left to them.
        """
        mine = [k for k in self._near(group) if not (others and self._failed_on.get(k) == worker)]
        if not mine:
            return None
        task = next((k for k in mine if self.group(self.tasks[k]) == group), mine[0])
        self._pending.remove(task)
        self._tried[task] = self._tried.get(task, 0) + 1
        return task

    def _near(self, group: str | None) -> list[int]:
        """The first that wait, and the first of a group: looking at all would be quadratic."""
        first = [k for k, _ in zip(self._pending, range(LOOK), strict=False)]
        same = next((k for k in self._pending if self.group(self.tasks[k]) == group), None)
        return first if same is None or same in first else [same, *first]

    def settle(self, event: Event, worker: int) -> Event | None:
        """The event with its attempts, or None when it failed and will be tried again."""
        event = event._replace(attempts=self._tried[event.task])
        if event.kind == "failed":
            self._failed_on[event.task] = worker
            if event.attempts < self.attempts:
                log.info("task %d failed and is tried again: %s", event.task, event.value)
                self._pending.append(event.task)
                return None
        self.left -= event.kind != "progress"
        return event


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    group: str | None = None
    since: float = 0.0


def run(
    tasks: Sequence[Task],
    workers: Sequence[Worker[Task, Result]],
    *,
    group: Callable[[Task], str],
    on_event: Callable[[Event], None],
    engine: Engine = LOCAL,
) -> None:
    """Do all tasks; each ends in one ``done`` or ``failed`` event.

    One local worker without a limit runs here, several run in processes of their own. A task that
    raises, hangs past the limit, or whose worker dies, is tried again, elsewhere where there is
    another worker, up to ``engine.attempts`` times in all.

    Args:
        tasks: what to do.
        workers: one for each process; they differ in the device, say.
        group: tasks of one group are kept on one worker where possible, as they share a model.
        on_event: called in this process with the news, as they come.
        engine: where the workers run.

    Raises:
        CfError: raised by a worker: the input or the disk is at fault, so nothing can go on. On
            Ray, a full disk is a fault of its node, and the task is tried elsewhere.
    """
    if engine.name == "ray":
        from cfbench.cluster import run_ray

        queue = Queue(tasks=tasks, group=group, attempts=engine.attempts)
        run_ray(queue, workers[: len(tasks)], on_event=on_event, engine=engine)
    elif not engine.limit_s and (len(workers) == 1 or len(tasks) <= 1):
        try:
            _run_here(tasks, workers[0], on_event, engine.attempts)
        finally:
            workers[0].close()
    else:
        queue = Queue(tasks=tasks, group=group, attempts=engine.attempts)
        _run_processes(queue, workers[: len(tasks)], on_event, engine)


def _run_here(
    tasks: Sequence[Task],
    worker: Worker[Task, Result],
    on_event: Callable[[Event], None],
    attempts: int,
) -> None:
    for index, task in enumerate(tasks):

        def emit(fraction: float, index: int = index) -> None:
            on_event(Event("progress", index, fraction))

        for attempt in range(1, attempts + 1):
            try:
                result = worker(task, emit)
            except TASK_ERRORS as error:
                log.info("task %d, attempt %d: %s", index, attempt, error)
                if attempt == attempts:
                    on_event(Event("failed", index, _reason(error), attempt))
                continue
            on_event(Event("done", index, result, attempt))
            break


def _run_processes(
    queue: Queue[Task],
    workers: Sequence[Worker[Task, Result]],
    on_event: Callable[[Event], None],
    engine: Engine,
) -> None:
    context = multiprocessing.get_context("spawn")
    running: dict[int, _Process] = {}
    try:
        for number, worker in enumerate(workers):
            running[number] = _start(context, worker)
        while queue.left:
            for number, slot in running.items():
                if _hand_out(slot, number, queue, len(workers) > 1):
                    on_event(Event("progress", slot.task or 0, 0.0, worker=f"process {number}"))
            ready = wait([slot.pipe for slot in running.values()], _patience(running, engine))
            for number, slot in list(running.items()):
                event = _news(slot, slot.pipe in ready, engine)
                if slot.pipe.closed:
                    running[number] = _start(context, workers[number])
                if event is None:
                    continue
                if event.kind != "progress":
                    slot.task = None
                if told := queue.settle(event, number):
                    on_event(told._replace(worker=f"process {number}"))
    finally:
        _stop(list(running.values()))


def _patience(running: dict[int, _Process], engine: Engine) -> float | None:
    """Seconds until the next attempt would count as hung; None without a limit."""
    if not engine.limit_s:
        return None
    begun = [slot.since for slot in running.values() if slot.task is not None]
    return max(0.0, min(begun, default=time.monotonic()) + engine.limit_s - time.monotonic())


def _hand_out(slot: _Process, number: int, queue: Queue[Any], others: bool) -> bool:
    if slot.task is not None:
        return False
    task = queue.take(number, slot.group, others=others)
    if task is None:
        return False
    slot.task, slot.group, slot.since = task, queue.group(queue.tasks[task]), time.monotonic()
    try:
        slot.pipe.send((task, queue.tasks[task]))
    except BrokenPipeError:
        log.debug("the worker of task %d is gone; its pipe says so next", task)
    return True


def _news(slot: _Process, ready: bool, engine: Engine) -> Event | None:
    """The next event of a worker; its pipe is closed when it died or was killed for hanging."""
    if ready:
        event = _receive(slot)
        return event if event is not None else _death(slot)
    if slot.task is None or time.monotonic() - slot.since < engine.deadline_s:
        return None
    slot.process.kill()
    _death(slot)
    return Event("failed", slot.task, hung(engine))


def hung(engine: Engine) -> str:
    """Why a task that took longer than the limit failed."""
    return f"no result within {engine.limit_s:g} s, the limit; its worker was killed"


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
                event = attempt(worker, index, task, emit)
            except BrokenPipeError:
                return
            pipe.send(event)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
    finally:
        worker.close()


def attempt(worker: Worker[Task, Result], index: int, task: Task, emit: Emit) -> Event | CfError:
    """How one try of a task ended; an error that ends the whole run is returned, not raised.

    Raises:
        BrokenPipeError: whoever listens is gone.
    """
    try:
        return Event("done", index, worker(task, emit))
    except BrokenPipeError:
        raise
    except CfError as error:
        return error
    except TASK_ERRORS as error:
        return Event("failed", index, _reason(error))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
