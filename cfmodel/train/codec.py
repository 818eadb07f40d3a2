"""Stages ``codec`` and ``decoder``: the tiny autoencoder on clips rendered as they are needed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmodel.config import Experiment
from cfmodel.io.codec import MEAN, STD
from cfmodel.io.weights import load_into
from cfmodel.nn.tae import TinyAutoencoder
from cfmodel.train.data import Batch, contiguous_clips, world_stream
from cfmodel.train.pool import Ring, render_clips
from cfmodel.train.state import Trainable, write_weights

LATENT_NOISE = 0.04
LATENT_PULL = 1e-3
EDGES = 0.5
SQUARED = 16.0
CHUNKS = 3
POOL_CLIPS = 4096
FIRST_CLIPS = 2048
RENDERED = 32
REFILL_EVERY = 8


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of films (B, ...) with values in [0, 1], one a film."""
    error = (a - b).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))


class CodecStage:
    """Reconstruction (L1, squared error, and L1 of spatial differences) with noise on latents.

    The noise makes nearby latents decode alike, which a generator's errors need.

    Args:
        experiment: gives the sizes.
        device: where all of it is.
        init: weights of a codec whose decoder alone is trained further; its latents, and so all
            that was trained on them, stay what they are. None trains both halves from scratch.
        batch: clips a step.
        workers: processes that play scenes.
        compiled: compile the forward pass.
        lr: peak learning rate.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        *,
        init: Mapping[str, Tensor] | None = None,
        batch: int = 32,
        workers: int = 0,
        compiled: bool = False,
        lr: float = 1.2e-3,
    ) -> None:
        self.name = "codec" if init is None else "decoder"
        self.experiment, self.device, self.batch = experiment, device, batch
        self.net = TinyAutoencoder(experiment.codec)
        self._fixed: tuple[Tensor, Tensor] | None = None
        if init is not None:
            state = dict(init)
            self._fixed = state.pop(MEAN), state.pop(STD)
            load_into(self.net, state, "the codec to go on from")
            self.net.encoder.requires_grad_(False)
        self.net.to(device)
        self.trainable = Trainable(self.net, lr=lr, ema=0.999, weight_decay=0.0)
        self._forward: nn.Module | Any = _Roundtrip(self.net)
        if compiled:
            self._forward = torch.compile(self._forward)
        self._rendered, self._workers = min(RENDERED, 2 * batch), workers
        self._stream: Iterator[Batch] | None = None
        self._first_clips = FIRST_CLIPS if device.type == "cuda" else self._rendered
        self._pool = Ring(POOL_CLIPS)
        self._random = torch.Generator(device).manual_seed(0)
        self.frames, self._batches = 0, 0

    def _clip_stream(
        self, name: str, batch: int, *, first: int = 0, workers: int = 0
    ) -> Iterator[Batch]:
        clip = contiguous_clips(CHUNKS, start_share=0.2)
        return world_stream(clip, batch=batch, stream=name, workers=workers, first=first)

    def _held_out(self) -> Iterator[Batch]:
        return self._clip_stream("codec-held-out", min(self.batch, 16))

    def _pixels(self, stream: Iterator[Batch]) -> Tensor:
        rgb = render_clips(next(stream), self.experiment.geometry, self.device)
        self.frames += rgb.shape[0] * rgb.shape[1]
        return rgb

    def _refill(self) -> None:
        if self._stream is None:
            self._stream = self._clip_stream(
                "codec", self._rendered, first=self._batches, workers=self._workers
            )
        self._batches += 1
        self._pool.put({"rgb": (self._pixels(self._stream) * 255 + 0.5).to(torch.uint8)})

    def _clips(self, step: int) -> Tensor:
        """A batch from a refreshed pool, so that a clip serves a few times."""
        if step % REFILL_EVERY == 0:
            self._refill()
        return self._pool.draw(self.batch, self._random)["rgb"].float() / 255

    def begin(self) -> None:
        """Fills the pool."""
        while self._pool.filled < self._first_clips:
            self._refill()

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One update."""
        rgb = self._clips(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out, latents = self._forward(rgb, LATENT_NOISE * (1 - progress))
        out, latents = out.float(), latents.float()
        l1, l2 = (out - rgb).abs().mean(), (out - rgb).square().mean()
        edges = sum((out.diff(dim=d) - rgb.diff(dim=d)).abs().mean() for d in (-1, -2))
        pull = (latents.square().mean() - 1).relu() + latents.mean((0, 1, 3, 4)).square().mean()
        loss = l1 + SQUARED * l2 + EDGES * edges + LATENT_PULL * pull
        norm = self.trainable.update(loss, progress)
        error = -10 * torch.log10(l2.detach())
        return {"loss": loss.detach(), "psnr": error, "std": latents.std().detach(), "norm": norm}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR over held-out clips, and latent statistics that go into the weights file."""
        net: Any = self.trainable.ema.eval()
        held_out = self._held_out()
        values: list[Tensor] = []
        latents: list[Tensor] = []
        for _ in range(16 if self.device.type == "cuda" else 1):
            rgb = self._pixels(held_out)
            z = net.encode(rgb)
            out = net.decode(z).clamp(0, 1)
            values.append(psnr(out, rgb))
            latents.append(z)
        film = torch.cat(values)
        z = torch.cat(latents)
        self._mean, self._std = self._fixed or (z.mean((0, 1, 3, 4)), z.std((0, 1, 3, 4)))
        return {
            "psnr_db": film.mean().item(),
            "psnr_db_p5": film.quantile(0.05).item(),
            "films": float(len(film)),
            "frames_rendered": float(self.frames),
        }

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged weights with the latents' mean and spread."""
        if record.get("partial"):
            self.evaluate()
        tensors = {
            **self.trainable.export(),
            MEAN: self._mean,
            STD: self._std,
        }
        path = out / "codec.safetensors"
        write_weights(path, tensors, config=self.experiment.to_json(), record=record)
        return [path]

    @torch.no_grad()
    def samples(self) -> Tensor:
        """Two held-out clips, each above what is made of it."""
        net: Any = self.trainable.ema
        rgb = render_clips(next(self._held_out()), self.experiment.geometry, self.device)[:2]
        return torch.stack([rgb, net.decode(net.encode(rgb))], 1).flatten(0, 1)

    def trainables(self) -> dict[str, Trainable]:
        """The autoencoder."""
        return {"net": self.trainable}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: clips, place in the stream, and which are read next."""
        return {
            "pool": self._pool.state_dict(), "random": self._random.get_state(),
            "batches": self._batches, "frames": self.frames,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self._pool.load_state_dict(state["pool"], self.device)
        self._random.set_state(state["random"])
        self._batches, self.frames, self._stream = state["batches"], state["frames"], None


class _Roundtrip(nn.Module):
    def __init__(self, net: TinyAutoencoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, rgb: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        latents = self.net.encode(rgb)
        noisy = latents + noise * torch.randn_like(latents)
        return self.net.decode(noisy), latents
