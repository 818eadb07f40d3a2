"""Real training stages at nano size on clips made of random numbers, and a way to run them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmodel.devices import joined, world
from cfmodel.io.codec import MEAN, STD
from cfmodel.io.text import BytePooler
from cfmodel.io.weights import randomize, save_weights
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.train.draws import Draws
from cfmodel.train.errors import Recycling
from cfmodel.train.films import FreshFilms, Rollout
from cfmodel.train.flow_stages import Bidirectional, FlowStage
from cfmodel.train.forcing import TeacherForcing
from cfmodel.train.loop import Engine, Resumable, StoppedError, train
from cfmodel.train.matching import Matching, MatchingStage
from cfmodel.train.pool import ClipPool, Units
from cfmodel.train.roller import Roller
from cfmodel.train.streams import StreamingFilms
from cfmodel.train.teacher import ContextTeacher
from cfmodel.train.texts import Held, Texts
from tests.helpers.nano import NANO, seeded, with_memory

CPU = torch.device("cpu")
MODEL = NANO.model
EMPTY = torch.zeros(MODEL.text_tokens, MODEL.text_width)
BATCH = 4
FRAMES = {"base": 6, "causal-init": 6, "teacher": 42, "teacher-host": 42}
RECYCLING = Recycling(bins=2, entries=2, updates=1, noise=0.9, clean=0.1)


def clips(number: int, frames: int) -> Units:
    """Two clips of random latents; the texts say something of them, so there is much to learn."""
    x0 = seeded(2, frames, MODEL.latent_channels, *NANO.geometry.latent_size, seed=number)
    groups = frames if frames > 21 else frames // 3
    text = seeded(2, groups, MODEL.text_tokens, MODEL.text_width, seed=number + 1)
    valid = torch.ones(2, frames, dtype=torch.bool)
    return {"x0": x0, "text": text, "valid": valid, "returning": valid[:, 0]}


def stage(name: str, *, lora: Any = None, lr: float = 0.3) -> Resumable:
    """A stage whose batch over all processes is ``BATCH``."""
    batch = BATCH // world().size
    if name in FRAMES:
        frames = FRAMES[name]
        objective: Any = {
            "base": lambda: Bidirectional(),
            "causal-init": lambda: TeacherForcing(NANO.geometry),
            "teacher": lambda: ContextTeacher(NANO, CPU, RECYCLING),
            "teacher-host": lambda: ContextTeacher(NANO, CPU, replace(RECYCLING, host=True)),
        }[name]()
        pool = ClipPool(count, lambda k: clips(k, frames), capacity=8, draws=Draws(CPU, 2), fill=4)
        return FlowStage(
            name, objective, NANO, CPU, pool, lambda: clips(10**6, frames), EMPTY,
            batch=batch, lr=lr, refill_every=3, lora=lora,
        )  # fmt: skip
    experiment = NANO if name == "dmd" else with_memory(slow=0, fast=9, positions="absolute")
    table, chunks = seeded(8, MODEL.text_tokens, MODEL.text_width, seed=5), 20
    index = torch.arange(8 * chunks).view(8, chunks) % 8
    texts = Texts(Held(table, CPU), index, index == 3, CPU)
    roller = Roller(experiment, batch, Draws(CPU, 3))
    films: Any = FreshFilms(roller, texts, Rollout())
    if name == "streaming":
        films = StreamingFilms(roller, texts, Rollout(stream=60), reencode=lambda x: x[:, -1:])
    weights = VideoTransformer(MODEL, NANO.geometry).state_dict()
    weights["head.linear.weight"] = seeded(*weights["head.linear.weight"].shape) / 10
    return MatchingStage(
        name, experiment, CPU, films, EMPTY,
        Matching(guidance=2.0, shift=1.0, lr=1e-2, critic_lr=1e-2, every=2, critic_updates=1),
        student=weights, teacher=weights,
    )  # fmt: skip


def weights_of(trained: Resumable) -> dict[str, Tensor]:
    """All weights and averages of a stage, by name."""
    return {
        f"{name}.{part}.{key}": value
        for name, trainable in trained.trainables().items()
        for part, module in (("net", trainable.module), ("ema", trainable.ema))
        for key, value in module.state_dict().items()
    }


def dies_after(steps: int) -> Callable[[], bool]:
    """A question to stop that kills this process instead, once ``steps`` steps are done."""
    asked = count()

    def ask() -> bool:
        if next(asked) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return ask


def write_assets(folder: Path, spread: float = 1.0) -> Path:
    """Random weights of codec and text encoder at nano size, as files of a folder."""
    codec, text = TinyAutoencoder(NANO.codec), BytePooler(NANO.text)
    randomize(codec, "codec")
    randomize(text, "text")
    scale = {MEAN: torch.zeros(MODEL.latent_channels), STD: torch.ones(MODEL.latent_channels)}
    scale[STD] *= spread
    about: dict[str, Any] = {"config": NANO.to_json(), "record": {}}
    save_weights(folder / "codec.safetensors", codec.state_dict() | scale, **about)
    save_weights(folder / "text.safetensors", text.state_dict(), **about)
    return folder


def stops_after(steps: int) -> Callable[[], bool]:
    """A question to stop that says yes once ``steps`` steps are done."""
    asked = count()
    return lambda: next(asked) == steps


def main() -> None:
    """Started by tests as a process of its own: ``OUT STEPS SAVE_EVERY KILLED_AT STAGE...``.

    With KILLED_AT 0 each stage is stopped half way and taken up again.
    """
    out, (steps, every, killed) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    with joined(CPU):
        for name in sys.argv[5:]:
            engine = Engine(log_every=1, save_every=every)
            if killed:
                train(
                    stage(name), out, steps=steps, engine=replace(engine, stop=dies_after(killed))
                )
            with contextlib.suppress(StoppedError):
                half = replace(engine, stop=stops_after(steps // 2))
                train(stage(name), out, steps=steps, engine=half)
            train(stage(name), out, steps=steps, engine=engine)


if __name__ == "__main__":
    main()
