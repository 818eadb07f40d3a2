"""One decode of a film, and everything of it that the dimensions need.

R frames, E width of a feature, C classes of actions. Frames pass in blocks; what is kept of them
are features and numbers by frame, so that memory does not grow with resolution and clips are ranges
of frame numbers.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from cfbench.scorers import rules
from cfbench.scorers.rules import Floats
from cfbench.scorers.vbench import prep
from cfbench.scorers.vbench.nets import raft
from cfbench.scorers.vbench.protocol import middles

Frames = NDArray[np.uint8]
AT_ONCE = 16
AMT_MULTIPLE = 16
AESTHETIC_SCALE, IMAGING_SCALE = 10.0, 100.0
VICLIP_FRAMES, UMT_FRAMES = 8, 16
SMALLEST_SIDE = 64
"""Pixels: of smaller frames the coarsest level of RAFT's and AMT's correlations is empty."""


class Nets(NamedTuple):
    """The networks, float32; None where there are no weights or nobody asks for them."""

    dino: Any = None
    clip_b: Any = None
    clip_l: Any = None
    aesthetic: Any = None
    musiq: Any = None
    amt: Any = None
    raft: Any = None
    dinov2: Any = None
    style: Any = None
    viclip: Any = None
    umt: Any = None


@dataclass
class Film:
    """Measures of a film, each empty where there is no network for it.

    By frame: ``dino``, ``clip`` and ``style`` are features (E,); ``aesthetic`` and ``imaging`` are
    in [0, 1]; ``flicker`` (to the frame before) and ``smooth`` (to the frame that its neighbours
    let expect) are mean absolute differences in levels of 255; ``strong`` is flow in pixels to the
    frame one step later. By first frame of a clip: ``opening`` (E,) of that frame, ``seen`` (E,)
    and ``acts`` (C,), probabilities, of the clip.
    """

    frames: int = 0
    rows: int = 0
    columns: int = 0
    step: int = 1
    dino: list[Floats] = field(default_factory=list)
    clip: list[Floats] = field(default_factory=list)
    style: list[Floats] = field(default_factory=list)
    aesthetic: list[float] = field(default_factory=list)
    imaging: list[float] = field(default_factory=list)
    flicker: dict[int, float] = field(default_factory=dict)
    smooth: dict[int, float] = field(default_factory=dict)
    strong: dict[int, float] = field(default_factory=dict)
    opening: dict[int, Floats] = field(default_factory=dict)
    seen: dict[int, Floats] = field(default_factory=dict)
    acts: dict[int, Floats] = field(default_factory=dict)


@torch.inference_mode()
def watch(
    blocks: Iterator[Frames], fps: float, clips: Sequence[range], nets: Nets, device: torch.device
) -> Film:
    """Everything that is measured of a film's frames.

    Args:
        blocks: frames (n, Y, X, 3), RGB, in order.
        fps: of the film.
        clips: frame numbers of the stretches that are scored.
        nets: what looks at it.
        device: where they are.
    """
    watcher = _Watcher(rules.interval(fps), clips, nets, device)
    for block in blocks:
        for start in range(0, len(block), AT_ONCE):
            part = block[start : start + AT_ONCE]
            watcher.still(part)
            for image in part:
                watcher.moving(image)
    return watcher.film


def drawn_again(clip: range) -> range:
    """Frames of a clip that their neighbours are asked to give: the odd ones, counted from it."""
    return range(clip.start + 1, clip.stop - 1, 2)


def flown(clip: range, step: int) -> range:
    """Frames of a clip whose flow to the one ``step`` later is looked at."""
    return range(clip.start, clip.stop - step, step)


class _Group(NamedTuple):
    """Frames of a clip that a network looks at together."""

    start: int
    frames: tuple[int, ...]


class _Watcher:
    """A film being watched, and the frames of it that later ones are compared with."""

    def __init__(self, step: int, clips: Sequence[range], nets: Nets, device: torch.device) -> None:
        self.film = Film(step=step)
        self._nets, self._device = nets, device
        self._late: deque[Frames] = deque(maxlen=max(step, 2) + 1)
        self._middle = {k for clip in clips for k in drawn_again(clip)}
        self._first = {k for clip in clips for k in flown(clip, step)}
        self._openings = {clip.start for clip in clips if len(clip)}
        self._texts = _groups(clips, VICLIP_FRAMES) if nets.viclip is not None else []
        self._acts = _groups(clips, UMT_FRAMES) if nets.umt is not None else []
        self._of_texts = {k for group in self._texts for k in group.frames}
        self._of_acts = {k for group in self._acts for k in group.frames}
        self._shown: dict[int, Tensor] = {}
        self._acted: dict[int, Tensor] = {}

    def still(self, images: Frames) -> None:
        """What is seen in each frame by itself."""
        film, nets, x = self.film, self._nets, self._pixels(images)
        film.rows, film.columns = images.shape[1:3]
        if nets.dino is not None:
            film.dino += list(_array(nets.dino(prep.dino_input(x))))
        if nets.clip_b is not None or nets.clip_l is not None:
            square = prep.clip_input(x)
            if nets.clip_b is not None:
                film.clip += list(_array(nets.clip_b(square)))
            if nets.clip_l is not None and nets.aesthetic is not None:
                feature = nnf.normalize(nets.clip_l(square), dim=-1)
                film.aesthetic += (nets.aesthetic(feature)[:, 0] / AESTHETIC_SCALE).tolist()
        if nets.style is not None:
            film.style += list(_array(nets.style(prep.style_input(images).to(self._device))))
        if nets.musiq is not None:
            film.imaging += (nets.musiq(prep.musiq_input(x)) / IMAGING_SCALE).tolist()

    def moving(self, image: Frames) -> None:
        """What the next frame (Y, X, 3) shows beside those before it."""
        film, late, now = self.film, self._late, self.film.frames
        late.append(image)
        if now:
            film.flicker[now] = float(np.mean(cv2.absdiff(late[-2], image)))
        if min(image.shape[:2]) >= SMALLEST_SIDE:
            if self._nets.raft is not None and (first := now - film.step) in self._first:
                film.strong[first] = self._strong(late[-1 - film.step], image)
            if self._nets.amt is not None and now - 1 in self._middle:
                film.smooth[now - 1] = self._unsmooth(late[-3], late[-2], image)
        if self._nets.dinov2 is not None and now in self._openings:
            seen = self._nets.dinov2(prep.dinov2_input(self._pixels(image[None])))
            film.opening[now] = _array(seen)[0]
        self._together(now, image)
        film.frames += 1

    def _together(self, now: int, image: Frames) -> None:
        """What networks see that look at several frames of a clip."""
        film, nets = self.film, self._nets
        if now in self._of_texts:
            self._shown[now] = prep.viclip_input(self._pixels(image[None]))[0]
        if now in self._of_acts:
            self._acted[now] = prep.umt_input(image).to(self._device)
        for group in _ready(self._texts, now, self._shown):
            frames = torch.stack([self._shown[k] for k in group.frames])
            film.seen[group.start] = _array(nets.viclip(frames[None]))[0]
        for group in _ready(self._acts, now, self._acted):
            frames = torch.stack([self._acted[k] for k in group.frames])
            film.acts[group.start] = _array(torch.sigmoid(nets.umt(frames[None])))[0]

    def _strong(self, a: Frames, b: Frames) -> float:
        """Strong flow of a pair of frames, in what it is padded with too, as upstream has it."""
        u, v = self._nets.raft(
            *(prep.padded(self._pixels(x[None]), raft.MULTIPLE) for x in (a, b))
        )[0]
        return rules.strong_flow((u.square() + v.square()).sqrt().cpu().numpy())

    def _unsmooth(self, first: Frames, middle: Frames, last: Frames) -> float:
        """Mean absolute difference of a frame to the one that its neighbours let expect."""
        ends = (
            prep.padded(self._pixels(x[None]) / prep.LEVELS, AMT_MULTIPLE) for x in (first, last)
        )
        drawn = prep.unpadded(self._nets.amt(*ends), *first.shape[:2])[0]
        # Cut, not rounded, to whole levels, as upstream does it.
        levels = (drawn * prep.LEVELS).clamp(0, prep.LEVELS).to(torch.uint8)
        shown = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        return float(np.mean(cv2.absdiff(middle, shown)))

    def _pixels(self, images: Frames) -> Tensor:
        return torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()


def _groups(clips: Sequence[range], count: int) -> list[_Group]:
    found = [_Group(clip.start, middles(count, clip)) for clip in clips]
    return sorted(found, key=lambda group: group.frames[-1:])


def _ready(groups: list[_Group], now: int, kept: dict[int, Tensor]) -> Iterator[_Group]:
    """Groups whose last frame is this one; then what no later group needs is let go."""
    done = [group for group in groups if group.frames and group.frames[-1] == now]
    yield from done
    for group in done:
        groups.remove(group)
        for k in set(group.frames) - {k for other in groups for k in other.frames}:
            kept.pop(k, None)


def _array(x: Tensor) -> Floats:
    return x.cpu().numpy().astype(np.float64)
