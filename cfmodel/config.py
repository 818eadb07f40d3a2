"""Frozen configuration of one experiment, and the arithmetic of its geometry.

Every default lives here. A preset (``cfmodel.presets``) is an ``Experiment``; an ablation is
``vary(base, path, value)``, one changed field.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Promotion = Literal["surprisal-2", "surprisal-1", "uniform-2", "uniform-1"]
Positions = Literal["absolute", "window", "bounded", "adjacent"]
Decision = Literal["shared", "per-layer"]
When = Literal["commit", "every-pass"]
Filling = Literal["promoted", "dense"]
CommitReads = Literal["all", "recent"]
Switch = Literal["keep", "recache", "flush", "cut"]
Sampler = Literal["chunk", "rolling", "passes"]
Stage = Literal["causal-init", "dmd", "cdmd", "streaming"]
TeacherContext = Literal["memory", "contiguous"]
Family = Literal["nano", "tiny", "wan-1.3b"]
Attention = Literal["auto", "sdpa", "cudnn", "flex", "flash"]

SCHEMA = 1
LATER: Mapping[tuple[str, str], object] = {("memory", "pool"): 1}
"""Fields that came after films were recorded, and the value with which they change nothing.

With it they are left out of hashes and of JSON, so that what was recorded before keeps its key.
"""
MAX_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a film in pixels, latents and tokens.

    Raises:
        ValueError: a size is not positive or does not divide.

    Source: Wan 2.1 (patch 1x2x2, VAE stride 4x8x8); chunk of 3 latent frames, arXiv:2602.06028.
    """

    height: int = 480
    width: int = 832
    fps: int = 16
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)
    chunk: int = 3

    def __post_init__(self) -> None:
        for name in ("height", "width", "fps", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"geometry.{name}={getattr(self, name)}: expected a positive int")
        for name, axis in (("height", 1), ("width", 2)):
            step = self.vae_stride[axis] * self.patch[axis]
            if getattr(self, name) % step:
                raise ValueError(
                    f"geometry.{name}={getattr(self, name)} does not divide by {step} "
                    f"(vae_stride x patch); use a multiple of {step}"
                )

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        return self.height // self.vae_stride[1], self.width // self.vae_stride[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a latent frame."""
        rows, columns = self.latent_size
        return rows // self.patch[1], columns // self.patch[2]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens in a latent frame (30 * 52 for the default)."""
        return math.prod(self.grid)

    @property
    def chunk_seconds(self) -> float:
        """Seconds of film in a chunk (0.75 for the default)."""
        return self.chunk * self.vae_stride[0] / self.fps

    def chunks_for(self, seconds: float) -> int:
        """Chunks that cover ``seconds`` of film, rounded up so that no pixel frame is missing.

        Raises:
            ValueError: ``seconds`` is not positive, or more than a day.

        Example:
            >>> Geometry().chunks_for(60)
            81
        """
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError(
                f"seconds={seconds:g}: expected a positive number of seconds, at most "
                f"{MAX_SECONDS} (a day)"
            )
        frames = math.ceil(seconds * self.fps)
        latents = 1 + math.ceil((frames - 1) / self.vae_stride[0])
        return math.ceil(latents / self.chunk)

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames decoded from ``latent_frames``: the first latent holds one, others four.

        Example:
            >>> Geometry().pixel_frames(243)
            969
        """
        return 1 + self.vae_stride[0] * (latent_frames - 1)

    def latent_seconds(self, latent_frames: int) -> float:
        """Seconds spanned by ``latent_frames`` latents (21 latents are 5.25 s)."""
        return latent_frames * self.vae_stride[0] / self.fps


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the transformer, in the Wan 2.1 layout.

    ``text_width`` and ``text_tokens`` are those of the text encoder's output.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    text_width: int
    text_tokens: int
    latent_channels: int = 16
    freq_width: int = 256
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width={self.width} does not give {self.heads} heads of an even size"
            )

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What a chunk may read of the past. All sizes are latent frames.

    Args:
        sink: the first frames of the film, kept for ever.
        slow: capacity of the keyframe memory; 0 leaves sink + sliding window.
        fast: sliding window, **the chunk being generated included**; None is endless.
        promotion: which chunks give their first latent to slow memory: by surprisal (mean key's
            cosine to the chunk before it below ``tau``) or uniformly; the digit is the interval in
            chunks at which a chunk is a candidate.
        tau: threshold of surprisal, in (-1, 1].
        positions: temporal rotary indices: the true frame (absolute), packed from 0 (window),
            sink at 0 and the rest ending at ``capacity - 1`` (bounded, eq. 8), or true frames with
            the sink just before the oldest of them (adjacent).
        decision: one promotion decision for all layers (mean over layers) or one per layer.
        when: promotion is tested at the clean pass, against the clean pass of the chunk before, or
            at every pass, against the pass before; the first that trips the test gives its latent.
        filling: what the slots of slow memory hold until they are promoted to: nothing, or the
            frames behind the sink, of which each promotion replaces the oldest.
        attend: latents that a denoising pass reads at most, itself included; None is all held.
        commit_reads: what the clean pass reads: as much as the others, or the last ``fast`` latents
            alone. Sampling only: training reads all.
        pool: keys and values of slow memory are means over this many rows and columns of tokens,
            placed in their middle; 1 keeps every token.
        switch: what a new text does to the memory: nothing, ``recache`` (one pass over the last
            ``capacity`` latents with the new text), ``flush`` (sink and two latents stay), or
            ``cut`` (a flush, and the first chunk of the scene far away in time).

    Source: arXiv:2602.06028 section 3 (N_s = 3, N_c = 12, N_l = 6, tau = 0.95); ``when`` and
    ``filling`` as its release; ``attend`` and ``adjacent`` as Rolling Forcing; ``recache`` as
    LongLive; ``flush`` and ``cut`` as Infinity-RoPE.
    """

    sink: int = 3
    slow: int = 12
    fast: int | None = 6
    promotion: Promotion = "surprisal-2"
    tau: float = 0.95
    positions: Positions = "bounded"
    decision: Decision = "per-layer"
    when: When = "commit"
    filling: Filling = "promoted"
    attend: int | None = None
    commit_reads: CommitReads = "all"
    switch: Switch = "keep"
    pool: int = 1

    def __post_init__(self) -> None:
        for name in ("sink", "slow"):
            if getattr(self, name) < 0:
                raise ValueError(f"memory.{name}={getattr(self, name)}: expected 0 or more")
        if self.fast is not None and self.fast < 1:
            raise ValueError(f"memory.fast={self.fast}: expected at least one chunk, or None")
        if self.fast is None and self.positions == "bounded":
            raise ValueError("memory.fast=None has no bound; use positions='absolute' or 'window'")
        if not -1 < self.tau <= 1:
            raise ValueError(f"memory.tau={self.tau}: expected -1 < tau <= 1")
        if self.fast is None and self.switch == "recache":
            raise ValueError("memory.fast=None has no window to recache; set memory.fast")
        if self.pool < 1 or (self.pool > 1 and self.fast is None):
            raise ValueError(
                f"memory.pool={self.pool}: expected 1 or more, and 1 with memory.fast=None"
            )
        if self.attend is not None and self.attend <= self.sink:
            raise ValueError(f"memory.attend={self.attend}: expected more than sink={self.sink}")
        if self.attend is not None and self.capacity is not None and self.attend > self.capacity:
            raise ValueError(
                f"memory.attend={self.attend}: expected at most the {self.capacity} latents held"
            )

    @property
    def capacity(self) -> int | None:
        """Latents that a chunk attends to, itself included; None when endless."""
        return None if self.fast is None else self.sink + self.slow + self.fast

    @property
    def observes(self) -> bool:
        """Whether every pass of a chunk is tested, not its clean pass alone."""
        return self.slow > 0 and self.when == "every-pass"

    def span_latents(self, chunk: int) -> int | None:
        """Latents of film covered, a slow latent counting for its whole interval.

        Source: the paper's "20+ s" is 3 + 12 x (2 x 3) + 6 = 81 latents.
        """
        if self.fast is None:
            return None
        interval = int(self.promotion[-1])
        return self.sink + self.slow * interval * chunk + self.fast


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Few-step sampling: noise levels before the shift (1 = pure noise), and the flow shift.

    Args:
        steps: noise levels, falling.
        shift: flow shift.
        sampler: ``chunk`` after chunk; ``rolling``: as many chunks together as there are steps,
            each a step behind the one before it; or ``passes``: films as long as the memory, each
            begun with the last chunk of the one before.
        whole_timesteps: the network is told the nearest of Wan's whole timesteps.

    Source: ``rolling`` is Rolling Forcing; ``passes`` and ``whole_timesteps`` are CausVid.
    """

    steps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shift: float = 5.0
    sampler: Sampler = "chunk"
    whole_timesteps: bool = False

    def __post_init__(self) -> None:
        if not self.steps or any(not 0 < s <= 1 for s in self.steps):
            raise ValueError(f"sample.steps={self.steps}: expected noise levels in (0, 1]")
        if list(self.steps) != sorted(self.steps, reverse=True):
            raise ValueError(f"sample.steps={self.steps}: expected falling noise levels")
        if self.shift <= 0:
            raise ValueError(f"sample.shift={self.shift}: expected a positive number")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights were made: what distinguishes checkpoints, not how long they took.

    Args:
        stage: the last stage.
        context: what the teacher of ``cdmd`` sees before the target: the very frames that the
            student's memory holds (sink, slow, local), or as many latents just before it.
        recycling: whether the context teacher was hardened with its own past errors.

    Source: arXiv:2602.06028 sections 5-7; its prose has the first context, its Algorithm 1 and its
    release the second.
    """

    stage: Stage = "cdmd"
    context: TeacherContext = "contiguous"
    recycling: bool = True


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Video autoencoder: the Wan VAE (diffusers), or a small one in the TAEHV layout.

    ``widths`` are the decoder's channels from coarse to fine, ``encoder_width`` the encoder's;
    ``patch`` is the pixel-unshuffle in front, ``space`` and ``time`` the decoder's upscalings.
    """

    kind: Literal["tae", "wan"] = "tae"
    widths: tuple[int, ...] = (256, 128, 64, 64)
    encoder_width: int = 64
    latent_channels: int = 16
    patch: int = 1
    space: tuple[int, ...] = (2, 2, 2)
    time: tuple[int, ...] = (1, 2, 2)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text encoder: UMT5-XXL, or a small T5 encoder over bytes pooled to ``tokens`` queries."""

    kind: Literal["bytes", "umt5"] = "bytes"
    width: int = 128
    layers: int = 4
    heads: int = 4
    ffn: int = 384
    tokens: int = 16
    max_bytes: int = 256


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of a table: everything that decides what its films look like, but prompt and seed.

    ``weights`` names pinned weights; None says that this row's own weights are not trained yet.
    """

    name: str
    label: str
    family: Family
    geometry: Geometry
    model: ModelConfig
    memory: MemoryConfig
    sample: SampleConfig
    train: TrainConfig
    codec: CodecConfig
    text: TextConfig
    base: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        fast = self.memory.fast
        if fast is not None and fast < self.geometry.chunk:
            raise ValueError(
                f"memory.fast={fast} is smaller than geometry.chunk={self.geometry.chunk}; "
                f"use >= {self.geometry.chunk}"
            )
        self._check_sampler()

    def _check_sampler(self) -> None:
        memory, sampler, chunk = self.memory, self.sample.sampler, self.geometry.chunk
        if sampler != "chunk" and (memory.slow or memory.when != "commit"):
            raise ValueError(f"sample.sampler={sampler!r} has no slow memory; set memory.slow=0")
        if sampler != "chunk" and memory.switch != "keep":
            raise ValueError(f"sample.sampler={sampler!r}: expected memory.switch='keep'")
        together = len(self.sample.steps) * chunk
        if sampler == "rolling" and (memory.attend or 0) < memory.sink + together:
            raise ValueError(
                f"memory.attend={memory.attend}: rolling over {len(self.sample.steps)} steps "
                f"needs >= {memory.sink + together}"
            )
        if sampler == "passes" and (memory.sink or (memory.fast or 0) < 2 * chunk):
            raise ValueError(
                f"sample.sampler='passes' needs memory.sink=0 and memory.fast >= {2 * chunk}"
            )

    def key(self) -> str:
        """Hash of everything but name, label and base: equal keys make equal films."""
        tree = _without_later(dataclasses.asdict(self))
        for name in ("name", "label", "base"):
            tree.pop(name)
        return digest({"schema": SCHEMA, **tree})

    def to_json(self) -> dict[str, Any]:
        """Canonical JSON form, as stored in records and in safetensors metadata."""
        tree = _without_later(dataclasses.asdict(self))
        return {"schema": SCHEMA, **json.loads(json.dumps(tree))}


def _without_later(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree without the fields that came later and hold the value that changes nothing."""
    for (config, name), value in LATER.items():
        if tree[config][name] == value:
            tree[config].pop(name)
    return tree


def digest(tree: object) -> str:
    """First 12 hex digits of the sha256 of canonical JSON."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seed_for(*parts: str | int) -> int:
    """A 63-bit seed that depends on the parts alone: the first 8 bytes of their sha256.

    Example:
        >>> seed_for("p", 1) == seed_for("p", 1) != seed_for("p", 2)
        True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in typing.get_args(hint))
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        items = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(items) == len(value) and all(map(_fits, value, items))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def put(node: Any, path: str, value: object, full: str = "") -> Any:
    """A copy of ``node`` with the field at the dotted ``path`` replaced.

    Raises:
        ValueError: no such field, a value outside the field's type, or the value it already has.
    """
    full = full or path
    head, _, rest = path.partition(".")
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"{full}: {head!r} is inside a plain value; name a field of a config")
    hints = typing.get_type_hints(type(node))
    if head not in hints:
        raise ValueError(
            f"{full}: {type(node).__name__} has no field {head!r}; has {sorted(hints)}"
        )
    old = getattr(node, head)
    if rest:
        return dataclasses.replace(node, **{head: put(old, rest, value, full)})
    if not _fits(value, hints[head]):
        raise ValueError(f"{full}={value!r}: expected {hints[head]}")
    if old == value:
        raise ValueError(f"{full}={value!r} is already the base's value")
    return dataclasses.replace(node, **{head: value})


def vary(
    base: Experiment,
    path: str,
    value: object,
    *,
    name: str,
    label: str,
    retrain: bool = False,
) -> Experiment:
    """A row that differs from ``base`` in the one field at ``path``.

    With ``retrain`` the row needs weights of its own, which it does not have until they are pinned.
    """
    changed = put(base, path, value)
    weights = None if retrain else base.weights
    return dataclasses.replace(changed, name=name, label=label, base=base.name, weights=weights)


def diff(a: Any, b: Any, at: str = "") -> list[tuple[str, object, object]]:
    """Fields in which two configs differ, as (path, value in a, value in b)."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return [
            leaf
            for f in dataclasses.fields(a)
            if at or f.name not in ("name", "label", "base", "weights")
            for leaf in diff(getattr(a, f.name), getattr(b, f.name), f"{at}.{f.name}".lstrip("."))
        ]
    return [] if a == b else [(at, a, b)]


def from_json(tree: dict[str, Any]) -> Experiment:
    """The experiment of a record; unknown keys and another schema are refused.

    Raises:
        ValueError: unknown key, missing key, wrong type or wrong schema.
    """
    tree = dict(tree)
    schema = tree.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"experiment schema {schema!r}: this version reads {SCHEMA}")
    for (config, name), value in LATER.items():
        if isinstance(tree.get(config), dict):
            tree[config] = {name: value, **tree[config]}
    return _build(Experiment, tree, "experiment")


def _build(kind: Any, tree: Any, at: str) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(tree) - set(hints)
        missing = set(hints) - set(tree)
        if unknown or missing:
            raise ValueError(f"{at}: unknown keys {sorted(unknown)}, missing {sorted(missing)}")
        return typing.cast(Any, kind)(
            **{k: _build(hints[k], v, f"{at}.{k}") for k, v in tree.items()}
        )
    value = tuple(tree) if isinstance(tree, list) else tree
    if not _fits(value, kind):
        raise ValueError(f"{at}={value!r}: expected {kind}")
    return value
