"""What a suite costs: GPU-hours and wall time by stage, and what stragglers and failures add.

Rates are pixel frames a second of one GPU. They are measured figures or the caller's; none is
assumed. What a simulation assumes of machines stands in ``Machines``.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfbench.errors import CfError
from cfbench.figures import load
from cfbench.plan import Plan

STAGES = ("make", "score")
FIGURES: Mapping[str, tuple[str, ...]] = {
    "make": ("make_frames_per_s", "e2e_ms"),
    "score": ("score_frames_per_s",),
}
"""Figures that hold a stage's rate, the first that is there; in ms a chunk where they end so."""
CHUNK_FRAMES = 12
"""Pixel frames of a chunk in figures of ms a chunk: 3 latents of 4 (Wan 2.1)."""
FPS = 16
MAX_GPUS = 100_000
ATTEMPTS = 2


class Part(NamedTuple):
    """Films of one length: how many, and pixel frames of each."""

    name: str
    films: int
    frames: int


PAPER: tuple[Part, ...] = (
    Part("table 1: 60 s, 5 systems, 100 prompts", 5 * 100 * 5, 60 * FPS),
    Part("table 2: 5 s, 13 systems, 946 prompts", 13 * 946 * 5, 5 * FPS),
    Part("table 2: 60 s, 8 systems, 946 prompts", 8 * 946 * 5, 60 * FPS),
    Part("table 3: 60 s, 4 ablations, 946 prompts", 4 * 946 * 5, 60 * FPS),
)
"""Films of the paper's tables with 5 seeds; the full row of Table 3 is one of Table 2.

Source: Context Forcing (arXiv:2602.06028), Tables 1 to 3 (results/paper); seeds of Tables 2 and 3
are not printed and taken as in Table 1.
"""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a simulation takes machines to be.

    Args:
        start_s: until a worker has its model.
        slow_share: of workers that are slow.
        slow_factor: how many times slower those are.
        mtbf_h: mean hours between failures of one GPU with its host.
        repair_s: until a failed worker is replaced.
        dispatch_s: that the one driver needs to hand out a job and take its result.
    """

    start_s: float = 120.0
    slow_share: float = 0.02
    slow_factor: float = 2.0
    mtbf_h: float = 5000.0
    repair_s: float = 600.0
    dispatch_s: float = 0.005

    def __post_init__(self) -> None:
        waits = (self.start_s, self.repair_s, self.dispatch_s)
        if not all(math.isfinite(wait) and wait >= 0 for wait in waits):
            raise CfError(f"seconds of {self}: expected 0 or more")
        if not 0 <= self.slow_share <= 1 or self.slow_factor < 1 or self.mtbf_h <= 0:
            raise CfError(f"{self}: expected a share of 0 to 1, a factor >= 1 and hours > 0")


class Simulated(NamedTuple):
    """How a simulated run went.

    ``busy`` is the share of worker time that made films, ``speed`` the mean of the workers' speeds,
    1 where none was drawn slow.
    """

    wall_s: float
    busy: float
    failures: int
    given_up: int
    speed: float


def parts_of(todo: Plan) -> list[Part]:
    """Films of a plan by system."""
    counts: dict[tuple[str, int], int] = {}
    for job in todo.jobs:
        counts[job.system, job.chunks] = counts.get((job.system, job.chunks), 0) + 1
    specs = {spec.address: spec for spec in todo.specs}
    return [
        Part(name, films, specs[name].frames(chunks)) for (name, chunks), films in counts.items()
    ]


def rates(speed: Path | None, given: Sequence[str]) -> dict[str, float]:
    """Frames a second of one GPU by stage.

    Args:
        speed: a list of figures, see ``FIGURES``.
        given: ``stage=rate``, before the figures.

    Raises:
        CfError: a stage without a rate, or a rate that is none.

    Example:
        >>> rates(None, ["make=24", "score=100"])
        {'make': 24.0, 'score': 100.0}
    """
    found: dict[str, float] = {}
    for text in given:
        stage, _, number = text.partition("=")
        try:
            found[stage] = float(number)
        except ValueError as error:
            raise CfError(f"--rate {text}: expected STAGE=FRAMES_PER_S, as in make=14.6") from error
        if stage not in STAGES or not (math.isfinite(found[stage]) and found[stage] > 0):
            raise CfError(f"--rate {text}: expected one of {', '.join(STAGES)} and more than 0")
    figures = load(speed) if speed is not None else {}
    for stage, names in FIGURES.items():
        name = next((name for name in names if name in figures), None)
        if stage not in found and name is not None:
            value = figures[name].value
            found[stage] = CHUNK_FRAMES * 1000 / value if name.endswith("_ms") else value
    if lacking := [stage for stage in STAGES if stage not in found]:
        names = ", ".join(FIGURES[lacking[0]])
        raise CfError(
            f"no figure {names} for stage {lacking[0]}; measure it, or give --rate {lacking[0]}="
        )
    return {stage: found[stage] for stage in STAGES}


def cost(parts: Iterable[Part], rate: Mapping[str, float], gpus: int) -> dict[str, Any]:
    """GPU-hours by stage, and the wall time on so many GPUs when nothing is in the way.

    Raises:
        CfError: a number of GPUs out of range.
    """
    if not 1 <= gpus <= MAX_GPUS:
        raise CfError(f"--gpus {gpus}: expected 1 to {MAX_GPUS}")
    frames = sum(part.films * part.frames for part in parts)
    hours = {stage: frames / rate[stage] / 3600 for stage in rate}
    return {
        "gpus": gpus,
        "frames": frames,
        "frames_per_s": dict(rate),
        "gpu_hours": {stage: round(value, 3) for stage, value in hours.items()},
        "wall_hours": {stage: round(value / gpus, 3) for stage, value in hours.items()},
        "wall_hours_total": round(sum(hours.values()) / gpus, 3),
    }


def simulate(jobs_s: Sequence[float], workers: int, machines: Machines, *, seed: int) -> Simulated:
    """Jobs over workers that are sometimes slow and sometimes die; events in order of time.

    Workers take jobs in order; a job whose worker dies goes to the end of the queue, up to
    ``ATTEMPTS`` times. A worker lives for an exponential time, drawn anew after each failure.

    Args:
        jobs_s: seconds of each job on a worker that is not slow.
        workers: one a GPU.
        machines: what they are taken to be.
        seed: of speeds and failures.
    """
    rng = np.random.default_rng(seed)
    slow = rng.random(workers) < machines.slow_share
    pace = np.where(slow, machines.slow_factor, 1.0).tolist()
    lives_s = rng.exponential(machines.mtbf_h * 3600, workers).tolist()
    free = [(machines.start_s, worker) for worker in range(workers)]
    heapq.heapify(free)
    queue = [(length, 1) for length in reversed(jobs_s)]
    late: list[tuple[float, int]] = []
    wall = busy = driver = 0.0
    failures = given_up = 0
    while queue or late:
        at, worker = heapq.heappop(free)
        length, attempt = queue.pop() if queue else late.pop()
        driver = max(driver, at) + machines.dispatch_s
        end = driver + length * pace[worker]
        if end <= lives_s[worker]:
            busy += end - driver
            wall = max(wall, end)
            heapq.heappush(free, (end, worker))
            continue
        died = max(driver, lives_s[worker])
        failures += 1
        back = died + machines.repair_s
        lives_s[worker] = back + float(rng.exponential(machines.mtbf_h * 3600))
        heapq.heappush(free, (back, worker))
        if attempt < ATTEMPTS:
            late.append((length, attempt + 1))
        else:
            given_up += 1
    speed = float(np.mean(1 / np.array(pace)))
    return Simulated(wall, busy / (wall * workers) if wall else 0.0, failures, given_up, speed)


def worked_paper(
    rate: Mapping[str, float], gpus: Sequence[int], machines: Machines, *, seed: int
) -> dict[str, Any]:
    """The paper's tables on so many GPUs each: cost, simulation, and what is in the way most.

    Making and scoring of a film are one job here, as ``measure`` does them. Films are taken longest
    first, so that the last of them is short.
    """
    a_frame_s = sum(1 / rate[stage] for stage in STAGES)
    order = sorted(PAPER, key=lambda part: -part.frames)
    jobs_s = [part.frames * a_frame_s for part in order for _ in range(part.films)]
    found: dict[str, Any] = {}
    for count in gpus:
        ideal = cost(PAPER, rate, count)
        run = simulate(jobs_s, count, machines, seed=seed)
        losses = _losses(jobs_s, count, machines, run)
        found[f"gpus{count}"] = {
            **ideal,
            "films": len(jobs_s),
            "simulated_wall_hours": round(run.wall_s / 3600, 3),
            "busy_share": round(run.busy, 4),
            "failures": run.failures,
            "given_up": run.given_up,
            "lost_hours": losses,
            "bottleneck": max(ideal["gpu_hours"], key=lambda name: ideal["gpu_hours"][name]),
            "largest_loss": max(losses, key=lambda name: losses[name]),
        }
    return {"machines": asdict(machines), "seed": seed, "runs": found}


def _losses(
    jobs_s: Sequence[float], workers: int, machines: Machines, run: Simulated
) -> dict[str, float]:
    """Hours of wall time that each cause adds, by what the run would last without it alone."""
    ideal_s = sum(jobs_s) / workers
    lost = {
        "start": machines.start_s,
        "slow workers": ideal_s / run.speed - ideal_s,
        "failures": run.failures * (machines.repair_s + sum(jobs_s) / len(jobs_s) / 2) / workers,
        "driver": max(0.0, len(jobs_s) * machines.dispatch_s - ideal_s),
        "last films": max(jobs_s[-workers:]) * machines.slow_factor,
    }
    return {name: round(value / 3600, 4) for name, value in lost.items()}
