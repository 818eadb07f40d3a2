"""Embedded captions of many films, from which batches are drawn.

Dims: B films, G chunks, S text tokens, E text width.
"""

import torch
from torch import Tensor

from cfmodel.devices import world
from cfmodel.train.data import TARGET


class Texts:
    """Embedded captions of many films, chunk by chunk, each distinct one stored once.

    Args:
        table: (U, S, E) distinct embedded texts.
        index: (N, G) rows of the table.
        returns: (N, G) whether something comes back in a chunk.
        device: where texts are given out.
    """

    def __init__(self, table: Tensor, index: Tensor, returns: Tensor, device: torch.device) -> None:
        self._table, self._index = table.to(device), index.to(device)
        self._returns = returns
        self._device = device
        self._world = world()

    @property
    def chunks(self) -> int:
        """Longest film that there are texts for."""
        return self._index.shape[1]

    def draw(
        self,
        count: int,
        chunks: int,
        random: torch.Generator,
        *,
        returning: float = 0.0,
        midway: float = 0.0,
    ) -> Tensor:
        """Texts (count, chunks, S, E) of random films, from their beginning or on the way.

        Several processes draw for all films alike, and each gets its own.

        Args:
            count: films.
            chunks: their length.
            random: CPU generator.
            returning: share of films in whose last 7 chunks something comes back, as far as there
                are such films.
            midway: share of the other films whose texts begin anywhere in their script.
        """
        count *= self._world.size
        pick = torch.randint(len(self._index), (count,), generator=random)
        last = self._returns[:, max(0, chunks - TARGET // 3) : chunks].any(1).nonzero().squeeze(1)
        wanted = round(returning * count)
        if wanted and len(last):
            pick[:wanted] = last[torch.randint(len(last), (wanted,), generator=random)]
        start = torch.zeros_like(pick)
        if midway:
            spread = torch.randint(self.chunks - chunks + 1, (count,), generator=random)
            start = torch.where(torch.rand(count, generator=random) < midway, spread, start)
            start[:wanted] = 0  # what returns is marked for films from their beginning
        rows = self._world.mine(pick).to(self._device)[:, None]
        columns = self._world.mine(start).to(self._device)[:, None]
        columns = columns + torch.arange(chunks, device=self._device)
        return self._table[self._index[rows, columns]].float()
