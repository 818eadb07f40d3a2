"""Films on disk, found and looked at one after the other over several processes."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import fanout, video
from cfbench.errors import INCOMPLETE, CfError
from cfbench.progress import Fractions, Reporter

SUFFIXES = frozenset((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"))


def films_in(paths: Sequence[Path]) -> list[Path]:
    """Films named, and those below the folders named, in order.

    Raises:
        CfError: a path that does not exist, or no film at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise CfError(f"no film or folder {path}; name an existing one")
    if not found:
        named = ", ".join(map(str, paths))
        raise CfError(f"no film in {named}; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return list(dict.fromkeys(found))


def feature_named(name: str) -> Callable[[video.Frames], Any] | None:
    """The feature function at ``module:function``; None for an empty name.

    Raises:
        CfError: no such module or function.
    """
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        return vars(importlib.import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise CfError(f"--feature {name!r}: {error}; expected module:function") from error


class Look(NamedTuple):
    """A worker that applies a function to each task, and needs nothing to be let go of."""

    function: Callable[[Any], Any]

    def __call__(self, task: Any, emit: fanout.Emit) -> Any:
        """What the function makes of a task, alone on its core."""
        import cv2

        cv2.setNumThreads(1)
        return self.function(task)

    def close(self) -> None:
        """Nothing is held."""


def look(
    tasks: Sequence[Any], function: Callable[[Any], Any], *, workers: int, reporter: Reporter
) -> list[Any]:
    """What ``function`` makes of each task, in order.

    Args:
        tasks: picklable.
        function: picklable by name.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: a task failed; the message names the reasons.
    """
    results: list[Any] = [None] * len(tasks)
    reasons: list[str] = []
    reporter.phase("films", len(tasks))
    fractions = Fractions(reporter)

    def on_event(event: fanout.Event) -> None:
        if not fractions.follow(event):
            return
        if event.kind == "failed":
            reasons.append(f"{tasks[event.task]}: {event.value}")
        else:
            results[event.task] = event.value

    fanout.run(tasks, [Look(function)] * workers, group=lambda _: "", on_event=on_event)
    if reasons:
        raise CfError(f"{len(reasons)} of {len(tasks)} films: {'; '.join(reasons)}", INCOMPLETE)
    return results
