"""Lines of records as a store keeps them, and the records in them."""

import functools
import gc
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from cfbench.compacted import Kept
from cfbench.errors import CfError
from cfbench.types import SCHEMA, ClipInfo, RunRecord, Score, WindowScore, to_json


class Line(NamedTuple):
    """One stored record and when it was written, in nanoseconds since 1970 (UTC)."""

    at: int
    record: dict[str, Any]


class Damage(NamedTuple):
    """A line that cannot be read; ``torn`` when it is the unfinished last one of its file."""

    where: str
    torn: bool


@contextmanager
def uncollected() -> Generator[None]:
    """No search for cycles while many records are made, which have none: half of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def latest(lines: Iterator[Line], key: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    """The last record of each key, sorted by key; the order in which lines come does not matter.

    Two records written in the same nanosecond are ordered by their canonical JSON.
    """
    last: dict[Any, Line] = {}
    for line in lines:
        name = key(line.record)
        before = last.get(name)
        if (
            before is None
            or line.at > before.at
            or (line.at == before.at and dump(line.record) > dump(before.record))
        ):
            last[name] = line
    return [last[name].record for name in sorted(last)]


def numbered(file: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1, counted from byte ``start`` on."""
    with file.open("rb") as handle:
        handle.seek(start)
        yield from enumerate(handle, 1)


def whole_bytes(file: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    content = file.read_bytes()
    return content.rfind(b"\n") + 1


def later(one: Kept, before: Kept) -> bool:
    """Whether a score comes after another one, as ``latest`` orders records."""
    if one.at != before.at:
        return one.at > before.at
    return dump(to_json(one.score)) > dump(to_json(before.score))


def parse(raw: bytes) -> Line | None:
    """The record in a line; None where it is torn or damaged."""
    if not raw.endswith(b"\n"):
        return None
    try:
        # Of text, not of bytes: whose encoding would be guessed again for every line.
        tree = json.loads(raw.decode())
    except ValueError:
        return None
    if not isinstance(tree, dict) or tree.keys() != {"at", "record"}:
        return None
    return Line(tree["at"], tree["record"])


def dump(tree: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def build(kind: Any, tree: dict[str, Any]) -> Any:
    """A record of its tree.

    Raises:
        CfError: of another version, or with other keys.
    """
    if tree.get("schema") != SCHEMA:
        raise CfError(f"{kind.__name__} schema {tree.get('schema')!r}: this version reads {SCHEMA}")
    known = _names(kind)
    if tree.keys() != known:
        raise CfError(f"{kind.__name__} has unknown or missing keys {sorted(set(tree) ^ known)}")
    return kind(**tree)


@functools.cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def run_from(tree: dict[str, Any]) -> RunRecord:
    """The run of a record's JSON tree.

    Raises:
        CfError: of another version, or with other keys.
    """
    return build(RunRecord, {**tree, "clip": ClipInfo(**tree["clip"])})


def score_from(tree: dict[str, Any]) -> Score:
    """The score of a record's JSON tree.

    Raises:
        CfError: of another version, or with other keys.
    """
    windows = tuple(WindowScore(**window) for window in tree["windows"])
    return build(Score, {**tree, "windows": windows})


def failure_key(tree: dict[str, Any]) -> tuple[str, str]:
    """Of failures of one key the last counts."""
    return tree["stage"], tree["id"]
