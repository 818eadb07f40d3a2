"""How planning, status and tables grow with the number of jobs: made-up stores, timed.

The films are made up and the code is not: what is timed is what ``plan``, ``status`` and
``report`` call.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cfbench import plan, tables
from cfbench.aggregate import DIMENSIONS, suite_normaliser
from cfbench.errors import CfError
from cfbench.frame import build_frame
from cfbench.plan import Plan
from cfbench.status import status
from cfbench.store import LocalStore, open_store
from cfbench.systems import describe
from cfbench.types import RAW_FRAMES, ClipInfo, Prompt, RunRecord, Score, Segment

SEEDS = 5
SECONDS = 60.0
VERSION = "1"
LOT = 1000
"""Records that are appended at once."""
LIMIT = 10_000_000
SYSTEMS = ("nano/ours", "nano/no-slow", "nano/uniform-1", "nano/absolute", "nano/self-forcing")


def speed_scale(sizes: Sequence[int], folder: Path) -> dict[str, Any]:
    """Seconds and peak GiB of planning, status and a table, by number of jobs or score rows.

    Each number comes from a process of its own, so that its memory is its own.

    Args:
        sizes: jobs of a plan, and rows of a table of scores.
        folder: where the made-up stores lie while they are needed.

    Raises:
        CfError: a size below the number of systems times seeds, or beyond ten millions.
    """
    least = len(SYSTEMS) * SEEDS
    if not sizes or not all(least <= size <= LIMIT for size in sizes):
        raise CfError(f"--sizes {list(sizes)}: expected numbers from {least} to {LIMIT}")
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root = Path(name) / "store"
            found[str(size)] = {
                "plan": _alone(time_plan, size, root),
                "fill": _alone(fill, size, root),
                "status": _alone(time_status, size, root),
                "report": _alone(time_report, size, root),
                "compact": _alone(time_compact, size, root),
                "compacted_report": _alone(time_report, size, root),
            }
    return found


def _alone(step: Callable[[int, Path], dict[str, Any]], size: int, root: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_timed, step, size, root).result()


def _timed(step: Callable[[int, Path], dict[str, Any]], size: int, root: Path) -> dict[str, Any]:
    begin, cpu = time.perf_counter(), time.process_time()
    found = step(size, root)
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 30), 3),
        **found,
    }


def time_plan(size: int, root: Path) -> dict[str, Any]:
    """Plan ``size`` jobs, find which are missing, and keep the plan in the store at ``root``."""
    store = LocalStore(root)
    todo = _plan(size)
    left = plan.missing(todo.jobs, store.done_ids())
    root.mkdir(parents=True)
    store.write_plan(todo.tree())
    return {"jobs": len(todo.jobs), "missing": len(left)}


def time_status(size: int, root: Path) -> dict[str, Any]:
    """How far the store is, whose plan has ``size`` jobs."""
    del size
    found = status(open_store(root))
    return {"done": found["done"], "jobs": found["jobs"]}


def time_report(size: int, root: Path) -> dict[str, Any]:
    """The table of all systems over ``size`` score rows."""
    del size
    store = open_store(root)
    scores = store.scores()
    frame = build_frame(store.runs(), scores, "tiny")
    normaliser = suite_normaliser("tiny")
    table = tables.ablation_table(
        tables.summaries(frame, normaliser),
        labels={}, absent={}, paper={}, note=tables.coverage_note(frame, normaliser, "tiny"),
        tier="tiny", header="made up",
    )  # fmt: skip
    text = tables.to_csv(table)
    return {"rows": len(scores), "films": len(frame.runs), "table_lines": text.count("\n")}


def time_compact(size: int, root: Path) -> dict[str, Any]:
    """Put ``size`` score rows into partitioned Parquet."""
    del size
    return {"rows": open_store(root).compact()}


def fill(size: int, root: Path) -> dict[str, Any]:
    """Append records of as many films as ``size`` scores belong to."""
    films = size // len(DIMENSIONS)
    rng = np.random.default_rng(size)
    values = iter(rng.random((films, len(DIMENSIONS))).tolist())
    pending = iter(_runs(_plan(size), films))
    with LocalStore(root) as store:
        while lot := list(islice(pending, LOT)):
            scores = [score for run in lot for score in _scores(run, next(values))]
            store.append("scores", *scores)
            store.append("runs", *lot)
    return {"films": films}


def _plan(size: int) -> Plan:
    specs = describe(SYSTEMS)
    count = -(-size // (len(specs) * SEEDS))
    segment = (Segment(text="a red cube hops on grass", seconds=SECONDS),)
    prompts = [Prompt(id=f"p-{number:07d}", segments=segment) for number in range(count)]
    todo = plan.make(specs, prompts, seeds=SEEDS, seconds=SECONDS)
    return Plan(jobs=todo.jobs[:size], null=todo.null, specs=todo.specs)


def _runs(todo: Plan, films: int) -> Iterator[RunRecord]:
    specs = {spec.address: spec for spec in todo.specs}
    step = len(todo.jobs) // films
    for job in todo.jobs[: films * step : step]:
        spec = specs[job.system]
        clip = ClipInfo(
            sha256=job.id * 4, frames=spec.frames(job.chunks), fps=spec.shape.fps,
            width=spec.shape.width, height=spec.shape.height, codec=RAW_FRAMES, bytes=1,
        )  # fmt: skip
        yield RunRecord(
            id=job.id, system=spec.name, label=spec.label, key=job.key, experiment=spec.experiment,
            prompt_id=job.prompt.id, prompt_sha=job.id * 4, stratum="", seed=job.seed,
            chunks=job.chunks, clip=clip, weights={}, code={}, environment={}, batch=1,
            started="2026-01-01T00:00:00.000+00:00", seconds=1.0, peak_gib=1.0, fps_generated=1.0,
        )  # fmt: skip


def _scores(run: RunRecord, values: Sequence[float]) -> Iterator[Score]:
    for name, value in zip(DIMENSIONS, values, strict=True):
        yield Score(
            clip_sha=run.clip.sha256, dimension=name, version=VERSION, tier="tiny", value=value
        )
