"""Prepared films and files of prompts in training: windows, context clips, refusals, the verb."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cfmodel import cli
from cfmodel.config import Geometry
from cfmodel.devices import World
from cfmodel.io.shards import ClipRow, Index, ShardWriter
from cfmodel.io.weights import file_sha256
from cfmodel.train import sources
from cfmodel.train.data import CONTEXT, SINK, SLOW, TARGET, context_clips
from cfmodel.train.draws import Draws
from cfmodel.train.errors import Recycling
from cfmodel.train.flow_stages import FlowStage
from cfmodel.train.pool import context_units
from cfmodel.train.prepared import (
    TAIL,
    ContextTakes,
    WindowTakes,
    film_context_units,
    split,
    stack_takes,
    window_units,
)
from cfmodel.train.shards import LatentShards
from cfmodel.train.sources import Resources, clips_of, texts_of
from cfmodel.train.teacher import ContextTeacher
from cfmodel.video import FilmWriter
from tests.helpers.nano import NANO, nano_model, seeded
from tests.helpers.stages import CPU, MODEL, write_assets

SIZE = NANO.geometry.latent_size
FILM, CLIP, LATENT = range(3)
"""Channels that say what a latent is: its film, clip and place, all exact in bfloat16."""
DRAWS = 400


def settings(codec_sha256="", geometry=NANO.geometry, **changed):
    codec = {"name": "c", "sha256": codec_sha256, "channels": MODEL.latent_channels}
    sizes = {"fps": geometry.fps, "height": geometry.height, "width": geometry.width}
    strides = {"strides": list(geometry.vae_stride)}
    return {"codec": {**codec, **strides}, "text": None, **sizes, **changed}


def caption(film):
    return f"film {film} shows {'many ' * film}things"


def write(folder, films, *, complete=True, said=None, **about):
    """Films by the lengths of their clips; every latent says in three channels which one it is."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, Index(settings=settings(**about), complete=complete), 2**18)
    for film, lengths in enumerate(films):
        for clip, latents in enumerate(lengths):
            x = seeded(latents, MODEL.latent_channels, *SIZE, seed=100 * film + clip)
            x[:, FILM], x[:, CLIP] = film, clip
            x[:, LATENT] = torch.arange(latents)[:, None, None]
            row = ClipRow(
                film=f"{film}.mp4", sha256=f"hash {film}", piece=clip, latents=latents, first=0,
                frames=4 * latents - 3, source_first=0, source_end=9, source_fps=16.0,
                source_height=64, source_width=64, text=said or caption(film),
            )  # fmt: skip
            writer.add(row, x.bfloat16(), None)
    writer.flush()
    return folder


def names(x):
    """Film, clip and place of latents (F, C, X, Y)."""
    return [tuple(map(int, latent[:3, 0, 0])) for latent in x]


class Coder:
    """Embeds a text as its length; remembers what it encodes again."""

    def __init__(self):
        self.seen = []

    def embed(self, texts):
        return torch.tensor([[[float(len(text))]] for text in texts])

    def encode(self, rgb):
        return torch.zeros(len(rgb), 1 + (rgb.shape[1] - 1) // 4, MODEL.latent_channels, *SIZE)

    def reencode(self, latents):
        self.seen += [names(x) for x in latents]
        return torch.full_like(latents[:, :1], -1.0)


# --- windows --------------------------------------------------------------------------------------


def test_windows_cover_their_film_and_say_what_it_shows(tmp_path):
    shards = LatentShards([write(tmp_path / "a", [[9, 7], [5], [6]])])
    fit = WindowTakes.fitting(shards, 6)
    assert fit == [0, 1, 3]
    takes = WindowTakes(shards, fit, latents=6, chunk=3, stream="s")
    shown = set()
    for number in range(DRAWS):
        columns, texts = takes[number]
        film, clip, start = names(columns["x"])[SINK]
        assert (film, clip) == [(0, 0), (0, 1), (2, 0)][number % 3]
        lead = int(columns["lead"])
        assert lead == min(start, SINK)
        told = names(columns["x"])[SINK - lead :]
        assert told == [(film, clip, start - lead + k) for k in range(lead + 6)]
        assert not columns["x"][: SINK - lead].any()
        assert texts == (caption(film),) * 2
        shown.update(told[lead:])
    lengths = {(0, 0): 9, (0, 1): 7, (2, 0): 6}
    assert shown == {(*clip, k) for clip, count in lengths.items() for k in range(count)}


def test_takes_depend_on_their_number_and_the_stream_alone(tmp_path):
    shards = LatentShards([write(tmp_path / "a", [[40], [40]])])

    def starts(stream, numbers):
        takes = WindowTakes(shards, [0, 1], latents=6, chunk=3, stream=stream)
        return {number: names(takes[number].columns["x"])[SINK][LATENT] for number in numbers}

    there = starts("s", range(20))
    assert starts("s", reversed(range(20))) == there
    assert starts("other", range(20)) != there
    assert len(set(there.values())) > 5


def test_windows_in_mid_clip_begin_with_a_reencoded_frame(tmp_path):
    shards, coder = LatentShards([write(tmp_path / "a", [[12], [6]])]), Coder()
    takes = WindowTakes(shards, [0, 1], latents=6, chunk=3, stream="s")
    units = window_units(coder, CPU)(stack_takes([takes[number] for number in range(80)]))
    assert units["x0"].shape == (80, 6, MODEL.latent_channels, *SIZE)
    assert units["text"].shape[:2] == (80, 2)
    leads = set()
    for number in range(80):
        x, (film, _, second) = units["x0"][number], names(units["x0"][number])[1]
        again = (x[0] == -1).all()
        assert again == (second > 1)
        leads.add(min(second - 1, SINK))
        if again:
            start = second - 1
            before = [(film, 0, k) for k in range(max(0, start - SINK), start + 1)]
            assert before in coder.seen
        assert torch.equal(x[1:], shards.latents(number % 2, second, second + 5).float())
        assert (units["text"][number] == len(caption(film))).all()
    assert leads == {0, 1, 2, 3}


# --- context clips --------------------------------------------------------------------------------


def test_context_clips_are_of_one_film_and_cover_it(tmp_path):
    lengths = [[42, 42, 29], [31], [30, 27], [29]]
    shards = LatentShards([write(tmp_path / "a", lengths)])
    fit = ContextTakes.fitting(shards)
    assert fit == [0, 1, 2, 3, 4]
    takes = ContextTakes(shards, fit, chunk=3, stream="s")
    shown, counts = set(), set()
    for number in range(2 * DRAWS):
        columns, texts = takes[number]
        x0, valid = columns["x0"], columns["valid"]
        assert x0.shape == (CONTEXT + TARGET, MODEL.latent_channels, *SIZE)
        told = names(x0)
        film, clip, start = told[SINK + SLOW]
        assert (film, clip) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)][number % 5]
        assert told[:SINK] == [(film, 0, k) for k in range(SINK)]
        assert told[SINK + SLOW :] == [(film, clip, start + k) for k in range(TAIL)]
        slow = [name for name, there in zip(told, valid, strict=True) if there][SINK:-TAIL]
        absent = SLOW - len(slow)
        assert valid.tolist() == [True] * SINK + [False] * absent + [True] * (len(slow) + TAIL)
        assert not x0[~valid].any()
        # First latents of every second chunk, behind the second and before the local context; a
        # clip's first latent, of one pixel frame, gives way to the next.
        assert slow == sorted(slow)
        for of, piece, place in slow:
            whole = sum(lengths[film][:piece]) + place
            assert of == film
            assert 6 <= whole < sum(lengths[film][:clip]) + start
            assert (whole - (piece > 0 and place == 1)) % 6 == 0
            assert piece == 0 or place > 0
        assert texts == tuple(caption(film) if there else "" for there in valid)
        shown.update(told[SINK + SLOW :])
        counts.add(len(slow))
    assert shown == {
        (film, clip, place)
        for film, clip in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0))
        for place in range(1 if clip else SINK, lengths[film][clip])
    }
    assert counts == set(range(SLOW + 1))


def test_context_units_are_those_of_the_tiny_world(tmp_path):
    shards = LatentShards([write(tmp_path / "a", [[42], [42]])])
    takes = ContextTakes(shards, [0, 1], chunk=3, stream="s")
    ours = film_context_units(Coder(), CPU)(stack_takes([takes[k] for k in range(2)]))
    world = context_units(Coder(), NANO.geometry, CPU)(context_clips(opening=0)([1, 2]))
    assert {*ours, "returning"} == {*world}
    assert all(ours[name].shape[:2] == world[name].shape[:2] for name in ours)
    assert ours["valid"].dtype == world["valid"].dtype
    assert (ours["text"][~ours["valid"]] == 0).all()


def test_teacher_tells_no_figure_of_what_nobody_knows():
    frames = CONTEXT + TARGET
    units = {
        "x0": seeded(2, frames, MODEL.latent_channels, *SIZE),
        "text": seeded(2, frames, MODEL.text_tokens, MODEL.text_width),
        "valid": torch.ones(2, frames, dtype=torch.bool),
    }
    teacher = ContextTeacher(NANO, CPU, Recycling(bins=1, entries=1))
    figures = teacher.figures(nano_model(), units, Draws(CPU, 0))
    assert set(figures) == {"flow_loss", "flow_loss_swapped"}
    assert figures["flow_loss"] != figures["flow_loss_swapped"]


# --- parts ----------------------------------------------------------------------------------------


def test_films_to_measure_on_are_the_same_for_all_lengths_and_never_trained_on(tmp_path):
    films = [[42, 42] if film % 2 else [21] for film in range(60)]
    shards = LatentShards([write(tmp_path / "a", films)])

    def of(clips):
        return {shards.rows[index].film for index in clips}

    short = split(shards, WindowTakes.fitting(shards, 21), "21 latents")
    long = split(shards, ContextTakes.fitting(shards), "more")
    assert (short.left_out, long.left_out) == (0, 30)
    assert len(short.train) + len(short.held_out) == 90
    assert not of(short.train) & of(short.held_out)
    assert not of(short.train) & of(long.held_out)
    # Binomial, 60 films of a twentieth: seven or more once in 3000 hashes.
    assert 1 <= len(of(short.held_out)) <= 6
    with pytest.raises(ValueError, match="1 of 60 films hold 21 latents, but two must"):
        split(shards, [1, 2], "21 latents")


# --- sources --------------------------------------------------------------------------------------


@pytest.fixture
def use(tmp_path):
    """Resources with three films, of which one is too short for a teacher."""
    assets = write_assets(tmp_path / "assets")
    sha256 = file_sha256(assets / "codec.safetensors")
    films = write(tmp_path / "films", [[42, 30], [24], [35]], codec_sha256=sha256)
    return Resources(
        out=tmp_path / "out", assets=assets, device=CPU, capacity=8, fill=4, render=2,
        films=(films,),
    )  # fmt: skip


@pytest.mark.parametrize("clips", ["chunk", "contiguous", "context"])
def test_pool_of_films_goes_on_bit_exactly_and_is_shared_by_processes(clips, use, caplog):
    caplog.set_level("INFO")
    pool, held_out = clips_of(clips, NANO, use, {})
    assert f"{int(clips == 'context')} of 3 films are left out" in caplog.text
    pool.fill()
    pool.read(3)
    state = pool.state_dict()
    state = {**state, "ring": {**state["ring"], "columns": {
        name: column.clone() for name, column in state["ring"]["columns"].items()
    }}}  # fmt: skip
    pool.refill()
    units = pool.read(32)
    for world in (World(0, 1), World(0, 2), World(1, 2)):
        again, _ = clips_of(clips, NANO, use, {})
        again.load_state_dict(state)
        again._draws.world = world
        again.refill()
        mine = again.read(32 // world.size)
        assert all(torch.equal(mine[name], world.mine(units[name])) for name in units)
    frames = {"chunk": 3, "contiguous": 21, "context": 42}[clips]
    assert held_out()["x0"].shape == (2, frames, MODEL.latent_channels, *SIZE)


def test_texts_of_a_file_change_by_the_second(use, tmp_path):
    path = tmp_path / "p.jsonl"
    parts = [{"text": "a ball", "seconds": 1.5}, {"text": "a cube", "seconds": 1}]
    path.write_text(json.dumps({"segments": parts}) + '\n{"text": "a cone"}\n', encoding="utf-8")
    shared = {}
    texts = texts_of(80, NANO, Resources(**{**vars(use), "prompts": path}), shared)
    assert texts.chunks == 80
    ball, cone, cube = shared["frozen"].embed(["a ball", "a cone", "a cube"]).bfloat16().float()
    drawn = texts.draw(32, 80, torch.Generator().manual_seed(0), returning=0.5)
    kinds = set()
    for film in drawn:
        changing = [ball, ball] + [cube] * 78
        expected = torch.stack([cone] * 80 if torch.equal(film[0], cone) else changing)
        assert torch.equal(film, expected)
        kinds.add(bool(torch.equal(film[0], cone)))
    assert kinds == {False, True}


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``cfmodel`` at nano size, with assets of codec and text encoder."""
    write_assets(tmp_path / "assets")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        line = [*arguments, "--preset", "nano", "--device", "cpu"]
        if arguments[0] == "train":
            few = "--batch 2 --fill 1 --render 2 --capacity 8 --scripts 4 --assets assets"
            line += few.split()
        monkeypatch.setattr(sys, "argv", ["cfmodel", *map(str, line)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def films(tmp_path):
    """Shards for the assets of ``command``, of films long enough for every stage."""
    sha256 = file_sha256(write_assets(tmp_path / "assets") / "codec.safetensors")
    return write(tmp_path / "films", [[42, 30], [35], [42]], codec_sha256=sha256)


def noise_film(path, frames, seed):
    noise = np.random.default_rng(seed)
    with FilmWriter(path, fps=16, height=64, width=64) as writer:
        for _ in range(frames):
            blocks = noise.integers(0, 255, (4, 4, 3), np.uint8)
            writer.write(blocks.repeat(16, 0).repeat(16, 1)[None])
    path.with_suffix(".txt").write_text(f"blocks, {seed}", encoding="utf-8")


def rows(path):
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def stops(monkeypatch, name, number):
    """A signal to stop in the middle of a stage."""
    step = FlowStage.step

    def interrupted(self, at, progress):
        if (self.name, at) == (name, number):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, at, progress)

    monkeypatch.setattr(FlowStage, "step", interrupted)


def test_films_become_weights_and_a_stopped_run_goes_on(command, tmp_path, monkeypatch):
    (tmp_path / "mp4").mkdir()
    for k in range(3):
        noise_film(tmp_path / "mp4" / f"{k}.mp4", Geometry().pixel_frames(24), k)
    cut = ("--latents", 24, "--min-seconds", 1, "--codec", "assets/codec.safetensors")
    code, out, err = command("prepare", "mp4", "--out", "films", *cut)
    assert code == 0, err
    assert out.startswith("films: 3 films, 3 clips, 72 latents")
    # The pool takes in new clips at step 10, behind the stop.
    learn = ("train", "chunk", "base", "--films", "films", "--steps", 12, "--log-every", 1)
    code, out, err = command(*learn, "--out", "through")
    assert code == 0, err
    with monkeypatch.context() as patch:
        stops(patch, "base", 4)
        code, _, err = command(*learn, "--out", "stopped")
    assert code == 130, err
    assert "step-00000005 has it all" in err
    code, out, err = command(*learn, "--out", "stopped", "--json")
    assert code == 0, err
    records = json.loads(out)
    assert records["base"]["resumed"] == 1
    assert records["base"]["run"]["films"] == LatentShards([Path("films")]).sha256
    for name in ("chunk", "base"):
        through, stopped = (
            load_file(f"{folder}/{name}.safetensors") for folder in ("through", "stopped")
        )
        assert all(torch.equal(through[key], stopped[key]) for key in through)
        metrics = f"{name}-metrics.jsonl"
        assert rows(Path("through") / metrics) == rows(Path("stopped") / metrics)


def test_teacher_and_student_learn_from_films_and_prompts(command, films, tmp_path):
    (tmp_path / "p.txt").write_text("a red ball\na blue cube\n", encoding="utf-8")
    taken = ("--films", films, "--prompts", "p.txt", "--steps", 1, "--out", "out", "--json")
    code, out, err = command("train", "chunk", "base", "teacher", "context-init", "dmd", *taken)
    assert code == 0, err
    records = json.loads(out)
    assert set(records["teacher"]["evaluation"]) == {
        "flow_loss", "flow_loss_swapped", "distinct_clips",
    }  # fmt: skip
    hashes = {name: set(record["run"]) for name, record in records.items()}
    assert all("films" in keys for name, keys in hashes.items() if name != "dmd")
    assert "films" not in hashes["dmd"]
    assert records["dmd"]["run"]["prompts"] == file_sha256(tmp_path / "p.txt")


def test_a_checkpoint_goes_on_with_its_own_films_alone(command, films, tmp_path, monkeypatch):
    learn = ("train", "chunk", "--steps", 3, "--out", "out")
    with monkeypatch.context() as patch:
        stops(patch, "chunk", 1)
        assert command(*learn, "--films", films)[0] == 130
    sha256 = file_sha256(tmp_path / "assets" / "codec.safetensors")
    other = write(tmp_path / "other", [[42], [41]], codec_sha256=sha256)
    for changed in ((), ("--films", other)):
        code, _, err = command(*learn, *changed)
        assert code == 2
        assert "is of a run with films=" in err
    shutil.move(films, tmp_path / "moved")
    code, _, err = command(*learn, "--films", "moved")
    assert code == 0, err


def fitting(folder, **about):
    sha256 = file_sha256(folder / "assets" / "codec.safetensors")
    return {"codec_sha256": sha256, **about}


@pytest.mark.parametrize(
    ("made", "stage", "words"),
    [
        (lambda at: None, "chunk", "holds no prepared films (No such file or directory); run cf"),
        (lambda at: (at / "films").mkdir(), "chunk", "holds no prepared films"),
        (lambda at: write(at / "films", [], **fitting(at)), "base", "no clip in films; prepare"),
        (
            lambda at: write(at / "films", [[42]] * 2, complete=False, **fitting(at)),
            "base", "films is not finished; run cfmodel prepare again",
        ),
        (
            lambda at: write(at / "films", [[42]] * 2, codec_sha256="other"),
            "base", "clips were prepared with codec other, but this run has ",
        ),
        (
            lambda at: write(
                at / "films", [[42]] * 2,
                codec_sha256=file_sha256(write_assets(at / "x", 2.0) / "codec.safetensors"),
            ),
            "base", "prepare them with this preset, and with this codec (--codec FILE)",
        ),
        (
            lambda at: write(at / "films", [[42]] * 2, **fitting(at, geometry=Geometry())),
            "base", "clips were prepared with height 480, but this run has 64",
        ),
        (
            lambda at: write(at / "films", [[20], [42]], **fitting(at)),
            "base", "1 of 2 films hold 21 latents in a clip, but two must",
        ),
        (
            lambda at: write(at / "films", [[29], [28], [26]], **fitting(at)),
            "teacher", "0 of 3 films hold sink, local context and target (27 latents",
        ),
        (
            lambda at: write(at / "films", [[42]] * 2, said="x" * 257, **fitting(at)),
            "base", "caption of film 0.mp4: prompt of 257 bytes, but text.max_bytes=256; shorten",
        ),
        (
            lambda at: write(at / "films", [[42]] * 2, **fitting(at)),
            "codec",
            "--films is for the stages chunk, base, causal-init, teacher, context-init; leave it",
        ),
    ],
)  # fmt: skip
def test_films_that_do_not_fit_are_refused_in_one_line(command, tmp_path, made, stage, words):
    made(tmp_path)
    code, out, err = command("train", stage, "--films", "films", "--steps", 1)
    assert (code, out) == (2, "")
    (line,) = (line for line in err.splitlines() if line.startswith("cfmodel: "))
    assert words in line
    assert not Path("out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_told_in_one_line(command, films, workers):
    for shard in films.glob("shard-*"):
        shard.write_bytes(b"x" * shard.stat().st_size)
    code, out, err = command("train", "chunk", "--films", films, "--steps", 1, "--workers", workers)
    assert (code, out) == (2, "")
    assert err.startswith("cfmodel: ")
    assert err.count("\n") == 1
    assert "is damaged" in err
    assert f"remove {films} and prepare the films again" in err


@pytest.mark.parametrize(
    ("stages", "options", "words"),
    [
        (("base", "dmd"), "--films", "stage dmd does not take --films; give --prompts too, or"),
        (("dmd", "base"), "--prompts", "stage base does not take --prompts; give --films too, or"),
        (("text", "base"), "--films", "stage text does not take --films; train it by itself"),
        (("base",), "--prompts", "--prompts is for the stages dmd, cdmd, streaming; leave it out"),
        (("dmd",), "--prompts", "p.txt, line 2: prompt of 257 bytes"),
    ],
)
def test_options_that_a_stage_cannot_use_are_refused(
    command, films, tmp_path, stages, options, words
):
    (tmp_path / "p.txt").write_text("a ball\n" + "x" * 257, encoding="utf-8")
    given = {"--films": films, "--prompts": "p.txt"}
    code, out, err = command("train", *stages, options, given[options], "--steps", 1)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_without_films_nothing_is_opened_and_runs_are_named_as_before():
    use = Resources(out=Path("out"), assets=Path("none"), device=CPU)
    sources.check(["codec", "base", "dmd"], NANO, use, {})
    assert sources.identity("base", NANO, use, {}) == {}
