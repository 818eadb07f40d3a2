"""What a view of the slots is made of: bookkeeping of each film and layer, laid out on the device.

Dims: B batch, N layers, F new frames, T remembered frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.memory.base import Role, to_device
from cfmodel.memory.buffers import Sizes
from cfmodel.memory.positions import Placement


class Held(NamedTuple):
    """A remembered latent frame, why it is kept, and its slot in the buffer."""

    frame: int
    role: Role
    slot: int


class Row(NamedTuple):
    """Bookkeeping of one film in one layer, by slot of the buffer.

    ``end`` is behind the last slot that holds anything, shown or not.
    """

    positions: tuple[int, ...]
    present: tuple[bool, ...]
    query: tuple[int, ...]
    end: int


class Layout(NamedTuple):
    """What a view of one layer is made of.

    Args:
        tokens: of the buffer: a count of the first, or an index.
        slots: how many slots they are of.
        pooled: how many of these, the last ones, are pooled.
        is_free: what lies behind them holds nothing, and may be written to.
        positions_BT: of the slots' frames.
        queries_BF: positions of the new frames.
        valid_BT: which frames a film holds; None if all of them.
    """

    tokens: int | Tensor
    slots: int
    pooled: int
    is_free: bool
    positions_BT: Tensor
    queries_BF: Tensor
    valid_BT: Tensor | None


def take(x_BT: Tensor, which: int | Tensor) -> Tensor:
    """The first of the second axis, or those of an index."""
    return x_BT[:, :which] if isinstance(which, int) else x_BT.index_select(1, which)


def row_of(
    held: Sequence[Held], placement: Placement, shown: Sequence[bool], slots: int, end: int
) -> Row:
    """Bookkeeping of what a film holds in a buffer of ``slots``.

    Args:
        held: frames, in the order of the placement.
        placement: their positions, and those of the new frames.
        shown: which of them the pass may attend to.
        slots: of the buffer.
        end: behind the last slot that holds anything, read by the pass or not.
    """
    positions, present = [0] * slots, [False] * slots
    for item, position, has in zip(held, placement.memory, shown, strict=True):
        positions[item.slot], present[item.slot] = position, has
    return Row(tuple(positions), tuple(present), placement.query, end)


def lay_out(
    rows: Sequence[Row], sizes: Sizes, *, device: torch.device, padded: bool
) -> list[Layout]:
    """Layouts of layers, sent to the device in one copy for each kind of tensor.

    Args:
        rows: of every film of every layer, films fastest.
        sizes: of the buffers.
        device: of the memory.
        padded: show every slot of the buffer.
    """
    batch = sizes.batch
    positions_NBT = _by_layer([row.positions for row in rows], torch.int64, batch, device)
    queries_NBF = _by_layer([row.query for row in rows], torch.int64, batch, device)
    present_NBT = _by_layer([row.present for row in rows], torch.bool, batch, device)
    # Layers that hold the same frames share one layout, and so all that is made from it; layers
    # with new frames at the same positions share these.
    layouts: dict[tuple[Row, ...], Layout] = {}
    queries: dict[tuple[tuple[int, ...], ...], Tensor] = {}
    order: list[Layout] = []
    for layer in range(len(rows) // batch):
        films = tuple(rows[layer * batch : (layer + 1) * batch])
        if films not in layouts:
            query_BF = queries.setdefault(tuple(film.query for film in films), queries_NBF[layer])
            layouts[films] = _layout(
                films,
                sizes,
                positions_NBT[layer],
                query_BF,
                present_NBT[layer],
                padded=padded,
            )
        order.append(layouts[films])
    return order


def _layout(
    films: tuple[Row, ...],
    sizes: Sizes,
    positions_BT: Tensor,
    queries_BF: Tensor,
    present_BT: Tensor,
    *,
    padded: bool,
) -> Layout:
    held = {film.present for film in films}
    used = [slot for slot in range(sizes.slots) if padded or any(film[slot] for film in held)]
    count, tokens = len(used), sizes.start(len(used))
    pooled = sum(slot >= sizes.slow_at for slot in used) if sizes.pool > 1 else 0
    is_free = used == list(range(count)) and all(film.end <= count for film in films)
    which: int | Tensor = count
    if used != list(range(count)):
        which = to_device(torch.tensor(used), positions_BT.device)
        every = [
            token for slot in used for token in range(sizes.start(slot), sizes.start(slot + 1))
        ]
        tokens = to_device(torch.tensor(every), positions_BT.device)
    valid_BT = take(present_BT, which) if padded or len(held) > 1 else None
    return Layout(tokens, count, pooled, is_free, take(positions_BT, which), queries_BF, valid_BT)


def _by_layer(
    rows: Sequence[tuple[int, ...]], dtype: torch.dtype, batch: int, device: torch.device
) -> Tensor:
    host = torch.tensor(rows, dtype=dtype).view(len(rows) // batch, batch, len(rows[0]))
    return to_device(host, device)
