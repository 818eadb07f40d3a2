import json
import time
from pathlib import Path

import pytest

from cfbench import scale
from cfbench.errors import CfError
from cfbench.fanout import Event
from cfbench.status import Beat, status
from cfbench.store import LocalStore
from cfbench.types import Failure
from tests.helpers.bench import run_record


def planned(root: Path, jobs: list[str]) -> LocalStore:
    root.mkdir(exist_ok=True)
    store = LocalStore(root)
    store.write_plan({"systems": [], "null": {}, "jobs": jobs})
    return store


def test_each_planned_job_counts_once_and_others_not_at_all(tmp_path: Path):
    with planned(tmp_path, ["a", "b", "c", "d"]) as store:
        for name in ("a", "a", "b", "stranger"):
            store.append("runs", run_record(name))
        store.append(
            "failures",
            Failure(
                stage="generate", id="c", system="ours", prompt_id="p", seed=0, reason="x",
                attempts=2,
            ),
        )  # fmt: skip
        found = status(store)
    assert (found["jobs"], found["done"], found["failed"], found["left"]) == (4, 2, 1, 2)
    assert found["done_by_system"] == {"ours": 2}
    assert found["films_per_s"] > 0
    assert found["frames_per_s"] == pytest.approx(57 * found["films_per_s"], rel=0.01)
    assert found["seconds_left"] is not None


def test_a_beat_tells_what_each_worker_has_in_hand_and_ends_with_its_driver(tmp_path: Path):
    store = planned(tmp_path, ["a"])
    with Beat(store) as beat:
        beat.follow(Event("progress", 0, 0.0, worker="node 12 process 3"))
        (name,) = status(store)["running"]
        assert name.endswith("node 12 process 3")
        # The beat of a driver that was killed long ago counts for nothing.
        (path,) = (tmp_path / "beats").glob("*.json")
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({**tree, "at": tree["at"] - 1000}))
        assert status(store)["running"] == {}
    assert list((tmp_path / "beats").iterdir()) == []


def test_a_beat_goes_on_while_a_job_lasts_and_nobody_brings_news(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("cfbench.status.BEAT_S", 0.05)
    monkeypatch.setattr("cfbench.status.AGAIN_S", 0.1)
    store = planned(tmp_path, ["a", "b"])
    with Beat(store) as beat:
        beat.follow(Event("progress", 0, 0.0, worker="one"))
        beat.follow(Event("progress", 1, 0.0, worker="two"))  # too soon to be told at once
        (path,) = (tmp_path / "beats").glob("*.json")
        first, end = json.loads(path.read_text())["at"], time.monotonic() + 10
        while json.loads(path.read_text())["at"] < first + 0.3:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert {name.split()[-1] for name in status(store)["running"]} == {"one", "two"}


def test_an_empty_store_has_no_rate_and_no_time_left(tmp_path: Path):
    found = status(planned(tmp_path, ["a"]))
    assert (found["frames_per_s"], found["seconds_left"]) == (0.0, None)


def test_made_up_stores_have_the_sizes_asked_for(tmp_path: Path):
    found = scale.fill(1600, tmp_path / "s")
    assert found == {"films": 100}
    report = scale.time_report(1600, tmp_path / "s")
    assert (report["rows"], report["films"]) == (1600, 100)
    assert scale.time_plan(1600, tmp_path / "t") == {"jobs": 1600, "missing": 1600}
    with pytest.raises(CfError, match="expected numbers from 25"):
        scale.speed_scale([3], tmp_path)
