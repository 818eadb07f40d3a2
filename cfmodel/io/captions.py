"""Films and their captions: a folder with a text beside each film, or a table of both."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
TABLES = (".csv", ".jsonl")
CAPTION = ".txt"


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film of a collection.

    ``id`` is its path below the collection's root, or the line of a table that names none.
    ``reason`` says why it cannot be used; empty if nothing speaks against it yet.
    """

    id: str
    path: Path
    text: str = ""
    reason: str = ""


def list_films(
    source: Path, *, root: Path | None = None, file_key: str, caption_key: str
) -> list[Film]:
    """Films in a fixed order: of a folder by name, of a table by line.

    A folder is searched through all its levels, a film's caption stands in a ``.txt`` of the same
    name beside it. A table is CSV with a header, or JSON lines.

    Args:
        source: a folder, or a table that ends in .csv or .jsonl.
        root: folder to which a table's files are relative; None is the table's own.
        file_key: column or key of the film's path.
        caption_key: column or key of its caption.

    Raises:
        ValueError: no such source, no films in it, or a table without these columns.
    """
    if source.is_dir():
        names = (p for p in source.rglob("*") if p.suffix.lower() in FILMS and p.is_file())
        ordered = sorted((path.relative_to(source).as_posix(), path) for path in names)
        films = [_beside(name, path) for name, path in ordered]
        if not films:
            raise ValueError(f"{source} holds no films; expected files {', '.join(FILMS)}")
        return films
    if source.suffix not in TABLES:
        raise ValueError(f"{source}: expected a folder of films, or a table {', '.join(TABLES)}")
    if root is not None and not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    read = _csv_rows if source.suffix == ".csv" else _json_rows
    rows = read(_read(source), source, (file_key, caption_key))
    films = [_of_row(row, root or source.parent) for row in rows]
    if not films:
        raise ValueError(f"{source} lists no films; expected one a line")
    return _once(films)


@dataclass(frozen=True, kw_only=True)
class _Row:
    where: str
    file: Any = None
    caption: Any = None
    reason: str = ""


def _read(table: Path) -> str:
    try:
        # Bytes that are no UTF-8 become lone surrogates, so that one bad line spoils itself alone.
        return table.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"cannot read {table}: {error.strerror}; check SOURCE") from error


def _csv_rows(text: str, table: Path, keys: tuple[str, str]) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    missing = [key for key in keys if key not in columns]
    if missing:
        raise ValueError(
            f"{table} has no column {missing[0]!r}, but {', '.join(columns) or 'none'}; name it "
            "with --file-key or --caption-key"
        )
    try:
        for row in reader:
            where = f"{table.name}, line {reader.line_num}"
            yield _Row(where=where, file=row[keys[0]], caption=row[keys[1]])
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: no CSV ({error})") from error


def _json_rows(text: str, table: Path, keys: tuple[str, str]) -> Iterator[_Row]:
    # Other line ends than these may stand inside a JSON string.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        where = f"{table.name}, line {number}"
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
        except json.JSONDecodeError as error:
            yield _Row(where=where, reason=f"not JSON ({error})")
            continue
        if not isinstance(tree, dict):
            yield _Row(where=where, reason="expected a JSON object")
            continue
        yield _Row(where=where, file=tree.get(keys[0]), caption=tree.get(keys[1]))


def _of_row(row: _Row, root: Path) -> Film:
    if row.reason or not isinstance(row.file, str) or not row.file.strip():
        return Film(id=row.where, path=root, reason=row.reason or "names no film")
    if not _is_text(row.file):
        return Film(id=row.where, path=root, reason="its film's name is not UTF-8")
    path = root / row.file
    name = path.relative_to(root) if path.is_relative_to(root) else path
    film = Film(id=name.as_posix(), path=path)
    if row.caption is not None and not isinstance(row.caption, str):
        return replace(film, reason=f"caption is {type(row.caption).__name__}; expected a text")
    return _captioned(film, row.caption or "")


def _beside(name: str, path: Path) -> Film:
    film, beside = Film(id=name, path=path), path.with_suffix(CAPTION)
    try:
        data = beside.read_bytes()
    except FileNotFoundError:
        return replace(film, reason=f"no caption: expected {beside.name} beside it")
    except OSError as error:
        return replace(film, reason=f"caption cannot be read: {error.strerror}")
    return _captioned(film, data.decode("utf-8-sig", errors="surrogateescape"))


def _captioned(film: Film, caption: str) -> Film:
    if not _is_text(caption):
        return replace(film, reason="caption is not UTF-8")
    text = " ".join(caption.split())
    return replace(film, text=text, reason="" if text else "no caption: it is empty")


def _is_text(text: str) -> bool:
    """Whether a text has no lone surrogates, which stand for bytes that were no UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _once(films: list[Film]) -> list[Film]:
    """The films, a second mention of one replaced by a reason."""
    seen: set[str] = set()
    kept: list[Film] = []
    for film in films:
        kept.append(replace(film, reason="listed twice") if film.id in seen else film)
        seen.add(film.id)
    return kept
