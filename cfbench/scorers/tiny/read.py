"""From the reader's maps to what a frame shows, and from the world's truth to those maps.

N frames, K detections of a frame, Y X rows and columns of the grid.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cfbench.scorers.tiny.nets import COLUMNS, HEIGHT, ROWS, WIDTH, Reader, ReaderOutput
from cfmodel.tinyworld.render import Truth
from cfmodel.tinyworld.scene import LANDMARKS, SHAPES, SUBJECTS
from cfmodel.tinyworld.tracks import Tracks

DETECTIONS = 4
MIN_SCORE = 0.3
MAX_OVERLAP = 0.6
MIN_VISIBLE, MIN_COVERAGE = 0.1, 0.0015
MIN_LANDMARK = 0.3
# Attributes are learnt where the centre's bump is at least this high.
OWNED = 0.35


@dataclass
class Readings:
    """What N frames show. Detections go from tall to low; ``score`` 0 is none.

    The main subject is the tallest in view: others are smaller and behind it, yet may be wider.

    ``shape``, ``color`` and ``marking`` (N, K) index the world's lists; ``box`` (N, K, 4) is left,
    top, right, bottom in [0, 1]; ``share`` (N, K) how much of the subject is in view; ``ground``
    and ``sky`` (N,) are indices, ``landmark`` (N, 6) probabilities.
    """

    score: Tensor
    shape: Tensor
    color: Tensor
    marking: Tensor
    box: Tensor
    share: Tensor
    ground: Tensor
    sky: Tensor
    landmark: Tensor

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: slice | Tensor) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))


def join(parts: list[Readings]) -> Readings:
    """Readings of successive blocks of frames."""
    return Readings(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Readings)))


def _centres(device: torch.device) -> tuple[Tensor, Tensor]:
    x = (torch.arange(COLUMNS, device=device) + 0.5) / COLUMNS
    y = (torch.arange(ROWS, device=device) + 0.5) / ROWS
    return x.expand(ROWS, -1), y[:, None].expand(-1, COLUMNS)


def decode(output: ReaderOutput) -> Readings:
    """The clearest detections of frames, duplicates left out."""
    heat = output.heat.sigmoid().squeeze(1)
    peak = heat * (nnf.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
    score, cell = peak.flatten(1).topk(DETECTIONS)

    def at(maps_NCYX: Tensor) -> Tensor:
        index = cell[:, None].expand(-1, maps_NCYX.shape[1], -1)
        return maps_NCYX.flatten(2).gather(2, index).transpose(1, 2)

    x, y = _centres(heat.device)
    centre = torch.stack([x, y, x, y])[None].expand(len(heat), -1, -1, -1)
    box = (at(output.box) + at(centre)).clamp(0, 1)
    score = score * (score >= MIN_SCORE)
    score = score * ~_repeated(box, score)
    order = ((box[..., 3] - box[..., 1]) * (score > 0)).argsort(1, descending=True)
    pick = order[..., None].expand(-1, -1, 4)
    return Readings(
        score=score.gather(1, order),
        shape=at(output.shape).argmax(2).gather(1, order),
        color=at(output.color).argmax(2).gather(1, order),
        marking=at(output.marking).argmax(2).gather(1, order),
        box=box.gather(1, pick),
        share=at(output.share).sigmoid().squeeze(2).gather(1, order),
        ground=output.ground.argmax(1),
        sky=output.sky.argmax(1),
        landmark=output.landmark.sigmoid(),
    )


def _area(box: Tensor) -> Tensor:
    return (box[..., 2] - box[..., 0]).clamp(min=0) * (box[..., 3] - box[..., 1]).clamp(min=0)


def _repeated(box_NK4: Tensor, score_NK: Tensor) -> Tensor:
    """Whether a clearer detection covers nearly the same box; scores fall along K."""
    a, b = box_NK4[:, :, None], box_NK4[:, None]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    overlap = shared / (_area(a) + _area(b) - shared).clamp(min=1e-6)
    earlier = torch.ones_like(overlap[0], dtype=torch.bool).tril(-1)
    return ((overlap > MAX_OVERLAP) & earlier & (score_NK[:, None] > 0)).any(2)


@torch.inference_mode()
def read_frames(net: Reader, frames_NYX3: Tensor) -> Readings:
    """What uint8 frames show.

    Raises:
        ValueError: frames of another size or type.
    """
    return decode(net(pixels(frames_NYX3)))


def pixels(frames_NYX3: Tensor) -> Tensor:
    """Frames as floats (N, 3, Y, X) in [0, 1].

    Raises:
        ValueError: frames of another size or type.
    """
    if frames_NYX3.dtype != torch.uint8 or frames_NYX3.shape[1:] != (HEIGHT, WIDTH, 3):
        raise ValueError(
            f"frames are {frames_NYX3.dtype} {tuple(frames_NYX3.shape)}; the tiny tier reads uint8 "
            f"(n, {HEIGHT}, {WIDTH}, 3)"
        )
    return frames_NYX3.permute(0, 3, 1, 2).float() / 255


def targets(tracks: Tracks, truth: Truth) -> dict[str, Tensor]:
    """What the reader should say of rendered frames.

    ``heat`` (N, Y, X); ``ignored`` where a subject is too little in view to count either way;
    ``owned`` weights and ``box``, ``shape``, ``color``, ``marking``, ``share`` of each cell's
    subject; ``landmark`` (N, 6) is 1, 0 or, in doubt, -1; ``main_*`` describe subject 0.
    """
    there = tracks.kind[:, :SUBJECTS] >= 0
    seen, box = truth.visible[:, :SUBJECTS], truth.box[:, :SUBJECTS]
    covers = truth.coverage[:, :SUBJECTS]
    counts = there & (seen >= MIN_VISIBLE) & (covers >= MIN_COVERAGE)
    doubt = there & ~counts & (covers > 0)
    bump = _bumps(box) * counts[..., None, None]
    heat, owner = (bump * (1 + 1e-3 * covers[..., None, None])).max(1)
    heat = heat.clamp(max=1)

    def of(value_NK: Tensor) -> Tensor:
        return value_NK.gather(1, owner.flatten(1)).view_as(owner)

    return {
        "heat": heat,
        "ignored": (_boxed(box) & doubt[..., None, None]).any(1) & (heat < 0.5),
        "owned": torch.where(heat >= OWNED, heat, 0.0),
        "box": torch.stack([of(box[..., k]) for k in range(4)], 1),
        "shape": of(tracks.kind[:, :SUBJECTS].clamp(0)),
        "color": of(tracks.color[:, :SUBJECTS]),
        "marking": of(tracks.marking[:, :SUBJECTS]),
        "share": of(seen),
        "ground": tracks.look[:, 0].long(),
        "sky": tracks.look[:, 1].long(),
        "landmark": _landmarks(tracks, truth),
        "main_visible": seen[:, 0],
        "main_shape": tracks.kind[:, 0],
        "main_color": tracks.color[:, 0],
        "main_marking": tracks.marking[:, 0],
        "main_box": box[:, 0],
    }


def _bumps(box_NK4: Tensor) -> Tensor:
    """A bump (N, K, Y, X) over each box, exactly 1 at the cell of its centre."""
    x, y = _centres(box_NK4.device)
    middle = (box_NK4[..., :2] + box_NK4[..., 2:]) / 2
    size = torch.tensor([COLUMNS, ROWS], device=box_NK4.device)
    cell = (middle * size).floor().clamp(min=0)
    cell = torch.minimum(cell, size - 1) + 0.5
    sigma = ((box_NK4[..., 2:] - box_NK4[..., :2]) * size / 6).clamp(min=0.55)
    dx = (x * COLUMNS - cell[..., 0, None, None]) / sigma[..., 0, None, None]
    dy = (y * ROWS - cell[..., 1, None, None]) / sigma[..., 1, None, None]
    return torch.exp(-0.5 * (dx**2 + dy**2))


def _boxed(box_NK4: Tensor) -> Tensor:
    x, y = _centres(box_NK4.device)
    left, top, right, bottom = (box_NK4[..., k, None, None] for k in range(4))
    rim_x, rim_y = 1 / COLUMNS, 1 / ROWS
    wide = (x > left - rim_x) & (x < right + rim_x)
    return wide & (y > top - rim_y) & (y < bottom + rim_y)


def _landmarks(tracks: Tracks, truth: Truth) -> Tensor:
    """Kinds in view (N, 6): 1, 0, or -1 where too little of one is seen."""
    kind = tracks.kind[:, SUBJECTS:] - len(SHAPES)
    clear = truth.visible[:, SUBJECTS:] >= MIN_LANDMARK
    some = truth.coverage[:, SUBJECTS:] > 0
    value = torch.where(clear, 1.0, torch.where(some, -1.0, 0.0))
    is_kind = nnf.one_hot(kind.clamp(0), len(LANDMARKS)).to(value) * (kind >= 0)[..., None]
    return (is_kind * value[..., None]).sum(1).clamp(-1, 1)
