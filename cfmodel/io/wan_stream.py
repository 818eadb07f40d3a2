"""Wan's VAE decoding in mid-film: several latents at once, with the cache that single ones leave.

diffusers decodes a latent at a time, and decides at each convolution what its cache is. In mid-film
there is nothing to decide, so that this is one program for the compiler, fewer and larger kernels,
and the same numbers.

Dims: B batch, C channels, F frames at the resolution of a layer, X Y rows and columns.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

REACH = 2
"""Frames before its own that a causal convolution reads, and that are kept for the next call."""


class _Walk:
    """The cache of one call: what each convolution finds, and what it leaves."""

    def __init__(self, found: list[Any]) -> None:
        self._found: Iterator[Any] = iter(found)
        self.left: list[Any] = []

    def convolve(self, layer: Any, x_BCFXY: Tensor) -> Tensor:
        """A causal convolution over the frames before and these."""
        whole = torch.cat([next(self._found), x_BCFXY], 2)
        self.left.append(whole[:, :, -REACH:].clone())
        columns, _, rows, *_ = layer._padding
        return nnf.conv3d(whole, layer.weight, layer.bias, padding=(0, rows, columns))

    def residual(self, block: Any, x_BCFXY: Tensor) -> Tensor:
        """Two normalised convolutions beside a shortcut."""
        h = self.convolve(block.conv1, nnf.silu(block.norm1(x_BCFXY)))
        h = self.convolve(block.conv2, nnf.silu(block.norm2(h)))
        return h + block.conv_shortcut(x_BCFXY)

    def upsample(self, layer: Any, x_BCFXY: Tensor) -> Tensor:
        """Twice the rows and columns, and where the layer has it twice the frames."""
        if layer.mode == "upsample3d":
            pairs = self.convolve(layer.time_conv, x_BCFXY).unflatten(1, (2, -1))
            x_BCFXY = torch.stack(pairs.unbind(1), 3).flatten(2, 3)
        frames = x_BCFXY.transpose(1, 2)
        images = frames.flatten(0, 1)
        # Nearest by a whole factor is repetition, in any dtype.
        images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        out = layer.resample[1](images)
        return out.unflatten(0, frames.shape[:2]).transpose(1, 2)


def decode_steady(vae: Any, latents_BCFXY: Tensor, features: list[Any]) -> tuple[Tensor, list[Any]]:
    """Pixel frames (B, 3, 4 F, Y, X) about -1..1 of latents in mid-film, and the cache after them.

    Args:
        vae: diffusers' ``AutoencoderKLWan`` of Wan 2.1.
        latents_BCFXY: in the VAE's own scale.
        features: what each causal convolution with a reach keeps, in the order of the decoder, two
            frames each, as decoding three latents one by one leaves it; further entries are none.

    Source: Wan 2.1's decoder.
    """
    net, walk = vae.decoder, _Walk(features)
    x = walk.convolve(net.conv_in, vae.post_quant_conv(latents_BCFXY))
    x = walk.residual(net.mid_block.resnets[0], x)
    for attend, block in zip(net.mid_block.attentions, net.mid_block.resnets[1:], strict=True):
        x = walk.residual(block, attend(x))
    for stage in net.up_blocks:
        for block in stage.resnets:
            x = walk.residual(block, x)
        for layer in stage.upsamplers or ():
            x = walk.upsample(layer, x)
    x = walk.convolve(net.conv_out, nnf.silu(net.norm_out(x)))
    return x, [*walk.left, *[None] * (len(features) - len(walk.left))]
