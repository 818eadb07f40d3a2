"""The records that everything else passes around: frozen, standard library only."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1

Stratum = Literal["stay", "short", "long", ""]
Tier = Literal["tiny", "lite", "reference"]

RAW_FRAMES = "raw-frames"
"""The protocol of films that were scored as they were made, without a file in between."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a film with one text. The last segment of a prompt lasts to the end."""

    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a film is made from.

    ``stratum`` says what leaves and returns (empty for prompts that no script made); ``scene`` is
    the tiny world's own description, from which truth is rendered and expectations are read;
    ``vbench`` names the dimensions that a prompt of VBench's suite is scored in, each with what it
    needs beside the text.
    """

    id: str
    segments: tuple[Segment, ...]
    stratum: Stratum = ""
    scene: dict[str, Any] | None = None
    vbench: dict[str, Any] | None = None
    source: str = ""
    licence: str = ""

    @property
    def text(self) -> str:
        """The texts of all segments, in order."""
        return " ".join(segment.text for segment in self.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One film to make: a system, a prompt, a seed. ``id`` is a hash of these and of the key."""

    id: str
    system: str
    key: str
    prompt: Prompt
    seed: int
    chunks: int


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """A film: its hash, and what it holds.

    ``codec`` is the protocol under which a film is scored. ``h264-crf18``: the film is a file in
    the store, and what is decoded from it is scored. ``raw-frames``: the frames are scored as they
    were made; hash and ``bytes`` are of these frames, which are kept nowhere.
    """

    sha256: str
    frames: int
    fps: int
    width: int
    height: int
    codec: str
    bytes: int

    @property
    def is_stored(self) -> bool:
        """Whether the film is a file in the store."""
        return self.codec != RAW_FRAMES


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How a film came to be. One a film; equal jobs give equal records, times aside.

    ``batch`` films were made together, and ``seconds`` is this one's share of their time. Bytes are
    the same on equal device, dtype and batch only.
    """

    id: str
    system: str
    label: str
    key: str
    experiment: dict[str, Any]
    prompt_id: str
    prompt_sha: str
    stratum: str
    seed: int
    chunks: int
    clip: ClipInfo
    weights: dict[str, str]
    code: dict[str, Any]
    environment: dict[str, Any]
    batch: int
    started: str
    seconds: float
    peak_gib: float
    fps_generated: float
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job or a film that could not be done: ``id`` is the job's id, or the film's hash."""

    stage: Literal["generate", "score"]
    id: str
    system: str
    prompt_id: str
    seed: int
    reason: str
    attempts: int
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class WindowScore:
    """The value of a dimension over [start_s, end_s) of a film; None where it does not apply."""

    start_s: float
    end_s: float
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One dimension of one film: a number, or None with a ``reason``; never a default."""

    clip_sha: str
    dimension: str
    version: str
    tier: Tier
    value: float | None
    windows: tuple[WindowScore, ...] = ()
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class DimensionSpec:
    """What a dimension is: its group and weight in the aggregate, and where it comes from."""

    name: str
    group: Literal["quality", "semantic", "extra"]
    weight: float
    version: str
    tier: Tier
    higher_is_better: bool
    source: str


def to_json(record: Any) -> dict[str, Any]:
    """A record as a JSON tree."""
    return asdict(record)
