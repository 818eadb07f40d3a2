import dataclasses

import pytest
import torch

from cfmodel.config import Geometry
from cfmodel.nn.attention import KVView
from cfmodel.nn.layers import patchify, unpatchify
from cfmodel.nn.masks import block_causal, frame_mask
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.rollout import prepare_views
from tests.helpers.nano import (
    NANO,
    nano_latents,
    nano_memory,
    nano_model,
    nano_text,
    seeded,
)

TOKENS = NANO.geometry.tokens_per_frame
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def levels(batch, frames):
    return seeded(batch, frames, seed=11).sigmoid()


def test_new_model_predicts_zero_and_its_seed_decides_its_weights():
    model = VideoTransformer(NANO.model, NANO.geometry)
    out = model(nano_latents(1, 3), levels(1, 3), nano_text(model, 1)).v_BFCXY
    assert not out.any()
    torch.manual_seed(123)
    again = VideoTransformer(NANO.model, NANO.geometry).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    model.reset_parameters(seed=1)
    assert not torch.equal(model.patch_embed.weight, again["patch_embed.weight"])


def test_meta_model_has_the_same_names():
    with torch.device("meta"):
        meta = VideoTransformer(NANO.model, NANO.geometry)
    assert meta.state_dict().keys() == nano_model().state_dict().keys()


def test_patches_round_trip():
    x = nano_latents(2, 3)
    tokens = patchify(x, (2, 2))
    assert tokens.shape == (2, 3, TOKENS, 64)
    # The head's channels are fastest, the embedding's slowest: reorder, then invert.
    head_order = tokens.unflatten(-1, (16, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(head_order, (2, 2), NANO.geometry.grid), x)


def test_a_text_a_chunk_equals_separate_chunks():
    model = nano_model()
    text = nano_text(model, 2, groups=3)
    x, sigma = nano_latents(2, 9), levels(2, 9)
    only_own = frame_mask(lambda q, k: q // 3 == k // 3, 9, TOKENS)
    whole = model(x, sigma, text, mask=only_own).v_BFCXY
    for chunk in range(3):
        part = slice(3 * chunk, 3 * chunk + 3)
        positions = torch.arange(9)[part]
        alone = model(x[:, part], sigma[:, part], text.select(chunk), positions=positions)
        torch.testing.assert_close(whole[:, part], alone.v_BFCXY, **TOLERANCE)
    same = nano_text(model, 2)
    repeated = same.select(torch.zeros(2, 3, dtype=torch.int64))
    torch.testing.assert_close(
        model(x, sigma, repeated).v_BFCXY, model(x, sigma, same).v_BFCXY, **TOLERANCE
    )


def test_text_selection():
    text = nano_text(nano_model(), 2, groups=4)
    assert text.groups == 4
    assert torch.equal(text.select(2).k[0], text.k[0][:, 2:3])
    assert torch.equal(text.select(slice(1, 3)).v[1], text.v[1][:, 1:3])
    mixed = text.select(torch.tensor([[0, 3], [2, 2]]))
    assert torch.equal(mixed.k[0][1, 0], text.k[0][1, 2])
    assert torch.equal(mixed.v[0][0, 1], text.v[0][0, 3])
    with pytest.raises(ValueError, match="text group 4"):
        text.select(4)


def test_sigma_is_per_frame():
    model, x = nano_model(), nano_latents(1, 6)
    text, sigma = nano_text(model, 1), levels(1, 6)
    changed = sigma.clone()
    changed[:, 4] = 0.0
    mask = frame_mask(lambda q, k: q == k, 6, TOKENS)
    before, after = (model(x, s, text, mask=mask).v_BFCXY for s in (sigma, changed))
    moved = (before - after).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert moved.tolist() == [False] * 4 + [True, False]


def test_positions_per_sample():
    model, x = nano_model(), nano_latents(2, 6)
    text, sigma = nano_text(model, 2), levels(2, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 18, 19, 20]])
    both = model(x, sigma, text, positions=positions).v_BFCXY
    for sample in range(2):
        row = model(x, sigma, text, positions=positions[sample]).v_BFCXY
        torch.testing.assert_close(both[sample], row[sample], **TOLERANCE)
    assert (model(x, sigma, text).v_BFCXY[1] - both[1]).abs().max() > 1e-3


def test_padding_of_a_ragged_view_is_not_read():
    model = nano_model()
    shape = (2, 2 * TOKENS, NANO.model.heads, NANO.model.head_dim)
    k, v = seeded(*shape, seed=1), seeded(*shape, seed=2)
    valid = torch.tensor([[True, True], [True, False]])
    positions = torch.tensor([[0, 1], [0, 0]])
    query = torch.tensor([[2, 3, 4], [1, 2, 3]])
    inputs = nano_latents(2, 3), levels(2, 3), nano_text(model, 2)

    def run(k, v):
        view = KVView(k, v, positions, query, valid)
        context = model.prepare([view] * NANO.model.layers)
        return model(*inputs, context=context).v_BFCXY

    clean, k2, v2 = run(k, v), k.clone(), v.clone()
    k2[1, TOKENS:], v2[1, TOKENS:] = 50.0, 50.0
    assert torch.equal(clean, run(k2, v2))
    v2[0, TOKENS:] = 50.0
    assert not torch.equal(clean[0], run(k2, v2)[0])


@pytest.mark.parametrize(("masked", "autocast"), [(False, False), (True, True)])
def test_training_path_compiles_without_a_break(masked, autocast):
    torch.compiler.reset()
    model = nano_model().requires_grad_(True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x, sigma, text = nano_latents(1, 6), levels(1, 6), nano_text(model, 1, groups=2)
    mask = frame_mask(block_causal(3), 6, TOKENS) if masked else None
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = network(x, sigma, text, mask=mask).v_BFCXY
        out.float().square().mean().backward(retain_graph=True)
        gradients.append(model.patch_embed.weight.grad.clone())
    tolerance = 0.05 if autocast else 1e-5
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)


def test_cached_path_compiles_without_a_break():
    torch.compiler.reset()
    model = nano_model()
    memory = nano_memory(NANO.memory, 1)
    inputs = nano_latents(1, 3), levels(1, 3), nano_text(model, 1)
    views = prepare_views(model, memory, 3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(*inputs, context=views, return_kv=True)
    found = compiled(*inputs, context=views, return_kv=True)
    torch.testing.assert_close(found.v_BFCXY, expected.v_BFCXY, **TOLERANCE)
    torch.testing.assert_close(found.kv, expected.kv, **TOLERANCE)


def test_bfloat16_weights_keep_to_bfloat16():
    model = nano_model()
    text, x, sigma = nano_text(model, 1), nano_latents(1, 3), levels(1, 3)
    exact = model(x, sigma, text).v_BFCXY
    model.bfloat16()
    half = model(x.bfloat16(), sigma, nano_text_bf16(model), return_kv=True)
    assert half.v_BFCXY.dtype == torch.bfloat16
    assert half.kv is not None
    assert half.kv[0][0].dtype == torch.bfloat16
    assert (half.v_BFCXY - exact).abs().mean() < 0.05 * exact.abs().mean()


def nano_text_bf16(model):
    config = model.config
    tokens = seeded(1, 1, config.text_tokens, config.text_width, seed=7)
    return model.text_kv(tokens.bfloat16())


def test_wrong_inputs_are_refused():
    model = nano_model()
    text, x, sigma = nano_text(model, 1), nano_latents(1, 3), levels(1, 3)
    with pytest.raises(ValueError, match="2 texts do not divide 3 frames"):
        model(x, sigma, nano_text(model, 1, groups=2))
    with pytest.raises(ValueError, match="latents"):
        model(x[..., :4], sigma, text)
    views = prepare_views(model, nano_memory(NANO.memory, 1), 3)
    with pytest.raises(ValueError, match="omit them"):
        model(x, sigma, text, context=views, positions=torch.arange(3))
    with pytest.raises(ValueError, match="1 views for 2 layers"):
        model(x, sigma, text, context=views[:1])
    view = nano_memory(NANO.memory, 1).view(0, 3)
    with pytest.raises(ValueError, match="view of layer 0"):
        model.prepare([dataclasses.replace(view, positions_BT=torch.zeros(1, 2))])
    with pytest.raises(ValueError, match="one frame deep"):
        VideoTransformer(NANO.model, Geometry(height=64, width=64, patch=(2, 2, 2)))
