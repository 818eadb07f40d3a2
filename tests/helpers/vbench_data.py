"""Random weights for VBench's dimensions in the files that the ``vbench`` package reads, and films.

Both follow from a seed alone, so that what that package made of them can be kept as a few numbers.
"""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from cfbench.scorers.vbench.drawn import (
    SMALL,
    clip_shapes,
    dino_shapes,
    drawn,
    prompt_free,
    umt_shapes,
    viclip_shapes,
    written,
)
from cfbench.scorers.vbench.files import FILES
from cfmodel.config import seed_for

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


def vocabulary() -> Path:
    """CLIP's byte pairs, out of the installed package; it is not imported."""
    name = "clip/bpe_simple_vocab_16e6.txt.gz"
    return Path(str(metadata.distribution("openai-clip").locate_file(name)))


def dinov2_shapes(width: int = 128, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """DINO's with patches of 14 and a scale of each shortcut."""
    shapes = dict(dino_shapes(width, layers))
    shapes["pos_embed"] = (1, 257, width)
    shapes["patch_embed.proj.weight"] = (width, 3, 14, 14)
    return shapes | {f"blocks.{k}.ls{n}.gamma": (width,) for k in range(layers) for n in (1, 2)}


DREAMSIM_RANK, DREAMSIM_ALPHA = 4, 2
"""Of the changes to DreamSim's networks."""


def write_dreamsim(root: Path, *, width: int = 64, out: int = 32) -> Path:
    """Small DreamSim, as its package lays it out; its DINO is the one of ``write_weights``."""
    shapes = {
        **dino_shapes(width, 2), "pos_drop.weight": (width,), "pos_drop.bias": (width,),
        "proj": (width, out),
    }  # fmt: skip
    for name in ("dreamsim-clip", "dreamsim-open-clip"):
        path = root / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": drawn(name, shapes)}, path)
    halves: dict[str, tuple[int, ...]] = {}
    for number, size in enumerate((SMALL["dino"].width, width, width)):
        for block in range(2):
            at = f"base_model.model.extractor_list.{number}.model.blocks.{block}.attn.qkv"
            halves[f"{at}.lora_A.weight"] = (DREAMSIM_RANK, size)
            halves[f"{at}.lora_B.weight"] = (3 * size, DREAMSIM_RANK)
    adapter = root / FILES["dreamsim-lora"]
    adapter.parent.mkdir(parents=True, exist_ok=True)
    save_file(drawn("dreamsim-lora", halves), adapter)
    settings = {
        "peft_type": "LORA", "r": DREAMSIM_RANK, "lora_alpha": DREAMSIM_ALPHA, "lora_dropout": 0.3,
        "bias": "none", "target_modules": ["qkv"],
    }  # fmt: skip
    (root / FILES["dreamsim-settings"]).write_text(json.dumps(settings), encoding="utf-8")
    return root


def write_background(root: Path) -> Path:
    """What background consistency needs, of films and of their clips."""
    state = {k: v.half().float() for k, v in drawn("clip-b32", clip_shapes(32, 32, 64, 2)).items()}
    written(root, {"clip-b32": state, "dino": drawn("dino", dino_shapes(128, 2))})
    return write_dreamsim(root)


def write_weights(root: Path) -> Path:
    """All files, CLIP as plain state dicts."""
    states = prompt_free(SMALL) | {
        "viclip": drawn("viclip", viclip_shapes()),
        "umt": drawn("umt", umt_shapes()),
        "dinov2": drawn("dinov2", dinov2_shapes()),
    }
    states["umt"]["head.bias"][SHOWN_ACTION] += 4
    written(root, states)
    write_dreamsim(root)
    shutil.copy(vocabulary(), root / FILES["bpe"])
    return root
