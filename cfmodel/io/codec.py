"""Codecs behind one protocol: the small autoencoder and the Wan VAE, both decoding as a stream.

Model latents are normalised: zero mean and unit spread in each channel. Pixels are uint8 RGB.

Dims: B batch, R pixel frames, F latent frames, C latent channels, Y X rows and columns of a pixel
frame, in latents X Y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cfmodel.config import CodecConfig
from cfmodel.io.wan_stream import decode_steady
from cfmodel.io.weights import Weights, load_into, randomize, tensors_sha256
from cfmodel.nn.tae import StreamState, TinyAutoencoder

LEVELS = 255
MEAN, STD = "latents_mean", "latents_std"
PIXELS_AT_ONCE = 2**25
"""Pixels decoded or encoded in one call: bounds memory, and is a whole film at small sizes."""
WAN_FIRST, WAN_AT_ONCE = 3, 3
"""Latents that Wan's VAE decodes one by one until its cache is full, and together afterwards."""
NANO_GAIN = 1.0
"""Contrast of random weights' pixels, so that films made with them are not one grey."""


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """What decoded a film. ``strides`` are time, rows, columns."""

    name: str
    sha256: str
    channels: int
    strides: tuple[int, int, int]


class Decoder(Protocol):
    """Decodes one batch of films, in order."""

    def push(self, latents_BFCXY: Tensor) -> Tensor:
        """Pixel frames (B, R, Y, X, 3) uint8 of the next latents."""
        ...


class Codec(Protocol):
    """Pixel frames to normalised latents and back."""

    spec: CodecSpec

    def encode(self, frames_BRYXC: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y) float32 of whole films, R = 1 + stride * (F - 1)."""
        ...

    def decoder(self, batch: int) -> Decoder:
        """A stream for ``batch`` films, at their beginning."""
        ...


def to_uint8(frames_BRCYX: Tensor) -> Tensor:
    """Frames (B, R, Y, X, 3) uint8 of frames (B, R, 3, Y, X) whose white is 1."""
    levels = (frames_BRCYX.float().clamp(0, 1) * LEVELS).round()
    return levels.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def to_unit(frames_BRYXC: Tensor) -> Tensor:
    """Frames (B, R, 3, Y, X) float32 in [0, 1] of uint8 frames (B, R, Y, X, 3).

    Raises:
        ValueError: another dtype or shape.
    """
    if frames_BRYXC.dtype != torch.uint8 or frames_BRYXC.ndim != 5 or frames_BRYXC.shape[-1] != 3:
        raise ValueError(
            f"frames {frames_BRYXC.dtype} {tuple(frames_BRYXC.shape)}: expected uint8 "
            "(B, R, Y, X, 3)"
        )
    return frames_BRYXC.permute(0, 1, 4, 2, 3).float() / LEVELS


class _Normaliser:
    """Per-channel mean and spread of a codec's own latents."""

    def __init__(self, mean_C: Tensor, std_C: Tensor, device: torch.device) -> None:
        self._mean = mean_C.float().to(device)[:, None, None]
        self._std = std_C.float().to(device)[:, None, None]

    def to_model(self, raw_BFCXY: Tensor) -> Tensor:
        return (raw_BFCXY.float() - self._mean) / self._std

    def to_codec(self, latents_BFCXY: Tensor) -> Tensor:
        return latents_BFCXY.float().to(self._mean.device) * self._std + self._mean


class TaeCodec:
    """The small autoencoder.

    Args:
        net: autoencoder, moved to ``device`` and ``dtype``.
        mean_C: mean of its latents, by channel.
        std_C: their standard deviation.
        name: what records call it.
        sha256: hash of its weights.
        device: where it runs.
        dtype: of its convolutions.
    """

    def __init__(
        self,
        net: TinyAutoencoder,
        mean_C: Tensor,
        std_C: Tensor,
        *,
        name: str,
        sha256: str,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.net = net.to(self.device, dtype).eval()
        self.normaliser = _Normaliser(mean_C, std_C, self.device)
        space = net.space_stride
        self.spec = CodecSpec(
            name=name,
            sha256=sha256,
            channels=net.config.latent_channels,
            strides=(net.time_stride, space, space),
        )

    @torch.no_grad()
    def encode(self, frames_BRYXC: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y), float32 on the codec's device.

        Raises:
            ValueError: dtype, shape or number of frames does not fit.
        """
        stride = self.net.time_stride
        state: StreamState | None = None
        parts = []
        step = stride * _latents_at_once(frames_BRYXC[:, 0, ..., 0].numel() * stride)
        first = min(1 + step - stride, frames_BRYXC.shape[1])
        sizes = [first, *[step] * ((frames_BRYXC.shape[1] - first) // step)]
        rest = frames_BRYXC.shape[1] - sum(sizes)
        for part in frames_BRYXC.split([*sizes, *([rest] if rest else [])], dim=1):
            pixels = to_unit(part.to(self.device)).to(self.dtype)
            raw, state = self.net.encode_stream(state, pixels)
            parts.append(self.normaliser.to_model(raw))
        return torch.cat(parts, dim=1)

    def decoder(self, batch: int) -> "TaeDecoder":
        """A stream for ``batch`` films."""
        return TaeDecoder(self, batch)


class TaeDecoder:
    """Films being decoded by the small autoencoder; holds one frame of features a block."""

    def __init__(self, codec: TaeCodec, batch: int) -> None:
        self._codec = codec
        self._batch = batch
        self._state: StreamState | None = None

    @torch.no_grad()
    def push(self, latents_BFCXY: Tensor) -> Tensor:
        """Pixel frames (B, R, Y, X, 3) uint8 on the codec's device.

        Raises:
            ValueError: the latents are of another number of films.
        """
        _check_batch(latents_BFCXY, self._batch)
        net, frames = self._codec.net, []
        pixels = latents_BFCXY[:, 0, 0].numel() * net.space_stride**2 * net.time_stride
        for part in latents_BFCXY.split(_latents_at_once(pixels), dim=1):
            raw = self._codec.normaliser.to_codec(part).to(self._codec.dtype)
            out, self._state = net.decode_stream(self._state, raw)
            frames.append(to_uint8(out))
        return torch.cat(frames, dim=1)


def _latents_at_once(pixels: int) -> int:
    return max(1, PIXELS_AT_ONCE // pixels)


def _check_batch(latents_BFCXY: Tensor, batch: int) -> None:
    if latents_BFCXY.ndim != 5 or latents_BFCXY.shape[0] != batch:
        raise ValueError(
            f"latents {tuple(latents_BFCXY.shape)}: expected (B, F, C, X, Y) with B = {batch} films"
        )


class WanCodec:
    """The Wan VAE of diffusers, with its feature cache carried from chunk to chunk.

    Args:
        vae: an ``AutoencoderKLWan``, moved to ``device`` and ``dtype``; its config holds the mean
            and spread of its latents.
        sha256: hash of its weights.
        device: where it runs.
        dtype: of its convolutions.

    Source: Wan 2.1; the first latent decodes to one pixel frame, each later one to four.
    """

    def __init__(
        self, vae: Any, *, sha256: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.vae = vae.to(self.device, dtype).eval()
        config = vae.config
        self.normaliser = _Normaliser(
            torch.tensor(config.latents_mean), torch.tensor(config.latents_std), self.device
        )
        space = 2 ** (len(config.dim_mult) - 1)
        self.spec = CodecSpec(
            name="wan",
            sha256=sha256,
            channels=config.z_dim,
            strides=(2 ** sum(config.temperal_downsample), space, space),
        )
        self.steady: Callable[[Tensor, list[Any]], tuple[Tensor, list[Any]]] = self._steady
        if self.device.type == "cuda":
            self._lay_out()

    def compile_parts(self) -> None:
        """Has the compiler make one program of decoding ``WAN_AT_ONCE`` latents in mid-film."""
        self.steady = torch.compile(self._steady, fullgraph=True, dynamic=False)

    def _steady(self, x_BCFXY: Tensor, features: list[Any]) -> tuple[Tensor, list[Any]]:
        return decode_steady(self.vae, x_BCFXY, features)

    def _lay_out(self) -> None:
        """Channels last, as the convolutions of tensor cores want them."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in self.vae.parameters():
            if parameter.ndim in formats:
                parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])

    @torch.no_grad()
    def encode(self, frames_BRYXC: Tensor) -> Tensor:
        """Normalised latents (B, F, C, X, Y), the posterior's mean, float32.

        Raises:
            ValueError: dtype or shape does not fit.
        """
        pixels_BRCYX = to_unit(frames_BRYXC.to(self.device)) * 2 - 1
        posterior = self.vae.encode(pixels_BRCYX.transpose(1, 2).to(self.dtype)).latent_dist
        return self.normaliser.to_model(posterior.mode().transpose(1, 2))

    def decoder(self, batch: int) -> "WanDecoder":
        """A stream for ``batch`` films."""
        return WanDecoder(self, batch)


class WanDecoder:
    """Films being decoded by the Wan VAE; holds the last frames of each causal convolution."""

    def __init__(self, codec: WanCodec, batch: int) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self._codec = codec
        self._batch = batch
        convolutions = (isinstance(m, WanCausalConv3d) for m in codec.vae.decoder.modules())
        self._features: list[Any] = [None] * sum(convolutions)
        self._seen = 0
        self._fixed = False

    @torch.no_grad()
    def push(self, latents_BFCXY: Tensor) -> Tensor:
        """Pixel frames (B, R, Y, X, 3) uint8 on the codec's device.

        Raises:
            ValueError: the latents are of another number of films.
        """
        _check_batch(latents_BFCXY, self._batch)
        frames = []
        raw_BFCXY = self._codec.normaliser.to_codec(latents_BFCXY).to(self._codec.dtype)
        rest = raw_BFCXY.transpose(1, 2)
        while rest.shape[2]:
            size = 1 if self._seen < WAN_FIRST else WAN_AT_ONCE
            out_BCRYX = self._decode(rest[:, :, :size])
            frames.append(to_uint8(out_BCRYX.transpose(1, 2) / 2 + 0.5))
            rest = rest[:, :, size:]
        return torch.cat(frames, dim=1)

    def _held(self) -> list[Any]:
        """The cache in tensors laid out alike from call to call, so that this compiles once."""
        if not self._fixed:
            layout = torch.channels_last_3d
            self._features = [
                None if x is None else torch.empty_like(x, memory_format=layout).copy_(x)
                for x in self._features
            ]
            self._fixed = True
        return self._features

    def _decode(self, x_BCFXY: Tensor) -> Tensor:
        codec, count, first = self._codec, x_BCFXY.shape[2], self._seen == 0
        self._seen += count
        if count == WAN_AT_ONCE:  # in mid-film
            out, found = codec.steady(x_BCFXY, self._held())
            for mine, new in zip(self._features, found, strict=True):
                if new is not None:
                    mine.copy_(new)
            return out
        self._fixed = False
        # The VAE's own decode() empties the cache; its parts do not.
        return codec.vae.decoder(
            codec.vae.post_quant_conv(x_BCFXY),
            feat_cache=self._features, feat_idx=[0], first_chunk=first,
        )  # fmt: skip


def tae_codec(
    config: CodecConfig, weights: Weights, *, device: torch.device | str, dtype: torch.dtype
) -> TaeCodec:
    """The small autoencoder with weights of a file that also holds the latents' mean and spread.

    Raises:
        ValueError: the weights do not fit the config.
    """
    tensors = dict(weights.tensors)
    net = TinyAutoencoder(config)
    ones = torch.ones(config.latent_channels)
    mean, std = tensors.pop(MEAN, None), tensors.pop(STD, None)
    if mean is None or std is None or mean.shape != ones.shape or std.shape != ones.shape:
        raise ValueError(
            f"{weights.path} lacks {MEAN} or {STD} of {config.latent_channels} channels; "
            "save the codec with both"
        )
    load_into(net, tensors, str(weights.path))
    name = f"{weights.path.parent.name}/{weights.path.stem}"
    return TaeCodec(net, mean, std, name=name, sha256=weights.sha256, device=device, dtype=dtype)


def random_codec(
    config: CodecConfig, *, device: torch.device | str, dtype: torch.dtype
) -> TaeCodec:
    """The small autoencoder with random weights, always the same ones: for tests, not for films."""
    net = TinyAutoencoder(config)
    randomize(net, "codec")
    with torch.no_grad():
        last = net.decoder[-1]
        last.get_parameter("weight").mul_(NANO_GAIN)
        last.get_parameter("bias").fill_(0.5)
    sha256 = tensors_sha256(net.state_dict())
    mean = torch.zeros(config.latent_channels)
    return TaeCodec(
        net, mean, mean + 1, name="nano-random", sha256=sha256, device=device, dtype=dtype
    )
