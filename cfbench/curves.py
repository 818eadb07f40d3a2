"""Scores against time, and quality against context length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfbench.frame import Estimate, Frame
from cfbench.stats import RESAMPLES, Interval, percentile_interval, resampled_means
from cfbench.types import RunRecord, WindowScore

TIMES_S: tuple[float, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
HALF_WINDOW_S = 0.5
CURVES: Mapping[str, str] = {
    "dino_first": "Similarity to the first frame",
    "clip_f": "Similarity to the first frame, text-aligned features",
    "clip_t": "Similarity to the text",
}
"""Dimensions that emit windows around ``TIMES_S``, as the paper's Table 1; their axis titles."""

CONSISTENCY = "dino_first"
SERIES: Mapping[str, tuple[str, ...]] = {
    "LongLive's weights, wider windows": (
        "longlive",
        "longlive-3.75",
        "longlive-5.25",
        "longlive-6",
        "longlive-9",
        "longlive-12",
    ),
    "Ours, fewer slow latents": ("no-slow", "slow-2", "slow-4", "slow-8", "ours"),
}
"""Systems that share weights and differ in the length of their context alone, shortest first."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One system's mean of one dimension at each time, with bands over prompts."""

    system: str
    dimension: str
    times_s: tuple[float, ...]
    means: tuple[Interval, ...]
    scored: tuple[int, ...]
    expected: int


@dataclass(frozen=True, kw_only=True)
class ContextPoint:
    """A system's context length and what it reaches with it."""

    system: str
    span_s: float
    held_latents: int
    quality: Interval
    consistency: Interval
    scored: int
    expected: int


def at_time(
    windows: Sequence[WindowScore], time_s: float, half_s: float = HALF_WINDOW_S
) -> float | None:
    """Mean over [time - half, time + half] of window scores, weighted by overlap.

    None when no window with a value overlaps. A film that ends at 60 s has half of the last
    window; its mean is then over that half.
    """
    mass, total = 0.0, 0.0
    for window in windows:
        overlap = min(window.end_s, time_s + half_s) - max(window.start_s, time_s - half_s)
        if overlap > 0 and window.value is not None:
            mass += overlap
            total += overlap * window.value
    return total / mass if mass else None


def time_values(frame: Frame, dimension: str, times_s: Sequence[float]) -> np.ndarray:
    """Films x times, NaN where a film has no window there."""
    rows = [
        [at_time(frame.windows.get((run.clip.sha256, dimension), ()), time) for time in times_s]
        for run in frame.runs
    ]
    flat = [[math.nan if value is None else value for value in row] for row in rows]
    return np.array(flat, dtype=np.float64).reshape(len(rows), len(times_s))


def time_curves(
    frame: Frame,
    dimension: str,
    times_s: Sequence[float] = TIMES_S,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Curve]:
    """Curves of every system of the frame; a time without any film is None, not interpolated.

    Source: arXiv:2602.06028, Table 1: windows of +-0.5 s around 10, 20, ..., 60 s.
    """
    curves: list[Curve] = []
    for system in frame.systems:
        mine = frame.where(system=system)
        values = time_values(mine, dimension, times_s)
        draws = resampled_means(values, mine.prompts, resamples=resamples, seed=seed)
        means: list[Interval] = []
        scored: list[int] = []
        for column in range(len(times_s)):
            kept = ~np.isnan(values[:, column])
            names = {name for name, keep in zip(mine.prompts, kept, strict=True) if keep}
            mean = float(values[kept, column].mean()) if kept.any() else None
            means.append(percentile_interval(mean, draws[:, column], len(names)))
            scored.append(int(kept.sum()))
        curves.append(
            Curve(
                system=system,
                dimension=dimension,
                times_s=tuple(times_s),
                means=tuple(means),
                scored=tuple(scored),
                expected=len(mine.runs),
            )
        )
    return curves


def span_s(experiment: Mapping[str, Any], chunks: int) -> float | None:
    """Seconds of film that a chunk's context covers; None for a system without a memory.

    A slow latent counts for its whole interval of chunks, as in the paper's "20+ s":
    3 + 12 x (2 x 3) + 6 = 81 latents = 20.25 s. Endless memory covers the film.

    Example:
        >>> geometry = {"chunk": 3, "fps": 16, "vae_stride": [4, 8, 8]}
        >>> memory = {"sink": 3, "slow": 12, "fast": 6, "promotion": "surprisal-2"}
        >>> span_s({"memory": memory, "geometry": geometry}, 81)
        20.25
    """
    if "memory" not in experiment:
        return None
    memory, geometry = experiment["memory"], experiment["geometry"]
    if memory["fast"] is None:
        latents = chunks * geometry["chunk"]
    else:
        interval = int(memory["promotion"].rpartition("-")[2])
        latents = memory["sink"] + memory["slow"] * interval * geometry["chunk"] + memory["fast"]
        latents = min(latents, chunks * geometry["chunk"])
    return latents * geometry["vae_stride"][0] / geometry["fps"]


def held_latents(experiment: Mapping[str, Any], chunks: int) -> int | None:
    """Latents that the last chunk attends to, itself included; None without a memory."""
    if "memory" not in experiment:
        return None
    memory, film = experiment["memory"], chunks * experiment["geometry"]["chunk"]
    if memory["fast"] is None:
        return film
    return min(film, memory["sink"] + memory["slow"] + memory["fast"])


def recent_past_s(experiment: Mapping[str, Any]) -> float | None:
    """Seconds of film right before a chunk that its context reaches back to, at least.

    What is older may still be remembered, or not: the sink has a film's first frames whatever came
    since, and promotion by surprisal spends no slot where nothing changes. None where there is no
    memory, or no limit.

    Example:
        >>> geometry = {"chunk": 3, "fps": 16, "vae_stride": [4, 8, 8]}
        >>> memory = {"sink": 3, "slow": 12, "fast": 6, "promotion": "uniform-1"}
        >>> recent_past_s({"memory": memory, "geometry": geometry})
        9.75
    """
    memory, geometry = experiment.get("memory"), experiment.get("geometry")
    if memory is None or geometry is None or memory["fast"] is None:
        return None
    interval = int(memory["promotion"].rpartition("-")[2])
    slow = memory["slow"] * interval * geometry["chunk"]
    latents = memory["fast"] - geometry["chunk"] + slow
    return latents * geometry["vae_stride"][0] / geometry["fps"]


def context_points(
    frame: Frame, summaries: Mapping[str, Mapping[str, Estimate]], consistency: Sequence[Curve]
) -> list[ContextPoint]:
    """Quality and 60 s consistency of every system that has a memory, by context length."""
    last = {curve.system: curve.means[-1] for curve in consistency}
    first: dict[str, RunRecord] = {}
    for run in frame.runs:
        first.setdefault(run.system, run)
    points: list[ContextPoint] = []
    for system, run in first.items():
        span, held = span_s(run.experiment, run.chunks), held_latents(run.experiment, run.chunks)
        if span is None or held is None:
            continue
        points.append(
            ContextPoint(
                system=system,
                span_s=span,
                held_latents=held,
                quality=summaries[system]["quality"].mean,
                consistency=last.get(system, Interval(None, None, None)),
                scored=summaries[system]["quality"].scored,
                expected=summaries[system]["quality"].expected,
            )
        )
    return sorted(points, key=lambda point: (point.span_s, point.held_latents))
