"""Prepared films as training clips: random windows, and context clips of long films.

Prepared clips follow each other in their film, each encoded as a film of its own: its first latent
holds one pixel frame, all others four. Here a window lies in one clip; a context clip takes its
sink and slow latents from the clips of the film before that as well.

Dims: B clips, F latent frames, C latent channels, X Y latent rows and columns.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cfmodel.config import seed_for
from cfmodel.memory.select import is_candidate
from cfmodel.train.data import (
    CONTEXT,
    KEPT_ALL,
    KEPT_MOVING,
    KEPT_QUIET,
    LOCAL,
    SINK,
    SLOW,
    TARGET,
)
from cfmodel.train.pool import Embedder, Units, embedded
from cfmodel.train.shards import LatentShards

HELD_OUT_OF = 20
"""One film of so many is never trained on."""
TAIL = LOCAL + TARGET
SEEDS = 2**63


class Take(NamedTuple):
    """Columns of one clip, without the axis B, and its texts."""

    columns: Units
    texts: tuple[str, ...]


@dataclass
class Takes:
    """Columns (B, ...) of clips, and the texts of each."""

    columns: Units
    texts: list[tuple[str, ...]]


def stack_takes(takes: Sequence[Take]) -> Takes:
    """Takes as a batch."""
    names = takes[0].columns
    columns = {name: torch.stack([take.columns[name] for take in takes]) for name in names}
    return Takes(columns, [take.texts for take in takes])


class Split(NamedTuple):
    """Clips by index, to train on and to measure on, and how many films are in neither."""

    train: list[int]
    held_out: list[int]
    left_out: int


def split(shards: LatentShards, fit: Collection[int], need: str) -> Split:
    """Parts films into those to train on and those to measure on, by the hash of their file.

    A film is in the same part for every stage, except where no film would be left in one of them.

    Args:
        shards: all clips.
        fit: those that the stage can use.
        need: what it needs of them, for the message.

    Raises:
        ValueError: fewer than two films have such a clip.
    """
    films: dict[str, list[int]] = {}
    usable, left_out = set(fit), 0
    for film in shards.films:
        kept = [index for index in film if index in usable]
        left_out += not kept
        if kept:
            films.setdefault(shards.rows[kept[0]].sha256, []).extend(kept)
    if len(films) < 2:
        raise ValueError(
            f"{len(films)} of {len(shards.films)} films hold {need}, but two must, one of them to "
            "measure on; prepare more or longer films, or with a larger --latents"
        )
    order = {sha256: seed_for("held-out-film", sha256) for sha256 in films}
    held_out = {sha256 for sha256 in films if order[sha256] < SEEDS // HELD_OUT_OF}
    if not held_out or len(held_out) == len(films):
        held_out = {min(films, key=lambda sha256: order[sha256])}
    return Split(
        [index for sha256, film in films.items() if sha256 not in held_out for index in film],
        [index for sha256, film in films.items() if sha256 in held_out for index in film],
        left_out,
    )


class WindowTakes(Dataset[Take]):
    """Random windows of clips.

    Item ``epoch * len(clips) + k`` is a window of clip k. Columns: ``x`` (3 + F, C, X, Y), the
    window and the latents before it, zeros where there are none; ``lead`` (), how many there are.

    Args:
        shards: all clips.
        clips: indices of those to take windows of, each of ``latents`` latents or more.
        latents: of a window.
        chunk: latents that share a text.
        stream: name of the seeds.
    """

    def __init__(
        self, shards: LatentShards, clips: Sequence[int], *, latents: int, chunk: int, stream: str
    ) -> None:
        self.shards, self.clips, self.stream = shards, clips, stream
        self._latents, self._groups = latents, latents // chunk

    @staticmethod
    def fitting(shards: LatentShards, latents: int) -> list[int]:
        """Clips that hold a window."""
        return [index for index, row in enumerate(shards.rows) if row.latents >= latents]

    def __getitem__(self, number: int) -> Take:
        """Take ``number``."""
        index, rng = _draw(self.clips, self.stream, number)
        row = self.shards.rows[index]
        start = rng.randint(0, row.latents - self._latents)
        lead = min(start, SINK)
        x = self.shards.latents(index, start - lead, start + self._latents)
        empty = x.new_zeros(SINK - lead, *x.shape[1:])
        columns = {"x": torch.cat([empty, x]), "lead": torch.tensor(lead)}
        return Take(columns, (row.text,) * self._groups)


class ContextTakes(Dataset[Take]):
    """Context clips: sink, slow latents, local context and target of one film.

    Item ``epoch * len(clips) + k`` has its local context and target in clip k, none of them the
    clip's first latent; its sink is the film's. What slow memory holds is drawn as in the tiny
    world, but without knowing where something moves: a share of the candidates between that of
    quiet holds and that of movement, sometimes all; the newest stay.

    Columns: ``x0`` (42, C, X, Y), zeros where a slot holds nothing, and ``valid`` (42,).

    Args:
        shards: all clips.
        clips: indices of those to take local context and target from.
        chunk: latents of a chunk; the first of each may enter slow memory.
        stream: name of the seeds.
    """

    def __init__(
        self, shards: LatentShards, clips: Sequence[int], *, chunk: int, stream: str
    ) -> None:
        self.shards, self.clips, self.stream = shards, clips, stream
        self._chunk = chunk
        self._film = {index: film for film in shards.films for index in film}

    @staticmethod
    def fitting(shards: LatentShards) -> list[int]:
        """Clips that hold local context and target, behind the film's sink."""
        return [
            index
            for film in shards.films
            for index in film
            if shards.rows[index].latents >= TAIL + _first(index == film[0])
        ]

    def __getitem__(self, number: int) -> Take:
        """Take ``number``."""
        index, rng = _draw(self.clips, self.stream, number)
        row, film = self.shards.rows[index], self._film[index]
        start = rng.randint(_first(index == film[0]), row.latents - TAIL)
        ends = list(accumulate(self.shards.rows[k].latents for k in film))
        before = ends[film.index(index)] - row.latents
        kept = self._kept(before + start, ends, rng)
        tail = self.shards.latents(index, start, start + TAIL)
        slow, valid = tail.new_zeros(SLOW, *tail.shape[1:]), torch.ones(CONTEXT + TARGET).bool()
        gap = SLOW - len(kept)
        valid[SINK : SINK + gap] = False
        for slot, frame in enumerate(kept, gap):
            piece = bisect_right(ends, frame)
            place = frame - (ends[piece - 1] if piece else 0)
            slow[slot] = self.shards.latents(film[piece], place, place + 1)[0]
        x0 = torch.cat([self.shards.latents(film[0], 0, SINK), slow, tail])
        texts = tuple(row.text if there else "" for there in valid.tolist())
        return Take({"x0": x0, "valid": valid}, texts)

    def _kept(self, local: int, ends: list[int], rng: random.Random) -> list[int]:
        """Latents of the film in slow memory when the local context begins at ``local``."""
        share = 1.0 if rng.random() < KEPT_ALL else rng.uniform(KEPT_QUIET, KEPT_MOVING)
        firsts = [c for c in range(local // self._chunk + 1) if is_candidate(c, "surprisal-2")]
        # A clip's first latent holds one pixel frame alone; the one behind it stands for it.
        frames = [c * self._chunk + (c * self._chunk in ends) for c in firsts]
        return [frame for frame in frames if frame < local and rng.random() < share][-SLOW:]


def _draw(clips: Sequence[int], stream: str, number: int) -> tuple[int, random.Random]:
    """The clip of a take, and what its window is drawn with."""
    return clips[number % len(clips)], random.Random(seed_for("take", stream, number))


def _first(opens_film: bool) -> int:
    """Where the local context may begin: behind the sink, or behind a later clip's first latent."""
    return SINK if opens_film else 1


class Reencoder(Embedder, Protocol):
    """Codec and text encoder, frozen; the codec decodes as well."""

    def reencode(self, latents: Tensor) -> Tensor:
        """The latent (B, 1, C, X, Y) of a film that begins with the last frame of these latents."""
        ...


def window_units(embedder: Reencoder, device: torch.device) -> Callable[[Takes], Units]:
    """Maker of windows: ``x0`` (B, F, C, X, Y) and ``text`` (B, G, S, E), one a chunk.

    A window in mid-clip begins with its first latent's last pixel frame, encoded as a film's first:
    as ``clip_units`` has it.
    """

    def make(takes: Takes) -> Units:
        x, lead = takes.columns["x"].to(device).float(), takes.columns["lead"]
        x0 = x[:, SINK:].clone()
        for count in range(1, SINK + 1):
            rows = (lead == count).nonzero().squeeze(1).to(device)
            if len(rows):
                x0[rows, :1] = embedder.reencode(x[rows, SINK - count : SINK + 1])
        return {"x0": x0, "text": embedded(embedder, takes.texts, device)}

    return make


def film_context_units(embedder: Embedder, device: torch.device) -> Callable[[Takes], Units]:
    """Maker of context clips as ``context_units`` has them, but for ``returning``: nobody knows."""

    def make(takes: Takes) -> Units:
        units = {name: column.to(device) for name, column in takes.columns.items()}
        return {**units, "text": embedded(embedder, takes.texts, device)}

    return make
