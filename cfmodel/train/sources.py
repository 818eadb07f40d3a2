"""Where clips and texts of a stage come from: the tiny world, prepared films, a file of prompts.

A source is a stream of batches and what makes units of one; pools and stages know no more of it.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from cfmodel.config import Experiment, Geometry
from cfmodel.devices import world
from cfmodel.io.codec import WanCodec
from cfmodel.io.text import Umt5Text, check_text
from cfmodel.io.weights import Weights, file_sha256, load_weights
from cfmodel.pipeline import load_codec, load_text
from cfmodel.train.data import context_clips, contiguous_clips, openings, scripts, world_stream
from cfmodel.train.draws import Draws
from cfmodel.train.frozen import Frozen, TinyFrozen, WanFrozen
from cfmodel.train.pool import ClipPool, Units, clip_units, context_units
from cfmodel.train.prepared import (
    TAIL,
    ContextTakes,
    WindowTakes,
    film_context_units,
    split,
    stack_takes,
    window_units,
)
from cfmodel.train.prompts import chunk_texts, read_prompts
from cfmodel.train.shards import LatentShards, latent_stream
from cfmodel.train.state import local_rows
from cfmodel.train.texts import Held, OnDemand, Texts

logger = logging.getLogger(__name__)

Clips = Literal["chunk", "contiguous", "context"]
Shared = dict[str, Any]
"""What the stages of one run have in common, by name: frozen networks, shards and pools."""

CLIPS: dict[str, Clips] = {
    "chunk": "chunk", "base": "contiguous", "causal-init": "contiguous", "teacher": "context",
    "context-init": "context",
}  # fmt: skip
"""Stages that learn from clips."""
PROMPTED = ("dmd", "cdmd", "streaming")
"""Stages that learn from texts alone."""
CLIP_CHUNKS = 7
# A clip of one chunk is rendered and held for a ninth of the price of a whole one.
SHORT_CLIPS = 4
HELD_OUT = 32
SCRIPTS_AT_ONCE = 64
HISTORIES = 1024
"""Beginnings of films that are held; half as many are made before the first is used."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage may use.

    ``assets`` holds the weights of the stages before it; ``batch`` counts the films or captions of
    a step over all processes and all of its ``accumulate`` micro-batches. ``recorded`` replays
    passes as CUDA graphs. ``lr`` and ``guidance`` replace the family's. ``films`` are folders of
    prepared films, ``prompts`` is a file of texts; without them the tiny world gives both.
    ``base`` is the source of Wan's VAE and UMT5, ``init`` reads published weights in place of those
    of a stage.
    """

    out: Path
    assets: Path
    device: torch.device
    workers: int = 0
    compiled: bool = False
    recorded: bool = False
    batch: int | None = None
    lr: float | None = None
    guidance: float | None = None
    capacity: int = 8192
    fill: int = 2048
    clips: int = 20_480
    render: int = 64
    scripts: int = 4096
    accumulate: int = 1
    films: tuple[Path, ...] = ()
    prompts: Path | None = None
    base: str | None = None
    init: Mapping[str, Callable[[], Weights]] = field(default_factory=dict)

    def rows(self, default: int) -> int:
        """Films or captions that a process takes in at a time.

        Raises:
            ValueError: the batch does not divide equally.
        """
        return local_rows(self.batch or default, (world().size, self.accumulate), "batch")

    def weights(self, name: str) -> Weights:
        """Weights of an earlier stage: of this run, else published ones, else of the assets.

        Raises:
            ValueError: neither has them.
        """
        mine = self.out / f"{name}.safetensors"
        if name in self.init and not mine.exists():
            return self.init[name]()
        path = mine if mine.exists() else self.assets / f"{name}.safetensors"
        if not path.exists():
            raise ValueError(
                f"no weights of the stage {name}, neither in {self.out} nor in {self.assets}; "
                f"train {name} first, or give --init {name}=SOURCE"
            )
        return load_weights(path)


class Source(NamedTuple):
    """Where the clips of a pool come from.

    Args:
        stream: endless batches from a number on.
        held_out: endless batches of what ``stream`` never shows.
        make: a batch as units.
    """

    stream: Callable[[int], Iterator[Any]]
    held_out: Callable[[], Iterator[Any]]
    make: Callable[[Any], Units]


def check(stages: Collection[str], experiment: Experiment, use: Resources, shared: Shared) -> None:
    """Refuses films and prompts that a stage cannot use, before the first stage begins.

    Raises:
        ValueError: a stage takes neither, or what they hold does not fit.
    """
    _check_recorded(use)
    given: dict[str, Collection[str]] = {}
    if use.films:
        given["--films"] = CLIPS
    if use.prompts is not None:
        given["--prompts"] = PROMPTED
    for option, takers in given.items():
        if not set(takers) & set(stages):
            raise ValueError(f"{option} is for the stages {', '.join(takers)}; leave it out")
    for stage in stages:
        if given and not any(stage in takers for takers in given.values()):
            other = "give --prompts too, or " if stage in PROMPTED else ""
            other = "give --films too, or " if stage in CLIPS else other
            raise ValueError(
                f"stage {stage} does not take {' and '.join(given)}; {other}train it by itself"
            )
    if use.films:
        wanted: list[Clips] = [CLIPS[stage] for stage in stages if stage in CLIPS]
        for clips in wanted:
            _film_source(clips, experiment, use, shared)
    if use.prompts is not None:
        read_prompts(use.prompts, max_bytes=experiment.text.max_bytes)


def _check_recorded(use: Resources) -> None:
    if use.recorded and (use.device.type != "cuda" or world().size > 1 or use.accumulate > 1):
        raise ValueError(
            "--cuda-graphs needs one CUDA device, one process and whole batches; leave it out"
        )


def identity(stage: str, experiment: Experiment, use: Resources, shared: Shared) -> dict[str, str]:
    """Hashes of the films or prompts that a stage learns from; empty for the tiny world.

    Raises:
        ValueError: they cannot be used.
    """
    if use.films and stage in CLIPS:
        return {"films": _opened(experiment, use, shared).sha256}
    if use.prompts is not None and stage in PROMPTED:
        return {"prompts": file_sha256(use.prompts)}
    return {}


def frozen_of(experiment: Experiment, use: Resources, shared: Shared) -> Frozen:
    """Codec and text encoder of a run.

    Raises:
        ValueError: their weights are missing or do not fit.
    """
    if "frozen" not in shared:
        if experiment.codec.kind == "wan":
            codec = load_codec(experiment, device=use.device, base=use.base)
            text = load_text(experiment, device=use.device, base=use.base)
            assert isinstance(codec, WanCodec), "the kind was asked for"
            assert isinstance(text, Umt5Text), "goes with it"
            shared["frozen"] = WanFrozen(codec, text, use.device)
        else:
            codec, text = use.weights("codec"), use.weights("text")
            shared["frozen"] = TinyFrozen(experiment, use.device, codec=codec, text=text)
    return shared["frozen"]


def clips_of(
    clips: Clips, experiment: Experiment, use: Resources, shared: Shared
) -> tuple[ClipPool[Any], Callable[[], Units]]:
    """A pool of clips, filled when its stage begins, and a maker of held-out units.

    Raises:
        ValueError: there are no weights to encode with, or films that cannot be used.
    """
    of = _film_source if use.films else _world_source
    source, more = of(clips, experiment, use, shared), _more(clips)
    if clips not in shared:
        shared[clips] = ClipPool(
            source.stream, source.make, capacity=more * use.capacity, draws=Draws(use.device, 2),
            fill=more * use.fill,
        )  # fmt: skip
    held_out = source.held_out()
    return shared[clips], lambda: source.make(next(held_out))


def histories_of(
    latents: int, told: int, experiment: Experiment, use: Resources, shared: Shared
) -> ClipPool[Any] | None:
    """Beginnings of rendered films of ``latents`` latents, with the texts of ``told`` chunks.

    None, with a word in the log, where the texts are not the tiny world's, so that nothing can be
    rendered for them.
    """
    if use.prompts is not None or experiment.codec.kind == "wan":
        logger.info("no film begins with a rendered one: only the tiny world's can be rendered")
        return None
    frozen, geometry = frozen_of(experiment, use, shared), experiment.geometry
    batch = max(1, use.render // 2)

    def stream(first: int) -> Iterator[Any]:
        sample = openings(latents // geometry.chunk, told)
        return world_stream(
            sample, batch=batch, stream="histories", workers=use.workers, first=first
        )

    return ClipPool(
        stream, clip_units(frozen, geometry, use.device), capacity=HISTORIES,
        draws=Draws(use.device, 4), fill=min(HISTORIES, use.fill) // 2,
    )  # fmt: skip


def _more(clips: Clips) -> int:
    return SHORT_CLIPS if clips == "chunk" else 1


def _chunks(clips: Clips) -> int:
    return 1 if clips == "chunk" else CLIP_CHUNKS


def _world_source(clips: Clips, experiment: Experiment, use: Resources, shared: Shared) -> Source:
    frozen, geometry = frozen_of(experiment, use, shared), experiment.geometry
    sample: Any = context_clips() if clips == "context" else contiguous_clips(_chunks(clips))
    units: Any = context_units if clips == "context" else clip_units

    def stream(first: int) -> Iterator[Any]:
        batch = _more(clips) * use.render
        return world_stream(sample, batch=batch, stream=clips, workers=use.workers, first=first)

    def held_out() -> Iterator[Any]:
        return world_stream(sample, batch=min(HELD_OUT, use.render), stream=f"{clips}-held-out")

    return Source(stream, held_out, units(frozen, geometry, use.device))


def _opened(experiment: Experiment, use: Resources, shared: Shared) -> LatentShards:
    """The shards of a run, if all of them fit."""
    if "films" not in shared:
        shards = LatentShards(use.films)
        shards.check(
            codec_sha256=frozen_of(experiment, use, shared).sha256,
            channels=experiment.model.latent_channels,
            geometry=experiment.geometry,
        )
        for row in shards.rows:
            try:
                check_text(row.text, experiment.text.max_bytes)
            except ValueError as error:
                raise ValueError(f"caption of film {row.film}: {error}") from error
        shared["films"] = shards
    return shared["films"]


def _film_source(clips: Clips, experiment: Experiment, use: Resources, shared: Shared) -> Source:
    place = f"{clips}-films"
    if place in shared:
        return shared[place]
    shards, frozen = _opened(experiment, use, shared), frozen_of(experiment, use, shared)
    fit, need, takes = _takes(clips, shards, experiment.geometry)
    parts = split(shards, fit, need)
    logger.info(
        "%s: %d clips of films to train on, %d to measure on; %d of %d films are left out, they "
        "do not hold %s",
        clips, len(parts.train), len(parts.held_out), parts.left_out, len(shards.films), need,
    )  # fmt: skip

    def stream(first: int) -> Iterator[Any]:
        return latent_stream(
            takes(parts.train, clips), len(parts.train), stack_takes,
            batch=_more(clips) * use.render, workers=use.workers, first=first,
        )  # fmt: skip

    def held_out() -> Iterator[Any]:
        return latent_stream(
            takes(parts.held_out, f"{clips}-held-out"), len(parts.held_out), stack_takes,
            batch=min(HELD_OUT, use.render),
        )  # fmt: skip

    units: Any = film_context_units if clips == "context" else window_units
    shared[place] = Source(stream, held_out, units(frozen, use.device))
    return shared[place]


def _takes(
    clips: Clips, shards: LatentShards, geometry: Geometry
) -> tuple[list[int], str, Callable[[list[int], str], Any]]:
    """Clips that hold what is taken of them, what that is, and takes of some of them."""
    chunk = geometry.chunk
    if clips == "context":
        return (
            ContextTakes.fitting(shards),
            f"sink, local context and target ({TAIL} latents of a clip behind its beginning)",
            lambda indices, name: ContextTakes(shards, indices, chunk=chunk, stream=name),
        )
    latents = _chunks(clips) * chunk
    return (
        WindowTakes.fitting(shards, latents),
        f"{latents} latents in a clip",
        lambda indices, name: WindowTakes(
            shards, indices, latents=latents, chunk=chunk, stream=name
        ),
    )


def texts_of(chunks: int, experiment: Experiment, use: Resources, shared: Shared) -> Texts:
    """Embedded texts of films of ``chunks`` chunks.

    Raises:
        ValueError: there are no weights to embed with, or prompts that cannot be used.
    """
    frozen = frozen_of(experiment, use, shared)
    if use.prompts is not None:
        prompts = read_prompts(use.prompts, max_bytes=experiment.text.max_bytes)
        batches = [chunk_texts(prompts, chunks=chunks, geometry=experiment.geometry)]
    else:
        at_once = min(SCRIPTS_AT_ONCE, use.scripts)
        stream = world_stream(
            scripts(chunks), batch=at_once, stream=f"scripts-{chunks}", workers=use.workers
        )
        batches = [next(stream) for _ in range(max(1, use.scripts // at_once))]
    rows = [row for batch in batches for row in batch.texts]
    unique = sorted({text for row in rows for text in row})
    place = {text: k for k, text in enumerate(unique)}
    index = torch.tensor([[place[text] for text in row] for row in rows])
    returns = torch.cat([batch.returns for batch in batches])
    if experiment.text.kind == "umt5":
        return Texts(OnDemand(unique, frozen.embed), index, returns, use.device)
    held = Held(frozen.embed(unique).to(torch.bfloat16), use.device)
    return Texts(held, index, returns, use.device)
