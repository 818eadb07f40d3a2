"""Vision transformers that give one feature an image: DINO's and the image half of CLIP.

All are built from the shapes of their weights. Dims: B images, L tokens with the class token
first, E width, Y X rows and columns of pixels.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfbench.scorers.vbench.nets.block import (
    CLIP_BLOCK,
    Block,
    depth,
    filled,
    fitting,
    renamed,
    under,
)


class Kind(NamedTuple):
    """What differs between families.

    Args:
        eps: of the norms.
        quick: CLIP's approximation of GELU instead of GELU.
        first_norm: before the blocks.
        last_norm: after them.
    """

    eps: float
    quick: bool
    first_norm: bool
    last_norm: bool = True


DINO, CLIP = Kind(1e-6, False, False), Kind(1e-5, True, True)
OPEN_CLIP = CLIP._replace(quick=False)
BARE_DINO = DINO._replace(last_norm=False)
"""Whose feature is read before the last norm."""
GRID_SLACK = 0.1
"""DINO adds this to a grid's sizes before it scales positions, so that rounding cannot lose one."""


class VisionTransformer(nn.Module):
    """Class-token feature of images.

    Args:
        width: E.
        layers: blocks.
        patch: side of a patch in pixels.
        grid: patches along a side of the images that positions were learnt for.
        hidden: width of the MLPs.
        out: width of CLIP's projection; None is DINO, which has none.
        kind: of the network.

    Source: DINO (arXiv:2104.14294) and CLIP (arXiv:2103.00020), as their weights are published.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        patch: int,
        grid: int,
        hidden: int,
        out: int | None,
        kind: Kind,
    ) -> None:
        super().__init__()
        eps = kind.eps
        self.patch, self.grid = patch, grid
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.norm_in = nn.LayerNorm(width, eps=eps) if kind.first_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, hidden, eps, quick=kind.quick) for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=eps) if kind.last_norm else nn.Identity()
        self.project = nn.Identity() if out is None else nn.Linear(width, out, bias=False)

    def forward(self, pixels_B3YX: Tensor) -> Tensor:
        """Features (B, out or E) of normalised images whose sides the patch divides or exceeds."""
        patches = self.embed(pixels_B3YX)
        rows, columns = patches.shape[-2:]
        cls = self.cls.expand(len(patches), 1, -1)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], 1)
        x = self.norm_in(x + self._positions(rows, columns))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.project(self.norm_out(cast(Block, last).first(x)[:, 0]))

    def _positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        places = self.positions[1:].unflatten(0, (self.grid, self.grid)).permute(2, 0, 1)[None]
        scale = tuple((size + GRID_SLACK) / self.grid for size in (rows, columns))
        wide = nnf.interpolate(places, scale_factor=scale, mode="bicubic")
        if wide.shape[-2:] != (rows, columns):
            raise RuntimeError(f"positions {tuple(wide.shape[-2:])} for a grid {(rows, columns)}")
        return torch.cat([self.positions[:1], wide[0].flatten(1).T])


_DINO = (
    (r"patch_embed\.proj\.", "embed."),
    (r"cls_token", "cls"),
    (r"pos_embed", "positions"),
    (r"(blocks\.\d+\.)attn\.", r"\1"),
    (r"(blocks\.\d+\.)mlp\.", r"\1"),
    (r"norm\.", "norm_out."),
)
_CLIP = (
    (r"conv1\.", "embed."),
    (r"class_embedding", "cls"),
    (r"positional_embedding", "positions"),
    (r"ln_pre\.", "norm_in."),
    (r"ln_post\.", "norm_out."),
    *CLIP_BLOCK,
    (r"proj$", "project.weight"),
)


def dino(tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """DINO's network with its published weights.

    Raises:
        ValueError: they are of another network.
    """
    return _built(renamed(tensors, _DINO), DINO)


def bare_dino(tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """As ``dino``, but features are read before the last norm.

    Raises:
        ValueError: weights are of another network.
    """
    found = renamed(tensors, _DINO)
    for part in ("weight", "bias"):
        found.pop(f"norm_out.{part}", None)
    return _built(found, BARE_DINO)


def dino_named_clip(tensors: Mapping[str, Tensor], kind: Kind) -> VisionTransformer:
    """The image half of a CLIP whose weights bear DINO's names, as DreamSim has them.

    Raises:
        ValueError: weights are of another network.
    """
    named = {name.replace("pos_drop.", "norm_in."): value for name, value in tensors.items()}
    with fitting():
        project = named.pop("proj").float().T.contiguous()
    return _built({**renamed(named, _DINO), "project.weight": project}, kind)


def dinov2(tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """DINOv2's network (arXiv:2304.07193) with its published weights, without registers.

    Raises:
        ValueError: they are of another network.
    """
    found = renamed(tensors, _DINO)
    found.pop("mask_token", None)
    # Each shortcut's scale is part of the layer before it.
    for name in [name for name in found if name.endswith(".gamma")]:
        scale, at = found.pop(name), name.split(".ls")[0]
        layer = f"{at}.proj" if ".ls1." in name else f"{at}.fc2"
        for part in ("weight", "bias"):
            value = found.get(f"{layer}.{part}")
            if value is not None:
                found[f"{layer}.{part}"] = value * scale.view(-1, *[1] * (value.ndim - 1))
    return _built(found, DINO)


def clip(tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """The image half of CLIP with its published weights; those of the text half are left out.

    Raises:
        ValueError: they are of another network.
    """
    found = renamed(under(tensors, "visual."), _CLIP)
    if "project.weight" in found:
        found["project.weight"] = found["project.weight"].T.contiguous()
        found["embed.bias"] = torch.zeros(len(found["project.weight"].T))
        return _built(found, CLIP)
    raise ValueError("weights are no CLIP with a vision transformer")


def _built(found: dict[str, Tensor], kind: Kind) -> VisionTransformer:
    for name in ("cls", "positions"):
        if name in found:
            found[name] = found[name].reshape(-1, found[name].shape[-1]).squeeze(0)
    with fitting():
        patch, width = found["embed.weight"].shape[-1], found["embed.weight"].shape[0]
        grid = math.isqrt(len(found["positions"]) - 1)
        hidden, layers = len(found["blocks.0.fc1.weight"]), depth(found)
        out = len(found["project.weight"]) if "project.weight" in found else None
        return filled(
            lambda: VisionTransformer(
                width, layers, patch=patch, grid=grid, hidden=hidden, out=out, kind=kind
            ),
            found,
        )
