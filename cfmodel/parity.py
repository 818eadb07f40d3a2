"""The transformer beside diffusers' on equal random weights: how far their outputs are apart.

Dims: B batch, F latent frames, C latent channels, X Y rows and columns of a latent, S text tokens,
E text width.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfmodel.config import Experiment, ModelConfig
from cfmodel.io.convert import diffusers_config
from cfmodel.io.wan import from_wan
from cfmodel.nn.transformer import VideoTransformer

TIMESTEPS = (937.5, 250.0)
SMALL: tuple[Mapping[str, int], ...] = (
    {"layers": 2, "width": 48, "heads": 2, "ffn": 96, "text_width": 24, "text_tokens": 4},
    {"layers": 3, "width": 96, "heads": 3, "ffn": 100, "text_width": 20, "text_tokens": 5},
    {"layers": 1, "width": 64, "heads": 1, "ffn": 32, "text_width": 8, "text_tokens": 2},
)
"""Sizes at which a CPU compares, beside those that are asked for."""


def _network(experiment: Experiment, device: torch.device, seed: int) -> Any:
    """Diffusers' network, random in every weight, float32."""
    from diffusers import WanTransformer3DModel

    config = {k: v for k, v in diffusers_config(experiment).items() if not k.startswith("_")}
    with torch.device(device):
        made: Any = WanTransformer3DModel(**config)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.2
            weight.normal_(std=scale, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return made.requires_grad_(False).eval()


@torch.no_grad()
def compare(
    experiment: Experiment,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    frames: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Largest and relative differences of both networks, in each dtype.

    Args:
        experiment: gives the sizes.
        device: where both run; in float32 without TF32.
        dtypes: of weights and inputs.
        frames: latent frames of the two films.
        seed: of weights and inputs.

    Returns:
        By dtype: ``max_abs`` and ``relative`` (root mean square over that of diffusers' output)
        between the two, and ``ours_to_fp32`` and ``theirs_to_fp32``, each one's own relative
        distance from diffusers' float32 output.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    theirs, geometry, model = (
        _network(experiment, device, seed),
        experiment.geometry,
        experiment.model,
    )
    mine = VideoTransformer(model, geometry).to(device)
    mine.load_state_dict(from_wan(theirs.state_dict(), model, "diffusers"))
    mine.requires_grad_(False).eval()
    x_BFCXY, tokens_BSE = _inputs(experiment, device, frames, seed)
    exact = _theirs(theirs, x_BFCXY, tokens_BSE)
    rows: dict[str, dict[str, float]] = {}
    for dtype in sorted(dtypes, key=lambda kind: kind != torch.float32):
        _cast(theirs, dtype)
        mine = mine.to(dtype)
        x, tokens = x_BFCXY.to(dtype), tokens_BSE.to(dtype)
        other, out = _theirs(theirs, x, tokens).float(), _ours(mine, x, tokens).float()
        rows[str(dtype).removeprefix("torch.")] = {
            "max_abs": float((out - other).abs().max()),
            "relative": _relative(out, other),
            "ours_to_fp32": _relative(out, exact),
            "theirs_to_fp32": _relative(other, exact),
        }
    return rows


def _cast(theirs: Any, dtype: torch.dtype) -> None:
    """Diffusers' network in another dtype, but for what it keeps in float32 when it loads."""
    kept = set(theirs._keep_in_fp32_modules)
    for name, weight in theirs.named_parameters():
        if not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)


def _inputs(
    experiment: Experiment, device: torch.device, frames: int, seed: int
) -> tuple[Tensor, Tensor]:
    model, generator = experiment.model, torch.Generator().manual_seed(seed + 1)
    shape = (len(TIMESTEPS), frames, model.latent_channels, *experiment.geometry.latent_size)
    x = torch.randn(shape, generator=generator)
    words = (len(TIMESTEPS), model.text_tokens, model.text_width)
    return x.to(device), torch.randn(words, generator=generator).to(device)


def _theirs(net: Any, x_BFCXY: Tensor, tokens_BSE: Tensor) -> Tensor:
    at = torch.tensor(TIMESTEPS, device=x_BFCXY.device)
    return net(x_BFCXY.transpose(1, 2), at, tokens_BSE, return_dict=False)[0].transpose(1, 2)


def _ours(net: VideoTransformer, x_BFCXY: Tensor, tokens_BSE: Tensor) -> Tensor:
    at = torch.tensor(TIMESTEPS, device=x_BFCXY.device)
    sigma_BF = (at / 1000)[:, None].expand(-1, x_BFCXY.shape[1])
    return net(x_BFCXY, sigma_BF, net.text_kv(tokens_BSE[:, None])).v_BFCXY


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def sizes(model: ModelConfig) -> list[ModelConfig]:
    """Small sizes in which both networks are compared on a CPU."""
    return [ModelConfig(**{**dict(row), "latent_channels": model.latent_channels}) for row in SMALL]


def run(
    experiment: Experiment,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    frames: int,
    small: bool,
) -> dict[str, Any]:
    """The record of the verb ``parity``: differences by size and dtype, and the worst in float32.

    ``small`` compares small sizes instead of the experiment's own.
    """
    began, compared = time.monotonic(), dict[str, Any]()
    models = sizes(experiment.model) if small else [experiment.model]
    for model in models:
        one = replace(experiment, model=model)
        name = f"{model.layers} layers of {model.width}"
        compared[name] = compare(one, device, dtypes, frames=frames)
    exact = [rows["float32"]["max_abs"] for rows in compared.values() if "float32" in rows]
    return {
        "preset": f"{experiment.family}/{experiment.name}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "frames": frames,
        "tokens_per_frame": experiment.geometry.tokens_per_frame,
        "compared": compared,
        "max_abs_fp32": max(exact) if exact else None,
        "seconds": round(time.monotonic() - began, 1),
    }
