"""One decode of a film, and everything of it that the dimensions need.

R frames, P pairs of frames 1/8 s apart, E width of a feature. Frames pass in blocks; what is kept
of them are features and numbers, so that memory does not grow with resolution.
"""

from collections.abc import Iterator
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

Frames = NDArray[np.uint8]
AT_ONCE = 16
AMT_MULTIPLE = 16
AESTHETIC_SCALE, IMAGING_SCALE = 10.0, 100.0


class Nets(NamedTuple):
    """The networks, float32; None where there are no weights."""

    dino: Any = None
    clip_b: Any = None
    clip_l: Any = None
    aesthetic: Any = None
    musiq: Any = None
    amt: Any = None
    raft: Any = None


@dataclass
class Film:
    """Measures of a film, each empty where there is no network for it.

    ``dino`` and ``clip`` are features (R, E); ``aesthetic`` and ``imaging`` (R,) are in [0, 1];
    ``flicker`` (R - 1,) and ``smooth`` (one an odd frame between two even ones) are mean absolute
    differences in levels of 255; ``strong`` (P,) are flows in pixels.
    """

    frames: int = 0
    rows: int = 0
    columns: int = 0
    dino: list[Floats] = field(default_factory=list)
    clip: list[Floats] = field(default_factory=list)
    aesthetic: list[float] = field(default_factory=list)
    imaging: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    strong: list[float] = field(default_factory=list)


@torch.inference_mode()
def watch(blocks: Iterator[Frames], fps: float, nets: Nets, device: torch.device) -> Film:
    """Everything that is measured of a film's frames.

    Args:
        blocks: frames (n, Y, X, 3), RGB, in order.
        fps: of the film.
        nets: what looks at it.
        device: where they are.
    """
    watcher = _Watcher(rules.interval(fps), nets, device)
    for block in blocks:
        for start in range(0, len(block), AT_ONCE):
            part = block[start : start + AT_ONCE]
            watcher.still(part)
            for image in part:
                watcher.moving(image)
    return watcher.film


class _Watcher:
    """A film being watched, and the frames of it that later ones are compared with."""

    def __init__(self, step: int, nets: Nets, device: torch.device) -> None:
        self.film = Film()
        self._step, self._nets, self._device = step, nets, device
        self._before: Frames | None = None
        self._flown: Frames | None = None
        self._even: Frames | None = None

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
        if nets.musiq is not None:
            film.imaging += (nets.musiq(prep.musiq_input(x)) / IMAGING_SCALE).tolist()

    def moving(self, image: Frames) -> None:
        """What the next frame (Y, X, 3) shows beside those before it."""
        film, before = self.film, self._before
        if before is not None:
            film.flicker.append(float(np.mean(cv2.absdiff(before, image))))
        if self._nets.raft is not None and film.frames % self._step == 0:
            if self._flown is not None:
                film.strong.append(self._strong(self._flown, image))
            self._flown = image
        if film.frames % 2 == 0:
            # The frame before it is the odd one between two even ones.
            if self._nets.amt is not None and self._even is not None and before is not None:
                film.smooth.append(self._unsmooth(self._even, before, image))
            self._even = image
        self._before = image
        film.frames += 1

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


def _array(x: Tensor) -> Floats:
    return x.cpu().numpy().astype(np.float64)
