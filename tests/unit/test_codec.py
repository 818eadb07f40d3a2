"""Codecs: streaming equals whole, normalisation, weights files."""

import functools

import pytest
import torch

from cfmodel.io import codec as codecs
from cfmodel.io.weights import load_weights, randomize, save_weights
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.presets import ours

CONFIG = ours("nano").codec
CPU = {"device": "cpu", "dtype": torch.float32}


def latents(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


def pushed(codec, z, sizes):
    decoder = codec.decoder(z.shape[0])
    return torch.cat([decoder.push(part) for part in z.split(sizes, dim=1)], dim=1)


@pytest.fixture(scope="module")
def tae():
    return codecs.random_codec(CONFIG, **CPU)


@pytest.fixture(scope="module")
def wan():
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
    randomize(vae, "wan")
    return codecs.WanCodec(vae, sha256="0" * 64, **CPU)


def test_spec(tae, wan):
    for codec in (tae, wan):
        assert (codec.spec.channels, codec.spec.strides) == (16, (4, 8, 8))


def test_random_codec_is_always_the_same(tae):
    other = codecs.random_codec(CONFIG, **CPU)
    assert other.spec == tae.spec
    z = latents(1, 2, 16, 2, 2)
    assert torch.equal(pushed(tae, z, 2), pushed(other, z, 2))


def test_random_films_have_contrast(tae):
    frames = pushed(tae, latents(1, 3, 16, 8, 8), 3).float()
    assert frames.std() > 16
    assert 32 < frames.mean() < 224


@pytest.mark.parametrize("name", ["tae", "wan"])
def test_streamed_decoding_equals_whole(name, request):
    codec = request.getfixturevalue(name)
    z = latents(2, 4, 16, 2, 3)
    whole = pushed(codec, z, 4)
    assert whole.shape == (2, 13, 16, 24, 3)
    assert whole.dtype == torch.uint8
    assert torch.equal(pushed(codec, z, [1, 2, 1]), whole)


def test_wan_stream_equals_diffusers(wan):
    z = latents(1, 3, 16, 2, 2)
    raw = wan.normaliser.to_codec(z).transpose(1, 2)
    with torch.no_grad():
        theirs = wan.vae.decode(raw).sample.transpose(1, 2) / 2 + 0.5
    assert torch.equal(pushed(wan, z, [2, 1]), codecs.to_uint8(theirs))


def test_wan_latents_decoded_together_equal_those_decoded_alone(wan):
    """In mid-film a chunk goes through the VAE at once; its cache is that of single steps."""
    z = latents(1, 9, 16, 2, 2)
    alone = pushed(wan, z, 1).int()
    together = pushed(wan, z, 3).int()
    assert alone.float().std() > 16
    assert (alone - together).abs().max() <= 1
    assert (alone - together).abs().float().mean() < 1e-3


def test_wan_decoder_in_mid_film_is_one_program(wan, monkeypatch):
    """The compiler's front end alone: its back end takes a minute and is not ours."""
    z = latents(1, 9, 16, 2, 2)
    eager = pushed(wan, z, 3).int()
    monkeypatch.setattr(wan, "steady", wan.steady)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    wan.compile_parts()
    assert wan.steady != wan._steady
    assert (pushed(wan, z, 3).int() - eager).abs().max() <= 1


def test_wan_streams_do_not_share_their_cache(wan):
    z = latents(1, 3, 16, 2, 2)
    a, b = wan.decoder(1), wan.decoder(1)
    a.push(z[:, :1])
    b.push(-z[:, :2])
    assert torch.equal(a.push(z[:, 1:]), pushed(wan, z, 3)[:, 1:])


def test_wan_encoding_is_normalised_by_the_vaes_own_statistics(wan):
    frames = pixels(1, 5, 16, 16, 3)
    z = wan.encode(frames)
    assert z.shape == (1, 2, 16, 2, 2)
    raw = wan.vae.encode(codecs.to_unit(frames).transpose(1, 2) * 2 - 1).latent_dist.mode()
    mean = torch.tensor(wan.vae.config.latents_mean)[:, None, None, None]
    std = torch.tensor(wan.vae.config.latents_std)[:, None, None, None]
    torch.testing.assert_close(z, ((raw - mean) / std).transpose(1, 2))


def test_encoding_in_parts_equals_whole(tae, monkeypatch):
    frames = pixels(1, 29, 16, 16, 3)
    whole = tae.encode(frames)
    monkeypatch.setattr(codecs, "PIXELS_AT_ONCE", 3 * 4 * 16 * 16)
    torch.testing.assert_close(tae.encode(frames), whole, rtol=0, atol=1e-6)
    z = latents(1, 8, 16, 2, 2)
    in_parts = pushed(tae, z, 8)
    monkeypatch.undo()
    assert torch.equal(in_parts, pushed(tae, z, 8))


def test_file_gives_the_statistics_of_unit_latents(tmp_path, tae):
    frames = pixels(2, 13, 32, 32, 3)
    raw = tae.encode(frames)
    mean, std = raw.mean((0, 1, 3, 4)), raw.std((0, 1, 3, 4))
    tensors = {**tae.net.state_dict(), "latents_mean": mean, "latents_std": std}
    path = tmp_path / "codec.safetensors"
    sha256 = save_weights(path, tensors, config={}, record={}, dtype=None)
    codec = codecs.tae_codec(CONFIG, load_weights(path), **CPU)
    assert codec.spec.sha256 == sha256
    z = codec.encode(frames)
    torch.testing.assert_close(z.mean((0, 1, 3, 4)), torch.zeros(16), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 1, 3, 4)), torch.ones(16), rtol=1e-4, atol=0)
    whole = pushed(codec, z, 4).int()
    assert (whole - pushed(tae, raw, 4).int()).abs().max() <= 1


def test_bf16_storage_changes_pixels_little(tmp_path, tae):
    statistics = {"latents_mean": torch.zeros(16), "latents_std": torch.ones(16)}
    path = tmp_path / "codec.safetensors"
    save_weights(path, {**tae.net.state_dict(), **statistics}, config={}, record={})
    assert load_weights(path).tensors["encoder.0.weight"].dtype == torch.bfloat16
    codec = codecs.tae_codec(CONFIG, load_weights(path), **CPU)
    z = latents(1, 2, 16, 4, 4)
    assert (pushed(codec, z, 2).int() - pushed(tae, z, 2).int()).abs().float().mean() < 3


def test_files_without_statistics_are_refused(tmp_path):
    path = tmp_path / "codec.safetensors"
    save_weights(path, TinyAutoencoder(CONFIG).state_dict(), config={}, record={})
    with pytest.raises(ValueError, match="lacks latents_mean"):
        codecs.tae_codec(CONFIG, load_weights(path), **CPU)


def test_misfits_are_refused(tae, tmp_path):
    with pytest.raises(ValueError, match="expected uint8"):
        tae.encode(torch.zeros(1, 5, 16, 16, 3))
    with pytest.raises(ValueError, match="B = 2"):
        tae.decoder(2).push(latents(1, 1, 16, 2, 2))
