"""Prompts without films, chunk by chunk, for the stages whose student makes its own films."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cfmodel.config import Geometry
from cfmodel.io.text import check_text
from cfmodel.pipeline import segment_of
from cfmodel.train.data import Scripts
from cfmodel.train.shards import RankSampler

Segments = tuple[tuple[str, float], ...]
"""Texts of a film and their seconds; the last one lasts to the film's end."""


def read_prompts(path: Path, *, max_bytes: int) -> list[Segments]:
    """Prompts of a file: JSON lines for ``.jsonl``, else one text a line.

    A JSON line has ``text``, or ``segments`` of ``text`` and ``seconds``; other keys are ignored.
    A prompt may stand there more than once, and is then drawn more often.

    Args:
        path: the file, UTF-8.
        max_bytes: longest text that the text encoder takes.

    Raises:
        ValueError: no such file, no UTF-8, no prompts, or a line that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the path") from error
    parse = _of_json if path.suffix == ".jsonl" else _of_text
    prompts: list[Segments] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompt = parse(line.strip())
                for text, _ in prompt:
                    check_text(text, max_bytes)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return prompts


def _of_text(line: str) -> Segments:
    return ((line, float("inf")),)


def _of_json(line: str) -> Segments:
    try:
        tree: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if isinstance(tree, dict) and isinstance(tree.get("text"), str) and "segments" not in tree:
        return _of_text(tree["text"])
    try:
        segments = tuple((str(part["text"]), float(part["seconds"])) for part in tree["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("expected text, or segments of text and seconds (a number)") from error
    if not segments or any(not seconds > 0 for _, seconds in segments):
        raise ValueError("expected one segment or more, each of more than 0 seconds")
    return segments


def chunk_texts(
    prompts: Sequence[Segments], *, chunks: int, geometry: Geometry
) -> Callable[[list[int]], Scripts]:
    """Maker of scripts of ``chunks`` chunks from indices of prompts; nothing is said to return."""

    def make(indices: list[int]) -> Scripts:
        texts: list[tuple[str, ...]] = []
        for index in indices:
            seconds = [duration for _, duration in prompts[index]]
            at = (segment_of(seconds, chunk, geometry) for chunk in range(chunks))
            texts.append(tuple(prompts[index][k][0] for k in at))
        return Scripts(texts, torch.zeros(len(texts), chunks, dtype=torch.bool))

    return make


def prompt_stream(
    prompts: Sequence[Segments],
    *,
    chunks: int,
    geometry: Geometry,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    first: int = 0,
) -> Iterator[Scripts]:
    """Endless scripts of one rank; all ranks together show each prompt once an epoch.

    Args:
        prompts: as read from a file.
        chunks: chunks of a script.
        geometry: says when a chunk begins.
        batch: prompts of a batch, on this rank.
        seed: decides the order.
        rank: this process, from 0.
        world: processes.
        first: number of the first batch, to go on where a run stopped.
    """
    make = chunk_texts(prompts, chunks=chunks, geometry=geometry)
    sampler = RankSampler(len(prompts), rank=rank, world=world, seed=seed, position=first * batch)
    indices = iter(sampler)
    while True:
        yield make(list(islice(indices, batch)))
