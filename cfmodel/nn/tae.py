"""Small causal video autoencoder in the TAEHV layout: 2-D convolutions, one frame of memory.

Dims: B batch, R pixel frames, F latent frames, T frames at any depth, N images (B * T),
C channels, rows and columns of an image Y X, of a latent X Y.

Between its layers features are images N C . . in channels-last memory.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfmodel.config import CodecConfig

RGB = 3
BLOCKS = 3
LATENT_BOUND = 3.0

StreamState = tuple[Tensor, ...]
"""The last frame's input of every memory block, B C . . each, in the order of the blocks."""


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Bound(nn.Module):
    """Soft clamp of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """``3 * tanh(x / 3)``."""
        return LATENT_BOUND * torch.tanh(x / LATENT_BOUND)


class MemoryBlock(nn.Module):
    """Residual block over a frame and the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x_NCYX: Tensor, batch: int, before_BCYX: Tensor | None) -> Tensor:
        """Features of all frames at once.

        Args:
            x_NCYX: features, N = batch * frames.
            batch: number of films.
            before_BCYX: features of the frame before the first; None is the film's beginning.
        """
        # Joining in channels-last order keeps the convolution free of a layout change.
        x_NYXC = x_NCYX.permute(0, 2, 3, 1)
        x_BTYXC = x_NYXC.unflatten(0, (batch, -1))
        if before_BCYX is None:
            before_BYXC = torch.zeros_like(x_BTYXC[:, 0])
        else:
            before_BYXC = before_BCYX.permute(0, 2, 3, 1)
        past_BTYXC = torch.cat([before_BYXC[:, None], x_BTYXC[:, :-1]], dim=1)
        both_NYXC = torch.cat([x_NYXC, past_BTYXC.flatten(0, 1)], dim=-1)
        return torch.relu(self.conv(both_NYXC.permute(0, 3, 1, 2)) + x_NCYX)


class Pool(nn.Module):
    """Merges ``stride`` frames into one by a 1x1 convolution over their channels."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Images (N / stride) C Y X."""
        if self.stride > 1:
            x_NsYXC = x_NCYX.permute(0, 2, 3, 1).unflatten(0, (-1, self.stride))
            x_NCYX = x_NsYXC.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        return self.conv(x_NCYX)


class Grow(nn.Module):
    """Splits a frame into ``stride`` frames by a 1x1 convolution, then upsamples by ``scale``.

    The layout upsamples first; a 1x1 convolution commutes with that and costs less before it.
    """

    def __init__(self, width: int, stride: int, scale: int) -> None:
        super().__init__()
        self.stride = stride
        self.scale = scale
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Images (N * stride) C (scale * Y) (scale * X)."""
        x_NCYX = self.conv(x_NCYX)
        if self.stride > 1:
            x_NYXsC = x_NCYX.permute(0, 2, 3, 1).unflatten(-1, (self.stride, -1))
            x_NCYX = x_NYXsC.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)
        if self.scale > 1:
            x_NCYX = nnf.interpolate(x_NCYX, scale_factor=float(self.scale), mode="nearest")
        return x_NCYX


def _encoder(config: CodecConfig) -> nn.Sequential:
    width = config.encoder_width
    layers: list[nn.Module] = [_conv(RGB * config.patch**2, width), nn.ReLU()]
    for space, time in zip(reversed(config.space), reversed(config.time), strict=True):
        layers += [Pool(width, time), _conv(width, width, stride=space, bias=False)]
        layers += [MemoryBlock(width) for _ in range(BLOCKS)]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def _decoder(config: CodecConfig) -> nn.Sequential:
    first, last = config.widths[0], config.widths[-1]
    layers: list[nn.Module] = [Bound(), _conv(config.latent_channels, first), nn.ReLU()]
    for stage, (space, time) in enumerate(zip(config.space, config.time, strict=True)):
        width, following = config.widths[stage : stage + 2]
        layers += [MemoryBlock(width) for _ in range(BLOCKS)]
        # The layout counts the upsampling as a layer of its own; the identity keeps the numbering.
        layers += [nn.Identity(), Grow(width, time, space), _conv(width, following, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(last, RGB * config.patch**2))


class TinyAutoencoder(nn.Module):
    """Video autoencoder whose latents have Wan's frame layout: the first holds one pixel frame.

    Pixels are in [0, 1]. The encoder repeats the first pixel frame in front so that frames divide
    evenly, and the decoder drops as many. Every method may be called under autograd.

    Raises:
        ValueError: ``widths``, ``space`` and ``time`` of the config disagree in length.

    Source: TAEHV by Ollin Boer Bohan; with the default config, keys and shapes are taew2_1's.
    Deviation: the encoder pads in front, as the Wan VAE does, where TAEHV pads at the end.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        if not len(config.widths) - 1 == len(config.space) == len(config.time):
            raise ValueError(
                f"codec.widths={config.widths}, space={config.space}, time={config.time}: expected "
                "one width more than there are entries in space and in time"
            )
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def time_stride(self) -> int:
        """Pixel frames a latent frame, but for the first."""
        return math.prod(self.config.time)

    @property
    def space_stride(self) -> int:
        """Pixels a latent pixel, along either axis."""
        return self.config.patch * math.prod(self.config.space)

    def encode(self, frames_BRCYX: Tensor) -> Tensor:
        """Latents B F C X Y of pixel frames in [0, 1], R = 1 + stride * (F - 1).

        Raises:
            ValueError: number or size of the frames does not fit the strides.
        """
        return self._encode(frames_BRCYX, None, carry=False)[0]

    def encode_stream(
        self, state: StreamState | None, frames_BRCYX: Tensor
    ) -> tuple[Tensor, StreamState]:
        """Latents of the next frames of a film, and the state to hand to the next call.

        Args:
            state: None at the film's beginning, where R = 1 + stride * (F - 1), as in ``encode``;
                later R = stride * F.
            frames_BRCYX: pixel frames in [0, 1].
        """
        return self._encode(frames_BRCYX, state, carry=True)

    def decode(self, latents_BFCXY: Tensor) -> Tensor:
        """Pixel frames B R 3 Y X, near [0, 1] but not clamped, R = 1 + stride * (F - 1)."""
        return self._decode(latents_BFCXY, None, carry=False)[0]

    def decode_stream(
        self, state: StreamState | None, latents_BFCXY: Tensor
    ) -> tuple[Tensor, StreamState]:
        """Pixel frames of the next latents of a film, and the state to hand to the next call.

        Args:
            state: None at the film's beginning.
            latents_BFCXY: one latent frame or more.
        """
        return self._decode(latents_BFCXY, state, carry=True)

    def _encode(
        self, frames_BRCYX: Tensor, state: StreamState | None, *, carry: bool
    ) -> tuple[Tensor, StreamState]:
        batch, _, channels, rows, columns = frames_BRCYX.shape
        if state is None:
            lead = frames_BRCYX[:, :1].expand(-1, self.time_stride - 1, -1, -1, -1)
            frames_BRCYX = torch.cat([lead, frames_BRCYX], dim=1)
        extra = frames_BRCYX.shape[1] % self.time_stride
        if extra or channels != RGB or rows % self.space_stride or columns % self.space_stride:
            raise ValueError(
                f"frames {tuple(frames_BRCYX.shape)} ({self.time_stride - 1} repeats of the first "
                f"included at a film's beginning): expected B, a multiple of {self.time_stride}, "
                f"{RGB}, and rows and columns that divide by {self.space_stride}"
            )
        x = _channels_last(frames_BRCYX)
        x = nnf.pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x
        x, state = _run(self.encoder, x, batch, state, carry=carry)
        return x.unflatten(0, (batch, -1)), state

    def _decode(
        self, latents_BFCXY: Tensor, state: StreamState | None, *, carry: bool
    ) -> tuple[Tensor, StreamState]:
        batch, _, channels, _, _ = latents_BFCXY.shape
        if channels != self.config.latent_channels:
            raise ValueError(
                f"latents {tuple(latents_BFCXY.shape)}: expected {self.config.latent_channels} "
                "channels on the third axis"
            )
        surplus = self.time_stride - 1 if state is None else 0
        x, state = _run(self.decoder, _channels_last(latents_BFCXY), batch, state, carry=carry)
        x = nnf.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x
        return x.unflatten(0, (batch, -1))[:, surplus:], state


def _channels_last(x_BTCYX: Tensor) -> Tensor:
    return x_BTCYX.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _run(
    layers: Iterable[nn.Module],
    x_NCYX: Tensor,
    batch: int,
    state: StreamState | None,
    *,
    carry: bool,
) -> tuple[Tensor, StreamState]:
    """All layers over all frames; with ``carry`` also the state that the next frames need."""
    carried: list[Tensor] = []
    block = 0
    for layer in layers:
        if not isinstance(layer, MemoryBlock):
            x_NCYX = layer(x_NCYX)
            continue
        last = x_NCYX.unflatten(0, (batch, -1))[:, -1]
        x_NCYX = layer(x_NCYX, batch, None if state is None else state[block])
        block += 1
        if carry:
            # A view would keep the features of all frames alive between calls.
            carried.append(last.clone())
    return x_NCYX, tuple(carried)
