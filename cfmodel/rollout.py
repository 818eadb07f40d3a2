"""Rolling out a film chunk by chunk. No files, no decoding: the caller saves or shows the chunks.

Dims: B batch, F frames of a chunk, C latent channels, X rows and Y columns of a latent.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cfmodel.config import Geometry, seed_for
from cfmodel.flow import FewStep, add_noise, x0_from_v
from cfmodel.memory.base import Memory, to_device
from cfmodel.nn.attention import ChunkKV, PreparedView
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.passes import Passes


class NoiseSource(Protocol):
    """Noise that depends on nothing but its arguments and the films it was made for."""

    def __call__(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Unit Gaussian noise of ``shape``, whose first axis is the batch."""
        ...


class HashNoise:
    """Noise of each film from (prompt id, seed, chunk, step) alone, drawn on the CPU.

    So a film is the same on any device, in any batch, on any worker, in any order of chunks.

    Raises:
        ValueError: the two sequences differ in length.
    """

    def __init__(self, prompt_ids: Sequence[str], seeds: Sequence[int]) -> None:
        if len(prompt_ids) != len(seeds):
            raise ValueError(f"{len(prompt_ids)} prompt ids but {len(seeds)} seeds: expected equal")
        self._films = tuple(zip(prompt_ids, seeds, strict=True))

    def __call__(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Float32 CPU noise of ``shape``.

        Raises:
            ValueError: the first axis is not the number of films.
        """
        if shape[0] != len(self._films):
            raise ValueError(f"noise for a batch of {shape[0]}: expected {len(self._films)} films")
        films = []
        for prompt_id, seed in self._films:
            generator = torch.Generator().manual_seed(seed_for(prompt_id, seed, chunk, step))
            films.append(torch.randn(shape[1:], generator=generator))
        return torch.stack(films)


def prepare_views(
    model: VideoTransformer, memory: Memory, frames: int, *, clean: bool = False
) -> list[PreparedView]:
    """Every layer's view of the memory, made ready for the passes of one chunk."""
    return Passes(model).prepare(memory, frames, clean=clean)


def commit_chunk(
    model: VideoTransformer,
    memory: Memory,
    x0_BFCXY: Tensor,
    text: TextKV,
    views: Sequence[PreparedView],
) -> None:
    """The clean pass of a finished chunk, and its keys and values into the memory."""
    take_in(memory, Passes(model).clean(x0_BFCXY, text, views))


def take_in(memory: Memory, kv: Sequence[tuple[Tensor, Tensor]]) -> None:
    """A chunk's keys and values into the memory."""
    memory.commit(_chunk_kv(kv, memory.frames))


def _chunk_kv(kv: Sequence[tuple[Tensor, Tensor]], first_frame: int) -> ChunkKV:
    k, v = zip(*kv, strict=True)
    return ChunkKV(k, v, first_frame)


@torch.no_grad()
def rollout(
    model: VideoTransformer,
    memory: Memory,
    text_at: Callable[[int], TextKV],
    *,
    flow: FewStep,
    noise: NoiseSource,
    chunks: int,
    geometry: Geometry,
    batch: int,
    device: torch.device | str,
    dtype: torch.dtype,
    continue_from: Iterable[Tensor] = (),
    begin: Callable[[int, Sequence[Tensor]], None] | None = None,
    recorded: bool = False,
) -> Iterator[Tensor]:
    """Clean latent chunks B F C X Y, float32, each yielded after it is committed.

    Args:
        model: the few-step student.
        memory: what it reads of the past; a memory with content is continued.
        text_at: text of the chunk with this index in the film.
        flow: noise levels of the steps.
        noise: initial noise (step 0) and fresh noise before each later step.
        chunks: how many chunks to generate.
        geometry: frames of a chunk and size of a latent.
        batch: films made together.
        device: where the model is.
        dtype: dtype in which latents enter the model; the flow itself is float32.
        continue_from: clean chunks committed first and not yielded (forced history).
        begin: called before each chunk with its index and the latest clean chunks, as many as the
            memory reads; may change the memory (see ``cfmodel.scenes``).
        recorded: replay passes as CUDA graphs (see ``cfmodel.passes``).

    Source: arXiv:2602.06028, inference: few steps with fresh noise between them, clean commit pass.
    """
    config, frames = memory.config, geometry.chunk
    capacity = 0 if begin is None else config.capacity or 0
    recent = deque[Tensor](maxlen=capacity // frames)
    separate = config.commit_reads != "all"
    passes = Passes(model, recorded=recorded)
    shape = (batch, frames, model.config.latent_channels, *geometry.latent_size)

    def clean(x0: Tensor, text: TextKV, views: Sequence[PreparedView]) -> list[Any]:
        if separate:
            views = passes.prepare(memory, frames, clean=True)
        x0 = x0.to(device=device, dtype=dtype)
        recent.append(x0)
        return passes.clean(x0, text, views)

    def drawn(chunk: int) -> list[Tensor]:
        return [to_device(noise(chunk, step, shape), device) for step in range(len(flow.sigmas))]

    for x0 in continue_from:
        text = text_at(memory.frames // frames)
        take_in(memory, clean(x0, text, passes.prepare(memory, frames)))
    fresh = drawn(memory.frames // frames) if chunks else []
    for left in reversed(range(chunks)):
        chunk = memory.frames // frames
        if begin is not None:
            begin(chunk, recent)
        text = text_at(chunk)
        views = passes.prepare(memory, frames)
        x0 = torch.zeros(shape, device=device)
        for step, sigma in enumerate(flow.sigmas):
            xt = add_noise(x0, fresh[step], sigma)
            told_BF = torch.full(shape[:2], flow.told[step], device=device)
            out = passes.run(xt.to(dtype), told_BF, text, views, keep=config.observes)
            x0 = x0_from_v(xt, out.v_BFCXY.float(), sigma)
            if out.kv is not None and memory.observe(_chunk_kv(out.kv, memory.frames)):
                views = passes.prepare(memory, frames)
        kv = clean(x0, text, views)
        # The device is busy with these passes, and the commit may wait for it.
        fresh = drawn(chunk + 1) if left else []
        take_in(memory, kv)
        yield x0
