"""Films made and scored in one go, none stored: protocol ``raw-frames``.

B films made together, R pixel frames, Y rows, X columns.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfbench import fanout, plan, prompts, provenance, scorers, video
from cfbench.errors import CfError
from cfbench.generate import Made, Outcome, check_protocol, failed_job, record, undo_on_error
from cfbench.plan import Plan, SystemSpec
from cfbench.progress import Fractions, Reporter
from cfbench.score import scores_of
from cfbench.scorers import Suite
from cfbench.status import Beat
from cfbench.store import LocalStore, now, open_store
from cfbench.systems import Loader, System
from cfbench.systems.cf import device_name
from cfbench.types import RAW_FRAMES, ClipInfo, DimensionSpec, Failure, Job, Score

log = logging.getLogger(__name__)

MAX_BATCH = 1024
MAKING = 0.7  # about the share of the work that is making films; for the display alone
RECORD_BYTES = 64 << 10  # twice what scores of a minute of film take with their windows
RESERVE_BYTES = 8 << 20


class Batch(NamedTuple):
    """Films to make together, and the ids of those that have no record yet."""

    jobs: tuple[Job, ...]
    wanted: frozenset[str]


@dataclass(kw_only=True)
class MeasureWorker:
    """Makes and scores batches of films in one process on one device.

    Args:
        store: not written to yet.
        systems: what loads them.
        suite_name: which suite to load; its networks share the device.
        specs: of all systems of the plan, by address.
        code: the revision, found once for all workers.
        threads: films that are scored at once; most of the work on a CPU lets go of Python's lock.
    """

    store: LocalStore
    systems: Loader
    suite_name: str
    specs: dict[str, SystemSpec]
    code: dict[str, Any]
    threads: int
    _suite: Suite | None = field(default=None, repr=False)

    def __call__(self, batch: Batch, emit: fanout.Emit) -> None:
        """Make a batch, and store scores and record of each film that has none."""
        if self._suite is None:
            one_thread()
            self._suite = scorers.load(self.suite_name, self.systems.device)
        address = batch.jobs[0].system
        system, spec = self.systems(address), self.specs[address]
        started, begin = now(), time.perf_counter()
        frames_BRYXC = make(batch.jobs, system, spec, lambda part: emit(MAKING * part))
        share_s = (time.perf_counter() - begin) / len(batch.jobs)
        made = Made(batch=len(batch.jobs), started=started, seconds=share_s)
        left = [k for k, job in enumerate(batch.jobs) if job.id in batch.wanted]
        judged = self._judged([(batch.jobs[k], frames_BRYXC[k]) for k in left], spec, self._suite)
        for number, (job, clip, found) in enumerate(judged, 1):
            prompt_sha = self.store.put_bytes(prompts.canonical(job.prompt), "json")
            # The record comes last: a film that has one has all of its scores.
            self.store.append("scores", *found)
            line = record(job, spec, system, clip, prompt_sha, code=self.code, made=made)
            facts = {**line.environment, "scored_on": device_name(self.systems.device)}
            self.store.append("runs", replace(line, environment=facts))
            emit(MAKING + (1 - MAKING) * number / len(left))

    def _judged(
        self, films: list[tuple[Job, video.Frames]], spec: SystemSpec, suite: Suite
    ) -> Iterator[tuple[Job, ClipInfo, list[Score]]]:
        def judge(film: tuple[Job, video.Frames]) -> tuple[Job, ClipInfo, list[Score]]:
            job, frames = film
            clip = video.held(frames, spec.shape.fps)
            return job, info(clip, frames), scores_of(clip, job.prompt, suite)

        with ThreadPoolExecutor(self.threads) as pool:
            yield from pool.map(judge, films)

    def close(self) -> None:
        """Close the worker's store."""
        self.store.close()


def one_thread() -> None:
    """Keep OpenCV from spreading over cores that other workers use."""
    import cv2

    cv2.setNumThreads(1)


def make(jobs: Sequence[Job], system: System, spec: SystemSpec, emit: fanout.Emit) -> video.Frames:
    """Frames (B, R, Y, X, 3) of films of jobs of equal length, made together.

    Raises:
        RuntimeError: the system made another number of frames than its spec says.
    """
    total, shape = spec.frames(jobs[0].chunks), spec.shape
    whole = np.empty((len(jobs), total, shape.height, shape.width, 3), np.uint8)
    done = 0
    for block in system.films(jobs):
        end = done + block.shape[1]
        if end <= total:
            whole[:, done:end] = block
        done = end
        emit(min(done / total, 1.0))
    if done != total:
        raise RuntimeError(f"{jobs[0].system} made {done} frames, expected {total}")
    return whole


def info(clip: video.Clip, frames: video.Frames) -> ClipInfo:
    """What the record of a film that is not stored says of it."""
    return ClipInfo(
        sha256=clip.sha256,
        frames=clip.frames,
        fps=clip.fps,
        width=frames.shape[2],
        height=frames.shape[1],
        codec=RAW_FRAMES,
        bytes=frames.nbytes,
    )


def batches(jobs: Sequence[Job], size: int, done: set[str]) -> list[Batch]:
    """Jobs in batches of one system and length; those in which something is left to do.

    Which films are made together follows from the jobs alone and not from what is done, since the
    last bits of a film may depend on the batch: a resumed run makes the films of an unbroken one.

    Raises:
        CfError: a size below 1 or beyond ``MAX_BATCH``.
    """
    if not 1 <= size <= MAX_BATCH:
        raise CfError(f"--batch {size}: expected 1 to {MAX_BATCH} films")
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.system, job.chunks), []).append(job)
    parts = (
        tuple(group[start : start + size])
        for group in groups.values()
        for start in range(0, len(group), size)
    )
    whole = (Batch(part, frozenset(job.id for job in part) - done) for part in parts)
    return [batch for batch in whole if batch.wanted]


def measured_ids(store: LocalStore, dimensions: Sequence[DimensionSpec]) -> set[str]:
    """Ids of the jobs that have a record and a score of every dimension's present version."""
    scored = store.scored()
    wanted = [(spec.name, spec.version) for spec in dimensions]
    return {
        run.id for run in store.runs() if all((run.clip.sha256, *name) in scored for name in wanted)
    }


def measure(
    todo: Plan,
    root: Path,
    *,
    suite_name: str,
    devices: Sequence[str],
    attention: str,
    batch: int,
    threads: int,
    reporter: Reporter,
    part: tuple[int, int] = (0, 1),
    engine: fanout.Engine = fanout.LOCAL,
) -> Outcome:
    """Make and score what is missing of a plan, without storing films.

    Killed at any moment it loses the batches in work, and the next call ends with the same records.

    Args:
        todo: the plan.
        root: the store, made when it does not exist.
        suite_name: as in ``cfbench.scorers``.
        devices: one for each worker.
        attention: backend, or auto.
        batch: films made together.
        threads: films that a worker scores at once.
        reporter: shows how far it is.
        part: which part of how many this process makes.
        engine: where the workers run.

    Raises:
        CfError: the disk is full or refuses, a system or the suite cannot be loaded, or the store
            holds films of another protocol.
    """
    dimensions = scorers.load(suite_name).dimensions
    store = open_store(root, exists=False)
    check_protocol(store, RAW_FRAMES)
    jobs = plan.shard(todo.jobs, *part)
    tasks = batches(jobs, batch, measured_ids(store, dimensions))
    films = sum(len(task.wanted) for task in tasks)
    specs = {spec.address: spec for spec in todo.specs}
    failed: list[Failure] = []
    reporter.phase(f"batches of {batch} films", len(tasks))
    fractions = Fractions(reporter)

    beat = Beat(store)

    def on_event(event: fanout.Event) -> None:
        beat.follow(event)
        if not fractions.follow(event):
            return
        if event.kind == "failed":
            # Some films of the batch may have been recorded before another one failed.
            done = measured_ids(store, dimensions)
            for job in tasks[event.task].jobs:
                if job.id in tasks[event.task].wanted - done:
                    failed.append(failed_job(job, specs[job.system], event))
                    store.append("failures", failed[-1])

    with undo_on_error(store), store, beat:
        store.check_writable(films * RECORD_BYTES + RESERVE_BYTES)
        store.sweep()
        store.write_plan(todo.tree())
        code = provenance.revision()
        workers = [
            MeasureWorker(
                store=open_store(root, exists=False),
                systems=Loader(device=device, attention=attention),
                suite_name=suite_name,
                specs=specs,
                code=code,
                threads=threads,
            )
            for device in devices
        ]
        if tasks:
            fanout.run(tasks, workers, group=_system, on_event=on_event, engine=engine)
    return Outcome(made=films - len(failed), present=len(jobs) - films, failed=tuple(failed))


def _system(batch: Batch) -> str:
    return batch.jobs[0].system
