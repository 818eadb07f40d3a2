"""The small autoencoder: layout of its weights, frame arithmetic, streaming, causality."""

import pytest
import torch

from cfmodel.config import CodecConfig
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.presets import ours


def block(prefix, index, width):
    return {
        f"{prefix}.{index}.conv.0.weight": (width, 2 * width, 3, 3),
        f"{prefix}.{index}.conv.0.bias": (width,),
        f"{prefix}.{index}.conv.2.weight": (width, width, 3, 3),
        f"{prefix}.{index}.conv.2.bias": (width,),
        f"{prefix}.{index}.conv.4.weight": (width, width, 3, 3),
        f"{prefix}.{index}.conv.4.bias": (width,),
    }


def published_layout():
    """Keys and shapes of taew2_1, written down from its definition."""
    table = {"encoder.0.weight": (64, 3, 3, 3), "encoder.0.bias": (64,)}
    for pool, stride in ((2, 2), (7, 2), (12, 1)):
        table[f"encoder.{pool}.conv.weight"] = (64, 64 * stride, 1, 1)
        table[f"encoder.{pool + 1}.weight"] = (64, 64, 3, 3)
        for index in range(pool + 2, pool + 5):
            table |= block("encoder", index, 64)
    table |= {"encoder.17.weight": (16, 64, 3, 3), "encoder.17.bias": (16,)}
    table |= {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for first, width, following, stride in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for index in range(first, first + 3):
            table |= block("decoder", index, width)
        table[f"decoder.{first + 4}.conv.weight"] = (width * stride, width, 1, 1)
        table[f"decoder.{first + 5}.weight"] = (following, width, 3, 3)
    return table | {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return TinyAutoencoder(ours("nano").codec).eval()


def test_default_layout_is_the_published_one():
    net = TinyAutoencoder(CodecConfig())
    assert {
        key: tuple(value.shape) for key, value in net.state_dict().items()
    } == published_layout()
    assert (net.time_stride, net.space_stride) == (4, 8)


def test_tiny_codec_is_small():
    net = TinyAutoencoder(ours("tiny").codec)
    assert sum(p.numel() for p in net.parameters()) <= 2_500_000
    assert (net.time_stride, net.space_stride) == (4, 8)


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_frame_counts(codec, latents):
    frames = noise(2, 1 + 4 * (latents - 1), 3, 16, 24)
    encoded = codec.encode(frames)
    assert encoded.shape == (2, latents, 16, 2, 3)
    assert codec.decode(encoded).shape == frames.shape


@torch.no_grad()
def test_streamed_decoding_equals_whole(codec):
    latents = noise(2, 6, 16, 2, 3) * 4 - 2
    state, parts = None, []
    for part in latents.split([1, 3, 2], dim=1):
        frames, state = codec.decode_stream(state, part)
        parts.append(frames)
    torch.testing.assert_close(torch.cat(parts, 1), codec.decode(latents), rtol=0, atol=1e-6)


@torch.no_grad()
def test_streamed_encoding_equals_whole(codec):
    frames = noise(2, 21, 3, 16, 16)
    state, parts = None, []
    for part in frames.split([5, 4, 12], dim=1):
        latents, state = codec.encode_stream(state, part)
        parts.append(latents)
    torch.testing.assert_close(torch.cat(parts, 1), codec.encode(frames), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_future_changes_nothing(codec):
    frames = noise(1, 13, 3, 16, 16)
    changed = frames.clone()
    changed[:, 5:] = noise(1, 8, 3, 16, 16, seed=1)
    before, after = codec.encode(frames), codec.encode(changed)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-4)


@torch.no_grad()
def test_films_of_a_batch_do_not_mix(codec):
    latents = noise(2, 3, 16, 2, 2)
    both = codec.decode(latents)
    torch.testing.assert_close(codec.decode(latents[1:]), both[1:], rtol=0, atol=1e-6)


def test_early_growth_equals_the_published_order():
    """Upsampling first, as published, gives the same numbers as growing first."""
    torch.manual_seed(0)
    grow = TinyAutoencoder(ours("nano").codec).decoder[7]
    x = noise(2, 16, 3, 2)
    late = grow.conv(torch.nn.functional.interpolate(x, scale_factor=2.0))
    late = late.unflatten(1, (2, 16)).flatten(0, 1)
    torch.testing.assert_close(grow(x), late)


def test_gradients_reach_every_weight(codec):
    net = TinyAutoencoder(ours("nano").codec)
    net.decode(net.encode(noise(1, 9, 3, 16, 16))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_misfits_are_refused(codec):
    with pytest.raises(ValueError, match="multiple of 4"):
        codec.encode(noise(1, 4, 3, 16, 16))
    with pytest.raises(ValueError, match="divide by 8"):
        codec.encode(noise(1, 5, 3, 16, 20))
    with pytest.raises(ValueError, match="16 channels"):
        codec.decode(noise(1, 2, 4, 2, 2))
    with pytest.raises(ValueError, match="one width more"):
        TinyAutoencoder(CodecConfig(widths=(8, 8)))


@torch.no_grad()
def test_whole_clips_make_one_graph(codec):
    """No Python loop over frames and no break: what ``torch.compile`` needs to fuse the net."""
    encode = torch.compile(codec.encode, backend="eager", fullgraph=True)
    decode = torch.compile(codec.decode, backend="eager", fullgraph=True)
    frames = noise(1, 9, 3, 16, 16)
    latents = encode(frames)
    torch.testing.assert_close(latents, codec.encode(frames))
    torch.testing.assert_close(decode(latents), codec.decode(latents))
