"""Times our VBench dimensions beside the package's: same weights, films, machine and threads.

What is timed is a pass over films, networks loaded. The package goes over them once a dimension,
so its time together is the sum; ours go over them once. Each piece is written as it is done, and
the same command goes on from there.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import provenance
from cfbench.aggregate import QUALITY
from cfbench.errors import INCOMPLETE, CfError
from cfbench.speed import films, machines, upstream
from cfbench.store import now, write_atomic

log = logging.getLogger(__name__)

SEVEN = tuple(QUALITY)
TOGETHER = "together"
LOAD, WHOLE, LONG = "load", "whole", "long"
"""Parts: without networks on a long film; with them on all films; a long film's memory."""
NO_LIMIT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is timed where.

    Args:
        label: of the machine, in the file of results.
        work: folder of films and weights.
        device: as torch calls it.
        threads: of torch, on both sides.
        films: how many films of ``seconds`` both sides score.
        seconds: see ``films``.
        long_seconds: length of the film that is read without networks.
        rounds: times that reading is timed.
        parts: some of ``LOAD``, ``WHOLE`` and ``LONG``.
        by: what runs the package.
        dino: a checkout of facebookresearch/dino, or None: subject consistency is left out then.
    """

    label: str
    work: Path
    device: str
    threads: int
    films: int
    seconds: float
    long_seconds: float
    rounds: int
    parts: tuple[str, ...]
    by: upstream.Interpreter
    dino: Path | None

    @property
    def key(self) -> str:
        """Of what decides a measurement."""
        told = (
            self.device, self.threads, self.films, self.seconds, self.long_seconds, films.ROWS,
            films.COLUMNS,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


class Piece(NamedTuple):
    """One measurement: a side's pass over films in some dimensions."""

    part: str
    side: str
    dimensions: tuple[str, ...]
    round: int = 0

    @property
    def name(self) -> str:
        """In the file of results."""
        what = self.dimensions[0] if len(self.dimensions) == 1 else TOGETHER
        return f"{self.part}/{self.side}/{what}/{self.round}"


def pieces(setting: Setting) -> Iterator[Piece]:
    """All measurements in order: one side right after the other."""
    asked = tuple(d for d in SEVEN if setting.dino is not None or d != "subject_consistency")
    if LOAD in setting.parts:
        for turn in range(setting.rounds):
            for name in asked:
                yield Piece(LOAD, "theirs", (name,), turn)
            yield Piece(LOAD, "ours", asked, turn)
    if LONG in setting.parts:
        yield Piece(LONG, "ours", asked)
    if WHOLE in setting.parts:
        for name in asked:
            yield Piece(WHOLE, "theirs", (name,))
            yield Piece(WHOLE, "ours", (name,))
        yield Piece(WHOLE, "ours", asked)


def measure(setting: Setting, to: Path, minutes: float) -> dict[str, Any]:
    """Takes what measurements are missing and returns the summary.

    Args:
        setting: what to measure.
        to: file of results of all machines; others' are kept.
        minutes: after which to stop; 0 is never.

    Raises:
        CfError: not all was done in time (exit code 3; the same command goes on), or the file is
            damaged.
    """
    begin, limit_s = time.monotonic(), minutes * 60 or NO_LIMIT_S
    whole = films.made(setting.work / "films", setting.films, setting.seconds)
    long = films.made(setting.work / "films", 1, setting.long_seconds)
    weights = _weights(setting.work / "weights")
    todo = list(pieces(setting))
    for piece in todo:
        tree = machines.read(to)
        entry = _entry(tree, setting)
        done: dict[str, Any] = entry["pieces"]
        if piece.name in done:
            continue
        left = limit_s - (time.monotonic() - begin)
        job = _job(setting, piece, whole if piece.part == WHOLE else long, weights)
        try:
            if left <= 0:
                raise TimeoutError("no time is left")
            told = _taken(setting, piece, job, left)
        except TimeoutError as error:
            lacking = sum(p.name not in done for p in todo)
            raise CfError(
                f"{lacking} of {len(todo)} measurements are missing ({piece.name}: {error}); the "
                "same command goes on",
                INCOMPLETE,
            ) from error
        log.info("%s: %s", piece.name, told.get("reason") or f"{told['seconds']:.2f} s")
        done[piece.name] = {**told, "at": now(), "commit": provenance.revision()["commit"][:12]}
        entry["summary"] = summary(done)
        write_atomic(to, (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode())
    return machines.read(to)["machines"][setting.label]["summary"]


def _taken(setting: Setting, piece: Piece, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if piece.side == "theirs":
            return upstream.theirs(job, Path(folder), setting.by, limit_s)
        return upstream.ours(job, Path(folder), limit_s)


def _job(setting: Setting, piece: Piece, paths: Sequence[Path], weights: Path) -> dict[str, Any]:
    networks = {LOAD: "stub", WHOLE: "real", LONG: "sparse"}[piece.part]
    return {
        "dimension": piece.dimensions[0],
        "dimensions": piece.dimensions,
        "device": setting.device,
        "threads": setting.threads,
        "weights": str(weights.absolute()),
        "dino": None if setting.dino is None else str(setting.dino.absolute()),
        "films": [str(path.absolute()) for path in paths],
        "networks": networks,
        "stub": networks == "stub",
    }


def _weights(folder: Path) -> Path:
    """Random weights of the published networks' sizes; only timings may use them."""
    done = folder / "complete"
    if not done.exists():
        from cfbench.scorers.vbench import drawn

        drawn.written(folder, drawn.prompt_free(drawn.NATIVE))
        done.touch()
    return folder


def _entry(tree: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The machine's part of the file; another setting under its label is refused."""
    entry = tree["machines"].setdefault(
        setting.label,
        {
            "key": setting.key, "device": setting.device, "threads": setting.threads,
            "films": setting.films, "seconds": setting.seconds,
            "long_seconds": setting.long_seconds,
            "environment": provenance.environment({}, setting.threads),
            "rows": films.ROWS, "columns": films.COLUMNS, "fps": films.FPS, "pieces": {},
        },
    )  # fmt: skip
    if entry["key"] != setting.key:
        raise CfError(
            f"{setting.label!r} was measured under another setting; choose another --label"
        )
    return entry


def merged(source: Path, to: Path) -> list[str]:
    """Labels of the machines whose results were taken over from another file.

    Raises:
        CfError: a file is damaged, or there is none.
    """
    if not source.is_file():
        raise CfError(f"no file {source}; name what cfbench speed score wrote")
    tree, more = machines.read(to), machines.read(source)["machines"]
    tree["machines"].update(more)
    write_atomic(to, (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode())
    return sorted(more)


def summary(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios of a machine's measurements; what is not measured is null."""
    rows = {name: row for name, row in done.items() if "reason" not in row}
    asked = [d for d in SEVEN if f"{WHOLE}/theirs/{d}/0" in rows or f"{LOAD}/theirs/{d}/0" in rows]
    dimensions = {
        name: {
            "theirs_s": _number(rows, f"{WHOLE}/theirs/{name}/0"),
            "ours_s": _number(rows, f"{WHOLE}/ours/{name}/0"),
            "apart": _apart(rows, name),
        }
        for name in asked
    }
    theirs = [f"{WHOLE}/theirs/{name}/0" for name in asked]
    return {
        "dimensions": dimensions,
        "whole": _beside(rows, theirs, f"{WHOLE}/ours/{TOGETHER}/0"),
        "load": _loads(rows, asked),
        "extra_gib_long": _number(rows, f"{LONG}/ours/{TOGETHER}/0", "extra_gib"),
        "lacking": {n: row["reason"] for n, row in sorted(done.items()) if "reason" in row},
    }


def _loads(rows: Mapping[str, Mapping[str, Any]], asked: Sequence[str]) -> dict[str, Any] | None:
    """The round of the smallest speed-up, so that no lucky one is told."""
    rounds = sorted({int(name.rpartition("/")[2]) for name in rows if name.startswith(LOAD)})
    found = [
        _beside(rows, [f"{LOAD}/theirs/{d}/{k}" for d in asked], f"{LOAD}/ours/{TOGETHER}/{k}")
        for k in rounds
    ]
    whole = [row for row in found if row is not None]
    return min(whole, key=lambda row: row["speedup"]) if whole else None


def _beside(
    rows: Mapping[str, Mapping[str, Any]], theirs: Sequence[str], ours: str
) -> dict[str, float] | None:
    """The package's passes one after the other beside our single one."""
    if not theirs or any(name not in rows for name in (*theirs, ours)):
        return None
    mine = rows[ours]
    seconds, busy = (sum(rows[name][key] for name in theirs) for key in ("seconds", "cpu_seconds"))
    memory = max(rows[name]["extra_gib"] for name in theirs)
    return {
        "theirs_s": seconds,
        "ours_s": mine["seconds"],
        "speedup": seconds / mine["seconds"],
        "theirs_cpu_s": busy,
        "ours_cpu_s": mine["cpu_seconds"],
        "cpu_speedup": busy / mine["cpu_seconds"],
        "theirs_extra_gib": memory,
        "ours_extra_gib": mine["extra_gib"],
        "memory_share": mine["extra_gib"] / memory,
        "theirs_card_extra_gib": max(rows[name]["card_extra_gib"] for name in theirs),
        "ours_card_extra_gib": mine["card_extra_gib"],
    }


def _number(rows: Mapping[str, Mapping[str, Any]], name: str, key: str = "seconds") -> float | None:
    return rows[name][key] if name in rows else None


def _apart(rows: Mapping[str, Mapping[str, Any]], dimension: str) -> float | None:
    """Largest difference of a film's score between the sides."""
    theirs = rows.get(f"{WHOLE}/theirs/{dimension}/0")
    ours = rows.get(f"{WHOLE}/ours/{dimension}/0") or rows.get(f"{WHOLE}/ours/{TOGETHER}/0")
    if theirs is None or ours is None:
        return None
    mine = ours["values"][dimension]
    return max(abs(value - mine[film]) for film, value in theirs["values"].items())
