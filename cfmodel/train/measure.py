"""What an iteration of distribution matching takes: seconds and memory of each of its parts.

The stage is the real one, on random weights, texts and draws: neither changes what is computed. The
record is written after every part, so that a run which ends early leaves what it knew.
"""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfmodel.config import Experiment, seed_for
from cfmodel.devices import mean_of_all, world
from cfmodel.io.weights import write_atomic
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.train.data import CONTEXT, TARGET
from cfmodel.train.draws import Draws
from cfmodel.train.films import FreshFilms, Rollout
from cfmodel.train.matching import Clock, MatchingStage
from cfmodel.train.roller import Roller
from cfmodel.train.stages import NUMBERS, told
from cfmodel.train.state import local_rows
from cfmodel.train.texts import Held, Texts

GIB = 2**30
TEXTS = 8
HEAD_STD = 0.02
FIRST_BLOCK = "blocks.0."
RECIPES = {"dmd": (600, 64), "cdmd": (500, 64)}
"""Iterations and films of each. Source: arXiv:2602.06028 sections 6 and 7."""
CURRICULUM_POINTS = 100
LEFT_OUT = (
    "VAE: a window's first latent is handed on as it is instead of decoded and encoded again",
    "text encoder: texts are random numbers of its output's shape",
)


class NoRoomError(RuntimeError):
    """A part does not fit on the device."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is measured.

    Args:
        stage: see ``cfmodel.train.stages``.
        latents: length of every film; None is the longest of the stage.
        iterations: measured, each with a student and a critic step.
        warmup: iterations before them.
        batch: films of an iteration, over all processes and micro-batches.
        accumulate: micro-batches.
        checkpointing: compute activations twice.
        compiled: compile the blocks.
    """

    stage: Literal["dmd", "cdmd"] = "cdmd"
    latents: int | None = None
    iterations: int = 2
    warmup: int = 1
    batch: int = 1
    accumulate: int = 1
    checkpointing: bool = True
    compiled: bool = False


def rollout_of(experiment: Experiment, trial: Trial) -> Rollout:
    """The films of a trial: those of the stage, all of one length.

    Raises:
        ValueError: the length is not a whole number of chunks.
    """
    numbers = NUMBERS[experiment.family]
    plan = numbers.local
    if trial.stage == "cdmd":
        plan = told(numbers.contextual, experiment.train.context)
    latents = (plan.stream or plan.longest) if trial.latents is None else trial.latents
    if latents % experiment.geometry.chunk:
        raise ValueError(
            f"films of {latents} latents are no whole number of chunks; use a multiple of "
            f"{experiment.geometry.chunk}"
        )
    return replace(plan, shortest=latents, longest=latents, stream=0)


def random_weights(experiment: Experiment) -> dict[str, Tensor]:
    """Weights of a network whose output is not zero, so that no gradient of the stage is.

    Every block has the same: 1.4 billion draws on the CPU would take longer than an iteration.
    """
    one = replace(experiment.model, layers=1)
    state = VideoTransformer(one, experiment.geometry).state_dict()
    first = {key: value for key, value in state.items() if key.startswith(FIRST_BLOCK)}
    for layer in range(1, experiment.model.layers):
        for key, value in first.items():
            state[f"blocks.{layer}.{key.removeprefix(FIRST_BLOCK)}"] = value
    head = state["head.linear.weight"]
    generator = torch.Generator().manual_seed(seed_for("measure", "head"))
    head.copy_(torch.empty(head.shape).normal_(std=HEAD_STD, generator=generator))
    return state


def build(
    experiment: Experiment, trial: Trial, device: torch.device, clock: Clock
) -> MatchingStage:
    """The stage of a trial, with a student update in every iteration, ready to step.

    Raises:
        ValueError: the batch does not divide, or the films are too short for the stage.
    """
    numbers, model = NUMBERS[experiment.family], experiment.model
    plan = rollout_of(experiment, trial)
    rows = local_rows(trial.batch, (world().size, trial.accumulate), "batch")
    generator = torch.Generator().manual_seed(seed_for("measure", "texts"))
    table = torch.randn(TEXTS, model.text_tokens, model.text_width, generator=generator)
    index = torch.arange(TEXTS)[:, None].expand(-1, plan.longest // experiment.geometry.chunk)
    texts = Texts(
        Held(table.to(torch.bfloat16), device), index, torch.zeros_like(index).bool(), device
    )
    films = FreshFilms(
        Roller(experiment, rows, Draws(device, 3)), texts, plan, reencode=lambda x: x[:, -1:]
    )
    weights = random_weights(experiment)
    stage = MatchingStage(
        trial.stage, experiment, device, films, torch.zeros(table.shape[1:]),
        replace(numbers.cdmd if trial.stage == "cdmd" else numbers.dmd, every=1),
        student=weights, teacher=weights, compiled=trial.compiled, clock=clock,
    )  # fmt: skip
    for trainable in stage.trainables().values():
        trainable.prepare(
            accumulate=trial.accumulate, checkpointing=trial.checkpointing,
            sharded=world().size > 1,
        )  # fmt: skip
    return stage


class Meter:
    """Seconds and memory of parts, written down as soon as each is over.

    Args:
        device: whose memory is watched, and which is waited for.
        out: file of records by name; those of other names stay.
        name: of this record.
        about: what the record says of the run.
    """

    def __init__(
        self, device: torch.device, out: Path, name: str, about: Mapping[str, Any]
    ) -> None:
        self.device, self.out, self.name = device, out, name
        self.record: dict[str, Any] = {**about, "parts": [], "steps": [], "state": "running"}
        self.iteration = 0

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Times what is done inside.

        Raises:
            NoRoomError: the device's memory does not hold it.
        """
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        try:
            yield
            if cuda:
                torch.cuda.synchronize(self.device)
        except torch.OutOfMemoryError as error:
            memory = self._memory()
            self.record["state"] = f"out of memory in part {name}"
            self.record["parts"].append({"part": name, "iteration": self.iteration, **memory})
            self.write()
            raise NoRoomError(
                f"out of memory in part {name} of iteration {self.iteration} with "
                f"{memory['reserved_gib']} GiB reserved, {memory['allocated_gib']} GiB of it in "
                "use; use a smaller --batch, more processes, or shorter films"
            ) from error
        seconds = round(time.perf_counter() - started, 4)
        row = {"part": name, "iteration": self.iteration, "seconds": seconds, **self._memory()}
        self.record["parts"].append(row)
        self.write()

    def _memory(self) -> dict[str, float | None]:
        if self.device.type != "cuda":
            return {"allocated_gib": None, "reserved_gib": None}
        return {
            "allocated_gib": round(torch.cuda.max_memory_allocated(self.device) / GIB, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved(self.device) / GIB, 3),
        }

    def write(self) -> None:
        """Puts the record in its file, in the first process alone."""
        if world().rank:
            return
        told: dict[str, Any] = {}
        if self.out.is_file():
            told = json.loads(self.out.read_text(encoding="utf-8"))
        told[self.name] = self.record
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.out, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


def summary(record: Mapping[str, Any], warmup: int) -> dict[str, Any]:
    """Mean seconds of each part and its share, without the warm-up; the highest memory of all.

    Seconds are those of all micro-batches of an iteration.

    Example:
        >>> row = {"iteration": 1, "reserved_gib": 2.0, "allocated_gib": 1.0}
        >>> rows = [{**row, "part": "rollout", "seconds": 3.0}]
        >>> rows += [{**row, "part": "critic", "seconds": 1.0}]
        >>> summary({"parts": rows}, 1)["share"]
        {'rollout': 0.75, 'critic': 0.25}
    """
    rows = [row for row in record["parts"] if row["part"] != "setup"]
    measured = [row for row in rows if row["iteration"] >= warmup]
    count = len({row["iteration"] for row in measured})
    seconds: dict[str, float] = {}
    for row in measured:
        seconds[row["part"]] = seconds.get(row["part"], 0.0) + row["seconds"] / count
    total = sum(seconds.values())
    peaks: dict[str, float | None] = {}
    for name in ("reserved_gib", "allocated_gib"):
        known = [row[name] for row in record["parts"] if row[name] is not None]
        peaks[f"peak_{name}"] = max(known, default=None)
    return {
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
        "iteration_s": round(total, 3),
        "share": {part: round(value / total, 4) for part, value in seconds.items()},
        **peaks,
    }


def mean_length(plan: Rollout) -> float:
    """Mean latents of a stage's films over its run.

    Example:
        >>> mean_length(Rollout())
        21.0
    """
    points = [k / CURRICULUM_POINTS for k in range(CURRICULUM_POINTS)]
    ends = [plan.length(p, 0.0) + plan.length(p, 1 - 1 / CURRICULUM_POINTS) for p in points]
    return sum(ends) / 2 / len(ends)


def gpu_hours(seconds: Mapping[str, float], films: float, every: int, longer: float) -> float:
    """GPU-hours of a stage whose films are made as measured.

    ``films * (longer * rollout + critic + student / every) / 3600``

    Args:
        seconds: of each part, for the films that one GPU makes at a time.
        films: of the stage, over what one GPU makes at a time.
        every: films from one that the student learns from to the next.
        longer: mean length of the stage's films over that of the measured ones.

    Example:
        >>> gpu_hours({"rollout": 20.0, "critic": 10.0, "student": 30.0}, 3600, 5, 0.9)
        34.0
    """
    each = longer * seconds["rollout"] + seconds["critic"] + seconds["student"] / every
    return films * each / 3600


def recipe(experiment: Experiment, trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
    """GPU-hours of the whole stage, from a measured record with its summary."""
    numbers = NUMBERS[experiment.family]
    steps, batch = RECIPES[trial.stage]
    plan = numbers.contextual if trial.stage == "cdmd" else numbers.local
    every = (numbers.cdmd if trial.stage == "cdmd" else numbers.dmd).every
    longer = mean_length(plan) / record["latents"]
    # One GPU makes its share of an iteration's films in the measured seconds.
    films = steps * batch * world().size / trial.batch
    hours = gpu_hours(record["summary"]["seconds"], films, every, longer)
    return {
        "iterations": steps, "films": batch, "every": every, "mean_latents": mean_length(plan),
        "gpu_hours": round(hours, 1),
    }  # fmt: skip


def _about(experiment: Experiment, trial: Trial, device: torch.device) -> dict[str, Any]:
    plan, size = rollout_of(experiment, trial), experiment.geometry
    with torch.device("meta"):
        net = VideoTransformer(experiment.model, size)
    cuda = device.type == "cuda"
    scored = TARGET if plan.context == "none" else CONTEXT + TARGET
    return {
        "preset": f"{experiment.family}/{experiment.name}",
        "trial": asdict(trial),
        "experiment": experiment.to_json(),
        "rollout": asdict(plan),
        "latents": plan.longest,
        "processes": world().size,
        "parameters": sum(p.numel() for p in net.parameters()),
        "tokens": {
            "chunk": size.chunk * size.tokens_per_frame,
            "scored": scored * size.tokens_per_frame,
        },
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "device_gib": round(torch.cuda.mem_get_info(device)[1] / GIB, 2) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,  # pyright: ignore[reportAttributeAccessIssue]
        "left_out": list(LEFT_OUT),
    }


def _means(micro: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Metrics of an iteration over micro-batches and processes."""
    names = micro[-1].keys()
    means = {name: sum(float(part[name]) for part in micro) / len(micro) for name in names}
    # A norm is there with the last micro-batch alone.
    norms = {name: float(micro[-1][name]) for name in names if name.endswith("norm")}
    return mean_of_all({**means, **norms})


def run(
    experiment: Experiment, trial: Trial, device: torch.device, out: Path, name: str
) -> dict[str, Any]:
    """Measures a trial and returns its record, which ``out`` holds under ``name``.

    With several processes seconds and memory are the first one's, losses the mean of all.

    Raises:
        ValueError: settings do not fit.
        NoRoomError: the device's memory does not hold a part; ``out`` says which.
    """
    meter = Meter(device, out, name, _about(experiment, trial, device))
    with meter.part("setup"):
        stage = build(experiment, trial, device, meter.part)
    passes = list[int]()
    stage.student.module.register_forward_pre_hook(lambda *_: passes.append(meter.iteration))
    for k in range(trial.warmup + trial.iterations):
        meter.iteration = k
        micro = [stage.step(k, 1.0) for _ in range(trial.accumulate)]
        meter.record["steps"].append({**_means(micro), "student_passes": passes.count(k)})
    record = meter.record
    record["summary"] = summary(record, trial.warmup)
    record["recipe"] = recipe(experiment, trial, record)
    record["state"] = "done"
    meter.write()
    return record


def lines(record: Mapping[str, Any]) -> list[str]:
    """A record as lines of text."""
    told, hours = record["summary"], record["recipe"]
    peak = told["peak_reserved_gib"]
    return [
        f"{record['preset']} {record['trial']['stage']}, films of {record['latents']} latents, "
        f"{record['processes']} x {record['device']}",
        *(
            f"{part:8} {seconds:9.2f} s  {told['share'][part]:.0%}"
            for part, seconds in told["seconds"].items()
        ),
        f"{'all':8} {told['iteration_s']:9.2f} s",
        f"peak reserved: {'not known on this device' if peak is None else f'{peak:.1f} GiB'}",
        f"{hours['iterations']} iterations of {hours['films']} films: {hours['gpu_hours']} "
        "GPU-hours at these seconds",
    ]
