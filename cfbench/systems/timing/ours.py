"""Our generator, at a preset's sizes with random weights, its memory full from the beginning.

Dims: B batch, L tokens of a chunk, H heads, D head dim, G texts, S text tokens, E text width.
"""

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from cfbench.errors import CfError
from cfbench.systems.timing.base import STEADY_CHUNKS, keys_of
from cfmodel import presets
from cfmodel.config import Attention, Experiment, seed_for
from cfmodel.flow import FewStep
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import AttentionFn, ChunkKV
from cfmodel.nn.fast import Fast, fast_of, quicken
from cfmodel.nn.spread import Spread
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.pipeline import choose_attention
from cfmodel.rollout import HashNoise, rollout
from cfmodel.speed import random_student

ENDLESS = 1 << 20
ALL = "joined+compiled+gelu+recorded"


def experiment_of(family: str, row: str) -> Experiment:
    """The preset that a row of the table is about."""
    return presets.preset(f"{family}/{row}")


def choices(words: str) -> Fast:
    """``Fast`` of a table's words, in which ``auto`` stands for all that is exact.

    Raises:
        CfError: an unknown word.
    """
    try:
        return fast_of(words.replace("auto", ALL)) or Fast()
    except ValueError as error:
        raise CfError(str(error)) from error


def backend_of(name: str) -> Attention:
    """The attention backend of a word of the command line.

    Raises:
        CfError: there is none of that name.
    """
    backends: dict[str, Attention] = {known: known for known in get_args(Attention)}
    if name not in backends:
        raise CfError(f"--attention {name}: expected one of {', '.join(backends)}")
    return backends[name]


@torch.no_grad()
def fill(memory: SlotMemory, chunks: int = STEADY_CHUNKS) -> None:
    """Commits random keys and values up to so many chunks, of which each candidate is surprising.

    bfloat16 can hold them, so that memories of any dtype hold the same.
    """
    sizes, held = memory.buffers.sizes, memory.buffers.k
    shape = (sizes.batch, memory.geometry.chunk * sizes.tokens, *sizes.head)
    generator = torch.Generator(held.device).manual_seed(seed_for("speed", "memory"))
    for chunk in range(memory.frames // memory.geometry.chunk, chunks):
        k, v = (
            torch.randn(shape, generator=generator, device=held.device).bfloat16().to(held.dtype)
            for _ in range(2)
        )
        first = chunk * memory.geometry.chunk
        memory.commit(ChunkKV((k,) * memory.layers, (v,) * memory.layers, first))


class Ours:
    """One preset, made fast in one way.

    ``dtype`` is of weights, memory and latents. With ``spread`` joined processes make each chunk
    together.
    """

    def __init__(
        self,
        experiment: Experiment,
        fast: Fast,
        *,
        device: torch.device,
        dtype: torch.dtype,
        attention: Attention = "auto",
        spread: Spread | None = None,
    ) -> None:
        self.experiment, self.fast, self.device, self.dtype = experiment, fast, device, dtype
        backend, attend = choose_attention(attention, device)
        self.model = student(experiment, attend, device, dtype)
        quicken(self.model, fast)
        if spread is not None:
            self.model.spread_over(spread)
        self.memory = SlotMemory(
            experiment.memory, experiment.geometry, experiment.model,
            batch=1, device=device, dtype=dtype,
        )  # fmt: skip
        fill(self.memory)
        self.text = random_text(self.model)
        self._chunks = self._rolled()
        self.facts: dict[str, Any] = {
            "attention": backend,
            "dtype": str(dtype).removeprefix("torch."),
            "fast": fast.words,
            "keys": keys_of(experiment),
        }

    def _rolled(self) -> Iterator[Tensor]:
        return rollout(
            self.model,
            self.memory,
            lambda chunk: self.text,
            flow=FewStep.from_config(self.experiment.sample),
            noise=HashNoise(["speed"], [0]),
            chunks=ENDLESS,
            geometry=self.experiment.geometry,
            batch=1,
            device=self.device,
            dtype=self.dtype,
            recorded=self.fast.recorded and self.device.type == "cuda",
        )

    def step(self) -> Tensor:
        """The next chunk's latents."""
        return next(self._chunks)

    def release(self) -> None:
        """Gives up its memory, and with it the film; weights and text stay."""
        self._chunks = iter(())
        del self.memory


def student(
    experiment: Experiment, attend: AttentionFn, device: torch.device, dtype: torch.dtype
) -> VideoTransformer:
    """A student whose weights bfloat16 can hold, in any dtype."""
    model = random_student(experiment, attend, device=device, dtype=torch.bfloat16)
    return model.to(dtype)


@torch.no_grad()
def random_text(model: VideoTransformer) -> TextKV:
    """Cross-attention keys and values of one random text."""
    weight, config = model.patch_embed.weight, model.config
    generator = torch.Generator(weight.device).manual_seed(seed_for("speed", "text"))
    tokens_BGSE = torch.randn(
        (1, 1, config.text_tokens, config.text_width), generator=generator, device=weight.device
    )
    return model.text_kv(tokens_BGSE.bfloat16().to(weight.dtype))


def reference(experiment: Experiment, device: torch.device) -> Tensor:
    """The first chunk that ``Ours`` makes, by plain float32: what its error is measured against."""
    off = Fast.off()
    return Ours(experiment, off, device=device, dtype=torch.float32, attention="sdpa").step().cpu()


def apart(found: Tensor, right: Tensor) -> float:
    """Relative error in the root of the mean square."""
    found, right = found.float().cpu(), right.float().cpu()
    return float((found - right).norm() / right.norm())
