"""Samplers other than chunk after chunk, at nano size; parity with the authors' is elsewhere."""

import pytest
import torch

from cfmodel.presets import presets
from cfmodel.rollout import HashNoise
from cfmodel.samplers import Parts, roll_out
from tests.helpers.nano import films, nano_latents, nano_memory, nano_model, nano_text

ROLLING = presets("nano")["rolling-forcing"]
PASSES = presets("nano")["causvid"]
MODEL = nano_model()
TEXTS = {key: nano_text(MODEL, 1, seed=key) for key in (7, 8)}


def parts(experiment, text_at, reencode=None, model=MODEL) -> Parts:
    return Parts(
        experiment,
        model,
        nano_memory(experiment.memory, 1, experiment),
        text_at,
        HashNoise(["a"], [0]),
        batch=1,
        dtype=torch.float32,
        reencode=reencode or (lambda film: film[:, -3:-2]),
    )


def made(experiment, chunks, text_at=lambda chunk: TEXTS[7], reencode=None) -> torch.Tensor:
    return torch.cat(list(roll_out(parts(experiment, text_at, reencode), chunks)), dim=1)


@pytest.mark.parametrize("chunks", [1, 3, 5, 9])
def test_rolling_makes_every_chunk_once(chunks):
    assert made(ROLLING, chunks).shape[1] == 3 * chunks


def test_rolling_yields_chunks_while_later_ones_are_noise():
    stream = roll_out(parts(ROLLING, lambda chunk: TEXTS[7]), 20)
    first = next(stream)
    passes = []
    hook = MODEL.register_forward_pre_hook(lambda module, given: passes.append(given[0].shape[1]))
    try:
        next(stream)
    finally:
        hook.remove()
    # A joint pass of five chunks, and the clean pass of the one that leaves.
    assert passes == [15, 3]
    assert first.isfinite().all()


def test_rolling_chunks_keep_their_own_texts():
    """The text of chunk 6 is first seen by the window that it enters: chunk 1 has left by then."""
    plain = made(ROLLING, 9)
    other = made(ROLLING, 9, lambda chunk: TEXTS[8 if chunk >= 6 else 7])
    assert torch.equal(plain[:, :6], other[:, :6])
    assert not torch.allclose(plain[:, 6:9], other[:, 6:9])
    assert not torch.allclose(plain[:, 18:], other[:, 18:])


def test_a_rolling_history_is_committed_and_gone_on_from():
    history = nano_latents(1, 6, experiment=ROLLING).split(3, 1)
    film = films(ROLLING, ["a"], 4, continue_from=history)
    assert film.shape[1] == 12
    assert not torch.allclose(film[:, :3], films(ROLLING, ["a"], 4)[:, :3])


def test_passes_begin_with_the_last_chunk_made_anew():
    given = []

    def reencode(film):
        given.append(film)
        return torch.zeros_like(film[:, :1])

    film = made(PASSES, 14, reencode=reencode)
    assert film.shape[1] == 42
    assert [clip.shape[1] for clip in given] == [21, 21]
    assert torch.equal(given[0], film[:, :21])
    assert torch.equal(given[1][:, 1:], film[:, 19:39])
    other = made(PASSES, 14)
    assert torch.equal(film[:, :21], other[:, :21])
    assert not torch.allclose(film[:, 21:24], other[:, 21:24])


def test_passes_count_chunks_of_the_film_for_texts():
    asked = []

    def text_at(chunk):
        asked.append(chunk)
        return TEXTS[7]

    made(PASSES, 10, text_at)
    assert sorted(set(asked)) == list(range(10))
    # The second pass begins with chunk 6 once more.
    assert asked == [*range(7), *range(6, 10)]


def test_a_history_longer_than_a_pass_begins_a_new_one():
    history = nano_latents(1, 24, experiment=PASSES)
    given = []

    def reencode(film):
        given.append(film)
        return film[:, -3:-2]

    film = list(roll_out(parts(PASSES, lambda chunk: TEXTS[7], reencode), 7, history.split(3, 1)))
    assert len(film) == 7
    # Six chunks go with the last one of the history, the seventh with the sixth.
    assert torch.equal(given[0], history[:, 3:])
    assert torch.equal(given[1], torch.cat([history[:, 21:], *film[:6]], dim=1))
