"""One film on several processes: each has a share of every frame's tokens, and all keys.

All that works on tokens one by one (linear layers, norms, cross-attention) is done for a share
alone. Self-attention has a share's queries and everyone's keys and values, which are gathered once
a layer and pass. So each process holds the whole memory, of the same bits: what a memory decides
from its keys is decided alike everywhere, and heads need not divide.

Dims: B batch, F frames, P tokens a frame, L tokens (F * P), N processes, X tensors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cfmodel.nn.masks import Mask
from cfmodel.nn.rope import RotaryTable


class Spread(NamedTuple):
    """This process among those that make a film together.

    Source: sequence parallelism, with gathered keys in place of DeepSpeed-Ulysses' exchanged heads:
    for two processes as many bytes, in one exchange a layer and not two.
    """

    rank: int
    size: int

    def check(self, tokens: int) -> None:
        """Whether frames of so many tokens can be shared out.

        Raises:
            ValueError: they do not divide equally.
        """
        if tokens % self.size:
            raise ValueError(
                f"{tokens} tokens of a frame do not divide among {self.size} processes; start as "
                "many as divide them"
            )

    def mine(self, x_BFP: Tensor) -> Tensor:
        """This process's share (B, F, P / N, ...) of every frame's tokens."""
        return x_BFP.chunk(self.size, dim=2)[self.rank]

    def table(self, table: RotaryTable, frames: int) -> RotaryTable:
        """The rotary table of this process's tokens."""
        cos, sin = (self.mine(x.unflatten(1, (frames, -1))).flatten(1, 2) for x in table)
        return RotaryTable(cos, sin)

    def mask(self, mask: Mask | None, frames: int) -> Mask | None:
        """The rows of a mask that this process's queries have.

        Raises:
            ValueError: a mask of blocks, whose rows cannot be taken out.
        """
        if mask is None or (mask.dense is not None and mask.dense.shape[2] == 1):
            return mask
        if mask.dense is None:
            raise ValueError("flex attention has no masks for several processes; use sdpa")
        rows = self.mine(mask.dense.transpose(1, 2).unflatten(1, (frames, -1)))
        return Mask(dense=rows.flatten(1, 2).transpose(1, 2))

    def whole(self, shares: Sequence[Tensor], frames: int) -> list[Tensor]:
        """Everyone's tokens B L ..., of every tensor, from shares (B, L / N, ...) alike in size."""
        mine = torch.stack(list(shares))
        found = mine.new_empty((self.size * len(mine), *mine.shape[1:]))
        # Its newer name is not in every version that is supported.
        dist.all_gather_into_tensor(found, mine)  # pyright: ignore[reportDeprecated]
        # N X B F (P / N) ... to X B F N (P / N) ...
        found = found.unflatten(0, (self.size, -1))
        ordered = found.unflatten(3, (frames, -1)).movedim(0, 3)
        return list(ordered.flatten(2, 4).unbind(0))
