"""Wan's VAE and UMT5 from a folder, a file or the hub, in diffusers' or the first release's layout.

The networks are those of diffusers and transformers; nothing of them is written anew here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmodel.config import TextConfig
from cfmodel.io import checkpoints
from cfmodel.io.codec import WanCodec
from cfmodel.io.text import Umt5Text
from cfmodel.io.weights import misfits

BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
"""Hub id of the parts that all models of the family share."""
_OUTER_T5 = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
_LAYER_T5 = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
"""Names of the first release's UMT5, under those of transformers."""


def wan_vae(source: str, *, device: torch.device | str, dtype: torch.dtype) -> WanCodec:
    """The Wan VAE of a source.

    Args:
        source: see ``cfmodel.io.checkpoints``: the model's folder or hub id, its folder ``vae``, or
            the file ``Wan2.1_VAE.pth``.
        device: where it runs.
        dtype: of its convolutions.

    Raises:
        ValueError: no VAE there, or one that is damaged or of other sizes.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    path = checkpoints.find(source, "vae")
    raw = checkpoints.read(path)
    tensors = dict(raw.tensors)
    config: dict[str, Any] = _config(path.parent)
    if "decoder.conv1.weight" in tensors:
        # The first release has one VAE; what differs in a smaller one is its width.
        config = {"base_dim": tensors["encoder.conv1.weight"].shape[0]}
        tensors = convert_wan_vae_to_diffusers(tensors)
    elif config.get("_class_name", "AutoencoderKLWan") != "AutoencoderKLWan":
        raise ValueError(f"{path.parent} holds a {config['_class_name']}; expected Wan's VAE")
    known: dict[str, Any] = {
        name: value for name, value in config.items() if not name.startswith("_")
    }
    with torch.device("meta"):
        vae = AutoencoderKLWan(**known)
    _put(vae, tensors, path)
    return WanCodec(vae, sha256=raw.sha256, device=device, dtype=dtype)


def umt5(
    source: str, config: TextConfig, *, device: torch.device | str, dtype: torch.dtype | None = None
) -> Umt5Text:
    """UMT5 and its tokenizer of a source.

    Args:
        source: see ``cfmodel.io.checkpoints``: the model's folder or hub id.
        config: what the transformer reads: width and number of tokens.
        device: where it runs.
        dtype: of its weights; None keeps the stored one.

    Raises:
        ValueError: no encoder or tokenizer there, or one that is damaged or of another width.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    path = checkpoints.find(source, "text")
    raw = checkpoints.read(path)
    tensors = dict(raw.tensors)
    if "token_embedding.weight" in tensors:
        sizes, tensors = UMT5Config(**_sizes(tensors)), _of_release(tensors)
    else:
        sizes = UMT5Config(**_config(path.parent))
    if sizes.d_model != config.width:
        raise ValueError(f"{path} has width {sizes.d_model}, but text.width={config.width}")
    with torch.device("meta"):
        model: Any = UMT5EncoderModel(sizes)
    for twin in ("shared.weight", "encoder.embed_tokens.weight"):
        if twin in tensors:
            tensors |= dict.fromkeys(
                ("shared.weight", "encoder.embed_tokens.weight"), tensors[twin]
            )
            break
    _put(model, tensors, path)
    return Umt5Text(
        model.to(device, dtype), _tokenizer(path), raw.sha256, tokens=config.tokens,
        max_bytes=config.max_bytes,
    )  # fmt: skip


def _put(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Gives a network that has no memory yet the tensors of a file."""
    if report := misfits(net.state_dict(), tensors):
        raise ValueError(f"{path} does not fit {type(net).__name__}: {report}")
    net.load_state_dict(dict(tensors), assign=True)
    net.requires_grad_(False)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object; restore it")
    return found


def _of_release(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """UMT5's weights under transformers' names; unknown ones keep theirs."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        inside = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
        if inside and inside[2] in _LAYER_T5:
            renamed[f"encoder.block.{inside[1]}.{_LAYER_T5[inside[2]]}.weight"] = value
        else:
            renamed[_OUTER_T5.get(name, name)] = value
    return renamed


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers has to be told of the first release's UMT5, read from its shapes."""
    try:
        vocabulary, width = tensors["token_embedding.weight"].shape
        buckets, heads = tensors["blocks.0.pos_embedding.embedding.weight"].shape
        inner, hidden = (
            tensors["blocks.0.attn.q.weight"].shape[0],
            tensors["blocks.0.ffn.fc1.weight"],
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"weights are no UMT5 of Wan's first release ({error})") from error
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "num_heads": heads,
        "d_ff": hidden.shape[0], "num_layers": len(layers), "dropout_rate": 0.0,
        "relative_attention_num_buckets": buckets, "feed_forward_proj": "gated-gelu",
    }  # fmt: skip


def _tokenizer(weights: Path) -> Any:
    """The tokenizer that lies beside the encoder: ``tokenizer``, or the first release's folder."""
    from transformers import AutoTokenizer

    places = (
        weights.parent.parent / "tokenizer",
        weights.parent / "google" / "umt5-xxl",
        weights.parent / "tokenizer",
    )
    for place in places:
        if place.is_dir():
            try:
                return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
            except (OSError, ValueError, ImportError, KeyError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"{place} holds no tokenizer ({reason}); restore it") from error
    raise ValueError(
        f"no tokenizer beside {weights}; expected a folder tokenizer or google/umt5-xxl there"
    )
