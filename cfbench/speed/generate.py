"""Times our generator beside others: chunk by chunk, in turns, in one process on one device.

Weights are random, which changes neither what is computed nor how much. Every part is written as it
is done, one that fails with its reason, and the same command goes on from there.
"""

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfbench import provenance
from cfbench.speed import machines
from cfbench.store import now, write_atomic

if TYPE_CHECKING:
    from cfbench.systems.timing.run import Bench, Built

log = logging.getLogger(__name__)

SYSTEMS = (
    "ours/auto", "ours/off", "ours/auto+fp8", "pooled/auto", "self-forcing", "longlive",
    "self-forcing-compiled",
)  # fmt: skip
LABELS = {
    "ours/off": "ours, eager",
    "ours/auto": "ours",
    "ours/auto+fp8": "ours, fp8 linear layers",
    "pooled/auto": "ours, slow memory pooled 2x2",
    "pooled/auto+fp8": "ours, slow memory pooled 2x2, fp8",
    "self-forcing": "Self-Forcing, eager",
    "self-forcing-compiled": "Self-Forcing, compiled",
    "longlive": "LongLive 1.0, eager, window 12",
}
NO_LIMIT_S = 86_400.0
PARTS = ("kernels", "systems", "decoder", "film", "first", "growth", "several")
"""What is timed, in this order; each can be asked for alone."""
TAIL = 600
"""Characters of an error that are kept."""
ROUND_S = 1.6
"""What a round of one system may take at 1.3 B; for planning alone."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is timed: turns of so many chunks, the first not counted, of each system.

    ``chunks`` are timed in each other part of ``parts``, in the last by so many ``processes`` (0 is
    one a GPU); after ``minutes`` nothing new is begun.
    """

    systems: tuple[str, ...] = SYSTEMS
    rounds: int = 6
    burst: int = 3
    chunks: int = 12
    parts: tuple[str, ...] = PARTS
    processes: int = 0
    minutes: float = 0.0

    @property
    def wanted(self) -> int:
        """Times of a system's chunks."""
        return self.rounds * (self.burst - 1)


class Book:
    """What is known of one machine, written to the file of results after every part."""

    def __init__(self, path: Path, label: str, minutes: float) -> None:
        self._path, self._end = path, time.monotonic() + (minutes * 60 or NO_LIMIT_S)
        self.tree = machines.read(path)
        empty: dict[str, Any] = {"systems": {}, "failed": {}}
        self.entry: dict[str, Any] = self.tree["machines"].setdefault(label, empty)

    @property
    def left_s(self) -> float:
        """Seconds until nothing new is begun."""
        return self._end - time.monotonic()

    def save(self) -> None:
        """Writes all that is known."""
        commit = provenance.words()
        self.entry.update(at=now(), commit=commit, summary=summary(self.entry))
        text = json.dumps(self.tree, indent=1, sort_keys=True) + "\n"
        write_atomic(self._path, text.encode())

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made; None if it failed, which is noted, or if no time is left."""
        from cfbench.systems.timing.run import FAILURES

        began, failed = time.monotonic(), self.entry["failed"]
        failed[name] = "no time was left"
        if self.left_s > 0:
            try:
                found = make()
            except FAILURES as error:
                failed[name] = f"{type(error).__name__}: {error}"[-TAIL:]
            else:
                del failed[name]
                log.info("%s: %.1f s, %.0f left", name, time.monotonic() - began, self.left_s)
                return found
        log.warning("%s: %s", name, failed[name])
        return None

    def part(self, name: str, make: Callable[[], Any]) -> None:
        """Makes and keeps what is not there yet."""
        if name not in self.entry:
            found = self.attempt(name, make)
            if found is not None:
                self.entry[name] = found
            self.save()


def measure(bench: "Bench", plan: Plan, to: Path, label: str) -> dict[str, Any]:
    """Takes what measurements are missing and returns the summary.

    Args:
        bench: what is timed where.
        plan: how much.
        to: file of results of all machines; others' are kept.
        label: of this machine there.
    """
    from cfbench.systems.timing import run

    book = Book(to, label, plan.minutes)
    book.part("machine", lambda: run.facts(bench.device, bench.ours))
    if "kernels" in plan.parts:
        book.part("kernels", lambda: run.kernel_times(bench))
    if "systems" in plan.parts:
        _systems(book, bench, plan)
    others = (
        *run.decoded(bench, plan.chunks),
        ("growth", lambda: run.grown(bench, plan.chunks)),
        ("several", lambda: run.several_gpus(bench, plan.chunks, plan.processes)),
    )
    for name, make in others:
        if name in plan.parts:
            book.part(name, make)
    book.save()
    return book.entry["summary"]


def _systems(book: Book, bench: "Bench", plan: Plan) -> None:
    """Builds those that are missing, then lets each have its turns."""
    from cfbench.systems.timing import run

    done: dict[str, Any] = book.entry["systems"]
    todo = [s for s in plan.systems if len(done.get(s, {}).get("samples_ms", ())) < plan.wanted]
    right = (book.attempt("references", lambda: run.references(bench, todo)) or {}) if todo else {}
    built: dict[str, Built] = {}
    for name in todo:
        # Turns of those that are built come before another one.
        if book.left_s <= ROUND_S * plan.rounds * (len(built) + 1):
            log.warning("%s: left out for lack of time", name)
            continue
        system = book.attempt(f"build {name}", lambda name=name: run.Built(bench, name, right))
        run.tidy(bench.device)
        if system is not None:
            built[name], done[name] = system, system.record
        book.save()
    for _ in range(plan.rounds):
        for name, system in list(built.items()):
            times = book.attempt(f"time {name}", lambda system=system: system.sample(plan.burst))
            if times is None:
                del built[name]
            else:
                system.record["samples_ms"] += times
        book.save()


def summary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, rates and shares of what is known; what is not measured is left out."""
    rows = {
        name: _row(name, record, entry)
        for name, record in entry["systems"].items()
        if record["samples_ms"]
    }
    told: dict[str, Any] = {"systems": rows, "failed": dict(entry["failed"])}
    ours = rows.get("ours/auto")
    for peer in ("self-forcing", "self-forcing-compiled", "longlive"):
        if ours is not None and peer in rows:
            told[f"times {peer}"] = rows[peer]["ms"] / ours["ms"]
    if "decoder" in entry:
        told["decoder_ms"] = statistics.median(entry["decoder"]["samples_ms"])
    if "film" in entry:
        told["film_ms"] = entry["film"]["median_ms"]
        told["film_gib"] = entry["film"].get("total_gib")
    if "first" in entry:
        told["first_frames_s"] = statistics.median(entry["first"]["samples_s"])
    if "growth" in entry:
        early, late = (statistics.median(entry["growth"][name]) for name in ("early_ms", "late_ms"))
        told["growth_10min"] = late / early
    if "several" in entry:
        told |= {name: entry["several"][name] for name in ("prompts_times", "film_times")}
    return told


def _row(name: str, record: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    ms = statistics.median(record["samples_ms"])
    frames = None
    if "machine" in entry:
        geometry = entry["machine"]["experiment"]["geometry"]
        frames = geometry["chunk"] * geometry["vae_stride"][0]
    row, _, words = name.partition("/")
    kind = f"{row} fp8" if "fp8" in words else row
    floors = entry.get("kernels", {}).get("floor_ms", {})
    floor = floors.get(record["attention"], {}).get(kind)
    return {
        "label": LABELS.get(name, name),
        "ms": ms,
        "least_ms": min(record["samples_ms"]),
        "most_ms": max(record["samples_ms"]),
        "chunks": len(record["samples_ms"]),
        "frames_per_s": None if frames is None else 1000 * frames / ms,
        "tflop_per_s": record["work"]["total"] / ms / 1e9,
        "floor_ms": floor,
        "floor_share": None if floor is None else floor / ms,
        "error": record.get("error"),
        "peak_gib": record.get("peak_gib"),
        "first_chunk_s": record["first_chunk_s"],
        "attention": record["attention"],
    }
