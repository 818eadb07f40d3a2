"""Random numbers of a training stage, from one generator on its device."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cfmodel.devices import world


class Draws:
    """Uniform, Gaussian and integer draws that depend on the seed and on their order alone.

    The first axis is that of samples. Several processes draw as one would for all of their samples,
    and each keeps its own rows; a draw without axes is the same in all of them.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.world = world()

    def _rows(self, draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        if not shape or self.world.size == 1:
            return draw(shape)
        return self.world.mine(draw((shape[0] * self.world.size, *shape[1:])))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 in [low, high)."""
        unit = self._rows(
            lambda size: torch.rand(size, generator=self.generator, device=self.device), shape
        )
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        """Unit Gaussian, float32."""
        return self._rows(
            lambda size: torch.randn(size, generator=self.generator, device=self.device), shape
        )

    def like(self, x: Tensor) -> Tensor:
        """Unit Gaussian of the shape of ``x``."""
        return self.normal(*x.shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Int64 in [0, high)."""
        return self._rows(
            lambda size: torch.randint(high, size, generator=self.generator, device=self.device),
            shape,
        )

    def chance(self, share: float, *shape: int) -> Tensor:
        """Boolean, true with probability ``share``."""
        return self.uniform(*shape) < share

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what ``state_dict`` gave."""
        self.generator.set_state(state["generator"].cpu())
