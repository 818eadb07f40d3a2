"""How far scores of raw frames are from scores of the same films as H.264 files."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cfbench import fanout, scorers, video
from cfbench.errors import INCOMPLETE, CfError
from cfbench.measure import make, one_thread
from cfbench.plan import Plan, SystemSpec
from cfbench.progress import Fractions, Reporter
from cfbench.score import scores_of
from cfbench.scorers import Suite
from cfbench.stats import paired
from cfbench.systems import Loader
from cfbench.types import RAW_FRAMES, Job, Score

Values = Mapping[str, float | None]


class Pair(NamedTuple):
    """Scores of one film by dimension: of its raw frames, and of its file."""

    prompt_id: str
    seed: int
    raw: Values
    coded: Values


@dataclass(kw_only=True)
class GapWorker:
    """Makes films in one process and scores each of them twice.

    Args:
        systems: what loads them.
        suite_name: which suite to load.
        spec: of the system.
    """

    systems: Loader
    suite_name: str
    spec: SystemSpec
    _suite: Suite | None = field(default=None, repr=False)

    def __call__(self, job: Job, emit: fanout.Emit) -> Pair:
        """Both scores of a job's film."""
        if self._suite is None:
            one_thread()
            self._suite = scorers.load(self.suite_name, self.systems.device)
        fps = self.spec.shape.fps
        frames = make([job], self.systems(job.system), self.spec, lambda part: emit(part / 2))[0]
        raw = scores_of(video.held(frames, fps), job.prompt, self._suite)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            video.encode(path, [frames], fps)
            coded = scores_of(video.stored(path), job.prompt, self._suite)
        return Pair(job.prompt.id, job.seed, _values(raw), _values(coded))

    def close(self) -> None:
        """There is nothing to let go of."""


def _values(scores: Sequence[Score]) -> dict[str, float | None]:
    return {score.dimension: score.value for score in scores}


def summary(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """By dimension: mean of raw minus coded with its 95 % interval over prompts, and films.

    Bounds are None below 5 prompts; films in which a dimension does not apply do not count, and
    ``differ`` are those in which it applies to one of the two alone.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair.raw):
        raw = {(p.prompt_id, p.seed): p.raw[name] for p in pairs}
        coded = {(p.prompt_id, p.seed): p.coded[name] for p in pairs}
        result = paired(raw, coded)
        found[name] = {
            "mean": result.mean.value,
            "low": result.mean.low,
            "high": result.mean.high,
            "films": result.scored,
            "differ": sum((raw[key] is None) != (coded[key] is None) for key in raw),
        }
    return found


def protocol_gap(
    todo: Plan, *, suite_name: str, devices: Sequence[str], attention: str, reporter: Reporter
) -> dict[str, Any]:
    """The gap between the two protocols on the films of a plan of one system, as a JSON tree.

    Nothing is stored.

    Raises:
        CfError: not one system with films, PyAV is not installed, or a film failed.
    """
    if len(todo.specs) != 1 or not todo.jobs:
        reasons = "; ".join(row.reason for row in todo.null) or "name one with --systems"
        raise CfError(f"the gap is of one system that has films: {reasons}")
    (spec,) = todo.specs
    pairs: list[Pair] = []
    failed: list[str] = []
    reporter.phase("films", len(todo.jobs))
    fractions = Fractions(reporter)

    def on_event(event: fanout.Event) -> None:
        if not fractions.follow(event):
            return
        if event.kind == "done":
            pairs.append(event.value)
        else:
            failed.append(f"{todo.jobs[event.task].prompt.id}: {event.value}")

    workers = [
        GapWorker(
            systems=Loader(device=device, attention=attention), suite_name=suite_name, spec=spec
        )
        for device in devices
    ]
    fanout.run(todo.jobs, workers, group=_one_group, on_event=on_event)
    if failed:
        raise CfError(f"{len(failed)} films failed: {'; '.join(failed)}", INCOMPLETE)
    pairs.sort(key=lambda pair: (pair.prompt_id, pair.seed))
    return {
        "system": spec.address,
        "films": len(pairs),
        "difference": f"{RAW_FRAMES} minus {video.CODEC}",
        "suite": suite_name,
        "version": scorers.load(suite_name).version,
        "dimensions": summary(pairs),
    }


def _one_group(job: Job) -> str:
    return ""
