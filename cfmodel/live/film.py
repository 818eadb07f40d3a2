"""A loaded experiment as a film without a known end, and how long it may go on."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cfmodel.config import MAX_SECONDS, Experiment, digest
from cfmodel.live.session import Film, Shot

if TYPE_CHECKING:
    from cfmodel.pipeline import Pipeline

GROWING_S = 60.0
"""Where memory forgets nothing, a film of this length: the benchmark's."""


class Limit(NamedTuple):
    """Chunks of a film at most, None without end, and why."""

    chunks: int | None
    why: str


def limit(experiment: Experiment) -> Limit:
    """How long an experiment's films may go on.

    Example:
        >>> from cfmodel.presets import preset
        >>> limit(preset("tiny")).chunks, limit(preset("tiny/full-context")).chunks
        (None, 81)
    """
    memory, geometry = experiment.memory, experiment.geometry
    if memory.capacity is None:
        return Limit(
            geometry.chunks_for(GROWING_S),
            f"memory.fast=None forgets nothing and grows: films end after {GROWING_S:g} s",
        )
    if experiment.sample.sampler == "passes":
        return Limit(None, "each pass begins at position 0: no limit")
    if memory.positions in ("bounded", "window"):
        return Limit(
            None,
            f"memory.positions={memory.positions!r} stay below {memory.capacity}: no limit",
        )
    return Limit(
        geometry.chunks_for(MAX_SECONDS),
        f"memory.positions={memory.positions!r} grow with the film: expect drift; films end after "
        f"{MAX_SECONDS} s",
    )


def film_of(pipeline: "Pipeline", text: str, seed: int) -> Film:
    """A film whose noise is that of ``cfmodel sample`` with its first text and seed."""
    from cfmodel.pipeline import ENDLESS

    chunks = limit(pipeline.experiment).chunks

    def shots(ask: Callable[[int], str]) -> Iterator[Shot]:
        memory = pipeline.memory(1)
        stream = pipeline.stream(
            ask,
            prompt_id=f"p-{digest(text)}",
            seed=seed,
            chunks=ENDLESS if chunks is None else chunks,
            memory=memory,
        )
        for frames_BRYXC in stream:
            yield Shot(frames_BRYXC[0].numpy(), memory.slots(0))

    return shots
