"""What a golden film is made of: a small random student, its noise and its texts.

Shared by the recorder, which feeds them to the authors' code, and by the tests, which feed them to
ours.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from cfmodel.config import Experiment, Geometry, ModelConfig, Switch, seed_for
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.presets import presets
from cfmodel.rollout import HashNoise
from cfmodel.samplers import Parts, roll_out
from cfmodel.scenes import switched
from tests.helpers.nano import randomise

FOLDER = Path(__file__).parents[1] / "golden"
FILM = "golden"
SEED = 0
SHIFT = 5.0
GEOMETRY = Geometry(height=32, width=48)
MODEL = ModelConfig(
    layers=2, width=48, heads=2, ffn=96, text_width=24, text_tokens=4, latent_channels=4
)
LENGTH = 44
"""Chunks of a film: a memory of 24 latents is full after 8."""


class Golden(NamedTuple):
    """The latents (1, F, C, X, Y) that the authors' code made, and how."""

    latents: Tensor
    about: dict[str, Any]


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return Golden(file.get_tensor("latents"), json.loads(file.metadata()["origin"]))


def experiment(row: str) -> Experiment:
    """A preset at the goldens' size, with the shift of the family that the weights are for."""
    base = presets("wan-1.3b")[row]
    return dataclasses.replace(base, geometry=GEOMETRY, model=MODEL)


def student() -> VideoTransformer:
    model = VideoTransformer(MODEL, GEOMETRY)
    randomise(model, SEED)
    return model.requires_grad_(False).eval()


def noise() -> HashNoise:
    return HashNoise([FILM], [SEED])


def chunk_shape() -> tuple[int, ...]:
    return (1, GEOMETRY.chunk, MODEL.latent_channels, *GEOMETRY.latent_size)


def text_tokens(text: str) -> Tensor:
    """Random encoding (1, S, E) of a text, which depends on the text alone."""
    generator = torch.Generator().manual_seed(seed_for("golden-text", text))
    return torch.randn(1, MODEL.text_tokens, MODEL.text_width, generator=generator)


@dataclass(frozen=True)
class Case:
    """A golden film by our code: the preset, and texts with the chunks at which they begin."""

    row: str
    texts: tuple[tuple[str, int, Switch], ...] = (("a", 0, "keep"),)


CASES = {
    "self-forcing": Case("self-forcing"),
    "longlive": Case("longlive"),
    "longlive-recache": Case(
        "longlive-recache", (("a", 0, "keep"), ("b", 2, "recache"), ("c", 30, "recache"))
    ),
    "infinity-rope": Case("infinity-rope"),
    "infinity-rope-scenes": Case(
        "infinity-rope-flush", (("a", 0, "keep"), ("b", 10, "flush"), ("c", 22, "cut"))
    ),
    "rolling-forcing": Case("rolling-forcing"),
    "causvid": Case("causvid"),
}
REENCODED = 0.5
"""The stub of a VAE scales what it encodes, so that encoding again shows."""


def film(case: Case, **memory: object) -> Tensor:
    """Our film of a case; ``memory`` changes fields, to see that a case depends on them."""
    row = experiment(case.row)
    changed = dataclasses.replace(row.memory, **memory)  # pyright: ignore[reportArgumentType]
    row = dataclasses.replace(row, memory=changed)
    model = student()
    kept = SlotMemory(row.memory, GEOMETRY, MODEL, batch=1, device="cpu", dtype=torch.float32)
    texts = {text: model.text_kv(text_tokens(text)[:, None]) for text, _, _ in case.texts}
    changes: dict[int, Switch] = {chunk: switch for _, chunk, switch in case.texts}

    def text_at(chunk: int) -> TextKV:
        return texts[max((begin, text) for text, begin, _ in case.texts if begin <= chunk)[1]]

    def switch_at(chunk: int) -> Switch:
        return changes.get(chunk, "keep")

    length = read_length(case)
    parts = Parts(
        row, model, kept, text_at, noise(), batch=1, dtype=torch.float32,
        reencode=lambda film: REENCODED * film[:, -GEOMETRY.chunk, None],
        begin=switched(model, kept, text_at, switch_at, dtype=torch.float32),
    )  # fmt: skip
    return torch.cat(list(roll_out(parts, length)), dim=1)


def read_length(case: Case) -> int:
    """Chunks of a case: whole passes where the sampler makes passes."""
    if case.row != "causvid":
        return LENGTH
    a_pass = (experiment(case.row).memory.capacity or 0) // GEOMETRY.chunk
    return a_pass + (LENGTH - a_pass) // (a_pass - 1) * (a_pass - 1)
