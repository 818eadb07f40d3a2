"""MUSIQ: the quality of an image, read from patches of it at three sizes.

Names of weights are the published ones, trained on SPAQ; the score is 0 to 100. Dims: B images,
L patches, E width, Y X rows and columns of pixels.

Source: MUSIQ (arXiv:2108.05997), as VBench's imaging_quality uses it. Deviation: patches that only
fill a sequence up are left out instead of masked, which changes no score.
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

PATCH, GRID = 32, 10
LONGER_SIDES = (224, 384)
"""Besides the image's own size."""
STEM, GROUPS = 64, 32
WIDTH, HIDDEN, HEADS, LAYERS = 384, 1152, 6, 14
EPS, STEM_EPS, BLOCK_EPS, WEIGHT_EPS = 1e-6, 1e-6, 1e-4, 1e-5


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around an image so that it is divided by the stride, rounding up."""
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        gap = (math.ceil(size / stride) - 1) * stride + kernel - size
        sides += [gap // 2, gap - gap // 2]
    return nnf.pad(x, sides)


class _Conv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and spread 1."""

    def forward(self, input: Tensor) -> Tensor:
        x = _same(input, self.kernel_size[0], self.stride[0])
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = (self.weight - mean).std((1, 2, 3), keepdim=True)
        return nnf.conv2d(x, (self.weight - mean) / (spread + WEIGHT_EPS), None, self.stride)


def _conv(into: int, out: int, kernel: int, stride: int = 1) -> _Conv:
    return _Conv(into, out, kernel, stride, bias=False)


class _Bottleneck(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(into, into, 1), _conv(into, into, 3)
        self.conv3, self.conv_proj = _conv(into, out, 1), _conv(into, out, 1)
        self.gn1, self.gn2 = (nn.GroupNorm(GROUPS, into, BLOCK_EPS) for _ in range(2))
        self.gn3, self.gn_proj = (nn.GroupNorm(GROUPS, out, BLOCK_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = nnf.relu(self.gn1(self.conv1(x)))
        out = nnf.relu(self.gn2(self.conv2(out)))
        return nnf.relu(self.gn3(self.conv3(out)) + self.gn_proj(self.conv_proj(x)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BLE: Tensor) -> Tensor:
        q, k, v = (
            part(x_BLE).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return self.out(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nnf.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, EPS), nn.LayerNorm(WIDTH, EPS)
        self.attention, self.mlp = _Attention(), _Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Embedding(nn.Module):
    """Holds one table of learnt vectors under the name that it is published with."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.posembed_input = _Embedding("position_emb", 1, GRID * GRID, WIDTH)
        self.scaleembed_input = _Embedding("scale_emb", len(LONGER_SIDES) + 1, WIDTH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.encoder_norm = nn.LayerNorm(WIDTH, EPS)
        self.transformer = nn.ModuleDict({f"encoderblock_{k}": _Block() for k in range(LAYERS)})

    def forward(self, x_BLE: Tensor, places_L: Tensor, scales_L: Tensor) -> Tensor:
        places = self.posembed_input.get_parameter("position_emb")[0, places_L]
        scales = self.scaleembed_input.get_parameter("scale_emb")[scales_L]
        x = torch.cat([self.cls.expand(len(x_BLE), -1, -1), x_BLE + places + scales], 1)
        for block in self.transformer.values():
            x = block(x)
        return self.encoder_norm(x)[:, 0]


class Musiq(nn.Module):
    """Scores (B,), 0 to 100, of images (B, 3, Y, X) in [0, 1], all of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_root = _conv(3, STEM, 7, 2)
        self.gn_root = nn.GroupNorm(GROUPS, STEM, STEM_EPS)
        self.block1 = _Bottleneck(STEM, 4 * STEM)
        self.embedding = nn.Linear(4 * STEM * (PATCH // 4) ** 2, WIDTH)
        self.transformer_encoder = _Encoder()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, images_B3YX: Tensor) -> Tensor:
        """See the class."""
        images = 2 * images_B3YX - 1
        rows, columns = images.shape[-2:]
        sizes = [
            (round(rows * side / max(rows, columns)), round(columns * side / max(rows, columns)))
            for side in LONGER_SIDES
        ]
        tokens, places, scales = list[Tensor](), list[Tensor](), list[Tensor]()
        for scale, size in enumerate([*sizes, None]):
            shown = images
            if size is not None:
                shown = nnf.interpolate(images, size, mode="bicubic", align_corners=False)
            patches, where = _patches(shown)
            limit = math.ceil(LONGER_SIDES[scale] / PATCH) ** 2 if size is not None else None
            tokens.append(self._tokens(patches[:, :limit]))
            places.append(where[:limit])
            scales.append(torch.full_like(where[:limit], scale))
        x = self.transformer_encoder(torch.cat(tokens, 1), torch.cat(places), torch.cat(scales))
        return self.head(x)[:, 0]

    def _tokens(self, patches_BL3PP: Tensor) -> Tensor:
        batch = len(patches_BL3PP)
        x = nnf.relu(self.gn_root(self.conv_root(patches_BL3PP.flatten(0, 1))))
        x = self.block1(nnf.max_pool2d(_same(x, 3, 2), 3, 2))
        # The weights were trained with channels last.
        return self.embedding(x.permute(0, 2, 3, 1).flatten(1)).unflatten(0, (batch, -1))


def _patches(images_B3YX: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (B, L, 3, P, P), row by row, and where each is in the grid of learnt places (L,)."""
    padded = _same(images_B3YX, PATCH, PATCH)
    tiles = padded.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    rows, columns = tiles.shape[2:4]

    def hashed(count: int) -> Tensor:
        grid = torch.arange(float(GRID))[None, None]
        return nnf.interpolate(grid, count, mode="nearest")[0, 0].long()

    where = hashed(rows)[:, None] * GRID + hashed(columns)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2), where.flatten().to(images_B3YX.device)
