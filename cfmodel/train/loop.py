"""The one training loop. A stage is a ``Strategy``; it owns its networks and what a step does.

Budgets are seconds or steps, whichever ends first, so that a stage ends when its machine must be
given back. A stage that is ``Resumable`` is checkpointed and goes on where it stopped. A loss that
is not finite or explodes ends the run before anything is written over.
"""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cfmodel.devices import agreed, barrier, mean_of_all, world
from cfmodel.io.weights import write_atomic
from cfmodel.train import checkpoint
from cfmodel.train.checkpoint import Position
from cfmodel.train.sinks import Board, JsonLines, Sink, boards, contact_sheet, finite, write_png
from cfmodel.train.state import Trainable

__all__ = [
    "DivergedError", "Engine", "Resumable", "Sampling", "StoppedError", "Strategy", "Trainable",
    "stopping", "train",
]  # fmt: skip

logger = logging.getLogger(__name__)

CHECK_EVERY = 50
EXPLODED = 50.0
FIRST_ROWS = 3
"""Steps that are always logged, so that a wrong start is seen at once."""


class DivergedError(RuntimeError):
    """The loss is not finite or grew beyond reason; the last checkpoint is kept."""


class StoppedError(RuntimeError):
    """The run was asked to stop, and was saved first."""


class Strategy(Protocol):
    """One stage of training."""

    name: str

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """Does one update and returns scalars; ``loss`` is watched for divergence.

        With micro-batches it is called for each of them with the same ``step``, and draws others.
        """
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Held-out figures of the present weights."""
        ...

    def save(self, out: Path, record: dict[str, Any]) -> Iterable[Path]:
        """Writes the weights to keep, with ``record`` in their metadata.

        Every process calls it; the first one writes.
        """
        ...


@runtime_checkable
class Resumable(Strategy, Protocol):
    """A stage that can be stopped and taken up again, and spread over processes."""

    device: torch.device

    def begin(self) -> None:
        """Fills pools and the like: after a checkpoint is restored, before the clock starts."""
        ...

    def trainables(self) -> Mapping[str, Trainable]:
        """The networks in training, by name. The loop prepares, saves and restores them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All else that the next step depends on, of this process.

        Generators, pools and banks, places in streams, counters: as tensors, numbers, texts, and
        lists and dictionaries of these.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave; called before the first step, tensors on the CPU."""
        ...


@runtime_checkable
class Sampling(Protocol):
    """A stage that can show what it has learnt so far."""

    def samples(self) -> Tensor:
        """A few films: pixels (N, R, 3, X, Y) in [0, 1], or latents (N, F, C, X, Y).

        Draws from generators of its own, so that looking changes nothing.
        """
        ...


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a run is made. None of it changes what is learnt, but ``accumulate`` by rounding.

    Args:
        log_every: steps from a row of metrics to the next.
        save_every_s: seconds from a checkpoint to the next; None writes none for time's sake.
        save_every: the same in steps.
        samples_every: steps from a contact sheet to the next.
        accumulate: micro-batches of a step.
        checkpointing: activation checkpointing.
        boards: where metrics go besides ``<stage>-metrics.jsonl``.
        resume: go on from the checkpoint that there is.
        identity: settings that a run must have in common with the checkpoint it goes on from.
        settings: of the run, for its record.
        stop: asked after every step whether to save and stop.
    """

    log_every: int = CHECK_EVERY
    save_every_s: float | None = None
    save_every: int | None = None
    samples_every: int | None = None
    accumulate: int = 1
    checkpointing: bool = False
    boards: tuple[Board, ...] = ()
    resume: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stop: Callable[[], bool] = _never


@contextmanager
def stopping() -> Generator[Callable[[], bool]]:
    """A question whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts at once.

    A launcher sends SIGTERM after a Ctrl-C that its processes saw too, so SIGTERM only asks. Worker
    processes, which a terminal's Ctrl-C reaches as well, live on until the run is saved.
    """
    asked, owner = False, os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() != owner:
            return
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        logger.warning("stopping after this step; once more stops at once and saves nothing")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    strategy: Strategy,
    out: Path,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Runs a stage to its budget, evaluates it and saves its weights into ``out``.

    Returns the record that is stored with the weights: budget spent, steps, last and held-out
    metrics. A run that goes on from a checkpoint has the budget that was left.

    Raises:
        ValueError: no budget, or a checkpoint of another run.
        DivergedError: the loss is not finite or exploded.
        StoppedError: ``engine.stop`` said so.
    """
    if steps is None and seconds is None:
        raise ValueError("no budget: give steps or seconds")
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(strategy, out, engine or Engine(), steps, seconds)
    try:
        return run.to_the_end()
    finally:
        run.close()


class _Run:
    """A stage on its way through its budget."""

    def __init__(
        self,
        strategy: Strategy,
        out: Path,
        engine: Engine,
        steps: int | None,
        seconds: float | None,
    ) -> None:
        self.strategy, self.out, self.engine = strategy, out, engine
        self.steps, self.seconds = steps, seconds
        self.here = world()
        self.resumable = strategy if isinstance(strategy, Resumable) else None
        self.folder = checkpoint.folder_of(out, strategy.name)
        self._prepare()
        self.at = Position()
        if self.resumable is not None and engine.resume:
            self._resume(self.resumable)
        if self.resumable is not None:
            self.resumable.begin()
        self.started = time.monotonic() - self.at.seconds
        self.saved_s, self.last = self.at.seconds, dict[str, float]()
        self.lines: JsonLines | None = None
        self.sinks: list[Sink] = []
        if self.here.rank == 0:
            path = out / f"{strategy.name}-metrics.jsonl"
            self.lines = JsonLines(path, keep=self.at.metrics)
            self.sinks = [self.lines]
            self.sinks += boards(
                engine.boards, out, strategy.name, first=self.at.step, about=engine.settings
            )

    def _prepare(self) -> None:
        engine, wide = self.engine, self.here.size > 1
        if self.resumable is None:
            if wide or engine.accumulate > 1 or engine.checkpointing:
                raise ValueError(
                    f"stage {self.strategy.name} runs in one process, without micro-batches and "
                    "activation checkpointing; run it without"
                )
            return
        for trainable in self.resumable.trainables().values():
            trainable.prepare(
                accumulate=engine.accumulate, checkpointing=engine.checkpointing, sharded=wide
            )

    def _resume(self, strategy: Resumable) -> None:
        path = checkpoint.newest(self.folder)
        if path is None:
            return
        at, own = checkpoint.restore(path, strategy.trainables(), identity=self.engine.identity)
        strategy.load_state_dict(own["strategy"])
        checkpoint.set_random_state(own["random"], strategy.device)
        self.at = replace(at, resumed=at.resumed + 1)
        logger.info("%s goes on from %s", strategy.name, path)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def to_the_end(self) -> dict[str, Any]:
        name, engine = self.strategy.name, self.engine
        micro: list[Mapping[str, Tensor]] = []
        while True:
            # Clocks and signals differ between processes; the first one's count.
            elapsed, stop = agreed(self._elapsed(), float(engine.stop()))
            progress = max(
                self.at.step / self.steps if self.steps is not None else 0.0,
                elapsed / self.seconds if self.seconds is not None else 0.0,
            )
            if progress >= 1:
                break
            if stop:
                self._checked(micro)
                raise StoppedError(f"{name}: stopped after step {self.at.step}; {self._save()}")
            micro = [self.strategy.step(self.at.step, progress) for _ in range(engine.accumulate)]
            self.at = replace(self.at, step=self.at.step + 1)
            self._after_step(micro, progress, elapsed)
        self._checked(micro)
        return self._finish()

    def _after_step(
        self, micro: list[Mapping[str, Tensor]], progress: float, elapsed: float
    ) -> None:
        step, engine = self.at.step, self.engine
        if step % engine.log_every == 0 or step <= FIRST_ROWS:
            self._log(micro, progress)
        if engine.samples_every and step % engine.samples_every == 0:
            self._picture()
        late = engine.save_every_s is not None and elapsed - self.saved_s > engine.save_every_s
        if late or (engine.save_every and step % engine.save_every == 0):
            self._checked(micro)
            self._save()
            self.saved_s = elapsed

    def _checked(self, micro: list[Mapping[str, Tensor]]) -> dict[str, float]:
        """The metrics of a step, over all of its parts; raises if they are beyond reason."""
        if not micro:
            return self.last
        names = {name: None for metrics in micro for name in metrics}
        means = {}
        for name in names:
            values = [float(metrics[name]) for metrics in micro if name in metrics]
            # A norm is there with the last micro-batch alone; a loss must be finite in each.
            known = values if name == "loss" else [v for v in values if not math.isnan(v)]
            means[name] = math.fsum(known) / len(known) if known else math.nan
        means = mean_of_all(means)
        loss, best = means["loss"], min(self.at.best, abs(means["loss"]) + 1e-3)
        trainables = self.resumable.trainables().values() if self.resumable else ()
        if not math.isfinite(loss) or not all(trainable.is_finite for trainable in trainables):
            self._diverged(f"loss {loss} or its gradient is not finite")
        if abs(loss) > EXPLODED * max(best, 1.0):
            self._diverged(f"loss {loss:.4g} is beyond {EXPLODED:g} times its best, {best:.4g}")
        self.at, self.last = replace(self.at, best=best), means
        return means

    def _diverged(self, what: str) -> None:
        path = checkpoint.newest(self.folder) if self.resumable else None
        kept = f"the last good checkpoint is {path}" if path else "no checkpoint was written yet"
        raise DivergedError(
            f"{self.strategy.name}: {what} at step {self.at.step}; {kept}; lower --lr and run again"
        )

    def _log(self, micro: list[Mapping[str, Tensor]], progress: float) -> None:
        means = self._checked(micro)
        row: dict[str, float | int] = {"step": self.at.step, "seconds": round(self._elapsed(), 2)}
        if self.resumable is not None:
            trainables = self.resumable.trainables()
            for name, trainable in trainables.items():
                row["lr" if len(trainables) == 1 else f"lr_{name}"] = trainable.rate
        told = finite({**row, "progress": round(progress, 6), **means})
        for sink in self.sinks:
            sink.write(told)
        if self.here.rank == 0:
            logger.info("%s %s", self.strategy.name, json.dumps(told))

    @torch.no_grad()
    def _picture(self) -> None:
        if not isinstance(self.strategy, Sampling):
            return
        sheet = contact_sheet(self.strategy.samples())
        if self.here.rank == 0:
            folder = self.out / f"{self.strategy.name}-samples"
            write_png(folder / f"step-{self.at.step:08d}.png", sheet)
            for sink in self.sinks:
                sink.picture(self.at.step, sheet)

    def _save(self) -> str:
        """Keeps what there is; says where."""
        strategy = self.strategy
        partial = {"stage": strategy.name, "steps": self.at.step, "partial": True}
        if self.resumable is None:
            strategy.save(self.out, partial)
            return f"its weights so far are in {self.out}"
        position = self.lines.position() if self.lines is not None else 0
        at = replace(self.at, metrics=position, seconds=agreed(self._elapsed())[0])
        own = {
            "strategy": self.resumable.state_dict(),
            "random": checkpoint.random_state(self.resumable.device),
        }
        path = checkpoint.save(
            self.folder, at, self.resumable.trainables(), own, identity=self.engine.identity
        )
        strategy.save(self.out, partial)
        return f"{path} has it all; the same command goes on from there"

    def _finish(self) -> dict[str, Any]:
        strategy, step = self.strategy, self.at.step
        # Before anything else can fail, keep what the budget bought.
        strategy.save(self.out, {"stage": strategy.name, "steps": step, "partial": True})
        record: dict[str, Any] = {
            "stage": strategy.name,
            "steps": step,
            "seconds": round(self._elapsed(), 1),
            "resumed": self.at.resumed,
            "processes": self.here.size,
            "run": dict(self.engine.settings),
            "last": self.last,
            "evaluation": mean_of_all(strategy.evaluate()),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        strategy.save(self.out, record)
        if self.here.rank == 0:
            text = json.dumps(record, indent=1, sort_keys=True) + "\n"
            write_atomic(self.out / f"{strategy.name}-record.json", text.encode())
            checkpoint.remove(self.folder)
            logger.info("%s done %s", strategy.name, json.dumps(record["evaluation"]))
        # The next stage reads in every process what the first one wrote.
        barrier()
        return record
