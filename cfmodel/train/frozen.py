"""Codec and text encoder as training uses them: frozen, batched, on the device."""

from typing import Protocol

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.io.codec import WanCodec
from cfmodel.io.text import HEADS, BytePooler, Umt5Text, byte_ids
from cfmodel.io.weights import Weights, load_into
from cfmodel.nn.tae import TinyAutoencoder

CLIPS_AT_ONCE = 32
TEXTS_AT_ONCE = 256


class Frozen(Protocol):
    """A family's codec and text encoder."""

    sha256: str
    """Hash of the codec's weights, mean and spread of its latents among them."""

    def encode(self, rgb: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y) of pixels (B, R, 3, Y, X) in [0, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, R, 3, Y, X) in [0, 1] of normalised latents, decoded as a film's beginning."""
        ...

    def reencode(self, latents: Tensor) -> Tensor:
        """The latent (B, 1, C, X, Y) of a film that begins with the last frame of these latents.

        Source: arXiv:2602.06028 section 7, step 5.
        """
        ...

    def embed(self, texts: list[str]) -> Tensor:
        """Embedded texts (N, S, E)."""
        ...


class TinyFrozen:
    """The tiny family's codec and text encoder.

    Args:
        experiment: gives their sizes.
        device: where they run.
        codec: weights of the autoencoder, with mean and spread of its latents.
        text: weights of the text encoder.
    """

    def __init__(
        self, experiment: Experiment, device: torch.device, *, codec: Weights, text: Weights
    ) -> None:
        self.device, self.sha256 = device, codec.sha256
        state = dict(codec.tensors)
        mean, std = state.pop("latents_mean"), state.pop("latents_std")
        self._mean = mean.float().to(device)[:, None, None]
        self._std = std.float().to(device)[:, None, None]
        net = TinyAutoencoder(experiment.codec)
        load_into(net, state, str(codec.path))
        self._codec = net.to(device).eval().requires_grad_(False)
        pooler = BytePooler(experiment.text)
        kept = {k: v for k, v in text.tensors.items() if not k.startswith(HEADS)}
        load_into(pooler, kept, str(text.path))
        self._text = pooler.to(device).eval().requires_grad_(False)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda")

    @torch.no_grad()
    def encode(self, rgb: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y) of pixels (B, R, 3, Y, X) in [0, 1]."""
        with self._mixed():
            latents = torch.cat([self._codec.encode(part) for part in rgb.split(CLIPS_AT_ONCE)])
        return (latents.float() - self._mean) / self._std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, R, 3, Y, X) in [0, 1] of normalised latents, decoded as a film's beginning."""
        raw = latents.float() * self._std + self._mean
        with self._mixed():
            parts = [self._codec.decode(part) for part in raw.split(CLIPS_AT_ONCE)]
        return torch.cat(parts).float().clamp(0, 1)

    def reencode(self, latents: Tensor) -> Tensor:
        """See ``Frozen``."""
        return self.encode(self.decode(latents)[:, -1:])

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Embedded texts (N, S, E)."""
        parts = [
            byte_ids(texts[k : k + TEXTS_AT_ONCE]) for k in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat([self._text(i.to(self.device), m.to(self.device)) for i, m in parts])


class WanFrozen:
    """Wan's VAE and UMT5. Films are encoded and decoded one by one, texts embedded once a call.

    Args:
        codec: the VAE.
        text: the text encoder.
        device: where latents and embeddings are given out.
    """

    def __init__(self, codec: WanCodec, text: Umt5Text, device: torch.device) -> None:
        self._codec, self._text, self.device = codec, text, device
        self.sha256 = codec.spec.sha256

    @torch.no_grad()
    def encode(self, rgb: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y) of pixels (B, R, 3, Y, X) in [0, 1]."""
        codec, parts = self._codec, list[Tensor]()
        for film in rgb.split(1):
            pixels = (film.to(codec.device) * 2 - 1).transpose(1, 2).to(codec.dtype)
            raw = codec.vae.encode(pixels).latent_dist.mode()
            parts.append(codec.normaliser.to_model(raw.transpose(1, 2)))
        return torch.cat(parts).to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, R, 3, Y, X) in [0, 1] of normalised latents, decoded as a film's beginning."""
        codec, parts = self._codec, list[Tensor]()
        for film in latents.split(1):
            raw = codec.normaliser.to_codec(film).to(codec.dtype).transpose(1, 2)
            parts.append(codec.vae.decode(raw).sample.transpose(1, 2).float() / 2 + 0.5)
        return torch.cat(parts).clamp(0, 1).to(self.device)

    def reencode(self, latents: Tensor) -> Tensor:
        """See ``Frozen``."""
        return self.encode(self.decode(latents)[:, -1:])

    def embed(self, texts: list[str]) -> Tensor:
        """Embedded texts (N, S, E); the empty one, for guidance, is embedded like any other."""
        distinct = list(dict.fromkeys(texts))
        rows = dict(zip(distinct, self._text.embed(distinct), strict=True))
        return torch.stack([rows[text] for text in texts]).to(self.device)
