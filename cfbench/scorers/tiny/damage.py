"""What can go wrong with pictures, batched: for augmentation and to teach what damage looks like.

N images, R frames of a clip, Y X pixels. Frames are in [0, 1]. All draws come from a given
generator on the frames' device. A ``Damage`` takes clips (N, R, 3, Y, X) and severities (N,) in
[0, 1] and returns their middle frames, damaged.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

BLOCK = 8
_SIGMAS = (0.6, 1.2, 2.4)

Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class Codec(Protocol):
    """Video autoencoder: 1 + 4 k frames to 1 + k latents and back."""

    def encode(self, frames_BRCYX: Tensor) -> Tensor:
        """Latents of frames."""
        ...

    def decode(self, latents_BFCXY: Tensor) -> Tensor:
        """Frames of latents."""
        ...


def uniform(n: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draws (n,) in [low, high) on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device) * (high - low) + low


def _each(value_N: Tensor, like: Tensor) -> Tensor:
    return value_N.view(-1, *[1] * (like.ndim - 1))


def _gauss(x_NCYX: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    at = torch.arange(-radius, radius + 1, device=x_NCYX.device, dtype=x_NCYX.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    n, c, rows, columns = x_NCYX.shape
    flat = x_NCYX.reshape(n * c, 1, rows, columns)
    flat = nnf.conv2d(nnf.pad(flat, (radius, radius, 0, 0), "replicate"), kernel)
    flat = nnf.conv2d(nnf.pad(flat, (0, 0, radius, radius), "replicate"), kernel.transpose(2, 3))
    return flat.view_as(x_NCYX)


def blur(x_NCYX: Tensor, amount_N: Tensor) -> Tensor:
    """Gaussian blur whose width grows with ``amount`` in [0, 1], mixed from four fixed widths."""
    steps = [x_NCYX, *(_gauss(x_NCYX, sigma) for sigma in _SIGMAS)]
    at = amount_N.clamp(0, 1) * (len(steps) - 1)
    return sum(
        (x * _each((1 - (at - k).abs()).clamp(min=0), x) for k, x in enumerate(steps)),
        start=torch.zeros_like(x_NCYX),
    )


def noise(x_NCYX: Tensor, sigma_N: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of a deviation for each image."""
    white = torch.randn(x_NCYX.shape, generator=generator, device=x_NCYX.device)
    return (x_NCYX + white * _each(sigma_N, x_NCYX)).clamp(0, 1)


def shrink(x_NCYX: Tensor, factor: float) -> Tensor:
    """Reduced by ``factor`` and enlarged again."""
    small = nnf.interpolate(x_NCYX, scale_factor=1 / factor, mode="area")
    return nnf.interpolate(small, size=x_NCYX.shape[2:], mode="bilinear", align_corners=False)


def quantise(x_NCYX: Tensor, step_N: Tensor) -> Tensor:
    """Rounds the cosine coefficients of 8 x 8 blocks, coarser for finer detail, as JPEG does."""
    n, c, rows, columns = x_NCYX.shape
    k = torch.arange(BLOCK, device=x_NCYX.device, dtype=x_NCYX.dtype)
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    blocks = x_NCYX.view(n, c, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    step = _each(step_N, blocks) * (1 + 0.6 * (k[:, None] + k[None]))
    step = step.clamp(min=1e-4)
    back = basis.T @ (torch.round(coefficients / step) * step) @ basis
    return back.transpose(3, 4).reshape(x_NCYX.shape).clamp(0, 1)


def tint(x_NCYX: Tensor, amount_N: Tensor, generator: torch.Generator) -> Tensor:
    """Channel gains, brightness and contrast, each off by up to ``amount``."""
    n = len(x_NCYX)
    draws = torch.rand(n, 5, generator=generator, device=x_NCYX.device) * 2 - 1
    draws = draws * amount_N[:, None]
    gain = 1 + draws[:, :3] + draws[:, 3:4]
    mean = x_NCYX.mean((1, 2, 3), keepdim=True)
    flat = (x_NCYX - mean) * _each(1 + draws[:, 4], x_NCYX) + mean
    return (flat * gain[:, :, None, None]).clamp(0, 1)


def bleed(x_NCYX: Tensor, amount_N: Tensor) -> Tensor:
    """Colours flow over edges; brightness stays."""
    light = x_NCYX.mean(1, keepdim=True)
    colour = x_NCYX - light
    soft = _gauss(_gauss(colour, 2.4), 2.4)
    mixed = colour + (soft - colour) * _each(amount_N, x_NCYX)
    return (light + mixed).clamp(0, 1)


def wobble(x_NCYX: Tensor, pixels_N: Tensor, generator: torch.Generator) -> Tensor:
    """Displaces smoothly at random, by up to about ``pixels``: shapes melt."""
    n, _, rows, columns = x_NCYX.shape
    coarse = torch.randn(n, 2, 6, 9, generator=generator, device=x_NCYX.device)
    shift = nnf.interpolate(coarse, size=(rows, columns), mode="bicubic", align_corners=False)
    size = torch.tensor([columns, rows], device=x_NCYX.device).view(1, 2, 1, 1)
    shift = shift * _each(pixels_N, shift) * 2 / size
    y = torch.linspace(-1, 1, rows, device=x_NCYX.device)
    x = torch.linspace(-1, 1, columns, device=x_NCYX.device)
    grid = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1)
    grid = grid + shift.permute(0, 2, 3, 1)
    return nnf.grid_sample(x_NCYX, grid, padding_mode="border", align_corners=True)


def degrade(
    x_NCYX: Tensor, generator: torch.Generator, strength: float = 1.0, *, melt: bool = True
) -> Tensor:
    """Augmentation: each image keeps or gets tint, bleeding, blur, reduction, blocks and noise.

    ``melt`` also displaces by up to a pixel or so.
    """
    n = len(x_NCYX)

    def some(share: float, high: float) -> Tensor:
        chosen = uniform(n, generator) < share
        return uniform(n, generator, 0, high * strength) * chosen

    x = x_NCYX
    x = tint(x, some(0.7, 0.09), generator)
    x = bleed(x, some(0.3, 0.7))
    x = blur(x, some(0.5, 0.75))
    small = shrink(x, 2.0)
    x = torch.where(_each(uniform(n, generator) < 0.15 * strength, x), small, x)
    if melt:
        x = wobble(x, some(0.3, 0.8), generator)
    x = quantise(x, some(0.4, 0.08))
    return noise(x, some(0.4, 0.06), generator)


def _middle(clip_NRCYX: Tensor) -> Tensor:
    return clip_NRCYX[:, clip_NRCYX.shape[1] // 2]


def _blurred(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return blur(_middle(clip), severity)


def _noisy(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return noise(_middle(clip), 0.15 * severity, generator)


def _shrunk(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    x = _middle(clip)
    return x + (shrink(x, 4.0) - x) * _each(severity, x)


def _blocky(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return quantise(_middle(clip), 0.25 * severity)


def _bled(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return bleed(_middle(clip), severity)


def _ghosted(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    x = _middle(clip)
    other = torch.where(_each(uniform(len(x), generator) < 0.5, x), clip[:, 0], clip[:, -1])
    return x + (other - x) * _each(0.5 * severity, x)


def _melted(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return wobble(_middle(clip), 4.0 * severity, generator)


def _melted_soft(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    return bleed(blur(wobble(_middle(clip), 3.0 * severity, generator), 0.6 * severity), severity)


def _through(codec: Codec, change: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> Damage:
    def damage(clip: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            latents = change(codec.encode(clip).float(), severity, generator)
            return codec.decode(latents).float()[:, clip.shape[1] // 2].clamp(0, 1)

    return damage


def _latent_noise(z: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    white = torch.randn(z.shape, generator=generator, device=z.device)
    return z + white * z.std() * _each(0.8 * severity, z)


def _latent_smooth(z: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    soft = _gauss(z.flatten(0, 1), 1.0).view_as(z)
    return z + (soft - z) * _each(severity, z)


def _latent_mix(z: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    other = z.roll(1, 2)
    return z + (other - z) * _each(0.4 * severity, z)


def _latent_average(z: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Towards another scene's latents: what an undecided model paints."""
    return z + (z.roll(1, 0) - z) * _each(0.45 * severity, z)


def damages(codec: Codec | None) -> dict[str, Damage]:
    """All kinds of damage by name; those of latents need a codec."""
    kinds: dict[str, Damage] = {
        "blur": _blurred,
        "noise": _noisy,
        "shrink": _shrunk,
        "blocks": _blocky,
        "bleed": _bled,
        "ghost": _ghosted,
        "melt": _melted,
        "melt-soft": _melted_soft,
    }
    if codec is not None:
        kinds |= {
            "latent-noise": _through(codec, _latent_noise),
            "latent-smooth": _through(codec, _latent_smooth),
            "latent-mix": _through(codec, _latent_mix),
            "latent-average": _through(codec, _latent_average),
        }
    return kinds
