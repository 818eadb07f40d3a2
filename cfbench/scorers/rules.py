"""VBench's rules on plain arrays, whatever network or formula made these: shared by all tiers.

R frames, P pairs of frames 1/8 s apart, E width of an embedding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVELS = 255
FLOW_SHARE = 0.05
FLOW_LIMIT = 6 / 256  # of the shorter side, in pixels
PAIRS_PER_S = 8
SAMPLED = 61
"""Of so many values one is looked at to guess how large the largest are."""


def interval(fps: float) -> int:
    """Frames from one of dynamic degree's to the next: about 8 a second.

    Example:
        >>> interval(16), interval(24), interval(5)
        (2, 3, 1)
    """
    return max(1, round(fps / PAIRS_PER_S))


def consistency(vectors_RE: Floats) -> Floats:
    """Of each frame but the first, the mean of its similarity to the one before and to the first.

    Vectors have unit length; negative similarities count as 0.

    Source: VBench, subject_consistency and background_consistency.
    """
    if len(vectors_RE) < 2:
        return np.zeros(0)
    before = (vectors_RE[1:] * vectors_RE[:-1]).sum(1).clip(min=0)
    first = (vectors_RE[1:] @ vectors_RE[0]).clip(min=0)
    return (before + first) / 2


def likeness(mean_difference: Floats) -> Floats:
    """``(255 - mean absolute difference) / 255``: of flicker, and of frames drawn again.

    Source: VBench, temporal_flickering and motion_smoothness.
    """
    return (LEVELS - mean_difference) / LEVELS


def flicker(frames: NDArray[np.uint8]) -> Floats:
    """Likeness of neighbouring frames.

    Source: VBench, temporal_flickering.
    """
    low, high = np.minimum(frames[1:], frames[:-1]), np.maximum(frames[1:], frames[:-1])
    return likeness((high - low).reshape(len(frames) - 1, -1).mean(1))


def strong_flow(magnitude: NDArray[np.floating[Any]], share: float = FLOW_SHARE) -> float:
    """Mean of the largest 5 %, or another share, of a pair's flow magnitudes.

    Source: VBench, dynamic_degree.
    """
    count = max(1, int(magnitude.size * share))
    largest = np.sort(_among_largest(magnitude.ravel(), count))[-count:]
    # Largest first, as upstream adds them up.
    return float(largest[::-1].mean())


def _among_largest(values: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """The ``count`` largest and some more: those above what half as many again of a sample reach.

    To sort these costs half of what it costs to divide all of them.
    """
    sample = values[::SAMPLED]
    least = len(sample) - 1 - 3 * count * len(sample) // (2 * len(values))
    if least <= 0:
        return values
    # What is no number counts as largest, as it does when all are sorted.
    found = values[~(values < np.partition(sample, least)[least])]
    return found if len(found) >= count else values


def moves(strong: Floats, height: int, width: int) -> Flags:
    """Which pairs move: their strong flow exceeds 6 pixels of 256 on the shorter side."""
    return strong > FLOW_LIMIT * min(height, width)


def is_dynamic(moving: Flags, sampled: int) -> bool:
    """Whether a film of ``sampled`` frames is dynamic: at least 4 of 16 of its pairs move.

    Example:
        >>> is_dynamic(np.array([True] * 4 + [False] * 11), 16)
        True
    """
    return int(moving.sum()) >= round(4 * sampled / 16)
