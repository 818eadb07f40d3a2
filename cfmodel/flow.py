"""Rectified flow as pure functions: noise levels, noising, and few-step or Euler schedules.

Noise level ``sigma`` is in [0, 1], 1 = pure noise; ``v = eps - x0`` is what the network predicts.
"""

from dataclasses import dataclass
from typing import overload

from torch import Tensor

from cfmodel.config import SampleConfig

TIMESTEPS = 1000
"""Wan's whole timesteps."""


@overload
def shift_sigma(sigma: float, shift: float) -> float: ...
@overload
def shift_sigma(sigma: Tensor, shift: float) -> Tensor: ...
def shift_sigma(sigma: float | Tensor, shift: float) -> float | Tensor:
    """The noise level ``shift * sigma / (1 + (shift - 1) * sigma)``; 0 and 1 stay.

    Args:
        sigma: noise level in [0, 1], number or tensor of any shape.
        shift: above 1 spends more steps at high noise; 1 changes nothing.

    Raises:
        ValueError: ``shift`` is not positive.

    Source: flow shift of Wan 2.1 (5 for 32,760 tokens).

    Example:
        >>> shift_sigma(0.75, 5.0)
        0.9375
    """
    if shift <= 0:
        raise ValueError(f"shift={shift}: expected a positive number")
    return shift * sigma / (1 + (shift - 1) * sigma)


def per_frame(sigma_BF: Tensor) -> Tensor:
    """``sigma_BF`` with three axes of size 1 behind it, to broadcast over latents B F C X Y."""
    return sigma_BF[..., None, None, None]


def add_noise(x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
    """The noisy latent ``(1 - sigma) * x0 + sigma * eps``.

    Args:
        x0: clean latents.
        eps: unit Gaussian noise of the same shape.
        sigma: noise level, broadcastable to ``x0`` (see ``per_frame``).

    Source: rectified flow, as in Wan 2.1.
    """
    return (1 - sigma) * x0 + sigma * eps


def x0_from_v(xt: Tensor, v: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latent that noisy ``xt`` and flow ``v`` imply: ``xt - sigma * v``."""
    return xt - sigma * v


def v_from_x0(xt: Tensor, x0: Tensor, sigma: float | Tensor) -> Tensor:
    """The flow that noisy ``xt`` and clean ``x0`` imply: ``(xt - x0) / sigma``, for sigma > 0."""
    return (xt - x0) / sigma


def euler_step(xt: Tensor, v: Tensor, sigma: float, following: float) -> Tensor:
    """The latent at noise level ``following``, one Euler step along ``v`` from ``sigma``."""
    return xt + (following - sigma) * v


def euler_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """``steps + 1`` shifted noise levels from 1 down to 0, evenly spaced before the shift.

    Raises:
        ValueError: ``steps`` is below 1 or ``shift`` is not positive.

    Example:
        >>> euler_sigmas(2, 1.0)
        (1.0, 0.5, 0.0)
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least one")
    return tuple(shift_sigma(1 - i / steps, shift) for i in range(steps + 1))


@dataclass(frozen=True)
class FewStep:
    """The few-step schedule: warped noise levels, highest first; fresh noise between them.

    Source: arXiv:2602.06028 with flow shift 5: 1, 0.9375, 0.8333, 0.625.
    """

    sigmas: tuple[float, ...]
    whole_timesteps: bool = False

    @classmethod
    def from_config(cls, sample: SampleConfig) -> "FewStep":
        """The schedule of a config: its steps, warped by its shift."""
        sigmas = tuple(shift_sigma(sigma, sample.shift) for sigma in sample.steps)
        return cls(sigmas, sample.whole_timesteps)

    @property
    def told(self) -> tuple[float, ...]:
        """The noise level that the network is told at each step.

        Example:
            >>> FewStep((0.5218,), whole_timesteps=True).told
            (0.522,)
        """
        if not self.whole_timesteps:
            return self.sigmas
        return tuple(round(TIMESTEPS * sigma) / TIMESTEPS for sigma in self.sigmas)
