"""What is timed: something that makes one chunk after the other on a device."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.nn.rope import pooled_size

GIB = 2**30
STEADY_CHUNKS = 30
"""Chunks after which every memory of the presets is full, if each candidate is promoted."""


class Maker(Protocol):
    """A generator in steady state: its memory is full."""

    facts: dict[str, Any]
    """What it is: attention, dtype, latents that a chunk reads."""

    def step(self) -> Tensor:
        """Makes the next chunk and returns its latents (B, F, C, X, Y); waits for nothing."""
        ...


def work_of(experiment: Experiment, keys: int) -> dict[str, float]:
    """FLOP of a chunk whose tokens attend to ``keys`` tokens, their own among them.

    Embeddings and head, below a hundredth, are left out.
    """
    model, geometry = experiment.model, experiment.geometry
    passes = len(experiment.sample.steps) + 1
    tokens = geometry.chunk * geometry.tokens_per_frame
    each = 2.0 * passes * model.layers * tokens * model.width
    parts = {
        "linear": each * (6 * model.width + 2 * model.ffn),
        "attention": 2 * each * keys,
        "cross": 2 * each * model.text_tokens,
    }
    return {**parts, "total": sum(parts.values())}


def keys_of(experiment: Experiment) -> int:
    """Keys that a token attends to when the memory is full."""
    memory, geometry = experiment.memory, experiment.geometry
    slow = memory.slow * pooled_size(geometry.grid, memory.pool)
    return (memory.sink + (memory.fast or 0)) * geometry.tokens_per_frame + slow


def facts(device: torch.device, experiment: Experiment) -> dict[str, Any]:
    """Name and versions of the machine, and what is timed on it."""
    told: dict[str, Any] = {"torch": torch.__version__, "experiment": experiment.to_json()}
    if device.type != "cuda":
        return {"device": "cpu", "threads": torch.get_num_threads(), **told}
    card = torch.cuda.get_device_properties(device)
    told["cuda"], told["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return {"device": card.name, "memory_gib": card.total_memory / GIB, **told}


def settle(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tidy(device: torch.device) -> None:
    """Gives memory back that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def watched(device: torch.device) -> Generator[dict[str, float]]:
    """Tells how much memory was taken at most: ``peak_gib`` more than before, and in all."""
    told: dict[str, float] = {}
    if device.type != "cuda":
        yield told
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield told
    torch.cuda.synchronize(device)
    most = torch.cuda.max_memory_allocated(device)
    told["peak_gib"], told["total_gib"] = (most - before) / GIB, most / GIB
