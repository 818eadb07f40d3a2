"""Losses: tensors in, tensors out. Scores, targets and normalisers never carry gradient."""

import torch
from torch import Tensor

from cfmodel.flow import add_noise, per_frame, x0_from_v


def flow_loss(v_BFCXY: Tensor, x0_BFCXY: Tensor, eps_BFCXY: Tensor) -> Tensor:
    """Mean squared error of the flow ``v`` to ``eps - x0``.

    Source: rectified flow, as in Wan 2.1.
    """
    return (v_BFCXY.float() - (eps_BFCXY - x0_BFCXY).float()).square().mean()


def dmd_gradient(x_BFCXY: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """Direction of distribution matching: critic's minus teacher's estimate, normalised per film.

    Args:
        x_BFCXY: the student's clean latents.
        fake_x0: the critic's clean estimate from the noised ``x``.
        real_x0: the teacher's, guided.

    Source: arXiv:2602.06028 sections 6-7, ``g = (x0_fake - x0_real) / mean |x - x0_real|``.
    """
    with torch.no_grad():
        scale = (x_BFCXY - real_x0).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        return ((fake_x0 - real_x0) / scale.clamp(min=1e-6)).nan_to_num()


def dmd_loss(x_BFCXY: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient with respect to ``x`` is ``gradient`` over the number of elements."""
    target = (x_BFCXY - gradient).detach()
    return 0.5 * (x_BFCXY - target).square().mean()


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """``cond + weight * (cond - uncond)``: weight 0 is no guidance, an ordinary scale of 1."""
    return conditional + weight * (conditional - unconditional)


def noised(x0_BFCXY: Tensor, eps_BFCXY: Tensor, sigma_BF: Tensor) -> Tensor:
    """Latents at each frame's noise level."""
    return add_noise(x0_BFCXY, eps_BFCXY, per_frame(sigma_BF))


def clean(xt_BFCXY: Tensor, v_BFCXY: Tensor, sigma_BF: Tensor) -> Tensor:
    """The clean estimate of each frame, float32."""
    return x0_from_v(xt_BFCXY.float(), v_BFCXY.float(), per_frame(sigma_BF))
