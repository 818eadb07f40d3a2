"""One decode of a film, and everything of it that the dimensions need.

R frames, E width of a feature, C classes of actions. Frames pass in blocks; what is kept of them
are features and numbers by frame, so that memory does not grow with resolution and clips are ranges
of frame numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from cfbench.scorers import rules
from cfbench.scorers.rules import Floats
from cfbench.scorers.vbench import prep, process
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
    dreamsim: Any = None
    style: Any = None
    viclip: Any = None
    umt: Any = None


@dataclass
class Film:
    """Measures of a film, each empty where there is no network for it.

    By frame: ``dino``, ``clip`` and ``style`` are features (E,); ``aesthetic`` and ``imaging`` are
    in [0, 1]; ``flicker`` (to the frame before) and ``smooth`` (to the frame that its neighbours
    let expect) are mean absolute differences in levels of 255; ``strong`` is flow in pixels to the
    frame one step later. By first frame of a clip: ``opening`` and ``place`` (E,) of that frame, by
    DINOv2 and DreamSim, ``seen`` (E,) and ``acts`` (C,), probabilities, of the clip.
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
    place: dict[int, Floats] = field(default_factory=dict)
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
    held = list[Frames]()
    for block in blocks:
        left = block
        while len(left):
            here = count - sum(map(len, held))
            held.append(left[:here])
            left = left[here:]
            if len(held[-1]) == here:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held = []
    if held:
        yield np.concatenate(held)


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
    """Frames (n, Y, X, 3) and what networks are given of them; None where nobody asks.

    On a CPU there are no ``pixels``: they are made frame by frame where they are asked for.
    """

    images: Frames
    pixels: Tensor | None = None
    style: Tensor | None = None
    dino: Tensor | None = None
    clip: Tensor | None = None
    musiq: Tensor | None = None


class _Inputs:
    """Makes the inputs of block after block; those of one last while the next ones are made."""

    def __init__(self, nets: Nets, device: torch.device) -> None:
        self._nets, self._device = nets, device
        asked = {
            "dino": (prep.dino_input, (nets.dino,)),
            "clip": (prep.clip_input, (nets.clip_b, nets.clip_l)),
            "musiq": (prep.musiq_input, (nets.musiq,)),
        }
        self._makers = {
            name: make
            for name, (make, given) in asked.items()
            if any(net is not None for net in given)
        }
        self._frame = np.empty((0, 0, 3), np.float32)
        self._rooms: list[dict[str, Tensor]] = [{}, {}]

    @torch.inference_mode()
    def __call__(self, images: Frames) -> _Block:
        style = None if self._nets.style is None else prep.style_input(images).to(self._device)
        if self._device.type == "cpu":
            return _Block(images, None, style, **self._one_by_one(images))
        if all(net is None for net in self._nets):
            return _Block(images)
        x = prep.pixels(images, self._device)
        return _Block(images, x, style, **{name: make(x) for name, make in self._makers.items()})

    def _one_by_one(self, images: Frames) -> dict[str, Tensor]:
        """Inputs by name: a frame stays in the processor's cache until all of its own are made."""
        if self._frame.shape != images.shape[1:]:
            self._frame, self._rooms = np.empty(images.shape[1:], np.float32), [{}, {}]
        self._rooms.reverse()
        room = self._rooms[0]
        x = torch.from_numpy(self._frame)[None].permute(0, 3, 1, 2)
        for k, image in enumerate(images if self._makers else ()):
            np.copyto(self._frame, image)
            for name, make in self._makers.items():
                if name not in room:
                    room[name] = prep.room(BATCHES["cpu"].frames, *make(x).shape[2:])
                make(x, room[name][k : k + 1])
        return {name: rows[: len(images)] for name, rows in room.items()}


class _Watcher:
    """A film being watched, and the frames of it that later ones are compared with."""

    def __init__(self, step: int, clips: Sequence[range], nets: Nets, device: torch.device) -> None:
        self.film, self.batch = Film(step=step), BATCHES[device.type]
        self._nets, self._device = nets, device
        self._heap = process.Heap()
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
        self._held: dict[int, Frames] = {}
        self._floats: dict[int, Tensor] = {}
        self._units: dict[int, Tensor] = {}
        self._features: dict[int, Tensor] = {}

    def see(self, block: _Block) -> None:
        """The next frames."""
        film, images = self.film, block.images
        film.rows, film.columns = images.shape[1:3]
        self._flicker(images)
        self._still(block)
        if min(film.rows, film.columns) >= SMALLEST_SIDE:
            self._moving(block)
        self._together(block)
        self._floats = {k: v for k, v in self._floats.items() if k in self._held}
        self._late = images[-1]
        film.frames += len(images)

    def _pixels(self, block: _Block, k: int) -> Tensor:
        """Of a frame (1, 3, Y, X) of this block, or of one before it that is held."""
        at = k - self.film.frames
        if at >= 0 and block.pixels is not None:
            return block.pixels[at][None]
        if k not in self._floats:
            image = block.images[at] if at >= 0 else self._held[k]
            self._floats[k] = prep.pixels(image[None], self._device)
        return self._floats[k]

    def _unit(self, block: _Block, k: int) -> Tensor:
        """As ``_pixels``, in [0, 1]: an end of two pairs, most of the time."""
        if k not in self._units:
            self._units[k] = prep.unit(self._pixels(block, k))
        return self._units[k]

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

    def _moving(self, block: _Block) -> None:
        """What pairs of frames show that end among these."""
        start, step = self.film.frames, self.film.step
        here = range(start, start + len(block.images))
        wanted = set[int]()
        if self._nets.amt is not None:
            self._draw_again([k for k in here if k - 1 in self._middle], block)
            wanted |= {k - 1 for k in self._middle}
        if self._nets.raft is not None:
            self._fly([k for k in here if k - step in self._first], block)
            wanted |= self._first
        last = range(max(0, here.stop - max(step, 2)), here.stop)
        self._held = {
            k: block.images[k - start] if k >= start else self._held[k] for k in last if k in wanted
        }

    def _draw_again(self, numbers: list[int], block: _Block) -> None:
        """How far the frame before each of these is from what its neighbours let expect."""
        images, start = block.images, self.film.frames
        for part in _parts(numbers, self.batch.pairs):
            between = [images[k - 1 - start] if k > start else self._late for k in part]
            a, b = (_joined([self._unit(block, k - late) for k in part]) for late in (2, 0))
            self._units = {k: v for k, v in self._units.items() if k >= part[-1] - 1}
            self._heap.trim()
            for k, value in zip(part, self._unsmooth(a, b, between), strict=True):
                self.film.smooth[k - 1] = value

    def _fly(self, numbers: list[int], block: _Block) -> None:
        """Strong flow to these frames, in what they are padded with too, as upstream has it."""

        def shown(part: list[int]) -> Tensor:
            return prep.padded(_joined([self._pixels(block, k) for k in part]), raft.MULTIPLE)

        net, known = self._nets.raft, self._features
        for part in _parts(numbers, self.batch.pairs):
            firsts = [k - self.film.step for k in part]
            lacking = [k for k in dict.fromkeys((*firsts, *part)) if k not in known]
            self._heap.trim()
            for some in _parts(lacking, self.batch.pairs):
                known.update(zip(some, net.features(shown(some)).split(1), strict=True))
            ends = [_joined([known[k] for k in side]) for side in (firsts, part)]
            for k in [k for k in known if k <= firsts[-1]]:
                del known[k]
            self._heap.trim()
            flows = net.flow(shown(firsts), *ends).cpu().numpy()
            strong = [rules.strong_flow(cv2.magnitude(u, v)) for u, v in flows]
            self.film.strong.update(zip(firsts, strong, strict=True))

    def _unsmooth(self, a: Tensor, b: Tensor, between: Sequence[Frames | None]) -> list[float]:
        """Mean absolute differences of frames to those that their neighbours let expect."""
        ends = (prep.padded(x, AMT_MULTIPLE) for x in (a, b))
        drawn = prep.unpadded(self._nets.amt(*ends), *a.shape[2:])
        return [
            cv2.norm(image, cv2.merge(list(planes)), cv2.NORM_L1) / float(image.size)
            for image, planes in zip(between, prep.cut_to_levels(drawn), strict=True)
            if image is not None
        ]

    def _together(self, block: _Block) -> None:
        """What networks see that look at several frames of a clip, or at its first one."""
        film, nets = self.film, self._nets
        for now, image in enumerate(block.images, film.frames):
            if now in self._openings:
                self._open(block, now)
            if now in self._of_texts:
                self._shown[now] = prep.viclip_input(self._pixels(block, now))[0]
            if now in self._of_acts:
                self._acted[now] = prep.umt_input(image).to(self._device)
            for group in _ready(self._texts, now, self._shown):
                frames = torch.stack([self._shown[k] for k in group.frames])
                film.seen[group.start] = _array(nets.viclip(frames[None]))[0]
            for group in _ready(self._acts, now, self._acted):
                frames = torch.stack([self._acted[k] for k in group.frames])
                film.acts[group.start] = _array(torch.sigmoid(nets.umt(frames[None])))[0]

    def _open(self, block: _Block, now: int) -> None:
        """What the first frame of a clip is, to those that compare clips with each other."""
        film, nets = self.film, self._nets
        if nets.dinov2 is not None:
            inputs = prep.dinov2_input(self._pixels(block, now))
            film.opening[now] = _array(nets.dinov2(inputs))[0]
        if nets.dreamsim is not None:
            inputs = prep.dreamsim_input(self._pixels(block, now))
            film.place[now] = _array(nets.dreamsim(inputs))[0]


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
