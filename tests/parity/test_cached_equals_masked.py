"""The most valuable test: a cached rollout is one masked forward over the whole sequence."""

import pytest
import torch

from cfmodel.flow import FewStep
from cfmodel.nn.masks import and_masks, block_causal, frame_mask, sliding_window, teacher_forcing
from cfmodel.rollout import HashNoise, rollout
from tests.helpers.nano import films, nano_memory, nano_model, nano_text, with_memory

CHUNKS = 5
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
POLICIES = {
    "full context": {"sink": 0, "slow": 0, "fast": None, "positions": "absolute"},
    "endless fast behind a sink": {"sink": 3, "slow": 0, "fast": None, "positions": "absolute"},
    "window": {"sink": 0, "slow": 0, "fast": 9, "positions": "absolute"},
    "sink and window": {"sink": 3, "slow": 0, "fast": 6, "positions": "absolute"},
    "sink and window that cut chunks": {"sink": 1, "slow": 0, "fast": 5, "positions": "absolute"},
}


def recorded_rollout(experiment, batch=2):
    """Every pass of a real rollout, as (latents, sigma, output), with a text for each chunk."""
    model = nano_model(experiment)
    text = nano_text(model, batch, groups=CHUNKS)
    passes = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append((args[0], args[1], out)), with_kwargs=True
    )
    made = rollout(
        model,
        nano_memory(experiment.memory, batch, experiment),
        text.select,
        flow=FewStep.from_config(experiment.sample),
        noise=HashNoise(["a", "b"][:batch], [0] * batch),
        chunks=CHUNKS,
        geometry=experiment.geometry,
        batch=batch,
        device="cpu",
        dtype=torch.float32,
    )
    list(made)
    handle.remove()
    return model, text, passes


def joined(passes, part):
    return torch.cat([entry[part] for entry in passes], dim=1)


def window_of(experiment):
    memory, chunk = experiment.memory, experiment.geometry.chunk
    window = CHUNKS * chunk if memory.fast is None else memory.fast
    return sliding_window(chunk, window, memory.sink)


@pytest.mark.parametrize("policy", POLICIES)
def test_clean_pass_is_the_block_causal_forward(policy):
    experiment = with_memory(**POLICIES[policy])
    model, text, passes = recorded_rollout(experiment)
    geometry = experiment.geometry
    per_chunk = len(experiment.sample.steps) + 1
    clean = passes[per_chunk - 1 :: per_chunk]
    latents, sigma = joined(clean, 0), joined(clean, 1)
    assert not sigma.any()
    allowed = and_masks(block_causal(geometry.chunk), window_of(experiment))
    mask = frame_mask(allowed, latents.shape[1], geometry.tokens_per_frame)
    whole = model(latents, sigma, text, mask=mask, return_kv=True)
    cached = torch.cat([out.v_BFCXY for _, _, out in clean], dim=1)
    torch.testing.assert_close(cached, whole.v_BFCXY, **TOLERANCE)
    for layer in range(model.config.layers):
        for part in (0, 1):
            kv = torch.cat([out.kv[layer][part] for _, _, out in clean], dim=1)
            torch.testing.assert_close(kv, whole.kv[layer][part], **TOLERANCE)


@pytest.mark.parametrize("policy", POLICIES)
def test_denoising_step_is_the_teacher_forcing_forward(policy):
    experiment = with_memory(**POLICIES[policy])
    model, text, passes = recorded_rollout(experiment)
    geometry, frames = experiment.geometry, CHUNKS * experiment.geometry.chunk
    per_chunk = len(experiment.sample.steps) + 1
    clean = joined(passes[per_chunk - 1 :: per_chunk], 0)
    both = text.select(torch.arange(2 * CHUNKS).remainder(CHUNKS).expand(2, -1))
    positions = torch.arange(2 * frames).remainder(frames)
    window = window_of(experiment)
    allowed = and_masks(
        teacher_forcing(frames, geometry.chunk),
        lambda query, key: window(query % frames, key % frames),
    )
    mask = frame_mask(allowed, 2 * frames, geometry.tokens_per_frame)
    for step in range(len(experiment.sample.steps)):
        noisy = passes[step::per_chunk]
        latents = torch.cat([clean, joined(noisy, 0)], dim=1)
        sigma = torch.cat([torch.zeros(2, frames), joined(noisy, 1)], dim=1)
        whole = model(latents, sigma, both, positions=positions, mask=mask).v_BFCXY[:, frames:]
        cached = torch.cat([out.v_BFCXY for _, _, out in noisy], dim=1)
        torch.testing.assert_close(cached, whole, **TOLERANCE)


def test_slow_zero_with_endless_fast_is_full_context():
    ours = with_memory(slow=0, fast=None, positions="absolute")
    full = with_memory(**POLICIES["full context"])
    torch.testing.assert_close(
        films(ours, ["a", "b"], 18), films(full, ["a", "b"], 18), **TOLERANCE
    )


def test_memory_changes_the_film():
    """The comparisons above would mean nothing for a model that ignores its memory."""
    full = films(with_memory(**POLICIES["full context"]), ["a"], 4)
    short = films(with_memory(**POLICIES["sink and window that cut chunks"]), ["a"], 4)
    assert (full[:, 9:] - short[:, 9:]).abs().max() > 1e-2
