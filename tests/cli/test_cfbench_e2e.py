"""``cfbench`` as a user runs it, on the nano family."""

import json
import os
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cfbench.aggregate import DIMENSIONS, Range, normaliser_bytes
from tests.helpers.bench import cfbench, prompt_file

HELP_S = 0.5


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """A store after ``cfbench run``, and what it said."""
    folder = tmp_path_factory.mktemp("e2e")
    ranges = {name: Range(0.0, 1.0) for name in DIMENSIONS}
    (folder / "normaliser.json").write_bytes(normaliser_bytes("test", clamp=True, ranges=ranges))
    prompt_file(folder / "p.jsonl", 3)
    result = cfbench(
        *("run", "--systems", "nano/ours,nano/no-cdmd,nano/rendered-truth"),
        *("--prompts", folder / "p.jsonl", "--limit", "2", "--seconds", "3"),
        *("--suite", "pixel", "--normaliser", folder / "normaliser.json"),
        *("--out", folder / "out", "--device", "cpu", "--workers", "2", "--json"),
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return folder, json.loads(result.stdout)


def test_run_makes_scores_and_reports(done):
    folder, said = done
    assert said["films"]["made"] == 4
    assert said["films"]["null"] == {"no-cdmd": "weights not trained yet (stage dmd)"}
    assert said["scores"]["scored"] == 4
    assert (folder / "out" / "index.html").is_file()
    assert (folder / "out" / "gallery" / "index.html").is_file()
    table = (folder / "out" / "tables" / "ablation.md").read_text()
    assert "weights not trained yet" in table
    assert len(list((folder / "out" / "objects").glob("*/*.mp4"))) == 4


def test_each_verb_has_nothing_left_to_do(done):
    folder, _ = done
    common = ("--prompts", folder / "p.jsonl", "--limit", "2", "--seconds", "3")
    names = ("--systems", "nano/ours,nano/rendered-truth", "--out", folder / "out")
    plan = cfbench("plan", *common, *names, "--json")
    assert json.loads(plan.stdout)["missing"] == 0
    again = cfbench("generate", *common, *names, "--json", "--dry-run")
    assert json.loads(again.stdout)["films"] == 4
    score = cfbench("score", "--suite", "pixel", "--out", folder / "out", "--dry-run", "--json")
    assert json.loads(score.stdout)["missing"] == 0
    check = cfbench("verify", "--out", folder / "out", "--json")
    assert check.returncode == 0, check.stderr
    assert json.loads(check.stdout)["scores"]["exposure@1"] == "4/4"


def test_compact_gallery_and_report_check(done, tmp_path: Path):
    folder, _ = done
    rows = cfbench("compact", "--out", folder / "out", "--to", tmp_path / "t.parquet", "--json")
    assert json.loads(rows.stdout)["rows"] == pq.read_table(tmp_path / "t.parquet").num_rows
    own = ("--suite", "pixel", "--normaliser", folder / "normaliser.json")
    gallery = cfbench("gallery", "--out", folder / "out", "--to", tmp_path / "g", *own)
    assert gallery.returncode == 0, gallery.stderr
    assert (tmp_path / "g" / "index.html").is_file()
    checked = cfbench("report", "--check", "--out", folder / "out", *own[2:])
    assert checked.returncode == 0, checked.stderr
    # The pixel suite has no curve; that is said, not drawn empty.
    curves = cfbench("curves", "--out", folder / "out", *own)
    assert curves.returncode == 2
    assert "use another --suite" in curves.stderr


def test_verify_and_score_say_what_is_incomplete(done, tmp_path: Path):
    folder, _ = done
    subprocess.run(["cp", "-r", str(folder / "out"), str(tmp_path / "out")], check=True)
    film = next((tmp_path / "out" / "objects").glob("*/*.mp4"))
    film.unlink()
    check = cfbench("verify", "--out", tmp_path / "out")
    assert check.returncode == 3
    assert f"{film.name}: missing" in check.stderr


def test_help_is_quick():
    times: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        assert cfbench("--help").returncode == 0
        times.append(time.perf_counter() - begin)
    assert min(times) < HELP_S


LONG = "x" * 5000
BAD = [
    ("empty.jsonl", b"", (), "is empty; write one prompt a line"),
    ("long.txt", LONG.encode(), (), "at most 2000"),
    ("bytes.txt", LONG[:300].encode(), (), "prompt of 300 bytes, but text.max_bytes=256"),
    ("control.txt", b"a cube\0", (), "control characters ['\\x00']; remove them"),
    ("latin.txt", "é".encode("latin-1"), (), "save the file as UTF-8"),
    (None, b"", ("--prompts", "no-such.jsonl"), "no prompt file"),
    (None, b"", ("--systems", "nano/our"), "try one of ours"),
    (None, b"", ("--systems", "micro/ours"), "unknown family 'micro'"),
    (None, b"", ("--systems", "nano/ours+memory.slo=3"), "has no field 'slo'"),
    (None, b"", ("--seconds", "-3"), "expected more than 0"),
    (None, b"", ("--seconds", "soon"), "see cfbench --help"),
    (None, b"", ("--second", "3"), "No such option: --second"),
    (None, b"", ("--systems", "nano/ours+geometry.height=70"), "does not divide by 16"),
    (None, b"", ("--seeds", "0"), "expected 1 to"),
    (None, b"", ("--limit", "99"), "the file holds 2"),
    (None, b"", ("--device", "cuda:77"), "use auto"),
    (None, b"", ("--workers", "-1"), "expected 0 (choose) or more"),
    (None, b"", ("--attention", "best"), "unknown attention 'best'"),
    (None, b"", ("--shard", "3"), "expected INDEX/COUNT"),
    (None, b"", ("--out", "/proc/nowhere"), "choose another --out"),
    (None, b"", ("--out", "/proc"), "choose another --out"),
]


@pytest.mark.parametrize(("name", "content", "change", "message"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, name, content, change, message):
    prompts = prompt_file(tmp_path / "good.jsonl")
    if name:
        prompts = tmp_path / name
        prompts.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    result = cfbench(
        *("generate", "--prompts", prompts, "--systems", "nano/ours", "--seconds", "1"),
        *("--out", tmp_path / "out", "--device", "cpu", "--workers", "1", *change),
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("cfbench: ")]
    assert result.returncode == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_prompts_outside_the_grammar_are_told_once(tmp_path: Path):
    (tmp_path / "p.txt").write_text("A parrot plays chess.\nA red cube hops.\nRain.\n")
    result = cfbench(
        *("plan", "--systems", "tiny/ours,tiny/no-slow", "--prompts", tmp_path / "p.txt", "--json"),
        *("--out", tmp_path / "out"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("was not trained on") == 1
    assert "2 of 3 prompts: the tiny model was not trained on 'A parrot" in result.stderr


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (("score", "--suite", "pixl"), "unknown suite 'pixl'; try one of pixel"),
        (("score", "--suite", "pixel"), "run cfbench generate"),
        (("verify",), "run cfbench generate"),
        (("compact", "--to", "t.parquet"), "run cfbench generate"),
        (("report", "--suite", "pixel"), "run cfbench generate"),
    ],
)
def test_verbs_without_a_store(tmp_path: Path, verb, message):
    result = cfbench(*verb, "--out", tmp_path / "none")
    assert result.returncode == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("size", "message"), [("64k", "MB are needed"), ("16m", "No space left")])
def test_a_full_disk_is_said_and_leaves_no_part_of_a_film(tmp_path: Path, size, message):
    disk = tmp_path / "disk"
    if os.geteuid() or not mounted(disk, size):
        pytest.skip("needs the right to mount a small disk; other tests simulate a full one")
    try:
        if size == "16m":
            # Room for the check before the start, and gone once the run has begun.
            (disk / "other").write_bytes(b"\0" * (7 << 20))
        args = (
            *("generate", "--prompts", prompt_file(tmp_path / "p.jsonl"), "--seconds", "3"),
            *("--systems", "nano/rendered-truth", "--out", disk / "out"),
            *("--device", "cpu", "--workers", "1"),
        )
        if size == "16m":
            fill = tmp_path / "fill.py"
            fill.write_text(FILL.format(path=str(disk / "fill")))
            result = cfbench_with(fill, *args)
        else:
            result = cfbench(*args)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not [path for path in (disk / "out").rglob("*") if path.suffix in (".mp4", ".jsonl")]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FILL = """
import errno
from cfbench import cli, generate

real = generate.film

def film(*args):
    with open({path!r}, "wb", buffering=0) as handle:
        try:
            while handle.write(b"0" * 4096):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return real(*args)

generate.film = film
cli.main()
"""


def cfbench_with(script: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    from tests.helpers.bench import ROOT, command

    python = command()[0]
    return subprocess.run(
        [python, str(script), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
