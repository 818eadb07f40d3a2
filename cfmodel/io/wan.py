"""Names of weights: ours, the original Wan 2.1 release's, and diffusers'. Strict, both ways.

Only the patch embedding differs in shape: a (1, 2, 2) convolution there, a linear layer here.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from cfmodel.config import Geometry, ModelConfig

Naming = Literal["wan", "diffusers"]

PATCH_WEIGHT = "patch_embed.weight"

_ATTENTION = ("q", "k", "v", "o")
_NORMS = ("norm_q", "norm_k")


def _with_bias(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _attention(ours: str, theirs: str, naming: Naming) -> dict[str, str]:
    diffusers = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    names = {}
    for part in _ATTENTION:
        other = diffusers[part] if naming == "diffusers" else part
        names |= _with_bias(f"{ours}.{part}", f"{theirs}.{other}")
    return names | {f"{ours}.{part}.weight": f"{theirs}.{part}.weight" for part in _NORMS}


def _block(layer: int, naming: Naming) -> dict[str, str]:
    at = f"blocks.{layer}"
    if naming == "wan":
        return {
            f"{at}.modulation": f"{at}.modulation",
            **_attention(f"{at}.attn", f"{at}.self_attn", naming),
            **_with_bias(f"{at}.cross_norm", f"{at}.norm3"),
            **_attention(f"{at}.cross", f"{at}.cross_attn", naming),
            **_with_bias(f"{at}.ffn.0", f"{at}.ffn.0"),
            **_with_bias(f"{at}.ffn.2", f"{at}.ffn.2"),
        }
    return {
        f"{at}.modulation": f"{at}.scale_shift_table",
        **_attention(f"{at}.attn", f"{at}.attn1", naming),
        **_with_bias(f"{at}.cross_norm", f"{at}.norm2"),
        **_attention(f"{at}.cross", f"{at}.attn2", naming),
        **_with_bias(f"{at}.ffn.0", f"{at}.ffn.net.0.proj"),
        **_with_bias(f"{at}.ffn.2", f"{at}.ffn.net.2"),
    }


def _outer(naming: Naming) -> dict[str, str]:
    if naming == "wan":
        parts = {
            "time_embed.0": "time_embedding.0",
            "time_embed.2": "time_embedding.2",
            "time_project.1": "time_projection.1",
            "text_embed.0": "text_embedding.0",
            "text_embed.2": "text_embedding.2",
            "head.linear": "head.head",
        }
        modulation = "head.modulation"
    else:
        parts = {
            "time_embed.0": "condition_embedder.time_embedder.linear_1",
            "time_embed.2": "condition_embedder.time_embedder.linear_2",
            "time_project.1": "condition_embedder.time_proj",
            "text_embed.0": "condition_embedder.text_embedder.linear_1",
            "text_embed.2": "condition_embedder.text_embedder.linear_2",
            "head.linear": "proj_out",
        }
        modulation = "scale_shift_table"
    names = {"head.modulation": modulation, **_with_bias("patch_embed", "patch_embedding")}
    for ours, theirs in parts.items():
        names |= _with_bias(ours, theirs)
    return names


def name_map(model: ModelConfig, naming: Naming) -> dict[str, str]:
    """Every weight of a model under our name, with its name elsewhere."""
    names = _outer(naming)
    for layer in range(model.layers):
        names |= _block(layer, naming)
    return names


def _require(found: Mapping[str, Tensor], expected: set[str], naming: str) -> None:
    missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or unknown:
        raise ValueError(
            f"weights are not a {naming} state dict of this model: missing {missing[:4]} "
            f"({len(missing)}), unknown {unknown[:4]} ({len(unknown)}); check model and naming"
        )


def from_wan(state: Mapping[str, Tensor], model: ModelConfig, naming: Naming) -> dict[str, Tensor]:
    """Our state dict from another's.

    Args:
        state: weights under the names of ``naming``, without any prefix.
        model: sizes of the model that they are for.
        naming: ``wan`` (original release, Self-Forcing and its heirs) or ``diffusers``.

    Raises:
        ValueError: a weight is missing or unknown.
    """
    names = name_map(model, naming)
    _require(state, set(names.values()), naming)
    ours = {mine: state[theirs] for mine, theirs in names.items()}
    ours[PATCH_WEIGHT] = ours[PATCH_WEIGHT].flatten(1)
    return ours


def to_wan(
    state: Mapping[str, Tensor], model: ModelConfig, geometry: Geometry, naming: Naming
) -> dict[str, Tensor]:
    """Another's state dict from ours: the inverse of ``from_wan``.

    Raises:
        ValueError: a weight is missing or unknown.
    """
    names = name_map(model, naming)
    _require(state, set(names), "cfmodel")
    theirs = {theirs: state[mine] for mine, theirs in names.items()}
    patch = names[PATCH_WEIGHT]
    theirs[patch] = theirs[patch].unflatten(1, (model.latent_channels, *geometry.patch))
    return theirs
