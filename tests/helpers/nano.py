"""A random nano model whose output is not zero, and its inputs."""

import dataclasses

import torch
from torch import Tensor

from cfmodel.config import Experiment, MemoryConfig
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import AttentionFn, sdpa
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.presets import ours
from cfmodel.rollout import HashNoise
from cfmodel.samplers import Parts, roll_out

NANO = ours("nano")
# Among the cosines of random nano films, so that films of a batch promote different chunks.
RAGGED_TAU = 0.991


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every weight random, norms and biases too, so that no term of the network is hidden."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.2
            weight.normal_(std=scale, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)


def nano_model(
    experiment: Experiment = NANO, attention: AttentionFn = sdpa, seed: int = 0
) -> VideoTransformer:
    model = VideoTransformer(experiment.model, experiment.geometry, attention)
    randomise(model, seed)
    return model.requires_grad_(False).eval()


def nano_text(model: VideoTransformer, batch: int, groups: int = 1, seed: int = 7) -> TextKV:
    config = model.config
    return model.text_kv(seeded(batch, groups, config.text_tokens, config.text_width, seed=seed))


def nano_latents(batch: int, frames: int, seed: int = 3, experiment: Experiment = NANO) -> Tensor:
    geometry = experiment.geometry
    channels = experiment.model.latent_channels
    return seeded(batch, frames, channels, *geometry.latent_size, seed=seed)


def nano_memory(config: MemoryConfig, batch: int, experiment: Experiment = NANO) -> SlotMemory:
    return SlotMemory(
        config,
        experiment.geometry,
        experiment.model,
        batch=batch,
        device="cpu",
        dtype=torch.float32,
    )


def with_memory(**memory: object) -> Experiment:
    config = dataclasses.replace(NANO.memory, **memory)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(NANO, memory=config)


def films(
    experiment: Experiment,
    ids: list[str],
    chunks: int,
    *,
    model: VideoTransformer | None = None,
    memory: SlotMemory | None = None,
    continue_from: tuple[Tensor, ...] = (),
    text: TextKV | None = None,
) -> Tensor:
    model = model or nano_model(experiment)
    text = text or nano_text(model, len(ids))
    parts = Parts(
        experiment,
        model,
        memory or nano_memory(experiment.memory, len(ids), experiment),
        lambda chunk: text,
        HashNoise(ids, [0] * len(ids)),
        batch=len(ids),
        dtype=torch.float32,
        reencode=lambda film: film[:, -experiment.geometry.chunk][:, None],
    )
    made = roll_out(parts, chunks, continue_from)
    return torch.cat(list(made), dim=1)
