"""The context teacher: continues a clip given sink, slow and local context that may be flawed.

Dims: B batch, F latents of context and target, G texts, S text tokens, E text width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.flow import per_frame, shift_sigma
from cfmodel.nn.masks import Mask, token_mask
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET
from cfmodel.train.draws import Draws
from cfmodel.train.errors import ErrorBank, Recycling, clean_error, noise_error
from cfmodel.train.flow_stages import ObjectiveNet, half_traffic
from cfmodel.train.losses import flow_loss
from cfmodel.train.pool import Units

SINK_END, SLOW_END = SINK, SINK + SLOW


def context_mask(valid_BF: Tensor, tokens_per_frame: int) -> Mask:
    """Every latent sees all latents that there are: a mask that broadcasts over queries."""
    mask = token_mask(valid_BF[:, None], tokens_per_frame)
    assert mask.dense is not None, "built dense"
    return Mask(dense=mask.dense[:, :, :1])


def score_flow(
    net: ObjectiveNet,
    x_BFCXY: Tensor,
    sigma_B: Tensor,
    text_BGSE: Tensor,
    valid_BF: Tensor | None,
) -> Tensor:
    """The flow of the target latents, given the context before them in the same sequence.

    One noise level is told for all latents, the clean ones of the context too, and positions are
    0..F-1, as released.

    Args:
        net: teacher or critic.
        x_BFCXY: clean context, then noisy target.
        sigma_B: noise level of the target.
        text_BGSE: a text a latent, or one for each of G equal parts.
        valid_BF: which latents there are; None is all, without a mask.

    Source: arXiv:2602.06028 sections 5 and 7.
    """
    sigma_BF = sigma_B[:, None].expand(-1, x_BFCXY.shape[1])
    tokens = net.geometry.tokens_per_frame
    mask = None if valid_BF is None else context_mask(valid_BF, tokens)
    v = net(half_traffic(x_BFCXY), sigma_BF, net.text_kv(text_BGSE), mask=mask).v_BFCXY
    return v[:, CONTEXT:].float()


class ContextTeacher:
    """Flow matching on the target given the context, with recycled errors.

    Clean-side errors of past predictions are put on a run of the local context and on the target's
    clean latents, noise-side errors on its noise; the goal is always the uncorrupted target. Errors
    are learnt from the training predictions themselves.

    Source: arXiv:2602.06028 section 5, and its release.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        recycling: Recycling,
        *,
        shift: float = 1.0,
    ) -> None:
        model, geometry = experiment.model, experiment.geometry
        shape = (TARGET, model.latent_channels, *geometry.latent_size)
        self.recycling, self.shift = recycling, shift
        size, host = (recycling.bins, recycling.entries), recycling.host
        self.clean = ErrorBank(*size, shape, device, host=host)
        self.noise = ErrorBank(*size, shape, device, host=host)

    def draw(self, units: Units, draws: Draws) -> Units:
        """Noise levels, noise and errors of the past on it, on the target and on the context."""
        x0, context = units["x0"][:, CONTEXT:], units["x0"][:, :CONTEXT]
        sigma_B = shift_sigma(draws.uniform(len(x0)), self.shift)
        eps = draws.like(x0)
        context, on_clean, on_noise = self._errors(context, sigma_B, draws)
        sigma = per_frame(sigma_B[:, None])
        noise = eps + on_noise
        xt = (1 - sigma) * (x0 + on_clean) + sigma * noise
        return {
            "x": torch.cat([context, xt], 1), "sigma": sigma_B, "x0": x0, "noise": noise,
            "text": units["text"], "valid": units["valid"],
        }  # fmt: skip

    def loss(self, net: ObjectiveNet, batch: Units) -> tuple[Tensor, Tensor]:
        """Mean squared error of the target's flow."""
        v = score_flow(net, batch["x"], batch["sigma"], batch["text"], batch["valid"])
        return flow_loss(v, batch["x0"], batch["noise"]), v

    def learn(self, batch: Units, v: Tensor) -> None:
        """Stores some of the errors made."""
        few = slice(0, self.recycling.updates)
        v, sigma_B = v[few], batch["sigma"][few]
        goal, sigma = batch["noise"][few] - batch["x0"][few], per_frame(sigma_B[:, None])
        self.clean.add(clean_error(v, goal, sigma), sigma_B)
        self.noise.add(noise_error(v, goal, sigma), sigma_B)

    def _errors(
        self, context: Tensor, sigma_B: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Context with errors, and the errors on the target's clean latents and noise."""
        r, batch = self.recycling, len(context)
        flawed = ~draws.chance(r.clean, batch)

        def put(error: Tensor, there: Tensor, share: float) -> Tensor:
            keep = there & flawed & draws.chance(share, batch)
            return error * per_frame(keep[:, None].float())

        anywhere, there = self.clean.draw(draws, None, batch)
        context = context.clone()
        starts = draws.integers(TARGET - LOCAL + 1, batch)
        run = starts[:, None] + torch.arange(LOCAL, device=starts.device)
        rows = torch.arange(batch, device=starts.device)[:, None]
        context[:, SLOW_END:] += put(anywhere[rows, run], there, r.local)
        if r.long:
            context[:, :SLOW_END] += put(anywhere[:, :SLOW_END], there, r.long)
        on_clean = put(*self.clean.draw(draws, sigma_B, batch), r.target)
        on_noise = put(*self.noise.draw(draws, sigma_B, batch), r.noise)
        return context, on_clean, on_noise

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: both banks."""
        return {"clean": self.clean.state_dict(), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.clean.load_state_dict(state["clean"])
        self.noise.load_state_dict(state["noise"])

    def figures(self, net: ObjectiveNet, units: Units, draws: Draws) -> dict[str, Tensor]:
        """Losses without errors: of all clips, and of those where something returns.

        The latter also with another clip's sink and slow latents: what the long context is worth.
        Where nobody knows what returns, that is told of all clips.
        """
        x0 = units["x0"][:, CONTEXT:]
        eps, sigma_B = draws.like(x0), shift_sigma(draws.uniform(len(x0)), self.shift)
        sigma = per_frame(sigma_B[:, None])
        xt = (1 - sigma) * x0 + sigma * eps

        def error(context: Tensor, valid_BF: Tensor) -> Tensor:
            x = torch.cat([context, xt], 1)
            v = score_flow(net, x, sigma_B, units["text"], valid_BF)
            return (v - (eps - x0)).square().mean((1, 2, 3, 4))

        context, valid = units["x0"][:, :CONTEXT], units["valid"]
        whole = error(context, valid)
        swapped, other = context.clone(), valid.clone()
        swapped[:, :SLOW_END] = context[:, :SLOW_END].roll(1, 0)
        other[:, :SLOW_END] = valid[:, :SLOW_END].roll(1, 0)
        blind = error(swapped, other)
        if "returning" not in units:
            return {"flow_loss": whole.mean(), "flow_loss_swapped": blind.mean()}
        back = units["returning"].float()
        mass = back.sum().clamp(min=1)
        return {
            "flow_loss": whole.mean(),
            "returning_share": back.mean(),
            "returning_loss": (whole * back).sum() / mass,
            "returning_loss_swapped": (blind * back).sum() / mass,
        }
