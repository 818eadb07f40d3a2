"""Shards of latents on disk: the format, its index, and writing them.

A folder has safetensors files of bounded size and ``index.json``, which says what each clip is.

Dims: F latent frames, C latent channels, X Y latent rows and columns, S text tokens, E text width.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from cfmodel.io.weights import METADATA, write_atomic

SHARD = "shard-{:05d}.safetensors"
SCHEMA = 1
INDEX = "index.json"
HINT = "run cfmodel prepare again"


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """A clip: consecutive pixel frames of a film, encoded as a film of their own.

    Attributes:
        film: id of the film.
        sha256: hash of the film's file.
        piece: how many clips of the film come before it.
        latents: latent frames.
        first: first pixel frame, counted at the rate of the latents.
        frames: pixel frames.
        source_first: first of the film's own pictures.
        source_end: one after the last of them.
        source_fps: the film's own rate.
        source_height: rows as stored.
        source_width: columns as stored.
        text: caption.
    """

    film: str
    sha256: str
    piece: int
    latents: int
    first: int
    frames: int
    source_first: int
    source_end: int
    source_fps: float
    source_height: int
    source_width: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of clips; clip k's latents are the tensor ``clip_name(k)``."""

    name: str
    sha256: str
    bytes: int
    clips: tuple[ClipRow, ...]


@dataclass(kw_only=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        settings: everything that decides what the latents of given films are.
        shards: the files, in order.
        finished: ids of films of which every clip is there.
        refused: id and reason of films that could not be used.
        complete: whether every film was finished or refused.
    """

    settings: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def save(self, folder: Path) -> None:
        """Writes the index into its folder, atomically.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        tree = {"schema": SCHEMA, **asdict(self)}
        write_atomic(folder / INDEX, json.dumps(tree, sort_keys=True, indent=0).encode())


def clip_name(number: int) -> str:
    """Name of a clip's latents (F, C, X, Y), bfloat16, in its shard."""
    return f"clip.{number:05d}"


def text_name(text: str) -> str:
    """Name of an embedded caption (S, E), bfloat16, in the shards of its clips."""
    return f"text.{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def load_index(folder: Path) -> Index:
    """The index of a folder.

    Raises:
        ValueError: none there, damaged, or of another schema.
    """
    path = folder / INDEX
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        schema = tree.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}, but this version reads {SCHEMA}")
        shards: list[Shard] = []
        for shard in tree.pop("shards"):
            rows = shard.pop("clips")
            shards.append(Shard(clips=tuple(ClipRow(**row) for row in rows), **shard))
        return Index(shards=shards, **tree)
    except OSError as error:
        raise ValueError(f"{folder} holds no prepared films ({error.strerror}); {HINT}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of prepared films ({error}); {HINT}") from error


def index_of(out: Path, settings: dict[str, Any]) -> Index:
    """The index of a folder that is empty or was begun with the same settings; writes nothing.

    Raises:
        ValueError: it holds something else, has other settings, or lacks a shard.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    if not (out / INDEX).exists():
        there = set(out.iterdir()) - set(_parts(out)) if out.exists() else set[Path]()
        if there:
            name = min(there).name
            raise ValueError(f"--out {out} holds {name} and no {INDEX}; name a new folder")
        return Index(settings=settings)
    index = load_index(out)
    for key, value in settings.items():
        if index.settings.get(key) != value:
            raise ValueError(
                f"--out {out} was prepared with {key}={index.settings.get(key)}, not {value}; "
                "choose another --out"
            )
    for shard in index.shards:
        path = out / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise ValueError(f"{path} is not as it was written; remove {out} and prepare again")
    return index


def open_folder(out: Path, settings: dict[str, Any]) -> Index:
    """The same, and the folder is ready to be written to.

    Raises:
        ValueError: it holds something else, has other settings, or lacks a shard.
        OSError: it cannot be written.
    """
    index = index_of(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    for part in _parts(out):
        part.unlink()
    index.save(out)
    return index


def _parts(out: Path) -> list[Path]:
    """What a killed run was writing."""
    return [*out.glob(".shard-*.part"), *out.glob(f".{INDEX}.*.part")]


class ShardWriter:
    """Clips to shards. A shard is on disk before the index names it.

    Args:
        folder: where they go; it exists.
        index: of the folder; every new shard is added to it.
        limit: bytes of a shard's tensors, which only a single clip may exceed.
    """

    def __init__(self, folder: Path, index: Index, limit: int) -> None:
        self._folder, self._index, self._limit = folder, index, limit
        self._rows: list[ClipRow] = []
        self._tensors: dict[str, Tensor] = {}
        self._had: dict[str, list[ClipRow]] = {}
        for shard in index.shards:
            for row in shard.clips:
                self._had.setdefault(row.film, []).append(row)

    def rows_of(self, film: str) -> list[ClipRow]:
        """Clips of a film that an earlier run wrote."""
        return self._had.get(film, [])

    def add(self, row: ClipRow, latents_FCXY: Tensor, text_SE: Tensor | None) -> None:
        """Holds a clip, and writes those held before it if there is no room for it.

        Raises:
            OSError: the disk is full.
        """
        new = {} if text_SE is None else {text_name(row.text): text_SE}
        size = sum(t.nbytes for t in (self._tensors | new).values()) + latents_FCXY.nbytes
        if self._rows and size > self._limit:
            self.flush()
        self._tensors |= {**new, clip_name(len(self._rows)): latents_FCXY}
        self._rows.append(row)

    def flush(self) -> None:
        """Writes the clips held, if there are any, and the index.

        Raises:
            OSError: the disk is full.
        """
        if self._rows:
            name = SHARD.format(len(self._index.shards))
            tensors = {key: value.contiguous() for key, value in self._tensors.items()}
            # One entry: safetensors writes several in no fixed order, and equal shards are equal
            # files.
            about = json.dumps([asdict(row) for row in self._rows], sort_keys=True)
            data = save(tensors, {METADATA: about})
            write_atomic(self._folder / name, data)
            sha256 = hashlib.sha256(data).hexdigest()
            self._index.shards.append(
                Shard(name=name, sha256=sha256, bytes=len(data), clips=tuple(self._rows))
            )
            self._rows, self._tensors = [], {}
        self._index.save(self._folder)
