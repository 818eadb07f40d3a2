"""Votes: what is stored, when it counts, and what survives."""

import contextlib
import csv
import io
import json
import threading

import pytest

from cfbench.errors import CfError
from cfbench.study import database, writer
from cfbench.study.database import event
from cfbench.study.design import load
from cfbench.study.export import as_csv, export, harmless, status
from cfbench.study.trial import rebuilt_equal
from cfbench.study.writer import Decision, RefusedError, Writer, rebuild
from tests.helpers.study import study_folder

DETAIL = {
    "reason": "", "watched_left_s": 1.0, "watched_right_s": 1.0, "replays": 0, "hidden_s": 0.0,
    "response_s": 1.0, "client": "test",
}  # fmt: skip


def begun(session):
    return [
        event("session", session, token=f"t{session}", code="c", consent="k"),
        event("block", session, items=[[0, 0, "pair", "", "left"]]),
    ]


def voted(session, answer, question="q"):
    return event("vote", session, pair="pair", question=question, answer=answer, detail=DETAIL)


def do(one, *events):
    """Store events and wait until they are on disk."""
    done, told = threading.Event(), []

    def tell(result, failed):
        told.append(failed)
        done.set()

    one.submit(lambda _: Decision(tuple(events), None), tell)
    assert done.wait(20)
    if told[0] is not None:
        raise told[0]


@pytest.fixture
def votes(tmp_path):
    one = Writer(tmp_path / "votes", "design")
    yield one
    one.close()


def answers(folder):
    with contextlib.closing(database.connect(folder / writer.DATABASE, read_only=True)) as db:
        return db.execute("SELECT session, answer FROM answers ORDER BY seq").fetchall()


def test_what_was_acknowledged_is_in_database_and_mirror(votes):
    do(votes, *begun("a"), voted("a", "left"))
    assert answers(votes.folder) == [("a", "left")]
    kinds = [one["kind"] for one in writer.read_events(votes.folder / writer.MIRROR)]
    assert kinds == ["study", "session", "block", "vote"]


def test_later_answers_are_appended(votes):
    do(votes, *begun("a"), voted("a", "left"))
    do(votes, voted("a", "right"))
    assert answers(votes.folder) == [("a", "left"), ("a", "right")]
    with contextlib.closing(database.connect(votes.folder / writer.DATABASE)) as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone() == (1,)
        assert database.last_answer(db, "a", "pair", "q") == ("right", "")


def test_a_refused_operation_stores_nothing_and_harms_no_other(votes):
    def refuse(_):
        raise RefusedError("no", 409)

    told, done = [], threading.Event()
    votes.submit(refuse, lambda result, failed: told.append(failed))

    def tell(*args):
        told.append(args)
        done.set()

    votes.submit(lambda _: Decision(tuple(begun("a")), 7), tell)
    assert done.wait(20)
    assert isinstance(told[0], RefusedError)
    assert told[1] == (7, None)


def test_a_batch_that_fails_leaves_neither_half(votes):
    do(votes, *begun("a"))
    before = (votes.folder / writer.MIRROR).read_bytes()
    with pytest.raises(Exception, match="FOREIGN KEY"):
        do(votes, voted("nobody", "left"))
    assert (votes.folder / writer.MIRROR).read_bytes() == before
    do(votes, voted("a", "tie"))
    assert answers(votes.folder) == [("a", "tie")]


def test_the_database_is_rebuilt_equal_from_the_mirror(votes, tmp_path):
    do(votes, *begun("a"), voted("a", "left"))
    do(votes, voted("a", "tie"), event("finished", "a", block=0), event("comment", "a", text="é"))
    copy = tmp_path / "copy.sqlite"
    assert rebuild(votes.folder / writer.MIRROR, copy) == 7
    with (
        contextlib.closing(database.connect(copy)) as new,
        contextlib.closing(database.connect(votes.folder / writer.DATABASE)) as old,
    ):
        assert database.dump(new) == database.dump(old)
    with pytest.raises(CfError, match="exists"):
        rebuild(votes.folder / writer.MIRROR, copy)


def test_a_torn_line_goes_and_a_mirror_ahead_is_folded_in(tmp_path):
    one = Writer(tmp_path, "design")
    do(one, *begun("a"))
    one.close()
    ahead = {**voted("a", "left"), "seq": 4, "at": "2026-01-01T00:00:00.000+00:00"}
    with (tmp_path / writer.MIRROR).open("ab") as handle:
        handle.write(json.dumps(ahead).encode() + b'\n{"seq": 5, "kin')
    again = Writer(tmp_path, "design")
    do(again, voted("a", "right"))
    again.close()
    assert answers(tmp_path) == [("a", "left"), ("a", "right")]
    assert [e["seq"] for e in writer.read_events(tmp_path / writer.MIRROR)] == [1, 2, 3, 4, 5]


def test_missing_events_are_noticed(tmp_path):
    one = Writer(tmp_path, "design")
    do(one, *begun("a"))
    one.close()
    lines = (tmp_path / writer.MIRROR).read_bytes().splitlines(keepends=True)
    (tmp_path / writer.MIRROR).write_bytes(b"".join(lines[1:]))
    with pytest.raises(CfError, match="events are missing"):
        Writer(tmp_path, "design")


def test_a_second_server_and_another_design_are_refused(votes, tmp_path):
    with pytest.raises(CfError, match="another server"):
        Writer(votes.folder, "design")
    other = tmp_path / "other"
    Writer(other, "design").close()
    with pytest.raises(CfError, match="another design"):
        Writer(other, "changed")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "overlay"])
def test_file_systems_that_lose_votes_are_refused(tmp_path, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nhost:/x {tmp_path} {kind} rw 0 0\n")
    with pytest.raises(CfError, match=f"lies on {kind}"):
        writer.check_local(tmp_path / "study", mounts)
    mounts.write_text("/dev/a / ext4 rw 0 0\n")
    writer.check_local(tmp_path / "study", mounts)


def test_a_backup_is_a_whole_database(votes):
    do(votes, *begun("a"), voted("a", "left"))
    copy = writer.back_up(votes.folder)
    with contextlib.closing(database.connect(copy, read_only=True)) as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone() == (1,)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "  =cmd()"])
def test_no_cell_is_a_formula(text):
    assert harmless(text) == "'" + text
    table = as_csv(["reason"], [{"reason": text}]).decode()
    (row,) = csv.DictReader(io.StringIO(table, newline=""))
    assert row["reason"].startswith("'")


def test_status_and_export_need_votes_and_name_no_system(tmp_path):
    study = study_folder(tmp_path)
    with pytest.raises(CfError, match="serve first"):
        status(study)
    one = Writer(study / "votes", load(study)[1])
    pair = next(pair for pair in load(study)[0].pairs if pair.kind == "main")
    events = begun("a")
    events[1]["items"] = [[0, 0, pair.id, "", "left"]]
    do(one, *events, {**voted("a", "left", "aesthetics"), "pair": pair.id})
    assert status(study)["votes"] == 1
    assert sum(status(study)["cells"].values()) == 1
    assert export(study, tmp_path / "tables") == {
        "to": str(tmp_path / "tables"), "votes": 1, "sessions": 1
    }  # fmt: skip
    one.close()
    assert rebuilt_equal(study)
    for name in ("votes.csv", "votes.jsonl", "sessions.csv"):
        assert "longlive" not in (tmp_path / "tables" / name).read_text()
    (row,) = (json.loads(line) for line in (tmp_path / "tables" / "votes.jsonl").open())
    assert (row["side_of_ours"], row["answer"]) == ("left", "left")
    assert row["comparison"] == "comparison-0"
    assert json.loads((tmp_path / "tables" / "key.json").read_text())["systems"]["longlive"]
