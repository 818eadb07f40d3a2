"""Random numbers of a training stage, from one generator on its device."""

import torch
from torch import Tensor


class Draws:
    """Uniform, Gaussian and integer draws that depend on the seed and on their order alone."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 in [low, high)."""
        unit = torch.rand(shape, generator=self.generator, device=self.device)
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        """Unit Gaussian, float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def like(self, x: Tensor) -> Tensor:
        """Unit Gaussian of the shape of ``x``."""
        return self.normal(*x.shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Int64 in [0, high)."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def chance(self, share: float, *shape: int) -> Tensor:
        """Boolean, true with probability ``share``."""
        return self.uniform(*shape) < share
