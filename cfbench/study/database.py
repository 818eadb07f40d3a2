"""The database of a study: a fold of its events, into which rows are only ever inserted."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cfbench.study.assign import Counts, Item

BUSY_MS = 5000
Event = dict[str, Any]

SCHEMA = """
CREATE TABLE log (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE study (design TEXT NOT NULL);
CREATE TABLE sessions (
    session TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE, code TEXT NOT NULL,
    consent TEXT NOT NULL, started TEXT NOT NULL
);
CREATE TABLE participants (hash TEXT PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions);
CREATE TABLE items (
    session TEXT NOT NULL REFERENCES sessions, place INTEGER NOT NULL, block INTEGER NOT NULL,
    pair TEXT NOT NULL, of TEXT NOT NULL, side TEXT NOT NULL,
    PRIMARY KEY (session, place), UNIQUE (session, pair)
);
CREATE TABLE votes (
    session TEXT NOT NULL, pair TEXT NOT NULL, question TEXT NOT NULL, seq INTEGER NOT NULL,
    UNIQUE (session, pair, question),
    FOREIGN KEY (session, pair) REFERENCES items (session, pair)
);
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY, session TEXT NOT NULL, pair TEXT NOT NULL, question TEXT NOT NULL,
    answer TEXT NOT NULL, detail TEXT NOT NULL, at TEXT NOT NULL,
    FOREIGN KEY (session, pair, question) REFERENCES votes (session, pair, question)
);
CREATE INDEX answers_of ON answers (session, pair, question, seq);
CREATE TABLE finished (
    session TEXT NOT NULL REFERENCES sessions, block INTEGER NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (session, block)
);
CREATE TABLE comments (
    seq INTEGER PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions, text TEXT NOT NULL
);
"""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to the study's database: WAL, every commit on disk, foreign keys kept.

    A new database gets its tables. A read-only connection sees what was committed last.
    """
    if read_only:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        db.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        return db
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        db.execute(f"PRAGMA {pragma}")
    db.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'log'").fetchone():
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
    return db


def last_seq(db: sqlite3.Connection) -> int:
    """Number of the last event that the database holds; 0 of none."""
    return db.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()[0]


def apply(db: sqlite3.Connection, event: Event) -> None:
    """Insert an event's rows. Called inside a transaction, by the writer and by ``rebuild``."""
    seq, at, kind = event["seq"], event["at"], event["kind"]
    db.execute("INSERT INTO log VALUES (?, ?, ?)", (seq, kind, at))
    session = event.get("session", "")
    if kind == "study":
        db.execute("INSERT INTO study VALUES (?)", (event["design"],))
    elif kind == "session":
        row = (session, event["token"], event["code"], event["consent"], at)
        db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", row)
    elif kind == "participant":
        db.execute("INSERT INTO participants VALUES (?, ?)", (event["hash"], session))
    elif kind == "block":
        rows = [(session, *item) for item in event["items"]]
        db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
    elif kind == "vote":
        _apply_vote(db, event)
    elif kind == "finished":
        db.execute("INSERT INTO finished VALUES (?, ?, ?)", (session, event["block"], at))
    else:
        db.execute("INSERT INTO comments VALUES (?, ?, ?)", (seq, session, event["text"]))


def _apply_vote(db: sqlite3.Connection, event: Event) -> None:
    key = (event["session"], event["pair"], event["question"])
    # The first answer makes the vote; later ones are appended beside it.
    db.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)", (*key, event["seq"]))
    detail = json.dumps(event["detail"], sort_keys=True)
    row = (event["seq"], *key, event["answer"], detail, event["at"])
    db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def fold(db: sqlite3.Connection, events: Iterable[Event]) -> int:
    """Apply those events that the database lacks, in one transaction; returns how many."""
    before, count = last_seq(db), 0
    db.execute("BEGIN IMMEDIATE")
    for event in events:
        if event["seq"] > before:
            apply(db, event)
            count += 1
    db.execute("COMMIT")
    return count


def design_hash(db: sqlite3.Connection) -> str:
    """Hash of the design that the votes were given under; empty before the first start."""
    row = db.execute("SELECT design FROM study").fetchone()
    return row[0] if row else ""


def items_of(db: sqlite3.Connection, session: str) -> tuple[Item, ...]:
    """What a session was given, in order."""
    rows = db.execute(
        "SELECT place, block, pair, of, side FROM items WHERE session = ? ORDER BY place",
        (session,),
    )
    return tuple(Item(*row) for row in rows)


def answers_of(db: sqlite3.Connection, session: str) -> dict[tuple[str, str], tuple[str, str]]:
    """A session's last answers and their reasons by (pair, question)."""
    rows = db.execute(
        "SELECT pair, question, answer, detail FROM answers WHERE session = ? ORDER BY seq",
        (session,),
    )
    return {
        (pair, question): (answer, json.loads(detail)["reason"])
        for pair, question, answer, detail in rows
    }


def last_answer(db: sqlite3.Connection, session: str, pair: str, question: str) -> tuple[str, str]:
    """The last answer to a question and its reason; both empty before the first."""
    row = db.execute(
        "SELECT answer, detail FROM answers WHERE session = ? AND pair = ? AND question = ? "
        "ORDER BY seq DESC LIMIT 1",
        (session, pair, question),
    ).fetchone()
    return (row[0], json.loads(row[1])["reason"]) if row else ("", "")


def counts(db: sqlite3.Connection, since: str) -> Counts:
    """How often each pair was given out, by raters who finished or began after ``since``.

    Those who left in the middle long ago count no more, so that others get their pairs.
    """
    rows = db.execute(
        "SELECT items.pair, count(*), sum(items.side = 'left') FROM items "
        "JOIN sessions USING (session) LEFT JOIN finished "
        "ON finished.session = items.session AND finished.block = items.block "
        "WHERE sessions.started >= ? OR finished.at IS NOT NULL GROUP BY items.pair",
        (since,),
    ).fetchall()
    return Counts({pair: n for pair, n, _ in rows}, {pair: left for pair, _, left in rows})


def dump(db: sqlite3.Connection) -> list[str]:
    """The whole content as SQL, to compare two databases by."""
    return list(db.iterdump())


def event(kind: str, session: str, **values: Any) -> Event:
    """An event without number and time, which the writer gives it."""
    return {"kind": kind, "session": session, **values}


def item_tree(items: Iterable[Item]) -> list[list[Any]]:
    """Items as an event holds them."""
    return [list(item) for item in items]


def detail(values: Mapping[str, Any], client: str) -> dict[str, Any]:
    """What is stored of a vote beside its answer."""
    names = (
        "reason", "watched_left_s", "watched_right_s", "replays", "hidden_s", "response_s"
    )  # fmt: skip
    return {**{name: values[name] for name in names}, "client": client}
