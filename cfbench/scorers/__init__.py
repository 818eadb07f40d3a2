"""Scorer suites by name: a suite sees a film's frames once and scores all of its dimensions."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from cfbench.registry import Table
from cfbench.types import DimensionSpec, Prompt, Score
from cfbench.video import Clip

SUITES = Table(
    kind="suite",
    entries={
        "pixel": "cfbench.scorers.pixel:load_suite",
        "tiny": "cfbench.scorers.tiny:load_suite",
        "vbench": "cfbench.scorers.vbench:load_suite",
        "vbench-long": "cfbench.scorers.vbench:load_long",
        "vbench-long-index": "cfbench.scorers.vbench:load_long_index",
        "vbench-upstream": "cfbench.scorers.vbench:load_upstream",
    },
    group="cfbench.scorers",
)


class Suite(Protocol):
    """A loaded suite. Several threads of a process may score with it at once."""

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """What it measures."""
        ...

    @property
    def version(self) -> str:
        """Changes when any dimension does."""
        ...

    def score(self, clip: Clip, prompt: Prompt) -> list[Score]:
        """One score a dimension of a film.

        Raises:
            DecodeError: the film cannot be decoded.
        """
        ...


@runtime_checkable
class Keeping(Protocol):
    """A suite that can keep what its networks saw of films, so that they are asked once."""

    kept: Path | None


def load(name: str, device: str = "cpu", kept: Path | None = None) -> Suite:
    """The suite called ``name``, ready to score; its networks, if any, are on ``device``.

    ``name`` may end in ``:FOLDER`` where a suite's weights are the user's own, as VBench's. A suite
    that is ``Keeping`` keeps measures of films in the folder ``kept``, if one is given.

    Raises:
        CfError: unknown name, a part that is not installed, or no such folder.
    """
    kind, _, folder = name.partition(":")
    make = SUITES.get(kind)
    suite: Suite = make(device, folder) if folder else make(device)
    if isinstance(suite, Keeping):
        suite.kept = kept
    return suite
