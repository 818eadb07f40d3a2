"""From experiment and prompts to pixel frames, on the nano family."""

import dataclasses

import pytest
import torch

import cfmodel
from cfmodel import pipeline as pipelines
from cfmodel.config import Geometry
from cfmodel.io import weights as weights_files
from cfmodel.io.text import BytePooler
from cfmodel.io.weights import pin, save_weights
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.pipeline import Request, load, segment_of
from cfmodel.presets import preset

RED = (("a red ball", 60.0),)


@pytest.fixture(scope="module")
def nano():
    return load(preset("nano"), device="cpu")


def film(pipeline, request, chunks=3, row=0):
    requests = request if isinstance(request, list) else [request]
    return torch.cat([part[row] for part in pipeline.films(requests, chunks)])


def test_public_names():
    assert cfmodel.load is load
    assert cfmodel.preset is preset
    assert cfmodel.presets.presets("nano")["ours"] == cfmodel.preset("nano")
    assert cfmodel.Geometry is Geometry
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cfmodel.nothing


def test_chunks_of_a_film(nano):
    parts = list(nano.films([Request("a", RED, 0), Request("b", RED, 0)], 3))
    assert [tuple(part.shape) for part in parts] == [
        (2, 9, 64, 64, 3),
        (2, 12, 64, 64, 3),
        (2, 12, 64, 64, 3),
    ]
    assert all(part.dtype == torch.uint8 and not part.is_cuda for part in parts)


def test_a_film_depends_on_prompt_seed_and_text_alone(nano):
    first = film(nano, Request("a", RED, 0))
    assert torch.equal(first, film(nano, Request("a", RED, 0)))
    assert torch.equal(first, film(load(preset("nano"), device="cpu"), Request("a", RED, 0)))
    for other in (
        Request("b", RED, 0),
        Request("a", RED, 1),
        Request("a", (("a blue cube", 60.0),), 0),
    ):
        assert not torch.equal(first, film(nano, other))


def test_a_longer_film_begins_with_the_shorter(nano):
    short = film(nano, Request("a", RED, 0), 2)
    assert torch.equal(film(nano, Request("a", RED, 0), 4)[: len(short)], short)


def test_batch_mates_change_little(nano):
    together = film(nano, [Request("b", RED, 5), Request("a", RED, 0)], row=1)
    alone = film(nano, Request("a", RED, 0))
    assert (together.int() - alone.int()).abs().max() <= 2


def test_memory_is_read(nano):
    shorter = load(preset("nano/no-slow", ("memory.fast=3", "memory.sink=0")), device="cpu")
    a, b = (film(p, Request("a", RED, 0)) for p in (nano, shorter))
    assert torch.equal(a[:9], b[:9])
    assert not torch.equal(a[9:], b[9:])


def test_the_text_changes_with_the_segment(nano):
    segments = (("a red ball", 1.3125), ("a blue cube", 9.0))
    mixed = film(nano, Request("a", segments, 0), 4)
    red = film(nano, Request("a", RED, 0), 4)
    assert torch.equal(mixed[:21], red[:21])
    assert not torch.equal(mixed[21:], red[21:])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((5.0,), [0, 0, 0, 0, 0]),
        ((0.5625, 0.75, 9.0), [0, 1, 2, 2, 2]),
        ((1.0, 1.0), [0, 0, 1, 1, 1]),
        ((2.0625, 0.1, 9.0), [0, 0, 0, 2, 2]),
    ],
)
def test_segments_are_rounded_to_chunks(seconds, expected):
    assert [segment_of(seconds, chunk, Geometry()) for chunk in range(5)] == expected


def test_segments_follow_the_scripts_of_the_tiny_world():
    from cfmodel.tinyworld.scene import chunk_start

    chunks = (4, 3, 10, 6)
    ends = [sum(chunks[: index + 1]) for index in range(len(chunks))]
    starts = [0, *ends[:-1]]
    seconds = [(chunk_start(b) - chunk_start(a)) / 16 for a, b in zip(starts, ends, strict=True)]
    found = [segment_of(seconds, chunk, Geometry()) for chunk in range(ends[-1])]
    assert found == [index for index, count in enumerate(chunks) for _ in range(count)]


def test_record_and_weights(nano):
    record = nano.record()
    assert (record["device"], record["dtype"], record["attention"]) == ("cpu", "float32", "sdpa")
    assert record["codec"] == "nano-random"
    assert set(nano.weights) == {"student", "codec", "text"}
    assert all(len(sha256) == 64 for sha256 in nano.weights.values())


def test_what_cannot_be_loaded():
    with pytest.raises(ValueError, match="weights are not trained yet"):
        load(preset("nano/no-cdmd"))
    with pytest.raises(ValueError, match="not bundled"):
        load(preset("wan-1.3b"))
    with pytest.raises(ValueError, match="expected cpu, cuda"):
        load(preset("nano"), device="gpu")
    with pytest.raises(ValueError, match="expected auto, sdpa"):
        load(preset("nano"), device="cpu", attention="fast")  # pyright: ignore
    nano = preset("nano")
    narrow = dataclasses.replace(nano, text=dataclasses.replace(nano.text, tokens=2))
    with pytest.raises(ValueError, match="make them equal"):
        load(narrow)
    narrow = dataclasses.replace(nano, codec=dataclasses.replace(nano.codec, latent_channels=8))
    with pytest.raises(ValueError, match="make them equal"):
        load(narrow)


def test_codec_and_geometry_must_agree():
    nano = preset("nano")
    coarse = dataclasses.replace(nano.geometry, vae_stride=(4, 16, 16))
    with pytest.raises(ValueError, match="strides"):
        load(dataclasses.replace(nano, geometry=coarse))


def test_empty_requests_are_refused_before_anything_is_made(nano):
    with pytest.raises(ValueError, match="1 or more of each"):
        nano.films([], 3)
    with pytest.raises(ValueError, match="1 or more of each"):
        nano.films([Request("a", RED, 0)], 0)
    with pytest.raises(ValueError, match="without segments"):
        nano.films([Request("a", (), 0)], 3)
    with pytest.raises(ValueError, match="empty prompt"):
        nano.films([Request("a", (("", 1.0),), 0)], 3)


def test_bundled_files_make_films(tmp_path, monkeypatch):
    """Stored as bfloat16, the text encoder with its training heads, as training leaves them."""
    tiny = preset("tiny")
    statistics = {"latents_mean": torch.zeros(16), "latents_std": torch.ones(16)}
    parts = {
        "codec": {**TinyAutoencoder(tiny.codec).state_dict(), **statistics},
        "text": BytePooler(tiny.text, {"shape": 8}).state_dict(),
        "student": VideoTransformer(tiny.model, tiny.geometry).state_dict(),
    }
    shas = {
        name: save_weights(tmp_path / "tiny" / f"{name}.safetensors", state, config={}, record={})
        for name, state in parts.items()
    }
    pin(tmp_path)
    monkeypatch.setattr(weights_files, "assets", lambda: tmp_path)
    pipeline = load(tiny, device="cpu")
    assert pipeline.weights == shas
    assert pipeline.record()["codec"] == "tiny/codec"
    assert film(pipeline, Request("a", RED, 0), 1).shape == (9, 80, 128, 3)


@pytest.mark.gpu
def test_cuda_is_refused_where_there_is_none_and_used_where_there_is():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert load(preset("nano")).record()["dtype"] == "bfloat16"
    assert pipelines.choose_device(None).type == "cuda"


def test_a_history_is_continued(nano):
    """A film's own beginning as history: the memory holds what the codec keeps of it."""
    whole = film(nano, Request("a", RED, 0), 4)
    seen = nano.encode(whole[None, :21])
    memory = nano.memory(1)
    latents = list(nano.latents([Request("a", RED, 0)], 2, history=seen, memory=memory))
    assert len(latents) == 2
    assert memory.frames == 12
    assert [slot.frame for slot in memory.slots(0)][:3] == [0, 1, 2]
    parts = list(nano.films([Request("a", RED, 0)], 2, history=whole[None, :21]))
    assert [part.shape[1] for part in parts] == [12, 12]
    blank = torch.zeros_like(whole[None, :21])
    other = torch.cat(list(nano.films([Request("a", RED, 0)], 2, history=blank)), 1)
    assert not torch.equal(torch.cat(parts, 1), other)


def test_latents_as_history_give_the_same_film(nano):
    request = [Request("a", RED, 0)]
    whole = torch.cat(list(nano.latents(request, 5)), 1)
    rest = torch.cat(list(nano.latents(request, 2, history=whole[:, :9])), 1)
    torch.testing.assert_close(rest, whole[:, 9:], atol=1e-5, rtol=1e-5)


def test_histories_that_do_not_fit_are_refused(nano):
    request = [Request("a", RED, 0)]
    with pytest.raises(ValueError, match="less than a chunk"):
        nano.films(request, 1, history=torch.zeros(1, 5, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="resize"):
        nano.films(request, 1, history=torch.zeros(1, 9, 32, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiple of 3"):
        nano.latents(request, 1, history=torch.zeros(1, 4, 16, 8, 8))


def test_films_whose_scenes_begin_at_other_times_are_those_made_alone():
    pipeline = load(preset("nano/longlive-recache"), device="cpu")
    requests = [
        Request("a", (("a red ball", 3.0), ("a blue cube", 9.0)), 0),
        Request("b", (("a red ball", 6.0), ("a blue cube", 9.0)), 0),
    ]
    together = torch.cat(list(pipeline.latents(requests, 12)), dim=1)
    for film, request in zip(together, requests, strict=True):
        assert torch.equal(film[None], torch.cat(list(pipeline.latents([request], 12)), dim=1))
    with pytest.raises(ValueError, match="begin at other times"):
        pipeline.latents(requests, 12, memory=pipeline.memory(2))


def test_a_scene_may_begin_in_its_own_way():
    pipeline = load(preset("nano/longlive"), device="cpu")

    def film(*switches):
        request = Request("a", (("a red ball", 6.0), ("a blue cube", 9.0)), 0, switches)
        return torch.cat(list(pipeline.latents([request], 10)), dim=1)

    kept, recached = film(), film(None, "recache")
    # Chunk 8 begins nearest to 6 s; what comes before knows nothing of it.
    assert torch.equal(kept[:, :24], recached[:, :24])
    assert not torch.allclose(kept[:, 24:27], recached[:, 24:27])
    assert torch.equal(film("recache"), kept)
    with pytest.raises(ValueError, match="3 switches for 2 segments"):
        film(None, None, "cut")
    pipeline.attention = "flash"
    with pytest.raises(ValueError, match="use sdpa"):
        film(None, "recache")


def test_passes_encode_the_right_pixel_frame_again():
    pipeline = load(preset("nano/causvid"), device="cpu")
    seen = []
    encode = pipeline.codec.encode
    pipeline.codec.encode = lambda frames: (seen.append(frames), encode(frames))[1]  # type: ignore
    request = Request("a", (("a red ball", 60.0),), 0)
    film = torch.cat(list(pipeline.films([request], 8)), dim=1)
    # The first pass shows 81 pixel frames; nine of them are its last three latents.
    assert [tuple(frames.shape[:2]) for frames in seen] == [(1, 1)]
    assert torch.equal(seen[0][:, 0], film[:, 81 - 9])
