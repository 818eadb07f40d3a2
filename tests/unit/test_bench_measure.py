"""Films made and scored without being stored: the same as alone, resumed, kept apart from files."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfbench import plan, prompts, scorers, video
from cfbench import systems as systems_table
from cfbench.errors import CfError
from cfbench.frame import build_frame
from cfbench.gap import Pair, protocol_gap, summary
from cfbench.generate import generate
from cfbench.measure import batches, make, measure
from cfbench.progress import Reporter
from cfbench.score import score
from cfbench.store import LocalStore, open_store
from cfbench.systems import describe
from cfbench.types import RAW_FRAMES, Score
from cfbench.verify import verify
from tests.helpers.bench import ROOT, cfbench, command, prompt_file, untimed
from tests.helpers.reports import world

SYSTEMS = ("nano/ours", "nano/rendered-truth")
FILMS = 3
QUIET = Reporter(quiet=True)


def todo(
    folder: Path, systems: tuple[str, ...] = SYSTEMS, count: int = FILMS, seconds: float = 1
) -> plan.Plan:
    found = prompts.load(prompt_file(folder / "p.jsonl", count))
    return plan.make(describe(systems), found, seeds=1, seconds=seconds)


def run(wanted: plan.Plan, root: Path, *, batch: int = 2, workers: int = 1, threads: int = 2):
    return measure(
        wanted,
        root,
        suite_name="pixel",
        devices=["cpu"] * workers,
        attention="auto",
        batch=batch,
        threads=threads,
        reporter=QUIET,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A store made in one go by one worker: batches of two and of one."""
    folder = tmp_path_factory.mktemp("reference")
    outcome = run(todo(folder), folder / "out")
    assert (outcome.made, outcome.present, outcome.failed) == (2 * FILMS, 0, ())
    return folder / "out"


def same(root: Path, reference: Path) -> bool:
    """Equal records and equal scores; scores of films without a record do not count."""
    films = {film.clip.sha256 for film in open_store(reference).runs()}
    kept = [s for s in open_store(root).scores() if s.clip_sha in films]
    return untimed(root) == untimed(reference) and kept == open_store(reference).scores()


def test_scores_are_the_suites_own_of_the_same_frames(reference: Path, tmp_path: Path):
    wanted = todo(tmp_path)
    runs = {film.id: film for film in open_store(reference).runs()}
    scores: dict[str, list[Score]] = {}
    for found in open_store(reference).scores():
        scores.setdefault(found.clip_sha, []).append(found)
    suite = scorers.load("pixel")
    for spec in wanted.specs:
        jobs = [job for job in wanted.jobs if job.system == spec.address]
        system = systems_table.load(spec.address, "cpu", "auto")
        for part in (jobs[:2], jobs[2:]):
            for job, frames in zip(part, make(part, system, spec, lambda _: None), strict=True):
                clip = video.held(frames, spec.shape.fps)
                film = runs[job.id]
                assert film.clip.sha256 == clip.sha256
                assert film.batch == len(part)
                assert (film.clip.codec, film.clip.frames) == (RAW_FRAMES, len(frames))
                assert (film.clip.height, film.clip.width) == frames.shape[1:3]
                expected = suite.score(clip, job.prompt)
                assert scores[clip.sha256] == sorted(expected, key=lambda s: s.dimension)
    assert not list(reference.rglob("*.mp4"))
    assert len(list(reference.rglob("*.json"))) == FILMS + 1  # prompts, and the plan


def test_films_of_a_batch_are_those_made_alone(tmp_path: Path):
    for address in ("nano/ours", "nano/rendered-truth", "nano/frozen"):
        wanted = todo(tmp_path, (address,), seconds=3)
        (spec,) = wanted.specs
        assert len({tuple(s.text for s in job.prompt.segments) for job in wanted.jobs}) == FILMS
        system = systems_table.load(address, "cpu", "auto")
        together = make(wanted.jobs, system, spec, lambda _: None)
        for job, frames in zip(wanted.jobs, together, strict=True):
            alone = make([job], system, spec, lambda _: None)[0]
            # Sums in another order round a pixel to its neighbour at most; other noise or another
            # text changes most pixels by tens.
            assert np.abs(frames.astype(int) - alone).max() <= 1, address
        if address == "nano/frozen":
            assert (together == together[:, :1]).all()
        assert np.abs(together[0].astype(int) - together[1]).mean() > 2


@pytest.mark.slow
def test_any_workers_and_threads_make_the_same_records(reference: Path, tmp_path: Path):
    run(todo(tmp_path), tmp_path / "out", workers=2, threads=1)
    assert same(tmp_path / "out", reference)


def test_second_call_makes_nothing(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    before = sorted((tmp_path / "out" / "records").rglob("*"))
    outcome = run(todo(tmp_path), tmp_path / "out")
    assert (outcome.made, outcome.present) == (0, 2 * FILMS)
    assert sorted((tmp_path / "out" / "records").rglob("*")) == before


def test_film_that_lost_a_score_is_made_again_within_its_batch(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    (file,) = (tmp_path / "out" / "records" / "scores").iterdir()
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
    assert run(todo(tmp_path), tmp_path / "out").made == 1
    assert same(tmp_path / "out", reference)


@pytest.mark.parametrize(("kind", "at"), [("scores", 1), ("runs", 1), ("runs", 2), ("scores", 5)])
def test_stopped_between_any_two_records_and_resumed(
    reference: Path, tmp_path: Path, monkeypatch, kind, at
):
    real, seen = LocalStore.append, []

    def stopping(self, name, *records):
        seen.append(name)
        if name == kind and seen.count(kind) == at:
            raise KeyboardInterrupt
        real(self, name, *records)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(todo(tmp_path), tmp_path / "out")
    store = LocalStore(tmp_path / "out")
    names = {spec.name for spec in scorers.load("pixel").dimensions}
    for film in store.runs():
        assert {s.dimension for s in store.scores() if s.clip_sha == film.clip.sha256} == names
    assert run(todo(tmp_path), tmp_path / "out").present == at - 1
    assert same(tmp_path / "out", reference)
    assert verify(open_store(tmp_path / "out")).problems == ()


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_records(reference: Path, tmp_path: Path):
    """SIGKILL of the whole command at random moments, then one run to the end."""
    prompt_file(tmp_path / "p.jsonl", FILMS)
    args = command(
        *("measure", "--prompts", tmp_path / "p.jsonl", "--systems", ",".join(SYSTEMS)),
        *("--seconds", "1", "--suite", "pixel", "--batch", "2", "--out", tmp_path / "out"),
        *("--device", "cpu", "--workers", "2"),
    )
    moments, done = random.Random(0), 0
    for _ in range(2):
        process = subprocess.Popen(
            args, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            files = (tmp_path / "out" / "records" / "runs").glob("*.jsonl")
            if sum(file.read_bytes().count(b"\n") for file in files) > done:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = len(LocalStore(tmp_path / "out").done_ids())
    subprocess.run(args, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert same(tmp_path / "out", reference)
    assert verify(open_store(tmp_path / "out")).problems == ()


def test_a_film_that_fails_leaves_those_recorded_before_it(tmp_path: Path, monkeypatch):
    wanted = todo(tmp_path, ("nano/rendered-truth",))

    pixel = scorers.load("pixel")

    class Failing:
        dimensions = pixel.dimensions
        version = pixel.version

        def score(self, clip, prompt):
            if prompt.id == wanted.jobs[1].prompt.id:
                raise ValueError("cannot be scored")
            return pixel.score(clip, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(scorers, "load", lambda *_: Failing())
        outcome = run(wanted, tmp_path / "out", batch=3)
    assert [failure.id for failure in outcome.failed] == [job.id for job in wanted.jobs[1:]]
    assert outcome.made == 1
    assert {failure.reason for failure in outcome.failed} == {"ValueError: cannot be scored"}
    store = open_store(tmp_path / "out")
    assert [film.id for film in store.runs()] == [wanted.jobs[0].id]
    assert {failure.id for failure in store.failures()} == {job.id for job in wanted.jobs[1:]}
    # Mended, the same command makes the rest, and the failures are no longer open.
    assert run(wanted, tmp_path / "out", batch=3).made == 2
    assert store.failures() == []


def test_batches_follow_from_the_plan_and_not_from_what_is_done(tmp_path: Path):
    jobs = todo(tmp_path, count=5).jobs
    whole = batches(jobs, 2, set())
    assert [len(batch.jobs) for batch in whole] == [2, 2, 1, 2, 2, 1]
    assert all(len({job.system for job in batch.jobs}) == 1 for batch in whole)
    left = batches(jobs, 2, {jobs[0].id, jobs[2].id, jobs[3].id})
    assert [batch.jobs for batch in left] == [batch.jobs for batch in whole if batch != whole[1]]
    assert left[0].wanted == {jobs[1].id}
    longer = replace(jobs[1], chunks=jobs[1].chunks + 1)
    assert [len(batch.jobs) for batch in batches((jobs[0], longer), 2, set())] == [1, 1]
    for size in (0, -1, 2000):
        with pytest.raises(CfError, match=f"--batch {size}: expected 1 to"):
            batches(jobs, size, set())


def test_a_system_that_makes_another_number_of_frames_is_refused(tmp_path: Path):
    wanted = todo(tmp_path, ("nano/rendered-truth",))

    class Off:
        weights: dict[str, str] = {}  # noqa: RUF012
        facts = weights

        def __init__(self, frames: int):
            self.frames = frames

        def films(self, jobs):
            yield np.zeros((len(jobs), self.frames, 64, 64, 3), np.uint8)

        def peak_gib(self) -> float:
            return 0.0

    (spec,) = wanted.specs
    expected = spec.frames(wanted.jobs[0].chunks)
    shape = (FILMS, expected, spec.shape.height, spec.shape.width, 3)
    for frames in (expected - 1, expected + 1):
        with pytest.raises(RuntimeError, match=f"made {frames} frames, expected {expected}"):
            make(wanted.jobs, Off(frames), spec, lambda _: None)
    assert shape[2:4] == (64, 64)
    assert make(wanted.jobs, Off(expected), spec, lambda _: None).shape == shape


def test_protocols_do_not_mix(reference: Path, tmp_path: Path):
    def files(root: Path) -> None:
        generate(todo(tmp_path, ("nano/rendered-truth",), 1), root, devices=["cpu"],
                 attention="auto", reporter=QUIET)  # fmt: skip

    shutil.copytree(reference, tmp_path / "raw")
    with pytest.raises(CfError, match="of protocol raw-frames, and these would be h264-crf18"):
        files(tmp_path / "raw")
    files(tmp_path / "coded")
    with pytest.raises(CfError, match="of protocol h264-crf18, and these would be raw-frames"):
        run(todo(tmp_path), tmp_path / "coded")
    runs = [*open_store(tmp_path / "raw").runs(), *open_store(tmp_path / "coded").runs()]
    mixed = [film if film.system == "ours" else runs[-1] for film in runs]
    with pytest.raises(ValueError, match=r"several protocols \(1 of h264-crf18, 3 of raw-frames\)"):
        build_frame(mixed, [], "lite")
    assert build_frame(runs[:-1], [], "lite").protocol == RAW_FRAMES


def test_score_and_verify_know_that_no_film_is_stored(reference: Path, tmp_path: Path):
    shutil.copytree(reference, tmp_path / "out")
    report = verify(open_store(tmp_path / "out"))
    assert report.problems == ()
    assert report.notes == (f"{2 * FILMS} films were scored as made and are not stored",)
    assert score(tmp_path / "out", "pixel", workers=1, reporter=QUIET).present == 2 * FILMS
    (file,) = (tmp_path / "out" / "records" / "scores").iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(CfError, match=r"1 films of .* run cfbench measure --suite pixel again"):
        score(tmp_path / "out", "pixel", workers=1, reporter=QUIET)
    (problem,) = verify(open_store(tmp_path / "out")).problems
    assert problem.endswith(f"{2 * FILMS - 1} of {2 * FILMS} films scored; run cfbench measure")
    # A line that is no record stops a run before its first film; a torn last one does not.
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(CfError, match=r"jsonl:1 is not a record"):
        run(todo(tmp_path), tmp_path / "out")
    file.write_bytes(whole[:-10])
    assert run(todo(tmp_path), tmp_path / "out").made == 1


def test_page_and_tables_say_the_protocol(reference: Path, tmp_path: Path):
    from cfbench.aggregate import DIMENSIONS, Range, normaliser_bytes
    from cfbench.report import check, report

    ranges = {name: Range(0.0, 1.0) for name in DIMENSIONS}
    own = tmp_path / "normaliser.json"
    own.write_bytes(normaliser_bytes("test", clamp=True, ranges=ranges))
    report(reference, tmp_path / "r", suite="lite", paper=False, command="x", commit="c",
           normaliser=own)  # fmt: skip
    for name in ("ablation.csv", "ablation.md", "ablation.tex", "differences.csv", "films.csv"):
        assert "protocol raw-frames" in (tmp_path / "r" / "tables" / name).read_text(), name
    page = (tmp_path / "r" / "gallery" / "index.html").read_text()
    assert f"{2 * FILMS} films were scored as made (raw-frames) and not stored: not here." in page
    assert not (tmp_path / "r" / "plots" / "contact-sheet.png").exists()
    assert check(reference, tmp_path / "r", normaliser=own) == []
    runs, scores = world({"ours": 0.5})
    assert build_frame(runs, scores, "tiny").stored.runs == build_frame(runs, scores, "tiny").runs


WITHOUT_PYAV = """
import sys
sys.modules["av"] = None  # any import of it raises
from cfbench.cli import main
main()
"""


def test_nothing_needs_pyav(tmp_path: Path):
    prompt_file(tmp_path / "p.jsonl", 1)
    args = ("measure", "--prompts", tmp_path / "p.jsonl", "--seconds", "1", "--device", "cpu",
            "--workers", "1", "--systems", "nano/ours,nano/frozen,nano/rendered-truth",
            "--suite", "tiny", "--out", tmp_path / "out")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYAV, *map(str, args)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = open_store(tmp_path / "out").runs()
    assert {film.system for film in runs} == {"ours", "frozen", "rendered-truth"}
    assert all(film.environment["scored_on"] == "cpu" for film in runs)
    assert len(open_store(tmp_path / "out").scores()) == 3 * len(scorers.load("tiny").dimensions)


def test_gap_by_hand():
    pairs = [
        Pair(f"p{k}", 0, {"a": 0.5 + 0.01 * k, "b": None, "c": 1.0}, {"a": 0.5, "b": None, "c": c})
        for k, c in enumerate((1.0, 1.0, None, 1.0, 1.0))
    ]
    found = summary(pairs)
    assert found["a"]["mean"] == pytest.approx(0.02)
    assert found["a"]["low"] < 0.02 < found["a"]["high"]
    assert (found["b"]["mean"], found["b"]["films"], found["b"]["differ"]) == (None, 0, 0)
    assert (found["c"]["mean"], found["c"]["films"], found["c"]["differ"]) == (0.0, 4, 1)


def test_gap_of_real_films(tmp_path: Path):
    def gap(systems: tuple[str, ...]):
        return protocol_gap(
            todo(tmp_path, systems), suite_name="pixel", devices=["cpu"], attention="auto",
            reporter=QUIET,
        )  # fmt: skip

    found = gap(("nano/rendered-truth",))
    assert found["films"] == FILMS
    assert found["difference"] == "raw-frames minus h264-crf18"
    # H.264 takes detail away; a film compared with itself would have no gap.
    assert found["dimensions"]["sharpness"]["mean"] > 0
    assert abs(found["dimensions"]["exposure"]["mean"]) < 0.2
    with pytest.raises(CfError, match="of one system"):
        gap(SYSTEMS)
    with pytest.raises(CfError, match="weights not trained yet"):
        gap(("nano/no-cdmd",))


def test_command_says_what_it_did(tmp_path: Path):
    prompt_file(tmp_path / "p.jsonl", 1)
    args = ("measure", "--prompts", tmp_path / "p.jsonl", "--systems", "nano/rendered-truth",
            "--seconds", "1", "--suite", "pixel", "--device", "cpu", "--workers", "1",
            "--out", tmp_path / "out")  # fmt: skip
    done = cfbench(*args, "--batch", "0")
    assert done.returncode == 2
    assert "--batch 0: expected 1 to" in done.stderr
    assert not (tmp_path / "out").exists()
    done = cfbench(*args)
    assert done.returncode == 0, done.stderr
    assert "made: 1" in done.stdout
