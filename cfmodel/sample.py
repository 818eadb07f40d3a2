"""The verb ``sample``: prompts in, H.264 films out, written while they are made."""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from cfmodel.config import Attention, Experiment, Geometry, Switch, digest

if TYPE_CHECKING:
    from torch import Tensor

    from cfmodel.nn.fast import Fast
    from cfmodel.pipeline import Pipeline, Request

logger = logging.getLogger(__name__)

ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
FILM = ".mp4"
MAX_FILE_BYTES = 64 << 20
QUIET_S = 60.0
"""Seconds between lines of progress where stderr is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """A prompt: an id, which with the seed decides the noise, and texts with their seconds.

    ``switches`` is what the beginning of each segment does to the memory; None is what the preset
    does.
    """

    id: str
    segments: tuple[tuple[str, float], ...]
    switches: tuple[Switch | None, ...] = ()


def script_of(text: str, seconds: float) -> Script:
    """A prompt of one text; its id follows from the text."""
    return Script(id=f"p-{digest(text)}", segments=((text, seconds),))


def read_scenes(path: Path) -> Script:
    """The one film of a file of scenes: JSON lines of ``text``, ``seconds`` and maybe ``switch``.

    Its id follows from the texts.

    Raises:
        ValueError: no such file, no UTF-8, no scenes, or a line that cannot be used.
    """
    scenes: list[tuple[str, float, Switch | None]] = []
    for number, line in enumerate(_lines(path, "--scenes"), 1):
        if line.strip():
            try:
                scenes.append(_parse_scene(_json_object(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not scenes:
        raise ValueError(f"{path} holds no scenes; write one a line")
    joined = "\n".join(text for text, _, _ in scenes)
    segments = tuple((text, seconds) for text, seconds, _ in scenes)
    switches: tuple[Switch | None, ...] = tuple(switch for _, _, switch in scenes)
    return _checked(Script(id=f"p-{digest(joined)}", segments=segments, switches=switches))


def _lines(path: Path, option: str) -> list[str]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; split it")
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check {option}") from error


def read_scripts(path: Path, seconds: float) -> list[Script]:
    """Prompts of a file: JSON lines for ``.jsonl``, else one text a line.

    A JSON line has ``text``, or ``segments`` like lines of ``read_scenes``, and may have an ``id``.

    Raises:
        ValueError: no such file, no UTF-8, no prompts, or a line that cannot be used.
    """
    lines = _lines(path, "--prompts")
    scripts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parse = _parse_json if path.suffix == ".jsonl" else script_of
            try:
                scripts.append(_checked(parse(line.strip(), seconds)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not scripts:
        raise ValueError(f"{path} holds no prompts; write one a line")
    twice = sorted(name for name, n in Counter(script.id for script in scripts).items() if n > 1)
    if twice:
        raise ValueError(f"{path}: prompt {twice[0]!r} stands there twice; ids must differ")
    return scripts


def _json_object(line: str) -> dict[str, Any]:
    try:
        tree = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ValueError("expected a JSON object with text or segments")
    return cast(dict[str, Any], tree)


def _parse_scene(tree: dict[str, Any]) -> tuple[str, float, Switch | None]:
    try:
        text, seconds = str(tree["text"]), float(tree["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("expected text, or segments of text and seconds (a number)") from error
    switch = tree.get("switch")
    if switch is not None and switch not in get_args(Switch):
        raise ValueError(f"switch {switch!r}: expected one of {', '.join(get_args(Switch))}")
    return text, seconds, switch


def _parse_json(line: str, seconds: float) -> Script:
    tree = _json_object(line)
    try:
        parts: list[Any] = tree.get("segments") or [{"text": tree["text"], "seconds": seconds}]
        scenes = [_parse_scene(part) for part in parts]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("expected text, or segments of text and seconds (a number)") from error
    text = "\n".join(text for text, _, _ in scenes)
    return Script(
        id=str(tree.get("id", f"p-{digest(text)}")),
        segments=tuple((text, duration) for text, duration, _ in scenes),
        switches=tuple(switch for _, _, switch in scenes),
    )


def _checked(script: Script) -> Script:
    if not ID.fullmatch(script.id):
        raise ValueError(f"id {script.id!r}: expected up to 40 of a-z 0-9 . -")
    if any(not duration > 0 for _, duration in script.segments):
        raise ValueError("a segment's seconds must be positive")
    return script


def check_scripts(scripts: Sequence[Script], experiment: Experiment) -> list[str]:
    """Warnings about texts that the family's model was not trained on.

    Raises:
        ValueError: an empty text, or one of more than ``text.max_bytes`` bytes.
    """
    from cfmodel.io.text import check_text

    texts = dict.fromkeys(text for script in scripts for text, _ in script.segments)
    for text in texts:
        check_text(text, experiment.text.max_bytes)
    if experiment.family != "tiny":
        return []
    from cfmodel.tinyworld.caption import parse

    return [
        f"the tiny model was not trained on {text[:60]!r}: it names no subject of the tiny world "
        "(try: A red ball hops on grass under a clear sky.)"
        for text in texts
        if not parse(text).recognised
    ]


def targets(scripts: Sequence[Script], out: Path, *, folder: bool) -> list[Path]:
    """The file of each film: ``out`` itself, or one in the folder ``out`` named by prompt.

    Raises:
        ValueError: a place that cannot be written.
    """
    home = out if folder else out.parent
    if folder and (home.suffix == FILM or (home.exists() and not home.is_dir())):
        raise ValueError(f"--out {out}: expected a folder for the films of --prompts")
    if not folder and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file, as in {out / 'film.mp4'}")
    if not folder and out.suffix != FILM:
        raise ValueError(f"--out {out}: expected a name that ends in {FILM}")
    existing = next(parent for parent in (home, *home.absolute().parents) if parent.exists())
    if not folder and existing != home:
        raise ValueError(f"--out {out}: no folder {home}; make it or choose another --out")
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {existing} cannot be written; choose another --out")
    return [out / f"{script.id}{FILM}" for script in scripts] if folder else [out]


def sample(
    experiment: Experiment,
    scripts: Sequence[Script],
    paths: Sequence[Path],
    *,
    seconds: float,
    seed: int,
    device: str | None,
    attention: Attention,
    after: Path | None = None,
    image: Path | None = None,
    base: str | None = None,
    fast: "Fast | None" = None,
) -> dict[str, Any]:
    """Makes the films of ``scripts`` at ``paths``, and returns what was made.

    With ``after`` each film begins with the pictures of that film, cut to whole chunks, and goes on
    from them for ``seconds``; with ``image`` it begins with that picture, held for a chunk.

    Joined processes (``cfmodel.devices``) make each film together; the first writes it, and is the
    only one that returns films.

    Raises:
        ValueError: weights, device or backend cannot be used, or more than one process where a
            frame's tokens do not divide among them.
        OSError: a film cannot be written; the part of it that was is removed.
    """
    from cfmodel.devices import world
    from cfmodel.nn.spread import Spread
    from cfmodel.pipeline import Request, load

    geometry = experiment.geometry
    chunks, wanted = geometry.chunks_for(seconds), max(1, round(seconds * geometry.fps))
    history = None if after is None else read_history(after, geometry)
    history = history if image is None else read_image(image, geometry)
    if history is not None:
        # A later chunk has more pixel frames than the first of a film.
        chunks = math.ceil(wanted / (geometry.chunk * geometry.vae_stride[0]))
        wanted += history.shape[1]
    pipeline = load(experiment, device=device, attention=attention, base=base, fast=fast)
    rank, size = world()
    if size > 1:
        pipeline.spread_over(Spread(rank, size))
    films = []
    with _progress(chunks * len(scripts), shown=rank == 0) as advance:
        for script, path in zip(scripts, paths, strict=True):
            request = Request(script.id, script.segments, seed, script.switches)
            if rank:
                _helped(pipeline, request, chunks, history)
                continue
            began = time.monotonic()
            frames = _written(pipeline, request, chunks, history, path, wanted, advance)
            films.append(_made(path, script, seed, frames, time.monotonic() - began))
    return {
        "preset": f"{experiment.family}/{experiment.name}",
        "key": experiment.key(),
        "weights": pipeline.weights,
        **pipeline.record(),
        "films": films,
    }


def _written(
    pipeline: "Pipeline",
    request: "Request",
    chunks: int,
    history: "Tensor | None",
    path: Path,
    wanted: int,
    advance: Callable[[int], None],
) -> int:
    """Makes a film's file; returns how many frames it has."""
    from cfmodel.video import FilmWriter

    geometry = pipeline.experiment.geometry
    path.parent.mkdir(parents=True, exist_ok=True)
    with FilmWriter(path, fps=geometry.fps, height=geometry.height, width=geometry.width) as writer:
        if history is not None:
            writer.write(history[0].numpy())
        for frames_BRYXC in pipeline.films([request], chunks, history=history):
            # The last chunk may reach beyond the seconds asked for.
            kept = frames_BRYXC[0, : wanted - writer.frames]
            writer.write(kept.numpy())
            advance(len(kept))
    return writer.frames


def _helped(
    pipeline: "Pipeline", request: "Request", chunks: int, history: "Tensor | None"
) -> None:
    """This process's share of a film that the first one decodes and writes."""
    past = None if history is None else pipeline.encode(history)
    for _ in pipeline.latents([request], chunks, history=past):
        pass


def read_history(path: Path, geometry: Geometry) -> "Tensor":
    """Pictures (1, R, Y, X, 3) of a film at the geometry's rate and size, cut to whole chunks.

    Raises:
        ValueError: no such film, one that cannot be decoded, or one shorter than a chunk.
    """
    import numpy as np
    import torch

    from cfmodel.io.film import FilmError, frames

    if not path.is_file():
        raise ValueError(f"no film at {path}; check --continue")
    try:
        shown = [
            picture.rgb_YXC
            for picture in frames(
                path, fps=geometry.fps, height=geometry.height, width=geometry.width
            )
        ]
    except FilmError as error:
        raise ValueError(f"{path}: {error}; use another film for --continue") from error
    latents = 1 + (len(shown) - 1) // geometry.vae_stride[0]
    whole = latents // geometry.chunk * geometry.chunk
    if not whole:
        raise ValueError(
            f"{path} has {len(shown)} pictures at {geometry.fps} a second, less than a chunk; use "
            f"a film of at least {geometry.pixel_frames(geometry.chunk)}"
        )
    return torch.from_numpy(np.stack(shown[: geometry.pixel_frames(whole)]))[None]


def read_image(path: Path, geometry: Geometry) -> "Tensor":
    """A picture (1, R, Y, X, 3), centre-cropped and resized, as often as a first chunk shows.

    Raises:
        ValueError: no such picture, or one that cannot be decoded.
    """
    import numpy as np
    import torch

    from cfmodel.io.film import FilmError, frames

    if not path.is_file():
        raise ValueError(f"no picture at {path}; check --image")
    try:
        shown = next(
            frames(path, fps=geometry.fps, height=geometry.height, width=geometry.width), None
        )
    except FilmError as error:
        raise ValueError(f"{path}: {error}; use another picture for --image") from error
    if shown is None:
        raise ValueError(f"{path} shows no picture; use another for --image")
    held = np.repeat(shown.rgb_YXC[None], geometry.pixel_frames(geometry.chunk), axis=0)
    return torch.from_numpy(held)[None]


def _made(path: Path, script: Script, seed: int, frames: int, wall_s: float) -> dict[str, Any]:
    return {
        "out": str(path),
        "prompt_id": script.id,
        "seed": seed,
        "frames": frames,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "wall_s": round(wall_s, 2),
        "frames_per_s": round(frames / wall_s, 1),
    }


@contextmanager
def _progress(chunks: int, *, shown: bool) -> Generator[Any]:
    """A function to call with the frames of each finished chunk; tells of them on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("chunk {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    began, told = time.monotonic(), time.monotonic()
    done = frames = 0
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=chunks, rate=0.0)

        def advance(count: int) -> None:
            nonlocal done, frames, told
            done, frames, now = done + 1, frames + count, time.monotonic()
            rate = frames / max(now - began, 1e-6)
            bar.update(task, advance=1, rate=rate)
            if not console.is_terminal and (now - told >= QUIET_S or done == chunks):
                left = (now - began) / done * (chunks - done)
                logger.info("chunk %d/%d, %.1f frames/s, %.0f s left", done, chunks, rate, left)
                told = now

        yield advance
