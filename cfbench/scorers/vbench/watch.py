"""One decode of a film, and everything of it that the dimensions need.

R frames, E width of a feature, C classes of actions. Frames pass in blocks; what is kept of them
are features and numbers by frame, so that memory does not grow with resolution and clips are ranges
of frame numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

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
Item = TypeVar("Item")
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


class Batch(NamedTuple):
    """How much goes through a network at once: more costs memory, less leaves a device idle."""

    frames: int
    patched: int
    pairs: int


BATCHES: Mapping[str, Batch] = {"cpu": Batch(4, 1, 1), "cuda": Batch(32, 32, 8)}
"""Frames in general, frames that MUSIQ cuts into patches, pairs of frames; by kind of device."""


@torch.inference_mode()
def watch(
    blocks: Iterator[Frames], fps: float, clips: Sequence[range], nets: Nets, device: torch.device
) -> Film:
    """Everything that is measured of a film's frames; how they come in blocks does not matter.

    Args:
        blocks: frames (n, Y, X, 3), RGB, in order; the next one is made while one is looked at.
        fps: of the film.
        clips: frame numbers of the stretches that are scored.
        nets: what looks at it.
        device: where they are.
    """
    watcher = _Watcher(rules.interval(fps), clips, nets, device)
    # Three stages at once: frames are made, become inputs, and go through networks.
    parts = _ahead(_evenly(blocks, watcher.batch.frames))
    for inputs in _ahead(map(_Inputs(nets, device), parts)):
        watcher.see(inputs)
    return watcher.film


def _ahead(blocks: Iterator[Item]) -> Iterator[Item]:
    """The same blocks, each made in another thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def _evenly(blocks: Iterator[Frames], count: int) -> Iterator[Frames]:
    """The same frames, ``count`` at a time."""
    rest: Frames | None = None
    for block in blocks:
        joined = block if rest is None else np.concatenate([rest, block])
        whole = len(joined) - len(joined) % count
        yield from (joined[start : start + count] for start in range(0, whole, count))
        rest = joined[whole:] if whole < len(joined) else None
    if rest is not None:
        yield rest


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


class _Block(NamedTuple):
    """Frames (n, Y, X, 3) and what networks are given of them; None where nobody asks."""

    images: Frames
    pixels: Tensor | None
    dino: Tensor | None
    clip: Tensor | None
    style: Tensor | None
    musiq: Tensor | None


class _Inputs:
    """Makes the inputs of block after block; pixels of a block last while the next one is made."""

    def __init__(self, nets: Nets, device: torch.device) -> None:
        self._nets, self._device = nets, device
        self._buffers: list[NDArray[np.float32]] = []

    @torch.inference_mode()
    def __call__(self, images: Frames) -> _Block:
        nets = self._nets
        if all(net is None for net in nets):
            return _Block(images, None, None, None, None, None)
        x = self._pixels(images)
        clip = nets.clip_b is not None or nets.clip_l is not None
        return _Block(
            images,
            x,
            dino=None if nets.dino is None else prep.dino_input(x),
            clip=prep.clip_input(x) if clip else None,
            style=None if nets.style is None else prep.style_input(images).to(self._device),
            musiq=None if nets.musiq is None else prep.musiq_input(x),
        )

    def _pixels(self, images: Frames) -> Tensor:
        """Float pixels (n, 3, Y, X)."""
        if self._device.type != "cpu":
            return torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()
        # To fill memory that is there is five times as fast as to be given new pages.
        if not self._buffers or self._buffers[0].shape[1:] != images.shape[1:]:
            size = (BATCHES["cpu"].frames, *images.shape[1:])
            self._buffers = [np.empty(size, np.float32) for _ in range(2)]
        self._buffers.reverse()
        pixels = self._buffers[0][: len(images)]
        np.copyto(pixels, images)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class _Watcher:
    """A film being watched, and the frames of it that later ones are compared with."""

    def __init__(self, step: int, clips: Sequence[range], nets: Nets, device: torch.device) -> None:
        self.film, self.batch = Film(step=step), BATCHES[device.type]
        self._nets, self._device = nets, device
        self._late: Frames | None = None
        self._middle = {k for clip in clips for k in drawn_again(clip)}
        self._first = {k for clip in clips for k in flown(clip, step)}
        self._openings = {clip.start for clip in clips if len(clip)}
        self._texts = _groups(clips, VICLIP_FRAMES) if nets.viclip is not None else []
        self._acts = _groups(clips, UMT_FRAMES) if nets.umt is not None else []
        self._of_texts = {k for group in self._texts for k in group.frames}
        self._of_acts = {k for group in self._acts for k in group.frames}
        self._shown: dict[int, Tensor] = {}
        self._acted: dict[int, Tensor] = {}
        self._held: dict[int, Tensor] = {}
        self._features: dict[int, Tensor] = {}

    def see(self, block: _Block) -> None:
        """The next frames."""
        film, images = self.film, block.images
        film.rows, film.columns = images.shape[1:3]
        self._flicker(images)
        if block.pixels is not None:
            self._still(block)
            self._moving(block.pixels, images)
            self._together(block.pixels, images)
        self._late = images[-1]
        film.frames += len(images)

    def _flicker(self, images: Frames) -> None:
        before, size = self._late, float(images[0].size)
        for number, image in enumerate(images, self.film.frames):
            if before is not None:
                self.film.flicker[number] = cv2.norm(before, image, cv2.NORM_L1) / size
            before = image

    def _still(self, block: _Block) -> None:
        """What is seen in each frame by itself."""
        film, nets = self.film, self._nets
        if block.dino is not None:
            film.dino += list(_array(nets.dino(block.dino)))
        if nets.clip_b is not None:
            film.clip += list(_array(nets.clip_b(block.clip)))
        if nets.clip_l is not None and nets.aesthetic is not None:
            feature = nnf.normalize(nets.clip_l(block.clip), dim=-1)
            film.aesthetic += (nets.aesthetic(feature)[:, 0] / AESTHETIC_SCALE).tolist()
        if block.style is not None:
            film.style += list(_array(nets.style(block.style)))
        if block.musiq is not None:
            for part in block.musiq.split(self.batch.patched):
                film.imaging += (nets.musiq(part) / IMAGING_SCALE).tolist()

    def _moving(self, x: Tensor, images: Frames) -> None:
        """What pairs of frames show that end among these."""
        start, nets, step = self.film.frames, self._nets, self.film.step
        if min(images.shape[1:3]) < SMALLEST_SIDE:
            return
        here = range(start, start + len(images))
        drawn = [k for k in here if k - 1 in self._middle] if nets.amt is not None else []
        flows = [k for k in here if k - step in self._first] if nets.raft is not None else []

        def frame(k: int) -> Tensor:
            return x[k - start][None] if k >= start else self._held[k]

        unit = cache(lambda k: frame(k) / prep.LEVELS)  # an end of two pairs, most of the time
        for part in _parts(drawn, self.batch.pairs):
            between = [images[k - 1 - start] if k > start else self._late for k in part]
            a, b = (_joined([unit(k - late) for k in part]) for late in (2, 0))
            for k, value in zip(part, self._unsmooth(a, b, between), strict=True):
                self.film.smooth[k - 1] = value
        for part in _parts(flows, self.batch.pairs):
            firsts = [k - step for k in part]
            for k, value in zip(firsts, self._strong(firsts, part, frame), strict=True):
                self.film.strong[k] = value
        wanted = {k - 1 for k in self._middle} if nets.amt is not None else set[int]()
        wanted |= self._first if nets.raft is not None else set()
        last = here.stop - max(step, 2)
        self._held = {k: frame(k).clone() for k in range(last, here.stop) if k in wanted and k >= 0}

    def _strong(
        self, firsts: list[int], seconds: list[int], frame: Callable[[int], Tensor]
    ) -> list[float]:
        """Strong flow of pairs, in what they are padded with too, as upstream has it."""
        a = prep.padded(_joined([frame(k) for k in firsts]), raft.MULTIPLE)
        lacking = [k for k in dict.fromkeys((*firsts, *seconds)) if k not in self._features]
        for part in _parts(lacking, self.batch.pairs):
            shown = prep.padded(_joined([frame(k) for k in part]), raft.MULTIPLE)
            self._features.update(zip(part, self._nets.raft.features(shown).split(1), strict=True))
        ends = [_joined([self._features[k] for k in part]) for part in (firsts, seconds)]
        self._features = {k: v for k, v in self._features.items() if k > firsts[-1]}
        flows = self._nets.raft.flow(a, *ends).cpu().numpy()
        return [rules.strong_flow(cv2.magnitude(u, v)) for u, v in flows]

    def _unsmooth(self, a: Tensor, b: Tensor, between: Sequence[Frames | None]) -> list[float]:
        """Mean absolute differences of frames to those that their neighbours let expect."""
        ends = (prep.padded(x, AMT_MULTIPLE) for x in (a, b))
        drawn = prep.unpadded(self._nets.amt(*ends), *a.shape[2:])
        # Cut, not rounded, to whole levels, as upstream does it; it is within [0, 1].
        levels = drawn.mul(prep.LEVELS).to(torch.uint8).cpu().numpy()
        return [
            cv2.norm(image, cv2.merge(list(planes)), cv2.NORM_L1) / float(image.size)
            for image, planes in zip(between, levels, strict=True)
            if image is not None
        ]

    def _together(self, x: Tensor, images: Frames) -> None:
        """What networks see that look at several frames of a clip, or at its first one."""
        film, nets, start = self.film, self._nets, self.film.frames
        for at, image in enumerate(images):
            now, here = start + at, x[at][None]
            if nets.dinov2 is not None and now in self._openings:
                film.opening[now] = _array(nets.dinov2(prep.dinov2_input(here)))[0]
            if now in self._of_texts:
                self._shown[now] = prep.viclip_input(here)[0]
            if now in self._of_acts:
                self._acted[now] = prep.umt_input(image).to(self._device)
            for group in _ready(self._texts, now, self._shown):
                frames = torch.stack([self._shown[k] for k in group.frames])
                film.seen[group.start] = _array(nets.viclip(frames[None]))[0]
            for group in _ready(self._acts, now, self._acted):
                frames = torch.stack([self._acted[k] for k in group.frames])
                film.acts[group.start] = _array(torch.sigmoid(nets.umt(frames[None])))[0]


def _joined(batches: list[Tensor]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def _parts(numbers: list[int], count: int) -> Iterator[list[int]]:
    return (numbers[start : start + count] for start in range(0, len(numbers), count))


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
