"""VBench's rules over features and pixels. R frames, P pairs of frames, E width of a feature."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TOP_SHARE = 0.05
PAIRS_PER_S = 8
LEAST_FLOW, OF_SIDE = 6.0, 256.0
MOVERS, OF_FRAMES = 4, 16


def consistency(features_RE: Floats) -> Floats:
    """Each later frame's mean likeness to the frame before and to the first, negatives as 0 (R-1,).

    Source: VBench, subject_consistency and background_consistency.

    Example:
        >>> consistency(np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]))
        array([0.6, 0. ])
    """
    units = features_RE / np.linalg.norm(features_RE, axis=1, keepdims=True)
    before = (units[1:] * units[:-1]).sum(1).clip(min=0)
    first = (units[1:] * units[0]).sum(1).clip(min=0)
    return (before + first) / 2


def likeness(mean_difference: Floats) -> Floats:
    """``(255 - difference) / 255``: of flicker and of smoothness.

    Source: VBench, temporal_flickering and motion_smoothness.
    """
    return (255 - mean_difference) / 255


def interval(fps: float) -> int:
    """Frames from one of dynamic degree's to the next: about 8 a second."""
    return max(1, round(fps / PAIRS_PER_S))


def strong_flow(magnitude_YX: NDArray[np.float32]) -> float:
    """Mean of the largest 5 % of a pair's flow magnitudes."""
    flat = np.sort(magnitude_YX, axis=None)[::-1]
    return float(flat[: int(magnitude_YX.size * TOP_SHARE)].mean())


def is_dynamic(strong_P: Floats, rows: int, columns: int) -> bool:
    """Whether enough pairs move: a quarter of as many as there are frames, at 6 pixels of 256.

    Source: VBench, dynamic_degree.

    Example:
        >>> is_dynamic(np.array([20.0, 0.0, 0.0, 20.0]), 480, 832)
        True
        >>> is_dynamic(np.array([20.0] + [0.0] * 14), 480, 832)
        False
    """
    limit = LEAST_FLOW * min(rows, columns) / OF_SIDE
    needed = round(MOVERS * (len(strong_P) + 1) / OF_FRAMES)
    moving = int((strong_P > limit).sum())
    # It asks after each pair, so that a film which needs none is dynamic as soon as it has one.
    return len(strong_P) > 0 and moving >= needed
