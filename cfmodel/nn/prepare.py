"""Views of a memory made ready for the passes of a chunk: keys rotated, tables and masks built.

Dims: B batch, F frames of the new chunk, T frames in memory, P tokens a frame, R rows of a table,
L query tokens, K key tokens, H heads, D head dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfmodel.config import Geometry
from cfmodel.nn.attention import KVView, PreparedView
from cfmodel.nn.masks import Form, Mask, pooled_mask, token_mask
from cfmodel.nn.rope import RotaryTable, pooled_size, rotary_table, rotate, table_of

SPANS_KEPT = 8


def turn(out_BKHD: Tensor, k_BKHD: Tensor, rows: RotaryTable, at_BT: Tensor) -> None:
    """Rotated keys into ``out_BKHD``, each frame by its row of the table (see ``table_of``)."""
    out_BKHD.copy_(rotate(k_BKHD, table_of(rows, at_BT)))


class Preparer:
    """Makes views ready, for one geometry and size of heads.

    Attributes:
        turn: what rotates keys; may be a compiled program.
    """

    def __init__(self, geometry: Geometry, head_dim: int) -> None:
        self.turn: Callable[[Tensor, Tensor, RotaryTable, Tensor], None] = turn
        self._geometry, self._head_dim = geometry, head_dim
        self._rows: dict[tuple[int, int, torch.device], RotaryTable] = {}

    def tokens(self, pool: int = 1) -> int:
        """Tokens of a frame."""
        return pooled_size(self._geometry.grid, pool)

    def table(self, positions: Tensor, span: int | None = None) -> RotaryTable:
        """The table of frames at these positions, which are below ``span``."""
        if span is None:
            return rotary_table(positions, self._geometry.grid, self._head_dim)
        return table_of(*self._rows_at(positions, span, 1))

    def views(self, views: Sequence[KVView], form: Form) -> list[PreparedView]:
        """Every layer's view made ready. Layers that share position tensors share what is made.

        Raises:
            ValueError: keys and positions of a view disagree in number, or pooled frames with a
                ``form`` of masks that has none for them.
        """
        tables: dict[int, RotaryTable] = {}
        rows: dict[int, list[tuple[RotaryTable, Tensor]]] = {}
        masks: dict[int, Mask] = {}
        prepared: list[PreparedView] = []
        for layer, view in enumerate(views):
            self._check(view, layer)
            query, key = view.query_positions_BF, id(view.positions_BT)
            if id(query) not in tables:
                tables[id(query)] = self.table(query, view.span)
            if key not in rows:
                rows[key] = self._rows_of(view)
            if view.valid_BT is not None and id(view.valid_BT) not in masks:
                masks[id(view.valid_BT)] = self._mask(view, form)
            k, v = self._turned(view, rows[key]), self._values(view)
            mask = masks.get(id(view.valid_BT))
            prepared.append(PreparedView(k, v, tables[id(query)], mask, view.settled))
        return prepared

    def _rows_at(
        self, positions: Tensor, span: int | None, pool: int
    ) -> tuple[RotaryTable, Tensor]:
        """Rows of a table for frames, and which of them each frame has."""
        if span is None:
            at = torch.arange(positions.numel(), device=positions.device).view(positions.shape)
            return self._drawn_up(positions.flatten(), pool), at
        key = (span, pool, positions.device)
        if key not in self._rows:
            if len(self._rows) >= SPANS_KEPT:
                self._rows.clear()
            every = torch.arange(span, device=positions.device)
            self._rows[key] = self._drawn_up(every, pool)
        return self._rows[key], positions

    def _drawn_up(self, positions: Tensor, pool: int) -> RotaryTable:
        table = rotary_table(positions, self._geometry.grid, self._head_dim, pool)
        size = (positions.shape[0], self.tokens(pool))
        return RotaryTable(table.cos[0].unflatten(0, size), table.sin[0].unflatten(0, size))

    def _rows_of(self, view: KVView) -> list[tuple[RotaryTable, Tensor]]:
        """Of a view's whole frames, then of its pooled ones; of those that there are."""
        whole = view.positions_BT.shape[1] - view.pooled
        parts = (view.positions_BT[:, :whole], 1), (view.positions_BT[:, whole:], view.pool)
        return [self._rows_at(at, view.span, pool) for at, pool in parts if at.shape[1]]

    def _turned(self, view: KVView, rows: Sequence[tuple[RotaryTable, Tensor]]) -> Tensor:
        keys = self._empty(view) if view.turned_BKHD is None else view.turned_BKHD
        start = 0
        for table, at_BT in rows:
            end = start + at_BT.shape[1] * table.cos.shape[1]
            self.turn(keys[:, start:end], view.k_BKHD[:, start:end], table, at_BT)
            start = end
        return keys

    def _values(self, view: KVView) -> Tensor:
        if view.roomy_v_BKHD is not None:
            return view.roomy_v_BKHD
        values = self._empty(view)
        values[:, : view.v_BKHD.shape[1]] = view.v_BKHD
        return values

    def _empty(self, view: KVView) -> Tensor:
        batch, held, *head = view.k_BKHD.shape
        return view.k_BKHD.new_empty(batch, held + self._new_tokens(view), *head)

    def _new_tokens(self, view: KVView) -> int:
        return view.query_positions_BF.shape[1] * self.tokens()

    def _check(self, view: KVView, layer: int) -> None:
        held = view.positions_BT.shape[1]
        expected = (held - view.pooled) * self.tokens() + view.pooled * self.tokens(view.pool)
        if view.k_BKHD.shape[1] != expected:
            raise ValueError(
                f"view of layer {layer}: {view.k_BKHD.shape[1]} keys for {held} frames; expected "
                f"{expected} ({self.tokens()} a frame, {self.tokens(view.pool)} if pooled)"
            )

    def _mask(self, view: KVView, form: Form) -> Mask:
        valid_BT, new = view.valid_BT, view.query_positions_BF.shape[1]
        assert valid_BT is not None, "asked for by views with absent frames alone"
        if view.pooled:
            sizes = [self.tokens()] * (valid_BT.shape[1] - view.pooled)
            sizes += [self.tokens(view.pool)] * view.pooled
            return pooled_mask(valid_BT, sizes, self._new_tokens(view), form)
        allowed_BT = torch.cat([valid_BT, valid_BT.new_ones(valid_BT.shape[0], new)], dim=1)
        rows = new if form == "block" else 1
        allowed_BQT = allowed_BT[:, None].expand(-1, rows, -1)
        built = token_mask(allowed_BQT, self.tokens(), form)
        # Every query of a sample sees the same keys, so one row broadcasts over all of them.
        return Mask(dense=built.dense[:, :, :1]) if built.dense is not None else built
