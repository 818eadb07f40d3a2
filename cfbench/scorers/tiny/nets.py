"""Networks of the tiny tier, trained on the tiny world's truth: together under 2.2 M parameters.

Dims: N frames or windows, T frames of a window, C channels, Y X rows and columns of an image or of
a grid, K subjects of a frame, S bytes of a text, E width of an embedding.

All take frames in [0, 1], 80 x 128 pixels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.tinyworld.scene import COLORS, GROUNDS, LANDMARKS, MARKINGS, MOTIONS, SHAPES, SKIES

HEIGHT, WIDTH = 80, 128
STRIDE = 8
ROWS, COLUMNS = HEIGHT // STRIDE, WIDTH // STRIDE
CAMERAS: tuple[str, ...] = ("still", "pan", "orbit", "dolly")
TEXT_BYTES = 256
DUAL_WIDTH, FEATURE_WIDTH = 64, 128


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two convolutions and their input."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.a = _conv(width, width, dilation=dilation)
        self.b = _conv(width, width)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Same shape as the input."""
        return torch.relu(x_NCYX + self.b(torch.relu(self.a(x_NCYX))))


class Context(nn.Module):
    """Adds to every cell what the mean and the maximum of the grid say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(2 * width, width)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Same shape as the input."""
        return torch.relu(x_NCYX + self.line(_pool(x_NCYX))[:, :, None, None])


def _pool(x_NCYX: Tensor) -> Tensor:
    return torch.cat([x_NCYX.mean((2, 3)), x_NCYX.amax((2, 3))], 1)


class ReaderOutput(NamedTuple):
    """Raw outputs: six maps (N, C, Y, X), and logits (N, C) of the scene.

    ``box`` is left, top, right, bottom minus the cell's centre, in shares of the picture.
    """

    heat: Tensor
    box: Tensor
    shape: Tensor
    color: Tensor
    marking: Tensor
    share: Tensor
    ground: Tensor
    sky: Tensor
    landmark: Tensor


class Reader(nn.Module):
    """What a frame shows: subjects as centre points with attributes, ground, sky, landmarks.

    Source: dense centre heads as in "Objects as Points" (arXiv:1904.07850); ours in every line.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, wide = 32, 64, 96
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(12, fine),
            nn.ReLU(),
            Residual(fine),
            _conv(fine, middle, stride=2),
            nn.ReLU(),
            Residual(middle),
            Residual(middle),
            _conv(middle, wide, stride=2),
            nn.ReLU(),
            Residual(wide),
            Context(wide),
            Residual(wide, dilation=2),
        )
        self.neck = nn.Sequential(_conv(wide, wide), nn.ReLU())
        self.sizes = (1, 4, len(SHAPES), len(COLORS), len(MARKINGS), 1)
        self.dense = nn.Conv2d(wide, sum(self.sizes), 1)
        self.landmark = nn.Conv2d(wide, len(LANDMARKS), 1)
        self.scene = nn.Linear(2 * wide, len(GROUNDS) + len(SKIES))
        nn.init.constant_(self.dense.bias[:1], -3.0)  # pyright: ignore[reportOptionalSubscript]

    def forward(self, x_NCYX: Tensor) -> ReaderOutput:
        """Raw outputs of frames."""
        trunk = self.trunk(x_NCYX - 0.5)
        maps = self.dense(self.neck(trunk)).float().split(self.sizes, 1)
        scene = self.scene(_pool(trunk)).float()
        landmark = self.landmark(trunk).float().flatten(2)
        # A soft maximum: one clear cell is enough, and all cells learn.
        landmark = torch.logsumexp(2 * landmark, 2) / 2 - math.log(ROWS * COLUMNS) / 2
        heat, box, shape, color, marking, share = maps
        ground, sky = scene.split((len(GROUNDS), len(SKIES)), 1)
        return ReaderOutput(heat, box, shape, color, marking, share, ground, sky, landmark)


class _Residual3(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class MotionOutput(NamedTuple):
    """Logits (N, C): subject motion, camera, and whether a pan goes left or right."""

    motion: Tensor
    camera: Tensor
    direction: Tensor


class Motion(nn.Module):
    """How subject and camera move in a window of 12 to 16 frames at 8 a second."""

    def __init__(self) -> None:
        super().__init__()
        fine, wide, points, line = 40, 64, 4, 128
        self.frame = nn.Sequential(
            nn.PixelUnshuffle(4), _conv(48, fine), nn.ReLU(), _conv(fine, fine), nn.ReLU()
        )
        self.fine = _Residual3(fine)
        self.down = nn.Sequential(_conv(fine, wide, stride=2), nn.ReLU())
        self.wide = nn.Sequential(_Residual3(wide), _Residual3(wide))
        self.points = nn.Conv2d(wide, points, 1)
        self.join = nn.Linear(points * (wide + 4) + wide, line)
        self.steps = nn.ModuleList(
            nn.Conv1d(line, line, 3, padding=d, dilation=d, groups=4) for d in (1, 2, 4)
        )
        self.head = nn.Linear(2 * line, len(MOTIONS) + len(CAMERAS) + 2)

    def forward(self, x_NTCYX: Tensor) -> MotionOutput:
        """Logits of windows."""
        n, t = x_NTCYX.shape[:2]
        x = self.frame(x_NTCYX.flatten(0, 1) - 0.5)
        x = self.fine(x.unflatten(0, (n, t)).transpose(1, 2)).transpose(1, 2)
        x = self.down(x.flatten(0, 1))
        x = self.wide(x.unflatten(0, (n, t)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        line = torch.relu(self.join(self._look(x))).unflatten(0, (n, t)).transpose(1, 2)
        for conv in self.steps:
            line = torch.relu(line + conv(line))
        out = self.head(torch.cat([line.mean(2), line.amax(2)], 1)).float()
        return MotionOutput(*out.split((len(MOTIONS), len(CAMERAS), 2), 1))

    def _look(self, x_NCYX: Tensor) -> Tensor:
        """What and where a few attended points are, and the mean: (N, points * (C + 4) + C)."""
        rows, columns = x_NCYX.shape[2:]
        y = torch.linspace(-1, 1, rows, device=x_NCYX.device)
        x = torch.linspace(-1, 1, columns, device=x_NCYX.device)
        where = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)]).flatten(1)
        where = torch.cat([where, where**2]).to(x_NCYX.dtype).expand(len(x_NCYX), -1, -1)
        share = self.points(x_NCYX).flatten(2).softmax(2)
        told = torch.cat([x_NCYX.flatten(2), where.to(share.dtype)], 1)
        seen = torch.einsum("npq,ncq->npc", share, told.to(share.dtype)).flatten(1)
        return torch.cat([seen, x_NCYX.mean((2, 3)).to(seen.dtype)], 1)


def _image_trunk(widths: tuple[int, int, int]) -> nn.Sequential:
    a, b, c = widths
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        _conv(48, a),
        nn.ReLU(),
        Residual(a),
        _conv(a, b, stride=2),
        nn.ReLU(),
        Residual(b),
        _conv(b, c, stride=2),
        nn.ReLU(),
    )


class TextEncoder(nn.Module):
    """Bytes of a caption to a vector, by dilated convolutions and attention pooling."""

    def __init__(self, width: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 48)
        self.first = nn.Conv1d(48, width, 5, padding=2)
        self.steps = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4, 8)
        )
        self.heads = nn.Conv1d(width, heads, 1)
        self.out = nn.Linear(heads * width, DUAL_WIDTH)

    def forward(self, text_NS: Tensor) -> Tensor:
        """Vectors (N, E) of zero-padded bytes, not normalised."""
        gone = (text_NS == 0)[:, None]
        x = torch.relu(self.first(self.embed(text_NS.int()).transpose(1, 2)))
        for conv in self.steps:
            x = torch.relu(x + conv(x.masked_fill(gone, 0)))
        share = self.heads(x).float().masked_fill(gone, -1e4).softmax(2)
        return self.out(torch.einsum("nhs,ncs->nhc", share, x.float()).flatten(1)).float()


class Dual(nn.Module):
    """Frames and captions in one space, by contrast.

    Source: the contrastive loss of CLIP (arXiv:2103.00020).
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _image_trunk((48, 80, 96))
        self.out = nn.Linear(2 * 96, DUAL_WIDTH)
        self.text = TextEncoder()
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def images(self, x_NCYX: Tensor) -> Tensor:
        """Unit vectors (N, E) of frames."""
        return nnf.normalize(self.out(_pool(self.trunk(x_NCYX - 0.5))).float(), dim=1)

    def texts(self, text_NS: Tensor) -> Tensor:
        """Unit vectors (N, E) of texts."""
        return nnf.normalize(self.text(text_NS), dim=1)

    def forward(self, x_NCYX: Tensor, text_NS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of frames and of texts, and the logarithm of the contrast's scale."""
        return self.images(x_NCYX), self.texts(text_NS), self.scale.float()


class Imaging(nn.Module):
    """How undamaged a frame looks; a logit for each frame (N,)."""

    def __init__(self) -> None:
        super().__init__()
        fine, wide = 32, 48
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(12, fine),
            nn.ReLU(),
            _conv(fine, fine),
            nn.ReLU(),
            _conv(fine, wide, stride=2),
            nn.ReLU(),
            Residual(wide),
        )
        self.out = nn.Linear(2 * wide, 1)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Logits; their sigmoid is the score."""
        return self.out(_pool(self.trunk(x_NCYX - 0.5))).float().squeeze(1)


class Features(nn.Module):
    """Vectors that stay near while a place and its subject stay what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _image_trunk((40, 72, 96))
        self.out = nn.Linear(2 * 96, FEATURE_WIDTH)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Unit vectors (N, E) of frames."""
        return nnf.normalize(self.out(_pool(self.trunk(x_NCYX - 0.5))).float(), dim=1)


NETS: dict[str, type[nn.Module]] = {
    "reader": Reader,
    "motion": Motion,
    "dual": Dual,
    "imaging": Imaging,
    "features": Features,
}


def text_bytes(texts: list[str]) -> Tensor:
    """Texts as zero-padded bytes (N, ``TEXT_BYTES``), uint8; longer ones are cut."""
    rows = [list(text.encode()[:TEXT_BYTES]) for text in texts]
    return torch.tensor([row + [0] * (TEXT_BYTES - len(row)) for row in rows], dtype=torch.uint8)
