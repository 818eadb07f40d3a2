"""Sink + slow + fast memory of latent frames: every preset is one configuration of it.

Dims: B batch, N layers, F new frames, T remembered frames, P tokens a frame, H heads, D head dim.

Storage is one preallocated buffer whose frame slots never move: sink, then fast and slow as rings.
Attention is free of order given positions, so nothing is shifted.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Geometry, MemoryConfig, ModelConfig
from cfmodel.memory import select
from cfmodel.memory.base import FrameSlot, Role, to_device
from cfmodel.memory.positions import Placement, place
from cfmodel.nn.attention import ChunkKV, KVView

GROWTH_CHUNKS = 16
"""Chunks by which an endless memory grows, so that a commit seldom copies it."""


class Promotion(NamedTuple):
    """One test of a candidate, kept for histograms. ``cosine`` is None under a uniform rule."""

    chunk: int
    layer: int
    sample: int
    cosine: float | None
    kept: bool


class _Held(NamedTuple):
    frame: int
    role: Role
    slot: int


class _Row(NamedTuple):
    """Bookkeeping of one film in one layer, by slot of the buffer."""

    positions: tuple[int, ...]
    present: tuple[bool, ...]
    query: tuple[int, ...]


class _Layout(NamedTuple):
    """What a view of one layer is made of: slots as a count of the first, or as an index."""

    slots: int | Tensor
    positions_BT: Tensor
    queries_BF: Tensor
    valid_BT: Tensor | None


def _take(x_BT: Tensor, slots: int | Tensor) -> Tensor:
    return x_BT[:, :slots] if isinstance(slots, int) else x_BT.index_select(1, slots)


class SlotMemory:
    """The memory of a batch of films. Decisions are per film: none depends on its batch mates.

    ``fast`` counts the chunk being generated, so ``fast - new frames`` past frames are held there;
    frames of the sink are not held twice. The first latent of a promoted chunk is copied to slow
    memory, and stays in fast memory too until it leaves the window.

    Args:
        padded: views always show every slot of the buffer, absent ones masked, so that all chunks
            of a film have one shape; for compiled training, not for an endless memory.

    Attributes:
        promotions: every test of a candidate so far.

    Source: arXiv:2602.06028 section 3; deviations: promotion is tested once a chunk, at the clean
    commit, against the previous committed chunk, and at a two-chunk interval.
    """

    def __init__(
        self,
        config: MemoryConfig,
        geometry: Geometry,
        model: ModelConfig,
        *,
        batch: int,
        device: torch.device | str,
        dtype: torch.dtype,
        padded: bool = False,
    ) -> None:
        if padded and config.fast is None:
            raise ValueError("memory.fast=None has no fixed size; use padded=False")
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least one film")
        if config.fast is not None and config.fast < geometry.chunk:
            raise ValueError(
                f"memory.fast={config.fast} is smaller than geometry.chunk={geometry.chunk}; "
                f"use >= {geometry.chunk}"
            )
        self.config = config
        self.geometry = geometry
        self.batch = batch
        self.layers = model.layers
        self._padded = padded
        self._device = torch.device(device)
        chunk = geometry.chunk
        self._past = None if config.fast is None else config.fast - chunk
        size = config.sink + config.slow
        size += GROWTH_CHUNKS * chunk if self._past is None else self._past
        # Endless fast memory is last, so that it can grow; otherwise slow is, since it fills last
        # and what is held is then a prefix, which needs no copy.
        self._fast_at = config.sink + (config.slow if self._past is None else 0)
        self._slow_at = config.sink + (0 if self._past is None else self._past)
        shape = (model.layers, batch, size, geometry.tokens_per_frame, model.heads, model.head_dim)
        self._k = torch.zeros(shape, device=self._device, dtype=dtype)
        self._v = torch.zeros(shape, device=self._device, dtype=dtype)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the buffers stay."""
        self._frames = 0
        self._slow = [
            [deque[tuple[int, int]](maxlen=self.config.slow) for _ in range(self.batch)]
            for _ in range(self.layers)
        ]
        self._promoted = [[0] * self.batch for _ in range(self.layers)]
        self._means: Tensor | None = None
        self._layouts: dict[int, list[_Layout]] = {}
        self.promotions: list[Promotion] = []

    @property
    def frames(self) -> int:
        """Latent frames committed so far."""
        return self._frames

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, for a run that goes on later; the history of tests is not."""
        return {
            "k": self._k, "v": self._v, "means": self._means, "frames": self._frames,
            "slow": [[list(film) for film in layer] for layer in self._slow],
            "promoted": self._promoted,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave to a memory of the same sizes."""
        self.reset()
        self._k, self._v = (state[name].to(self._device) for name in ("k", "v"))
        means = state["means"]
        self._means = None if means is None else means.to(self._device)
        self._frames = state["frames"]
        self._promoted = [list(layer) for layer in state["promoted"]]
        for layer, films in zip(self._slow, state["slow"], strict=True):
            for held, entries in zip(layer, films, strict=True):
                held.extend((frame, slot) for frame, slot in entries)

    def slots(self, layer: int, sample: int = 0) -> tuple[FrameSlot, ...]:
        """What a layer remembers of one film, sink, slow, fast, each oldest first.

        Positions are those of the next chunk's view.
        """
        held = self._held(layer, sample)
        positions = self._place(held, self.geometry.chunk).memory
        return tuple(
            FrameSlot(item.frame, item.role, position)
            for item, position in zip(held, positions, strict=True)
        )

    def view(self, layer: int, new_frames: int) -> KVView:
        """What a layer may attend to while ``new_frames`` are denoised; valid until ``commit``.

        Raises:
            ValueError: ``new_frames`` is not in 1..chunk.
        """
        if not 1 <= new_frames <= self.geometry.chunk:
            raise ValueError(f"new_frames={new_frames}: expected 1 to {self.geometry.chunk}")
        if new_frames not in self._layouts:
            self._layouts[new_frames] = self._lay_out(new_frames)
        layout = self._layouts[new_frames][layer]
        return KVView(
            k_BKHD=_take(self._k[layer], layout.slots).flatten(1, 2),
            v_BKHD=_take(self._v[layer], layout.slots).flatten(1, 2),
            positions_BT=layout.positions_BT,
            query_positions_BF=layout.queries_BF,
            valid_BT=layout.valid_BT,
        )

    @torch.no_grad()
    def commit(self, chunk: ChunkKV) -> None:
        """Take in a finished chunk: fill the sink, promote, and move the window.

        The device is waited for at most once, and only to test a candidate by surprisal.

        Raises:
            RuntimeError: the chunk does not follow the last one, or its layers, batch or tokens
                are not this memory's.
        """
        self._check(chunk)
        size, first = self.geometry.chunk, chunk.first_frame
        frames_k = [k.unflatten(1, (size, -1)) for k in chunk.k]
        frames_v = [v.unflatten(1, (size, -1)) for v in chunk.v]
        self._reserve(first + size)
        for offset in range(size):
            slot = self._slot_of(first + offset, first + size)
            if slot is not None:
                for layer in range(self.layers):
                    self._k[layer, :, slot] = frames_k[layer][:, offset]
                    self._v[layer, :, slot] = frames_v[layer][:, offset]
        self._promote(chunk, frames_k, frames_v)
        self._frames = first + size
        self._layouts = {}

    def _check(self, chunk: ChunkKV) -> None:
        if chunk.first_frame != self._frames:
            raise RuntimeError(
                f"chunk starts at frame {chunk.first_frame}, but {self._frames} frames are "
                "committed; commit every chunk once and in order"
            )
        tokens = self.geometry.chunk * self.geometry.tokens_per_frame
        expected = (self.batch, tokens, *self._k.shape[-2:])
        found = {tuple(tensor.shape) for tensor in (*chunk.k, *chunk.v)}
        if len(chunk.k) != self.layers or len(chunk.v) != self.layers or found != {expected}:
            raise RuntimeError(
                f"chunk has {len(chunk.k)} layers of {sorted(found)}; expected {self.layers} of "
                f"{expected}"
            )

    def _reserve(self, frames: int) -> None:
        needed = self._fast_at + frames - self.config.sink
        if self._past is not None or needed <= self._k.shape[2]:
            return
        grown = list(self._k.shape)
        grown[2] += GROWTH_CHUNKS * self.geometry.chunk
        for name in ("_k", "_v"):
            old: Tensor = self.__dict__[name]
            new = old.new_zeros(grown)
            new[:, :, : old.shape[2]] = old
            self.__dict__[name] = new

    def _slot_of(self, frame: int, end: int) -> int | None:
        """Where a frame lives once frames up to ``end`` are committed; None if it is not kept."""
        if frame < self.config.sink:
            return frame
        if self._past is None:
            return self._fast_at + frame - self.config.sink
        if frame < end - self._past:
            return None
        return self._fast_at + (frame - self.config.sink) % self._past

    def _promote(self, chunk: ChunkKV, frames_k: list[Tensor], frames_v: list[Tensor]) -> None:
        promotion, index = self.config.promotion, chunk.first_frame // self.geometry.chunk
        if not self.config.slow:
            return
        surprisal = select.by_surprisal(promotion)
        means = select.stack_means(chunk.k) if surprisal else None
        previous, self._means = self._means, means
        if not select.is_candidate(index, promotion):
            return
        kept = [[True] * self.batch for _ in range(self.layers)]
        cosines: list[list[float]] | None = None
        if means is not None and previous is not None:
            cosines = select.surprisal_cosines(means, previous, self.config.decision).tolist()
            kept = select.promotions(cosines, self.config.tau)
        for layer in range(self.layers):
            rows, slots = list[int](), list[int]()
            for sample in range(self.batch):
                cosine = None if cosines is None else cosines[layer][sample]
                keep = kept[layer][sample]
                self.promotions.append(Promotion(index, layer, sample, cosine, keep))
                if keep:
                    rows.append(sample)
                    slots.append(self._next_slot(layer, sample, chunk.first_frame))
            # One copy for all films: one a film would keep the device waiting for launches.
            if rows:
                at = to_device(torch.tensor([rows, slots]), self._device).unbind()
                self._k[layer].index_put_(at, frames_k[layer][at[0], 0])
                self._v[layer].index_put_(at, frames_v[layer][at[0], 0])

    def _next_slot(self, layer: int, sample: int, frame: int) -> int:
        """The slot in which a promoted frame goes, noted as its own."""
        # The ring's next slot is the oldest entry's once slow memory is full.
        slot = self._slow_at + self._promoted[layer][sample] % self.config.slow
        self._slow[layer][sample].append((frame, slot))
        self._promoted[layer][sample] += 1
        return slot

    def _held(self, layer: int, sample: int) -> list[_Held]:
        end = self._frames
        sink = min(self.config.sink, end)
        first_fast = sink if self._past is None else max(sink, end - self._past)
        fast = [(frame, self._slot_of(frame, end)) for frame in range(first_fast, end)]
        return [
            *(_Held(frame, "sink", frame) for frame in range(sink)),
            *(_Held(frame, "slow", slot) for frame, slot in self._slow[layer][sample]),
            *(_Held(frame, "fast", slot) for frame, slot in fast if slot is not None),
        ]

    def _place(self, held: list[_Held], new_frames: int) -> Placement:
        return place(
            self.config.positions,
            tuple(item.frame for item in held if item.role == "sink"),
            tuple(item.frame for item in held if item.role != "sink"),
            committed=self._frames,
            new_frames=new_frames,
            capacity=self.config.capacity,
        )

    def _row(self, held: list[_Held], new_frames: int) -> _Row:
        placement = self._place(held, new_frames)
        positions, present = [0] * self._k.shape[2], [False] * self._k.shape[2]
        for item, position in zip(held, placement.memory, strict=True):
            positions[item.slot], present[item.slot] = position, True
        return _Row(tuple(positions), tuple(present), placement.query)

    def _lay_out(self, new_frames: int) -> list[_Layout]:
        """Positions of all layers, sent to the device in one copy for each kind of tensor."""
        # With one decision for all, every layer holds the same frames.
        layers = 1 if self.config.decision == "shared" else self.layers
        rows_of: dict[tuple[tuple[int, int], ...], _Row] = {}
        rows: list[_Row] = []
        for layer in range(layers):
            for sample in range(self.batch):
                # Only slow memory differs between layers and films, so most rows are shared.
                key = tuple(self._slow[layer][sample])
                if key not in rows_of:
                    rows_of[key] = self._row(self._held(layer, sample), new_frames)
                rows.append(rows_of[key])
        positions_NBT = self._by_layer([row.positions for row in rows], torch.int64)
        queries_NBF = self._by_layer([row.query for row in rows], torch.int64)
        present_NBT = self._by_layer([row.present for row in rows], torch.bool)
        # Layers that hold the same frames share one layout, and so all that is made from it.
        layouts: dict[tuple[_Row, ...], _Layout] = {}
        order: list[_Layout] = []
        for layer in range(layers):
            films = tuple(rows[layer * self.batch : (layer + 1) * self.batch])
            if films not in layouts:
                layouts[films] = self._layout(
                    films, positions_NBT[layer], queries_NBF[layer], present_NBT[layer]
                )
            order.append(layouts[films])
        return order * (self.layers // layers)

    def _layout(
        self,
        films: tuple[_Row, ...],
        positions_BT: Tensor,
        queries_BF: Tensor,
        present_BT: Tensor,
    ) -> _Layout:
        if self._padded:
            return _Layout(self._k.shape[2], positions_BT, queries_BF, present_BT)
        held = {film.present for film in films}
        used = [slot for slot in range(self._k.shape[2]) if any(film[slot] for film in held)]
        slots = len(used)
        if used != list(range(slots)):
            slots = to_device(torch.tensor(used), self._device)
        valid_BT = _take(present_BT, slots) if len(held) > 1 else None
        return _Layout(slots, _take(positions_BT, slots), queries_BF, valid_BT)

    def _by_layer(self, rows: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
        host = torch.tensor(rows, dtype=dtype).view(
            len(rows) // self.batch, self.batch, len(rows[0])
        )
        return to_device(host, self._device)
