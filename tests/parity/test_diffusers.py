"""The transformer and the weight names against diffusers' implementation of Wan."""

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel

from cfmodel.config import Geometry, ModelConfig
from cfmodel.io.wan import from_wan, name_map, to_wan
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.presets import ours
from tests.helpers.nano import NANO, nano_model, randomise, seeded

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
CONFIGS = [
    (NANO.model, NANO.geometry),
    (
        ModelConfig(layers=3, width=96, heads=3, ffn=100, text_width=20, text_tokens=5),
        Geometry(height=32, width=80),
    ),
    (
        ModelConfig(
            layers=1,
            width=64,
            heads=1,
            ffn=32,
            text_width=8,
            text_tokens=2,
            freq_width=64,
            eps=1e-5,
        ),
        Geometry(height=48, width=32),
    ),
    (dataclasses.replace(ours("tiny").model, layers=2), ours("tiny").geometry),
]


def reference(model: ModelConfig) -> WanTransformer3DModel:
    network = WanTransformer3DModel(
        num_attention_heads=model.heads,
        attention_head_dim=model.head_dim,
        in_channels=model.latent_channels,
        out_channels=model.latent_channels,
        text_dim=model.text_width,
        freq_dim=model.freq_width,
        ffn_dim=model.ffn,
        num_layers=model.layers,
        eps=model.eps,
    )
    randomise(network, seed=5)
    return network.requires_grad_(False).eval()


def from_reference(network, model, geometry):
    mine = VideoTransformer(model, geometry)
    mine.load_state_dict(from_wan(network.state_dict(), model, "diffusers"))
    return mine.requires_grad_(False).eval()


@pytest.mark.parametrize(("model", "geometry"), CONFIGS)
@pytest.mark.parametrize("per_frame", [False, True])
def test_transformer_equals_diffusers(model, geometry, per_frame):
    network = reference(model)
    mine = from_reference(network, model, geometry)
    batch, frames = 2, 4
    x_BFCXY = seeded(batch, frames, model.latent_channels, *geometry.latent_size)
    tokens_BSE = seeded(batch, model.text_tokens, model.text_width, seed=1)
    if per_frame:
        timestep_BF = torch.tensor([[0.0, 250.0, 937.5, 1000.0], [625.0, 0.0, 1.0, 500.0]])
        theirs_timestep = timestep_BF.repeat_interleave(geometry.tokens_per_frame, dim=1)
    else:
        theirs_timestep = torch.tensor([937.5, 250.0])
        timestep_BF = theirs_timestep[:, None].expand(batch, frames)
    theirs = network(x_BFCXY.transpose(1, 2), theirs_timestep, tokens_BSE, return_dict=False)[
        0
    ].transpose(1, 2)
    out = mine(x_BFCXY, timestep_BF / 1000, mine.text_kv(tokens_BSE[:, None])).v_BFCXY
    assert theirs.abs().mean() > 0.1
    torch.testing.assert_close(out, theirs, **TOLERANCE)


@pytest.mark.parametrize("naming", ["wan", "diffusers"])
def test_names_round_trip(naming):
    state = nano_model().state_dict()
    there = to_wan(state, NANO.model, NANO.geometry, naming)
    assert there["patch_embedding.weight"].shape == (48, 16, 1, 2, 2)
    back = from_wan(there, NANO.model, naming)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_diffusers_names_are_all_of_diffusers():
    network = reference(NANO.model)
    assert set(name_map(NANO.model, "diffusers").values()) == set(network.state_dict())


def test_original_names():
    """Names of the published Wan2.1-T2V-1.3B checkpoint, written down from its index."""
    names = name_map(NANO.model, "wan")
    assert names["blocks.1.attn.norm_q.weight"] == "blocks.1.self_attn.norm_q.weight"
    assert names["blocks.0.cross_norm.bias"] == "blocks.0.norm3.bias"
    assert names["blocks.0.modulation"] == "blocks.0.modulation"
    assert names["time_project.1.weight"] == "time_projection.1.weight"
    assert names["head.linear.weight"] == "head.head.weight"
    layers = len({name.split(".")[1] for name in names.values() if name.startswith("blocks.")})
    assert layers == NANO.model.layers
    # 27 tensors a block, 15 around them: 825 for the 30 layers of the 1.3B model.
    assert len(names) == 27 * layers + 15


@pytest.mark.parametrize("naming", ["wan", "diffusers"])
def test_adapter_is_strict(naming):
    state = to_wan(nano_model().state_dict(), NANO.model, NANO.geometry, naming)
    with pytest.raises(ValueError, match="unknown"):
        from_wan(state | {"extra": torch.zeros(1)}, NANO.model, naming)
    state.pop("patch_embedding.bias")
    with pytest.raises(ValueError, match=r"missing \['patch_embedding.bias'\]"):
        from_wan(state, NANO.model, naming)
