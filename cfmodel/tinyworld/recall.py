"""Forced histories that ask for memory: a place seen once, left for a while, and come back to.

The camera looks at the second place a few seconds into the film (so that it is in nobody's sink),
goes home, holds still for the gap, and turns to the second place again. The history ends while it
turns and the place is still out of view; what stands there is named by no caption.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from cfmodel.tinyworld.caption import script_captions
from cfmodel.tinyworld.film import truth
from cfmodel.tinyworld.scene import (
    CHUNK_FRAMES,
    FPS,
    SUBJECTS,
    Event,
    Scene,
    Subject,
    chunk_start,
    sample_scene,
)

OPENING, PAN, LOOK, SHOWN = 5, 4, 5, 5
TURNING = 2  # chunks of the last turn that the history shows: 1.5 s
SETTLING = 1  # chunks of the second look that are not read
TRIES = 400


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A history to commit and what should come after it.

    Attributes:
        scene: whose film's beginning is the history.
        gap_s: seconds of the quiet hold between the two looks at the second place.
        history: chunks of the film that are committed.
        chunks: chunks to make after them.
        shown: first and past-the-last pixel frame in which the camera rests on the second place
            for the first time.
        read: the same of the second time, in which it is asked for.
        unseen_s: seconds between the last pixel frame that shows any of it and the history's end.
        subject: what stands at the second place.
    """

    scene: Scene
    gap_s: float
    history: int
    chunks: int
    shown: tuple[int, int]
    read: tuple[int, int]
    unseen_s: float
    subject: Subject

    @property
    def landmark(self) -> str:
        """The second place's landmark."""
        return self.scene.places[1].landmark

    def segments(self) -> list[dict[str, Any]]:
        """Texts and seconds of the film, as in a prompt."""
        return [
            {"text": line.text, "seconds": line.seconds}
            for line in script_captions(self.scene, main=True)
        ]


def recall(number: int, gap_s: float) -> Recall:
    """The probe with this number: the same scene for every gap.

    Raises:
        RuntimeError: no scene of those tried keeps the place out of view long enough.
    """
    gap = max(1, round(gap_s * FPS / CHUNK_FRAMES))
    script = (
        Event(kind="hold", chunks=OPENING),
        Event(kind="pan-away", chunks=PAN),
        Event(kind="away", chunks=LOOK),
        Event(kind="pan-back", chunks=PAN),
        Event(kind="hold", chunks=gap),
        Event(kind="pan-away", chunks=PAN),
        Event(kind="away", chunks=SHOWN),
    )
    turn = OPENING + PAN + LOOK + PAN + gap
    history, end = turn + TURNING, turn + PAN + SHOWN
    away = OPENING + PAN
    for k in range(TRIES):
        scene = replace(sample_scene(10_000_000 + number * TRIES + k), script=script)
        subject = next((s for s in scene.subjects if s.place == 1), None)
        if subject is None:
            continue
        things = [scene.subjects.index(subject), SUBJECTS + 1]
        seen = truth(scene, torch.tensor([chunk_start(history) - 1, chunk_start(end) - 1]), 40, 64)
        hidden = float(seen.coverage[0, things].max()) == 0
        if hidden and float(seen.visible[1, things[0]]) > 0.9:
            return Recall(
                scene=scene,
                gap_s=gap * CHUNK_FRAMES / FPS,
                history=history,
                chunks=end - history,
                shown=(chunk_start(away + SETTLING), chunk_start(away + LOOK)),
                read=(chunk_start(turn + PAN + SETTLING), chunk_start(end)),
                unseen_s=(chunk_start(history) - 1 - _last_seen(scene, things)) / FPS,
                subject=subject,
            )
    raise RuntimeError(f"recall {number}: no scene of {TRIES} keeps its second place out of view")


def _last_seen(scene: Scene, things: list[int]) -> int:
    """Last pixel frame of the first look, or of the turn home, that shows any of some instances."""
    start = chunk_start(OPENING + PAN + LOOK)
    frames = torch.arange(start - 1, chunk_start(OPENING + PAN + LOOK + PAN))
    coverage = truth(scene, frames, 40, 64).coverage[:, things].amax(1)
    return int(frames[coverage > 0].max())
