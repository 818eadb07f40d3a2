"""Prompts without films, chunk by chunk, for the stages whose student makes its own films."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cfmodel.config import Geometry
from cfmodel.io.text import check_text
from cfmodel.pipeline import segment_of
from cfmodel.train.data import Scripts

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


def chunk_texts(prompts: Sequence[Segments], *, chunks: int, geometry: Geometry) -> Scripts:
    """Scripts of ``chunks`` chunks, one of each prompt; nothing is said to return."""
    texts: list[tuple[str, ...]] = []
    for prompt in prompts:
        seconds = [duration for _, duration in prompt]
        at = (segment_of(seconds, chunk, geometry) for chunk in range(chunks))
        texts.append(tuple(prompt[k][0] for k in at))
    return Scripts(texts, torch.zeros(len(texts), chunks, dtype=torch.bool))
