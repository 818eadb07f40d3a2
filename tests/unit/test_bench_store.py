import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfbench.compact import COLUMNS, compact
from cfbench.compacted import key_of
from cfbench.errors import CfError
from cfbench.records import Line, latest, parse
from cfbench.store import LocalStore, open_store, write_atomic
from cfbench.types import Failure, Score, WindowScore
from cfbench.verify import verify
from tests.helpers.bench import CLIP, cfbench, run_record, score_record


def film(store: LocalStore, content: bytes = b"film") -> str:
    return store.put_bytes(content, "mp4")


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_records_come_back_as_written(tmp_path: Path):
    run = run_record()
    score = score_record(CLIP.sha256, "exposure", 0.5)
    with LocalStore(tmp_path) as store:
        store.append("runs", run)
        store.append("scores", score)
    again = open_store(tmp_path)
    assert again.runs() == [run]
    assert again.scores() == [score]


def test_last_record_of_a_job_wins_whatever_the_files_are_called(tmp_path: Path):
    with LocalStore(tmp_path) as first, LocalStore(tmp_path) as second:
        second.append("runs", run_record(seconds=1.0))
        first.append("runs", run_record(seconds=2.0))
    assert [run.seconds for run in LocalStore(tmp_path).runs()] == [2.0]
    files = sorted((tmp_path / "records" / "runs").iterdir())
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    assert [run.seconds for run in LocalStore(tmp_path).runs()] == [2.0]


LINES = st.lists(
    st.builds(
        Line,
        at=st.integers(0, 3),
        record=st.fixed_dictionaries({"id": st.sampled_from("abc"), "v": st.integers(0, 3)}),
    )
)


@given(LINES, st.randoms(use_true_random=False))
def test_dedupe_does_not_depend_on_the_order_of_lines(lines, random):
    shuffled = list(lines)
    random.shuffle(shuffled)
    found = latest(iter(lines), lambda record: record["id"])
    assert found == latest(iter(shuffled), lambda record: record["id"])
    for record in found:
        mine = [line for line in lines if line.record["id"] == record["id"]]
        assert record["v"] in [x.record["v"] for x in mine if x.at == max(y.at for y in mine)]
    assert [r["id"] for r in found] == sorted({line.record["id"] for line in lines})


def test_torn_last_line_is_ignored_and_reported(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        store.append("runs", run_record("a"))
        store.append("runs", run_record("b"))
    file = next((tmp_path / "records" / "runs").iterdir())
    file.write_bytes(file.read_bytes()[:-20])
    store = open_store(tmp_path)
    assert [run.id for run in store.runs()] == ["a"]
    (damage,) = store.damage()
    assert damage.torn
    assert damage.where.endswith(":2")


def test_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        store.append("runs", run_record("a"))
        store.append("runs", run_record("b"))
    file = next((tmp_path / "records" / "runs").iterdir())
    file.write_bytes(b"{" + file.read_bytes())
    with pytest.raises(CfError, match=r"\.jsonl:1 is not a record"):
        open_store(tmp_path).runs()
    report = verify(open_store(tmp_path))
    assert any(":1: not a record" in problem for problem in report.problems)


def test_record_of_another_schema_is_refused(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        store.append("runs", run_record(schema=99))
    with pytest.raises(CfError, match="schema 99"):
        open_store(tmp_path).runs()


def test_full_disk_while_appending_leaves_no_part_of_the_line(tmp_path: Path, monkeypatch):
    write = os.write
    with LocalStore(tmp_path) as store:
        store.append("runs", run_record("a"))
        monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:10]))
        with pytest.raises(CfError, match=r"No space left on device.*free the disk"):
            store.append("runs", run_record("b"))
        monkeypatch.setattr(os, "write", write)
        store.append("runs", run_record("c"))
    assert [run.id for run in open_store(tmp_path).runs()] == ["a", "c"]
    assert open_store(tmp_path).damage() == []


def test_full_disk_while_storing_leaves_no_object(tmp_path: Path, monkeypatch):
    with LocalStore(tmp_path) as store:
        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(CfError, match="No space left"):
            film(store)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_atomic_write_keeps_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CfError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_removes_scratch_of_the_dead_only(tmp_path: Path):
    dead = tmp_path / "tmp" / "dead"
    dead.mkdir(parents=True)
    (dead / "1.mp4").write_bytes(b"half")
    with LocalStore(tmp_path) as living, LocalStore(tmp_path) as store:
        kept = living.scratch("mp4")
        kept.write_bytes(b"half")
        assert store.sweep() == 1
        assert kept.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_done_needs_a_record_and_its_film(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        sha = film(store)
        clip = {"clip": CLIP.__class__(**{**vars(CLIP), "sha256": sha})}
        store.append("runs", run_record("a", **clip))
        store.append("runs", run_record("b"))
    assert open_store(tmp_path).done_ids() == {"a"}


def test_failure_is_open_until_a_later_success(tmp_path: Path):
    failure = Failure(
        stage="generate", id="a", system="ours", prompt_id="p", seed=0, reason="x", attempts=2
    )
    with LocalStore(tmp_path) as store:
        store.append("failures", failure)
        assert store.failures() == [failure]
        store.append("runs", run_record("a"))
        assert store.failures() == []
        store.append("failures", failure)
        assert store.failures() == [failure]


def test_verify_finds_changed_missing_and_unscored_films(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        for name in ("good", "changed", "missing"):
            sha = film(store, name.encode())
            prompt_sha = store.put_bytes(b"{}", "json")
            clip = CLIP.__class__(**{**vars(CLIP), "sha256": sha})
            store.append("runs", run_record(name, clip=clip, prompt_sha=prompt_sha))
            if name == "good":
                store.append("scores", score_record(sha, "exposure", 1.0))
        shas = {run.id: run.clip.sha256 for run in store.runs()}
        store.path(shas["changed"], "mp4").write_bytes(b"other")
        store.path(shas["missing"], "mp4").unlink()
        film(store, b"orphan")
    report = verify(open_store(tmp_path))
    text = "\n".join(report.problems)
    assert f"{shas['changed']}.mp4: content does not match" in text
    assert f"{shas['missing']}.mp4: missing" in text
    assert shas["good"] not in text
    assert "exposure: 1 of 3 films scored" in text
    assert len(report.problems) == 3
    assert [note for note in report.notes if "no record names it" in note]


def test_compact_is_the_long_table(tmp_path: Path):
    windows = (
        WindowScore(start_s=0, end_s=1, value=0.25),
        WindowScore(start_s=1, end_s=2, value=None),
    )
    score = score_record(CLIP.sha256, "exposure", 0.5)
    null = score_record(CLIP.sha256, "sharpness", None)
    with LocalStore(tmp_path) as store:
        store.append("runs", run_record("a"))
        store.append("scores", replace(score, windows=windows))
        store.append("scores", replace(null, reason="why"))
        assert compact(store, tmp_path / "t.parquet") == 4
    table = pq.read_table(tmp_path / "t.parquet")
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert [(r["window_start_s"], r["value"]) for r in rows] == [
        (None, 0.5),
        (0.0, 0.25),
        (1.0, None),
        (None, None),
    ]
    assert rows[3]["reason"] == "why"
    assert {r["system"] for r in rows} == {"ours"}


def test_compact_by_columns_is_the_same_table_in_parts(tmp_path: Path):
    with LocalStore(tmp_path / "s") as store:
        store.append("runs", run_record("a"))
        for name, value in (("exposure", 0.5), ("sharpness", 0.25)):
            store.append("scores", score_record(CLIP.sha256, name, value))
    stale = tmp_path / "t" / "system=gone" / "dimension=exposure" / "scores.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    assert compact(store, tmp_path / "t", by=["system", "dimension"]) == 2
    assert not stale.exists()
    rows = pq.read_table(tmp_path / "t").to_pylist()
    assert {(row["system"], row["dimension"], row["value"]) for row in rows} == {
        ("ours", "exposure", 0.5),
        ("ours", "sharpness", 0.25),
    }
    with pytest.raises(CfError, match="--by value: expected some of system"):
        compact(store, tmp_path / "u", by=["value"])


WINDOWS = (
    WindowScore(start_s=0, end_s=1, value=0.1),
    WindowScore(start_s=1, end_s=2, value=None),
)


def scores_of(count: int, value: float = 0.25) -> list[Score]:
    """Of as many films: with windows, null with a reason, plain."""
    found: list[Score] = []
    for k in range(count):
        sha = f"{k:064x}"
        found += [
            replace(score_record(sha, "exposure", value + k / 3), windows=WINDOWS),
            replace(score_record(sha, "sharpness", None), reason="why", details={"a": [1, "b"]}),
            replace(score_record(sha, "exposure", 0.5), version="2"),
        ]
    return sorted(found, key=key_of)


def test_compacted_scores_are_those_of_the_lines(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        store.append("scores", *scores_of(3, value=0.9))
        store.append("scores", *scores_of(3))
        before = open_store(tmp_path).scores()
        assert store.compact() == len(before) == 9
        again = open_store(tmp_path)
        assert again.scores() == before == scores_of(3)
        assert again.scored() == {key_of(score) for score in before}
        # Lines behind the table count, older ones in front of it do not come back.
        late = replace(scores_of(1)[0], value=0.75)
        store.append("scores", late, *scores_of(4)[-3:])
        assert open_store(tmp_path).scores() == [late, *scores_of(4)[1:]]
        assert store.compact() == 12
        assert open_store(tmp_path).scores() == [late, *scores_of(4)[1:]]
    (manifest,) = (tmp_path / "compacted").glob("*.json")
    parts = sorted(p.parent.relative_to(manifest.with_suffix("")).as_posix()
                   for p in manifest.with_suffix("").rglob("*.parquet"))  # fmt: skip
    assert parts == ["tier=lite/dimension=exposure", "tier=lite/dimension=sharpness"]
    rows = pq.read_table(manifest.with_suffix("")).to_pylist()
    assert {row["dimension"] for row in rows} == {"exposure", "sharpness"}
    assert len(rows) == 12


def test_a_compacted_table_is_read_instead_of_its_lines(tmp_path: Path, monkeypatch):
    with LocalStore(tmp_path) as store:
        store.append("scores", *scores_of(2))
        store.compact()
        store.append("scores", *scores_of(3)[-3:])
    read: list[bytes] = []
    monkeypatch.setattr("cfbench.store.parse", lambda raw: read.append(raw) or parse(raw))
    assert open_store(tmp_path).scores() == scores_of(3)
    assert len(read) == 3


@pytest.mark.parametrize("fault", ["torn part", "no part", "torn manifest", "lines gone", "schema"])
def test_a_table_that_is_torn_or_of_other_lines_is_not_read(tmp_path: Path, fault):
    with LocalStore(tmp_path) as store:
        store.append("scores", *scores_of(2))
        store.compact()
    (manifest,) = (tmp_path / "compacted").glob("*.json")
    part = next(manifest.with_suffix("").rglob("*.parquet"))
    lines = next((tmp_path / "records" / "scores").iterdir())
    expected = scores_of(2)
    match fault:
        case "torn part":
            part.write_bytes(part.read_bytes()[:50])
        case "no part":
            part.unlink()
        case "torn manifest":
            manifest.write_bytes(manifest.read_bytes()[:20])
        case "lines gone":
            kept = lines.read_bytes().splitlines(keepends=True)[:3]
            lines.write_bytes(b"".join(kept))
            expected = expected[:3]
        case _:
            manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 99'))
    assert len(open_store(tmp_path).scores()) == len(expected)
    assert {key_of(s) for s in open_store(tmp_path).scores()} <= {key_of(s) for s in scores_of(2)}
    assert open_store(tmp_path).compact() == len(expected)
    assert len(list((tmp_path / "compacted").glob("*.json"))) == 1


def test_a_torn_line_is_not_compacted_and_failures_know_compacted_successes(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        sha = f"{0:064x}"
        failure = Failure(
            stage="score", id=sha, system="ours", prompt_id="p", seed=0, reason="x", attempts=2
        )
        store.append("failures", failure)
        assert [one.id for one in store.failures()] == [sha]
        store.append("scores", *scores_of(1))
        file = next((tmp_path / "records" / "scores").iterdir())
        size = file.stat().st_size
        with file.open("ab") as handle:
            handle.write(b'{"at": 1, "rec')
        store.compact()
    (manifest,) = (tmp_path / "compacted").glob("*.json")
    assert list(json.loads(manifest.read_text())["taken"].values()) == [size]
    assert open_store(tmp_path).failures() == []


def test_the_verb_compacts_a_run(tmp_path: Path):
    with LocalStore(tmp_path) as store:
        store.append("scores", *scores_of(2))
    told = cfbench("compact", "--out", str(tmp_path), "--json")
    assert json.loads(told.stdout)["scores"] == 6
    assert open_store(tmp_path).scores() == scores_of(2)


def test_no_store_is_an_error_that_names_the_verb(tmp_path: Path):
    with pytest.raises(CfError, match="run cfbench generate"):
        open_store(tmp_path)


def test_plan_survives(tmp_path: Path):
    store = LocalStore(tmp_path)
    assert store.plan()["jobs"] == []
    store.write_plan({"systems": [], "null": {"a": "why"}, "jobs": ["1"]})
    assert store.plan()["null"] == {"a": "why"}
    assert json.loads((tmp_path / "plan.json").read_text())["jobs"] == ["1"]
