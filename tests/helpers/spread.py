"""Films of processes that work together: ``python -m tests.helpers.spread FOLDER``."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from cfmodel import devices, presets
from cfmodel.nn.fast import Fast
from cfmodel.nn.spread import Spread
from cfmodel.pipeline import Request, load

CHUNKS = 42
CASES = {
    "ours": ("tiny/ours", Fast.off(), 1),
    "joined": ("nano/ours", Fast(compiled=False, recorded=False), 2),
    "every-pass": ("nano/ours-released", Fast.off(), 1),
    "recache": ("nano/longlive-recache", Fast.off(), 1),
    "rolling": ("nano/rolling-forcing", Fast.off(), 1),
    "baseline": ("tiny/self-forcing", Fast.off(), 1),
}
"""Preset, what is done to be fast, and how many films at a time."""


def film(name: str) -> tuple[Tensor, list[bool]]:
    """Latents of a case, and what its memory decided, by this process among those joined."""
    preset, fast, batch = CASES[name]
    pipeline = load(presets.preset(preset), device="cpu", fast=fast)
    world = devices.world()
    if world.size > 1:
        pipeline.spread_over(Spread(*world))
    memory = pipeline.memory(batch)
    scenes = (("a red cube on grass", 9.0), ("a blue ball in snow", 99.0))
    requests = [Request(f"p-{film}", scenes, film) for film in range(batch)]
    made = torch.cat(list(pipeline.latents(requests, CHUNKS, memory=memory)), dim=1)
    return made, [test.kept for test in memory.promotions]


if __name__ == "__main__":
    with devices.joined(torch.device("cpu")):
        found = {name: film(name) for name in CASES}
        torch.save(found, Path(sys.argv[1]) / f"{devices.world().rank}.pt")
