"""What makes sampling fast changes rounding alone; eight bits and pooling do what they say."""

import dataclasses
from functools import partial

import pytest
import torch

from cfmodel import presets
from cfmodel.config import MemoryConfig, from_json
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import ChunkKV
from cfmodel.nn.fast import Fast, Fp8Linear, fast_of, quicken
from cfmodel.nn.rope import rotary_table, rotate
from cfmodel.passes import Passes
from cfmodel.recorded import Fixed, _Arguments
from tests.helpers.nano import NANO, nano_latents, nano_model, nano_text, seeded

FULL = dataclasses.replace(NANO.memory, tau=1.0)


def filled(config: MemoryConfig, geometry=NANO.geometry) -> SlotMemory:
    memory = SlotMemory(config, geometry, NANO.model, batch=1, device="cpu", dtype=torch.float32)
    shape = (1, 3 * geometry.tokens_per_frame, NANO.model.heads, NANO.model.head_dim)
    for chunk in range(28):
        k, v = (seeded(*shape, seed=2 * chunk + part) for part in (0, 1))
        memory.commit(ChunkKV((k,) * 2, (v,) * 2, 3 * chunk))
    return memory


@torch.no_grad()
def output(model, config=FULL):
    passes, x = Passes(model), nano_latents(1, 3)
    views = passes.prepare(filled(config), 3)
    assert all(view.settled for view in views)
    return passes.run(x, torch.full((1, 3), 0.5), nano_text(model, 1), views, keep=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_exact_choices_change_rounding_alone(compiled, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    right, model = output(nano_model()), nano_model()
    quicken(model, Fast(compiled=compiled))
    assert not hasattr(model.blocks[0].attn, "q")
    found = output(model)
    torch.testing.assert_close(found.v_BFCXY, right.v_BFCXY, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.kv, right.kv, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fp8", "fp8-tensor"])
def test_eight_bits_err_by_little(kind):
    right, model = output(nano_model()).v_BFCXY, nano_model()
    quicken(model, Fast(compiled=False, linear=kind))
    assert isinstance(model.get_submodule("blocks.1.ffn.0"), Fp8Linear)
    assert 1e-4 < (output(model).v_BFCXY - right).norm() / right.norm() < 0.05


def test_words_of_choices():
    assert fast_of("auto") is None
    assert fast_of("off") == Fast.off()
    assert fast_of(Fast(linear="fp8").words) == Fast(linear="fp8")
    assert Fast.default(torch.device("cpu"), 4096) == Fast.off()
    for words in ("joined+nonsense", "fp8+fp8-tensor"):
        with pytest.raises(ValueError, match="expected auto, off"):
            fast_of(words)


@torch.no_grad()
def test_a_view_is_rotated_keys_with_room_that_a_pass_fills():
    model, memory = nano_model(), filled(FULL)
    passes, view = Passes(model), memory.view(0, 3)
    (first, _), held = passes.prepare(memory, 3), view.k_BKHD.shape[1]
    table = rotary_table(view.positions_BT, NANO.geometry.grid, NANO.model.head_dim)
    assert torch.equal(first.k_BKHD[:, :held], rotate(view.k_BKHD, table))
    assert first.v_BKHD.data_ptr() == view.v_BKHD.data_ptr()
    assert first.v_BKHD.shape[1] == held + 3 * NANO.geometry.tokens_per_frame
    before = first.v_BKHD[:, :held].clone()
    kv = passes.clean(nano_latents(1, 3), nano_text(model, 1), [first, first])
    assert torch.equal(first.v_BKHD[:, :held], before)
    assert kv[1][1].data_ptr() == first.v_BKHD[:, held:].data_ptr()


def test_pooled_slow_memory_holds_means_in_their_middle():
    """At a grid of 5 x 8, whose last row of means is over one row."""
    geometry = presets.ours("tiny").geometry
    whole, small = filled(FULL, geometry), filled(dataclasses.replace(FULL, pool=2), geometry)
    rows, columns = geometry.grid
    a, b = whole.view(1, 3), small.view(1, 3)
    assert (a.pooled, b.pooled) == (0, 12)
    assert torch.equal(a.positions_BT, b.positions_BT)
    at, tokens = 6 * rows * columns, 12
    assert torch.equal(a.k_BKHD[:, :at], b.k_BKHD[:, :at])
    for frame in range(12):
        grid = a.v_BKHD[0, at + frame * 40 :][:40].unflatten(0, (rows, columns))
        means = b.v_BKHD[0, at + frame * tokens :][:tokens].unflatten(0, (3, 4))
        for y in range(3):
            for x in range(4):
                mean = grid[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1))
                torch.testing.assert_close(means[y, x], mean)
    cos = rotary_table(torch.tensor([4]), (5, 8), 24, pool=2).cos[0].unflatten(0, (3, 4))
    # Channel 8 is the first of rows, 16 of columns, both of frequency 1.
    torch.testing.assert_close(cos[:, 0, 0, 8], torch.tensor([0.5, 2.5, 4.0]).cos())
    torch.testing.assert_close(cos[0, :, 0, 16], torch.tensor([0.5, 2.5, 4.5, 6.5]).cos())


def test_a_pooled_preset_has_a_key_of_its_own_and_reads_old_records():
    base, row = presets.preset("tiny/ours"), presets.preset("tiny/pooled")
    assert row.key() != base.key()
    assert "pool" not in base.to_json()["memory"]
    assert from_json(base.to_json()) == base
    assert from_json(row.to_json()) == row
    with pytest.raises(ValueError, match=r"memory\.pool=2"):
        MemoryConfig(fast=None, positions="absolute", pool=2)


def test_a_tensor_in_its_place_is_equal_to_another_there():
    x = torch.zeros(2, 3)
    call = _Arguments.of((x, [Fixed(x[:1])]))
    assert call.alike(_Arguments.of((torch.ones(2, 3), [Fixed(x[:1])])))
    assert not call.alike(_Arguments.of((x, [Fixed(x[1:])])))
    assert len(call.tensors) == 1
