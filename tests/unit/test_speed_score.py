"""Timings beside the package: what is asked, what is resumed, what is summed up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cfbench import video, video_opencv
from cfbench.cli import app
from cfbench.errors import CfError
from cfbench.scorers.vbench import timed
from cfbench.scorers.vbench.drawn import SMALL, prompt_free, written
from cfbench.speed import films, upstream
from cfbench.speed import score as speed
from cfbench.speed.table import BEGIN, END, put, table

ROOT = Path(__file__).resolve().parents[2]
TOLD = {"seconds": 8.0, "cpu_seconds": 6.0, "extra_gib": 2.0, "card_extra_gib": 0.0, "torch": "2"}


def setting(tmp_path, **more):
    kept = {
        "label": "here", "work": tmp_path, "device": "cpu", "threads": 1, "films": 1,
        "seconds": 0.25, "long_seconds": 0.5, "rounds": 2, "parts": ("load", "long", "whole"),
        "by": upstream.Interpreter(Path(sys.executable)), "dino": None,
    }  # fmt: skip
    return speed.Setting(**{**kept, **more})


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Jobs of both sides, none of them run."""
    jobs = []

    def theirs(job, work, by, limit_s):
        jobs.append(("theirs", job))
        if job["dimension"] == "aesthetic_quality":
            return {"reason": "no module named clip"}
        film = Path(job["films"][0]).stem
        return {**TOLD, "values": {film: 0.5}}

    def ours(job, work, limit_s):
        jobs.append(("ours", job))
        film = Path(job["films"][0]).stem
        values = {name: {film: 0.5 + 1e-8} for name in job["dimensions"]}
        return {**TOLD, "seconds": 2.0, "extra_gib": 0.25, "values": values}

    monkeypatch.setattr(upstream, "theirs", theirs)
    monkeypatch.setattr(upstream, "ours", ours)
    monkeypatch.setattr(speed, "_weights", lambda folder: folder)
    monkeypatch.setattr(films, "made", lambda folder, n, s: [Path(f"{s:g}-{k}") for k in range(n)])
    return jobs


def test_sides_take_turns_and_what_fails_is_named(asked, tmp_path):
    found = speed.measure(setting(tmp_path), tmp_path / "score.json", 0)
    sides = [(side, job["networks"], len(job["dimensions"])) for side, job in asked]
    # Without a checkout of DINO there is no subject consistency.
    load = [("theirs", "stub", 1)] * 6 + [("ours", "stub", 6)]
    whole = [("theirs", "real", 1), ("ours", "real", 1)] * 6 + [("ours", "real", 6)]
    assert sides == [*load, *load, ("ours", "sparse", 6), *whole]
    assert found["dimensions"]["imaging_quality"] == {
        "theirs_s": 8.0, "ours_s": 2.0, "apart": pytest.approx(1e-8)
    }  # fmt: skip
    assert "aesthetic_quality" not in found["dimensions"]
    assert set(found["lacking"].values()) == {"no module named clip"}
    assert found["load"]["speedup"] == 5 * 8 / 2
    assert found["load"]["memory_share"] == 0.125
    assert found["extra_gib_long"] == 0.25
    # Together is told of what both sides did; ours had one dimension more to do.
    assert found["whole"]["speedup"] == 5 * 8 / 2


def test_the_same_command_goes_on_and_another_setting_is_refused(asked, tmp_path, monkeypatch):
    to = tmp_path / "score.json"
    real = upstream.ours

    def slow(job, work, limit_s):
        raise TimeoutError("not done within 1 s")

    monkeypatch.setattr(upstream, "ours", slow)
    with pytest.raises(CfError, match="22 of 28 measurements are missing") as caught:
        speed.measure(setting(tmp_path), to, 1)
    assert caught.value.exit_code == 3
    assert len(json.loads(to.read_text())["machines"]["here"]["pieces"]) == 6
    monkeypatch.setattr(upstream, "ours", real)
    before = len(asked)
    speed.measure(setting(tmp_path), to, 0)
    assert len(asked) - before == 28 - 6
    speed.measure(setting(tmp_path), to, 0)
    assert len(asked) - before == 28 - 6
    with pytest.raises(CfError, match="measured under another setting"):
        speed.measure(setting(tmp_path, threads=2), to, 0)
    speed.measure(setting(tmp_path, threads=2, label="there"), to, 0)
    other = tmp_path / "all.json"
    assert speed.merged(to, other) == ["here", "there"]
    text = table(json.loads(other.read_text()))
    assert "| imaging_quality | 8.00 | 2.00 | 4.0 | 1e-08 |" in text
    assert "2 thread(s) a side" in text
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    put(other, document)
    assert text in document.read_text()


def test_our_side_times_what_it_scores(tmp_path):
    weights = written(tmp_path / "weights", prompt_free(SMALL))
    path = tmp_path / "a.mp4"
    small = (block[:, :64, :96] for block in films.frames(6, 0))
    video.encode(path, map(np.ascontiguousarray, small), films.FPS)
    names = ["subject_consistency", "motion_smoothness", "imaging_quality"]
    job = {
        "dimensions": names, "device": "cpu", "threads": 1, "weights": str(weights),
        "films": [str(path)], "networks": "real",
    }  # fmt: skip
    threads = torch.get_num_threads()
    try:
        found = {kind: timed.run({**job, "networks": kind}) for kind in ("real", "sparse", "stub")}
    finally:
        torch.set_num_threads(threads)
    assert set(found["real"]["values"]) == set(names)
    assert found["real"]["seconds"] > 0
    assert found["real"]["extra_gib"] >= 0
    # So short a film is looked at once by every network: sparse ones see all of it.
    assert found["sparse"]["values"]["imaging_quality"]["a"] is not None
    assert found["stub"]["values"]["motion_smoothness"] != found["real"]["values"]


def test_films_read_through_opencv_are_the_same(tmp_path):
    path = tmp_path / "a.mp4"
    small = (block[:, :64, :96] for block in films.frames(11, 3))
    video.encode(path, map(np.ascontiguousarray, small), films.FPS)
    clip, other = video.stored(path), video_opencv.stored(path)
    assert (clip.sha256, clip.frames, clip.rate) == (other.sha256, other.frames, other.rate)
    mine, theirs = (np.concatenate(list(c.as_others())) for c in (clip, other))
    assert np.array_equal(mine, theirs)
    (tmp_path / "b.mp4").write_bytes(b"no film")
    with pytest.raises(video.DecodeError, match="cannot be opened"):
        video_opencv.stored(tmp_path / "b.mp4")


def test_films_written_without_pyav_have_their_frames(tmp_path):
    path = tmp_path / "a.mp4"
    films.written_by_opencv(path, films.frames(9, 0))
    clip = video_opencv.stored(path)
    shown = np.concatenate(list(clip.as_others()))
    assert (clip.frames, clip.fps, shown.shape) == (9, films.FPS, (9, films.ROWS, films.COLUMNS, 3))
    meant = np.concatenate(list(films.frames(9, 0)))
    assert np.abs(shown.astype(int) - meant).mean() < 10
    # The same film for who reads it with PyAV.
    assert np.array_equal(np.concatenate(list(video.stored(path).as_others())), shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "some"], "expected some of load,long,whole"),
        (["--films", "0"], "are at least 1"),
        (["--upstream-python", "none/python"], "is no interpreter"),
        (["--from", "none.json"], "no file"),
    ],
)
def test_bad_options_are_one_line(words, message, tmp_path):
    with pytest.raises(CfError, match=message):
        app(["speed", "score", "--out", str(tmp_path), *words], standalone_mode=False)


def test_the_documented_table_is_that_of_the_results():
    results = ROOT / "results/speed/score.json"
    if not results.exists():
        pytest.skip("nothing was measured yet")
    text = (ROOT / "docs/vbench.md").read_text(encoding="utf-8")
    assert table(json.loads(results.read_text(encoding="utf-8"))) in text
