"""Generation and scoring on real, small systems: resumed after a kill, spread over workers."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cfbench import plan, prompts, scorers
from cfbench.errors import CfError
from cfbench.generate import generate
from cfbench.progress import Reporter
from cfbench.score import missing, score
from cfbench.store import LocalStore, open_store
from cfbench.systems import cf, describe
from cfbench.verify import verify
from tests.helpers.bench import ROOT, command, prompt_file, untimed

SYSTEMS = ("nano/ours", "nano/rendered-truth")
QUIET = Reporter(quiet=True)


def todo(folder: Path, systems: tuple[str, ...] = SYSTEMS, count: int = 2) -> plan.Plan:
    found = prompts.load(prompt_file(folder / "p.jsonl", count))
    return plan.make(describe(systems), found, seeds=1, seconds=1)


def make(wanted: plan.Plan, root: Path, workers: int = 1):
    return generate(wanted, root, devices=["cpu"] * workers, attention="auto", reporter=QUIET)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A store made in one go by one worker."""
    folder = tmp_path_factory.mktemp("reference")
    outcome = make(todo(folder), folder / "out")
    assert (outcome.made, outcome.present, outcome.failed) == (4, 0, ())
    return folder / "out"


def test_records_say_how_the_film_came_to_be(reference: Path):
    run = next(run for run in open_store(reference).runs() if run.system == "ours")
    assert run.environment["device"] == "cpu"
    assert run.environment["attention"] == "sdpa"
    assert run.environment["threads"] == 1
    assert len(run.weights["student"]) == 64
    assert run.clip.frames == 21
    assert run.code["commit"] or run.code["version"]
    text = str(run)
    assert os.uname().nodename not in text
    assert str(ROOT) not in text
    assert str(reference) not in text


def test_two_workers_make_the_same_records(reference: Path, tmp_path: Path):
    make(todo(tmp_path), tmp_path / "out", workers=2)
    assert untimed(tmp_path / "out") == untimed(reference)


def test_second_call_makes_nothing(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    before = sorted((tmp_path / "out" / "records").rglob("*"))
    outcome = make(todo(tmp_path), tmp_path / "out")
    assert (outcome.made, outcome.present) == (0, 4)
    assert sorted((tmp_path / "out" / "records").rglob("*")) == before


def test_lost_film_is_made_again(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    store = open_store(tmp_path / "out")
    run = store.runs()[0]
    store.path(run.clip.sha256, "mp4").unlink()
    assert make(todo(tmp_path), tmp_path / "out").made == 1
    assert untimed(tmp_path / "out") == untimed(reference)


def test_shards_together_make_everything(reference: Path, tmp_path: Path):
    for index in (0, 1):
        generate(
            todo(tmp_path),
            tmp_path / "out",
            devices=["cpu"],
            attention="auto",
            reporter=QUIET,
            part=(index, 2),
        )
    assert untimed(tmp_path / "out") == untimed(reference)


def test_frozen_repeats_our_first_frame(reference: Path, tmp_path: Path):
    from cfbench import video

    make(todo(tmp_path, ("nano/frozen",), 1), tmp_path / "out")
    store = open_store(tmp_path / "out")
    (run,) = store.runs()
    frames = next(video.decode(store.path(run.clip.sha256, "mp4")))
    ours = open_store(reference)
    film = next(r for r in ours.runs() if (r.system, r.prompt_id) == ("ours", run.prompt_id))
    first = next(video.decode(ours.path(film.clip.sha256, "mp4")))[0]
    # Noise is what H.264 keeps least of; another prompt or seed is far further away.
    assert abs(frames.astype(int) - first).mean() < 8
    assert abs(frames.astype(int) - frames[0]).max() <= 4
    assert run.weights == film.weights


def test_failed_job_is_recorded_and_the_rest_goes_on(tmp_path: Path):
    wanted = todo(tmp_path, ("nano/rendered-truth",))
    broken = dict(wanted.jobs[0].prompt.scene or {}, version=-1)
    prompt = wanted.jobs[0].prompt.__class__(**{**vars(wanted.jobs[0].prompt), "scene": broken})
    jobs = (replace(wanted.jobs[0], prompt=prompt, id="broken"), wanted.jobs[1])
    wanted = plan.Plan(jobs=jobs, null=(), specs=wanted.specs)
    outcome = make(wanted, tmp_path / "out")
    assert outcome.made == 1
    assert [failure.id for failure in outcome.failed] == ["broken"]
    assert "scene of world version -1" in outcome.failed[0].reason
    assert open_store(tmp_path / "out").failures() == list(outcome.failed)
    assert any(
        "scene of world" in problem for problem in verify(LocalStore(tmp_path / "out")).problems
    )
    # Nothing of the failed film is left.
    assert not list((tmp_path / "out" / "tmp").iterdir())


def test_weights_that_cannot_be_loaded_stop_the_run_and_leave_nothing(tmp_path: Path, monkeypatch):
    def damaged(*_: object, **__: object) -> None:
        raise ValueError("student.safetensors is truncated; install the package again")

    monkeypatch.setattr("cfmodel.pipeline.load", damaged)
    with pytest.raises(CfError, match="is truncated; install"):
        make(todo(tmp_path, ("nano/ours",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_small_a_disk_is_refused_before_the_start(tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CfError, match="MB are needed; free the disk or choose another --out"):
        make(todo(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_devices_of_this_machine():
    assert cf.devices("cpu", 3) == ["cpu"] * 3
    assert len(cf.devices("cpu", 0)) >= 1
    for device, workers, message in (
        ("cuda:99", 0, "use auto"),
        ("tpu", 1, "use auto"),
        ("cpu", -1, "workers"),
    ):
        with pytest.raises(CfError, match=message):
            cf.devices(device, workers)


def test_scores_resume_and_are_the_same_on_two_workers(reference: Path, tmp_path: Path):
    for name, workers in (("one", 1), ("two", 2)):
        shutil.copytree(reference, tmp_path / name)
        outcome = score(tmp_path / name, "pixel", workers=workers, reporter=QUIET)
        assert (outcome.scored, outcome.present, outcome.failed) == (4, 0, ())
    found = open_store(tmp_path / "one").scores()
    assert found == open_store(tmp_path / "two").scores()
    assert len(found) == 4 * 3
    assert score(tmp_path / "one", "pixel", workers=1, reporter=QUIET).scored == 0
    # A film that lost one dimension's score gets that one only.
    file = next((tmp_path / "one" / "records" / "scores").iterdir())
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    store = open_store(tmp_path / "one")
    (left,) = missing(store.runs(), store.scores(), scorers.load("pixel").dimensions)
    assert left.dimensions == ("sharpness",)
    score(tmp_path / "one", "pixel", workers=1, reporter=QUIET)
    assert open_store(tmp_path / "one").scores() == found


def test_unreadable_film_is_null_with_a_reason_until_it_is_back(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    store = open_store(tmp_path / "out")
    sha = store.runs()[0].clip.sha256
    content = store.path(sha, "mp4").read_bytes()
    store.path(sha, "mp4").write_bytes(content[:300])
    outcome = score(tmp_path / "out", "pixel", workers=1, reporter=QUIET)
    assert (outcome.scored, [failure.id for failure in outcome.failed]) == (3, [sha])
    nulls = [s for s in store.scores() if s.value is None]
    assert {s.clip_sha for s in nulls} == {sha}
    assert all("cannot be" in s.reason for s in nulls)
    assert len(store.failures()) == 1
    store.path(sha, "mp4").write_bytes(content)
    assert score(tmp_path / "out", "pixel", workers=1, reporter=QUIET).scored == 1
    assert all(s.value is not None for s in store.scores())
    assert store.failures() == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_and_resumed_gives_the_same_records(reference, tmp_path, workers):
    """SIGKILL of the whole command at random moments, then one run to the end."""
    prompt_file(tmp_path / "p.jsonl")
    args = command(
        *("generate", "--prompts", tmp_path / "p.jsonl", "--systems", ",".join(SYSTEMS)),
        *("--seconds", "1", "--out", tmp_path / "out", "--workers", str(workers)),
        *("--device", "cpu"),
    )
    moments = random.Random(workers)
    done = 0
    for _ in range(4 - workers):
        process = subprocess.Popen(
            args, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        # Wait for the next film, then kill a random moment later: loading takes most of the time.
        while process.poll() is None and time.monotonic() < deadline:
            records = tmp_path / "out" / "records" / "runs"
            lines = sum(f.read_bytes().count(b"\n") for f in records.glob("*.jsonl"))
            if lines > done:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = len(LocalStore(tmp_path / "out").done_ids())
    subprocess.run(args, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    assert untimed(tmp_path / "out") == untimed(reference)
    report = verify(open_store(tmp_path / "out"))
    assert report.problems == ()
    assert report.films == 4
