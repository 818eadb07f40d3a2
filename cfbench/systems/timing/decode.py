"""The decoder alone, and films with decoding beside the generator."""

import time
from statistics import median
from typing import Any

import torch

from cfbench.systems.timing.base import settle, tidy, watched
from cfbench.systems.timing.ours import Ours, fill
from cfmodel.config import Experiment, seed_for
from cfmodel.io.codec import Codec, WanCodec
from cfmodel.io.text import TextEncoder
from cfmodel.pipeline import Pipeline, Request
from cfmodel.speed import RandomText, random_codec_of

FIRSTS_WARM, FIRSTS = 2, 5
"""Films of which first frames are waited for."""
PROMPT = "A red fox walks through a snowy forest at dawn, its breath rising in the cold air"
WARM = 5
"""Chunks before times are taken: a film's beginning, and the compiler's work."""


def codec_of(experiment: Experiment, device: torch.device, *, compiled: bool) -> Codec:
    """The preset's codec with random weights."""
    codec = random_codec_of(experiment, device)
    if compiled and isinstance(codec, WanCodec):
        codec.compile_parts()
    return codec


def alone(experiment: Experiment, codec: Codec, device: torch.device, chunks: int) -> Any:
    """Milliseconds of single chunks in mid-film, and memory beyond the weights."""
    geometry = experiment.geometry
    generator = torch.Generator(device).manual_seed(seed_for("speed", "latents"))
    size = (1, geometry.chunk, experiment.model.latent_channels, *geometry.latent_size)
    x0 = torch.randn(size, generator=generator, device=device)
    decoder, samples, warm = codec.decoder(1), list[float](), 0.0
    with watched(device) as told:
        for index in range(WARM + chunks):
            settle(device)
            began = time.perf_counter()
            decoder.push(x0)
            settle(device)
            took = 1000 * (time.perf_counter() - began)
            warm += took if index < WARM else 0
            samples += [took] if index >= WARM else []
    return {"samples_ms": samples, "warm_s": warm / 1000, **told}


def beside(made: Ours, codec: Codec, chunks: int) -> Any:
    """A film in steady state, frames on the CPU.

    The film that ``made`` was at ends.
    """
    experiment, device = made.experiment, made.device
    text = RandomText(experiment.model.text_tokens, experiment.model.text_width)
    pipeline = _pipeline(made, codec, text)
    memory = pipeline.memory(1)
    fill(memory)
    samples = list[float]()
    with watched(device) as told:
        request = Request("speed", (("a", 60.0),), 0)
        began = time.perf_counter()
        for _ in pipeline.films([request], WARM + chunks, memory=memory):
            now = time.perf_counter()
            samples.append(1000 * (now - began))
            began = now
    return {
        "samples_ms": samples[WARM:],
        "median_ms": median(samples[WARM:]),
        **told,
    }


def first(made: Ours, codec: Codec, text: TextEncoder) -> Any:
    """Seconds from a prompt to the first frames of its film on the CPU, text encoding included.

    All networks are there and warm; the first films, in which parts compile, do not count. The
    film that ``made`` was at ends.
    """
    pipeline, samples = _pipeline(made, codec, text), list[float]()
    for seed in range(FIRSTS_WARM + FIRSTS):
        settle(made.device)
        began = time.perf_counter()
        film = pipeline.films([Request("speed", ((PROMPT, 60.0),), seed)], 2)
        next(film)
        samples.append(time.perf_counter() - began)
        film.close()  # pyright: ignore[reportAttributeAccessIssue]
    return {"samples_s": samples[FIRSTS_WARM:], "warm_s": sum(samples[:FIRSTS_WARM])}


def _pipeline(made: Ours, codec: Codec, text: TextEncoder) -> Pipeline:
    made.release()
    tidy(made.device)
    attention = made.facts["attention"]
    pipeline = Pipeline(made.experiment, made.model, codec, text, weights={}, attention=attention)
    pipeline.fast = made.fast
    return pipeline
