"""Films to shards: what is kept and refused, resuming after a kill at any moment, the verb."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cfmodel import cli, pipeline, presets
from cfmodel import prepare as prepares
from cfmodel.io.captions import list_films
from cfmodel.io.film import frames
from cfmodel.io.shards import load_index
from cfmodel.prepare import Cut, prepare
from cfmodel.tinyworld.film import film as world_film
from cfmodel.tinyworld.scene import sample_scene
from cfmodel.train.shards import LatentShards
from cfmodel.video import FilmWriter

ROOT = Path(__file__).resolve().parents[2]
NANO = presets.ours("nano")
CUT = Cut(latents=5, min_latents=5, min_s=0.5, shard_mib=1)
"""17 pixel frames a clip, a little more than a second."""


def noise_film(path, seconds, *, fps=16, height=64, width=64, seed=0):
    """A film of blocks that change all the time."""
    noise = np.random.default_rng(seed)
    with FilmWriter(path, fps=fps, height=height, width=width) as writer:
        for _ in range(round(seconds * fps)):
            blocks = noise.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
            writer.write(blocks.repeat(16, 0).repeat(16, 1)[None])
    return path


def caption(path, text):
    path.with_suffix(".txt").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "films"
    (folder / "more").mkdir(parents=True)
    sizes = [(2.4, 16, 64, 64), (3.5, 24, 96, 128), (1.2, 30, 80, 64), (4.4, 12, 64, 160)]
    for number, (seconds, fps, height, width) in enumerate(sizes):
        path = folder / f"film {number}.mp4"
        noise_film(path, seconds, fps=fps, height=height, width=width, seed=number)
        caption(path, f"film {number}\n of blocks ")
    caption(noise_film(folder / "more" / "ünder.mp4", 2.4, seed=9), "größer")
    return folder


@pytest.fixture
def films(made, tmp_path):
    """A folder of five good films of different rates, sizes and lengths."""
    return shutil.copytree(made, tmp_path / "films")


@pytest.fixture(scope="module")
def nano():
    return {"experiment": NANO, "codec": pipeline.load_codec(NANO, device="cpu")}


def listed(folder):
    return list_films(folder, file_key="file", caption_key="caption")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_films_become_clips(films, tmp_path, nano):
    out = tmp_path / "out"
    result = prepare(listed(films), out, cut=CUT, text=None, **nano)
    assert result["refused"] == {}
    assert (result["films"], result["clips"], result["latents"]) == (5, 12, 60)
    rows = [row for shard in load_index(out).shards for row in shard.clips]
    counted = {row.film: (row.piece, row.first) for row in rows}
    assert list(counted) == [*(f"film {k}.mp4" for k in range(4)), "more/ünder.mp4"]
    assert [piece for piece, _ in counted.values()] == [1, 2, 0, 3, 1]
    second = next(row for row in rows if row.film == "film 1.mp4" and row.piece == 1)
    assert (second.first, second.frames, second.latents) == (17, 17, 5)
    # 17 / 16 s of 24 pictures a second.
    assert (second.source_first, second.source_end) == (25, 50)
    assert (second.source_fps, second.source_height, second.source_width) == (24.0, 96, 128)
    assert second.text == "film 1 of blocks"
    shards = LatentShards([out])
    for k, row in enumerate(shards.rows):
        shown = list(frames(films / row.film, fps=16, height=64, width=64))
        part = np.stack([s.rgb_YXC for s in shown[row.first : row.first + row.frames]])
        expected = nano["codec"].encode(torch.from_numpy(part)[None])[0].bfloat16()
        assert torch.equal(shards[k].x0, expected)


def test_decoded_clips_show_the_film(tmp_path):
    tiny = presets.ours("tiny")
    geometry = tiny.geometry
    path = tmp_path / "world.mp4"
    with FilmWriter(
        path, fps=32, height=2 * geometry.height, width=2 * geometry.width, crf=8
    ) as writer:
        for block in world_film(sample_scene(3, chunks=20), 17):
            # Twice the rate and size, which preparing undoes.
            writer.write(block.numpy().repeat(2, 0).repeat(2, 1).repeat(2, 2))
    caption(path, "a red ball")
    codec = pipeline.load_codec(tiny, device="cpu")
    prepare(listed(tmp_path), tmp_path / "out", experiment=tiny, cut=CUT, codec=codec, text=None)
    (clip,) = LatentShards([tmp_path / "out"])
    assert abs(clip.x0.float().std() - 1) < 0.5
    decoded = codec.decoder(1).push(clip.x0[None])[0].float()
    truth = torch.cat(list(world_film(sample_scene(3, chunks=20), 17))).float()
    loss = (decoded - truth).square().mean()
    psnr = 10 * torch.log10(255**2 / loss)
    # Measured 29.8 dB, which is what the codec loses by itself; one row too low it would be 26.6,
    # one pixel frame too late 27.6.
    assert psnr > 28.7


def test_the_end_of_a_film_may_make_a_shorter_clip(films, tmp_path, nano):
    cut = Cut(latents=5, min_latents=2, min_s=0.5, shard_mib=1)
    prepare(listed(films), tmp_path / "out", cut=cut, text=None, **nano)
    rows = LatentShards([tmp_path / "out"]).rows
    lengths = [row.latents for row in rows if row.film == "film 1.mp4"]
    assert lengths == [5, 5, 5, 2]
    assert [row.frames for row in rows if row.film == "film 1.mp4"] == [17, 17, 17, 5]


def test_bad_films_are_listed_and_stop_nothing(films, tmp_path, nano):
    good = films / "film 0.mp4"
    data = good.read_bytes()
    (films / "a cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    (films / "b text.mp4").write_text("no film")
    noise_film(films / "c brief.mp4", 0.4)
    noise_film(films / "d short.mp4", 0.9)
    noise_film(films / "e long caption.mp4", 1.2)
    for path in films.glob("? *.mp4"):
        caption(path, "x" * 300 if path.name.startswith("e") else "a text")
    noise_film(films / "f silent.mp4", 1.2)
    (noise_film(films / "g latin.mp4", 1.2)).with_suffix(".txt").write_bytes(b"gr\xfcn")
    caption(noise_film(films / "h empty.mp4", 1.2), " \n")
    result = prepare(listed(films), tmp_path / "out", cut=CUT, text=None, **nano)
    assert (result["films"], result["clips"]) == (5, 12)
    reasons = {
        "a cut.mp4": "truncated: breaks off",
        "b text.mp4": "cannot be decoded: Invalid data",
        "c brief.mp4": "too short: 0.38 s, expected 0.5 s or more",
        "d short.mp4": "too short: 14 frames at 16 a second, expected 17 for 5 latents",
        "e long caption.mp4": "prompt of 300 bytes",
        "f silent.mp4": "no caption: expected f silent.txt beside it",
        "g latin.mp4": "caption is not UTF-8",
        "h empty.mp4": "no caption: it is empty",
    }
    assert result["refused"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert result["refused"][name].startswith(reason)
    index = load_index(tmp_path / "out")
    assert index.refused == result["refused"]
    assert index.complete


def test_a_film_damaged_in_its_middle_keeps_what_comes_before(films, tmp_path, nano):
    path = noise_film(films / "damaged.mp4", 8)
    caption(path, "blocks")
    data = bytearray(path.read_bytes())
    at = len(data) * 3 // 4
    data[at : at + 6000] = bytes(6000)
    path.write_bytes(data)
    out = tmp_path / "out"
    result = prepare(listed(films), out, cut=CUT, text=None, **nano)
    said = result["refused"]["damaged.mp4"]
    kept = [row for row in LatentShards([out]).rows if row.film == "damaged.mp4"]
    assert 1 <= len(kept) < 7
    assert said.endswith(f"clips kept: {len(kept)}")
    before = contents(out)
    assert prepare(listed(films), out, cut=CUT, text=None, **nano) == result
    assert contents(out) == before


def test_mended_and_new_films_are_added(films, tmp_path, nano):
    out = tmp_path / "out"
    text = films / "film 2.txt"
    kept = text.read_bytes()
    text.unlink()
    assert list(prepare(listed(films), out, cut=CUT, text=None, **nano)["refused"]) == [
        "film 2.mp4"
    ]
    before = contents(out)
    text.write_bytes(kept)
    caption(noise_film(films / "zz.mp4", 1.2), "the last")
    result = prepare(listed(films), out, cut=CUT, text=None, **nano)
    assert (result["films"], result["clips"], result["refused"]) == (6, 13, {})
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name != "index.json")


THREE_CLIPS = 31 * 1024
"""A clip is 5 x 16 x 8 x 8 bfloat16, 10 KiB."""
HEADER = 4096


def prepare_bounded(films, out, nano):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepares, "MIB", THREE_CLIPS)
        prepare(listed(films), out, cut=CUT, text=None, **nano)


def test_shards_are_bounded_and_need_not_end_with_a_film(films, tmp_path, nano):
    out = tmp_path / "out"
    prepare_bounded(films, out, nano)
    index = load_index(out)
    assert [len(shard.clips) for shard in index.shards] == [3, 3, 3, 3]
    assert all(shard.bytes < THREE_CLIPS + HEADER for shard in index.shards)
    assert sorted(contents(out)) == ["index.json", *(shard.name for shard in index.shards)]


CHILD = """
import itertools, os, signal, sys
from cfmodel import cli, prepare
kill_at, writes, fsync = int(sys.argv.pop(1)), itertools.count(1), os.fsync
def deadly(file):
    if next(writes) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = deadly
prepare.MIB = int(sys.argv.pop(1))
cli.main()
"""


def test_a_killed_run_ends_with_the_same_files(films, tmp_path, nano):
    """Killed while it writes a shard, and while it writes the index that names the next one."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare_bounded(films, whole, nano)
    options = ["--preset", "nano", "--latents", 5, "--min-seconds", 0.5, "--shard-mib", 1]
    command = ["prepare", films, "--out", out, *options, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # What a run leaves that is killed while it writes its first index.
    out.mkdir()
    (out / ".index.json.00000000.part").write_text("{")
    # Writes of a run are its first index, then a shard and an index in turn.
    for write, named in ((4, 1), (5, 2)):
        run = [sys.executable, "-c", CHILD, str(write), str(THREE_CLIPS), *map(str, command)]
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(out.glob(".*.part"))) == 1
        index = load_index(out)
        assert len(index.shards) == named
        assert not index.complete
        with pytest.raises(ValueError, match="is not finished"):
            LatentShards([out])
    prepare_bounded(films, out, nano)
    assert contents(out) == contents(whole)


def test_a_folder_belongs_to_one_setting(films, tmp_path, nano):
    out = tmp_path / "out"
    prepare(listed(films), out, cut=CUT, text=None, **nano)
    before = contents(out)
    other = Cut(latents=4, min_latents=4, min_s=0.5, shard_mib=1)
    with pytest.raises(ValueError, match=r"was prepared with latents=5, not 4; choose another"):
        prepare(listed(films), out, cut=other, text=None, **nano)
    assert contents(out) == before
    (out / "shard-00000.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard-00000.safetensors is not as it was written"):
        prepare(listed(films), out, cut=CUT, text=None, **nano)
    with pytest.raises(ValueError, match=r"holds film 0.mp4 and no index.json"):
        prepare(listed(films), films, cut=CUT, text=None, **nano)
    (out / "index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json is no index of prepared films"):
        prepare(listed(films), out, cut=CUT, text=None, **nano)


def test_a_film_that_changes_between_runs_is_refused(films, tmp_path, nano):
    """Its first clip is in a shard already; clips of two files are never mixed."""
    out = tmp_path / "out"

    class Stop(Exception):  # noqa: N818
        pass

    def stopping(*_):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepares, "MIB", THREE_CLIPS)
        # The first shard holds two clips of film 0 and one of the three of film 1.
        encoded = 0
        real = prepares._Encoder._latents

        def latents(self, piece):
            nonlocal encoded
            encoded += 1
            return real(self, piece) if encoded < 5 else stopping()

        patch.setattr(prepares._Encoder, "_latents", latents)
        with pytest.raises(Stop):
            prepare(listed(films), out, cut=CUT, text=None, **nano)
    assert [len(shard.clips) for shard in load_index(out).shards] == [3]
    noise_film(films / "film 1.mp4", 3.5, seed=77)
    result = prepare(listed(films), out, cut=CUT, text=None, **nano)
    assert result["refused"] == {
        "film 1.mp4": "changed since its first clips were made; choose another --out"
    }


class Lengths:
    """A text encoder that knows how long a text is."""

    sha256 = "lengths"

    def encode(self, texts):
        return torch.tensor([[[float(len(text))] * 3] * 2 for text in texts])


def test_parts_are_read_together(films, tmp_path, nano):
    text = Lengths()
    folders = []
    for part in (1, 2):
        cut = Cut(latents=5, min_latents=5, min_s=0.5, shard_mib=1, part=(part, 2))
        folders.append(tmp_path / f"part{part}")
        prepare(listed(films), folders[-1], cut=cut, text=text, **nano)
    shards = LatentShards(folders)
    assert len(shards) == 12
    assert len({(row.film, row.piece) for row in shards.rows}) == 12
    clip, row = shards[0], shards.rows[0]
    expected = text.encode([row.text])[0].bfloat16()
    assert torch.equal(clip.text, expected)
    assert clip.texts == (row.text,)


# --- lists of films -------------------------------------------------------------------------------


def test_tables_list_films(tmp_path):
    rows = [
        ("a.mp4", "größer, rot"),
        ("sub/b.mp4", "two\nlines\u2028of text"),
        ("./a.mp4", "once\u2028again"),
    ]
    with (tmp_path / "t.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "n", "prompt"])
        table.writerows((name, 1, text) for name, text in rows)
    lines = [json.dumps({"video": name, "prompt": text}) for name, text in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("t.csv", "t.jsonl"):
        found = list_films(tmp_path / name, file_key="video", caption_key="prompt")
        assert [(film.id, film.text, film.reason) for film in found] == [
            ("a.mp4", "größer, rot", ""),
            ("sub/b.mp4", "two lines of text", ""),
            ("a.mp4", "once again", "listed twice"),
        ]
        assert found[1].path == tmp_path / "sub" / "b.mp4"
    (tmp_path / "root").mkdir()
    found = list_films(
        tmp_path / "t.csv", root=tmp_path / "root", file_key="video", caption_key="prompt"
    )
    assert found[0].path == tmp_path / "root" / "a.mp4"


def test_bad_lines_of_a_table_spoil_themselves_alone(tmp_path):
    lines = [
        b'{"file": "a.mp4", "caption": "good"}',
        b"{broken",
        b"[1]",
        b'{"caption": "no film"}',
        b'{"file": "b.mp4"}',
        b'{"file": "c.mp4", "caption": 3}',
        b'{"file": "d.mp4", "caption": "gr\xfcn"}',
        b'{"file": "gr\xfcn.mp4", "caption": "green"}',
        b"",
        b'{"file": "e.mp4", "caption": "good"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\r\n".join(lines))
    found = list_films(tmp_path / "t.jsonl", file_key="file", caption_key="caption")
    assert [(film.id, film.reason.partition(" (")[0]) for film in found] == [
        ("a.mp4", ""),
        ("t.jsonl, line 2", "not JSON"),
        ("t.jsonl, line 3", "expected a JSON object"),
        ("t.jsonl, line 4", "names no film"),
        ("b.mp4", "no caption: it is empty"),
        ("c.mp4", "caption is int; expected a text"),
        ("d.mp4", "caption is not UTF-8"),
        ("t.jsonl, line 8", "its film's name is not UTF-8"),
        ("e.mp4", ""),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.csv", None, "cannot read .*none.csv: No such file"),
        ("t.txt", "a", "expected a folder of films, or a table .csv, .jsonl"),
        ("t.csv", "", "has no column 'file', but none"),
        ("t.csv", "file,text\na,b\n", "has no column 'caption', but file, text; name it with"),
        ("t.csv", "file,caption\n", "lists no films"),
        ("t.csv", f"file,caption\na,{'x' * 200_000}\n", "line 1: no CSV"),
        ("t.jsonl", "\n", "lists no films"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_text(data)
    with pytest.raises(ValueError, match=message):
        list_films(tmp_path / name, file_key="file", caption_key="caption")
    with pytest.raises(ValueError, match=r"holds no films; expected files .mp4"):
        listed(tmp_path)


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cfmodel", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    return call


SHORT = ("--latents", 5, "--min-seconds", 0.5, "--device", "cpu", "--preset", "nano")


def test_verb(run, films, tmp_path, caplog):
    caplog.set_level("INFO")
    dry = run(films, "--out", "out", *SHORT, "--dry-run", "--json")
    assert dry[0] == 0
    assert not (tmp_path / "out").exists()
    told = json.loads(dry[1])
    assert (told["films"], told["clips"], told["finished"]) == (5, 12, 0)
    code, out, _ = run(films, "--out", "out", *SHORT)
    assert code == 0
    assert out.startswith("out: 5 films, 12 clips, 60 latents, 1 shards")
    assert "film 5/5" in caplog.text
    before = contents(tmp_path / "out")
    caption(films / "film 1.mp4", "")
    (films / "none.mp4").write_text("x")
    code, out, _ = run(films, "--out", "out", *SHORT, "--json")
    assert code == 3
    assert list(json.loads(out)["refused"]) == ["film 1.mp4", "none.mp4"]
    after = contents(tmp_path / "out")
    assert {n: d for n, d in after.items() if n != "index.json"} == {
        n: d for n, d in before.items() if n != "index.json"
    }
    code, out, _ = run(films, "--out", "out", *SHORT, "--dry-run")
    assert code == 3
    assert out.splitlines()[1:] == [
        "refused film 1.mp4: no caption: it is empty",
        "refused none.mp4: no caption: expected none.txt beside it",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "wan-1.3b", "--base", "no/"), "no weights at no/; expected a file, a folder"),
        (("--preset", "nano", "--latents", 0), "min_latents=0, latents=0: expected"),
        (("--preset", "nano", "--min-latents", 43), "min_latents=43, latents=42: expected"),
        (("--preset", "nano", "--shard-mib", 0), "shard_mib=0: expected"),
        (("--preset", "nano", "--min-seconds", "nan"), "min_s=nan"),
        (("--preset", "nano", "--part", "3/2"), "part=(3, 2): expected"),
        (("--preset", "nano", "--part", "half"), "--part half: expected two numbers"),
        (("--preset", "nano", "--device", "cuda"), "no CUDA GPU here"),
        (("--preset", "nano", "--out", "films/film 0.mp4"), "is a file; name a folder"),
    ],
)
def test_verb_refuses_in_one_line(run, films, tmp_path, options, message):
    if torch.cuda.is_available() and "cuda" in options:
        pytest.skip("there is a GPU")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(films, "--out", "out", *options)
    assert (code, out) == (2, "")
    assert err.startswith("cfmodel: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_verb_tells_every_minute_and_when_it_is_interrupted(run, films, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(prepares, "QUIET_S", 0.0)
    real = prepares._Encoder._latents

    def latents(self, piece):
        if piece.first:
            raise KeyboardInterrupt
        return real(self, piece)

    monkeypatch.setattr(prepares._Encoder, "_latents", latents)
    code, out, err = run(films, "--out", "out", *SHORT)
    assert (code, out) == (130, "")
    assert err.endswith("interrupted; the same command goes on behind the last whole shard\n")
    assert [record.message[:8] for record in caplog.records] == ["film 0/5"]


def test_verb_on_a_full_disk(run, films, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("cfmodel.io.shards.write_atomic", full)
    code, _, err = run(films, "--out", "out", *SHORT)
    assert code == 2
    assert "No space left on device; free the disk or choose another --out" in err
