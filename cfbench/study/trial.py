"""A study under load and under SIGKILL: how long votes take, and whether any is ever lost."""

import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from cfbench.errors import INCOMPLETE, CfError
from cfbench.provenance import revision
from cfbench.store import now, write_atomic
from cfbench.study import database, toy
from cfbench.study.raters import VOTES, digest
from cfbench.study.simulated import Connection, vote
from cfbench.study.writer import DATABASE, MIRROR, rebuild

START_S = 60.0
BURSTS = 12
"""Votes of each rater in the trial of load."""
PAUSE_S = 0.5
KILL_RATERS = 24
LEAST_S, MOST_S = 0.1, 0.6
"""How long a server lives under load before it is killed."""
ANSWERS = ("left", "tie", "right")


class Acknowledged(NamedTuple):
    """A vote that the server said is stored."""

    token: str
    item: int
    question: str
    answer: str
    reason: str


@contextlib.contextmanager
def serving(study: Path, port: int) -> Generator[subprocess.Popen[bytes], None, None]:
    """A server in a process of its own, killed at the end if it is still there."""
    command = [
        sys.executable, "-m", "cfbench", "study", "serve", "--study", str(study),
        "--port", str(port), "--no-page",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def reach(port: int, process: subprocess.Popen[bytes]) -> Connection:
    """A connection to a server that has just been started.

    Raises:
        CfError: it ended, or did not answer in time.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            return await Connection.connect(port)
        await asyncio.sleep(0.02)
    raise CfError("the server did not start", INCOMPLETE)


async def load(port: int, process: subprocess.Popen[bytes], raters: int) -> dict[str, Any]:
    """All raters vote in the same moment, again and again; times and what was acknowledged."""
    (await reach(port, process)).close()
    lines = await asyncio.gather(*(Connection.connect(port) for _ in range(raters)))
    begun = await asyncio.gather(*(line.post("session", {"consent": True}) for line in lines))
    people = [
        (line, tree["token"], tree["state"]) for line, (_, tree) in zip(lines, begun, strict=True)
    ]
    times: list[float] = []
    kept: list[Acknowledged] = []

    async def one(person: tuple[Connection, str, Any], burst: int) -> None:
        line, token, state = person
        item, asked = _place(state, burst)
        answer = ANSWERS[burst % len(ANSWERS)]
        began = time.perf_counter()
        status, _ = await line.post("vote", vote(item, asked, answer), token)
        times.append(time.perf_counter() - began)
        if status == 200:
            kept.append(Acknowledged(token, item, asked, answer, ""))

    slowest: list[float] = []
    for burst in range(BURSTS):
        await asyncio.gather(*(one(person, burst) for person in people))
        slowest.append(round(1000 * max(times[-raters:]), 1))
        await asyncio.sleep(PAUSE_S)
    for line in lines:
        line.close()
    ranked = sorted(1000 * value for value in times)
    return {
        "raters": raters, "votes": len(times), "refused": len(times) - len(kept),
        "p50_ms": _rank(ranked, 0.5), "p99_ms": _rank(ranked, 0.99), "max_ms": _rank(ranked, 1.0),
        "slowest_of_burst_ms": slowest,
        "load_average": round(os.getloadavg()[0], 1),
        "kept": kept,
    }  # fmt: skip


def _place(state: dict[str, Any], index: int) -> tuple[int, str]:
    places = [
        (item, question["id"])
        for item, shown in enumerate(state["items"])
        for question in shown["questions"]
    ]
    return places[index % len(places)]


def _rank(ranked: list[float], share: float) -> float:
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 1)


async def hammer(
    port: int, process: subprocess.Popen[bytes], people: list[tuple[str, Any]], turn: str,
    life_s: float,
) -> list[Acknowledged]:  # fmt: skip
    """Raters who vote as fast as they can until the server is killed; what was acknowledged."""
    kept: list[Acknowledged] = []

    async def one(index: int, token: str, state: dict[str, Any]) -> None:
        count = 0
        with contextlib.suppress(OSError):
            line = await Connection.connect(port)
            while True:
                item, asked = _place(state, count)
                reason = f"{turn}-{index}-{count}"
                status, _ = await line.post("vote", vote(item, asked, "cannot", reason), token)
                if status == 200:
                    kept.append(Acknowledged(token, item, asked, "cannot", reason))
                count += 1
                # A rater's own limit allows ten a second; a burst is spent in a round's life.
                await asyncio.sleep(0 if status == 200 else 0.05)

    tasks = [asyncio.create_task(one(index, *person)) for index, person in enumerate(people)]
    await asyncio.sleep(life_s)
    while not kept and not all(task.done() for task in tasks):
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    await asyncio.gather(*tasks)
    return kept


async def kills(study: Path, port: int, rounds: int, seed: int) -> tuple[list[Acknowledged], int]:
    """Rounds of load that end in SIGKILL; all acknowledged votes, and the rounds with some."""
    rng = random.Random(seed)
    kept: list[Acknowledged] = []
    people: list[tuple[str, Any]] = []
    loaded = 0
    for turn in range(rounds):
        with serving(study, port) as process:
            line = await reach(port, process)
            while len(people) < KILL_RATERS:
                _, tree = await line.post("session", {"consent": True})
                people.append((tree["token"], tree["state"]))
            life_s = rng.uniform(LEAST_S, MOST_S)
            found = await hammer(port, process, people, str(turn), life_s)
            kept += found
            loaded += bool(found)
    with serving(study, port) as process:
        (await reach(port, process)).close()
    return kept, loaded


def lost(study: Path, kept: list[Acknowledged]) -> tuple[int, int]:
    """How many acknowledged votes the database lacks, and how many it has twice."""
    with contextlib.closing(database.connect(study / VOTES / DATABASE, read_only=True)) as db:
        sessions = dict(db.execute("SELECT token, session FROM sessions"))
        pairs = {
            (session, place): pair
            for session, place, pair in db.execute("SELECT session, place, pair FROM items")
        }
        stored: dict[tuple[str, ...], int] = {}
        for *key, detail in db.execute(
            "SELECT session, pair, question, answer, detail FROM answers"
        ):
            place = (*key, json.loads(detail)["reason"])
            stored[place] = stored.get(place, 0) + 1
    missing = doubled = 0
    for one in kept:
        session = sessions[digest(one.token)]
        place = (session, pairs[session, one.item], one.question, one.answer, one.reason)
        missing += place not in stored
        doubled += stored.get(place, 0) > 1
    return missing, doubled


def rebuilt_equal(study: Path) -> bool:
    """Whether a database made from the mirror alone equals the one that was served."""
    votes = study / VOTES
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / DATABASE
        rebuild(votes / MIRROR, copy)
        with (
            contextlib.closing(database.connect(copy, read_only=True)) as new,
            contextlib.closing(database.connect(votes / DATABASE, read_only=True)) as old,
        ):
            return database.dump(new) == database.dump(old)


def trial(raters: int, rounds: int, port: int, seed: int, to: Path) -> dict[str, Any]:
    """Run both trials on a study of stripes and write what came out.

    Raises:
        CfError: the server did not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        toy.make(Path(folder))
        with serving(study, port) as process:
            loaded = asyncio.run(load(port, process, raters))
        kept = loaded.pop("kept")
        missing, doubled = lost(study, kept)
        after_load = rebuilt_equal(study)
        acknowledged, busy = asyncio.run(kills(study, port, rounds, seed))
        killed_missing, killed_doubled = lost(study, acknowledged)
        found = {
            "at": now(), "code": revision(), "cores": _cores(), "python": platform.python_version(),
            "load": {**loaded, "acknowledged": len(kept), "lost": missing, "doubled": doubled},
            "kills": {
                "rounds": rounds, "rounds_with_votes": busy, "acknowledged": len(acknowledged),
                "lost": killed_missing, "doubled": killed_doubled,
            },
            "votes_lost": missing + killed_missing,
            "rebuilt_equal": after_load and rebuilt_equal(study),
        }  # fmt: skip
    write_atomic(to, json.dumps(found, indent=1, sort_keys=True).encode() + b"\n")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0))
