"""The command line of the model, on the nano family: films, and every way to refuse input."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cfmodel import cli
from cfmodel.io import weights as weights_files
from cfmodel.io.weights import save_weights
from tests.helpers import wan

ROOT = Path(__file__).resolve().parents[2]
HELP_S = 0.5


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cfmodel", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return Done(int(stopped.value.code or 0), told.out, told.err)

    return call


@pytest.fixture
def refuse(run, tmp_path):
    """Runs a command that must fail in one line, and leave the folder as it was."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        done = run(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert done.err.startswith("cfmodel: ")
        assert done.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return done.err

    return call


def nano(*arguments):
    return ("sample", "--preset", "nano", "--device", "cpu", "--seconds", 1, *arguments)


def frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def process(*arguments, **options):
    command = [sys.executable, "-m", "cfmodel", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def test_help_is_quick(tmp_path):
    times = []
    for _ in range(5):
        began = time.monotonic()
        assert process("--help", cwd=tmp_path).returncode == 0
        times.append(time.monotonic() - began)
    assert min(times) < HELP_S


def test_sample_writes_a_film(run, tmp_path):
    done = run(*nano("--prompt", "a red ball", "--seconds", 2, "--out", "x.mp4", "--json"))
    assert done.code == 0
    result = json.loads(done.out)
    (film,) = result["films"]
    assert (film["out"], film["frames"]) == ("x.mp4", 32)
    assert (result["preset"], result["attention"]) == ("nano/ours", "sdpa")
    assert frames(tmp_path / "x.mp4") == 32
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    again = run(*nano("--prompt", "a red ball", "--seconds", 2, "--out", "y.mp4", "--json"))
    assert json.loads(again.out)["films"][0]["sha256"] == film["sha256"]


def test_sample_in_its_own_process_tells_of_its_progress(tmp_path):
    done = process(*nano("--prompt", "a red ball", "--out", "x.mp4"), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "x.mp4: 16 frames\n"
    assert "chunk 2/2" in done.stderr
    assert "frames/s" in done.stderr


def test_prompt_files(run, tmp_path):
    segments = [{"text": "a red ball", "seconds": 0.6}, {"text": "a blue cube", "seconds": 9}]
    lines = [{"id": "one", "text": "a red ball"}, {"id": "two", "segments": segments, "more": 1}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = run(*nano("--prompts", "p.jsonl", "--out", "films", "--json"))
    assert done.code == 0
    shas = {film["prompt_id"]: film["sha256"] for film in json.loads(done.out)["films"]}
    assert sorted(path.name for path in (tmp_path / "films").iterdir()) == ["one.mp4", "two.mp4"]
    Path("p.txt").write_text("a red ball\n\nein grüner Würfel\n", encoding="utf-8")
    done = run(*nano("--prompts", "p.txt", "--out", "films2", "--json"))
    assert len(json.loads(done.out)["films"]) == 2
    Path("q.jsonl").write_text(json.dumps({"id": "two", "text": "a red ball"}), encoding="utf-8")
    done = run(*nano("--prompts", "q.jsonl", "--out", "films3", "--json"))
    assert json.loads(done.out)["films"][0]["sha256"] != shas["two"]


def test_a_changed_field_makes_a_custom_row(run):
    done = run(*nano("--prompt", "a", "--set", "memory.sink=0", "--set", "memory.slow=0", "--json"))
    assert json.loads(done.out)["preset"].startswith("nano/custom-")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nonsense",), "No such option"),
        ((), "give one of --prompt TEXT, --prompts FILE and --scenes FILE"),
        (("--prompt", "a", "--prompts", "p.txt"), "give one of --prompt TEXT, --prompts FILE"),
        (("--prompt", "a", "--scenes", "s.jsonl"), "give one of --prompt TEXT, --prompts FILE"),
        (("--scenes", "none.jsonl"), "No such file or directory; check --scenes"),
        (("--prompt", "a", "--image", "none.png"), "no picture at none.png"),
        (("--prompt", "a", "--image", "x.png", "--continue", "y.mp4"), "not both"),
        (("--prompt", "a", "--set", "memory.switch=jump"), "expected typing.Literal"),
        (("--prompt", ""), "empty prompt; describe"),
        (("--prompt", "x" * 257), "257 bytes, but text.max_bytes=256; shorten"),
        (("--prompt", "a", "--preset", "nano/our"), "unknown preset 'nano/our'; try one of"),
        (("--prompt", "a", "--set", "memory.slwo=1"), "has no field 'slwo'; has"),
        (("--prompt", "a", "--set", "memory.slow"), "expected path=value"),
        (("--prompt", "a", "--set", "memory.slow=x"), "expected <class 'int'>"),
        (("--prompt", "a", "--seconds", "-1"), "expected a positive number of seconds"),
        (("--prompt", "a", "--seconds", "0"), "expected a positive number of seconds"),
        (("--prompt", "a", "--seconds", "nan"), "expected a positive number of seconds"),
        (("--prompt", "a", "--seconds", "1e9"), "at most 86400 (a day)"),
        (("--prompt", "a\udcff"), "is not UTF-8"),
        (("--prompt", "a", "--continue", "none.mp4"), "no film at none.mp4"),
        (("--prompt", "a", "--seconds", "ten"), "Invalid value for '--seconds'"),
        (("--prompt", "a", "--set", "geometry.height=90"), "use a multiple of 16"),
        (("--prompt", "a", "--device", "gpu"), "expected cpu, cuda"),
        (("--prompt", "a", "--attention", "fast"), "expected auto, sdpa, cudnn, flex or flash"),
        (("--prompt", "a", "--preset", "nano/no-cdmd"), "not trained yet"),
        (("--prompt", "a", "--preset", "wan-1.3b"), "not bundled"),
        (("--prompt", "a", "--set", "weights=none.safetensors"), "no weights at"),
        (("--prompt", "a", "--out", "none/x.mp4"), "make it or choose another --out"),
        (("--prompt", "a", "--out", "x.avi"), "ends in .mp4"),
        (("--prompt", "a", "--out", "."), "is a folder; name a file"),
        (("--prompts", "none.txt"), "No such file"),
    ],
)
def test_refused_input(arguments, words, refuse):
    assert words in refuse(*nano(*arguments))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"\n  \n", "holds no prompts"),
        ("p.txt", b"a red ball\n\xff\xfe", "is not UTF-8 (byte 11)"),
        ("p.txt", b"a\na\n", "stands there twice"),
        ("p.txt", b"x" * 300, "shorten it"),
        ("p.txt", b"a\0b", "NUL"),
        ("p.jsonl", b"{", "line 1: not JSON"),
        ("p.jsonl", b'{"text": "a"}\n[]', "line 2: expected a JSON object"),
        ("p.jsonl", b'{"id": "a"}', "expected text, or segments"),
        ("p.jsonl", b'{"id": "A B", "text": "a"}', "expected up to 40 of a-z"),
        ("p.jsonl", b'{"segments": [{"text": "a", "seconds": 0}]}', "must be positive"),
        ("p.jsonl", b'{"text": ""}', "empty prompt"),
    ],
)
def test_refused_prompt_files(name, data, words, refuse):
    Path(name).write_bytes(data)
    assert words in refuse(*nano("--prompts", name, "--out", "films"))


def test_a_huge_prompt_file_is_not_read(refuse):
    with Path("p.txt").open("wb") as file:
        file.truncate(65 << 20)
    assert "is larger than 64 MiB; split it" in refuse(*nano("--prompts", "p.txt", "--out", "f"))


def test_a_film_is_continued(run, refuse, tmp_path):
    assert run(*nano("--prompt", "a red ball", "--seconds", 2, "--out", "x.mp4")).code == 0
    arguments = nano("--prompt", "a red ball", "--seconds", 1, "--continue", "x.mp4")
    assert run(*arguments, "--out", "y.mp4").code == 0
    # 2 s are 32 frames, of which 21 are whole chunks; then one second more.
    assert frames(tmp_path / "y.mp4") == 21 + 16
    Path("z.mp4").write_bytes(b"no film")
    assert "z.mp4" in refuse(*nano("--prompt", "a", "--continue", "z.mp4"))


def scenes(*rows):
    text = "".join(json.dumps(dict(zip(("text", "seconds", "switch"), r, strict=False))) + "\n"
                   for r in rows)  # fmt: skip
    Path("s.jsonl").write_text(text, encoding="utf-8")
    return ("--scenes", "s.jsonl", "--json")


def test_scenes_make_one_film(run, tmp_path):
    def made(*rows, preset="nano/infinity-rope"):
        arguments = ("sample", "--preset", preset, "--device", "cpu", "--out", "x.mp4")
        done = run(*arguments, *scenes(*rows))
        assert done.code == 0, done.err
        return json.loads(done.out)["films"][0]

    first = ("a red ball", 3.0)
    kept = made(first, ("a blue cube", 2.0))
    assert kept["frames"] == 5 * 16 == frames(tmp_path / "x.mp4")
    cut = made(first, ("a blue cube", 2.0, "cut"))
    flushed = made(first, ("a blue cube", 2.0, "flush"))
    recached = made(first, ("a blue cube", 2.0, "recache"))
    # This memory holds the sink and two latents anyway, so a flush changes nothing.
    assert flushed["sha256"] == kept["sha256"]
    assert len({film["sha256"] for film in (kept, cut, recached)}) == 3
    by_preset = made(first, ("a blue cube", 2.0), preset="nano/infinity-rope-flush")
    assert by_preset["sha256"] == flushed["sha256"]
    assert made(first, ("a blue cube", 2.0, "keep"), preset="nano/longlive-recache") != recached


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), "holds no scenes"),
        ((("a", 1.0, "jump"),), "switch 'jump': expected one of keep, recache, flush, cut"),
        ((("a",),), "expected text, or segments of text and seconds"),
        ((("a", 0),), "must be positive"),
        ((("", 1),), "empty prompt"),
    ],
)
def test_refused_scenes(rows, words, refuse, run):
    given = scenes(*rows)
    assert words in refuse("sample", "--preset", "nano", "--device", "cpu", *given)


def test_memories_that_cannot_switch_say_so(refuse):
    given = scenes(("a", 1.0), ("b", 1.0, "flush"))
    words = refuse("sample", "--preset", "nano/causvid", "--device", "cpu", *given)
    assert "cannot change its memory at a new text" in words


def test_a_film_begins_with_a_picture(run, refuse, tmp_path):
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, 32:] = 200
    cv2.imwrite("x.png", picture)
    arguments = nano("--prompt", "a red ball", "--seconds", 1)
    assert run(*arguments, "--image", "x.png", "--out", "x.mp4").code == 0
    # A chunk shows the picture; then comes the second asked for.
    assert frames(tmp_path / "x.mp4") == 9 + 16
    with av.open("x.mp4") as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    left, right = shown[0][:, :28].mean(), shown[0][:, 36:].mean()
    assert (left, right) == (pytest.approx(0, abs=6), pytest.approx(200, abs=6))
    assert abs(shown[8].astype(int) - shown[0]).mean() < 3
    Path("z.png").write_bytes(b"no picture")
    assert "z.png" in refuse(*nano("--prompt", "a", "--image", "z.png"))


@pytest.mark.parametrize("row", ["rolling-forcing", "causvid", "ours-released", "commit-forcing"])
def test_other_ways_make_films(run, tmp_path, row):
    done = run("sample", "--preset", f"nano/{row}", "--device", "cpu", "--prompt", "a",
               "--seconds", 6, "--out", "x.mp4")  # fmt: skip
    assert done.code == 0, done.err
    assert frames(tmp_path / "x.mp4") == 6 * 16


def test_films_of_a_file_need_a_folder(refuse):
    Path("p.txt").write_text("a", encoding="utf-8")
    assert "expected a folder" in refuse(*nano("--prompts", "p.txt", "--out", "x.mp4"))


@pytest.mark.parametrize("damage", ["truncated", "other shapes"])
def test_unusable_weights(damage, refuse, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"head": weights_files.torch.zeros(2)}, config={}, record={})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    words = {
        "truncated": "truncated or no safetensors",
        "other shapes": "no video transformer that is known",
    }
    assert words[damage] in refuse(*nano("--prompt", "a", "--set", f"weights={path}"))


def test_damaged_bundled_weights(refuse, run, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    monkeypatch.setattr(weights_files, "assets", lambda: assets)
    for name in ("codec", "text", "student"):
        save_weights(
            assets / "tiny" / f"{name}.safetensors",
            {"x": weights_files.torch.zeros(2)},
            config={},
            record={},
        )
    weights_files.pin(assets)
    student = assets / "tiny" / "student.safetensors"
    student.write_bytes(student.read_bytes() + b"0")
    prompt = "A red ball hops on grass under a clear sky."
    told = refuse("sample", "--prompt", prompt, "--device", "cpu")
    assert "student.safetensors is damaged: sha256" in told
    report = json.loads(run("doctor", "--json").out)
    assert report["files"]["tiny/codec"] == "ok"
    assert "is damaged" in report["files"]["tiny/student"]
    student.unlink()
    assert "'tiny/student' are missing" in refuse("sample", "--prompt", prompt)


def test_a_prompt_outside_the_tiny_grammar_warns(run, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_files, "assets", lambda: tmp_path)
    run("sample", "--prompt", "economic growth in the third quarter")
    assert "the tiny model was not trained on" in caplog.text
    caplog.clear()
    run("sample", "--prompt", "A red ball hops on grass under a clear sky.")
    assert "not trained on" not in caplog.text


LIMITED = """
import resource, sys
from cfmodel.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
main()
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    arguments = map(str, nano("--prompt", "a red ball", "--out", "x.mp4", "--seconds", 3))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "cfmodel: cannot write" in done.stderr.splitlines()[-1]
    assert "choose another --out" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_presets(run, refuse):
    rows = json.loads(run("presets", "list", "--json").out)
    assert {row["name"].partition("/")[0] for row in rows} == {"nano", "tiny", "wan-1.3b"}
    told = run("presets", "list", "nano").out.splitlines()
    assert len(told) == len(rows) // 3
    assert any("weights not trained yet" in line for line in told)
    assert "memory.slow = 0" in run("presets", "show", "nano/no-slow").out
    shown = json.loads(run("presets", "show", "nano", "--set", "memory.tau=0.9", "--json").out)
    assert shown["memory"]["tau"] == 0.9
    assert run("presets", "diff", "ours", "no-slow").out == "memory.slow: 12 -> 0\n"
    assert run("presets", "diff", "ours", "ours").out == "no difference\n"
    changes = json.loads(run("presets", "diff", "ours", "no-sink", "--json").out)
    assert changes == [{"field": "memory.sink", "a": 3, "b": 0}]
    assert "unknown preset" in refuse("presets", "show", "no-slwo")
    assert "unknown family" in refuse("presets", "list", "huge")
    assert "Missing command" in refuse()


def test_doctor(run):
    done = run("doctor", "--preset", "nano")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "ready"
    done = run("doctor", "--preset", "nano/no-cdmd", "--json")
    assert done.code == 2
    report = json.loads(done.out)
    assert report["missing"] == ["weights of nano/no-cdmd are not trained yet"]
    assert report["libraries"]["torch"]


def test_doctor_says_what_a_wan_lacks(run, tmp_path):
    done = run("doctor", "--preset", "wan-1.3b", "--base", "none/at-all")
    assert done.code == 2
    missing = [line for line in done.out.splitlines() if line.startswith("missing")]
    assert [line.split()[1] for line in missing] == ["student:", "VAE:", "text"]
    assert "--weights (Self Forcing: gdhe17/Self-Forcing/" in missing[0]
    assert "part       student, 2.6 GiB, its own: missing" in done.out
    assert "part       text encoder UMT5-XXL, 10.6 GiB, Apache-2.0" in done.out
    wan.write_release_base(tmp_path)
    save_file(wan.named(wan.small_student(), "wan"), tmp_path / "s.safetensors")
    given = ("--weights", "s.safetensors", "--base", tmp_path)
    done = run("doctor", "--preset", "wan-1.3b", *given, "--json")
    report = json.loads(done.out)
    assert [part["missing"] for part in report["parts"]] == ["", "", ""]
    # Weights 13.5, 6 GiB of memory half of which is held twice, 3 for the rest.
    assert 19 < report["needs_gib"] < 26


def test_one_film_from_every_layout(run, refuse, tmp_path):
    """The command of the README with real weights, on a Wan that is small and random."""
    state = wan.small_student()
    save_file(wan.named(state, "wan"), tmp_path / "release.safetensors")
    pt = {"generator_ema": {f"model.{k}": v for k, v in wan.named(state, "wan").items()}}
    torch.save(pt, tmp_path / "few-step.pt")
    sizes = [part for size in wan.SIZES for part in ("--set", size)]
    bases = [wan.write_diffusers_base(tmp_path / "a"), wan.write_release_base(tmp_path / "b")]
    made = run("convert", "few-step.pt", "--to", "diffusers", "--out", "d.safetensors", *sizes)
    assert made.code == 0
    (tmp_path / "export").mkdir()
    assert run("export", "d.safetensors", "--out", "export", "--licence", "mit", *sizes).code == 0
    films = []
    for k, source in enumerate(("release.safetensors", "few-step.pt", "export")):
        done = run(
            "sample", "--preset", "wan-1.3b", "--device", "cpu", "--prompt", "a red ball",
            "--seconds", 0.5, "--weights", source, "--base", bases[k % 2], "--out", f"{k}.mp4",
            "--json", *sizes,
        )  # fmt: skip
        assert done.code == 0
        films.append(json.loads(done.out)["films"][0]["sha256"])
    assert len(set(films)) == 1
    told = refuse("convert", "few-step.pt#generator", "--out", "x.safetensors", *sizes)
    assert "no state dict 'generator'; it has generator_ema" in told
    assert "expected one of cfmodel" in refuse("convert", "x", "--to", "y", "--out", "z")


def test_a_live_page_is_watched_without_a_browser(run, refuse):
    pytest.importorskip("fastapi")
    done = run("live", "--preset", "nano", "--device", "cpu", "--trial", 5, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["preset"], result["device"]) == ("nano/ours", "cpu")
    assert result["fps_made"] > result["fps"] == 16
    assert result["stalled_s"] >= 0, "no faster than the clock"
    # At most 1.5 s are buffered and one chunk of 0.75 s is being made.
    assert 0 < result["prompt_on_screen_s"] < 2.3 + result["stalled_s"]
    assert "at least 5" in refuse("live", "--preset", "nano", "--trial", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "choose another --host or --port" in refuse(
            "live", "--preset", "nano", "--port", port
        )


def test_a_live_server_ends_well_when_it_is_interrupted(tmp_path):
    pytest.importorskip("fastapi")
    command = [sys.executable, "-m", "cfmodel", "live", "--preset", "nano", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as server:
        try:
            assert server.stderr is not None
            told = next(line for line in server.stderr if "live page at" in line)
            address = told.split("live page at ")[1].split(";")[0]
            with urllib.request.urlopen(f"{address}/api/about", timeout=60) as reply:
                assert json.loads(reply.read())["preset"] == "nano/ours"
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
            assert server.stderr.read().splitlines()[-1] == "stopped"
        finally:
            server.kill()
