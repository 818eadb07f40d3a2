"""Every named experiment. The only file that an ablation or a baseline touches."""

import dataclasses
import difflib
from collections.abc import Mapping

from cfmodel.config import (
    CodecConfig,
    Experiment,
    Family,
    Geometry,
    MemoryConfig,
    ModelConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
    diff,
    put,
    vary,
)

FAMILIES: tuple[Family, ...] = ("nano", "tiny", "wan-1.3b")
DEFAULT_FAMILY: Family = "tiny"

TINY_STUDENT = "tiny-context-2"
TINY_LOCAL = "tiny-local-3"
TINY_STREAMED = "tiny-streamed-2"
LOCAL: Mapping[Family, str] = {"tiny": TINY_LOCAL}
"""Weights of stage 1: of the row without contextual distillation, and of systems that end there."""
STREAMED: Mapping[Family, str] = {"tiny": TINY_STREAMED}
NANO_RANDOM = "nano-random"
WAN_STUDENT = "context-forcing"
FEWER_SLOW = (2, 4, 8)
TAUS = (0.9, 0.95)
WIDER_WINDOWS: Mapping[str, int] = {"3.75": 12, "5.25": 18, "6": 21, "9": 33, "12": 45}
"""Windows by the seconds that sink and window span together: arXiv:2602.06028, figure 1."""


def ours(family: Family) -> Experiment:
    """The method: sink 3 + slow 12 + fast 6, promotion by surprisal, bounded positions."""
    match family:
        case "nano":
            return Experiment(
                name="ours",
                label="Ours",
                family=family,
                geometry=Geometry(height=64, width=64),
                model=ModelConfig(
                    layers=2, width=48, heads=2, ffn=96, text_width=24, text_tokens=4
                ),
                memory=MemoryConfig(decision="shared"),
                sample=SampleConfig(shift=1.0),
                train=TrainConfig(context="memory"),
                codec=CodecConfig(
                    widths=(16, 16, 8), encoder_width=8, patch=2, space=(2, 2), time=(2, 2)
                ),
                text=TextConfig(width=24, layers=1, heads=2, ffn=48, tokens=4),
                weights=NANO_RANDOM,
            )
        case "tiny":
            return Experiment(
                name="ours",
                label="Ours",
                family=family,
                geometry=Geometry(height=80, width=128),
                model=ModelConfig(
                    layers=6, width=192, heads=4, ffn=640, text_width=128, text_tokens=16
                ),
                memory=MemoryConfig(decision="shared", tau=0.995),
                sample=SampleConfig(shift=2.0),
                train=TrainConfig(context="memory"),
                codec=CodecConfig(
                    widths=(96, 64, 48), encoder_width=48, patch=2, space=(2, 2), time=(2, 2)
                ),
                text=TextConfig(),
                weights=TINY_STUDENT,
            )
        case "wan-1.3b":
            return Experiment(
                name="ours",
                label="Ours",
                family=family,
                geometry=Geometry(),
                model=ModelConfig(
                    layers=30, width=1536, heads=12, ffn=8960, text_width=4096, text_tokens=512
                ),
                memory=MemoryConfig(),
                sample=SampleConfig(),
                train=TrainConfig(),
                codec=CodecConfig(kind="wan"),
                text=TextConfig(kind="umt5", width=4096, tokens=512, max_bytes=8192),
                weights=WAN_STUDENT,
            )


def ablations(base: Experiment) -> list[Experiment]:
    """Rows that differ from ``base`` in one field; the paper's Table 3 first, in its order."""
    context = "contiguous" if base.train.context == "memory" else "memory"
    decision = "per-layer" if base.memory.decision == "shared" else "shared"
    whose = "by each layer" if decision == "per-layer" else "for all layers"
    return [
        vary(base, "memory.promotion", "uniform-1", name="uniform-1", label="Uniform, every chunk"),
        vary(
            base,
            "memory.promotion",
            "uniform-2",
            name="uniform-2",
            label="Uniform, every 2nd chunk",
        ),
        dataclasses.replace(
            vary(
                base,
                "train.stage",
                "dmd",
                name="no-cdmd",
                label="w/o contextual distillation",
                retrain=True,
            ),
            weights=LOCAL.get(base.family),
        ),
        vary(base, "memory.positions", "absolute", name="absolute", label="w/o bounded positions"),
        vary(base, "memory.slow", 0, name="no-slow", label="w/o slow memory"),
        *(
            vary(base, "memory.slow", slow, name=f"slow-{slow}", label=f"{slow} slow latents")
            for slow in FEWER_SLOW
        ),
        vary(base, "memory.sink", 0, name="no-sink", label="w/o sink"),
        vary(
            base,
            "memory.promotion",
            "surprisal-1",
            name="surprisal-1",
            label="Surprisal, every chunk",
        ),
        *(
            vary(base, "memory.tau", tau, name=f"tau-{tau:.2f}", label=f"tau = {tau:.2f}")
            for tau in TAUS
            if tau != base.memory.tau
        ),
        vary(
            base,
            "train.context",
            context,
            name=f"{context}-teacher",
            label=f"Teacher context: {context}",
            retrain=True,
        ),
        vary(
            base,
            "train.recycling",
            False,
            name="no-recycling",
            label="w/o error recycling",
            retrain=True,
        ),
        vary(
            base,
            "memory.decision",
            decision,
            name=f"{decision}-decision",
            label=f"Promotion decided {whose}",
            retrain=True,
        ),
    ]


def lighter(base: Experiment) -> list[Experiment]:
    """The method with a cheaper memory, on the same weights."""
    return [vary(base, "memory.pool", 2, name="pooled", label="Slow memory pooled 2x2")]


def on(base: Experiment, weights: Mapping[Family, str]) -> Experiment:
    """The base on the weights of its family, ``LOCAL`` or ``STREAMED``, where there are such."""
    return dataclasses.replace(base, weights=weights.get(base.family, base.weights))


def baseline(base: Experiment, name: str, label: str, **memory: object) -> Experiment:
    """Another method's memory on the base's weights (section 9 of the method reference)."""
    changed = dataclasses.replace(base.memory, **memory)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(base, name=name, label=label, base=base.name, memory=changed)


def other_readings(base: Experiment) -> list[Experiment]:
    """The method as its release has it, and with a published rule for what commits read."""
    return [
        baseline(
            base,
            "ours-released",
            "Ours, as released",
            promotion="surprisal-1",
            decision="per-layer",
            when="every-pass",
            filling="dense",
        ),
        baseline(base, "commit-forcing", "Ours, commits read recent", commit_reads="recent"),
    ]


def other_samplers(base: Experiment) -> list[Experiment]:
    """Published systems that do not make one chunk after the other.

    Source: Rolling Forcing (a1477d0) and CausVid (ca21150), whose steps 1000, 757 and 522 are the
    whole timesteps nearest to 1, 0.28 and 0.12 under shift 8.
    """
    base = on(base, LOCAL)
    rolling = baseline(
        base,
        "rolling-forcing",
        "Rolling Forcing",
        sink=3,
        slow=0,
        fast=21,
        positions="adjacent",
        attend=21,
        commit_reads="recent",
    )
    passes = baseline(base, "causvid", "CausVid", sink=0, slow=0, fast=21, positions="absolute")
    steps = dataclasses.replace(base.sample, steps=(1.0, 0.8, 0.6, 0.4, 0.2), sampler="rolling")
    few = SampleConfig(steps=(1.0, 0.28, 0.12), shift=8.0, sampler="passes", whole_timesteps=True)
    return [
        dataclasses.replace(rolling, sample=steps),
        dataclasses.replace(passes, sample=few),
    ]


def baselines(base: Experiment) -> list[Experiment]:
    """Published systems as memory policies; windows count the current chunk.

    On weights of stage 1, where their own training ends, and LongLive's on weights of its own.
    """
    tuned, base = on(base, STREAMED), on(base, LOCAL)
    plain = {"sink": 0, "slow": 0, "fast": 21, "positions": "absolute"}
    longlive = {"sink": 3, "slow": 0, "positions": "absolute"}
    infinity = {"sink": 1, "slow": 0, "fast": 5, "positions": "window"}
    # Its training differs, its sampling does not, and its weights are not published.
    pp = baseline(base, "self-forcing-pp", "Self-Forcing++", **plain)
    return [
        baseline(base, "self-forcing", "Self Forcing", **plain),
        dataclasses.replace(pp, weights=None),
        baseline(tuned, "longlive", "LongLive, 3.0 s", **longlive, fast=9),
        *(
            baseline(tuned, f"longlive-{span}", f"LongLive, {span} s", **longlive, fast=fast)
            for span, fast in WIDER_WINDOWS.items()
        ),
        baseline(
            tuned, "longlive-recache", "LongLive, re-cached", **longlive, fast=9, switch="recache"
        ),
        baseline(base, "infinity-rope", "Infinity-RoPE", **infinity),
        baseline(base, "infinity-rope-flush", "Infinity-RoPE, flushed", **infinity, switch="flush"),
        baseline(
            base, "streaming-llm", "StreamingLLM-style", sink=3, slow=0, fast=18, positions="window"
        ),
        baseline(
            base, "full-context", "Full context", sink=0, slow=0, fast=None, positions="absolute"
        ),
    ]


def presets(family: Family = DEFAULT_FAMILY) -> dict[str, Experiment]:
    """All rows of a family by name: ours, its ablations, the baselines."""
    base = ours(family)
    rows = [
        base,
        *ablations(base),
        *lighter(base),
        *other_readings(base),
        *baselines(base),
        *other_samplers(base),
    ]
    table = {row.name: row for row in rows}
    if len(table) != len(rows):
        raise RuntimeError("two presets share a name")
    return table


def preset(name: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """The experiment called ``family`` or ``family/row`` or ``row`` (of the default family).

    ``overrides`` are ``path=value`` strings; such a run is named ``custom-<key>``.

    Raises:
        ValueError: unknown family, row or field; the message lists close names.

    Example:
        >>> preset("tiny/no-slow").memory.slow
        0
    """
    head, _, rest = name.partition("/")
    family, row = (head, rest or "ours") if head in FAMILIES else (DEFAULT_FAMILY, name)
    table = presets(family)
    if row not in table:
        known = [*FAMILIES, *table]
        near = difflib.get_close_matches(name, known) or known
        raise ValueError(f"unknown preset {name!r}; try one of {', '.join(near)}")
    return override(table[row], overrides)


def override(base: Experiment, overrides: tuple[str, ...]) -> Experiment:
    """``base`` with ``path=value`` strings applied; play only, tables leave such runs out."""
    changed = base
    for item in overrides:
        path, eq, text = item.partition("=")
        if not eq:
            raise ValueError(f"--set {item!r}: expected path=value, as in memory.tau=0.9")
        changed = put(changed, path, _parse(text))
    if changed is base:
        return base
    return dataclasses.replace(changed, name=f"custom-{changed.key()}", base=base.name)


def _parse(text: str) -> object:
    if text.lower() in ("none", "null"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def describe(a: Experiment, b: Experiment) -> list[str]:
    """Lines ``path: value -> value`` for the fields in which two presets differ."""
    return [f"{path}: {x!r} -> {y!r}" for path, x, y in diff(a, b)]
