"""The stages by name: what each is built of, and in which order the tiny weights are made.

``codec`` and ``text`` first, each alone; then ``base`` and ``causal-init`` over a pool of latents
encoded by the codec, with texts embedded by the encoder, both frozen; then ``dmd``, which needs
texts only.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.io.text import BytePooler, byte_ids
from cfmodel.io.weights import load_weights
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.train.codec import CodecStage
from cfmodel.train.data import contiguous_clip, world_stream
from cfmodel.train.dmd import DmdStage
from cfmodel.train.flow_stages import CausalInitStage, FlowStage
from cfmodel.train.loop import Strategy, train
from cfmodel.train.pool import LatentPool
from cfmodel.train.text import TextStage

logger = logging.getLogger(__name__)

Stage = Literal["codec", "text", "base", "causal-init", "dmd"]
CLIP_CHUNKS = 7
TEXT_CLIPS = 8192
SAVE_EVERY_S = 100.0


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage may use. ``assets`` holds the weights of the stages before it."""

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

    def given(self, **defaults: Any) -> dict[str, Any]:
        """Keyword arguments of a stage: the defaults, with batch and lr replaced if given."""
        chosen = {name: getattr(self, name) for name in ("batch", "lr")}
        return {**defaults, **{k: v for k, v in chosen.items() if v is not None}}


class Frozen:
    """Codec and text encoder as functions on the device."""

    def __init__(self, experiment: Experiment, use: Resources) -> None:
        self.device = use.device
        state = load_weights(use.assets / "codec.safetensors").tensors
        mean, std = state.pop("latents_mean"), state.pop("latents_std")
        self._mean = mean.float().to(use.device)[:, None, None]
        self._std = std.float().to(use.device)[:, None, None]
        codec = TinyAutoencoder(experiment.codec)
        codec.load_state_dict(state)
        self._codec = codec.to(use.device).eval().requires_grad_(False)
        state = load_weights(use.assets / "text.safetensors").tensors
        text = BytePooler(experiment.text)
        text.load_state_dict({k: v for k, v in state.items() if not k.startswith("heads.")})
        self._text = text.to(use.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, rgb: Tensor) -> Tensor:
        """Normalised latents of pixels in [0, 1]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latents = torch.cat([self._codec.encode(part) for part in rgb.split(32)])
        return (latents.float() - self._mean) / self._std

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Embedded texts (N, S, E)."""
        parts = [byte_ids(texts[k : k + 256]) for k in range(0, len(texts), 256)]
        return torch.cat([self._text(i.to(self.device), m.to(self.device)) for i, m in parts])


def run(
    stages: list[Stage],
    experiment: Experiment,
    use: Resources,
    *,
    seconds: list[float] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Runs stages one after the other; ``base`` and ``causal-init`` share one pool."""
    records: dict[str, Any] = {}
    shared: dict[str, Any] = {}
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


def _codec(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Strategy:
    return CodecStage(
        experiment, use.device, workers=use.workers, compiled=use.compiled, **use.given()
    )


def _text(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Strategy:
    return TextStage(
        experiment, use.device, workers=use.workers, compiled=use.compiled, **use.given()
    )


def _frozen(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Frozen:
    if "frozen" not in shared:
        shared["frozen"] = Frozen(experiment, use)
    return shared["frozen"]


def _pool(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> LatentPool:
    if "pool" not in shared:
        frozen = _frozen(experiment, use, shared)
        stream = world_stream(
            contiguous_clip(CLIP_CHUNKS), batch=use.render, stream="pool", workers=use.workers
        )
        pool = LatentPool(
            stream, frozen.encode, frozen.embed, experiment.geometry,
            capacity=use.capacity, device=use.device, seed=0,
        )  # fmt: skip
        while pool.distinct < use.fill:
            pool.refill()
        shared["pool"] = pool
    return shared["pool"]


def _flow(
    kind: type[FlowStage], experiment: Experiment, use: Resources, shared: dict[str, Any]
) -> FlowStage:
    pool = _pool(experiment, use, shared)
    empty = _frozen(experiment, use, shared).embed([""])[0]
    init = None
    if kind is CausalInitStage:
        init = load_weights(_first(use, "base.safetensors")).tensors
    return kind(
        experiment, use.device, pool, empty, init=init, compiled=use.compiled, clips=use.clips,
        **use.given(batch=192, lr=1e-3 if kind is FlowStage else 5e-4),
    )  # fmt: skip


def _first(use: Resources, name: str) -> Path:
    """A file of this run, else of the assets."""
    return use.out / name if (use.out / name).exists() else use.assets / name


def _base(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Strategy:
    return _flow(FlowStage, experiment, use, shared)


def _causal(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Strategy:
    return _flow(CausalInitStage, experiment, use, shared)


def _dmd(experiment: Experiment, use: Resources, shared: dict[str, Any]) -> Strategy:
    frozen = _frozen(experiment, use, shared)
    stream = world_stream(
        contiguous_clip(CLIP_CHUNKS, start_share=0.6),
        batch=use.render,
        stream="dmd",
        workers=use.workers,
    )
    count = min(TEXT_CLIPS, use.capacity)
    rows = [texts for _ in range(count // use.render) for texts in next(stream).texts]
    unique = sorted({text for row in rows for text in row})
    place = {text: k for k, text in enumerate(unique)}
    embedded = frozen.embed(unique)
    index = torch.tensor([[place[text] for text in row] for row in rows], device=use.device)
    texts = embedded.to(torch.bfloat16)[index]
    return DmdStage(
        experiment, use.device, texts, frozen.embed([""])[0],
        student=load_weights(_first(use, "causal-init.safetensors")).tensors,
        teacher=load_weights(_first(use, "base.safetensors")).tensors,
        compiled=use.compiled,
        **use.given(),
    )  # fmt: skip


STAGES: dict[Stage, Callable[[Experiment, Resources, dict[str, Any]], Strategy]] = {
    "codec": _codec,
    "text": _text,
    "base": _base,
    "causal-init": _causal,
    "dmd": _dmd,
}
