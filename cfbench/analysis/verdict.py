"""How well the detectors do on films whose events are known."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import video
from cfbench.analysis.events import Event, Kind, detect
from cfbench.analysis.features import trace
from cfbench.analysis.planted import PLANTED, film
from cfbench.analysis.worlds import RATE
from cfbench.stats import Interval, share_interval

NEAR_S = 0.5
OVERLAP = 0.5
PERIOD_OFF = 0.05


class Verdict(NamedTuple):
    """One planted film: what is true and what was found."""

    name: str
    truth: tuple[Event, ...]
    found: tuple[Event, ...]


class Number(NamedTuple):
    """Which film of which set."""

    number: int
    seed: int


def judge(task: Number) -> Verdict:
    """Makes a planted film, writes it as H.264, reads it back and looks for events."""
    made = film(task.number, task.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        video.encode(path, [made.frames], RATE)
        found = detect(trace(video.stored(path)))
    return Verdict(made.name, made.events, tuple(found))


def overlap(a: Event, b: Event) -> float:
    """Length that two events share over the length that they cover together."""
    shared = min(a.end_s, b.end_s) - max(a.start_s, b.start_s)
    return max(0.0, shared) / (max(a.end_s, b.end_s) - min(a.start_s, b.start_s))


def is_hit(truth: Event, found: Event) -> bool:
    """Whether an event that was found is one that was planted.

    A flashback must begin within half a second of it. A loop and a freeze must share half of the
    length that both cover together; a loop's period must be within 5 % of the true one, or of a
    whole number of them.
    """
    if truth.kind != found.kind:
        return False
    if truth.kind == "flashback":
        return abs(truth.start_s - found.start_s) <= NEAR_S
    if truth.period_s is not None and found.period_s is not None:
        times = found.period_s / truth.period_s
        if round(times) < 1 or abs(times - round(times)) > PERIOD_OFF * round(times):
            return False
    return overlap(truth, found) >= OVERLAP


def hits(verdict: Verdict, kind: Kind) -> int:
    """How many planted events of a kind were found; each found event counts for one at most."""
    left = [event for event in verdict.found if event.kind == kind]
    count = 0
    for truth in (event for event in verdict.truth if event.kind == kind):
        match = next((event for event in left if is_hit(truth, event)), None)
        if match is not None:
            left.remove(match)
            count += 1
    return count


def tally(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Precision and recall of each kind with 95 % intervals, and the films that went wrong."""
    kinds: dict[str, Any] = {}
    for kind in PLANTED:
        hit = sum(hits(verdict, kind) for verdict in verdicts)
        planted = _count((v.truth for v in verdicts), kind)
        found = _count((v.found for v in verdicts), kind)
        kinds[kind] = {
            "planted": planted,
            "found": found,
            "hit": hit,
            "precision": _cell(share_interval(hit, found)),
            "recall": _cell(share_interval(hit, planted)),
        }
    return {
        "films": len(verdicts),
        "kinds": kinds,
        "wrong": {v.name: [_brief(event) for event in v.found] for v in verdicts if not _right(v)},
    }


def _right(verdict: Verdict) -> bool:
    return all(
        hits(verdict, kind) == _count([verdict.truth], kind) == _count([verdict.found], kind)
        for kind in PLANTED
    )


def _count(lists: Iterable[Sequence[Event]], kind: Kind) -> int:
    return sum(event.kind == kind for events in lists for event in events)


def _cell(interval: Interval) -> dict[str, float | None]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _brief(event: Event) -> str:
    return f"{event.kind} {event.start_s:.2f}-{event.end_s:.2f} s"
