"""Random weights for VBench's networks, in the files that the ``vbench`` package reads.

They follow from a seed alone. Small ones hold parity to what that package makes of them; native
ones, of the published networks' sizes, are for timings. Neither makes a score of anything.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfbench.scorers.vbench.files import FILES
from cfbench.scorers.vbench.nets.amt import AmtS
from cfbench.scorers.vbench.nets.musiq import Musiq
from cfbench.scorers.vbench.nets.raft import Raft
from cfmodel.config import seed_for

Shapes = Mapping[str, tuple[int, ...]]
CLIP_WORDS, CLIP_TOKENS, TEXT_LAYERS, TEXT_WIDTH = 49_408, 77, 2, 64
"""Of every text half: no timing and no prompt-free score asks it anything, so it stays small."""
DINO_PLACES, CLIP_SIDE = 197, 224
CLIP_SCALE = 100
VICLIP_TOKENS, VICLIP_MOMENTS = 32, 8
ACTIONS = 400
AESTHETIC_WIDTH = 768


@dataclass(frozen=True)
class Size:
    """Width and blocks of a transformer."""

    width: int
    layers: int


SMALL: Mapping[str, Size] = {
    "dino": Size(128, 2),
    "clip-b32": Size(64, 2),
    "clip-l14": Size(64, 2),
}
NATIVE: Mapping[str, Size] = {
    "dino": Size(768, 12),
    "clip-b32": Size(768, 12),
    "clip-l14": Size(1024, 24),
}
"""As published: ViT-B/16, ViT-B/32 and ViT-L/14."""
B32_OUT: Mapping[int, int] = {64: 32, 768: 512}
"""Width of ViT-B/32's feature by its own width."""


def drawn(name: str, shapes: Shapes) -> dict[str, Tensor]:
    """Weights that depend on the names alone: small where many inputs are summed."""
    generator = torch.Generator().manual_seed(seed_for("vbench-weights", name))
    out: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            out[key] = torch.zeros((), dtype=torch.int64)
        elif key.endswith("running_var"):
            out[key] = 1 + 0.1 * value.abs()
        elif len(shape) > 1 and "emb" not in key.rpartition(".")[2]:
            out[key] = value * float(np.prod(shape[1:])) ** -0.5
        elif re.search(r"(norm|gn|ln_)[^.]*\.weight$", key):
            out[key] = 1 + 0.1 * value
        else:
            out[key] = 0.1 * value
    return out


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def dino_shapes(width: int, layers: int) -> Shapes:
    """DINO with patches of 16."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, DINO_PLACES, width),
        "patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for k in range(layers):
        for part, (out, into) in {
            "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"blocks.{k}.{part}.weight": (out, into), f"blocks.{k}.{part}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{k}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return shapes


def clip_shapes(patch: int, out: int, width: int, layers: int) -> Shapes:
    """A CLIP whole, text half too, since the package builds it from all of its weights."""
    grid = CLIP_SIDE // patch
    text = TEXT_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CLIP_TOKENS, text), "text_projection": (text, out),
        "logit_scale": (), "token_embedding.weight": (CLIP_WORDS, text),
        "visual.class_embedding": (width,), "visual.proj": (width, out),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.conv1.weight": (width, 3, patch, patch),
    }  # fmt: skip
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": text}
    for half, count, size in (("visual.", layers, width), ("", TEXT_LAYERS, text)):
        for k in range(count):
            at = f"{half}transformer.resblocks.{k}"
            shapes |= {
                f"{at}.attn.in_proj_weight": (3 * size, size),
                f"{at}.attn.in_proj_bias": (3 * size,),
                f"{at}.attn.out_proj.weight": (size, size),
                f"{at}.attn.out_proj.bias": (size,),
                f"{at}.mlp.c_fc.weight": (4 * size, size), f"{at}.mlp.c_fc.bias": (4 * size,),
                f"{at}.mlp.c_proj.weight": (size, 4 * size), f"{at}.mlp.c_proj.bias": (size,),
            }  # fmt: skip
            norms |= {f"{at}.ln_1": size, f"{at}.ln_2": size}
    for norm, size in norms.items():
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    return shapes


def viclip_shapes(width: int = 64, out: int = 48) -> Shapes:
    """A small ViCLIP: both halves are CLIP's, one with moments, one with shorter texts."""
    shapes: dict[str, tuple[int, ...]] = {"temp": ()}
    for name, shape in clip_shapes(14, out, width, 2).items():
        visual = name.startswith("visual.")
        name = name.removeprefix("visual.")
        if name == "logit_scale":
            continue
        if name == "conv1.weight":
            shape = (*shape[:2], 1, *shape[2:])
        if name == "positional_embedding" and not visual:
            shape = (VICLIP_TOKENS, TEXT_WIDTH)
        shapes[f"{'vision' if visual else 'text'}_encoder.{name}"] = shape
    return shapes | {"vision_encoder.temporal_positional_embedding": (1, VICLIP_MOMENTS, width)}


def umt_shapes(width: int = 64, layers: int = 2) -> Shapes:
    """A small UMT, whose positions are the fixed ones."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 1, 16, 16), "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,), "fc_norm.bias": (width,),
        "head.weight": (ACTIONS, width), "head.bias": (ACTIONS,),
    }  # fmt: skip
    for name, shape in dino_shapes(width, layers).items():
        if name.startswith("blocks.") and not name.endswith("qkv.bias"):
            shapes[name] = shape
    for k in range(layers):
        shapes |= {f"blocks.{k}.attn.{which}_bias": (width,) for which in ("q", "v")}
    return shapes


def prompt_free(sizes: Mapping[str, Size]) -> dict[str, dict[str, Tensor]]:
    """State dicts of the seven dimensions that need no prompt, by file."""
    b32, l14, dino = sizes["clip-b32"], sizes["clip-l14"], sizes["dino"]
    states = {
        "dino": drawn("dino", dino_shapes(dino.width, dino.layers)),
        "clip-b32": drawn("clip-b32", clip_shapes(32, B32_OUT[b32.width], b32.width, b32.layers)),
        "clip-l14": drawn("clip-l14", clip_shapes(14, AESTHETIC_WIDTH, l14.width, l14.layers)),
        "aesthetic": drawn("aesthetic", {"weight": (1, AESTHETIC_WIDTH), "bias": (1,)}),
        "musiq": drawn("musiq", shapes_of(Musiq().state_dict())),
        "amt": drawn("amt", shapes_of(AmtS().state_dict())),
        "raft": drawn("raft", shapes_of(Raft().state_dict())),
    }
    for name in ("clip-b32", "clip-l14"):
        states[name]["logit_scale"].fill_(math.log(CLIP_SCALE))
        # OpenAI's are float16, and the package rounds what is not.
        states[name] = {key: value.half().float() for key, value in states[name].items()}
    return states


def written(root: Path, states: Mapping[str, dict[str, Tensor]]) -> Path:
    """Files of state dicts in the package's own layouts; CLIP's stay plain state dicts."""
    for name, state in states.items():
        path = root / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        tree: object = state
        if name == "amt":
            tree = {"state_dict": state}
        elif name == "viclip":
            tree = {"model": state}
        elif name == "raft":
            twice = {
                re.sub(r"downsample\.1\.", "norm3.", k): v for k, v in state.items()
                if "downsample.1." in k
            }  # fmt: skip
            tree = {f"module.{k}": v for k, v in (state | twice).items()}
        torch.save(tree, path)
    return root
