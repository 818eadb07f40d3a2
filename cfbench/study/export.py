"""What was collected, as tables: effective votes and sessions, the key in a file of its own."""

import contextlib
import csv
import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfbench.errors import CfError
from cfbench.store import write_atomic
from cfbench.study import database
from cfbench.study.assign import Item
from cfbench.study.design import load
from cfbench.study.raters import VOTES
from cfbench.study.tables import SESSION_COLUMNS, VOTE_COLUMNS, Design, SessionRow, Vote
from cfbench.study.writer import DATABASE

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so may be run as a formula by a spreadsheet."""


def open_votes(folder: Path) -> sqlite3.Connection:
    """The votes of a study, to read, also while it is being served.

    Raises:
        CfError: nobody has served the study yet.
    """
    path = folder / VOTES / DATABASE
    if not path.is_file():
        raise CfError(f"no votes in {folder}; run cfbench study serve first")
    return database.connect(path, read_only=True)


def votes(db: sqlite3.Connection, design: Design) -> list[Vote]:
    """Effective votes: the last answer of each session to each question about each pair."""
    rows = db.execute(
        "SELECT session, pair, question, answer, detail, at, "
        "count(*) OVER (PARTITION BY session, pair, question), "
        "row_number() OVER (PARTITION BY session, pair, question ORDER BY seq DESC) "
        "FROM answers ORDER BY session, seq"
    ).fetchall()
    given: dict[str, dict[str, Item]] = {}
    for session in {row[0] for row in rows}:
        given[session] = {item.pair: item for item in database.items_of(db, session)}
    return [
        _vote(design, given[row[0]][row[1]], row[:7]) for row in rows if row[7] == 1
    ]  # fmt: skip


def _vote(design: Design, item: Item, row: tuple[Any, ...]) -> Vote:
    session, pair_id, question, answer, detail, at, count = row
    pair = design.pair(pair_id)
    shown = design.pair(item.of) if item.of else pair
    return Vote(
        session=session, pair=pair_id, comparison=shown.comparison, prompt=shown.prompt,
        question=question, kind=pair.kind, answer=answer, side_of_ours=item.side,
        expected=expected(design, item), of=item.of, block=item.block, order=item.order,
        changes=count - 1, at=at, **json.loads(detail),
    )  # fmt: skip


def expected(design: Design, item: Item) -> str:
    """The answer that passes a check; empty where there is none."""
    pair = design.pair(item.pair)
    return item.side if pair.kind == "obvious" else pair.expected


def sessions(db: sqlite3.Connection, design: Design) -> list[SessionRow]:
    """All sessions with their checks, in order of their beginning.

    An instruction is passed by the answer it asks for, an obvious pair when the whole film is
    preferred in the first question.
    """
    passed: dict[str, int] = {}
    failed: dict[str, int] = {}
    for vote in votes(db, design):
        if vote.expected and vote.question == design.questions[0].id:
            count = passed if vote.answer == vote.expected else failed
            count[vote.session] = count.get(vote.session, 0) + 1
    rows = db.execute(
        "SELECT session, code, started, consent, "
        "(SELECT coalesce(min(at), '') FROM finished WHERE finished.session = sessions.session), "
        "(SELECT coalesce(group_concat(text, char(10)), '') FROM comments "
        "WHERE comments.session = sessions.session) FROM sessions ORDER BY started, session"
    )
    return [
        SessionRow(
            session=session, code_hash=code, started=started, finished=finished,
            checks_passed=passed.get(session, 0), checks_failed=failed.get(session, 0),
            consent=consent, comment=comment,
        )
        for session, code, started, consent, finished, comment in rows
    ]  # fmt: skip


def status(folder: Path) -> dict[str, Any]:
    """How far a study is: votes a cell and question, blind to what was answered."""
    design, _ = load(folder)
    with contextlib.closing(open_votes(folder)) as db:
        found, people = votes(db, design), sessions(db, design)
    cells = {f"{pair.comparison} {pair.prompt}": 0 for pair in design.pairs if pair.kind == "main"}
    for vote in found:
        if vote.kind == "main" and vote.question == design.questions[0].id:
            cells[f"{vote.comparison} {vote.prompt}"] += 1
    return {
        "sessions": len(people),
        "finished": sum(bool(row.finished) for row in people),
        "votes": len(found),
        "target_votes": design.plan.target_votes,
        "cells": cells,
        "complete": all(count >= design.plan.target_votes for count in cells.values()),
    }


def export(folder: Path, to: Path) -> dict[str, Any]:
    """Write ``votes.*``, ``sessions.*`` and ``key.json`` into a folder; what was written.

    The tables name no system: comparisons go by their place in the design (``comparison-0``), and
    which systems these are stands in the key.

    Raises:
        CfError: there are no votes.
    """
    design, sealed = load(folder)
    with contextlib.closing(open_votes(folder)) as db:
        tables: dict[str, tuple[Sequence[str], list[dict[str, Any]]]] = {
            "votes": (VOTE_COLUMNS, [vote.row() for vote in votes(db, design)]),
            "sessions": (SESSION_COLUMNS, [row.row() for row in sessions(db, design)]),
        }
    for name, (columns, rows) in tables.items():
        write_atomic(to / f"{name}.csv", as_csv(columns, rows))
        lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows]
        write_atomic(to / f"{name}.jsonl", "".join(lines).encode())
        write_atomic(to / f"{name}.parquet", as_parquet(columns, rows))
    key = {
        "design": sealed,
        "comparisons": {
            item.name: {"ours": item.ours, "baseline": item.baseline}
            for item in design.comparisons
        },
        "systems": design.systems,
    }  # fmt: skip
    write_atomic(to / "key.json", json.dumps(key, indent=1, sort_keys=True).encode() + b"\n")
    return {"to": str(to), **{name: len(rows) for name, (_, rows) in tables.items()}}


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV in which no text is a formula to a spreadsheet."""
    text = io.StringIO()
    # All texts are quoted: a lone carriage return would end a row otherwise.
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows([{name: harmless(row[name]) for name in columns} for row in rows])
    return text.getvalue().encode()


def harmless(value: Any) -> Any:
    """A cell's value; a text that a spreadsheet would run gets an apostrophe before it.

    Example:
        >>> harmless("=1+1"), harmless("fine"), harmless(-1.0)
        ("'=1+1", 'fine', -1.0)
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value


def as_parquet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: [row[name] for row in rows] for name in columns})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
