"""Reading what a forced history asks for: the second place's subject, landmark and layout.

R pixel frames, N frames read. Attributes are those of ``ATTRIBUTES``; none is named by a caption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfbench.scorers.tiny.nets import COLUMNS, Reader
from cfbench.scorers.tiny.read import MIN_LANDMARK, pixels, read_frames
from cfbench.scorers.tiny.watch import SAMPLES_PER_S
from cfbench.scorers.tiny.weights import Networks
from cfmodel.io.codec import Codec
from cfmodel.tinyworld.film import film, pictures
from cfmodel.tinyworld.recall import Recall, recall
from cfmodel.tinyworld.scene import (
    CHUNK_FRAMES,
    COLORS,
    FPS,
    LANDMARKS,
    MARKINGS,
    SHAPES,
    chunk_start,
)

Frames = NDArray[np.uint8]

RULES_VERSION = "2"

ATTRIBUTES = ("landmark", "layout", "shape", "color", "marking")
"""Which landmark stands there, in which column of the picture, and what the subject is like."""
UNIFORM: Mapping[str, float] = {
    "landmark": 1 / len(LANDMARKS),
    "shape": 1 / len(SHAPES),
    "color": 1 / len(COLORS),
    "marking": 1 / len(MARKINGS),
}
"""Share that is right by guessing evenly, where there is such a thing."""
NEAR = 1.0
"""Columns (of 16) by which the landmark may be off."""
OTHERS = 4
LEAD_CHUNKS = 3


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
        asked: the scene behind it.
    """

    id: str
    gap_s: float
    segments: tuple[tuple[str, float], ...]
    history: Frames
    chunks: int
    truth: Frames
    asked: Recall

    @property
    def total_chunks(self) -> int:
        """Chunks of history and answer."""
        return self.asked.history + self.chunks


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
        asked=asked,
    )


class Look(NamedTuple):
    """What frames show of the place in view, each (N,).

    ``there`` says whether a subject is seen; shape, color and marking are that subject's;
    ``landmark`` is the clearest one, ``sure`` whether one is there at all and ``column`` where its
    middle is, from 0 to 15.
    """

    there: Tensor
    shape: Tensor
    color: Tensor
    marking: Tensor
    landmark: Tensor
    sure: Tensor
    column: Tensor


class Wanted(NamedTuple):
    """What should be seen: indices, and the landmark's column; None is not known."""

    shape: int | None
    color: int | None
    marking: int | None
    landmark: int | None
    column: float | None


@torch.inference_mode()
def look(reader: Reader, frames: Frames) -> Look:
    """What frames (N, 80, 128, 3) show."""
    block = torch.from_numpy(frames)
    seen = read_frames(reader, block)
    kinds = seen.landmark.argmax(1)
    # The reader pools its landmark map; where it answers is where the landmark stands.
    maps = reader.landmark(reader.trunk(pixels(block) - 0.5)).float().amax(2)
    answers = maps[torch.arange(len(maps)), kinds].softmax(1)
    return Look(
        there=seen.score[:, 0] > 0,
        shape=seen.shape[:, 0],
        color=seen.color[:, 0],
        marking=seen.marking[:, 0],
        landmark=kinds,
        sure=seen.landmark.amax(1) > MIN_LANDMARK,
        column=answers @ torch.arange(COLUMNS, dtype=answers.dtype),
    )


def wanted(question: Probe, reader: Reader) -> Wanted:
    """What the rendered film shows at the second place."""
    subject, asked = question.asked.subject, question.asked
    column = look(reader, answered(question, question.truth)).column.median()
    return Wanted(
        shape=SHAPES.index(subject.shape),
        color=COLORS.index(subject.color),
        marking=MARKINGS.index(subject.marking),
        landmark=LANDMARKS.index(asked.landmark),
        column=float(column),
    )


def first_shown(seen: Look) -> Wanted:
    """What most frames of a film's own first look show; None where most frames show nothing."""

    def most(values: Tensor, shown: Tensor) -> int | None:
        return int(values[shown].mode().values) if 2 * int(shown.sum()) > len(shown) else None

    landmark = most(seen.landmark, seen.sure)
    return Wanted(
        shape=most(seen.shape, seen.there),
        color=most(seen.color, seen.there),
        marking=most(seen.marking, seen.there),
        landmark=landmark,
        column=None if landmark is None else float(seen.column[seen.sure].median()),
    )


def shares(seen: Look, right: Wanted) -> dict[str, float | None]:
    """Share of frames that show each attribute right; nothing seen is wrong, nothing wanted None.

    Args:
        seen: the frames that answer.
        right: what they should show.
    """
    shown, due = seen._asdict(), right._asdict()
    hits = {name: seen.there & (shown[name] == due[name]) for name in ("shape", "color", "marking")}
    hits["landmark"] = seen.landmark == (-1 if right.landmark is None else right.landmark)
    off = seen.column - (0.0 if right.column is None else right.column)
    hits["layout"] = seen.sure & (off.abs() <= NEAR)
    known = {**due, "layout": right.column}
    return {
        name: None if known[name] is None else float(hits[name].float().mean())
        for name in ATTRIBUTES
    }


def answered(question: Probe, frames: Frames) -> Frames:
    """Of the frames after the history those that are read, a few a second."""
    first = question.asked.read[0] - len(question.history)
    return frames[first :: FPS // SAMPLES_PER_S]


def read(question: Probe, frames: Frames, nets: Networks) -> dict[str, float | None]:
    """Share of read frames that show each attribute right; a missing subject is wrong.

    Args:
        question: what was asked.
        frames: those after the history, (R, 80, 128, 3).
        nets: the tiny tier's.
    """
    return shares(look(nets.reader, answered(question, frames)), wanted(question, nets.reader))


def looks_free(question: Probe, frames: Frames, nets: Networks) -> tuple[Wanted, Look]:
    """What a film without a forced history showed at first, and when it was to show it again.

    Args:
        question: whose texts the film was made from.
        frames: all of the film, (R, 80, 128, 3).
        nets: the tiny tier's.
    """
    step = FPS // SAMPLES_PER_S
    first, again = (
        look(nets.reader, frames[slice(*span, step)])
        for span in (question.asked.shown, question.asked.read)
    )
    return first_shown(first), again


def looks_to_json(first: Wanted, again: Look) -> dict[str, Any]:
    """Both looks of a free film as a JSON tree, inverse of ``looks_from_json``."""
    seen = {name: values.tolist() for name, values in again._asdict().items()}
    return {"first": first._asdict(), "again": seen}


def looks_from_json(tree: Mapping[str, Any]) -> tuple[Wanted, Look]:
    """Both looks of a free film."""
    again = {name: torch.tensor(values) for name, values in tree["again"].items()}
    return Wanted(**tree["first"]), Look(**again)


def read_others(question: Probe, number: int, nets: Networks) -> dict[str, float | None]:
    """As ``read`` of the truth of other probes, on average: what someone says who never looked.

    Args:
        question: what was asked.
        number: of the question; the next ``OTHERS`` answer it.
        nets: the tiny tier's.
    """
    right = wanted(question, nets.reader)
    found: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    for other in range(number + 1, number + 1 + OTHERS):
        asked = recall(other, question.gap_s)
        frames = torch.arange(*asked.read, FPS // SAMPLES_PER_S)
        shown = shares(look(nets.reader, pictures(asked.scene, frames).numpy()), right)
        for name, share in shown.items():
            found[name].append(share or 0.0)
    return {name: float(np.mean(values)) for name, values in found.items()}


def round_trip(question: Probe, codec: Codec) -> Frames:
    """The truth after the history as the codec gives it back: what no system can do better than."""
    lead = question.history[-1 - LEAD_CHUNKS * CHUNK_FRAMES :]
    latents = codec.encode(torch.from_numpy(np.concatenate([lead, question.truth]))[None])
    frames_BRYXC = codec.decoder(1).push(latents)
    return frames_BRYXC[0, len(lead) :].cpu().numpy()
