"""DreamSim's ensemble: one feature of an image from DINO, CLIP and OpenCLIP, each adapted.

Dims: B images, E width of the feature, the three networks' side by side.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cfbench.scorers.vbench.nets.block import fitting
from cfbench.scorers.vbench.nets.vit import CLIP, OPEN_CLIP, bare_dino, dino_named_clip
from cfbench.scorers.vbench.prep import CLIP_NORM, DINO_NORM, Norm

NORMS = (DINO_NORM, CLIP_NORM, CLIP_NORM)
_ADAPTED = re.compile(
    r"(?:base_model\.model\.)+extractor_list\.(\d)\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"
)


class DreamSim(nn.Module):
    """Features whose cosines are DreamSim's similarities.

    Args:
        nets: the three networks, in the order of ``NORMS``.

    Source: DreamSim (arXiv:2306.09344), type ``ensemble`` with normalised embeddings.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images_B3YX: Tensor) -> Tensor:
        """Features (B, E), of mean 0 and length 1, of images (B, 3, 224, 224) in [0, 1]."""
        parts = [
            net(_normalised(images_B3YX, norm)) for net, norm in zip(self.nets, NORMS, strict=True)
        ]
        whole = torch.cat(parts, -1)
        whole = whole - whole.mean(-1, keepdim=True)
        return whole / whole.norm(dim=-1, keepdim=True)


def dreamsim(
    bases: Sequence[Mapping[str, Tensor]], adapter: Mapping[str, Tensor], scale: float
) -> DreamSim:
    """The ensemble with its published weights.

    Args:
        bases: weights of DINO ViT-B/16 as published, and of both CLIPs with DINO's names.
        adapter: low-rank changes to all three, by the names that peft gives them.
        scale: of these changes: alpha over rank.

    Raises:
        ValueError: weights are of other networks.
    """
    whole = [dict(base) for base in bases]
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, value in adapter.items():
        match = _ADAPTED.fullmatch(name)
        if match is None:
            raise ValueError(f"weights are of another network ({name} is none of an adapter's)")
        number, layer, half = match.groups()
        halves.setdefault((int(number), f"{layer}.weight"), {})[half] = value.float()
    with fitting():
        for (number, name), pair in halves.items():
            whole[number][name] = whole[number][name].float() + scale * (pair["B"] @ pair["A"])
    dino, clip, open_clip = whole
    return DreamSim(
        [bare_dino(dino), dino_named_clip(clip, CLIP), dino_named_clip(open_clip, OPEN_CLIP)]
    )


def _normalised(images_B3YX: Tensor, norm: Norm) -> Tensor:
    mean, std = (images_B3YX.new_tensor(values)[:, None, None] for values in norm)
    return (images_B3YX - mean) / std
