"""What raters answered, read back: the tables of an export, and whom the design leaves out.

No vote is ever deleted: exclusion is a list of reasons beside the votes.
"""

import contextlib
import csv
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cfbench.errors import CfError
from cfbench.study.tables import (
    ANSWERS,
    KINDS,
    SIDES,
    Design,
    SessionRow,
    Vote,
    design_of,
)

DESIGN = "design.json"
KEY = "key.json"
TIE = 0.5

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A study as analysis sees it; ``design_sha`` is the hash of the design's file."""

    design: Design
    design_sha: str
    votes: tuple[Vote, ...]
    sessions: tuple[SessionRow, ...]


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """Who and what the design's rules leave out.

    Attributes:
        raters: reasons by session; a rater with any is left out whole.
        unwatched: main votes given without watching enough, of raters who stay; whoever cannot
            judge need not watch.
    """

    raters: Mapping[str, tuple[str, ...]]
    unwatched: tuple[Vote, ...]


def read_answers(folder: Path, design: Path | None = None) -> Answers:
    """The answers of an export, or of a study's own folder, which may be serving meanwhile.

    Raises:
        CfError: see ``load_answers`` and ``load_study``; or a study was given another design.
    """
    from cfbench.study.raters import VOTES

    if not (folder / VOTES).is_dir():
        return load_answers(folder, design)
    if design is not None:
        raise CfError(f"{folder} is a study with a design of its own; leave --design out")
    return load_study(folder)


def load_study(folder: Path) -> Answers:
    """The votes of a study's own folder as they stand now. Nothing is written.

    Raises:
        CfError: the design has changed since it was sealed, or nobody has served the study.
    """
    from cfbench.study.design import load
    from cfbench.study.export import open_votes, sessions, votes

    plan, digest = load(folder)
    with contextlib.closing(open_votes(folder)) as db:
        db.execute("BEGIN")  # one snapshot for both tables
        found, people = tuple(votes(db, plan)), tuple(sessions(db, plan))
    check(plan, found)
    return Answers(design=plan, design_sha=digest, votes=found, sessions=people)


def load_answers(folder: Path, design: Path | None = None) -> Answers:
    """The tables of an exported study.

    Args:
        folder: what ``cfbench study export`` wrote.
        design: the study's ``design.json``; default is the one in ``folder``.

    Raises:
        CfError: a file is missing or broken, the votes do not fit the design, the sides are
            missing, or the design is not the one that the votes were given under.
    """
    path = design or folder / DESIGN
    content = _bytes(path, "name the study's design.json with --design")
    plan = design_of(_tree(path, content))
    digest = hashlib.sha256(content).hexdigest()
    key = folder / KEY
    if key.is_file() and _tree(key, key.read_bytes()).get("design", digest) != digest:
        raise CfError(f"{path} is not the design that {key} names; give the study's own")
    votes = tuple(_record(Vote, row, where) for row, where in _rows(folder, "votes"))
    sessions = tuple(_record(SessionRow, row, where) for row, where in _rows(folder, "sessions"))
    check(plan, votes)
    return Answers(design=plan, design_sha=digest, votes=votes, sessions=sessions)


def check(design: Design, votes: Sequence[Vote]) -> None:
    """Refuse votes that the design cannot have asked for.

    Raises:
        CfError: unknown pair, question, comparison, answer or kind; two votes on one question; or
            a main vote without the side on which our system stood.
    """
    pairs = {pair.id for pair in design.pairs}
    comparisons = {item.name for item in design.comparisons}
    questions = {item.id for item in design.questions}
    for vote in votes:
        where = f"vote of {vote.session} on {vote.pair}, {vote.question}"
        known = vote.pair in pairs and vote.question in questions
        if not known or vote.kind not in KINDS or vote.answer not in ANSWERS:
            raise CfError(f"{where}: not a vote of this design; give the study's own design.json")
        if vote.kind == "main" and vote.comparison not in comparisons:
            raise CfError(f"{where}: the design has no comparison {vote.comparison!r}")
        if vote.kind in ("main", "repeat") and vote.side_of_ours not in SIDES:
            raise CfError(f"{where}: no side; export the study again with its key")
    counted = Counter((vote.session, vote.pair, vote.question) for vote in votes)
    for (session, pair, question), count in counted.items():
        if count > 1:
            raise CfError(f"{count} votes of {session} on {pair}, {question}; expected one")


def outcome(vote: Vote) -> float | None:
    """1 where ours was preferred, 0 where the other was, 1/2 for a tie, None for "cannot judge"."""
    if vote.answer == "cannot":
        return None
    if vote.answer == "tie":
        return TIE
    return float(vote.answer == vote.side_of_ours)


def main_votes(votes: Iterable[Vote]) -> tuple[Vote, ...]:
    """The votes that preference is made of."""
    return tuple(vote for vote in votes if vote.kind == "main")


def exclusions(answers: Answers) -> Exclusions:
    """The design's exclusion rules, applied; every reason says what was found and the threshold."""
    by_session: dict[str, list[Vote]] = {row.session: [] for row in answers.sessions}
    for vote in answers.votes:
        by_session.setdefault(vote.session, []).append(vote)
    raters = {
        session: reasons
        for session, votes in by_session.items()
        if (reasons := rater_reasons(answers.design, votes))
    }
    unwatched = tuple(
        vote
        for vote in main_votes(answers.votes)
        if vote.session not in raters
        and vote.answer != "cannot"
        and not was_watched(answers.design, vote)
    )
    return Exclusions(raters=raters, unwatched=unwatched)


def kept(answers: Answers, found: Exclusions) -> tuple[Vote, ...]:
    """All votes but those that the exclusion rules leave out."""
    unwatched = {(vote.session, vote.pair, vote.question) for vote in found.unwatched}
    return tuple(
        vote
        for vote in answers.votes
        if vote.session not in found.raters
        and (vote.session, vote.pair, vote.question) not in unwatched
    )


def rater_reasons(design: Design, votes: Sequence[Vote]) -> tuple[str, ...]:
    """Why a rater is left out, one text a rule; empty for those who stay.

    A check that was never answered is not failed, and a rule without anything to judge by does
    not apply. Checks are judged by the first question, as the export counts them.
    """
    rules = design.exclusion
    first = design.questions[0].id
    failed = Counter(
        vote.kind
        for vote in votes
        if vote.expected and vote.question == first and vote.answer != vote.expected
    )
    reasons: list[str] = []
    for kind, most in (
        ("instruction", rules.most_failed_instructions),
        ("obvious", rules.most_failed_obvious),
    ):
        if failed[kind] > most:
            reasons.append(f"failed {failed[kind]} {kind} checks; at most {most}")
    times = _by_pair(main_votes(votes), lambda vote: vote.response_s)
    if times and (median := statistics.median(times)) < rules.fastest_s:
        reasons.append(f"median of {median:.1f} s a pair; at least {rules.fastest_s:g} s")
    total = sum(times)
    hidden = sum(_by_pair(main_votes(votes), lambda vote: vote.hidden_s))
    if total > 0 and hidden / total > rules.most_hidden:
        reasons.append(f"hidden {hidden / total:.0%} of the time; at most {rules.most_hidden:.0%}")
    alike = repeats(votes)
    if alike and (share := statistics.fmean(a == b for a, b in alike)) < rules.least_repeat:
        reasons.append(f"repeated {share:.0%} of answers; at least {rules.least_repeat:.0%}")
    return tuple(reasons)


def repeats(votes: Iterable[Vote]) -> list[tuple[float, float]]:
    """Outcomes of the first showing and the repeated one, where both were judged.

    Outcomes say which system was preferred, so a rater who answers by side is not consistent.
    """
    found = list(votes)
    first = {(vote.session, vote.pair, vote.question): outcome(vote) for vote in main_votes(found)}
    pairs = [
        (first.get((vote.session, vote.of, vote.question)), outcome(vote))
        for vote in found
        if vote.kind == "repeat"
    ]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def was_watched(design: Design, vote: Vote) -> bool:
    """Whether enough of both films was seen, as the server asks for it before it takes a vote.

    Raises:
        CfError: the design does not describe the film.
    """
    from cfbench.study.raters import SLACK_S

    name = design.pair(vote.of or vote.pair).ours
    if name not in design.media:
        raise CfError(f"the design has no film {name!r} of pair {vote.pair}")
    least = design.exclusion.least_watched * design.media[name].frames / design.media[name].fps
    return min(vote.watched_left_s, vote.watched_right_s) >= least - SLACK_S


def _by_pair(votes: Iterable[Vote], value: Callable[[Vote], float]) -> list[float]:
    """The largest value of each pair: times count up over the questions of one pair."""
    found: dict[tuple[str, str], float] = {}
    for vote in votes:
        key = (vote.session, vote.pair)
        found[key] = max(found.get(key, 0.0), value(vote))
    return list(found.values())


def _rows(folder: Path, name: str) -> list[tuple[Row, str]]:
    """Rows of a table and where each stands, of the first format that the folder has."""
    for suffix, read in (("jsonl", _jsonl), ("parquet", _parquet), ("csv", _csv)):
        path = folder / f"{name}.{suffix}"
        if path.is_file():
            return [(row, f"{path}, row {index}") for index, row in enumerate(read(path), 1)]
    raise CfError(f"no {name} table in {folder}; run cfbench study export first")


def _jsonl(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_tree(path, line.encode()) for line in lines if line]


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise CfError(f"{path} is no Parquet file: {error}") from error


def _csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _record(kind: Callable[..., Any], row: Row, where: str) -> Any:
    """A row as its record; texts of a CSV become numbers where the record holds numbers."""
    types: dict[str, Any] = {item.name: item.type for item in fields(kind)}  # pyright: ignore
    if set(row) != set(types):
        wrong = sorted(set(row) ^ set(types), key=str)
        raise CfError(f"{where}: columns {wrong} are missing or unknown")
    try:
        return kind(
            **{
                name: types[name](value) if types[name] in (int, float) else value
                for name, value in row.items()
            }
        )
    except (ValueError, TypeError) as error:
        raise CfError(f"{where}: {error}") from error


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CfError(f"cannot read {path}: {error.strerror}; {remedy}") from error


def _tree(path: Path, content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise CfError(f"{path} is no JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CfError(f"{path}: expected JSON objects")
    return tree
