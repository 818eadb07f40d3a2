"""Systems x prompts x seeds -> jobs; which of them are missing; which rows cannot be made."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cfbench import prompts as prompt_sets
from cfbench.errors import CfError
from cfbench.types import Job, Prompt

MAX_SECONDS = 3600.0
MAX_SEEDS = 1000


class Shape(Protocol):
    """Sizes of a system's films, and how seconds become chunks and pixel frames."""

    @property
    def height(self) -> int:
        """Rows of a pixel frame."""
        ...

    @property
    def width(self) -> int:
        """Columns of a pixel frame."""
        ...

    @property
    def fps(self) -> int:
        """Pixel frames a second."""
        ...

    @property
    def chunk(self) -> int:
        """Latent frames made together."""
        ...

    def chunks_for(self, seconds: float) -> int:
        """Chunks that cover ``seconds``."""
        ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames decoded from ``latent_frames``."""
        ...


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """What planning knows of a system without loading it.

    ``address`` is what loads it (``tiny/no-slow``), ``name`` its row in tables (``no-slow``).
    ``absent`` is the reason why it has no films, empty when it can run.
    """

    address: str
    family: str
    name: str
    label: str
    key: str
    experiment: dict[str, Any]
    shape: Shape
    needs_scene: bool = False
    absent: str = ""

    def frames(self, chunks: int) -> int:
        """Pixel frames stored for a film of ``chunks``."""
        return self.shape.pixel_frames(chunks * self.shape.chunk)


@dataclass(frozen=True, kw_only=True)
class NullRow:
    """A row of the table without films, and why."""

    system: str
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs in order, systems outermost; and the rows that stay null."""

    jobs: tuple[Job, ...]
    null: tuple[NullRow, ...]
    specs: tuple[SystemSpec, ...]

    def tree(self) -> dict[str, Any]:
        """What reports and checks need: rows in order, reasons of the null ones, job ids."""
        return {
            "systems": [{"system": s.name, "label": s.label, "key": s.key} for s in self.specs],
            "null": {row.system: row.reason for row in self.null},
            "jobs": sorted(job.id for job in self.jobs),
        }


def make(
    specs: Sequence[SystemSpec], prompts: Sequence[Prompt], *, seeds: int, seconds: float
) -> Plan:
    """All jobs of a benchmark run.

    Args:
        specs: the systems, of one family: tables compare films of one size and world.
        prompts: the prompts.
        seeds: films a prompt; seeds 0 .. seeds - 1.
        seconds: length of the films.

    Raises:
        CfError: a length or a count out of range, a system named twice, or two families.
    """
    if not math.isfinite(seconds) or not 0 < seconds <= MAX_SECONDS:
        raise CfError(f"--seconds {seconds}: expected more than 0 and at most {MAX_SECONDS:.0f}")
    if not 1 <= seeds <= MAX_SEEDS:
        raise CfError(f"--seeds {seeds}: expected 1 to {MAX_SEEDS}")
    if not specs:
        raise CfError("no system is named; give --systems, as in tiny/ours,tiny/no-slow")
    families = sorted({spec.family for spec in specs})
    if len(families) > 1:
        raise CfError(f"--systems mixes the families {', '.join(families)}; use one --out for each")
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CfError(f"--systems names {', '.join(twice)} twice; name each once")
    hashes = {prompt.id: prompt_sets.sha256(prompt) for prompt in prompts}
    jobs: list[Job] = []
    null: list[NullRow] = []
    for spec in specs:
        usable = [p for p in prompts if p.scene is not None or not spec.needs_scene]
        reason = spec.absent or ("" if usable else "no prompt has a scene to render")
        if reason:
            null.append(NullRow(system=spec.name, label=spec.label, reason=reason))
            continue
        chunks = spec.shape.chunks_for(seconds)
        jobs += [_job(spec, p, hashes[p.id], seed, chunks) for p in usable for seed in range(seeds)]
    return Plan(jobs=tuple(jobs), null=tuple(null), specs=tuple(specs))


def shard(jobs: Sequence[Job], index: int, count: int) -> tuple[Job, ...]:
    """Part ``index`` of ``count``: every job is in exactly one part.

    Raises:
        CfError: not 0 <= index < count.
    """
    if not 0 <= index < count:
        raise CfError(f"--shard {index}/{count}: expected index 0 to {count - 1} of a count >= 1")
    return tuple(jobs[index::count])


def missing(jobs: Iterable[Job], done: set[str]) -> tuple[Job, ...]:
    """The jobs without a film."""
    return tuple(job for job in jobs if job.id not in done)


def _job(spec: SystemSpec, prompt: Prompt, sha: str, seed: int, chunks: int) -> Job:
    parts = [spec.key, sha, seed, chunks]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Job(
        id=digest, system=spec.address, key=spec.key, prompt=prompt, seed=seed, chunks=chunks
    )
