"""The ways to roll a film out that are not one chunk after the other, and the choice among all.

Each is a generator of clean latent chunks with ``rollout``'s arguments. Dims: B batch, F frames,
C latent channels, X rows and Y columns of a latent.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.flow import FewStep, add_noise, per_frame, x0_from_v
from cfmodel.memory.base import to_device
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.rollout import NoiseSource, commit_chunk, prepare_views, rollout

Reencode = Callable[[Tensor], Tensor]
"""From a film's latents (B, F, C, X, Y), the first latent of its last chunk as a film's first."""


class Parts(NamedTuple):
    """What every way of rolling out needs.

    Args:
        experiment: gives sampler, noise levels, geometry and memory.
        model: the student.
        memory: empty, or with a history to go on from.
        text_at: text of the chunk with this index in the film.
        noise: of each chunk and step.
        batch: films made together.
        dtype: in which latents enter the model.
        reencode: for ``passes`` alone.
        begin: for ``chunk`` alone; see ``rollout``.
        recorded: replay passes as CUDA graphs; for ``chunk`` and ``passes``.
    """

    experiment: Experiment
    model: VideoTransformer
    memory: SlotMemory
    text_at: Callable[[int], TextKV]
    noise: NoiseSource
    batch: int
    dtype: torch.dtype
    reencode: Reencode
    begin: Callable[[int, Sequence[Tensor]], None] | None = None
    recorded: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.patch_embed.weight.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a chunk: B F C X Y."""
        geometry = self.experiment.geometry
        channels = self.model.config.latent_channels
        return (self.batch, geometry.chunk, channels, *geometry.latent_size)

    def first_noise(self, chunk: int) -> Tensor:
        """Pure noise of a chunk, on the device."""
        return to_device(self.noise(chunk, 0, self.shape), self.device)


def roll_out(parts: Parts, chunks: int, history: Sequence[Tensor] = ()) -> Iterator[Tensor]:
    """Clean latent chunks B F C X Y, float32, by the experiment's sampler.

    Args:
        parts: what films are made of.
        chunks: how many to make.
        history: clean chunks committed first and not yielded.
    """
    match parts.experiment.sample.sampler:
        case "rolling":
            return rolling(parts, chunks, history)
        case "passes":
            return passes(parts, chunks, history)
        case "chunk":
            return rollout(
                parts.model,
                parts.memory,
                parts.text_at,
                flow=FewStep.from_config(parts.experiment.sample),
                noise=parts.noise,
                chunks=chunks,
                geometry=parts.experiment.geometry,
                batch=parts.batch,
                device=parts.device,
                dtype=parts.dtype,
                continue_from=history,
                begin=parts.begin,
                recorded=parts.recorded,
            )


def _commit(parts: Parts, x0: Tensor, text: TextKV) -> None:
    frames = parts.experiment.geometry.chunk
    views = prepare_views(parts.model, parts.memory, frames, clean=True)
    x0 = x0.to(device=parts.device, dtype=parts.dtype)
    commit_chunk(parts.model, parts.memory, x0, text, views)


@torch.no_grad()
def rolling(parts: Parts, chunks: int, history: Sequence[Tensor] = ()) -> Iterator[Tensor]:
    """Joint denoising of as many chunks as there are steps, each noisier than the one before it.

    A window of chunks takes one step together; its first chunk is then clean, is committed and
    leaves, and a chunk of pure noise enters behind. Windows grow at the film's start and shrink at
    its end. A chunk keeps its text while others enter.

    Source: Rolling Forcing (released code, a1477d0); deviation: chunks may have texts of their own,
    and only the chunk that leaves is committed, not each window's first chunk before it is clean.
    """
    flow, frames = FewStep.from_config(parts.experiment.sample), parts.experiment.geometry.chunk
    for x0 in history:
        _commit(parts, x0, parts.text_at(parts.memory.frames // frames))
    first = parts.memory.frames // frames
    window: list[Tensor] = []
    texts: list[TextKV] = []
    for newest in range(first, first + chunks + len(flow.sigmas) - 1):
        if newest < first + chunks:
            window.append(parts.first_noise(newest))
            texts.append(parts.text_at(newest))
        oldest = parts.memory.frames // frames
        steps = [newest - chunk for chunk in range(oldest, oldest + len(window))]
        x0s = _joint_step(parts, window, texts, steps)
        if steps[0] == len(flow.sigmas) - 1:
            _commit(parts, x0s[0], texts[0])
            yield x0s[0]
            oldest, steps, x0s = oldest + 1, steps[1:], x0s[1:]
            texts.pop(0)
        window = [
            add_noise(
                x0,
                to_device(parts.noise(chunk, step + 1, parts.shape), parts.device),
                flow.sigmas[step + 1],
            )
            for chunk, step, x0 in zip(range(oldest, oldest + len(x0s)), steps, x0s, strict=True)
        ]


def _joint_step(
    parts: Parts, window: Sequence[Tensor], texts: Sequence[TextKV], steps: Sequence[int]
) -> list[Tensor]:
    """Clean estimates of a window's chunks, each at its own step."""
    flow, frames = FewStep.from_config(parts.experiment.sample), parts.experiment.geometry.chunk
    xt = torch.cat(list(window), dim=1)

    def levels(of_step: Sequence[float]) -> Tensor:
        row = torch.tensor([of_step[step] for step in steps], dtype=torch.float32)
        return to_device(row.repeat_interleave(frames)[None], parts.device).expand(parts.batch, -1)

    views = prepare_views(parts.model, parts.memory, xt.shape[1])
    v = parts.model(xt.to(parts.dtype), levels(flow.told), _joined(texts), context=views).v_BFCXY
    x0 = x0_from_v(xt, v.float(), per_frame(levels(flow.sigmas)))
    return list(x0.split(frames, dim=1))


def _joined(texts: Sequence[TextKV]) -> TextKV:
    """One text if all chunks have the same, else a group for each chunk."""
    if all(text is texts[0] for text in texts):
        return texts[0]
    return TextKV(
        tuple(torch.cat(layer, dim=1) for layer in zip(*(text.k for text in texts), strict=True)),
        tuple(torch.cat(layer, dim=1) for layer in zip(*(text.v for text in texts), strict=True)),
    )


def passes(parts: Parts, chunks: int, history: Sequence[Tensor] = ()) -> Iterator[Tensor]:
    """Films as long as the memory holds, one after the other, each begun with the last chunk.

    That chunk is the last one of the film before; its first latent is made anew from pixels, since
    a film's first latent holds one pixel frame and any other four.

    Source: CausVid's script for long videos (ca21150), with an overlap of one chunk; deviation: the
    overlap is shown as it was made, not as decoded again.
    """
    geometry = parts.experiment.geometry
    whole = (parts.experiment.memory.capacity or 0) // geometry.chunk
    film = list(history)[-whole:]
    done, end = len(history), len(history) + chunks
    while done < end:
        start = [_again(parts, film)] if len(film) == whole else film
        shift = done - len(start)
        parts.memory.reset()
        film = list(start)
        made = rollout(
            parts.model,
            parts.memory,
            lambda chunk, shift=shift: parts.text_at(chunk + shift),
            flow=FewStep.from_config(parts.experiment.sample),
            noise=lambda chunk, step, shape, shift=shift: parts.noise(chunk + shift, step, shape),
            chunks=min(end - done, whole - len(start)),
            geometry=geometry,
            batch=parts.batch,
            device=parts.device,
            dtype=parts.dtype,
            continue_from=start,
            recorded=parts.recorded,
        )
        for x0 in made:
            film.append(x0)
            done += 1
            yield x0


def _again(parts: Parts, film: Sequence[Tensor]) -> Tensor:
    first = parts.reencode(torch.cat([x0.float() for x0 in film], dim=1))
    return torch.cat([first, film[-1][:, 1:]], dim=1)
