"""Transformers that look at several frames at once: ViCLIP's video half, and UMT's.

Both are built from the shapes of their weights. Dims: B films, F frames of a film, E width.
"""

import math
import re
from collections.abc import Mapping
from typing import cast

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

VICLIP_EPS, UMT_EPS = 1e-5, 1e-6
TABLE_FRAMES, TABLE_BASE = 8, 10_000
"""Frames that UMT's fixed positions were made for, and the base of their wavelengths."""


class ViClip(nn.Module):
    """One feature a film of F frames; every patch sees every other one.

    Args:
        width: E.
        layers: blocks.
        patch: side of a patch in pixels.
        grid: patches along a side.
        frames: F.
        hidden: width of the MLPs.
        out: width of the feature.

    Source: InternVid (arXiv:2307.06942), section 4, as its weights are published.
    """

    def __init__(
        self, width: int, layers: int, *, patch: int, grid: int, frames: int, hidden: int, out: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch, bias=False)
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.times = nn.Parameter(torch.zeros(frames, width))
        self.norm_in = nn.LayerNorm(width, eps=VICLIP_EPS)
        self.blocks = nn.ModuleList(
            Block(width, hidden, VICLIP_EPS, quick=True) for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=VICLIP_EPS)
        self.project = nn.Linear(width, out, bias=False)

    def forward(self, pixels_BF3YX: Tensor) -> Tensor:
        """Features (B, out) of normalised frames."""
        films, frames = pixels_BF3YX.shape[:2]
        patches = self.embed(pixels_BF3YX.flatten(0, 1)).flatten(2).transpose(1, 2)
        patches = patches.unflatten(0, (films, frames)) + self.positions[1:]
        # Places first, moments of a place side by side: the order decides how sums are rounded.
        patches = (patches + self.times[:, None]).transpose(1, 2).flatten(1, 2)
        cls = (self.cls + self.positions[0]).expand(films, 1, -1)
        x = self.norm_in(torch.cat([cls, patches], 1))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.project(self.norm_out(cast(Block, last).first(x)[:, 0]))


class Umt(nn.Module):
    """Logits of the classes of actions that F frames show.

    Args:
        width: E.
        layers: blocks.
        patch: side of a patch in pixels.
        tokens: patches of all frames.
        hidden: width of the MLPs.
        classes: how many.

    Source: Unmasked Teacher (arXiv:2303.16058), as its weights are published.
    """

    def __init__(
        self, width: int, layers: int, *, patch: int, tokens: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, hidden, UMT_EPS, quick=False) for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=UMT_EPS)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels_BF3YX: Tensor) -> Tensor:
        """Logits (B, classes) of normalised frames."""
        films, frames = pixels_BF3YX.shape[:2]
        patches = self.embed(pixels_BF3YX.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = patches.unflatten(0, (films, frames)).flatten(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm_out(x.mean(1)))


_VICLIP = (
    (r"conv1\.", "embed."),
    (r"class_embedding", "cls"),
    (r"positional_embedding", "positions"),
    (r"temporal_positional_embedding", "times"),
    (r"ln_pre\.", "norm_in."),
    (r"ln_post\.", "norm_out."),
    *CLIP_BLOCK,
    (r"proj$", "project.weight"),
)
_UMT = (
    (r"patch_embed\.proj\.", "embed."),
    (r"pos_embed", "positions"),
    (r"(blocks\.\d+\.)attn\.", r"\1"),
    (r"(blocks\.\d+\.)mlp\.", r"\1"),
    (r"fc_norm\.", "norm_out."),
)


def viclip(tensors: Mapping[str, Tensor]) -> ViClip:
    """ViCLIP's video half with its published weights; those of its text half are left out.

    Raises:
        ValueError: they are of another network.
    """
    found = renamed(under(tensors, "vision_encoder."), _VICLIP)
    with fitting():
        # A kernel of one moment.
        found["embed.weight"] = found["embed.weight"].squeeze(2)
        found["times"] = found["times"].squeeze(0)
        found["project.weight"] = found["project.weight"].T.contiguous()
        return filled(
            lambda: ViClip(
                len(found["cls"]),
                depth(found),
                patch=found["embed.weight"].shape[-1],
                grid=math.isqrt(len(found["positions"]) - 1),
                frames=len(found["times"]),
                hidden=len(found["blocks.0.fc1.weight"]),
                out=len(found["project.weight"]),
            ),
            found,
        )


def umt(tensors: Mapping[str, Tensor], *, frames: int, side: int) -> Umt:
    """UMT's network with its published weights.

    Args:
        tensors: the weights; positions that they lack are the fixed ones.
        frames: F.
        side: of a frame in pixels.

    Raises:
        ValueError: they are of another network.
    """
    found = renamed(tensors, _UMT)
    with fitting():
        for at in {m.group(0) for k in found if (m := re.match(r"blocks\.\d+\.", k))}:
            q, v = found.pop(f"{at}q_bias"), found.pop(f"{at}v_bias")
            found[f"{at}qkv.bias"] = torch.cat([q, torch.zeros_like(v), v])
        # A kernel of one moment.
        found["embed.weight"] = found["embed.weight"].squeeze(2)
        width, patch = found["embed.weight"].shape[0], found["embed.weight"].shape[-1]
        table = found.get("positions")
        found["positions"] = (
            fixed_positions(frames, side // patch, width) if table is None else table.squeeze(0)
        )
        return filled(
            lambda: Umt(
                width,
                depth(found),
                patch=patch,
                tokens=len(found["positions"]),
                hidden=len(found["blocks.0.fc1.weight"]),
                classes=len(found["head.bias"]),
            ),
            found,
        )


def fixed_positions(frames: int, grid: int, width: int) -> Tensor:
    """Sines and cosines (frames x grid x grid, width), made for 8 frames and stretched in time.

    Source: Unmasked Teacher's code.
    """
    place = torch.arange(TABLE_FRAMES * grid * grid, dtype=torch.float64)[:, None]
    pair = torch.arange(width, dtype=torch.float64).div(2, rounding_mode="floor")
    angle = place / TABLE_BASE ** (2 * pair / width)
    table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()
    if frames == TABLE_FRAMES:
        return table
    rows = table.unflatten(0, (TABLE_FRAMES, grid * grid)).permute(1, 2, 0)
    wide = nnf.interpolate(rows, size=frames, mode="linear", align_corners=False)
    return wide.permute(2, 0, 1).flatten(0, 1)
