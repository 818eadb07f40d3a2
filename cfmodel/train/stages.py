"""The stages by name: the numbers of each family, and what each stage is built of.

Order of the tiny family: ``codec`` and ``text``, each alone (``decoder`` trains a codec's decoder
further, at any time); ``chunk``, ``base``, ``teacher``, ``context-init``, each from the one before;
``dmd`` from the last; ``cdmd`` and ``streaming`` from ``dmd``. Elsewhere ``causal-init`` stands in
place of ``context-init``, as published.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cfmodel.config import Experiment, Family, TeacherContext
from cfmodel.train.codec import CodecStage
from cfmodel.train.data import SCRIPT_CHUNKS, TARGET
from cfmodel.train.draws import Draws
from cfmodel.train.errors import Recycling
from cfmodel.train.films import Films, FreshFilms, Rollout
from cfmodel.train.flow_stages import Bidirectional, FlowStage, Objective
from cfmodel.train.forcing import MemoryForcing, TeacherForcing
from cfmodel.train.loop import Strategy
from cfmodel.train.matching import Matching, MatchingStage
from cfmodel.train.roller import Roller
from cfmodel.train.sources import (
    CLIPS,
    SHORT_CLIPS,
    Resources,
    Shared,
    clips_of,
    frozen_of,
    histories_of,
    texts_of,
)
from cfmodel.train.state import Lora
from cfmodel.train.streams import ContextStream, StreamingFilms
from cfmodel.train.teacher import ContextTeacher
from cfmodel.train.text import TextStage

Stage = Literal[
    "codec", "decoder", "text",
    "chunk", "base", "teacher", "causal-init", "context-init",
    "dmd", "cdmd", "streaming",
]  # fmt: skip
CODEC_BATCH, CODEC_LR, DECODER_LR = 32, 1.2e-3, 8e-4
TEXT_BATCH, TEXT_LR = 256, 1e-3
HISTORY = 63
"""Latents of the rendered beginnings of films."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Numbers of a flow-matching stage.

    Args:
        batch: clips a step.
        lr: peak learning rate.
        shift: flow shift of the noise levels. Frames of a clip look alike, so the longer it is, the
            more noise it takes to hide it.
        init: stage whose weights it begins from; None is a random network.
        lora: train an adaptation instead of the weights.
    """

    batch: int
    lr: float
    shift: float
    init: str | None = None
    lora: Lora | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers of a family's stages that only training needs.

    ``first`` is the stage whose student stage 1 begins from; ``opener`` the one whose network
    judges films' beginnings in stage 2, where the context teacher has no context.

    Source: for ``wan-1.3b`` arXiv:2602.06028 sections 5-7 and its release; for ``tiny`` searched,
    see docs/LOG.md.
    """

    chunk: Flow
    base: Flow
    causal: Flow
    context: Flow
    teacher: Flow
    recycling: Recycling
    films: int
    first: Literal["causal-init", "context-init"]
    opener: Literal["base"] | None = None
    dmd: Matching
    cdmd: Matching
    local: Rollout
    contextual: Rollout
    streaming: Rollout


_SMALL = Matching(guidance=1.5, shift=2.0, lr=2e-4, critic_lr=4e-4)
_SMALL_NUMBERS = Numbers(
    chunk=Flow(batch=384, lr=2e-3, shift=1.5),
    base=Flow(batch=96, lr=1e-3, shift=2.0, init="chunk"),
    causal=Flow(batch=64, lr=5e-4, shift=1.5, init="chunk"),
    context=Flow(batch=96, lr=1e-3, shift=1.5, init="teacher"),
    teacher=Flow(batch=96, lr=1e-3, shift=2.0, init="base"),
    recycling=Recycling(bins=20, entries=64),
    films=192,
    first="context-init",
    opener="base",
    dmd=_SMALL,
    cdmd=replace(_SMALL, guidance=1.0, opening_guidance=1.5),
    local=Rollout(midway=0.7),
    contextual=Rollout(
        stream=4 * TARGET, context="memory", history=0.25, after=2 * TARGET, opening=0.25
    ),
    streaming=Rollout(stream=240),
)  # fmt: skip
_RELEASED = Matching(
    guidance=3.0, shift=5.0, lr=2e-6, critic_lr=4e-7, betas=(0.9, 0.999),
    critic_betas=(0.5, 0.95), every=5, critic_updates=1, ema_on_host=True, half_teacher=True,
)  # fmt: skip
NUMBERS: dict[Family, Numbers] = {
    "nano": _SMALL_NUMBERS,
    "tiny": _SMALL_NUMBERS,
    "wan-1.3b": Numbers(
        chunk=Flow(batch=64, lr=1e-4, shift=5.0),
        base=Flow(batch=8, lr=1e-5, shift=5.0),
        causal=Flow(batch=8, lr=1e-5, shift=5.0, init="base"),
        context=Flow(batch=8, lr=1e-5, shift=5.0, init="teacher"),
        teacher=Flow(
            batch=8, lr=1e-4, shift=5.0, init="base", lora=Lora(rank=128, alpha=128)
        ),
        recycling=Recycling(host=True),
        films=64,
        first="causal-init",
        dmd=_RELEASED,
        cdmd=replace(_RELEASED, guidance=5.0),
        local=Rollout(free=18, first_clean=True, replay=True),
        contextual=Rollout(
            shortest=84, longest=105, curriculum=1.2, free=18, first_clean=True,
            context="contiguous", replay=True,
        ),
        streaming=Rollout(stream=240, replay=True),
    ),
}  # fmt: skip


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


def _flow(
    name: Stage,
    objective: Objective,
    numbers: Flow,
    experiment: Experiment,
    use: Resources,
    shared: Shared,
) -> Strategy:
    clips, held_out = clips_of(CLIPS[name], experiment, use, shared)
    return FlowStage(
        name, objective, experiment, use.device, clips, held_out,
        frozen_of(experiment, use, shared).embed([""])[0],
        init=use.weights(numbers.init).tensors if numbers.init else None, lora=numbers.lora,
        compiled=use.compiled, recorded=use.recorded,
        clips=use.clips * (SHORT_CLIPS if name == "chunk" else 1),
        batch=use.rows(numbers.batch), lr=use.lr or numbers.lr,
    )  # fmt: skip


def _chunk(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family].chunk
    objective = Bidirectional(numbers.shift)
    return _flow("chunk", objective, numbers, experiment, use, shared)


def _base(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family].base
    return _flow("base", Bidirectional(numbers.shift), numbers, experiment, use, shared)


def _causal(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family].causal
    objective = TeacherForcing(experiment.geometry, numbers.shift)
    return _flow("causal-init", objective, numbers, experiment, use, shared)


def _context(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    numbers = NUMBERS[experiment.family].context
    objective = MemoryForcing(experiment.geometry, numbers.shift)
    return _flow("context-init", objective, numbers, experiment, use, shared)


def _teacher(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    family = NUMBERS[experiment.family]
    numbers = family.teacher
    objective = ContextTeacher(experiment, use.device, family.recycling, shift=numbers.shift)
    return _flow("teacher", objective, numbers, experiment, use, shared)


def told(plan: Rollout, context: TeacherContext) -> Rollout:
    """The plan under a teacher that sees another context; only one can judge openings alone."""
    return replace(plan, context=context, opening=plan.opening if context == "memory" else 0.0)


def _matching(
    name: Stage, experiment: Experiment, use: Resources, shared: Shared,
    *, student: str, teacher: str,
) -> Strategy:  # fmt: skip
    numbers, frozen = NUMBERS[experiment.family], frozen_of(experiment, use, shared)
    rows, draws = use.rows(numbers.films), Draws(use.device, 3)
    roller = Roller(experiment, rows, draws, recorded=use.recorded)
    matching = numbers.cdmd if name == "cdmd" else numbers.dmd
    plan = {"dmd": numbers.local, "cdmd": numbers.contextual, "streaming": numbers.streaming}[name]
    if name == "cdmd":
        plan = told(plan, experiment.train.context)
    length = plan.stream // 3 or (SCRIPT_CHUNKS if plan.midway else plan.longest // 3)
    texts = texts_of(length, experiment, use, shared)
    films: Films
    if plan.stream and plan.context != "none":
        given = None
        if plan.history:
            count = (HISTORY + plan.after) // experiment.geometry.chunk
            given = histories_of(HISTORY, count, experiment, use, shared)
            plan = plan if given else replace(plan, history=0.0)
        films = ContextStream(roller, texts, plan, reencode=frozen.reencode, histories=given)
    else:
        kind = StreamingFilms if plan.stream else FreshFilms
        films = kind(roller, texts, plan, reencode=frozen.reencode)
    if use.lr is not None:
        matching = replace(matching, lr=use.lr)
    if use.guidance is not None:
        matching = replace(matching, guidance=use.guidance)
    opener = numbers.opener if plan.context == "memory" else None
    return MatchingStage(
        name, experiment, use.device, films, frozen.embed([matching.negative])[0], matching,
        student=use.weights(student).tensors, teacher=use.weights(teacher).tensors,
        opener=use.weights(opener).tensors if opener else None,
        compiled=use.compiled, recorded=use.recorded, decode=frozen.decode,
    )  # fmt: skip


def _dmd(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    student = NUMBERS[experiment.family].first
    return _matching("dmd", experiment, use, shared, student=student, teacher="base")


def _cdmd(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return _matching("cdmd", experiment, use, shared, student="dmd", teacher="teacher")


def _streaming(experiment: Experiment, use: Resources, shared: Shared) -> Strategy:
    return _matching("streaming", experiment, use, shared, student="dmd", teacher="base")


STAGES: dict[Stage, Callable[[Experiment, Resources, Shared], Strategy]] = {
    "codec": _codec,
    "decoder": _decoder,
    "text": _text,
    "chunk": _chunk,
    "base": _base,
    "teacher": _teacher,
    "causal-init": _causal,
    "context-init": _context,
    "dmd": _dmd,
    "cdmd": _cdmd,
    "streaming": _streaming,
}
