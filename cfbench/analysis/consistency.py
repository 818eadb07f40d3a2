"""Consistency over time, as the paper's Table 1 has it, of any films. Numbers only.

R frames that are looked at, E width of a space.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfbench import video
from cfbench.curves import HALF_WINDOW_S, TIMES_S, Curve
from cfbench.scorers import rules, spaces
from cfbench.scorers.rules import Floats
from cfbench.stats import mean_interval

CLIP_S = 2.0
FIRST: Mapping[str, str] = {"dino_first": "dino", "clip_f": "clip"}
"""Curves of similarity to the first frame, and the space of each."""
TEXT = "clip_t"
MEASURES = (*FIRST, TEXT)
CLIPS: Mapping[str, str] = {"dino_clips": "dino", "clip_clips": "clip"}
"""Clip-to-clip consistency, and the space of each."""

Segments = tuple[tuple[str, float], ...]


class FilmTask(NamedTuple):
    """A film to look at: its group, what films are alike with it, texts with their seconds."""

    path: Path
    group: str
    cluster: str
    segments: Segments
    features: str

    def __str__(self) -> str:
        return str(self.path)


class Consistency(NamedTuple):
    """What one film keeps.

    Attributes:
        curves: by measure, the value at each of ``TIMES_S``; None where the film has no frame.
        clips: clip-to-clip consistency by measure; None for a film of one clip.
    """

    curves: dict[str, tuple[float | None, ...]]
    clips: dict[str, float | None]


def windows(frames: int, rate: float) -> list[list[int]]:
    """Frames within half a second of each of ``TIMES_S``.

    Source: arXiv:2602.06028, Table 1: mean over the frames from t - 0.5 s to t + 0.5 s.
    """
    at_s = np.arange(frames) / rate
    return [np.flatnonzero(np.abs(at_s - t) <= HALF_WINDOW_S).tolist() for t in TIMES_S]


def text_at(segments: Segments, second: float) -> str:
    """The text of a moment; the last segment lasts to the end.

    Example:
        >>> [text_at((("a", 2.0), ("b", 3.0)), second) for second in (1.0, 2.0, 9.0)]
        ['a', 'b', 'b']
    """
    starts = [0.0, *accumulate(seconds for _, seconds in segments[:-1])]
    return segments[max(k for k, start in enumerate(starts) if start <= second)][0]


def consistency_of(task: FilmTask) -> Consistency:
    """What a film keeps of its first frame, of its text, and from clip to clip.

    Raises:
        DecodeError: the film cannot be decoded.
        CfError: no weights for any space.
    """
    film, known = video.stored(task.path), spaces.load(task.features)
    around = windows(film.frames, film.rate)
    starts = [round(k * CLIP_S * film.rate) for k in range(int(film.frames / film.rate / CLIP_S))]
    wanted = sorted({0, *starts, *(k for window in around for k in window)})
    picked = video.pick(task.path, set(wanted))
    images = np.stack([picked[k] for k in wanted])
    vectors = {name: space.images(images) for name, space in known.items()}
    place = {k: row for row, k in enumerate(wanted)}
    curves: dict[str, tuple[float | None, ...]] = {}
    for measure, name in FIRST.items():
        if name in vectors:
            curves[measure] = _means(vectors[name] @ vectors[name][place[0]], around, place)
    texts = known["clip"].texts if "clip" in known else None
    if texts is not None and task.segments:
        said = np.stack([texts(text_at(task.segments, k / film.rate)) for k in wanted])
        curves[TEXT] = _means((vectors["clip"] * said).sum(1), around, place)
    clips = {
        measure: clip_to_clip(vectors[name][[place[k] for k in starts]])
        for measure, name in CLIPS.items()
        if name in vectors
    }
    return Consistency(curves, clips)


def _means(
    values_R: Floats, around: Sequence[Sequence[int]], place: Mapping[int, int]
) -> tuple[float | None, ...]:
    return tuple(
        float(np.mean([values_R[place[k]] for k in window])) if window else None
        for window in around
    )


def clip_to_clip(first_frames_CE: Floats) -> float | None:
    """Consistency of the film of every clip's first frame; None for less than two.

    Source: VBench-Long's term from clip to clip, raw: not mapped, not fused.
    """
    if len(first_frames_CE) < 2:
        return None
    return float(rules.consistency(first_frames_CE).mean())


def curves_of(group: str, films: Sequence[tuple[str, Consistency]]) -> dict[str, Curve]:
    """Curves of a group by measure, bands over clusters; measures that no film has are left out.

    Args:
        group: its name.
        films: the cluster of each (its prompt), and what it keeps.
    """
    clusters = [cluster for cluster, _ in films]
    found: dict[str, Curve] = {}
    for measure in MEASURES:
        missing = (None,) * len(TIMES_S)
        rows = [film.curves.get(measure, missing) for _, film in films]
        values = np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64)
        if np.isnan(values).all():
            continue
        found[measure] = Curve(
            system=group,
            dimension=measure,
            times_s=TIMES_S,
            means=tuple(mean_interval(column, clusters) for column in values.T),
            scored=tuple(int(n) for n in (~np.isnan(values)).sum(0)),
            expected=len(films),
        )
    return found
