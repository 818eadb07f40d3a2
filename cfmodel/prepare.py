"""The verb ``prepare``: real films and captions in, shards of latents out, resumable at any time.

What is in the folder depends on films and settings alone: a run that was killed goes on behind the
last shard that its index names and ends with the same files, byte for byte.

Dims: R pixel frames, Y rows, X columns, F latent frames, C latent channels, S text tokens, E text
width.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Experiment, Geometry
from cfmodel.io.captions import Film
from cfmodel.io.codec import Codec
from cfmodel.io.film import FilmError, FilmInfo, Shown, frames, probe
from cfmodel.io.shards import ClipRow, Index, ShardWriter, index_of, open_folder
from cfmodel.io.text import TextEncoder, check_text
from cfmodel.io.weights import file_sha256
from cfmodel.sample import QUIET_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How films become clips, and clips files.

    Args:
        latents: latent frames of a clip; a film is cut into as many clips as it holds, end to end.
        min_latents: shortest clip that the end of a film may make.
        min_s: seconds of the shortest film.
        shard_mib: tensors of a shard, which only a single clip may exceed.
        part: (i, n) takes the films i, i + n, ... of the list, from 1.

    Raises:
        ValueError: a number out of its range.

    Source: arXiv:2602.06028 section 5 as released: 42 latents, films of 10 s or more.
    """

    latents: int
    min_latents: int
    min_s: float
    shard_mib: int
    part: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if not 1 <= self.min_latents <= self.latents:
            raise ValueError(
                f"min_latents={self.min_latents}, latents={self.latents}: expected "
                "1 <= min_latents <= latents"
            )
        if not self.min_s >= 0 or self.shard_mib < 1:
            raise ValueError(
                f"min_s={self.min_s}, shard_mib={self.shard_mib}: expected 0 or more seconds and "
                "1 MiB or more"
            )
        if not 1 <= self.part[0] <= self.part[1]:
            raise ValueError(f"part={self.part}: expected (i, n) with 1 <= i <= n")


class Piece(NamedTuple):
    """Frames (R, Y, X, 3) uint8 of a clip, R = 1 + stride * (F - 1), and where they come from."""

    frames_RYXC: "NDArray[np.uint8]"
    first: int
    source_first: int
    source_end: int


def prepare(
    films: Sequence[Film],
    out: Path,
    *,
    experiment: Experiment,
    cut: Cut,
    codec: Codec,
    text: TextEncoder | None,
) -> dict[str, Any]:
    """Encodes films into shards of a folder, and returns what is there and what was refused.

    Films that the folder's index calls finished are left alone; refused ones are tried again.

    Args:
        films: what to encode, in this order.
        out: folder of the shards; made if it is not there.
        experiment: its geometry gives rate and size, its text config the longest caption.
        cut: length of clips and size of files.
        codec: encodes; its weights' hash is one of the folder's settings.
        text: embeds captions, which are stored beside the latents; None stores captions as text.

    Raises:
        ValueError: the folder holds something else, or was made with other settings.
        OSError: a file cannot be written; the shards so far are whole.
    """
    index = open_folder(out, _settings(experiment, cut, codec, text))
    writer = ShardWriter(out, index, cut.shard_mib * MIB)
    encoder = _Encoder(experiment, cut, codec, text)
    chosen = films[cut.part[0] - 1 :: cut.part[1]]
    index.refused, index.complete = {}, False
    finished = set(index.finished)
    with _progress(len(chosen)) as advance:
        for film in chosen:
            if film.id not in finished or film.reason:
                try:
                    for row, latents_FCXY, text_SE in encoder.clips(film, writer.rows_of(film.id)):
                        writer.add(row, latents_FCXY, text_SE)
                        advance(0, row.frames)
                    index.finished.append(film.id)
                except FilmError as error:
                    index.refused[film.id] = str(error)
                    logger.warning("%s: %s", film.id, error)
            advance(1, 0)
    index.complete = True
    writer.flush()
    return {"out": str(out), **summary(index)}


def survey(
    films: Sequence[Film],
    out: Path,
    *,
    experiment: Experiment,
    cut: Cut,
    codec: Codec,
    text: TextEncoder | None,
) -> dict[str, Any]:
    """What ``prepare`` would do: films to encode, clips they make about, and films refused.

    Films are probed, not decoded, and nothing is written.

    Raises:
        ValueError: the folder holds something else, or was made with other settings.
    """
    index = index_of(out, _settings(experiment, cut, codec, text))
    geometry, done = experiment.geometry, set(index.finished)
    chosen = films[cut.part[0] - 1 :: cut.part[1]]
    refused: dict[str, str] = {}
    clips = seconds = 0
    pending = [film for film in chosen if film.id not in done or film.reason]
    for film in pending:
        try:
            found = _checked(film, cut, experiment.text.max_bytes)
            made = lengths(round(found.seconds * geometry.fps), geometry, cut)
            if not made:
                raise FilmError(_too_short(round(found.seconds * geometry.fps), geometry, cut))
            clips, seconds = clips + len(made), seconds + found.seconds
        except FilmError as error:
            refused[film.id] = str(error)
    return {
        "out": str(out),
        "films": len(pending) - len(refused),
        "finished": len(chosen) - len(pending),
        "clips": clips,
        "hours": round(seconds / 3600, 2),
        "refused": refused,
    }


def summary(index: Index) -> dict[str, Any]:
    """Counts of what a folder holds, and the films that were refused."""
    rows = [row for shard in index.shards for row in shard.clips]
    return {
        "films": len({row.film for row in rows}),
        "clips": len(rows),
        "latents": sum(row.latents for row in rows),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "refused": index.refused,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """A result of ``prepare`` or ``survey``, for reading."""
    counts = ", ".join(
        f"{value} {key}" for key, value in result.items() if key not in ("out", "refused")
    )
    refused = [f"refused {film}: {reason}" for film, reason in result["refused"].items()]
    return [f"{result['out']}: {counts}", *refused]


def part_of(text: str) -> tuple[int, int]:
    """Number and count of a part.

    Raises:
        ValueError: another form.

    Example:
        >>> part_of("2/8")
        (2, 8)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--part {text}: expected two numbers, as in 2/8")
    return int(number), int(count)


def lengths(count: int, geometry: Geometry, cut: Cut) -> list[int]:
    """Latents of each clip that a film of ``count`` pixel frames makes.

    Example:
        >>> cut = Cut(latents=42, min_latents=21, min_s=0, shard_mib=1)
        >>> lengths(165 + 90, Geometry(), cut)
        [42, 23]
    """
    whole, rest = divmod(count, geometry.pixel_frames(cut.latents))
    tail = 1 + (rest - 1) // geometry.vae_stride[0] if rest else 0
    return [cut.latents] * whole + ([tail] if tail >= cut.min_latents else [])


def cut_pieces(shown: Iterator[Shown], geometry: Geometry, cut: Cut) -> Iterator[Piece]:
    """Clips of a film, one after the other; holds the frames of one.

    Raises:
        FilmError: the film is damaged; the clips before that hold.
    """
    size, first = geometry.pixel_frames(cut.latents), 0
    held: list[Shown] = []
    for frame in shown:
        held.append(frame)
        if len(held) == size:
            yield _piece(held, first)
            first, held = first + size, []
    for latents in lengths(len(held), geometry, cut):
        yield _piece(held[: geometry.pixel_frames(latents)], first)


def _piece(held: Sequence[Shown], first: int) -> Piece:
    import numpy as np

    stacked = np.stack([frame.rgb_YXC for frame in held])
    return Piece(stacked, first, held[0].source, held[-1].source + 1)


def _too_short(count: int, geometry: Geometry, cut: Cut) -> str:
    return (
        f"too short: {count} frames at {geometry.fps} a second, expected "
        f"{geometry.pixel_frames(cut.min_latents)} for {cut.min_latents} latents"
    )


def _checked(film: Film, cut: Cut, max_bytes: int) -> FilmInfo:
    """What a film holds, if nothing speaks against it."""
    if film.reason:
        raise FilmError(film.reason)
    try:
        check_text(film.text, max_bytes)
    except ValueError as error:
        raise FilmError(str(error)) from error
    found = probe(film.path)
    if found.seconds < cut.min_s:
        raise FilmError(f"too short: {found.seconds:.2f} s, expected {cut.min_s:g} s or more")
    return found


class _Encoder:
    """Films to clips of latents."""

    def __init__(
        self, experiment: Experiment, cut: Cut, codec: Codec, text: TextEncoder | None
    ) -> None:
        self._geometry, self._cut = experiment.geometry, cut
        self._max_bytes = experiment.text.max_bytes
        self._codec, self._text = codec, text

    def clips(
        self, film: Film, had: Sequence[ClipRow]
    ) -> Iterator[tuple[ClipRow, Tensor, Tensor | None]]:
        """The clips of a film behind those that it ``had``, encoded one by one."""
        found = _checked(film, self._cut, self._max_bytes)
        try:
            sha256 = file_sha256(film.path)
        except OSError as error:
            raise FilmError(f"cannot be read: {error.strerror}") from error
        if had and had[0].sha256 != sha256:
            raise FilmError("changed since its first clips were made; choose another --out")
        text_SE = None if self._text is None else self._text.encode([film.text])[0].bfloat16()
        count = 0
        try:
            for count, piece in enumerate(self._pieces(film), 1):
                if count <= len(had):
                    continue
                latents_FCXY = self._latents(piece)
                row = _row(film, piece, found, sha256, (count - 1, len(latents_FCXY)))
                yield row, latents_FCXY, text_SE
        except FilmError as error:
            raise FilmError(f"{error}; clips kept: {count}") from error
        if not count:
            seen = round(found.seconds * self._geometry.fps)
            raise FilmError(_too_short(seen, self._geometry, self._cut))

    def _pieces(self, film: Film) -> Iterator[Piece]:
        size = self._geometry
        shown = frames(film.path, fps=size.fps, height=size.height, width=size.width)
        return cut_pieces(shown, size, self._cut)

    def _latents(self, piece: Piece) -> Tensor:
        frames_BRYXC = torch.from_numpy(piece.frames_RYXC)[None]
        return self._codec.encode(frames_BRYXC)[0].to("cpu", torch.bfloat16)


def _row(
    film: Film, piece: Piece, found: FilmInfo, sha256: str, number_and_latents: tuple[int, int]
) -> ClipRow:
    number, latents = number_and_latents
    return ClipRow(
        film=film.id,
        sha256=sha256,
        piece=number,
        latents=latents,
        first=piece.first,
        frames=len(piece.frames_RYXC),
        source_first=piece.source_first,
        source_end=piece.source_end,
        source_fps=found.fps,
        source_height=found.height,
        source_width=found.width,
        text=film.text,
    )


def _settings(
    experiment: Experiment, cut: Cut, codec: Codec, text: TextEncoder | None
) -> dict[str, Any]:
    geometry = experiment.geometry
    return {
        "codec": {**asdict(codec.spec), "strides": list(codec.spec.strides)},
        "fps": geometry.fps,
        "height": geometry.height,
        "width": geometry.width,
        **asdict(cut),
        "part": list(cut.part),
        "text": None if text is None else text.sha256,
    }


@contextmanager
def _progress(films: int) -> Generator[Any]:
    """A function to call with films and pixel frames that are done; tells of them on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("film {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    began = told = time.monotonic()
    done = frames = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=films, rate=0.0)

        def advance(finished: int, pixel_frames: int) -> None:
            nonlocal done, frames, told
            done, frames, now = done + finished, frames + pixel_frames, time.monotonic()
            rate = frames / max(now - began, 1e-6)
            bar.update(task, advance=finished, rate=rate)
            ended = finished and done == films
            if not console.is_terminal and (now - told >= QUIET_S or ended):
                logger.info("film %d/%d, %.1f frames/s", done, films, rate)
                told = now

        yield advance
