"""What a prompt asks a film to show, sampled frame by sampled frame.

S sampled frames. Only what the captions name is judged; the scene's script, when there is one,
says when it should be in view.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cfbench.scorers.tiny.formulas import Flags, Floats
from cfbench.types import Prompt
from cfmodel.tinyworld.caption import Named, parse
from cfmodel.tinyworld.film import truth
from cfmodel.tinyworld.scene import LANDMARKS, SUBJECTS, EventKind, Motion, Scene, scene_from_json

SETTLE_S = 0.75
EXPECTED, GONE = 0.6, 0.02
# Visibility needs no fine picture: a quarter of the size is within a few per cent.
TRUTH_ROWS, TRUTH_COLUMNS = 20, 32

_SHOWN: tuple[EventKind, ...] = ("hold", "orbit", "dolly")
_MOVING_VIEW: tuple[EventKind, ...] = ("pan-away", "pan-back", "orbit", "dolly", "enter")
# A spinning ball without a marking looks the same from all sides, so spins are not asked to show.
_SEEN_MOTIONS: tuple[Motion, ...] = ("walk", "circle", "hop")
_HIDDEN: tuple[EventKind, ...] = ("away", "absent")


@dataclass(frozen=True)
class Part:
    """A segment: [start_s, end_s) and what its text names; ``direction`` is a pan's, -1 or 1."""

    start_s: float
    end_s: float
    text: str
    named: Named
    direction: int | None


@dataclass
class Expectation:
    """Arrays (S,): ``part`` of each frame, ``settled`` past a change, and shares in view.

    ``moving`` are frames whose text names a motion, of the camera or of a subject in view.
    ``main``, ``second`` and ``landmark`` are shares in [0, 1], NaN where nobody knows; ``side_x``
    the second subject's centre minus the main one's, in shares of the width.
    """

    parts: tuple[Part, ...]
    part: NDArray[np.int64]
    settled: Flags
    main: Floats
    second: Floats
    landmark: Floats
    side_x: Floats
    moving: Flags

    @property
    def shown(self) -> Flags:
        """Frames in which the main subject should be clearly in view."""
        return self.settled & (self.main >= EXPECTED)

    @property
    def hidden(self) -> Flags:
        """Frames in which the main subject should be out of view."""
        return self.settled & (self.main <= GONE)

    @property
    def both(self) -> Flags:
        """Frames in which main and second subject should be clearly in view."""
        return self.shown & (self.second >= EXPECTED)


def parts_of(prompt: Prompt, end_s: float) -> tuple[Part, ...]:
    """The segments that begin before ``end_s``; the last lasts to the end."""
    found: list[Part] = []
    start = 0.0
    for k, segment in enumerate(prompt.segments):
        if start >= end_s and k:
            break
        last = k == len(prompt.segments) - 1
        stop = end_s if last else min(start + segment.seconds, end_s)
        named = parse(segment.text)
        found.append(Part(start, stop, segment.text, named, _direction(segment.text, named)))
        start += segment.seconds
    return tuple(found)


def _direction(text: str, named: Named) -> int | None:
    if named.event not in ("pan-away", "pan-back"):
        return None
    words = text.lower().replace(",", " ").replace(".", " ").split()
    for k, word in enumerate(words):
        # "on the left" and "to its left" say where the second subject stands.
        beside = words[max(0, k - 2) : k] in (["on", "the"], ["to", "its"])
        if word in ("left", "right") and not beside:
            return 1 if word == "right" else -1
    return None


def expect(prompt: Prompt, sampled: NDArray[np.int64], fps: int, end_s: float) -> Expectation:
    """What the sampled frames of a film of the prompt should show.

    Raises:
        ValueError: the prompt's scene is of another version of the world.
    """
    parts = parts_of(prompt, end_s)
    at_s = sampled / fps
    starts = np.array([p.start_s for p in parts])
    part = np.searchsorted(starts, at_s, side="right") - 1
    since = at_s - starts[part]
    settled = (part == 0) | (since >= SETTLE_S)
    if prompt.scene is None:
        main, second, landmark, side = _told(parts, part)
    else:
        main, second, landmark, side = _played(scene_from_json(prompt.scene), sampled)
    moving = settled & _moving(parts, part, main)
    return Expectation(parts, part, settled, main, second, landmark, side, moving)


def _moving(parts: tuple[Part, ...], part: NDArray[np.int64], main: Floats) -> Flags:
    view = np.array([p.named.event in _MOVING_VIEW for p in parts])[part]
    own = [p.named.event in _SHOWN and p.named.motion in _SEEN_MOTIONS for p in parts]
    return view | (np.array(own)[part] & (main >= EXPECTED))


def _told(parts: tuple[Part, ...], part: NDArray[np.int64]) -> tuple[Floats, ...]:
    """Expectations from the events that the texts name, for prompts without a scene."""

    def view(p: Part) -> float:
        if not p.named.recognised:
            return np.nan
        if p.named.event in _HIDDEN:
            return 0.0
        return 1.0 if p.named.event in _SHOWN or p.named.event is None else np.nan

    main = np.array([view(p) for p in parts])[part]
    second = np.where([p.named.second_shape is not None for p in parts], 1.0, np.nan)[part]
    side = np.array([float(p.named.side or 0) or np.nan for p in parts])[part]
    return main, np.where(main == 1, second, np.nan), np.where(main == 1, 1.0, np.nan), side


def _played(scene: Scene, sampled: NDArray[np.int64]) -> tuple[Floats, ...]:
    seen = truth(scene, torch.from_numpy(sampled), TRUTH_ROWS, TRUTH_COLUMNS)
    visible = seen.visible.double().numpy()
    middle = ((seen.box[..., 0] + seen.box[..., 2]) / 2).double().numpy()
    second = next((k for k, s in enumerate(scene.subjects) if k and s.place == 0), None)
    none = np.full(len(sampled), np.nan)
    return (
        visible[:, 0],
        none if second is None else visible[:, second],
        visible[:, SUBJECTS],
        none if second is None else middle[:, second] - middle[:, 0],
    )


def landmark_index(named: Named) -> int | None:
    """Index of the named landmark."""
    return None if named.landmark is None else LANDMARKS.index(named.landmark)
