"""Stages of training, one after the other."""

from typing import Any

from cfmodel.config import Experiment
from cfmodel.train.loop import train
from cfmodel.train.stages import STAGES, Resources, Shared, Stage

SAVE_EVERY_S = 100.0


def run(
    stages: list[Stage],
    experiment: Experiment,
    use: Resources,
    *,
    seconds: list[float] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Runs stages in order; they share frozen networks and pools. Returns their records."""
    records: dict[str, Any] = {}
    shared: Shared = {}
    for k, stage in enumerate(stages):
        strategy = STAGES[stage](experiment, use, shared)
        records[stage] = train(
            strategy,
            use.out,
            steps=steps,
            seconds=seconds[k] if seconds else None,
            save_every_s=SAVE_EVERY_S,
        )
    return records
