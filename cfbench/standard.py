"""VBench's standard suite: how many films of which prompts, under which names, which are static.

Source: VBench's README, ``vbench/__init__.py`` and ``static_filter.py`` at 45e79ec.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cfbench.aggregate import DIMENSIONS, aggregate, partial, suite_normaliser
from cfbench.errors import CfError
from cfbench.frame import build_frame
from cfbench.scorers.rules import Floats
from cfbench.types import Prompt, RunRecord, Score

FLICKER = "temporal_flickering"
SAMPLES, FLICKER_SAMPLES = 5, 25
"""Films of a prompt; of one that flicker is scored on, of which the first five static ones count.

The scorer looks at samples 0 to 4 alone.
"""
STATIC_LIMIT = 3 / 256
"""Of the shorter side, in pixels: a frame with more flow than this moves."""
STATIC_SHARE = 0.02
"""Of a frame's pixels: those that flow most."""
MOVERS = 2 / 16
"""Of a film's frames: so many may move."""

Item = TypeVar("Item")


def samples(prompt: Prompt) -> int:
    """Films that the suite asks of a prompt."""
    return FLICKER_SAMPLES if FLICKER in (prompt.vbench or ()) else SAMPLES


def file_name(text: str, sample: int) -> str:
    """What the package calls a film; the text is the short prompt, also of a film of a longer one.

    Example:
        >>> file_name("a person is riding a bike", 0)
        'a person is riding a bike-0.mp4'

    Raises:
        CfError: no file can be called so.
    """
    if "/" in text or "\0" in text:
        raise CfError(f"prompt {text[:60]!r} has a slash; no file can be named by it")
    return f"{text}-{sample}.mp4"


def expected(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts by the names of the films that they ask for; two prompts of one text share films."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        for sample in range(samples(prompt)):
            found.setdefault(file_name(prompt.text, sample), []).append(prompt)
    return found


@dataclass(frozen=True)
class Coverage:
    """Which films of the suite a folder holds.

    Args:
        present: names that are asked for and there.
        missing: names that are asked for and not there.
        foreign: films that nobody asks for: misspelt, or numbered too high.
        complete: by dimension, prompts that have all of their films, and prompts.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    complete: dict[str, tuple[int, int]]


def coverage(folder: Path, prompts: Sequence[Prompt]) -> Coverage:
    """Films of the suite in a folder, by name alone.

    Raises:
        CfError: no such folder.
    """
    if not folder.is_dir():
        raise CfError(f"no folder {folder}")
    wanted, there = expected(prompts), {path.name for path in folder.glob("*.mp4")}
    complete: dict[str, tuple[int, int]] = {}
    for prompt in prompts:
        names = [file_name(prompt.text, k) for k in range(samples(prompt))]
        whole = all(name in there for name in names)
        for dimension in prompt.vbench or ():
            done, of = complete.get(dimension, (0, 0))
            complete[dimension] = (done + whole, of + 1)
    return Coverage(
        present=tuple(sorted(there & set(wanted))),
        missing=tuple(name for name in wanted if name not in there),
        foreign=tuple(sorted(there - set(wanted))),
        complete=complete,
    )


def is_static(strong: Floats, ends: Floats, rows: int, columns: int) -> bool:
    """Whether a film is one that flicker is scored on.

    Args:
        strong: mean of the largest 2 % of flow, of each frame to the next.
        ends: the same of the first to the last frame, and of the last to the first.
        rows: of a frame, in pixels.
        columns: of a frame, in pixels.

    Source: VBench, ``static_filter.py``. Between the ends a film may flow as far as all of the
    frames together that are allowed to move; of a film of four frames or fewer nothing may.
    """
    limit = STATIC_LIMIT * min(rows, columns)
    allowed = round(MOVERS * (len(strong) + 1))
    calm = int(np.sum(strong > limit)) <= allowed
    return calm and not bool(np.any(ends > limit * allowed * 2))


def first_static(films: Iterable[Item], still: Callable[[Item], bool]) -> list[Item]:
    """The first five static films of a prompt; later ones are not looked at.

    Example:
        >>> first_static(range(25), lambda k: k % 3 == 0)
        [0, 3, 6, 9, 12]
    """
    found: list[Item] = []
    for film in films:
        if len(found) == SAMPLES:
            break
        if still(film):
            found.append(film)
    return found


def links(
    runs: Iterable[RunRecord], prompts: Sequence[Prompt], path_of: Callable[[RunRecord], Path]
) -> dict[str, Path]:
    """Films of a run by the names that the package looks for; samples are numbered by seed.

    Args:
        runs: films of one system.
        prompts: of the suite.
        path_of: where a film lies.

    Raises:
        CfError: films of several systems.
    """
    texts, by_text = {p.id: p.text for p in prompts}, dict[str, dict[int, RunRecord]]()
    systems: set[str] = set()
    for run in runs:
        if run.prompt_id in texts:
            systems.add(run.system)
            # Two entries of one text are made twice and named once: the first entry's counts.
            by_text.setdefault(texts[run.prompt_id], {}).setdefault(run.seed, run)
    if len(systems) > 1:
        raise CfError(f"films of {', '.join(sorted(systems))}; name one with --system")
    return {
        file_name(text, sample): path_of(of_text[seed])
        for text, of_text in by_text.items()
        for sample, seed in enumerate(sorted(of_text))
    }


def totals(runs: Sequence[RunRecord], scores: Sequence[Score]) -> dict[str, Any]:
    """Group scores by system, from means of normalised dimensions over films; see ``Partial``.

    A dimension that no film has is missing, and no total holds without it.
    """
    frame = build_frame(runs, scores, "reference")
    normaliser = suite_normaliser("reference")
    found: dict[str, Any] = {}
    for system in frame.systems:
        here = frame.where(system=system)
        rows = here.normalised(normaliser)
        means = {
            name: float(np.nanmean(column)) if np.isfinite(column).any() else None
            for name, column in zip(DIMENSIONS, rows.T, strict=True)
        }
        found[system] = {
            **aggregate(means)._asdict(), **partial(means)._asdict(), "films": len(here.runs)
        }  # fmt: skip
    return found
