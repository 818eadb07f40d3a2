"""What the verbs over films do: look at each, gather the results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import video
from cfbench.analysis.events import detect
from cfbench.analysis.features import pixel_features, trace
from cfbench.analysis.motion import Motion, motion
from cfbench.analysis.watch import feature_named, films_in, look
from cfbench.progress import Reporter


class FilmTask(NamedTuple):
    """A film to look at through a feature, named as on the command line."""

    path: Path
    feature: str

    def __str__(self) -> str:
        return str(self.path)


def events_of(task: FilmTask) -> list[dict[str, Any]]:
    """Events of a film as JSON trees."""
    feature = feature_named(task.feature) or pixel_features
    return [event._asdict() for event in detect(trace(video.stored(task.path), feature))]


def find_events(
    paths: Sequence[Path], *, feature: str, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Events of films by path.

    Args:
        paths: films and folders of films.
        feature: ``module:function``, or empty for pixels.
        workers: processes.

    Raises:
        CfError: no film, an unknown feature, or films that cannot be decoded.
    """
    films = films_in(paths)
    feature_named(feature)
    tasks = [FilmTask(path, feature) for path in films]
    with Reporter() as reporter:
        found = look(tasks, events_of, workers=workers, reporter=reporter)
    return {str(path): events for path, events in zip(films, found, strict=True)}


def told(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Events of films in words.

    Example:
        >>> told({"a.mp4": [{"kind": "freeze", "start_s": 2.0, "end_s": 4.5, "period_s": None}]})
        {'a.mp4': 'freeze 2.0 to 4.5 s'}
    """
    return {path: ", ".join(map(_words, events)) or "none" for path, events in found.items()}


def _words(event: dict[str, Any]) -> str:
    words = f"{event['kind']} {event['start_s']:.1f} to {event['end_s']:.1f} s"
    period = event["period_s"]
    return words if period is None else f"{words}, every {period:.2f} s"


def check_events(count: int, seed: int, *, workers: int) -> dict[str, Any]:
    """How the detectors do on ``count`` planted films of a seed; see ``verdict.tally``."""
    from cfbench.analysis.verdict import Number, judge, tally

    tasks = [Number(number, seed) for number in range(count)]
    with Reporter() as reporter:
        verdicts = look(tasks, judge, workers=workers, reporter=reporter)
    return {"seed": seed, **tally(verdicts)}


def motion_of(path: Path) -> Motion:
    """What moves in the film in a file."""
    return motion(video.stored(path))


def find_motion(paths: Sequence[Path], *, workers: int) -> dict[str, Any]:
    """Share of films that are dynamic, with the camera's motion and without it, and each film.

    Raises:
        CfError: no film, or films that cannot be decoded or are too short.
    """
    films = films_in(paths)
    with Reporter() as reporter:
        found: list[Motion] = look(films, motion_of, workers=workers, reporter=reporter)
    own = [each.own for each in found if each.own is not None]
    return {
        "dynamic": _share([each.dynamic for each in found], len(found)),
        "own": _share(own, len(found)),
        "films": {str(path): each._asdict() for path, each in zip(films, found, strict=True)},
    }


def _share(flags: Sequence[bool], expected: int) -> dict[str, Any]:
    value = sum(flags) / len(flags) if flags else None
    return {"value": value, "scored": len(flags), "expected": expected}
