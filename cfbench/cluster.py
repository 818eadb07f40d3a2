"""Workers as actors of a Ray cluster: each holds a model and is handed one task after another.

The driver keeps the queue. An actor whose process or node dies is made anew wherever the cluster
has room, and the task it had is tried elsewhere; when the driver dies its actors end with it, and
the next run goes on from what is stored. The store must be one that every node reaches.
"""

import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cfbench.errors import CfError, DiskError
from cfbench.fanout import Engine, Event, Queue, Worker, attempt, hung

log = logging.getLogger(__name__)

POLL_S = 1.0
CLOSE_S = 10.0
START_S = 300.0
"""With no worker up for so long the cluster is taken to be gone."""


class Actor:
    """What runs in a worker process of the cluster.

    Args:
        worker: what does the tasks.
    """

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker

    def where(self) -> str:
        """Node and process, short enough for a line of progress."""
        import os

        node = _ray().get_runtime_context().get_node_id()
        return f"node {node[:6]} process {os.getpid()}"

    def do(self, index: int, task: Any) -> Event | CfError:
        """How one try of a task ended; a full disk is a fault of this node alone."""
        try:
            end = attempt(self._worker, index, task, lambda _: None)
        except BrokenPipeError as error:
            end = Event("failed", index, f"BrokenPipeError: {error}")
        return Event("failed", index, str(end)) if isinstance(end, DiskError) else end

    def close(self) -> None:
        """Let go of everything the worker holds."""
        self._worker.close()


@dataclass(kw_only=True)
class _Slot:
    """A place in the crew: its actor, what is asked of it, and since when."""

    actor: Any
    ref: Any
    since: float
    name: str = ""
    task: int | None = None
    group: str | None = None

    @property
    def is_up(self) -> bool:
        return bool(self.name)


def connect(address: str) -> None:
    """Join the cluster at ``address``; without one, Ray starts on this host alone.

    Raises:
        CfError: Ray is not installed, or no cluster answers there.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CfError(f"--address {address}: no Ray cluster answers ({reason})") from error


def devices(engine: Engine, wanted: str, workers: int) -> list[str]:
    """The device of each worker: every GPU of the cluster, else every CPU.

    Args:
        engine: with the cluster's address.
        wanted: ``auto``, ``cpu`` or ``cuda``; Ray chooses which GPU.
        workers: actors; 0 is one a GPU, or one a CPU.

    Raises:
        CfError: the cluster has no such device.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise CfError(f"--device {wanted} with --engine ray: expected auto, cpu or cuda")
    if workers < 0:
        raise CfError(f"--workers {workers}: expected 0 (choose) or more")
    connect(engine.address)
    has = _ray().cluster_resources()
    gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    device = "cuda" if wanted == "cuda" or (wanted == "auto" and gpus) else "cpu"
    count = gpus if device == "cuda" else cpus
    if not count:
        raise CfError(f"--device {wanted}: the cluster has {gpus} GPUs and {cpus} CPUs")
    return [device] * min(workers or count, count)


def run_ray(
    queue: Queue[Any],
    workers: Sequence[Worker[Any, Any]],
    *,
    on_event: Callable[[Event], None],
    engine: Engine,
) -> None:
    """Empty a queue over actors, see ``fanout.run``.

    Raises:
        CfError: from a worker; or the cluster has no room for any worker.
    """
    connect(engine.address)
    crew = _Crew(queue=queue, workers=workers, on_event=on_event, engine=engine)
    try:
        crew.work()
    finally:
        crew.dismiss()


class _Crew:
    def __init__(
        self,
        *,
        queue: Queue[Any],
        workers: Sequence[Worker[Any, Any]],
        on_event: Callable[[Event], None],
        engine: Engine,
    ) -> None:
        self._queue, self._workers = queue, workers
        self._on_event, self._engine = on_event, engine
        self._ray = _ray()
        self._errors: type[Exception] = self._ray.exceptions.RayError
        options = {"num_cpus": 1, "num_gpus": engine.gpus_each, "max_restarts": 0}
        self._kind = self._ray.remote(Actor).options(**options)
        self._slots = [self._start(worker) for worker in workers]
        self._last_up = time.monotonic()

    def work(self) -> None:
        """Hand out and collect until every task has ended."""
        while self._queue.left:
            for number, slot in enumerate(self._slots):
                self._hand_out(number, slot)
            asked = {slot.ref: number for number, slot in enumerate(self._slots) if slot.ref}
            ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=POLL_S)
            for ref in ready:
                self._collect(asked[ref], ref)
            self._watch()

    def dismiss(self) -> None:
        """Let idle actors close their stores, then end all."""
        idle = [slot for slot in self._slots if slot.is_up and slot.task is None]
        closing = [slot.actor.close.remote() for slot in idle]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for slot in self._slots:
            self._ray.kill(slot.actor)

    def _start(self, worker: Worker[Any, Any]) -> _Slot:
        actor = self._kind.remote(worker)
        return _Slot(actor=actor, ref=actor.where.remote(), since=time.monotonic())

    def _hand_out(self, number: int, slot: _Slot) -> None:
        if not slot.is_up or slot.task is not None:
            return
        others = any(other.is_up for other in self._slots if other is not slot)
        task = self._queue.take(number, slot.group, others=others)
        if task is None:
            return
        what = self._queue.tasks[task]
        slot.task, slot.group, slot.since = task, self._queue.group(what), time.monotonic()
        slot.ref = slot.actor.do.remote(task, what)
        self._on_event(Event("progress", task, 0.0, worker=slot.name))

    def _collect(self, number: int, ref: Any) -> None:
        slot = self._slots[number]
        try:
            told = self._ray.get(ref)
        except self._errors as error:
            self._replace(number, f"the worker died ({type(error).__name__})")
            return
        slot.ref = None
        if isinstance(told, CfError):
            raise told
        if isinstance(told, str):
            slot.name = told
            return
        self._settle(number, told)

    def _settle(self, number: int, event: Event) -> None:
        slot = self._slots[number]
        slot.task = None
        if (told := self._queue.settle(event, number)) is not None:
            self._on_event(told._replace(worker=slot.name))

    def _replace(self, number: int, reason: str) -> None:
        slot = self._slots[number]
        log.warning("%s: %s", slot.name or "a worker that was starting", reason)
        self._ray.kill(slot.actor)
        if slot.task is not None:
            self._settle(number, Event("failed", slot.task, reason))
        self._slots[number] = self._start(self._workers[number])

    def _watch(self) -> None:
        """Kill what hangs; give up when nothing has been up for long."""
        now = time.monotonic()
        for number, slot in enumerate(self._slots):
            if slot.task is not None and now - slot.since >= self._engine.deadline_s:
                self._replace(number, hung(self._engine))
        if any(slot.is_up for slot in self._slots):
            self._last_up = now
        elif now - self._last_up > START_S:
            raise CfError(
                f"no worker of the cluster came up within {START_S:.0f} s; look at ray status, "
                "then start this again to go on"
            )


def ray_module(name: str) -> Any:
    """A module of Ray, by name.

    Raises:
        CfError: Ray is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CfError(
            "--engine ray needs Ray; pip install 'contextforcing[cluster]', or use --engine local"
        ) from error


def _ray() -> Any:
    return ray_module("ray")
