"""Stages of training, one after the other: what the verb ``cfmodel train`` does."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from cfmodel.config import Experiment, seed_for
from cfmodel.devices import barrier
from cfmodel.io.convert import load_student
from cfmodel.io.weights import Weights
from cfmodel.train import checkpoint
from cfmodel.train.loop import Engine, stopping, train
from cfmodel.train.sources import Resources, Shared, check, identity
from cfmodel.train.stages import STAGES, Stage

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 300.0
NOT_TRANSFORMERS = ("codec", "decoder", "text")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a stage may spend; whichever ends first."""

    seconds: float | None = None
    steps: int | None = None


def plan(stages: Sequence[str], seconds: Sequence[float], steps: int | None) -> dict[Stage, Budget]:
    """Budgets by stage, in order.

    Args:
        stages: names.
        seconds: one budget for each, one for all, or none.
        steps: for each.

    Raises:
        ValueError: an unknown or repeated stage, or budgets that do not fit.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; use {', '.join(STAGES)}")
    if len(set(stages)) != len(stages):
        raise ValueError(f"stages {' '.join(stages)}: each may come once")
    if len(seconds) not in (0, 1, len(stages)):
        raise ValueError(
            f"{len(seconds)} budgets for {len(stages)} stages; give --seconds once, or once a stage"
        )
    if not seconds and steps is None:
        raise ValueError("no budget; give --seconds or --steps")
    if any(not value > 0 for value in (*seconds, *(() if steps is None else (steps,)))):
        raise ValueError("a budget is not positive; give seconds and steps above 0")
    each = list(seconds) * len(stages) if len(seconds) == 1 else list(seconds)
    return {
        cast(Stage, stage): Budget(seconds=each[k] if each else None, steps=steps)
        for k, stage in enumerate(stages)
    }


def run(
    budgets: dict[Stage, Budget], experiment: Experiment, use: Resources, *, engine: Engine
) -> dict[str, Any]:
    """Runs stages in order; they share frozen networks and pools. Returns their records.

    A stage that is done, with the same settings, is not done again; one that was stopped goes on.

    Raises:
        ValueError: a setting does not fit, or weights of an earlier stage are missing.
        DivergedError: a loss exploded.
        StoppedError: Ctrl-C or SIGTERM came.
    """
    records: dict[str, Any] = {}
    shared: Shared = {}
    _check_rollout(experiment)
    check(budgets, experiment, use, shared)
    for stage, budget in budgets.items():
        # Of one run: what a checkpoint of it must have been made with.
        same = {
            "preset": experiment.key(), "batch": use.batch, "accumulate": use.accumulate,
            **identity(stage, experiment, use, shared),
        }  # fmt: skip
        settings = {
            **same, "lr": use.lr, "guidance": use.guidance, "seconds": budget.seconds,
            "steps": budget.steps,
        }  # fmt: skip
        if engine.resume and (done := _done(use.out, stage, settings)):
            logger.info("%s is done already; --fresh does it again", stage)
            records[stage] = done
            continue
        if not engine.resume:
            checkpoint.remove(checkpoint.folder_of(use.out, stage))
            barrier()
        # The first weights of a network that draws its own.
        torch.manual_seed(seed_for("train", stage))
        strategy = STAGES[stage](experiment, use, shared)
        with stopping() as stop:
            records[stage] = train(
                strategy,
                use.out,
                steps=budget.steps,
                seconds=budget.seconds,
                engine=replace(engine, identity=same, settings=settings, stop=stop),
            )
    return records


def published(given: Sequence[str], experiment: Experiment) -> dict[str, Callable[[], Weights]]:
    """What reads the weights that are named for stages, by stage; nothing is read yet.

    Args:
        given: ``STAGE=SOURCE`` (see ``cfmodel.io.checkpoints``).
        experiment: sizes of the transformer.

    Raises:
        ValueError: an unknown stage, or one without weights of a transformer.
    """
    found: dict[str, Callable[[], Weights]] = {}
    for item in given:
        stage, eq, source = item.partition("=")
        if not eq or not source or stage not in STAGES or stage in NOT_TRANSFORMERS:
            known = ", ".join(name for name in STAGES if name not in NOT_TRANSFORMERS)
            raise ValueError(f"--init {item!r}: expected STAGE=SOURCE, STAGE one of {known}")
        found[stage] = partial(load_student, source, experiment)
    return found


def lines(records: dict[str, Any]) -> list[str]:
    """Records as lines of text."""
    return [
        f"{stage}: {record['steps']} steps in {record['seconds']:.0f} s, "
        + ", ".join(f"{name} {value:.4g}" for name, value in record["evaluation"].items())
        for stage, record in records.items()
    ]


def _done(out: Path, stage: Stage, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a stage that was finished with these settings."""
    path = out / f"{stage}-record.json"
    if not path.is_file() or checkpoint.newest(checkpoint.folder_of(out, stage)):
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("run") == settings else None


def _check_rollout(experiment: Experiment) -> None:
    """Refuses what films of training do not do: they roll out one way, over one reading.

    Raises:
        ValueError: the preset asks for another.
    """
    asked = {
        "sample.sampler": (experiment.sample.sampler, "chunk"),
        "sample.whole_timesteps": (experiment.sample.whole_timesteps, False),
        "memory.when": (experiment.memory.when, "commit"),
        "memory.commit_reads": (experiment.memory.commit_reads, "all"),
        "memory.attend": (experiment.memory.attend, None),
    }
    for field, (value, trained) in asked.items():
        if value != trained:
            raise ValueError(
                f"{field}={value!r} is for sampling; train a preset with {trained!r} and sample "
                "its weights with --set weights=PATH"
            )
