"""What VBench and VBench-Long look at: clips of a film, frames of a clip, fusion of scores.

Pure rules over frame numbers and scores. Source: VBench at 45e79ec; see docs/vbench.md.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np

LONG_TABLES = "vbench-long.json"
CLIP_S, LONG_CLIP_S = 2, 10
LONG_CLIPS = ("human_action", "temporal_style", "overall_consistency")
"""Dimensions whose clips last 10 s; and with them all clips of the prompts that they score."""
FUSED = 0.5
"""Weight of the comparison between clips."""


@dataclass(frozen=True)
class Protocol:
    """How films are scored.

    Args:
        name: as records and tables tell it.
        cuts: films are cut into clips, whose scores are averaged.
        encodes: every clip is encoded again before it is scored.
    """

    name: str
    cuts: bool = False
    encodes: bool = False


WHOLE = Protocol("vbench")
INDEX = Protocol("vbench-long-index", cuts=True)
LONG = Protocol("vbench-long", cuts=True, encodes=True)


def clip_seconds(asked: Iterable[str]) -> int:
    """Length of a film's clips: the longest that any dimension of its prompt asks for.

    Source: VBench-Long, ``clip_length_mix.yaml``; 2 for prompts that are not VBench's.
    """
    return LONG_CLIP_S if any(name in LONG_CLIPS for name in asked) else CLIP_S


def clips(frames: int, fps: float, seconds: int) -> tuple[range, ...]:
    """Frame numbers of a film's clips.

    What is left at the end is a clip too, made whole with frames before it; a film shorter than one
    clip is its only one. ``fps`` is cut to a whole number, as upstream has it.

    Example:
        >>> [(c.start, c.stop) for c in clips(80, 16, 2)]
        [(0, 32), (32, 64), (48, 80)]
    """
    length = int(fps) * seconds
    if frames < length or length == 0:
        return (range(frames),)
    starts = [*range(0, frames - length + 1, length)]
    if frames % length:
        starts.append(frames - length)
    return tuple(range(start, start + length) for start in starts)


def middles(count: int, frames: range) -> tuple[int, ...]:
    """The middle frames of ``count`` equal spans; the last one again where there are too few.

    Example:
        >>> middles(4, range(10, 20))
        (10, 13, 15, 18)
        >>> middles(3, range(2))
        (0, 1, 1)

    Source: VBench, ``get_frame_indices``.
    """
    if not len(frames):
        return ()
    spans = np.linspace(0, len(frames), min(count, len(frames)) + 1).astype(int)
    found = [frames[int(a + b - 1) // 2] for a, b in pairwise(spans)]
    return (*found, *found[-1:] * (count - len(found)))


def fused(within: float, between: float | None, dimension: str) -> float:
    """Mean score of a film's clips, with that of a film of their first frames.

    Args:
        within: mean over clips.
        between: consistency of first frames; None where there is one clip alone.
        dimension: subject_consistency or background_consistency.

    Source: VBench-Long with ``dev_flag``: half and half, ``between`` put through a table first;
    ``within`` alone where that gives 0.
    """
    mapped = mapped_score(0.0 if between is None else between, dimension)
    return within * (1 - FUSED) + mapped * FUSED if mapped else within


def mapped_score(between: float, dimension: str) -> float:
    """A score between clips on the scale of scores within clips."""
    scores, values = _tables()[dimension]
    at = bisect_left(scores, between)
    if at in (0, len(scores)):
        return values[0] if at == 0 else values[-1]
    (x0, x1), (y0, y1) = scores[at - 1 : at + 1], values[at - 1 : at + 1]
    return y0 + (y1 - y0) * (between - x0) / (x1 - x0)


@cache
def _tables() -> Mapping[str, tuple[Sequence[float], Sequence[float]]]:
    file = resources.files("cfbench") / "data" / LONG_TABLES
    tree: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {name: (rows["score"], rows["becomes"]) for name, rows in tree["tables"].items()}
