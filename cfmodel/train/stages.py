"""The stages by name: the numbers of each family, and what each stage is built of.

Order of the tiny family: ``codec`` and ``text``, each alone (``decoder`` trains a codec's decoder
further, at any time); ``base``, then ``teacher`` and
``causal-init`` from it; ``dmd`` from both of its sides; ``cdmd`` and ``streaming`` from ``dmd``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cfmodel.config import Experiment, Family
from cfmodel.devices import world
from cfmodel.io.weights import Weights, load_weights
from cfmodel.train.codec import CodecStage
from cfmodel.train.data import context_clips, contiguous_clips, scripts, world_stream
from cfmodel.train.draws import Draws
from cfmodel.train.errors import Recycling
from cfmodel.train.films import FreshFilms, Roller, Rollout, StreamingFilms, Texts
from cfmodel.train.flow_stages import Bidirectional, FlowStage, Objective, TeacherForcing
from cfmodel.train.frozen import Frozen
from cfmodel.train.loop import Strategy
from cfmodel.train.matching import Matching, MatchingStage
from cfmodel.train.pool import ClipPool, Units, clip_units, context_units
from cfmodel.train.state import Lora, local_rows
from cfmodel.train.teacher import ContextTeacher
from cfmodel.train.text import TextStage

Stage = Literal[
    "codec", "decoder", "text", "base", "teacher", "causal-init", "dmd", "cdmd", "streaming"
]  # fmt: skip
Shared = dict[str, Any]
"""What the stages of one run have in common, by name: frozen networks and pools."""

CLIP_CHUNKS = 7
HELD_OUT = 32
SCRIPTS_AT_ONCE = 64
STREAM_LATENTS = 240
CODEC_BATCH, CODEC_LR, DECODER_LR = 32, 1.2e-3, 8e-4
TEXT_BATCH, TEXT_LR = 256, 1e-3


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers of a family's stages that only training needs.

    Source: for ``wan-1.3b`` arXiv:2602.06028 sections 5-7 and its release; for ``tiny`` searched,
    see docs/LOG.md.
    """

    flow_batch: int
    base_lr: float
    teacher_lr: float
    teacher_lora: Lora | None
    causal_lr: float
    flow_shift: float
    recycling: Recycling
    films: int
    dmd: Matching
    cdmd: Matching
    local: Rollout
    contextual: Rollout


_SMALL = Matching(guidance=2.0, shift=1.0, lr=2e-4, critic_lr=4e-4)
_SMALL_NUMBERS = Numbers(
    flow_batch=192,
    base_lr=1e-3,
    teacher_lr=5e-4,
    teacher_lora=None,
    causal_lr=5e-4,
    flow_shift=1.0,
    recycling=Recycling(bins=20, entries=64),
    films=192,
    dmd=_SMALL,
    cdmd=_SMALL,
    local=Rollout(),
    contextual=Rollout(shortest=84, longest=105, free=18, first_clean=True,
                       context="memory", returning=0.5),
)  # fmt: skip
_RELEASED = Matching(
    guidance=3.0, shift=5.0, lr=2e-6, critic_lr=4e-7, betas=(0.9, 0.999),
    critic_betas=(0.5, 0.95), every=5, critic_updates=1,
)  # fmt: skip
NUMBERS: dict[Family, Numbers] = {
    "nano": _SMALL_NUMBERS,
    "tiny": _SMALL_NUMBERS,
    "wan-1.3b": Numbers(
        flow_batch=8,
        base_lr=1e-5,
        teacher_lr=1e-4,
        teacher_lora=Lora(rank=128, alpha=128),
        causal_lr=1e-5,
        flow_shift=5.0,
        recycling=Recycling(),
        films=64,
        dmd=_RELEASED,
        cdmd=replace(_RELEASED, guidance=5.0),
        local=Rollout(free=18, first_clean=True),
        contextual=Rollout(
            shortest=84, longest=105, curriculum=1.2, free=18, first_clean=True,
            context="contiguous",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage may use.

    ``assets`` holds the weights of the stages before it; ``batch`` counts the films or captions of
    a step over all processes and all of its ``accumulate`` micro-batches.
    """

    out: Path
    assets: Path
    device: torch.device
    workers: int = 0
    compiled: bool = False
    batch: int | None = None
    lr: float | None = None
    capacity: int = 8192
    fill: int = 2048
    clips: int = 20_480
    render: int = 64
    scripts: int = 4096
    accumulate: int = 1

    def rows(self, default: int) -> int:
        """Films or captions that a process takes in at a time.

        Raises:
            ValueError: the batch does not divide equally.
        """
        return local_rows(self.batch or default, (world().size, self.accumulate), "batch")

    def weights(self, name: str) -> Weights:
        """Weights of an earlier stage: of this run, else of the assets.

        Raises:
            ValueError: neither has them.
        """
        mine = self.out / f"{name}.safetensors"
        return load_weights(mine if mine.exists() else self.assets / f"{name}.safetensors")


def _codec(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return CodecStage(
        experiment, use.device, workers=use.workers, compiled=use.compiled,
        batch=use.rows(CODEC_BATCH), lr=use.lr or CODEC_LR,
    )  # fmt: skip


def _decoder(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return CodecStage(
        experiment, use.device, init=use.weights("codec").tensors, workers=use.workers,
        compiled=use.compiled, batch=use.rows(CODEC_BATCH), lr=use.lr or DECODER_LR,
    )  # fmt: skip


def _text(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return TextStage(
        experiment, use.device, workers=use.workers, compiled=use.compiled,
        batch=use.rows(TEXT_BATCH), lr=use.lr or TEXT_LR,
    )  # fmt: skip


def _frozen(experiment: Experiment, use: Resources, shared: Shared) -> Frozen:
    if "frozen" not in shared:
        codec, text = use.weights("codec"), use.weights("text")
        shared["frozen"] = Frozen(experiment, use.device, codec=codec, text=text)
    return shared["frozen"]


def _pool(
    name: str, experiment: Experiment, use: Resources, shared: Shared
) -> tuple[ClipPool[Any], Callable[[], Units]]:
    """The pool of contiguous or of context clips, filled, and a maker of held-out units."""
    frozen = _frozen(experiment, use, shared)
    if name == "context":
        sample: Any = context_clips()
        make: Any = context_units(frozen, experiment.geometry, use.device)
    else:
        sample = contiguous_clips(CLIP_CHUNKS)
        make = clip_units(frozen, experiment.geometry, use.device)
    if name not in shared:

        def stream(first: int) -> Any:
            return world_stream(
                sample, batch=use.render, stream=name, workers=use.workers, first=first
            )

        shared[name] = ClipPool(
            stream, make, capacity=use.capacity, draws=Draws(use.device, 2), fill=use.fill
        )
    held_out = world_stream(sample, batch=min(HELD_OUT, use.render), stream=f"{name}-held-out")
    return shared[name], lambda: make(next(held_out))


def _flow(
    name: Stage,
    objective: Objective,
    experiment: Experiment,
    use: Resources,
    shared: Shared,
    *,
    lr: float,
    init: str | None,
    lora: Lora | None = None,
    pool: str = "contiguous",
) -> Strategy:
    clips, held_out = _pool(pool, experiment, use, shared)
    return FlowStage(
        name, objective, experiment, use.device, clips, held_out,
        _frozen(experiment, use, shared).embed([""])[0],
        init=use.weights(init).tensors if init else None, lora=lora, compiled=use.compiled,
        clips=use.clips, batch=use.rows(NUMBERS[experiment.family].flow_batch), lr=use.lr or lr,
    )  # fmt: skip


def _base(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family]
    objective = Bidirectional(numbers.flow_shift)
    return _flow("base", objective, experiment, use, shared, lr=numbers.base_lr, init=None)


def _causal(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family]
    objective = TeacherForcing(experiment.geometry, numbers.flow_shift)
    return _flow(
        "causal-init", objective, experiment, use, shared, lr=numbers.causal_lr, init="base"
    )


def _teacher(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family]
    objective = ContextTeacher(experiment, use.device, numbers.recycling, shift=numbers.flow_shift)
    return _flow(
        "teacher", objective, experiment, use, shared, lr=numbers.teacher_lr, init="base",
        lora=numbers.teacher_lora, pool="context",
    )  # fmt: skip


def _texts(chunks: int, experiment: Experiment, use: Resources, shared: Shared) -> Texts:
    frozen = _frozen(experiment, use, shared)
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
    return Texts(frozen.embed(unique).to(torch.bfloat16), index, returns, use.device)


def _matching(
    name: Stage, experiment: Experiment, use: Resources, shared: Shared,
    *, student: str, teacher: str,
) -> Strategy:  # fmt: skip
    numbers, frozen = NUMBERS[experiment.family], _frozen(experiment, use, shared)
    roller = Roller(experiment, use.rows(numbers.films), Draws(use.device, 3))
    matching = numbers.cdmd if name == "cdmd" else numbers.dmd
    if name == "streaming":
        texts = _texts(STREAM_LATENTS // 3, experiment, use, shared)
        films: Any = StreamingFilms(roller, texts, longest=STREAM_LATENTS, reencode=frozen.reencode)
    else:
        plan = numbers.local
        if name == "cdmd":
            plan = replace(numbers.contextual, context=experiment.train.context)
        texts = _texts(plan.longest // 3, experiment, use, shared)
        films = FreshFilms(roller, texts, plan, reencode=frozen.reencode)
    if use.lr is not None:
        matching = replace(matching, lr=use.lr)
    return MatchingStage(
        name, experiment, use.device, films, frozen.embed([""])[0], matching,
        student=use.weights(student).tensors, teacher=use.weights(teacher).tensors,
        compiled=use.compiled, decode=frozen.decode,
    )  # fmt: skip


def _dmd(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return _matching("dmd", experiment, use, shared, student="causal-init", teacher="base")


def _cdmd(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return _matching("cdmd", experiment, use, shared, student="dmd", teacher="teacher")


def _streaming(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return _matching("streaming", experiment, use, shared, student="dmd", teacher="base")


STAGES: dict[Stage, Callable[[Experiment, Resources, Shared], Strategy]] = {
    "codec": _codec,
    "decoder": _decoder,
    "text": _text,
    "base": _base,
    "teacher": _teacher,
    "causal-init": _causal,
    "dmd": _dmd,
    "cdmd": _cdmd,
    "streaming": _streaming,
}
