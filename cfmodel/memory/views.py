"""What a view of the slots is made of: bookkeeping of each film and layer, laid out on the device.

Dims: B batch, N layers, F new frames, T remembered frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cfmodel.memory.base import Role, to_device
from cfmodel.memory.positions import Placement


class Held(NamedTuple):
    """A remembered latent frame, why it is kept, and its slot in the buffer."""

    frame: int
    role: Role
    slot: int


class Row(NamedTuple):
    """Bookkeeping of one film in one layer, by slot of the buffer."""

    positions: tuple[int, ...]
    present: tuple[bool, ...]
    query: tuple[int, ...]


class Layout(NamedTuple):
    """What a view of one layer is made of: slots as a count of the first, or as an index."""

    slots: int | Tensor
    positions_BT: Tensor
    queries_BF: Tensor
    valid_BT: Tensor | None


def take(x_BT: Tensor, slots: int | Tensor) -> Tensor:
    """The slots of a layout, along the second axis."""
    return x_BT[:, :slots] if isinstance(slots, int) else x_BT.index_select(1, slots)


def row_of(held: Sequence[Held], placement: Placement, shown: Sequence[bool], slots: int) -> Row:
    """Bookkeeping of what a film holds in a buffer of ``slots``.

    Args:
        held: frames, in the order of the placement.
        placement: their positions, and those of the new frames.
        shown: which of them the pass may attend to.
        slots: of the buffer.
    """
    positions, present = [0] * slots, [False] * slots
    for item, position, has in zip(held, placement.memory, shown, strict=True):
        positions[item.slot], present[item.slot] = position, has
    return Row(tuple(positions), tuple(present), placement.query)


def lay_out(rows: Sequence[Row], *, batch: int, device: torch.device, padded: bool) -> list[Layout]:
    """Layouts of layers, sent to the device in one copy for each kind of tensor.

    Args:
        rows: of every film of every layer, films fastest.
        batch: films.
        device: of the memory.
        padded: show every slot of the buffer.
    """
    positions_NBT = _by_layer([row.positions for row in rows], torch.int64, batch, device)
    queries_NBF = _by_layer([row.query for row in rows], torch.int64, batch, device)
    present_NBT = _by_layer([row.present for row in rows], torch.bool, batch, device)
    # Layers that hold the same frames share one layout, and so all that is made from it.
    layouts: dict[tuple[Row, ...], Layout] = {}
    order: list[Layout] = []
    for layer in range(len(rows) // batch):
        films = tuple(rows[layer * batch : (layer + 1) * batch])
        if films not in layouts:
            layouts[films] = _layout(
                films, positions_NBT[layer], queries_NBF[layer], present_NBT[layer], padded=padded
            )
        order.append(layouts[films])
    return order


def _layout(
    films: tuple[Row, ...],
    positions_BT: Tensor,
    queries_BF: Tensor,
    present_BT: Tensor,
    *,
    padded: bool,
) -> Layout:
    size = positions_BT.shape[1]
    if padded:
        return Layout(size, positions_BT, queries_BF, present_BT)
    held = {film.present for film in films}
    used = [slot for slot in range(size) if any(film[slot] for film in held)]
    slots = len(used)
    if used != list(range(slots)):
        slots = to_device(torch.tensor(used), positions_BT.device)
    valid_BT = take(present_BT, slots) if len(held) > 1 else None
    return Layout(slots, take(positions_BT, slots), queries_BF, valid_BT)


def _by_layer(
    rows: Sequence[tuple[int, ...]], dtype: torch.dtype, batch: int, device: torch.device
) -> Tensor:
    host = torch.tensor(rows, dtype=dtype).view(len(rows) // batch, batch, len(rows[0]))
    return to_device(host, device)
