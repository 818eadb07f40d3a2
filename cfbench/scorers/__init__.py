"""Scorer suites by name: a suite decodes a film once and scores all of its dimensions."""

from pathlib import Path
from typing import Protocol

from cfbench.registry import Table
from cfbench.types import DimensionSpec, Prompt, Score

SUITES = Table(
    kind="suite",
    entries={
        "pixel": "cfbench.scorers.pixel:load_suite",
        "tiny": "cfbench.scorers.tiny:load_suite",
    },
    group="cfbench.scorers",
)


class Suite(Protocol):
    """A loaded suite."""

    @property
    def dimensions(self) -> tuple[DimensionSpec, ...]:
        """What it measures."""
        ...

    @property
    def version(self) -> str:
        """Changes when any dimension does."""
        ...

    def score(self, path: Path, prompt: Prompt) -> list[Score]:
        """One score a dimension of the film at ``path``.

        Raises:
            DecodeError: the film cannot be decoded.
        """
        ...


def load(name: str) -> Suite:
    """The suite called ``name``, ready to score.

    Raises:
        CfError: unknown name, or a part that is not installed.
    """
    return SUITES.get(name)()
