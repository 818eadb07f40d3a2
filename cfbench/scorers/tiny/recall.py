"""Reading what a forced history asks for: the second place's subject and landmark.

R pixel frames. Attributes are those of ``ATTRIBUTES``; none is named by a caption.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfbench.scorers.tiny.read import read_frames
from cfbench.scorers.tiny.watch import SAMPLES_PER_S
from cfbench.scorers.tiny.weights import Networks
from cfmodel.tinyworld.film import film
from cfmodel.tinyworld.recall import Recall, recall
from cfmodel.tinyworld.scene import COLORS, FPS, LANDMARKS, MARKINGS, SHAPES, chunk_start

Frames = NDArray[np.uint8]

CHANCE: dict[str, float] = {
    "landmark": 1 / len(LANDMARKS),
    "shape": 1 / len(SHAPES),
    "color": 1 / len(COLORS),
    "marking": 1 / len(MARKINGS),
}
ATTRIBUTES = tuple(CHANCE)


@dataclass(frozen=True)
class Probe:
    """A question to a system's memory.

    Attributes:
        id: the same for every gap; films of one id are alike.
        gap_s: of the quiet hold between the two looks, as it came out in whole chunks.
        segments: texts and seconds of the whole film.
        history: frames (R, Y, X, 3) to commit.
        chunks: to make after them.
        truth: rendered frames that should follow the history.
        skip: frames after the history that are not read.
    """

    id: str
    gap_s: float
    segments: tuple[tuple[str, float], ...]
    history: Frames
    chunks: int
    truth: Frames
    skip: int
    asked: Recall

    def to_read(self, frames: Frames) -> Frames:
        """Of the frames after the history those that are read, a few a second."""
        return frames[self.skip :: FPS // SAMPLES_PER_S]


def probe(number: int, gap_s: float) -> Probe:
    """The probe with this number and about this gap, rendered."""
    asked = recall(number, gap_s)
    start, end = chunk_start(asked.history), chunk_start(asked.history + asked.chunks)
    frames = torch.cat(list(film(asked.scene, end))).numpy()
    return Probe(
        id=f"recall-{number}",
        gap_s=asked.gap_s,
        segments=tuple((s["text"], s["seconds"]) for s in asked.segments()),
        history=frames[:start],
        chunks=asked.chunks,
        truth=frames[start:],
        skip=asked.read[0] - start,
        asked=asked,
    )


def read(question: Probe, frames: Frames, nets: Networks) -> dict[str, float]:
    """Share of read frames that show each attribute right; a missing subject is wrong.

    Args:
        question: what was asked.
        frames: those after the history, (R, 80, 128, 3).
        nets: the tiny tier's.
    """
    seen = read_frames(nets.reader, torch.from_numpy(question.to_read(frames)))
    there = seen.score[:, 0] > 0
    subject = question.asked.subject
    wanted: dict[str, Any] = {
        "shape": SHAPES.index(subject.shape),
        "color": COLORS.index(subject.color),
        "marking": MARKINGS.index(subject.marking),
    }
    shares = {
        name: float((there & (vars(seen)[name][:, 0] == index)).float().mean())
        for name, index in wanted.items()
    }
    mark = LANDMARKS.index(question.asked.scene.places[1].landmark)
    shares["landmark"] = float((seen.landmark.argmax(1) == mark).float().mean())
    return {name: shares[name] for name in ATTRIBUTES}
