"""Sink + slow + fast memory of latent frames: every preset is one configuration of it.

Dims: B batch, N layers, F new frames, T remembered frames, P tokens a frame, H heads, D head dim.

Storage is preallocated buffers whose frame slots never move: sink, then fast and slow as rings.
Attention is free of order given positions, so nothing is shifted.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Geometry, MemoryConfig, ModelConfig
from cfmodel.memory import select
from cfmodel.memory.base import FrameSlot
from cfmodel.memory.buffers import Buffers, Place, Sizes
from cfmodel.memory.positions import Placement, place
from cfmodel.memory.views import Held, Layout, Row, lay_out, row_of, take
from cfmodel.nn.attention import ChunkKV, KVView

GROWTH_CHUNKS = 16
"""Chunks by which an endless memory grows, so that a commit seldom copies it."""
FLUSH_KEEPS = 2
CUT_TO = 45
"""Latents that a flush keeps beside the sink, and where a scene that is cut to begins in time.

Source: Infinity-RoPE.
"""
TESTS_KEPT = 1 << 16
"""Tests of candidates that are remembered, so that a film of any length needs bounded memory."""


class Promotion(NamedTuple):
    """One test of a candidate, kept for histograms. ``cosine`` is None under a uniform rule."""

    chunk: int
    layer: int
    sample: int
    cosine: float | None
    kept: bool


class SlotMemory:
    """The memory of a batch of films. Decisions are per film: none depends on its batch mates.

    ``fast`` counts the chunk being generated, so ``fast - new frames`` past frames are held there;
    frames of the sink are not held twice. The first latent of a promoted chunk is copied to slow
    memory, and stays in fast memory too until it leaves the window.

    ``buffers`` are where keys and values lie.

    Args:
        padded: views always show every slot of the buffer, absent ones masked, so that all chunks
            of a film have one shape; for compiled training, not for an endless memory.

    Source: arXiv:2602.06028 section 3; deviations unless the config says otherwise: promotion is
    tested once a chunk, at the clean commit, against the previous committed chunk, and at a
    two-chunk interval.
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
        self._most = (config.attend or chunk + config.sink) - config.sink
        sizes = Sizes(
            model.layers, batch, size, self._slow_at, config.slow, geometry.grid, config.pool,
            room=self._most, head=(model.heads, model.head_dim),
        )  # fmt: skip
        self.buffers = Buffers(sizes, self._device, dtype)
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
        self._layouts: dict[tuple[int, bool], list[Layout]] = {}
        self._since = 0
        self._is_cut = False
        self._tests = deque[Promotion](maxlen=TESTS_KEPT)

    @property
    def frames(self) -> int:
        """Latent frames committed so far."""
        return self._frames

    @property
    def promotions(self) -> list[Promotion]:
        """The latest tests of candidates, oldest first."""
        return list(self._tests)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, for a run that goes on later; the history of tests is not."""
        k, v = self.buffers.k, self.buffers.v
        return {
            "k": k, "v": v, "means": self._means, "frames": self._frames,
            "slow": [[list(film) for film in layer] for layer in self._slow],
            "promoted": self._promoted, "since": self._since,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave to a memory of the same sizes.

        Raises:
            ValueError: a state of a version that laid memories out otherwise.
        """
        self.reset()
        k, v = state["k"], state["v"]
        if k.ndim != self.buffers.k.ndim:
            raise ValueError("films in work of an older version; begin the stage anew with --fresh")
        self._reserve(state["frames"])
        # Room that an endless memory had beyond what it held is not needed again.
        held = min(k.shape[2], self.buffers.k.shape[2])
        self.buffers.load(k[:, :, :held], v[:, :, :held])
        means = state["means"]
        self._means = None if means is None else means.to(self._device)
        self._frames, self._since = state["frames"], state["since"]
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

    def view(self, layer: int, new_frames: int, *, clean: bool = False) -> KVView:
        """What a layer may attend to while ``new_frames`` are denoised; valid until ``commit``.

        Args:
            layer: of the network.
            new_frames: frames of the pass.
            clean: the view of the pass whose keys are committed.

        Raises:
            ValueError: ``new_frames`` is not in 1..chunk, or in 1..attend less the sink.
        """
        if not 1 <= new_frames <= self._most:
            raise ValueError(f"new_frames={new_frames}: expected 1 to {self._most}")
        if (new_frames, clean) not in self._layouts:
            self._layouts[new_frames, clean] = self._lay_out(new_frames, clean)
        layout = self._layouts[new_frames, clean][layer]
        buffers, held = self.buffers, layout.tokens
        count = held if isinstance(held, int) else held.shape[0]
        roomy = count + new_frames * self.geometry.tokens_per_frame
        return KVView(
            k_BKHD=take(buffers.k[layer], held),
            v_BKHD=take(buffers.v[layer], held),
            positions_BT=layout.positions_BT,
            query_positions_BF=layout.queries_BF,
            valid_BT=layout.valid_BT,
            pool=self.config.pool,
            pooled=layout.pooled,
            span=self._span(),
            turned_BKHD=buffers.turned(layer, roomy),
            roomy_v_BKHD=buffers.roomy_v(layer, roomy) if layout.is_free else None,
            settled=(
                self._past is not None and layout.is_free and layout.slots == buffers.sizes.slots
            ),
        )

    def _span(self) -> int | None:
        """What all positions are below, however long the film."""
        packed = self.config.positions in ("bounded", "window")
        return self.config.capacity if packed and not self._is_cut else None

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
        places = [
            place
            for offset in range(size)
            for place in self._in_all(offset, self._slot_of(first + offset, first + size))
        ]
        if self.config.filling == "dense":
            places += self._filling(range(first, first + size))
        if self._past is not None and self._past < size:
            # In so small a window a frame's slot is where another one's values were put as room.
            frames_v = [v.clone() for v in frames_v]
        self.buffers.put(places, frames_k, frames_v)
        self._promote(chunk, frames_k, frames_v)
        self._frames = first + size
        self._layouts = {}
        self._is_cut = False

    @torch.no_grad()
    def observe(self, chunk: ChunkKV) -> bool:
        """Test a pass of the chunk being denoised, where ``when`` is ``every-pass``.

        A promoted latent keeps the keys of the pass that tripped the test, and the passes after it
        read them.

        Returns:
            Whether what is remembered has changed; views are then to be made anew.

        Source: released behaviour of arXiv:2602.06028; deviations: there the pass that trips the
        test reads its own promoted latent already, and the cosine is a mean over the batch.
        """
        if self.config.when == "commit":
            return False
        self._check(chunk)
        size, before = self.geometry.chunk, [list(layer) for layer in self._promoted]
        frames_k = [k.unflatten(1, (size, -1)) for k in chunk.k]
        frames_v = [v.unflatten(1, (size, -1)) for v in chunk.v]
        self._promote(chunk, frames_k, frames_v)
        self._layouts = {}
        return before != self._promoted

    def flush(self) -> None:
        """Forget all but the sink and the last two latents."""
        self._since = max(self._since, self._frames - FLUSH_KEEPS)
        for layer in range(self.layers):
            for sample in range(self.batch):
                self._slow[layer][sample].clear()
                self._promoted[layer][sample] = 0
        self._layouts = {}

    def cut(self) -> None:
        """Flush, and put the next chunk far away in time, for that chunk alone."""
        self.flush()
        self._is_cut = True

    @torch.no_grad()
    def rewrite(self, kv: Sequence[tuple[Tensor, Tensor]], first_frame: int) -> None:
        """Other keys and values for frames that are held in the window.

        Args:
            kv: every layer's, B L H D, of the frames from ``first_frame`` to the last committed.
            first_frame: 0 rewrites the sink too; later frames leave it.
        """
        frames = self._frames - first_frame
        places = list[Place]()
        for offset in range(frames):
            if first_frame == 0 or first_frame + offset >= self.config.sink:
                slot = self._slot_of(first_frame + offset, self._frames)
                places += self._in_all(offset, slot)
        k, v = ([x[part].unflatten(1, (frames, -1)) for x in kv] for part in (0, 1))
        self.buffers.put(places, k, v)

    def sink_view(self, layer: int, sink: int, first_frame: int, new_frames: int) -> KVView:
        """The first ``sink`` frames alone, at their true positions, for other frames than the next.

        Args:
            layer: of the network.
            sink: frames of the sink to show.
            first_frame: of the pass.
            new_frames: frames of the pass.
        """
        kept = torch.arange(sink, device=self._device)[None]
        query = torch.arange(first_frame, first_frame + new_frames, device=self._device)[None]
        end = self.buffers.sizes.start(sink)
        k, v = self.buffers.k[layer][:, :end], self.buffers.v[layer][:, :end]
        return KVView(k_BKHD=k, v_BKHD=v, positions_BT=kept, query_positions_BF=query)

    def _in_all(self, offset: int, slot: int | None) -> list[Place]:
        """A frame of all films into the same slot of all layers; nowhere without one."""
        if slot is None:
            return []
        return [Place(layer, slice(None), offset, slot) for layer in range(self.layers)]

    def _filling(self, frames: range) -> list[Place]:
        """Early frames into slots of slow memory that nothing was promoted to yet."""
        slots = [(offset, frame - self.config.sink) for offset, frame in enumerate(frames)]
        return [
            Place(layer, slice(sample, sample + 1), offset, self._slow_at + at)
            for offset, at in slots
            if 0 <= at < self.config.slow
            for layer in range(self.layers)
            for sample in range(self.batch)
            if self._promoted[layer][sample] <= at
        ]

    def _check(self, chunk: ChunkKV) -> None:
        if chunk.first_frame != self._frames:
            raise RuntimeError(
                f"chunk starts at frame {chunk.first_frame}, but {self._frames} frames are "
                "committed; commit every chunk once and in order"
            )
        tokens = self.geometry.chunk * self.geometry.tokens_per_frame
        expected = (self.batch, tokens, *self.buffers.sizes.head)
        found = {tuple(tensor.shape) for tensor in (*chunk.k, *chunk.v)}
        if len(chunk.k) != self.layers or len(chunk.v) != self.layers or found != {expected}:
            raise RuntimeError(
                f"chunk has {len(chunk.k)} layers of {sorted(found)}; expected {self.layers} of "
                f"{expected}"
            )

    def _reserve(self, frames: int) -> None:
        needed = self._fast_at + frames - self.config.sink
        slots = self.buffers.sizes.slots
        if self._past is None and needed > slots:
            growth = GROWTH_CHUNKS * self.geometry.chunk
            self.buffers = self.buffers.grow(max(needed, slots + growth))

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
        places = list[Place]()
        for layer in range(self.layers):
            for sample in range(self.batch):
                cosine = None if cosines is None else cosines[layer][sample]
                held = self._slow[layer][sample]
                if held and held[-1][0] == chunk.first_frame:
                    continue
                keep = kept[layer][sample]
                self._tests.append(Promotion(index, layer, sample, cosine, keep))
                if keep:
                    slot = self._next_slot(layer, sample, chunk.first_frame)
                    places.append(Place(layer, slice(sample, sample + 1), 0, slot))
        self.buffers.put(places, frames_k, frames_v)

    def _next_slot(self, layer: int, sample: int, frame: int) -> int:
        """The slot in which a promoted frame goes, noted as its own."""
        # The ring's next slot is the oldest entry's once slow memory is full.
        slot = self._slow_at + self._promoted[layer][sample] % self.config.slow
        self._slow[layer][sample].append((frame, slot))
        self._promoted[layer][sample] += 1
        return slot

    def _held(self, layer: int, sample: int) -> list[Held]:
        end = self._frames
        sink = min(self.config.sink, end)
        first_fast = max(sink, self._since, 0 if self._past is None else end - self._past)
        slow = list(self._slow[layer][sample])
        if self.config.filling == "dense":
            # Early frames are held once: in the slots of slow memory, until these are promoted to.
            first_fast = max(first_fast, self.config.sink + self.config.slow)
            dense = range(max(self._since - sink, self._promoted[layer][sample]), self.config.slow)
            slow += [(sink + at, self._slow_at + at) for at in dense if sink + at < end]
        fast = [(frame, self._slot_of(frame, end)) for frame in range(first_fast, end)]
        return [
            *(Held(frame, "sink", frame) for frame in range(sink)),
            *(Held(frame, "slow", slot) for frame, slot in slow),
            *(Held(frame, "fast", slot) for frame, slot in fast if slot is not None),
        ]

    def _read(self, held: list[Held], new_frames: int, clean: bool) -> list[Held]:
        """What a pass attends to of what is held: the newest, if ``attend`` sets a limit."""
        if clean or self.config.attend is None:
            return held
        sink = [item for item in held if item.role == "sink"]
        room = self.config.attend - len(sink) - new_frames
        others = held[len(sink) :]
        return sink + others[max(0, len(others) - room) :]

    def _is_recent(self, item: Held) -> bool:
        past = self._frames if self._past is None else self._past
        return item.role != "slow" and item.frame >= self._frames - past

    def _place(self, held: list[Held], new_frames: int) -> Placement:
        placement = self._placed(held, new_frames)
        if not self._is_cut:
            return placement
        return placement._replace(query=tuple(range(CUT_TO, CUT_TO + new_frames)))

    def _placed(self, held: list[Held], new_frames: int) -> Placement:
        return place(
            self.config.positions,
            tuple(item.frame for item in held if item.role == "sink"),
            tuple(item.frame for item in held if item.role != "sink"),
            committed=self._frames,
            new_frames=new_frames,
            capacity=self.config.capacity,
        )

    def _row(self, held: list[Held], new_frames: int, clean: bool) -> Row:
        end = max((item.slot + 1 for item in held), default=0)
        held = self._read(held, new_frames, clean)
        placement = self._place(held, new_frames)
        recent = clean and self.config.commit_reads == "recent"
        shown = [self._is_recent(item) if recent else True for item in held]
        return row_of(held, placement, shown, self.buffers.sizes.slots, end)

    def _lay_out(self, new_frames: int, clean: bool) -> list[Layout]:
        # With one decision for all, every layer holds the same frames.
        layers = 1 if self.config.decision == "shared" else self.layers
        rows_of: dict[tuple[tuple[int, int], ...], Row] = {}
        rows: list[Row] = []
        for layer in range(layers):
            for sample in range(self.batch):
                # Only slow memory differs between layers and films, so most rows are shared.
                key = tuple(self._slow[layer][sample])
                if key not in rows_of:
                    rows_of[key] = self._row(self._held(layer, sample), new_frames, clean)
                rows.append(rows_of[key])
        found = lay_out(rows, self.buffers.sizes, device=self._device, padded=self._padded)
        return found * (self.layers // layers)
