"""Programs of others, shown with a small real one: a script that draws films in its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cfbench import plan, prompts
from cfbench.errors import CfError
from cfbench.generate import generate
from cfbench.progress import Reporter
from cfbench.store import open_store
from cfbench.systems import describe, external, load
from tests.helpers.bench import cfbench, prompt_file

PROGRAM = """
import json, os, sys
import av
import numpy as np

asked = json.load(open(sys.argv[1]))
if asked["prompt_id"] in open("refused.txt").read().split():
    sys.exit("no film for " + asked["prompt_id"])
assert sorted(os.environ) in (["COLOUR", "LC_CTYPE", "PATH"], ["COLOUR", "PATH"]), os.environ
with av.open(sys.argv[2], "w") as film:
    stream = film.add_stream("libx264", rate=asked["fps"])
    stream.height, stream.width, stream.pix_fmt = asked["height"], asked["width"], "yuv420p"
    for index in range(asked["frames"]):
        picture = np.full((asked["height"], asked["width"], 3), int(os.environ["COLOUR"]), np.uint8)
        picture[index % asked["height"]] = 255
        film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    film.mux(stream.encode(None))
"""
MANIFEST = """
name = "drawn"
label = "Drawn"
family = "nano"
source = "https://example.org/drawn"
licence = "MIT"
commit = "{commit}"
checkout = "drawn"
command = ["{python}", "draw.py", "{{request}}", "{{film}}"]
timeout_s = 60
geometry = {{ height = 64, width = 64, fps = 16 }}
environment = {{ COLOUR = "40" }}
weights = {{ "refused.txt" = "{weights}" }}
"""
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath="]
    done = subprocess.run(
        ["git", *names, "-C", str(folder), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def manifest(tmp_path) -> Path:
    checkout = tmp_path / "drawn"
    checkout.mkdir()
    (checkout / "draw.py").write_text(PROGRAM, encoding="utf-8")
    (checkout / "refused.txt").write_text("", encoding="utf-8")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "Draw")
    path = tmp_path / "drawn.toml"
    commit = git(checkout, "rev-parse", "HEAD")
    text = MANIFEST.format(commit=commit, python=sys.executable, weights=EMPTY)
    path.write_text(text, encoding="utf-8")
    return path


def change(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def make(manifest: Path, folder: Path):
    found = prompts.load(prompt_file(folder / "p.jsonl", 2))
    todo = plan.make(describe([str(manifest)]), found, seeds=1, seconds=1)
    return generate(
        todo, folder / "out", devices=["cpu"], attention="auto", reporter=Reporter(quiet=True)
    )


def test_films_of_a_program_are_stored_with_their_origin(manifest, tmp_path):
    outcome = make(manifest, tmp_path)
    assert (outcome.made, outcome.failed) == (2, ())
    runs = open_store(tmp_path / "out").runs()
    for run in runs:
        assert (run.system, run.label) == ("drawn", "Drawn")
        assert (run.clip.frames, run.clip.fps, run.clip.width) == (16, 16, 64)
        assert run.environment["commit"] == run.experiment["commit"]
        assert run.environment["licence"] == "MIT"
        assert run.weights == {"refused.txt": EMPTY}
        assert run.peak_gib > 0
        assert str(tmp_path) not in json.dumps(run.environment)


def test_a_program_that_fails_leaves_a_failure(manifest, tmp_path):
    change(manifest, "height = 64, width = 64", "height = 65, width = 64")
    outcome = make(manifest, tmp_path)
    assert outcome.made == 0
    assert len(outcome.failed) == 2
    assert "exit code 1" in outcome.failed[0].reason


def test_a_film_of_another_size_is_refused(manifest, tmp_path):
    program = tmp_path / "drawn" / "draw.py"
    change(program, 'range(asked["frames"])', 'range(asked["frames"] - 1)')
    git(tmp_path / "drawn", "commit", "-qam", "One less")
    text = manifest.read_text(encoding="utf-8")
    old = text.split('commit = "')[1][:40]
    change(manifest, old, git(tmp_path / "drawn", "rev-parse", "HEAD"))
    outcome = make(manifest, tmp_path)
    assert "(15, 16, 64, 64), expected (16, 16, 64, 64)" in outcome.failed[0].reason


def test_what_differs_from_the_manifest_is_refused(manifest, tmp_path):
    load(str(manifest), "cpu", "auto")
    change(tmp_path / "drawn" / "draw.py", "255", "254")
    with pytest.raises(CfError, match="the checkout has changes"):
        load(str(manifest), "cpu", "auto")
    git(tmp_path / "drawn", "commit", "-qam", "Darker")
    with pytest.raises(CfError, match="but the manifest pins"):
        load(str(manifest), "cpu", "auto")
    git(tmp_path / "drawn", "reset", "-q", "--hard", "HEAD~1")
    change(manifest, EMPTY, "f" * 64)
    with pytest.raises(CfError, match=r"refused\.txt is e3b0"):
        load(str(manifest), "cpu", "auto")


def test_a_changed_checkout_ends_the_run(manifest, tmp_path):
    change(tmp_path / "drawn" / "draw.py", "255", "254")
    with pytest.raises(CfError, match="the checkout has changes"):
        make(manifest, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_program_stands_beside_presets(manifest, tmp_path):
    done = cfbench("run", "--systems", f"nano/ours,{manifest}", "--prompts", 1, "--seconds", 2,
                   "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Drawn" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_row_without_checkout_says_so(manifest):
    change(manifest, 'checkout = "drawn"', 'checkout = "none"')
    (spec,) = describe([str(manifest)])
    assert spec.absent.startswith("no checkout of https://example.org/drawn at ")


def test_the_key_follows_all_but_the_label(manifest):
    (first,) = describe([str(manifest)])
    (second,) = describe([str(change(manifest, '"Drawn"', '"Drawn by hand"'))])
    (third,) = describe([str(change(manifest, "COLOUR = ", "HUE = "))])
    assert first.key == second.key != third.key


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "drawn"', 'name = "Drawn Films"', "expected up to 40 of a-z"),
        ('licence = "MIT"', 'licence = ""', "licence is empty"),
        ('licence = "MIT"\n', "", "lacks licence"),
        ("timeout_s = 60", "timeout = 60", "unknown timeout"),
        ("timeout_s = 60", 'timeout_s = "60"', "timeout_s='60': expected"),
        (', "{film}"', "", "does not say where {film} goes"),
        ("fps = 16", "fps = 0", "expected positive sizes"),
        (", fps = 16", "", "lacks fps"),
        ('checkout = "drawn"', "checkout = drawn", "is no TOML"),
    ],
)
def test_bad_manifests_are_refused(manifest, old, new, words):
    change(manifest, old, new)
    with pytest.raises(CfError, match=words):
        external.read(manifest)


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(CfError, match="cannot read manifest"):
        external.read(tmp_path / "none.toml")
