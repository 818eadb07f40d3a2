"""Progress on stderr: bars on a terminal, else one line a minute."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cfbench.fanout import Event

log = logging.getLogger(__name__)

LINE_EVERY_S = 60.0


class Reporter:
    """Phases of a verb, each with a count; fractions of a unit move the bar too.

    Args:
        quiet: show nothing (tests, callers that have their own display).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._lines = not quiet and not console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or self._lines,
        )
        self._bar: TaskID | None = None
        self._phase = ""
        self._total = 0
        self._ended = False
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of ``total`` units."""
        self._phase, self._total, self._ended = name, total, False
        self._began = self._said = time.monotonic()
        self._bar = self._bars.add_task(name, total=total)
        if self._lines:
            log.info("%s: 0 of %d", name, total)

    def update(self, done: float) -> None:
        """Units of the phase that are done, parts of units counted."""
        if self._bar is not None:
            self._bars.update(self._bar, completed=round(done, 2))
        now = time.monotonic()
        ended = done >= self._total
        if self._lines and not self._ended and (now - self._said >= LINE_EVERY_S or ended):
            self._said, self._ended = now, ended
            spent = now - self._began
            rest = spent / done * (self._total - done) if done else float("nan")
            log.info(
                "%s: %.1f of %d, %.0f s gone, about %.0f s left",
                self._phase,
                done,
                self._total,
                spent,
                rest,
            )


class Fractions:
    """Sum of finished units and of the parts of those in work, told to a reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._done = 0
        self._parts: dict[int, float] = {}

    def part(self, unit: int, fraction: float) -> None:
        """A unit in work has come this far, 0 to 1."""
        self._parts[unit] = fraction
        self._tell()

    def finish(self, unit: int) -> None:
        """A unit has ended."""
        self._parts.pop(unit, None)
        self._done += 1
        self._tell()

    def follow(self, event: Event) -> bool:
        """Take in the news of a task; whether that task has ended."""
        if event.kind == "progress":
            self.part(event.task, event.value)
            return False
        self.finish(event.task)
        return True

    def _tell(self) -> None:
        self._reporter.update(self._done + sum(self._parts.values()))
