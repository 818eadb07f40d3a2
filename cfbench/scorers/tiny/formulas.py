"""The tiny tier's formulas on plain arrays, free of networks and of files.

R frames, E width of an embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cfbench.types import WindowScore

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

STALL_PX, STALL_S = 0.5, 1.0
WINDOW_S = 2.0
GOOD_CONTRAST, BLOCK_PX = 0.16, 4
NOISE_CLARITY, GOOD_CLARITY = 0.55, 0.9
NO_SUBJECT = 0.5


def stalled(strong: Floats, strong_s: Floats, at_s: Floats) -> Flags:
    """At which times nothing moves: no strong flow within a second reaches half a pixel.

    Args:
        strong: of pairs of frames 80 pixels high and 1/8 s apart.
        strong_s: when each pair was taken.
        at_s: times to judge.

    Source: ours; of rendered films sent through the codec, 0.42 pixels is the most in still shots
    and 0.60 the least where camera or subject moves.
    """
    near = np.abs(at_s[:, None] - strong_s) <= STALL_S
    return np.where(near, strong, 0.0).max(1, initial=0.0) < STALL_PX


def clarity(luma_RYX: Floats) -> Floats:
    """How clearly edges stand out from flat areas, in [0, 1]: 0 in white noise.

    From 1 minus the ratio of a frame's median gradient to its 95th percentile, which is 0.55 in
    noise (of any strength, as pixels are whole numbers) and up to 0.93 in rendered frames.
    """
    along_y = np.diff(luma_RYX, axis=1)[:, :, :-1]
    along_x = np.diff(luma_RYX, axis=2)[:, :-1]
    size = np.hypot(along_x, along_y).reshape(len(luma_RYX), -1)
    middle, high = np.quantile(size, (0.5, 0.95), axis=1)
    ratio = middle / np.maximum(high, 1e-6)
    return ((1 - ratio - NOISE_CLARITY) / (GOOD_CLARITY - NOISE_CLARITY)).clip(0, 1)


def edges(luma_RYX: Floats) -> Floats:
    """Mean step of luma between neighbouring pixels, in levels of 255.

    Example:
        >>> edges(np.array([[[0.0, 1.0], [0.0, 1.0]]]))
        array([127.5])
    """
    along_y = np.abs(np.diff(luma_RYX, axis=1)).mean((1, 2))
    along_x = np.abs(np.diff(luma_RYX, axis=2)).mean((1, 2))
    return 255 * (along_y + along_x) / 2


def aesthetic(luma_RYX: Floats, box_R4: Floats, found: Flags) -> Floats:
    """Clarity, contrast and framing of frames, in [0, 1]; a rule, no learnt taste.

    ``clarity * (0.5 * min(1, deviation / 0.16) + 0.5 * framing)``, the deviation being that of luma
    averaged over blocks, which noise does not raise; framing is the share of the main subject's box
    centre within the middle half of the picture, falling to 0 at its rim, times
    ``min(1, area / 0.02)``; without a subject it is 0.5.

    Args:
        luma_RYX: brightness in [0, 1].
        box_R4: left, top, right, bottom of the tallest detection, in [0, 1].
        found: whether there is one.
    """
    rows, columns = (size // BLOCK_PX for size in luma_RYX.shape[1:])
    shape = (len(luma_RYX), rows, BLOCK_PX, columns, BLOCK_PX)
    blocks_RYX = luma_RYX[:, : rows * BLOCK_PX, : columns * BLOCK_PX].reshape(shape).mean((2, 4))
    contrast = (blocks_RYX.std((1, 2)) / GOOD_CONTRAST).clip(max=1)
    middle = (box_R4[:, :2] + box_R4[:, 2:]) / 2
    off = (np.abs(middle - 0.5).max(1) - 0.25).clip(min=0) / 0.25
    area = (box_R4[:, 2:] - box_R4[:, :2]).clip(min=0).prod(1)
    framing = np.where(found, (1 - off).clip(min=0) * (area / 0.02).clip(max=1), NO_SUBJECT)
    return clarity(luma_RYX) * (0.5 * contrast + 0.5 * framing)


def windows(
    values: Floats, at_s: Floats, *, step_s: float, end_s: float, length_s: float = WINDOW_S
) -> tuple[WindowScore, ...]:
    """Means of the values in successive windows; a window without a value is None.

    Args:
        values: NaN where the dimension does not apply.
        at_s: when each was taken.
        step_s: time between two values, the least length of the last window.
        end_s: end of the film.
        length_s: length of a window.
    """
    out: list[WindowScore] = []
    start = 0.0
    while start + step_s / 2 < end_s:
        stop = min(start + length_s, end_s)
        out.append(WindowScore(start_s=start, end_s=stop, value=mean_of(values, at_s, start, stop)))
        start += length_s
    return tuple(out)


def mean_of(values: Floats, at_s: Floats, start: float, stop: float) -> float | None:
    """Mean of the values taken in [start, stop); None where there is none."""
    inside = values[(at_s >= start) & (at_s < stop)]
    inside = inside[~np.isnan(inside)]
    return float(inside.mean()) if len(inside) else None


def around(
    values: Floats, at_s: Floats, times_s: Sequence[float], half_s: float
) -> tuple[WindowScore, ...]:
    """Means within ``half_s`` of times, both ends included; times past the film are left out."""
    rows: list[WindowScore] = []
    for time in times_s:
        value = mean_of(values, at_s, time - half_s, time + half_s + 1e-6)
        if value is not None:
            rows.append(WindowScore(start_s=time - half_s, end_s=time + half_s, value=value))
    return tuple(rows)


def share(right: Flags, asked: Flags) -> Floats:
    """1 or 0 where something is asked for, NaN elsewhere."""
    return np.where(asked, right.astype(np.float64), np.nan)


def per_frame(count: int, value: Callable[[int], float]) -> Floats:
    """``value(0), ..., value(count - 1)`` as an array."""
    return np.array([value(k) for k in range(count)], dtype=np.float64)
