"""Slow changes of a film against its own opening: exposure, saturation, sharpness, latents, scores.

R pixel frames, W windows, F latent frames, C channels, Y X latent height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cfbench import video
from cfbench.curves import at_time
from cfbench.stats import LEVEL, MIN_CLUSTERS, RESAMPLES, Interval, mean_interval
from cfbench.types import Score

Floats = NDArray[np.float64]

WINDOW_S = 2.0
OPENING_S = 4.0
BAND = 0.25
MINUTE_S = 60.0
BLOCK_WINDOWS = 3  # resampled together, as neighbouring windows are alike
PIXELS = ("exposure", "saturation", "sharpness")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How drift is measured.

    Attributes:
        window_s: length of a window.
        opening_s: what a film is held against: the mean of the windows that begin before this.
        band: a window has failed when it is further than this from the opening, as a share of the
            opening's value.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    window_s: float = WINDOW_S
    opening_s: float = OPENING_S
    band: float = BAND
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window_s <= 0 or self.opening_s <= 0 or self.band <= 0:
            raise ValueError(
                f"window_s={self.window_s}, opening_s={self.opening_s}, band={self.band}: expected "
                "positive numbers"
            )


class Series(NamedTuple):
    """One measure of a film by window.

    Attributes:
        name: of the measure.
        starts_s: of the windows, (W,).
        values_W: raw values; NaN where there is none.
        scale: what a change is divided by; None: by the opening's value.
    """

    name: str
    starts_s: Floats
    values_W: Floats
    scale: float | None = None


class Drift(NamedTuple):
    """What became of one measure.

    Attributes:
        name: of the measure.
        starts_s: of the windows, (W,).
        values_W: raw values.
        changes_W: difference from the opening as a share of it; NaN where there is no value.
        slope: change a minute, by least squares, with its interval.
        worst_s: start of the window furthest from the opening; None without any value.
        worst: its change.
        fails_s: start of the first window after the opening that is outside of the band; None when
            none is.
    """

    name: str
    starts_s: Floats
    values_W: Floats
    changes_W: Floats
    slope: Interval
    worst_s: float | None
    worst: float | None
    fails_s: float | None


def pixel_series(clip: video.Clip, settings: Settings) -> list[Series]:
    """Exposure, saturation and sharpness of a film by window.

    Exposure is the mean of luma in [0, 1], saturation the mean of the largest minus the smallest of
    red, green and blue in [0, 1], sharpness the mean size of luma's Laplacian in levels of 255. A
    last window of less than half the length is left out.

    Raises:
        DecodeError: the film cannot be decoded.
        ValueError: the film is shorter than half a window.
    """
    rows: list[tuple[float, float, float]] = []
    for block in clip.blocks():
        rows += [frame_values(image) for image in block]
    size = max(1, round(settings.window_s * clip.rate))
    count = len(rows) // size + (2 * (len(rows) % size) >= size)
    if not count:
        raise ValueError(
            f"{len(rows)} frames are less than half a window of {settings.window_s:g} s; "
            "choose a shorter --window"
        )
    table = np.array(rows)
    parts = [table[k * size : (k + 1) * size].mean(0) for k in range(count)]
    starts = np.arange(count) * size / clip.rate
    columns = np.stack(parts).T
    return [Series(name, starts, column) for name, column in zip(PIXELS, columns, strict=True)]


def frame_values(image_YXC: video.Frames) -> tuple[float, float, float]:
    """Exposure, saturation and sharpness of one frame; see ``pixel_series``."""
    luma = cv2.cvtColor(image_YXC, cv2.COLOR_RGB2GRAY)
    spread = image_YXC.max(2).astype(np.float64) - image_YXC.min(2)
    edges = np.abs(cv2.Laplacian(luma, cv2.CV_64F))
    return float(luma.mean()) / 255, float(spread.mean()) / 255, float(edges.mean())


def latent_series(
    latents_FCYX: NDArray[np.floating[Any]], seconds: float, settings: Settings
) -> list[Series]:
    """Spread and mean of a film's latents by window.

    ``latent_std`` is the standard deviation over all values of a window, ``latent_mean`` their
    mean, whose changes are told in standard deviations of the opening.

    Args:
        latents_FCYX: the latents, spread evenly over the film.
        seconds: length of the film.
        settings: windows and opening.

    Raises:
        ValueError: not four axes, or no latent.
    """
    if latents_FCYX.ndim != 4 or not latents_FCYX.size:
        raise ValueError(f"latents of shape {latents_FCYX.shape}; expected (F, C, Y, X)")
    times = np.arange(len(latents_FCYX)) * seconds / len(latents_FCYX)
    window = np.floor(times / settings.window_s).astype(np.intp)
    starts = settings.window_s * np.arange(window[-1] + 1, dtype=np.float64)
    groups = [latents_FCYX[window == k].astype(np.float64) for k in range(len(starts))]
    spread = np.array([group.std() if group.size else np.nan for group in groups])
    mean = np.array([group.mean() if group.size else np.nan for group in groups])
    scale = float(np.nanmean(spread[starts < settings.opening_s]))
    return [
        Series("latent_std", starts, spread),
        Series("latent_mean", starts, mean, scale=scale),
    ]


def score_series(scores: Sequence[Score], seconds: float, settings: Settings) -> list[Series]:
    """Scores with windows of their own, by overlap with ours; named ``score:<dimension>``."""
    half = settings.window_s / 2
    count = max(1, int(seconds / settings.window_s))
    starts = settings.window_s * np.arange(count, dtype=np.float64)
    found: list[Series] = []
    for score in scores:
        values = [at_time(score.windows, float(start) + half, half) for start in starts]
        column = np.array([np.nan if value is None else value for value in values], np.float64)
        if not np.isnan(column).all():
            found.append(Series(f"score:{score.dimension}", starts, column))
    return found


def drift(series: Series, settings: Settings) -> Drift:
    """Slope, worst window and time to failure of a measure.

    Everything is None where the opening has no value, or is 0.
    """
    starts, values = series.starts_s, series.values_W
    opening = values[(starts < settings.opening_s) & ~np.isnan(values)]
    level = float(opening.mean()) if len(opening) else 0.0
    scale = abs(level) if series.scale is None else series.scale
    if not len(opening) or not scale:
        nothing = np.full(len(values), np.nan)
        none = Interval(None, None, None)
        return Drift(series.name, starts, values, nothing, none, None, None, None)
    changes = (values - level) / scale
    kept = np.flatnonzero(~np.isnan(changes))
    worst = int(kept[np.abs(changes[kept]).argmax()])
    later = kept[starts[kept] >= settings.opening_s]
    outside = later[np.abs(changes[later]) > settings.band]
    return Drift(
        name=series.name,
        starts_s=starts,
        values_W=values,
        changes_W=changes,
        slope=slope(starts[kept] / MINUTE_S, changes[kept], settings),
        worst_s=float(starts[worst]),
        worst=float(changes[worst]),
        fails_s=float(starts[outside[0]]) if len(outside) else None,
    )


def slope(times_W: Floats, values_W: Floats, settings: Settings, level: float = LEVEL) -> Interval:
    """Least-squares slope with a percentile interval; no bounds below 5 windows.

    Example:
        >>> round(slope(np.arange(4.0), np.arange(4.0) * 2, Settings()).value, 6)
        2.0

    Source: residuals are resampled in circular blocks, as neighbouring windows are alike (Politis
    and Romano 1992).
    """
    if len(values_W) < 2:
        return Interval(None, None, None)
    centred = times_W - times_W.mean()
    weight = centred / (centred**2).sum()
    value = float(weight @ values_W)
    if len(values_W) < MIN_CLUSTERS:
        return Interval(value, None, None)
    residual = values_W - values_W.mean() - value * centred
    count = len(values_W)
    blocks = -(-count // BLOCK_WINDOWS)
    rng = np.random.default_rng(settings.seed)
    first = rng.integers(0, count, (settings.resamples, blocks, 1))
    index = ((first + np.arange(BLOCK_WINDOWS)) % count).reshape(settings.resamples, -1)[:, :count]
    draws = value + residual[index] @ weight
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    # Without residuals all draws are the slope, but for rounding.
    return Interval(value, min(value, float(low)), max(value, float(high)))


class Group(NamedTuple):
    """Films that belong together (one argument of the verb), and one measure of theirs.

    Attributes:
        label: of the group.
        name: of the measure.
        starts_s: of the windows of the longest film, (W,).
        changes_NW: of each film; NaN where a film has no value or has ended.
        slope: mean over films, which are resampled.
        failed: films that left the band.
        films: in all that have the measure.
        fails_s: median time to failure of those that failed, or None.
    """

    label: str
    name: str
    starts_s: Floats
    changes_NW: Floats
    slope: Interval
    failed: int
    films: int
    fails_s: float | None


def gather(label: str, drifts: Sequence[Drift], settings: Settings) -> Group:
    """One measure of several films.

    Raises:
        ValueError: no film.
    """
    if not drifts:
        raise ValueError("drift of no film; expected at least one")
    longest = max(drifts, key=lambda found: len(found.starts_s))
    table = np.full((len(drifts), len(longest.starts_s)), np.nan)
    for row, found in zip(table, drifts, strict=True):
        row[: len(found.changes_W)] = found.changes_W
    slopes = np.array([np.nan if d.slope.value is None else d.slope.value for d in drifts])
    fails = [found.fails_s for found in drifts if found.fails_s is not None]
    return Group(
        label=label,
        name=longest.name,
        starts_s=longest.starts_s,
        changes_NW=table,
        slope=mean_interval(
            slopes, range(len(slopes)), resamples=settings.resamples, seed=settings.seed
        ),
        failed=len(fails),
        films=int((~np.isnan(slopes)).sum()),
        fails_s=float(np.median(fails)) if fails else None,
    )
