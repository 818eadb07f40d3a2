"""The one store of films and records: append-only lines, and objects named by their hash.

Layout under the root::

    records/<kind>/<writer>.jsonl    one file a writer process; kind is runs, scores or failures
    objects/<aa>/<sha256>.<ext>      films (mp4) and prompts (json), complete or absent; films of
                                     protocol raw-frames are not kept
    tmp/<writer>/                    what is being written; swept once its writer is gone
    beats/<driver>.json              what a driver's workers have in hand
    compacted/                       scores as Parquet, see ``cfbench.compacted``
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

from cfbench import compacted
from cfbench.compacted import Kept, key_of
from cfbench.errors import UNWRITABLE, CfError, unwritable
from cfbench.mirror import Mirror, url_of
from cfbench.records import (
    Damage,
    Line,
    build,
    dump,
    failure_key,
    later,
    latest,
    numbered,
    parse,
    run_from,
    score_from,
    uncollected,
    whole_bytes,
)
from cfbench.types import (
    Failure,
    RunRecord,
    Score,
    to_json,
)

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Kind = Literal["runs", "scores", "failures"]
KINDS: tuple[Kind, ...] = ("runs", "scores", "failures")
FOLDERS = ("records", "objects", "tmp", "beats", compacted.FOLDER)
HASH_BLOCK = 1 << 20


class Store(Protocol):
    """What generation, scoring and reports need of a store."""

    def append(self, kind: Kind, *records: RunRecord | Score | Failure) -> None:
        """Add records durably."""
        ...

    def put(self, source: Path, sha: str, ext: str) -> Path:
        """Move a finished scratch file to its place as object ``sha``, atomically."""
        ...

    def put_bytes(self, content: bytes, ext: str) -> str:
        """Store ``content`` as an object and return its sha256."""
        ...

    def scratch(self, ext: str) -> Path:
        """A fresh path for a file being written."""
        ...

    def path(self, sha: str, ext: str) -> Path:
        """Where object ``sha`` lies, or would."""
        ...

    def runs(self) -> list[RunRecord]:
        """The last record of each job."""
        ...

    def scores(self) -> list[Score]:
        """The last score of each (film, dimension, version)."""
        ...

    def failures(self) -> list[Failure]:
        """Failures that no later success replaced."""
        ...

    def done_ids(self) -> set[str]:
        """Ids of the jobs that have a record and, where films are stored, a film."""
        ...

    def plan(self) -> dict[str, Any]:
        """What was planned last."""
        ...


class LocalStore:
    """A store in a folder; many processes may write to it at once.

    Use as a context manager where something is written: a writer owns one file a kind and one
    scratch folder, which it holds a lock on for as long as it lives. It becomes a writer with its
    first write: until then it may be sent to another process.

    Args:
        root: the folder; made on the first write.
        mirror: an object store that all hosts reach; the folder is then its cache.
    """

    def __init__(self, root: Path, mirror: Mirror | None = None) -> None:
        self.root = root
        self._mirror = mirror
        self._parts = 0
        self._files: dict[Kind, int] = {}
        self._lock: int | None = None
        self._scratched = 0
        self._last_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def _writer(self) -> str:
        # Process ids repeat between hosts, and clocks may agree.
        return f"{time.time_ns():x}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def close(self) -> None:
        """Close the writer's files and remove its scratch folder."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
        if self._lock is not None:
            shutil.rmtree(self._tmp, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def append(self, kind: Kind, *records: RunRecord | Score | Failure) -> None:
        """Add records durably: one write of whole lines, then fsync.

        Raises:
            CfError: the disk is full or refuses; nothing of the lines stays.
        """
        lines = b"".join(self._line(record) for record in records)
        if self._mirror is not None:
            self._append_part(kind, lines, self._mirror)
            return
        path = self.root / "records" / kind / f"{self._writer}.jsonl"
        try:
            if kind not in self._files:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[kind] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                _sync_folder(path.parent)
            _write_lines(self._files[kind], lines)
        except OSError as error:
            raise unwritable(path, error) from error

    def _append_part(self, kind: Kind, lines: bytes, mirror: Mirror) -> None:
        """An object of its own for each append: it appears whole or not at all."""
        self._parts += 1
        name = f"records/{kind}/{self._writer}-{self._parts:06d}.jsonl"
        mirror.push(name, lines)
        # The cache may lag behind, never the other way round.
        write_atomic(self.root / name, lines)

    def _line(self, record: RunRecord | Score | Failure) -> bytes:
        # Strictly rising within a writer, so that "last" is the last one appended.
        self._last_at = max(time.time_ns(), self._last_at + 1)
        return dump({"at": self._last_at, "record": to_json(record)}) + b"\n"

    def scratch(self, ext: str) -> Path:
        """A fresh path, on the same disk as the objects, for a file being written."""
        try:
            if self._lock is None:
                self._lock = self._lock_scratch()
        except OSError as error:
            raise unwritable(self._tmp, error) from error
        self._scratched += 1
        return self._tmp / f"{self._scratched}.{ext}"

    def _lock_scratch(self) -> int:
        while True:
            self._tmp.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._tmp, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have swept the folder before it was locked.
            if self._tmp.exists():
                return lock
            os.close(lock)

    def put(self, source: Path, sha: str, ext: str) -> Path:
        """Move a finished scratch file to its place as object ``sha``, atomically.

        Raises:
            CfError: the disk is full or refuses; the scratch file is gone, no object appeared.
        """
        target = self.path(sha, ext)
        try:
            with source.open("rb") as handle:
                os.fsync(handle.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._mirror is not None:
                self._mirror.push_file(_object(sha, ext), source)
            os.replace(source, target)
            _sync_folder(target.parent)
        except OSError as error:
            source.unlink(missing_ok=True)
            raise unwritable(target, error) from error
        return target

    def put_bytes(self, content: bytes, ext: str) -> str:
        """Store ``content`` as an object and return its sha256; does nothing when it is there."""
        sha = hashlib.sha256(content).hexdigest()
        if not self.path(sha, ext).exists():
            source = self.scratch(ext)
            try:
                source.write_bytes(content)
            except OSError as error:
                source.unlink(missing_ok=True)
                raise unwritable(source, error) from error
            self.put(source, sha, ext)
        return sha

    def path(self, sha: str, ext: str) -> Path:
        """Where object ``sha`` lies, or would; it is fetched if only other hosts have it."""
        path = self.root / _object(sha, ext)
        if self._mirror is not None and not path.exists():
            self._mirror.pull(_object(sha, ext))
        return path

    def sweep(self) -> int:
        """Remove scratch folders whose writer is gone; returns how many."""
        swept = 0
        for folder in sorted((self.root / "tmp").glob("*")):
            if folder == self._tmp:
                continue
            try:
                handle = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:  # its writer has just ended
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
            except BlockingIOError:
                log.debug("scratch folder %s is in use", folder.name)
            finally:
                os.close(handle)
        return swept

    def check_writable(self, need_bytes: int = 0) -> None:
        """Refuse to start when the root cannot be written or has too little room.

        Raises:
            CfError: with the remedy.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.scratch("probe")
            probe.write_bytes(b"\0")
            probe.unlink()
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise unwritable(self.root, error) from error
        if free < need_bytes:
            raise CfError(
                f"{self.root} has {free / 1e6:.0f} MB free and about {need_bytes / 1e6:.0f} MB "
                "are needed; free the disk or choose another --out"
            )

    def discard_empty(self) -> None:
        """Take back what a start that failed has made: all of it, while there is no record."""
        if any(self._record_files(kind) for kind in KINDS):
            return
        self.close()
        # A disk that refuses to be written refuses this too, and then nothing was made.
        with contextlib.suppress(OSError):
            (self.root / "plan.json").unlink(missing_ok=True)
            made = (*self.root.glob("[ro]*s/*"), *map(self.root.joinpath, FOLDERS), self.root)
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def runs(self) -> list[RunRecord]:
        """The last record of each job, sorted by id."""
        with uncollected():
            return [run_from(tree) for tree in self._latest("runs", lambda r: r["id"])]

    def scores(self) -> list[Score]:
        """The last score of each (film, dimension, version), sorted."""
        return [one.score for one in self._scores()]

    def _scores(self) -> list[Kept]:
        """As ``scores``: what is compacted, and the lines behind it."""
        with uncollected():
            return self._merged()

    def _merged(self) -> list[Kept]:
        rows, taken = self._compacted(compacted.Table.read)
        known = {key_of(one.score): one for one in rows}
        for line in self.lines("scores", taken):
            one = Kept(line.at, score_from(line.record))
            before = known.get(key_of(one.score))
            if before is None or later(one, before):
                known[key_of(one.score)] = one
        return [known[name] for name in sorted(known)]

    def compact(self) -> int:
        """Puts all scores into a compacted table and returns how many; older tables go.

        Writers may go on meanwhile: what they append is read behind the table.

        Raises:
            CfError: a line is damaged, or the disk refuses.
        """
        old = self._tables()
        files = self._record_files("scores")
        # Whole lines only, and none that is appended from here on.
        ends = {self._name(file): whole_bytes(file) for file in files}
        scores = self._scores()
        parts = compacted.packed(scores)
        name = f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
        table = compacted.Table(root=self.root, name=name, taken=ends, parts=tuple(sorted(parts)))
        for part, file in zip(table.parts, table.files, strict=True):
            self.keep(file, parts[part])
        self.keep(f"{compacted.FOLDER}/{name}.json", table.manifest())
        for gone in old:
            self._drop_table(gone)
        return len(scores)

    def _tables(self) -> list[str]:
        """Ids of compacted tables."""
        if self._mirror is not None:
            self._mirror.sync(compacted.FOLDER)
        return sorted(path.stem for path in (self.root / compacted.FOLDER).glob("*.json"))

    def _compacted(
        self, read: Callable[[compacted.Table], Iterator[Item]]
    ) -> tuple[list[Item], Mapping[str, int]]:
        """What ``read`` gives of the compacted table, and the lines that are in it."""
        self._record_files("scores")  # an object store brings them here
        table = compacted.found(self.root, self._tables())
        try:
            return ([], {}) if table is None else (list(read(table)), table.taken)
        except (OSError, ValueError) as error:  # another process has put a newer one there
            log.info("compacted scores cannot be read (%s): reading all lines", error)
            return [], {}

    def _drop_table(self, name: str) -> None:
        """The manifest first: a table without one is none."""
        self.discard(f"{compacted.FOLDER}/{name}.json")
        for path in sorted((self.root / compacted.FOLDER / name).rglob(compacted.PART)):
            self.discard(self._name(path))
        shutil.rmtree(self.root / compacted.FOLDER / name, ignore_errors=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def failures(self) -> list[Failure]:
        """The last failure of each (stage, job or film) that no later success replaced, sorted."""
        last: dict[tuple[str, str], int] = {}
        successes: tuple[tuple[Kind, str, str], ...] = (
            ("runs", "generate", "id"),
            ("scores", "score", "clip_sha"),
        )
        rows, taken = self._compacted(compacted.Table.read)
        for one in rows:
            name = ("score", one.score.clip_sha)
            last[name] = max(last.get(name, 0), one.at)
        for kind, stage, field in successes:
            for line in self.lines(kind, taken if kind == "scores" else {}):
                name = (stage, line.record[field])
                last[name] = max(last.get(name, 0), line.at)
        open_lines = (
            line
            for line in self.lines("failures")
            if line.at > last.get(failure_key(line.record), 0)
        )
        return [build(Failure, tree) for tree in latest(open_lines, failure_key)]

    def scored(self) -> set[tuple[str, str, str]]:
        """(film, dimension, version) of every score; of many films cheaper than ``scores``."""
        keys, taken = self._compacted(compacted.Table.keys)
        lines = self.lines("scores", taken)
        return set(keys) | {(r["clip_sha"], r["dimension"], r["version"]) for _, r in lines}

    def done_ids(self) -> set[str]:
        """Ids of the jobs that have a record and, where films are stored, a film."""
        there = self._mirror.names("objects") if self._mirror is not None else None

        def has(sha: str) -> bool:
            name = _object(sha, "mp4")
            return (self.root / name).exists() if there is None else name in there

        return {run.id for run in self.runs() if not run.clip.is_stored or has(run.clip.sha256)}

    def write_plan(self, tree: dict[str, Any]) -> None:
        """Keep what was planned last: rows in order, and why some are null."""
        self.keep("plan.json", dump(tree) + b"\n")

    def plan(self) -> dict[str, Any]:
        """What was planned last: ``systems`` in order, ``null`` reasons by system, ``jobs``."""
        path = self.root / "plan.json"
        if self._mirror is not None:
            self._mirror.pull("plan.json")
        if not path.exists():
            return {"systems": [], "null": {}, "jobs": []}
        return json.loads(path.read_bytes())

    def keep(self, name: str, content: bytes) -> None:
        """Write a small file of the store, whole, over what was there."""
        if self._mirror is not None:
            self._mirror.push(name, content)
        write_atomic(self.root / name, content)

    def discard(self, name: str) -> None:
        """Remove a small file of the store."""
        if self._mirror is not None:
            self._mirror.drop(name)
        (self.root / name).unlink(missing_ok=True)

    def kept(self, folder: str) -> list[Path]:
        """Small files in a folder of the store, as they are now."""
        if self._mirror is not None:
            for name in sorted(self._mirror.names(folder)):
                self._mirror.pull(name)
        return sorted((self.root / folder).glob("*.json"))

    def damage(self) -> list[Damage]:
        """Lines that cannot be read."""
        found: list[Damage] = []
        for kind in KINDS:
            for file in self._record_files(kind):
                for number, raw in numbered(file):
                    if parse(raw) is None:
                        where = f"{file.relative_to(self.root)}:{number}"
                        found.append(Damage(where, not raw.endswith(b"\n")))
        return found

    @property
    def _tmp(self) -> Path:
        return self.root / "tmp" / self._writer

    def _record_files(self, kind: Kind) -> list[Path]:
        if self._mirror is not None:
            self._mirror.sync(f"records/{kind}")
        return sorted((self.root / "records" / kind).glob("*.jsonl"))

    def lines(self, kind: Kind, taken: Mapping[str, int] | None = None) -> Iterator[Line]:
        """Every record that was ever appended, older ones of a job too, in no order.

        Args:
            kind: of the records.
            taken: bytes at the beginning of files, by their name, that are left out.

        Raises:
            CfError: a line in the middle of a file is damaged.
        """
        for file in self._record_files(kind):
            for number, raw in numbered(file, (taken or {}).get(self._name(file), 0)):
                line = parse(raw)
                if line is not None:
                    yield line
                elif raw.endswith(b"\n"):
                    raise CfError(
                        f"{file}:{number} is not a record; restore the file or delete that line"
                        + (" (counted behind what is compacted)" if taken else "")
                    )

    def _latest(self, kind: Kind, key: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
        return latest(self.lines(kind), key)


def open_store(root: Path, *, exists: bool = True) -> LocalStore:
    """The store at ``root``.

    Raises:
        CfError: ``exists`` is asked for and there is no store there.
    """
    if url := url_of(root):
        mirror = Mirror(url=url)
        if exists and not mirror.names("records"):
            raise CfError(f"no records in {url}; run cfbench generate --out {url} first")
        return LocalStore(mirror.cache, mirror)
    if exists and not (root / "records").is_dir():
        raise CfError(f"no records in {root}; run cfbench generate --out {root} first")
    if root.exists() and not root.is_dir():
        raise CfError(f"{root} is a file; choose another --out")
    return LocalStore(root)


def _object(sha: str, ext: str) -> str:
    return f"objects/{sha[:2]}/{sha}.{ext}"


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or all of the new one.

    Raises:
        CfError: the disk is full or refuses; the old file stays.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temp.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temp, path)
    except OSError as error:
        if error.errno not in (None, *UNWRITABLE):
            raise
        temp.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def now() -> str:
    """Time of day in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write_lines(handle: int, lines: bytes) -> None:
    size = os.fstat(handle).st_size
    try:
        written = os.write(handle, lines)
        if written != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
