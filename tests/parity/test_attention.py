"""One forward, several attention functions: the numbers agree."""

import logging

import pytest
import torch

from cfmodel.nn import attention
from cfmodel.nn.attention import flash, flex, resolve, sdpa
from cfmodel.nn.masks import frame_mask, teacher_forcing
from tests.helpers.nano import (
    NANO,
    RAGGED_TAU,
    films,
    nano_latents,
    nano_memory,
    nano_model,
    nano_text,
    seeded,
    with_memory,
)

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FRAMES = 6


@pytest.mark.parametrize("masked", [False, True])
def test_sdpa_equals_flex(masked):
    outputs = []
    for function in (sdpa, flex):
        model = nano_model(attention=function)
        mask = None
        if masked:
            tokens = NANO.geometry.tokens_per_frame
            mask = frame_mask(teacher_forcing(FRAMES, 3), 2 * FRAMES, tokens, form=model.mask_form)
        x, sigma = nano_latents(2, 2 * FRAMES), seeded(2, 2 * FRAMES).sigmoid()
        outputs.append(model(x, sigma, nano_text(model, 2), mask=mask).v_BFCXY)
    torch.testing.assert_close(*outputs, **TOLERANCE)


def test_sdpa_equals_flex_against_a_ragged_memory():
    experiment = with_memory(tau=RAGGED_TAU, promotion="surprisal-1")
    memory = nano_memory(experiment.memory, 2)
    made = [
        films(experiment, ["a", "b"], 6, model=nano_model(attention=sdpa), memory=memory),
        films(experiment, ["a", "b"], 6, model=nano_model(attention=flex)),
    ]
    assert memory.view(0, 3).valid_BT is not None
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)


def test_the_wrong_form_of_mask_is_refused():
    tokens = NANO.geometry.tokens_per_frame
    q = seeded(1, FRAMES * tokens, 1, 8)
    block = frame_mask(teacher_forcing(3, 3), FRAMES, tokens, form="block")
    dense = frame_mask(teacher_forcing(3, 3), FRAMES, tokens)
    with pytest.raises(RuntimeError, match="form='dense'"):
        sdpa(q, q, q, block)
    with pytest.raises(RuntimeError, match="form='block'"):
        flex(q, q, q, dense)
    with pytest.raises(RuntimeError, match="takes no mask"):
        flash(q, q, q, dense)


def test_auto_is_resolved_once_and_logged(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        assert resolve("auto") == ("sdpa", sdpa)
    assert "resolved to 'sdpa'" in caplog.text
    assert resolve("flex") == ("flex", flex)


def test_flash_without_its_extra_names_it(monkeypatch):
    monkeypatch.setattr(attention, "FLASH_MODULE", "no_such_package.cute")
    attention._flash_kernel.cache_clear()
    with pytest.raises(RuntimeError, match=r"\[flash\]"):
        resolve("flash")


def test_unknown_attention():
    with pytest.raises(ValueError, match="attention='fast'"):
        resolve("fast")
