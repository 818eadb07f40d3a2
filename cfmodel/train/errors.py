"""Banks of a teacher's own past errors, by noise level, to harden it against imperfect context.

Dims: B samples, J bins, N entries of a bin; an entry has the shape of a sample's target latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfmodel.train.draws import Draws


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


class ErrorBank:
    """Errors by bin. A full bin gives up the entry nearest to the new one, so it stays diverse."""

    def __init__(
        self, bins: int, entries: int, shape: tuple[int, ...], device: torch.device
    ) -> None:
        self.bins, self.entries = bins, entries
        self._stored = torch.zeros(bins, entries, *shape, dtype=torch.bfloat16, device=device)
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
                gap = self._stored[bin_].flatten(1).float() - error.flatten().float()
                place = int(gap.square().sum(1).argmin())
            self._stored[bin_, place] = error.to(torch.bfloat16)

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
        device = self._stored.device
        found = self._stored[bin_B.to(device), entry_B.to(device)].float()
        return found, (held_B > 0).to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"stored": self._stored, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what ``state_dict`` gave."""
        self._stored.copy_(state["stored"])
        self.counts.copy_(state["counts"])


def clean_error(v: Tensor, goal: Tensor, sigma: Tensor | float) -> Tensor:
    """Clean-side error ``-sigma (v - v*)``: estimated minus true clean latents."""
    return -sigma * (v - goal)


def noise_error(v: Tensor, goal: Tensor, sigma: Tensor | float) -> Tensor:
    """Noise-side error ``(1 - sigma) (v - v*)``: estimated minus true noise."""
    return (1 - sigma) * (v - goal)
