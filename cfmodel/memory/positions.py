"""Temporal rotary positions of memory and query frames: one pure function a scheme.

All of them take host integers, so a step never waits for the device.
"""

from typing import NamedTuple

from cfmodel.config import Positions


class Placement(NamedTuple):
    """Positions of the remembered frames, in slot order, and of the frames to be generated."""

    memory: tuple[int, ...]
    query: tuple[int, ...]


def place(
    scheme: Positions,
    sink: tuple[int, ...],
    others: tuple[int, ...],
    *,
    committed: int,
    new_frames: int,
    capacity: int | None,
) -> Placement:
    """Positions of one film in one layer.

    Args:
        scheme: ``absolute`` is the true frame; ``window`` packs everything held from 0; ``bounded``
            puts the sink at 0 and all others in one run ending at ``min(end, capacity - 1)``;
            ``adjacent`` leaves all others at their true frames and puts the sink just before.
        sink: absolute frames held as sink.
        others: absolute frames held as slow, then fast, memory.
        committed: frames committed so far, the absolute index of the first new frame.
        new_frames: frames about to be generated.
        capacity: latents attended to at most, the new ones included; needed for ``bounded``.

    Raises:
        ValueError: ``bounded`` without a capacity.

    Source: arXiv:2602.06028, eq. 8, in its consistent reading (sink 0-2, slow 3-14, fast 15-20);
    ``adjacent`` is Rolling Forcing's.

    Example:
        >>> place("bounded", (0, 1, 2), (6, 30), committed=33, new_frames=3, capacity=21)
        Placement(memory=(0, 1, 2, 16, 17), query=(18, 19, 20))
    """
    match scheme:
        case "absolute":
            return Placement(sink + others, tuple(range(committed, committed + new_frames)))
        case "adjacent":
            first = min((*others, committed))
            moved = tuple(range(first - len(sink), first))
            return Placement(moved + others, tuple(range(committed, committed + new_frames)))
        case "window":
            held = len(sink) + len(others)
            return Placement(tuple(range(held)), tuple(range(held, held + new_frames)))
        case "bounded":
            if capacity is None:
                raise ValueError("bounded positions need a capacity; set memory.fast")
            run = len(others) + new_frames
            # A frame that is in slow and in fast memory counts twice, which early in a film could
            # push the run below the sink: it then ends later, still within capacity.
            end = max(min(committed + new_frames, capacity), len(sink) + run)
            start = end - run
            positions = (*range(len(sink)), *range(start, start + len(others)))
            return Placement(positions, tuple(range(end - new_frames, end)))
