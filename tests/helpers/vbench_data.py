"""Random weights for VBench's dimensions in the files that the ``vbench`` package reads, and films.

Both follow from a seed alone, so that what that package made of them can be kept as a few numbers.
"""

import math
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfbench.scorers.vbench.files import FILES
from cfbench.scorers.vbench.nets.amt import AmtS
from cfbench.scorers.vbench.nets.musiq import Musiq
from cfbench.scorers.vbench.nets.raft import Raft
from cfmodel.config import seed_for

Shapes = Mapping[str, tuple[int, ...]]
FPS, FRAMES, ROWS, COLUMNS = 16, 12, 136, 208
FILMS = ("slow", "fast")
TEXTS = {"slow": "A person is riding a bike", "fast": "A person is playing badminton"}
"""What the films are said to show; the weights see the first action in either."""
STYLES = {
    "slow": "Van Gogh style",
    "fast": "in the style of  Caf\u00e9 &amp; \u201cCyber-punk\u201d 2077",
}
SHOWN_ACTION = 0


def film(name: str) -> NDArray[np.uint8]:
    """Smooth random pictures that slide, and change a little: (R, Y, X, 3)."""
    rng = np.random.default_rng(seed_for("vbench-film", name) % 2**32)
    step = {"slow": 1, "fast": 7}[name]
    margin = step * FRAMES
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 20)))
    size = (ROWS + margin, COLUMNS + margin)
    wide = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    frames = []
    for k in range(FRAMES):
        at = k * step
        view = wide[0, :, at : at + ROWS, at : at + COLUMNS].permute(1, 2, 0).numpy()
        frames.append(view + rng.normal(0, 3, view.shape))
    return np.stack(frames).clip(0, 255).round().astype(np.uint8)


def long_film() -> NDArray[np.uint8]:
    """80 frames: two clips of 2 s, and half a one."""
    return np.concatenate([film("slow"), film("fast")] * 4)[:80]


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
    return {name: tuple(value.shape) for name, value in state.items()}


def dino_shapes(width: int = 128, layers: int = 2) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 197, width),
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


def clip_shapes(patch: int, out: int, width: int = 64, layers: int = 2) -> Shapes:
    """A small CLIP whole, text half too, since the package builds it from all of its weights."""
    grid = 224 // patch
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, width), "text_projection": (width, out), "logit_scale": (),
        "token_embedding.weight": (49_408, width),
        "visual.class_embedding": (width,), "visual.proj": (width, out),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.conv1.weight": (width, 3, patch, patch),
    }  # fmt: skip
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for half, count in (("visual.", layers), ("", 2)):
        for k in range(count):
            at = f"{half}transformer.resblocks.{k}"
            shapes |= {
                f"{at}.attn.in_proj_weight": (3 * width, width),
                f"{at}.attn.in_proj_bias": (3 * width,),
                f"{at}.attn.out_proj.weight": (width, width),
                f"{at}.attn.out_proj.bias": (width,),
                f"{at}.mlp.c_fc.weight": (4 * width, width), f"{at}.mlp.c_fc.bias": (4 * width,),
                f"{at}.mlp.c_proj.weight": (width, 4 * width), f"{at}.mlp.c_proj.bias": (width,),
            }  # fmt: skip
            norms += [f"{at}.ln_1", f"{at}.ln_2"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


def viclip_shapes(width: int = 64, out: int = 48) -> Shapes:
    """A small ViCLIP: both halves are CLIP's, one with moments, one with shorter texts."""
    shapes: dict[str, tuple[int, ...]] = {"temp": ()}
    for name, shape in clip_shapes(14, out, width).items():
        visual = name.startswith("visual.")
        name = name.removeprefix("visual.")
        if name == "logit_scale":
            continue
        if name == "conv1.weight":
            shape = (*shape[:2], 1, *shape[2:])
        if name == "positional_embedding" and not visual:
            shape = (32, width)
        shapes[f"{'vision' if visual else 'text'}_encoder.{name}"] = shape
    return shapes | {"vision_encoder.temporal_positional_embedding": (1, 8, width)}


def umt_shapes(width: int = 64, layers: int = 2) -> Shapes:
    """A small UMT, whose positions are the fixed ones."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 1, 16, 16), "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,), "fc_norm.bias": (width,),
        "head.weight": (400, width), "head.bias": (400,),
    }  # fmt: skip
    for name, shape in dino_shapes(width, layers).items():
        if name.startswith("blocks.") and not name.endswith("qkv.bias"):
            shapes[name] = shape
    for k in range(layers):
        shapes |= {f"blocks.{k}.attn.{which}_bias": (width,) for which in ("q", "v")}
    return shapes


def vocabulary() -> Path:
    """CLIP's byte pairs, out of the installed package; it is not imported."""
    name = "clip/bpe_simple_vocab_16e6.txt.gz"
    return Path(str(metadata.distribution("openai-clip").locate_file(name)))


def write_weights(root: Path) -> Path:
    """All files but DINOv2's, CLIP as plain state dicts."""
    half = ("clip-b32", "clip-l14")
    states = {
        "dino": drawn("dino", dino_shapes()),
        "clip-b32": drawn("clip-b32", clip_shapes(32, 32)),
        "clip-l14": drawn("clip-l14", clip_shapes(14, 768)),
        "aesthetic": drawn("aesthetic", {"weight": (1, 768), "bias": (1,)}),
        "musiq": drawn("musiq", shapes_of(Musiq().state_dict())),
        "amt": drawn("amt", shapes_of(AmtS().state_dict())),
        "raft": drawn("raft", shapes_of(Raft().state_dict())),
        "viclip": drawn("viclip", viclip_shapes()),
        "umt": drawn("umt", umt_shapes()),
    }
    for name in half:
        states[name]["logit_scale"].fill_(math.log(100))
    states["umt"]["head.bias"][SHOWN_ACTION] += 4
    for name in half:
        # OpenAI's are float16, and the package rounds what is not.
        states[name] = {key: value.half().float() for key, value in states[name].items()}
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
    shutil.copy(vocabulary(), root / FILES["bpe"])
    return root
