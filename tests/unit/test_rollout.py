import pytest
import torch

from cfmodel.flow import FewStep
from cfmodel.nn.transformer import TextKV
from cfmodel.presets import presets
from cfmodel.rollout import HashNoise, rollout
from tests.helpers.nano import (
    NANO,
    RAGGED_TAU,
    films,
    nano_latents,
    nano_memory,
    nano_model,
    nano_text,
    with_memory,
)

SHAPE = (2, 3, 4)


@pytest.mark.parametrize("name", presets("nano"))
def test_every_preset_rolls_out(name):
    experiment = presets("nano")[name]
    chunks, size = 30, experiment.geometry.chunk
    memory = nano_memory(experiment.memory, 1, experiment)
    film = films(experiment, ["a"], chunks, memory=memory)
    assert film.shape == (1, chunks * size, 16, *experiment.geometry.latent_size)
    assert film.dtype == torch.float32
    assert film.isfinite().all()
    assert film.std() > 0.1
    capacity = experiment.memory.capacity
    expected = chunks * size if capacity is None else capacity - size
    assert len(memory.slots(0)) <= expected
    if experiment.memory.slow == 0:
        assert len(memory.slots(0)) == expected


def test_a_memory_of_the_current_chunk_alone():
    experiment = with_memory(sink=0, slow=0, fast=3, positions="window")
    memory = nano_memory(experiment.memory, 1, experiment)
    assert films(experiment, ["a"], 3, memory=memory).isfinite().all()
    assert memory.slots(0) == ()


def test_noise_depends_on_film_chunk_and_step_alone():
    noise = HashNoise(["a", "b"], [0, 1])
    first = noise(3, 2, SHAPE)
    noise(0, 0, SHAPE)
    assert torch.equal(first, noise(3, 2, SHAPE))
    assert torch.equal(first[1:], HashNoise(["b"], [1])(3, 2, (1, *SHAPE[1:])))
    assert torch.equal(first.flip(0), HashNoise(["b", "a"], [1, 0])(3, 2, SHAPE))
    others = [
        noise(4, 2, SHAPE),
        noise(3, 1, SHAPE),
        HashNoise(["c", "b"], [0, 1])(3, 2, SHAPE),
        HashNoise(["a", "b"], [9, 1])(3, 2, SHAPE),
    ]
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_noise_ignores_the_ambient_generator():
    torch.manual_seed(1)
    first = HashNoise(["a"], [0])(0, 0, (1, 4))
    torch.manual_seed(2)
    assert torch.equal(first, HashNoise(["a"], [0])(0, 0, (1, 4)))


def test_noise_is_unit_gaussian():
    noise = HashNoise(["a"], [0])(0, 0, (1, 100_000))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_noise_refuses_other_batches():
    with pytest.raises(ValueError, match="2 prompt ids but 1 seeds"):
        HashNoise(["a", "b"], [0])
    with pytest.raises(ValueError, match="batch of 3"):
        HashNoise(["a"], [0])(0, 0, (3, 4))


@pytest.mark.parametrize("decision", ["shared", "per-layer"])
def test_a_batch_of_two_is_two_batches_of_one(decision):
    """Also where the two films promote different chunks, so that their memories are ragged."""
    experiment = with_memory(tau=RAGGED_TAU, promotion="surprisal-1", decision=decision)
    model, chunks = nano_model(experiment), 8
    text = nano_text(model, 2)
    memory = nano_memory(experiment.memory, 2, experiment)
    both = films(experiment, ["a", "b"], chunks, model=model, memory=memory, text=text)
    held = [[slot.frame for slot in memory.slots(0, sample)] for sample in (0, 1)]
    assert held[0] != held[1]
    for sample, prompt in enumerate("ab"):
        rows = slice(sample, sample + 1)
        own = TextKV(tuple(k[rows] for k in text.k), tuple(v[rows] for v in text.v))
        alone = films(experiment, [prompt], chunks, model=model, text=own)
        torch.testing.assert_close(both[rows], alone, atol=1e-4, rtol=1e-4)


def test_continued_films_are_one_film():
    model = nano_model()
    whole = films(NANO, ["a"], 9, model=model)
    memory = nano_memory(NANO.memory, 1)
    start = films(NANO, ["a"], 4, model=model, memory=memory)
    rest = films(NANO, ["a"], 5, model=model, memory=memory)
    assert torch.equal(torch.cat([start, rest], dim=1), whole)
    forced = films(NANO, ["a"], 5, model=model, continue_from=start.split(3, dim=1))
    assert torch.equal(forced, rest)


def test_forced_history_is_read():
    model = nano_model()
    histories = [nano_latents(1, 3, seed=seed) for seed in (1, 2)]
    made = [films(NANO, ["a"], 1, model=model, continue_from=(past,)) for past in histories]
    assert (made[0] - made[1]).abs().max() > 1e-2


def test_passes_of_a_chunk_by_definition():
    """Noise, then for each step the estimate of the last one noised afresh; then a clean pass."""
    model, passes = nano_model(), []
    model.register_forward_hook(
        lambda module, args, out: passes.append((args[0], args[1], out.v_BFCXY))
    )
    film = films(NANO, ["a"], 2, model=model)
    noise = HashNoise(["a"], [0])
    for chunk, x0 in enumerate(film.split(3, dim=1)):
        *denoising, clean = passes[5 * chunk : 5 * chunk + 5]
        estimate = torch.zeros_like(x0)
        for step, (xt, sigma_BF, v) in enumerate(denoising):
            sigma = NANO.sample.steps[step]  # nano's shift is 1
            assert torch.equal(sigma_BF, torch.full((1, 3), sigma))
            expected = (1 - sigma) * estimate + sigma * noise(chunk, step, tuple(x0.shape))
            torch.testing.assert_close(xt, expected)
            estimate = xt - sigma * v
        torch.testing.assert_close(x0, estimate)
        assert torch.equal(clean[0], x0)
        assert not clean[1].any()


def test_rollout_streams():
    """The first chunk comes before the second is computed, and is committed by then."""
    model, passes = nano_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    text, memory = nano_text(model, 1), nano_memory(NANO.memory, 1)
    made = rollout(
        model,
        memory,
        lambda chunk: text,
        flow=FewStep.from_config(NANO.sample),
        noise=HashNoise(["a"], [0]),
        chunks=1000,
        geometry=NANO.geometry,
        batch=1,
        device="cpu",
        dtype=torch.float32,
    )
    next(made)
    assert len(passes) == len(NANO.sample.steps) + 1
    assert memory.frames == NANO.geometry.chunk
