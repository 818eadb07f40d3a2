"""Drift of many films: measured over several processes, gathered by group, drawn."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfbench import video
from cfbench.analysis.drift import (
    Drift,
    Group,
    Settings,
    drift,
    gather,
    latent_series,
    pixel_series,
    score_series,
)
from cfbench.analysis.watch import films_in, look
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.store import open_store, sha256_of
from cfbench.types import Score


class DriftTask(NamedTuple):
    """A film whose drift is measured, with its latents and its scores where there are any."""

    path: Path
    latents: Path | None
    scores: tuple[Score, ...]
    settings: Settings

    def __str__(self) -> str:
        return str(self.path)


def drifts_of(task: DriftTask) -> list[Drift]:
    """Drift of every measure of a film."""
    clip = video.stored(task.path)
    series = pixel_series(clip, task.settings)
    seconds = clip.frames / clip.rate
    if task.latents is not None:
        series += latent_series(read_latents(task.latents), seconds, task.settings)
    series += score_series(task.scores, seconds, task.settings)
    return [drift(one, task.settings) for one in series]


def read_latents(path: Path) -> NDArray[np.floating[Any]]:
    """Latents (F, C, Y, X) of a ``.npy`` file.

    Raises:
        ValueError: the file holds no array of numbers.
    """
    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, EOFError) as error:
        raise ValueError(f"latents {path}: {error}; expected a .npy file") from error
    if not isinstance(latents, np.ndarray) or not np.issubdtype(latents.dtype, np.floating):
        raise ValueError(f"latents {path}: expected floating-point numbers in a .npy file")
    return latents


def find_drift(
    paths: Sequence[Path],
    *,
    latents: Path | None,
    store: Path | None,
    settings: Settings,
    workers: int,
    plot: Path | None,
) -> dict[str, Any]:
    """Drift of films as a JSON tree; each path is a group of films of its own.

    Args:
        paths: films and folders of films.
        latents: folder with a ``.npy`` file for each film of the same stem, or None.
        store: run whose scores of these films are taken too, or None.
        settings: windows, opening and band.
        workers: processes.
        plot: where to draw the curves (.pdf and .png), or None.

    Raises:
        CfError: no film, a film without its latents, or a film that cannot be measured.
    """
    paths = list(dict.fromkeys(paths))
    groups = {path: films_in([path]) for path in paths}
    scores = scores_by_film(store)
    tasks = [
        DriftTask(
            film,
            None if latents is None else latents_beside(film, latents),
            scores.get(sha256_of(film), ()) if scores else (),
            settings,
        )
        for films in groups.values()
        for film in films
    ]
    with Reporter() as reporter:
        results = look(tasks, drifts_of, workers=workers, reporter=reporter)
    found: dict[Path, list[Drift]] = {t.path: r for t, r in zip(tasks, results, strict=True)}
    gathered: list[Group] = []
    for label, films in zip(group_labels(paths), groups.values(), strict=True):
        gathered += _gather_all(label, [found[film] for film in films], settings)
    if plot is not None:
        from cfbench.analysis.draw import drift_curves

        drift_curves(plot, gathered, settings)
    return {
        "settings": asdict(settings),
        "groups": [_group_tree(group) for group in gathered],
        "films": {str(path): [_drift_tree(one) for one in many] for path, many in found.items()},
    }


def scores_by_film(root: Path | None) -> dict[str, tuple[Score, ...]]:
    """The scores of a run by the hash of their film; none without a run."""
    found: dict[str, list[Score]] = {}
    for score in () if root is None else open_store(root).scores():
        found.setdefault(score.clip_sha, []).append(score)
    return {sha: tuple(scores) for sha, scores in found.items()}


def latents_beside(film: Path, folder: Path) -> Path:
    """The file of a film's latents: its stem and ``.npy``.

    Raises:
        CfError: there is none.
    """
    path = folder / f"{film.stem}.npy"
    if not path.is_file():
        raise CfError(f"no latents {path} for {film.name}; write them there or leave out --latents")
    return path


def group_labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, or the whole where two would be the same.

    Example:
        >>> group_labels([Path("a/films"), Path("b/one.mp4"), Path("c/films")])
        ['a/films', 'one', 'c/films']
    """
    last = [path.resolve().stem if path.suffix else path.resolve().name for path in paths]
    return [
        name if last.count(name) == 1 else str(path) for path, name in zip(paths, last, strict=True)
    ]


def _gather_all(label: str, films: Sequence[list[Drift]], settings: Settings) -> list[Group]:
    names = dict.fromkeys(one.name for many in films for one in many)
    return [
        gather(label, [one for many in films for one in many if one.name == name], settings)
        for name in names
    ]


def _group_tree(group: Group) -> dict[str, Any]:
    return {
        "group": group.label,
        "measure": group.name,
        "slope_per_minute": group.slope._asdict(),
        "failed": group.failed,
        "films": group.films,
        "median_time_to_failure_s": group.fails_s,
    }


def _drift_tree(found: Drift) -> dict[str, Any]:
    return {
        "measure": found.name,
        "values": [None if np.isnan(value) else float(value) for value in found.values_W],
        "slope_per_minute": found.slope._asdict(),
        "worst_start_s": found.worst_s,
        "worst_change": found.worst,
        "time_to_failure_s": found.fails_s,
    }


def drift_told(found: dict[str, Any]) -> dict[str, str]:
    """Drift of groups in words, by group and measure."""
    return {f"{tree['group']} {tree['measure']}": _words(tree) for tree in found["groups"]}


def _words(tree: dict[str, Any]) -> str:
    slope = tree["slope_per_minute"]
    if slope["value"] is None:
        return "no value"
    text = f"{100 * slope['value']:+.1f} % a minute"
    if slope["low"] is not None:
        text += f" ({100 * slope['low']:+.1f} to {100 * slope['high']:+.1f})"
    text += f", {tree['failed']} of {tree['films']} films left the band"
    time_s = tree["median_time_to_failure_s"]
    return text if time_s is None else f"{text}, half of these by {time_s:.0f} s"
