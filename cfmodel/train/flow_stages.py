"""Stages ``base`` and ``causal-init``: flow matching, bidirectional and teacher-forced.

Dims: B batch, F latent frames, G chunks, S text tokens, E text width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmodel.config import Experiment
from cfmodel.flow import shift_sigma
from cfmodel.io.weights import save_weights
from cfmodel.nn.masks import frame_mask, teacher_forcing
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.train.loop import Trainable
from cfmodel.train.losses import flow_loss, noised
from cfmodel.train.pool import LatentPool

EMPTY_SHARE = 0.1
CONTEXT_NOISE = 0.2


class FlowStage:
    """What both stages share: the pool, the network, dropped prompts, and keeping weights.

    ``refill_every`` steps the pool takes in a batch of new clips until ``clips`` have been shown.
    """

    name = "base"

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        pool: LatentPool,
        empty_SE: Tensor,
        *,
        batch: int,
        lr: float,
        shift: float = 1.0,
        init: Mapping[str, Tensor] | None = None,
        refill_every: int = 10,
        clips: int = 20_000,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        self.experiment, self.device, self.pool, self.batch = experiment, device, pool, batch
        self.shift, self.refill_every, self.clips = shift, refill_every, clips
        self.empty_SE = empty_SE.to(device)
        self.net = VideoTransformer(experiment.model, experiment.geometry)
        self.net.reset_parameters(seed)
        if init is not None:
            self.net.load_state_dict(dict(init))
        self.net.to(device)
        self.trainable = Trainable(self.net, lr=lr, ema=0.999, warmup=300)
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._loss: Any = _FlowLoss(self.net)
        if compiled:
            # All blocks are one piece of code, so this compiles once.
            for block in self.net.blocks:
                block.compile()

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, their noise, and texts of which a tenth are empty."""
        x0, text = self.pool.read(self.batch)
        eps = torch.randn(x0.shape, generator=self._random, device=self.device)
        empty = self._uniform(len(x0)) < EMPTY_SHARE
        return x0, eps, torch.where(empty[:, None, None, None], self.empty_SE, text)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random, device=self.device)

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One update, and now and then new clips."""
        if step % self.refill_every == 0 and self.pool.distinct < self.clips:
            self.pool.refill()
        x0, eps, text = self._draw()
        loss = self._mixed(x0, eps, text)
        norm = self.trainable.update(loss, progress)
        return {"loss": loss.detach(), "norm": norm}

    def _mixed(self, x0: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self._objective(x0, eps, text)

    def _objective(self, x0: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        """Bidirectional: one noise level for all frames of a clip."""
        sigma_B = shift_sigma(self._uniform(len(x0)), self.shift)
        sigma_BF = sigma_B[:, None].expand(-1, x0.shape[1])
        return self._loss(noised(x0, eps, sigma_BF), sigma_BF, text, x0, eps)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The averaged network's loss on a fixed draw, and how many clips were shown."""
        live, self._loss = self._loss, _FlowLoss(self.trainable.ema)
        random, self._random = self._random, torch.Generator(self.device).manual_seed(1)
        losses = [self._mixed(*self._draw()).item() for _ in range(4)]
        self._loss, self._random = live, random
        return {
            "flow_loss": sum(losses) / len(losses),
            "distinct_clips": float(self.pool.distinct),
            "frames_rendered": float(self.pool.frames_rendered),
        }

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged weights."""
        path = out / f"{self.name}.safetensors"
        save_weights(
            path, self.trainable.ema.state_dict(), config=self.experiment.to_json(), record=record
        )
        return [path]


class CausalInitStage(FlowStage):
    """Teacher forcing: every chunk is denoised given the clean chunks before it, in one pass.

    The clean chunks carry a little noise, from none to ``CONTEXT_NOISE``, since a student's own
    chunks are not perfect either.

    Source: the causal initialisation that Self Forcing and Context Forcing begin from; the noise
    level is drawn per chunk.
    """

    name = "causal-init"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask = None

    def _objective(self, x0: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        frames, chunk = x0.shape[1], self.experiment.geometry.chunk
        if self._mask is None:
            self._mask = frame_mask(
                teacher_forcing(frames, chunk),
                2 * frames,
                self.experiment.geometry.tokens_per_frame,
                device=self.device,
            )
        sigma_BG = shift_sigma(self._uniform(len(x0), frames // chunk), self.shift)
        sigma_BF = sigma_BG.repeat_interleave(chunk, 1)
        spread = CONTEXT_NOISE * self._uniform(len(x0), 1, 1, 1, 1)
        context = x0 + spread * torch.randn(x0.shape, generator=self._random, device=self.device)
        return self._loss(
            torch.cat([context, noised(x0, eps, sigma_BF)], 1),
            torch.cat([torch.zeros_like(sigma_BF), sigma_BF], 1),
            torch.cat([text, text], 1),
            x0,
            eps,
            positions=torch.arange(frames, device=self.device).repeat(2),
            mask=self._mask,
        )


class _FlowLoss(nn.Module):
    """Network and loss in one module."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(
        self,
        xt: Tensor,
        sigma_BF: Tensor,
        text_BGSE: Tensor,
        x0: Tensor,
        eps: Tensor,
        positions: Tensor | None = None,
        mask: Any = None,
    ) -> Tensor:
        text = self.net.text_kv(text_BGSE)
        # The residual stream has the dtype of the latents; half of it is half of the traffic.
        xt = xt.to(torch.bfloat16) if xt.is_cuda else xt
        v = self.net(xt, sigma_BF, text, positions=positions, mask=mask).v_BFCXY
        return flow_loss(v[:, -x0.shape[1] :], x0, eps)
