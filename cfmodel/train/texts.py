"""Embedded captions of many films, from which batches are drawn.

Dims: B films, G chunks, S text tokens, E text width.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cfmodel.devices import world
from cfmodel.train.data import TARGET

HELD = 1024
"""Texts that are kept once embedded on demand: 4 GiB of host memory at UMT5's size."""


class Table(Protocol):
    """Embedded texts by number."""

    def rows(self, numbers: Tensor) -> Tensor:
        """Embeddings (*numbers.shape, S, E)."""
        ...


class Held:
    """All texts embedded beforehand, (U, S, E) on a device."""

    def __init__(self, table: Tensor, device: torch.device) -> None:
        self._table = table.to(device)

    def rows(self, numbers: Tensor) -> Tensor:
        """Embeddings (*numbers.shape, S, E), float32."""
        return self._table[numbers.to(self._table.device)].float()


class OnDemand:
    """Texts that are embedded when they are drawn: UMT5's embedding of one text is 4 MB.

    Args:
        texts: by number.
        embed: embedded texts (N, S, E).
        held: how many are kept, the oldest being forgotten first.
    """

    def __init__(
        self, texts: list[str], embed: Callable[[list[str]], Tensor], held: int = HELD
    ) -> None:
        self._texts, self._embed, self._held = texts, embed, held
        self._kept: dict[int, Tensor] = {}

    def rows(self, numbers: Tensor) -> Tensor:
        """Embeddings (*numbers.shape, S, E), float32 on the CPU."""
        wanted = numbers.flatten().tolist()
        new = [k for k in dict.fromkeys(wanted) if k not in self._kept]
        if new:
            made = self._embed([self._texts[k] for k in new]).cpu().to(torch.bfloat16)
            self._kept |= zip(new, made, strict=True)
        rows = torch.stack([self._kept[k] for k in wanted])
        for k in list(self._kept)[: max(0, len(self._kept) - self._held)]:
            del self._kept[k]
        return rows.float().unflatten(0, numbers.shape)


class Texts:
    """Embedded captions of many films, chunk by chunk.

    Args:
        table: distinct embedded texts.
        index: (N, G) rows of the table.
        returns: (N, G) whether something comes back in a chunk.
        device: where texts are given out.
    """

    def __init__(self, table: Table, index: Tensor, returns: Tensor, device: torch.device) -> None:
        self._table, self._index = table, index.to(device)
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
        return self._table.rows(self._index[rows, columns]).to(self._device)
