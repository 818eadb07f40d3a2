"""Make the films of a plan: resumable, one record a film, the same on any number of workers."""

import contextlib
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import fanout, plan, prompts, provenance, video
from cfbench.errors import UNWRITABLE, CfError, unwritable
from cfbench.plan import Plan, SystemSpec
from cfbench.progress import Fractions, Reporter
from cfbench.status import Beat
from cfbench.store import LocalStore, Store, now, open_store
from cfbench.systems import Loader, System
from cfbench.types import ClipInfo, Failure, Job, RunRecord

log = logging.getLogger(__name__)

# One thread everywhere: sums are then in one order, so films do not depend on the cores.
THREADS = 1
BATCH = 1
BYTES_PER_PIXEL = 0.1  # H.264 at crf 18 of moving scenes is well below
RESERVE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the generator did: counts, and the jobs that failed."""

    made: int
    present: int
    failed: tuple[Failure, ...]


@dataclass(kw_only=True)
class FilmWorker:
    """Makes films in one process on one device.

    Args:
        store: not written to yet.
        systems: what loads them.
        specs: of all systems of the plan, by address.
        code: the revision, found once for all workers.
    """

    store: LocalStore
    systems: Loader
    specs: dict[str, SystemSpec]
    code: dict[str, Any]

    def __call__(self, job: Job, emit: fanout.Emit) -> str:
        """Make the film of a job and store it with its record; returns the film's hash."""
        system = self.systems(job.system)
        return film(job, self.specs[job.system], system, self.store, self.code, emit)

    def close(self) -> None:
        """Close the worker's store."""
        self.store.close()


def film(
    job: Job,
    spec: SystemSpec,
    system: System,
    store: Store,
    code: dict[str, Any],
    emit: fanout.Emit,
) -> str:
    """Make one film; store the film, its prompt and its record, in this order."""
    started, begin = now(), time.perf_counter()
    target, expected = store.scratch("mp4"), spec.frames(job.chunks)
    try:
        blocks = (block[0] for block in system.films([job]))
        clip = video.encode(target, counted(blocks, expected, emit), spec.shape.fps)
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in UNWRITABLE:
            raise unwritable(target, error) from error
        raise
    seconds = time.perf_counter() - begin
    if clip.frames != expected:
        target.unlink(missing_ok=True)
        raise RuntimeError(f"{job.system} made {clip.frames} frames, expected {expected}")
    store.put(target, clip.sha256, "mp4")
    prompt_sha = store.put_bytes(prompts.canonical(job.prompt), "json")
    made = Made(batch=BATCH, started=started, seconds=seconds)
    store.append("runs", record(job, spec, system, clip, prompt_sha, code=code, made=made))
    return clip.sha256


class Made(NamedTuple):
    """Of how many films made together one was, when they were begun, and its share of the time."""

    batch: int
    started: str
    seconds: float


def record(
    job: Job,
    spec: SystemSpec,
    system: System,
    clip: ClipInfo,
    prompt_sha: str,
    *,
    code: dict[str, Any],
    made: Made,
) -> RunRecord:
    """How the film ``clip`` of a job came to be."""
    return RunRecord(
        id=job.id,
        system=spec.name,
        label=spec.label,
        key=job.key,
        experiment=spec.experiment,
        prompt_id=job.prompt.id,
        prompt_sha=prompt_sha,
        stratum=job.prompt.stratum,
        seed=job.seed,
        chunks=job.chunks,
        clip=clip,
        weights=system.weights,
        code=code,
        environment=provenance.environment(system.facts, THREADS),
        batch=made.batch,
        started=made.started,
        seconds=round(made.seconds, 3),
        peak_gib=round(system.peak_gib(), 3),
        fps_generated=round(clip.frames / made.seconds, 2),
    )


def counted(
    blocks: Iterable[video.Frames], total: int, emit: fanout.Emit
) -> Iterator[video.Frames]:
    """The blocks (R, Y, X, 3), telling ``emit`` the share of ``total`` frames seen so far."""
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        emit(min(done, total) / total)


def generate(
    todo: Plan,
    root: Path,
    *,
    devices: Sequence[str],
    attention: str,
    reporter: Reporter,
    part: tuple[int, int] = (0, 1),
    engine: fanout.Engine = fanout.LOCAL,
) -> Outcome:
    """Make what is missing of a plan.

    Args:
        todo: the plan.
        root: the store, made when it does not exist.
        devices: one for each worker.
        attention: backend, or auto.
        reporter: shows how far it is.
        part: which part of how many this process makes.
        engine: where the workers run.

    Raises:
        CfError: the disk is full or refuses, a system cannot be loaded, or the store's films are
            of another protocol.
    """
    store = open_store(root, exists=False)
    check_protocol(store, video.CODEC)
    jobs = plan.shard(todo.jobs, *part)
    left = plan.missing(jobs, store.done_ids())
    specs = {spec.address: spec for spec in todo.specs}
    failed: list[Failure] = []
    reporter.phase("films", len(left))
    fractions = Fractions(reporter)

    beat = Beat(store)

    def on_event(event: fanout.Event) -> None:
        beat.follow(event)
        if not fractions.follow(event):
            return
        if event.kind == "failed":
            job = left[event.task]
            failure = failed_job(job, specs[job.system], event)
            store.append("failures", failure)
            failed.append(failure)

    with undo_on_error(store), store, beat:
        store.check_writable(need_bytes(left, specs))
        store.sweep()
        store.write_plan(todo.tree())
        code = provenance.revision()
        workers = [
            FilmWorker(
                store=open_store(root, exists=False),
                systems=Loader(device=device, attention=attention),
                specs=specs,
                code=code,
            )
            for device in devices
        ]
        if left:
            fanout.run(
                left, workers, group=lambda job: job.system, on_event=on_event, engine=engine
            )
    return Outcome(
        made=len(left) - len(failed), present=len(jobs) - len(left), failed=tuple(failed)
    )


def failed_job(job: Job, spec: SystemSpec, event: fanout.Event) -> Failure:
    """The failure of a job that an event tells of."""
    return Failure(
        stage="generate",
        id=job.id,
        system=spec.name,
        prompt_id=job.prompt.id,
        seed=job.seed,
        reason=event.value,
        attempts=event.attempts,
    )


def check_protocol(store: LocalStore, protocol: str) -> None:
    """Refuse a store whose films are of another protocol: their scores cannot be compared.

    Raises:
        CfError: with the remedy.
    """
    others = {run.clip.codec for run in store.runs()} - {protocol}
    if others:
        raise CfError(
            f"{store.root} holds films of protocol {', '.join(sorted(others))}, and these would be "
            f"{protocol}; choose another --out"
        )


@contextlib.contextmanager
def undo_on_error(store: LocalStore) -> Generator[None]:
    """A run that stops on bad input before its first record leaves nothing behind."""
    try:
        yield
    except CfError:
        store.discard_empty()
        raise


def need_bytes(jobs: Sequence[Job], specs: dict[str, SystemSpec]) -> int:
    """Disk space that the films of some jobs are expected to take, with a reserve."""
    pixels = sum(
        specs[job.system].frames(job.chunks)
        * specs[job.system].shape.height
        * specs[job.system].shape.width
        for job in jobs
    )
    return int(pixels * BYTES_PER_PIXEL) + RESERVE_BYTES
