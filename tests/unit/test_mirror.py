"""A store in an S3-compatible server that the test starts: two hosts, one truth."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cfbench.errors import CfError
from cfbench.mirror import Mirror
from cfbench.status import Beat, status
from cfbench.store import LocalStore, open_store
from tests.helpers.bench import CLIP, command, run_record, score_record
from tests.helpers.bench import ROOT as ROOT_FOLDER

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

ROOT = Path("s3://films/run")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A running server with an empty bucket, and this process pointed at it."""
    serving = server.ThreadedMotoServer(port=0)
    serving.start()
    host, port = serving.get_host_and_port()
    patch = pytest.MonkeyPatch()
    url = f"http://{host}:{port}"
    for name, value in (
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        patch.setenv(name, value)
    fsspec.filesystem("s3").mkdir("films")
    yield url
    patch.undo()
    serving.stop()


def host(cache: Path, url: str = "s3://films/run") -> LocalStore:
    """A store as another host sees it: the same address, a cache of its own."""
    return LocalStore(cache, Mirror(url=url, folder=cache))


def test_what_one_host_writes_the_other_reads(bucket: str, tmp_path: Path):
    url = "s3://films/two"
    one, two = host(tmp_path / "one", url), host(tmp_path / "two", url)
    sha = one.put_bytes(b"film", "mp4")
    one.append("runs", run_record("a", clip=replace(CLIP, sha256=sha)))
    two.append("runs", run_record("b", clip=replace(CLIP, sha256=sha)))
    one.write_plan({"systems": [], "null": {}, "jobs": ["a", "b", "c"]})
    assert one.runs() == two.runs()
    assert [run.id for run in one.runs()] == ["a", "b"]
    assert two.done_ids() == {"a", "b"}
    assert two.path(sha, "mp4").read_bytes() == b"film"
    assert two.plan()["jobs"] == ["a", "b", "c"]
    assert status(two)["left"] == 1
    with Beat(one):
        pass
    assert status(two)["running"] == {}


def test_a_lost_cache_loses_nothing_and_a_stale_one_adds_nothing(bucket: str, tmp_path: Path):
    url = "s3://films/lost"
    one = host(tmp_path / "one", url)
    one.append("runs", run_record("a"))
    shutil.rmtree(tmp_path / "one")
    assert [run.id for run in one.runs()] == ["a"]
    stranger = tmp_path / "one" / "records" / "runs" / "stranger.jsonl"
    stranger.write_bytes((next(stranger.parent.iterdir())).read_bytes().replace(b'"a"', b'"z"'))
    assert [run.id for run in one.runs()] == ["a"]


def append_forever(cache: str, number: int) -> None:
    store = host(Path(cache))
    count = 0
    while True:
        store.append("runs", run_record(f"{number}-{count}"))
        (Path(cache).parent / f"said-{number}").write_text(str(count))
        count += 1


def test_two_hosts_that_are_killed_while_writing_lose_and_tear_nothing(bucket: str, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    hosts = [
        context.Process(target=append_forever, args=(str(tmp_path / f"host-{k}"), k))
        for k in range(2)
    ]
    for process in hosts:
        process.start()
    said = [tmp_path / f"said-{k}" for k in range(2)]
    end = time.monotonic() + 60
    while not all(path.exists() and int(path.read_text() or 0) >= 5 for path in said):
        assert time.monotonic() < end
        os.sched_yield()
    for process in hosts:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    store = host(tmp_path / "reader")
    found = {run.id for run in store.runs()}
    for number, path in enumerate(said):
        # What was told as written is there; the one in work may or may not be.
        assert {f"{number}-{count}" for count in range(int(path.read_text()) + 1)} <= found
    assert store.damage() == []


def test_scores_compacted_by_one_host_are_read_by_another(bucket: str, tmp_path: Path):
    url = "s3://films/compact"
    one, two = host(tmp_path / "one", url), host(tmp_path / "two", url)
    scores = [score_record(CLIP.sha256, name, 0.5) for name in ("exposure", "sharpness")]
    one.append("scores", *scores)
    assert two.compact() == 2
    late = score_record(CLIP.sha256, "flicker", 0.25)
    one.append("scores", late)
    third = host(tmp_path / "three", url)
    assert third.scores() == one.scores() == [scores[0], late, scores[1]]
    assert one.compact() == 3
    assert two.scores() == third.scores() == one.scores()
    assert len(list((tmp_path / "two" / "compacted").glob("*.json"))) == 1


@pytest.mark.slow
def test_a_whole_run_of_two_hosts_in_an_object_store(bucket: str, tmp_path: Path):
    """Two hosts make films at once; one scores, compacts, and reports what both have made."""
    out = "s3://films/whole"
    made = ("--prompts", "2", "--systems", "nano/ours,nano/rendered-truth", "--seconds", "1")
    hosts = [tmp_path / f"host-{k}" for k in range(2)]
    for folder in hosts:
        folder.mkdir()

    def at(folder: Path) -> dict[str, str]:
        """A host's own temporary folder, in which its cache lies."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}

    both = [
        subprocess.Popen(
            command("generate", *made, "--out", out, "--workers", "1", "--shard", f"{k}/2"),
            cwd=ROOT_FOLDER, env=at(folder),
        )
        for k, folder in enumerate(hosts)
    ]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]

    def told(*words: str) -> dict[str, object]:
        done = subprocess.run(
            command(*words, "--out", out, "--json"), capture_output=True, text=True,
            cwd=ROOT_FOLDER, env=at(hosts[1]), check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    assert told("status")["done"] == 4
    told("score", "--workers", "1")
    scores = open_store(Path(out)).scores()
    assert told("compact")["scores"] == len(scores) > 0
    assert open_store(Path(out)).scores() == scores
    assert told("verify")["problems"] == []
    page = told("report", "--to", str(tmp_path / "report"))
    assert page["films"] == 4
    assert (tmp_path / "report" / "tables" / "ablation.csv").is_file()
    again = told("generate", *made, "--workers", "1")
    assert (again["made"], again["present"]) == (0, 4)


def test_addresses_open_stores_and_unknown_ones_are_refused(bucket: str):
    with pytest.raises(CfError, match="no records in s3://films/none"):
        open_store(Path("s3://films/none"))
    with pytest.raises(CfError, match="nosuch://x"):
        open_store(Path("nosuch://x"))
