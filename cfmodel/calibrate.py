"""How often slow memory is fed: promotion rates by what the camera does, and ages of the slots.

Read it to choose ``memory.tau``: most candidates should be kept while the camera moves and few in
quiet holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cfmodel.config import Geometry
from cfmodel.memory.select import is_surprising
from cfmodel.pipeline import Pipeline, Request, segment_of
from cfmodel.tinyworld.caption import parse
from cfmodel.tinyworld.scene import EVENTS, EventKind

MOVING: tuple[EventKind, ...] = ("orbit", "dolly", "pan-away", "pan-back")
QUIET: tuple[EventKind, ...] = ("hold", "away", "absent")
TAUS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
AGE_BIN_S = 3.0


@dataclass(frozen=True)
class Candidate:
    """A test of surprisal: what the camera did in that chunk, and the cosine to the one before."""

    event: EventKind | None
    cosine: float


@dataclass(frozen=True)
class Observed:
    """Candidates of all films, and the ages in seconds of slow slots, seen after every chunk."""

    candidates: tuple[Candidate, ...]
    ages_s: tuple[float, ...]


def observe(pipeline: Pipeline, requests: Sequence[Request], chunks: int) -> Observed:
    """Rolls films out together and watches their memory. Nothing is decoded.

    Raises:
        ValueError: the preset has no slow memory that is filled by surprisal.
    """
    experiment = pipeline.experiment
    if not experiment.memory.slow or not experiment.memory.promotion.startswith("surprisal"):
        raise ValueError(
            f"preset {experiment.name} does not promote by surprisal; choose one that does"
        )
    memory, ages = pipeline.memory(len(requests)), list[float]()
    for _ in pipeline.latents(requests, chunks, memory=memory):
        for sample in range(len(requests)):
            ages += [
                experiment.geometry.latent_seconds(memory.frames - slot.frame)
                for slot in memory.slots(0, sample)
                if slot.role == "slow"
            ]
    candidates = tuple(
        Candidate(_event(requests[p.sample], p.chunk, experiment.geometry), p.cosine)
        for p in memory.promotions
        if p.cosine is not None
    )
    return Observed(candidates, tuple(ages))


def _event(request: Request, chunk: int, geometry: Geometry) -> EventKind | None:
    seconds = [duration for _, duration in request.segments]
    return parse(request.segments[segment_of(seconds, chunk, geometry)][0]).event


def rate(candidates: Sequence[Candidate], events: Sequence[EventKind], tau: float) -> float | None:
    """Share of candidates of some events that a threshold keeps; None if there are none.

    Example:
        >>> rate([Candidate("hold", 0.99), Candidate("hold", 0.9)], ["hold"], 0.95)
        0.5
    """
    of = [is_surprising(c.cosine, tau) for c in candidates if c.event in events]
    return sum(of) / len(of) if of else None


def report(observed: Observed, tau: float) -> dict[str, Any]:
    """Rates at ``tau``, by event too and over a grid of thresholds, and a histogram of ages.

    The films were made with one threshold; rates at others tell what they would have kept of these
    same films.
    """
    kinds: list[EventKind] = [
        kind for kind in EVENTS if any(c.event == kind for c in observed.candidates)
    ]
    ages: dict[str, int] = {}
    for age in sorted(observed.ages_s):
        low = int(age // AGE_BIN_S) * AGE_BIN_S
        name = f"{low:g}-{low + AGE_BIN_S:g} s"
        ages[name] = ages.get(name, 0) + 1
    cosines = sorted(c.cosine for c in observed.candidates)
    return {
        "tau": tau,
        "candidates": len(cosines),
        "moving": rate(observed.candidates, MOVING, tau),
        "quiet": rate(observed.candidates, QUIET, tau),
        "events": {kind: rate(observed.candidates, [kind], tau) for kind in kinds},
        "grid": [
            {
                "tau": t,
                "moving": rate(observed.candidates, MOVING, t),
                "quiet": rate(observed.candidates, QUIET, t),
            }
            for t in sorted({*TAUS, tau})
        ],
        "cosine_deciles": [
            round(cosines[min(len(cosines) - 1, len(cosines) * k // 10)], 5) for k in range(11)
        ]
        if cosines
        else [],
        "slot_ages": ages,
    }
