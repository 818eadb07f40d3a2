"""Where a memory's keys and values lie: frame slots that never move, and room behind them.

Dims: B batch, N layers, T slots, P tokens a slot, K tokens of all slots, L tokens of a chunk,
H heads, D head dim.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cfmodel.nn.rope import pooled_size


class Place(NamedTuple):
    """Where a frame goes: of some films, in a layer, from an offset in the chunk to a slot."""

    layer: int
    films: slice
    offset: int
    slot: int


class Sizes(NamedTuple):
    """What decides how buffers are laid out.

    Args:
        layers: of the network.
        batch: films.
        slots: frame slots.
        slow_at: the first slot of slow memory.
        slow: how many slots it has; they are the last ones if they are pooled.
        grid: rows and columns of tokens in a frame.
        pool: rows and columns of which a token of slow memory is the mean.
        room: frames that a pass may have, whose tokens go behind those of the slots.
        head: heads and size of a head.
    """

    layers: int
    batch: int
    slots: int
    slow_at: int
    slow: int
    grid: tuple[int, int]
    pool: int
    room: int
    head: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Of a whole frame."""
        return pooled_size(self.grid, 1)

    @property
    def slow_tokens(self) -> int:
        """Of a frame in slow memory."""
        return pooled_size(self.grid, self.pool)

    def start(self, slot: int) -> int:
        """The first token of a slot, or the end of the one before."""
        slow = min(max(slot - self.slow_at, 0), self.slow)
        return (slot - slow) * self.tokens + slow * self.slow_tokens


def pooled(x_BPHD: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Means over ``pool`` rows and columns of a frame's tokens; at the edge over what is there.

    Args:
        x_BPHD: keys without rotary phase, or values, row after row.
        grid: rows and columns.
        pool: 1 changes nothing.
    """
    if pool == 1:
        return x_BPHD
    heads = x_BPHD.shape[-2:]
    x_BEXY = x_BPHD.flatten(2).transpose(1, 2).unflatten(-1, grid)
    means = nnf.avg_pool2d(x_BEXY.float(), pool, ceil_mode=True).to(x_BPHD.dtype)
    return means.flatten(2).transpose(1, 2).unflatten(-1, heads)


class Buffers:
    """Keys without rotary phase, values, and rotated keys, of all layers.

    Values and rotated keys have room behind the slots, where a pass puts its own, so that attention
    reads one tensor of each.
    """

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self.sizes = sizes
        held = (sizes.layers, sizes.batch, sizes.start(sizes.slots), *sizes.head)
        roomy = (*held[:2], held[2] + sizes.room * sizes.tokens, *sizes.head)
        self.k = torch.zeros(held, device=device, dtype=dtype)
        self._v = torch.zeros(roomy, device=device, dtype=dtype)
        self._turned = torch.zeros(roomy, device=device, dtype=dtype)

    @property
    def v(self) -> Tensor:
        """Values, without the room behind them."""
        return self._v[:, :, : self.k.shape[2]]

    def grow(self, slots: int) -> "Buffers":
        """Larger buffers with the same content."""
        grown = Buffers(self.sizes._replace(slots=slots), self.k.device, self.k.dtype)
        grown.load(self.k, self.v)
        return grown

    def load(self, k: Tensor, v: Tensor) -> None:
        """Takes over keys and values of as many slots as they are, the first ones."""
        self.k[:, :, : k.shape[2]] = k
        self._v[:, :, : v.shape[2]] = v

    def turned(self, layer: int, tokens: int) -> Tensor:
        """Where a layer's rotated keys go, those of a pass among them."""
        return self._turned[layer][:, :tokens]

    def roomy_v(self, layer: int, tokens: int) -> Tensor:
        """A layer's values, with the room behind them."""
        return self._v[layer][:, :tokens]

    def put(
        self, places: Iterable[Place], k_BFPHD: Sequence[Tensor], v_BFPHD: Sequence[Tensor]
    ) -> None:
        """Frames into slots, in few launches, for which the device would wait otherwise.

        Args:
            places: which go where.
            k_BFPHD: every layer's keys of F frames.
            v_BFPHD: their values.
        """
        into, of = list[Tensor](), list[Tensor]()
        for layer, films, offset, slot in places:
            tokens = slice(self.sizes.start(slot), self.sizes.start(slot + 1))
            is_slow = 0 <= slot - self.sizes.slow_at < self.sizes.slow
            pool = self.sizes.pool if is_slow else 1
            for buffer, frames in ((self.k, k_BFPHD), (self._v, v_BFPHD)):
                target = buffer[layer, films, tokens]
                found = pooled(frames[layer][films, offset], self.sizes.grid, pool)
                # Values of a pass may lie in their slots, as its room, already.
                if target.data_ptr() != found.data_ptr():
                    into.append(target)
                    of.append(found)
        if into:
            torch._foreach_copy_(into, of)  # pyright: ignore[reportPrivateUsage]
