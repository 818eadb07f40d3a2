"""Banks of a teacher's own past errors, by noise level, to harden it against imperfect context.

Dims: B samples, J bins, N entries of a bin; an entry has the shape of a sample's target latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cfmodel.train.draws import Draws

STORED = torch.bfloat16
SEARCHED_AT_ONCE = 32
"""Entries that a search brings from the host at a time."""


@dataclass(frozen=True, kw_only=True)
class Recycling:
    """How errors are stored and put back.

    Args:
        bins: of noise levels in [0, 1], equally wide.
        entries: of a bin.
        updates: samples of a step whose errors are stored; each costs a search of its bin.
        local: probability of an error on a run of the local context's latents, from any bin.
        target: probability of a clean-side error on the target, from the current bin.
        noise: probability of a noise-side error, from the current bin.
        clean: probability of a sample without any error; overrides the others.
        long: probability of an error on the sink and slow context too.
        host: keep the banks in host memory, and only what is drawn or stored on the device.

    Source: error recycling of arXiv:2602.06028 section 5 as released (50 bins of 500 entries,
    0.9, 0.9, 0.01, 0.5, and never on sink or slow). Deviation: bins are equally wide in noise
    level; the release takes the nearest of 50 shifted inference steps.
    """

    bins: int = 50
    entries: int = 500
    updates: int = 8
    local: float = 0.9
    target: float = 0.9
    noise: float = 0.01
    clean: float = 0.5
    long: float = 0.0
    host: bool = False


def bank_bytes(entries: int, shape: tuple[int, ...]) -> int:
    """Memory of a bank that holds so many errors, over all of its bins.

    Example:
        >>> bank_bytes(20 * 64, (21, 16, 10, 16))
        137625600
    """
    return entries * math.prod(shape) * STORED.itemsize


class _Store(Protocol):
    """Where errors are: what a bank asks of it."""

    def put(self, bin_: int, place: int, error: Tensor) -> None: ...

    def nearest(self, bin_: int, error: Tensor) -> int: ...

    def take(self, bin_B: Tensor, entry_B: Tensor) -> Tensor: ...

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class _OnDevice:
    """All that a bank may ever hold, as one tensor on the device."""

    def __init__(self, size: tuple[int, int], shape: tuple[int, ...], device: torch.device) -> None:
        self._stored = torch.zeros(*size, *shape, dtype=STORED, device=device)

    def put(self, bin_: int, place: int, error: Tensor) -> None:
        self._stored[bin_, place] = error.to(STORED)

    def nearest(self, bin_: int, error: Tensor) -> int:
        gap = self._stored[bin_].flatten(1).float() - error.flatten().float()
        return int(gap.square().sum(1).argmin())

    def take(self, bin_B: Tensor, entry_B: Tensor) -> Tensor:
        device = self._stored.device
        return self._stored[bin_B.to(device), entry_B.to(device)].float()

    def state(self) -> Tensor:
        return self._stored

    def restore(self, state: Tensor) -> None:
        self._stored.copy_(state)


class _OnHost:
    """Errors in host memory, each a tensor of its own: what is not held yet takes no memory."""

    def __init__(self, bins: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device = shape, device
        self._stored: list[list[Tensor]] = [[] for _ in range(bins)]

    def put(self, bin_: int, place: int, error: Tensor) -> None:
        held = self._stored[bin_]
        # A copy even where the error is on the host already: whoever made it may go on with it.
        entry = error.detach().to("cpu", STORED, copy=True)
        held[place : place + 1] = [entry]

    def nearest(self, bin_: int, error: Tensor) -> int:
        held, parts = self._stored[bin_], list[Tensor]()
        for first in range(0, len(held), SEARCHED_AT_ONCE):
            some = torch.stack(held[first : first + SEARCHED_AT_ONCE]).to(error.device)
            gap = some.flatten(1).float() - error.flatten().float()
            parts.append(gap.square().sum(1))
        return int(torch.cat(parts).argmin())

    def take(self, bin_B: Tensor, entry_B: Tensor) -> Tensor:
        found = torch.zeros(len(bin_B), *self._shape, dtype=STORED)
        for row, (bin_, entry) in enumerate(zip(bin_B.tolist(), entry_B.tolist(), strict=True)):
            if self._stored[bin_]:
                found[row] = self._stored[bin_][entry]
        return found.to(self._device).float()

    def state(self) -> list[list[Tensor]]:
        return [list(held) for held in self._stored]

    def restore(self, state: Sequence[Sequence[Tensor]]) -> None:
        self._stored = [[entry.to("cpu", STORED) for entry in held] for held in state]


class ErrorBank:
    """Errors by bin. A full bin gives up the entry nearest to the new one, so it stays diverse.

    Args:
        bins: of noise levels.
        entries: of a bin.
        shape: of an error.
        device: where errors are given out.
        host: keep them in host memory, which they fill as they come, instead of on the device,
            where a bank takes all of its memory at once.
    """

    def __init__(
        self,
        bins: int,
        entries: int,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        host: bool = False,
    ) -> None:
        self.bins, self.entries = bins, entries
        self._store: _Store = (
            _OnHost(bins, shape, device) if host else _OnDevice((bins, entries), shape, device)
        )
        self._device = device
        self.counts = torch.zeros(bins, dtype=torch.int64)

    def bin_of(self, sigma_B: Tensor) -> Tensor:
        """Bin of each noise level, int64 on the CPU."""
        return (sigma_B.detach().cpu() * self.bins).long().clamp(0, self.bins - 1)

    @torch.no_grad()
    def add(self, errors: Tensor, sigma_B: Tensor) -> None:
        """Stores the errors (B, ...) of samples at noise levels ``sigma_B``."""
        for error, bin_ in zip(errors, self.bin_of(sigma_B).tolist(), strict=True):
            held = int(self.counts[bin_])
            if held < self.entries:
                place = held
                self.counts[bin_] += 1
            else:
                place = self._store.nearest(bin_, error)
            self._store.put(bin_, place, error)

    def draw(self, draws: Draws, sigma_B: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """Errors (B, ...), float32, and whether each is one (B,): an empty bin gives none.

        Args:
            draws: source of randomness.
            sigma_B: noise levels whose bins are drawn from; None draws from all that is stored.
            count: B.
        """
        if sigma_B is None:
            weights = self.counts.double()
            if not weights.sum():
                weights = torch.ones_like(weights)
            picks = draws.uniform(count).cpu().double() * weights.sum()
            bin_B = torch.searchsorted(weights.cumsum(0), picks, right=True)
            bin_B = bin_B.clamp(max=self.bins - 1)
        else:
            bin_B = self.bin_of(sigma_B)
        held_B = self.counts[bin_B]
        entry_B = (draws.uniform(count).cpu() * held_B).long().clamp(max=self.entries - 1)
        return self._store.take(bin_B, entry_B), (held_B > 0).to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"stored": self._store.state(), "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave to a bank that is kept in the same place."""
        self._store.restore(state["stored"])
        self.counts.copy_(state["counts"])


def clean_error(v: Tensor, goal: Tensor, sigma: Tensor | float) -> Tensor:
    """Clean-side error ``-sigma (v - v*)``: estimated minus true clean latents."""
    return -sigma * (v - goal)


def noise_error(v: Tensor, goal: Tensor, sigma: Tensor | float) -> Tensor:
    """Noise-side error ``(1 - sigma) (v - v*)``: estimated minus true noise."""
    return (1 - sigma) * (v - goal)
