"""How far a run is, over all the hosts that work on it: read from the store alone.

Every driver leaves a beat in the store, which says what its workers have in hand; whatever else is
told follows from plan and records.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Self

from cfbench.errors import CfError
from cfbench.fanout import Event
from cfbench.store import LocalStore

log = logging.getLogger(__name__)

BEAT_S, AGAIN_S = 2.0, 20.0
"""Between two beats at least, and at most: a job may last for minutes without any news of it."""
STALE_S = 120.0
"""A beat that is older is of a driver that was killed."""
RECENT_S = 600.0
"""Frames a second are those of this long, or of the whole run if it is shorter."""
BILLION = 1e9


class Beat:
    """What one driver's workers have in hand, written again and again while it lives.

    Use as a context manager: a driver that has ended leaves no beat.

    Args:
        store: which all drivers share.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._name = f"beats/{uuid.uuid4().hex}.json"
        self._running: dict[int, tuple[str, float]] = {}
        self._said, self._changed = 0.0, False
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def follow(self, event: Event) -> None:
        """Take in the news of a task."""
        with self._lock:
            if event.kind == "progress":
                self._running.setdefault(event.task, (event.worker or "driver", time.time()))
            else:
                self._running.pop(event.task, None)
            self._changed = True
            if time.monotonic() - self._said >= BEAT_S:
                self._say()

    def _say(self) -> None:
        self._said, self._changed = time.monotonic(), False
        workers = [
            {"worker": name, "since": round(since, 3)}
            for name, since in sorted(self._running.values())
        ]
        tree = {"at": round(time.time(), 3), "running": workers}
        self._store.keep(self._name, json.dumps(tree, sort_keys=True).encode())

    def _go_on(self) -> None:
        """Says what runs where nobody brings news."""
        while not self._ended.wait(BEAT_S):
            with self._lock, contextlib.suppress(CfError):  # a full disk is the driver's to tell
                if self._changed or time.monotonic() - self._said >= AGAIN_S:
                    self._say()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store.discard(self._name)


def status(store: LocalStore) -> dict[str, Any]:
    """Jobs done, failed and left, what runs on which worker, frames a second and time left.

    ``seconds_left`` is None while nothing was made lately. Only planned jobs are counted, each
    once, whatever the number of its records.
    """
    planned = set(store.plan()["jobs"])
    last_at: dict[str, int] = {}
    frames: dict[str, int] = {}
    by_system: Counter[str] = Counter()
    for line in store.lines("runs"):
        name = str(line.record["id"])
        if name in planned:
            if name not in last_at:
                by_system[str(line.record["system"])] += 1
            last_at[name] = max(line.at, last_at.get(name, 0))
            frames[name] = int(line.record["clip"]["frames"])
    failed = {failure.id for failure in store.failures() if failure.stage == "generate"}
    left = len(planned) - len(last_at)
    rates = _rates(last_at, frames)
    films_per_s = rates["films_per_s"]
    return {
        "jobs": len(planned),
        "done": len(last_at),
        "failed": len(failed & planned),
        "left": left,
        "running": _running(store.kept("beats")),
        "done_by_system": dict(sorted(by_system.items())),
        **rates,
        "seconds_left": round(left / films_per_s) if films_per_s else (0 if not left else None),
    }


def _rates(last_at: dict[str, int], frames: dict[str, int]) -> dict[str, float]:
    """Films and pixel frames a second of late, up to now while something is being made."""
    now = time.time_ns()
    late = {name: at for name, at in last_at.items() if now - at <= RECENT_S * BILLION}
    if len(late) < 2:
        return {"films_per_s": 0.0, "frames_per_s": 0.0}
    begin = min(late.values())
    span_s = (max(late.values()) - begin) / BILLION
    # The first film was made before the span begins.
    made = [name for name, at in late.items() if at > begin]
    return {
        "films_per_s": round(len(made) / span_s, 4),
        "frames_per_s": round(sum(frames[name] for name in made) / span_s, 2),
    }


def _running(beats: list[Path]) -> dict[str, float]:
    """Seconds that each worker has been at its job."""
    now = time.time()
    found: dict[str, float] = {}
    for path in beats:
        try:
            tree = json.loads(path.read_bytes())
        except FileNotFoundError:  # its driver has just ended
            continue
        if now - tree["at"] <= STALE_S:
            for one in tree["running"]:
                found[f"{path.stem[:6]} {one['worker']}"] = round(now - one["since"], 1)
    return found
