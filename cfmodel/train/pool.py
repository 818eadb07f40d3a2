"""Pools on the device: rings of rendered or encoded clips, refilled while they are read.

Dims: B clips, R pixel frames, F latent frames, G texts, S text tokens, E text width.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cfmodel.config import Geometry
from cfmodel.devices import World
from cfmodel.tinyworld.render import render
from cfmodel.tinyworld.tracks import Tracks
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET, Batch, ContextBatch
from cfmodel.train.draws import Draws

Units = dict[str, Tensor]
"""Equally many rows of a few named columns."""

ALONE = World(0, 1)
RENDER_BLOCK = 3072  # frames; bounds the renderer's memory

T = TypeVar("T")


@torch.no_grad()
def pixels(tracks: Tracks, geometry: Geometry, device: torch.device) -> Tensor:
    """Pixels (N, 3, Y, X) in [0, 1] of frames, on the device."""
    there = tracks.to(device)
    size = (geometry.height, geometry.width)
    parts = range(0, len(there), RENDER_BLOCK)
    return torch.cat([render(there[k : k + RENDER_BLOCK], *size).rgb for k in parts])


def render_clips(batch: Batch, geometry: Geometry, device: torch.device) -> Tensor:
    """Pixels (B, R, 3, Y, X) in [0, 1] of a batch's clips, on the device."""
    return pixels(batch.tracks, geometry, device).unflatten(0, (len(batch), -1))


class Ring:
    """Units on a device: new ones take the place of the oldest.

    Attributes:
        filled: how many are held.
        taken: how many were ever put in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.filled, self.taken = 0, 0
        self._columns: Units = {}

    def put(self, units: Units) -> None:
        """Adds units."""
        count = len(next(iter(units.values())))
        if not self._columns:
            self._columns = {
                name: torch.empty(self.capacity, *x.shape[1:], dtype=x.dtype, device=x.device)
                for name, x in units.items()
            }
        where = (self.taken + torch.arange(count)) % self.capacity
        for name, column in self._columns.items():
            column[where.to(column.device)] = units[name]
        self.taken += count
        self.filled = min(self.filled + count, self.capacity)

    def draw(self, count: int, random: torch.Generator, world: World = ALONE) -> Units:
        """Random units, with repetition; each of several processes gets others of one draw.

        Raises:
            RuntimeError: nothing was put in yet.
        """
        if not self.filled:
            raise RuntimeError("the pool is empty; fill it first")
        size = (count * world.size,)
        pick = world.mine(torch.randint(self.filled, size, generator=random, device=random.device))
        return {name: column[pick.to(column.device)] for name, column in self._columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the units held, in their places."""
        held = {name: column[: self.filled] for name, column in self._columns.items()}
        return {"filled": self.filled, "taken": self.taken, "columns": held}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restores what ``state_dict`` gave, on a device."""
        self.filled, self.taken = state["filled"], state["taken"]
        self._columns = {}
        for name, held in state["columns"].items():
            column = torch.empty(self.capacity, *held.shape[1:], dtype=held.dtype, device=device)
            column[: self.filled] = held.to(device)
            self._columns[name] = column


class Embedder(Protocol):
    """Codec and text encoder, frozen."""

    def encode(self, rgb: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y) of pixels (B, R, 3, Y, X)."""
        ...

    def embed(self, texts: list[str]) -> Tensor:
        """Embedded texts (N, S, E)."""
        ...


class ClipPool(Generic[T]):
    """Ring of encoded clips.

    Args:
        stream: endless batches from a number on.
        make: a batch as units, on the device; floating point is kept as bfloat16.
        capacity: clips held.
        draws: which clips are read.
        fill: clips that ``fill`` makes.
    """

    def __init__(
        self,
        stream: Callable[[int], Iterator[T]],
        make: Callable[[T], Units],
        *,
        capacity: int,
        draws: Draws,
        fill: int = 0,
    ) -> None:
        self._open, self._make, self._draws, self._fill = stream, make, draws, fill
        self._ring = Ring(capacity)
        self._stream: Iterator[T] | None = None
        self._batches = 0

    @property
    def distinct(self) -> int:
        """Clips made so far."""
        return self._ring.taken

    def fill(self) -> None:
        """Makes clips until the number is reached from which training may begin."""
        while self.distinct < self._fill:
            self.refill()

    def refill(self) -> None:
        """Makes and stores one batch of the stream."""
        if self._stream is None:
            self._stream = self._open(self._batches)
        units = self._make(next(self._stream))
        self._batches += 1
        self._ring.put(
            {n: x.to(torch.bfloat16) if x.is_floating_point() else x for n, x in units.items()}
        )

    def read(self, batch: int) -> Units:
        """Random clips of those held; floating point as float32."""
        units = self._ring.draw(batch, self._draws.generator, self._draws.world)
        return {n: x.float() if x.is_floating_point() else x for n, x in units.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: clips, place in the stream, and which are read next."""
        return {
            "ring": self._ring.state_dict(),
            "draws": self._draws.state_dict(),
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self._ring.load_state_dict(state["ring"], self._draws.device)
        self._draws.load_state_dict(state["draws"])
        self._batches, self._stream = state["batches"], None


def embedded(embedder: Embedder, texts: list[tuple[str, ...]], device: torch.device) -> Tensor:
    """Embedded texts (B, G, S, E) of rows of texts, each distinct text embedded once."""
    unique = sorted({text for row in texts for text in row})
    place = {text: k for k, text in enumerate(unique)}
    index = torch.tensor([[place[text] for text in row] for row in texts], device=device)
    return embedder.embed(unique)[index]


def clip_units(
    embedder: Embedder, geometry: Geometry, device: torch.device
) -> Callable[[Batch], Units]:
    """Maker of contiguous clips: ``x0`` (B, F, C, X, Y) and ``text`` (B, G, S, E), one a chunk."""

    def make(batch: Batch) -> Units:
        rgb = render_clips(batch, geometry, device)
        return {"x0": embedder.encode(rgb), "text": embedded(embedder, batch.texts, device)}

    return make


def context_units(
    embedder: Embedder, geometry: Geometry, device: torch.device
) -> Callable[[ContextBatch], Units]:
    """Maker of context clips.

    Units: ``x0`` (B, 42, C, X, Y), zeros in slots that hold nothing; ``text`` (B, 42, S, E), one a
    latent; ``valid`` (B, 42) which latents there are; ``returning`` (B,).

    Source: arXiv:2602.06028 section 5 as released: slow latents are encoded alone, with one frame
    before them, and so is the tail.
    """

    def encode(tracks: Tracks, count: int) -> Tensor:
        rgb = pixels(tracks, geometry, device).unflatten(0, (count, -1))
        return embedder.encode(rgb)

    def make(batch: ContextBatch) -> Units:
        count = len(batch)
        sink = encode(batch.sink_tracks, count)
        whole = encode(batch.tail_tracks, count)
        tail = whole[:, 1:]
        slow = sink.new_zeros(count, SLOW, *sink.shape[2:])
        valid = torch.ones(count, CONTEXT + TARGET, dtype=torch.bool, device=device)
        valid[:, SINK : SINK + SLOW] = False
        if len(batch.slow):
            clip, slot = batch.slow.to(device).unbind(1)
            slow[clip, slot] = encode(batch.slow_tracks, len(batch.slow))[:, 1]
            valid[clip, SINK + slot] = True
        # Before a beginning nothing comes: what lies there is of the target itself, out of sight.
        opening = batch.opening.to(device)
        first = torch.cat([whole[:, TARGET:-1], whole[:, :TARGET]], 1)
        tail = torch.where(opening[:, None, None, None, None], first, tail)
        valid[opening, :CONTEXT] = False
        return {
            "x0": torch.cat([sink, slow, tail], 1),
            "text": embedded(embedder, batch.texts, device),
            "valid": valid,
            "returning": batch.returning.to(device),
        }

    assert SINK + SLOW + LOCAL == CONTEXT, "the parts of a context clip"
    return make
