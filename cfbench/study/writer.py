"""The one writer of a study: many operations in one transaction, on disk twice before they count.

A batch is decided and applied inside one transaction; its events are appended to the mirror
(JSONL) and synced; then the transaction is committed; then those who wait are told. So the mirror
is never behind: what it has more, after a crash, is folded into the database at the next start.
"""

import contextlib
import fcntl
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfbench.errors import CfError
from cfbench.store import now
from cfbench.study import database
from cfbench.study.database import Event

log = logging.getLogger(__name__)

DATABASE, MIRROR, LOCK, BACKUPS = "study.sqlite", "events.jsonl", "lock", "backups"
BATCH = 512
BACKUP_EVERY_S = 3600.0
CHECKPOINT_EVERY_S = 60.0
BACKUPS_KEPT = 48
STOPPED = "the study has stopped; please tell whoever runs it"
NOT_LOCAL = ("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "lustre", "glusterfs", "9p", "overlay")


class RefusedError(Exception):
    """An operation that is not possible; ``status`` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Decision(NamedTuple):
    """What an operation decided: events to store, and its result for whoever asked."""

    events: tuple[Event, ...]
    result: Any


Operation = Callable[[sqlite3.Connection], Decision]
Told = Callable[[Any, Exception | None], object]


class Waiting(NamedTuple):
    """An operation and whom to tell."""

    operation: Operation
    told: Told


class Writer:
    """Owns the folder of votes, on a thread of its own.

    Args:
        folder: made when it is missing; local disk only, one writer at a time.
        design: hash of the sealed design; the folder keeps the first one and refuses another.

    Raises:
        CfError: a network file system, a second server, another design, or a damaged mirror.
    """

    def __init__(self, folder: Path, design: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        check_local(folder)
        self.folder = folder
        self._lock = lock(folder)
        self._mirror = os.open(folder / MIRROR, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._mirror, whole_bytes(folder / MIRROR))
        self._db = database.connect(folder / DATABASE)
        recovered = database.fold(self._db, read_events(folder / MIRROR))
        if recovered:
            log.info("%d events of the mirror were not in the database; they are now", recovered)
        self._seq = database.last_seq(self._db)
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._broken = False
        self._bind(design)
        self._threads = [
            threading.Thread(target=self._run, name="votes"),
            threading.Thread(target=self._keep_house, name="house", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _bind(self, design: str) -> None:
        bound = database.design_hash(self._db)
        if not bound:
            self._do(
                [Waiting(lambda _: Decision(({"kind": "study", "design": design},), None), _quiet)]
            )
        elif bound != design:
            self._db.close()
            os.close(self._mirror)
            os.close(self._lock)
            raise CfError(f"the votes in {self.folder} belong to another design; build a new study")

    def submit(self, operation: Operation, told: Told) -> None:
        """Have an operation done; ``told`` is called on the writer's thread once it is on disk.

        After a fault that no operation should have, the writer takes nothing more: it says so at
        once, instead of letting raters wait.
        """
        if self._broken:
            told(None, RefusedError(STOPPED, 503))
        else:
            self._queue.put(Waiting(operation, told))

    def close(self) -> None:
        """Finish what waits, and give the folder back."""
        self._queue.put(None)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._db.close()
        os.close(self._mirror)
        os.close(self._lock)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            self._broken = True
            while not self._queue.empty():
                waiting = self._queue.get()
                if waiting is not None:
                    waiting.told(None, RefusedError(STOPPED, 503))
            raise

    def _work(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, more = [first], True
            while more and len(batch) < BATCH:
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
                if waiting is None:
                    more = False
                else:
                    batch.append(waiting)
            self._do(batch)
            if not more:
                return

    def _do(self, batch: Sequence[Waiting]) -> None:
        try:
            outcomes = self._stored(batch)
        except BaseException:
            for waiting in batch:
                waiting.told(None, RefusedError(STOPPED, 503))
            raise
        for told, result, failed in outcomes:
            told(result, failed)

    def _stored(self, batch: Sequence[Waiting]) -> list[tuple[Told, Any, Exception | None]]:
        """What to tell whom, once a batch is on disk or has failed as a whole."""
        outcomes: list[tuple[Told, Any, Exception | None]] = []
        first_seq, size = self._seq, os.fstat(self._mirror).st_size
        try:
            self._db.execute("BEGIN IMMEDIATE")
            lines: list[bytes] = []
            for waiting in batch:
                try:
                    decision = waiting.operation(self._db)
                except RefusedError as error:
                    outcomes.append((waiting.told, None, error))
                    continue
                lines += [self._store(event) for event in decision.events]
                outcomes.append((waiting.told, decision.result, None))
            if lines:
                _append(self._mirror, b"".join(lines))
            self._db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            log.error("votes could not be stored: %s", error)
            self._seq = first_seq
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # After a failed COMMIT the lines are no votes; nobody was told that they are. If they
            # cannot be taken back, the writer ends: the next start folds them in.
            os.ftruncate(self._mirror, size)
            outcomes = [(waiting.told, None, error) for waiting in batch]
        return outcomes

    def _store(self, event: Event) -> bytes:
        self._seq += 1
        numbered = {**event, "seq": self._seq, "at": now()}
        database.apply(self._db, numbered)
        return json.dumps(numbered, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def _keep_house(self) -> None:
        # A checkpoint inside a commit makes a burst wait for the disk; this one makes nobody wait.
        backed_up = time.monotonic()
        while not self._stop.wait(CHECKPOINT_EVERY_S):
            try:
                with contextlib.closing(database.connect(self.folder / DATABASE)) as db:
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                if time.monotonic() - backed_up >= BACKUP_EVERY_S:
                    backed_up = time.monotonic()
                    back_up(self.folder)
            except (OSError, sqlite3.Error) as error:
                # Votes go on: they are on disk twice, and the next round tries again.
                log.error("the votes' database was not tidied up or copied: %s", error)


def back_up(folder: Path) -> Path:
    """Write a copy of the database beside it, keep the latest ones; returns the copy's path."""
    to = folder / BACKUPS / f"{now().replace(':', '-')}.sqlite"
    to.parent.mkdir(exist_ok=True)
    with contextlib.closing(database.connect(folder / DATABASE, read_only=True)) as db:
        db.execute("VACUUM INTO ?", (str(to),))
    for old in sorted(to.parent.glob("*.sqlite"))[:-BACKUPS_KEPT]:
        old.unlink()
    return to


def read_events(path: Path) -> Iterator[Event]:
    """Events of a mirror, in order.

    Raises:
        CfError: a line that is no event, or numbers that do not follow each other.
    """
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                event = json.loads(line)
            except ValueError as error:
                raise CfError(f"{path}:{number} is damaged; restore it from a copy") from error
            if event["seq"] != number:
                raise CfError(f"{path}:{number} has number {event['seq']}; events are missing")
            yield event


def rebuild(mirror: Path, to: Path) -> int:
    """Make a database anew from the mirror alone; returns the number of events.

    Raises:
        CfError: the database is there already, or the mirror is damaged.
    """
    if to.exists():
        raise CfError(f"{to} exists; name a file that does not")
    with contextlib.closing(database.connect(to)) as db:
        return database.fold(db, read_events(mirror))


def whole_bytes(path: Path) -> int:
    """Length of a mirror without the unfinished line that a crash may leave at its end."""
    return path.read_bytes().rfind(b"\n") + 1


def lock(folder: Path) -> int:
    """Take the folder for this process.

    Raises:
        CfError: another server has it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise CfError(f"another server writes to {folder}; stop it first") from error
    return handle


def check_local(folder: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """Refuse a file system on which the database could lose votes.

    Raises:
        CfError: the folder lies on a network or overlay file system.
    """
    if not mounts.is_file():
        return
    place = folder.resolve()
    kind, longest = "", -1
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, point, found, *_ = line.split(" ")
        path = Path(point.replace("\\040", " "))
        if place.is_relative_to(path) and len(path.parts) >= longest:
            kind, longest = found, len(path.parts)
    if kind.startswith(NOT_LOCAL):
        raise CfError(f"{folder} lies on {kind}, where SQLite may lose votes; use a local disk")


def _append(handle: int, lines: bytes) -> None:
    written = os.write(handle, lines)
    if written != len(lines):
        raise OSError(f"only {written} of {len(lines)} bytes were written")
    os.fsync(handle)


def _quiet(result: Any, failed: Exception | None) -> None:
    if failed is not None:
        raise failed
