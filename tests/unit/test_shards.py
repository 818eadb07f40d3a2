"""Reading shards: every clip once an epoch for any ranks and workers, resuming, damage; prompts."""

import dataclasses
import json
import pickle
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from cfmodel.config import Geometry
from cfmodel.io.shards import ClipRow, Index, ShardWriter, load_index
from cfmodel.train import shards as reading
from cfmodel.train.prompts import chunk_texts, read_prompts
from cfmodel.train.shards import LatentShards, RankSampler, epoch_order, latent_stream

SETTINGS = {
    "codec": {"name": "c", "sha256": "5ha", "channels": 2, "strides": [4, 8, 8]},
    "fps": 16,
    "height": 32,
    "width": 32,
    "text": "text sha",
}
CLIPS = 11


def clip_row(number, latents):
    return ClipRow(
        film=f"{number}.mp4",
        sha256="",
        piece=0,
        latents=latents,
        first=0,
        frames=4 * latents - 3,
        source_first=0,
        source_end=9,
        source_fps=16.0,
        source_height=32,
        source_width=32,
        text=f"text {number % 4}",
    )


def write(folder, count=CLIPS, *, lengths=(5,), complete=True, **changed):
    """Clips whose latents are their number, in shards of four (no two captions are equal there)."""
    folder.mkdir()
    index = Index(settings={**SETTINGS, **changed})
    size = 2 * 2 * 4 * 4 * max(lengths) + 2 * 3 * 6
    writer = ShardWriter(folder, index, 4 * size)
    for number in range(count):
        latents = lengths[number % len(lengths)]
        x0 = torch.full((latents, 2, 4, 4), float(number), dtype=torch.bfloat16)
        text = torch.full((3, 6), float(number % 4), dtype=torch.bfloat16)
        writer.add(clip_row(number, latents), x0, text)
    index.complete = complete
    writer.flush()
    return folder


def number(clip):
    return int(clip.x0.flatten()[0])


def test_clips_come_back(tmp_path):
    shards = LatentShards([write(tmp_path / "a")])
    assert len(load_index(tmp_path / "a").shards) == 3
    assert len(shards) == CLIPS
    for k in (7, 0, 10, 3):
        x0, texts, text = shards[k]
        assert x0.dtype == torch.bfloat16
        assert torch.equal(x0, torch.full((5, 2, 4, 4), float(k)).bfloat16())
        assert texts == (f"text {k % 4}",)
        assert torch.equal(text, torch.full((3, 6), float(k % 4)).bfloat16())
    copy = pickle.loads(pickle.dumps(shards))
    assert torch.equal(copy[4].x0, shards[4].x0)
    assert shards.films == [[k] for k in range(CLIPS)]


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "OPEN_SHARDS", 2)
    shards = LatentShards([write(tmp_path / "a", 24)])
    for k in (0, 4, 8, 12, 16, 20, 0):
        assert number(shards[k]) == k
        assert len(shards._open) <= 2


def test_parts_of_clips_are_read_alone(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    writer = ShardWriter(folder, Index(settings={**SETTINGS, "text": None}, complete=True), 2**20)
    x0 = torch.arange(6.0).bfloat16()[:, None, None, None].expand(-1, 2, 4, 4)
    writer.add(clip_row(0, 6), x0.contiguous(), None)
    writer.flush()
    shards = LatentShards([folder])
    assert torch.equal(shards.latents(0, 2, 5), x0[2:5])
    assert torch.equal(shards[0].x0, x0)


def test_hash_tells_of_other_clips_and_not_of_their_place(tmp_path):
    folders = [write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", CLIPS - 1)]
    first, same, other = (LatentShards([folder]).sha256 for folder in folders)
    assert first == same != other


def test_what_cannot_be_read(tmp_path):
    good = write(tmp_path / "good")
    for key, value in (("fps", 24), ("codec", {"name": "c", "sha256": "x"})):
        other = write(tmp_path / f"other-{key}", **{key: value})
        with pytest.raises(ValueError, match=f"was prepared with another {key} than"):
            LatentShards([good, other])
    assert len(LatentShards([good, write(tmp_path / "same", shard_mib=9)])) == 2 * CLIPS
    with pytest.raises(ValueError, match="is not finished; run cfmodel prepare again"):
        LatentShards([write(tmp_path / "begun", complete=False)])
    with pytest.raises(ValueError, match="holds no prepared films"):
        LatentShards([tmp_path])
    with pytest.raises(ValueError, match=r"no clip in .*none; prepare films"):
        LatentShards([write(tmp_path / "none", 0)])
    with pytest.raises(ValueError, match="no clip in nothing"):
        LatentShards([])
    tree = json.loads((good / "index.json").read_text())
    (good / "index.json").write_text(json.dumps({**tree, "schema": 2}))
    with pytest.raises(ValueError, match="schema 2, but this version reads 1"):
        LatentShards([good])


def test_damaged_shards(tmp_path):
    folder = write(tmp_path / "a")
    shard = folder / "shard-00001.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"x")
    assert LatentShards([folder]).verify() == [shard]
    shard.write_bytes(b"\xff" * len(data))
    shards = LatentShards([folder])
    assert number(shards[0]) == 0
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is damaged"):
        shards[4]
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing or not \d+ bytes"):
        LatentShards([folder])


def test_latents_of_another_preset_are_refused(tmp_path):
    shards = LatentShards([write(tmp_path / "a")])
    fitting = {"codec_sha256": "5ha", "channels": 2, "geometry": Geometry(height=32, width=32)}
    shards.check(**fitting)
    for key, wrong, words in (
        ("codec_sha256", "other", "codec 5ha, but this run has other; prepare them with"),
        ("channels", 16, "channels 2, but this run has 16"),
    ):
        with pytest.raises(ValueError, match=f"prepared with {words}"):
            shards.check(**{**fitting, key: wrong})
    for key, value in (("fps", 64), ("height", 64), ("width", 64), ("vae_stride", (8, 8, 8))):
        other = dataclasses.replace(fitting["geometry"], **{key: value})
        with pytest.raises(ValueError, match=f"prepared with {key.removeprefix('vae_')}"):
            shards.check(**{**fitting, "geometry": other})


# --- order ----------------------------------------------------------------------------------------


def taken(count, world, seed, length):
    """The first ``length`` indices of each rank."""
    return [
        list(islice(RankSampler(count, rank=rank, world=world, seed=seed), length))
        for rank in range(world)
    ]


@settings(deadline=None)
@given(
    count=st.integers(1, 40),
    world=st.integers(1, 9),
    seed=st.integers(0, 9),
    epochs=st.integers(1, 3),
)
def test_every_index_once_an_epoch(count, world, seed, epochs):
    # After count steps of every rank there were exactly as many epochs as there are ranks.
    ranks = taken(count, world, seed, count)
    places = [ranks[place % world][place // world] for place in range(count * world)]
    for epoch in range(min(epochs, world)):
        part = places[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
        assert part == epoch_order(count, seed, epoch).tolist()
        first = RankSampler(count, rank=epoch * count % world, world=world, seed=seed)
        assert first.epoch(epoch * count // world) == epoch


@settings(deadline=None)
@given(
    count=st.integers(1, 40),
    ranks=st.integers(1, 5).flatmap(
        lambda world: st.tuples(st.integers(0, world - 1), st.just(world))
    ),
    stop=st.integers(0, 90),
)
def test_resuming_is_going_on(count, ranks, stop):
    rank, world = ranks
    whole = list(islice(RankSampler(count, rank=rank, world=world, seed=1), stop + 20))
    resumed = RankSampler(count, rank=rank, world=world, seed=1, position=stop)
    assert list(islice(resumed, 20)) == whole[stop:]


def test_epochs_and_seeds_differ():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"rank": 2}, {"rank": -1}, {"position": -1}, {"world": 0}]
)
def test_samplers_that_cannot_be(wrong):
    options = {"count": 3, "rank": 0, "world": 2, "seed": 0, "position": 0, **wrong}
    with pytest.raises(ValueError, match=r"expected count >= 1, 0 <= rank < world and position"):
        RankSampler(options.pop("count"), **options)


class Numbers(Dataset[int]):
    def __getitem__(self, number):
        return number


def test_streams():
    state = torch.get_rng_state()

    def read(first=0, **options):
        stream = latent_stream(Numbers(), CLIPS, list, batch=3, seed=5, first=first, **options)
        return list(islice(stream, 9))

    def place(number):
        return divmod(number, CLIPS)

    alone = read()
    whole = [place(number) for batch in alone for number in batch]
    order = list(islice(RankSampler(CLIPS, rank=0, world=1, seed=5), 27))
    assert whole == [(k // CLIPS, index) for k, index in enumerate(order)]
    assert read(workers=2) == alone
    assert read(first=4)[:5] == alone[4:]
    ranks = [read(rank=rank, world=2) for rank in (0, 1)]
    first, second = ([place(n) for batch in batches for n in batch] for batches in ranks)
    mixed = [n for pair in zip(first, second, strict=True) for n in pair]
    assert mixed[:27] == whole
    assert torch.equal(torch.get_rng_state(), state)


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_of_a_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a red ball\r\n\n  grün\u2028und \n a red ball", encoding="utf-8-sig")
    prompts = read_prompts(path, max_bytes=64)
    assert [text for ((text, _),) in prompts] == ["a red ball", "grün\u2028und", "a red ball"]
    scripts = chunk_texts(prompts, chunks=4, geometry=Geometry())
    assert scripts.texts == [("a red ball",) * 4, ("grün\u2028und",) * 4, ("a red ball",) * 4]
    assert scripts.returns.shape == (3, 4)
    assert not scripts.returns.any()


def test_prompts_of_segments(tmp_path):
    path = tmp_path / "p.jsonl"
    parts = [{"text": "a", "seconds": 1.5}, {"text": "b", "seconds": 1}]
    lines = [{"id": "x", "segments": parts}, {"text": "c", "more": 1}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prompts = read_prompts(path, max_bytes=8)
    scripts = chunk_texts(prompts, chunks=4, geometry=Geometry())
    assert scripts.texts == [("a", "a", "b", "b"), ("c",) * 4]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"good\ngr\xfcn", r"is not UTF-8 \(byte 7\)"),
        ("p.txt", b"good\n" + b"x" * 65, "line 2: prompt of 65 bytes"),
        ("p.jsonl", b"{", "line 1: not JSON"),
        ("p.jsonl", b"[]", "line 1: expected text, or segments"),
        ("p.jsonl", b'{"text": 3}', "line 1: expected text, or segments"),
        ("p.jsonl", b'{"text": " "}', "line 1: empty prompt"),
        ("p.jsonl", b'{"segments": []}', "line 1: expected one segment or more"),
        ("p.jsonl", b'{"segments": [{"text": "a", "seconds": 0}]}', "more than 0 seconds"),
        ("p.jsonl", b'{"segments": [{"text": "a", "seconds": "x"}]}', "expected text, or segments"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, max_bytes=64)
    with pytest.raises(ValueError, match=r"cannot read .*none.txt: No such file"):
        read_prompts(tmp_path / "none.txt", max_bytes=64)
