"""A small Wan, random, in the layouts in which such weights are published."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.io.wan import to_wan
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.presets import preset
from tests.helpers.nano import randomise

WIDTH, TOKENS, WORDS = 16, 12, ("a", "red", "ball", "hops", "on", "grass", "</s>", "<pad>", "<unk>")
SIZES = (
    "model.layers=2", "model.width=48", "model.heads=2", "model.ffn=96",
    f"model.text_width={WIDTH}", f"model.text_tokens={TOKENS}",
    f"text.width={WIDTH}", f"text.tokens={TOKENS}", "geometry.height=64", "geometry.width=64",
)  # fmt: skip
"""What makes ``wan-1.3b`` small."""


def small_wan(*more: str) -> Experiment:
    return preset("wan-1.3b", (*SIZES, *more))


def small_student(seed: int = 0) -> dict[str, Tensor]:
    experiment = small_wan()
    net = VideoTransformer(experiment.model, experiment.geometry)
    randomise(net, seed)
    return {name: value.clone() for name, value in net.state_dict().items()}


def named(state: dict[str, Tensor], naming: Any) -> dict[str, Tensor]:
    experiment = small_wan()
    theirs = to_wan(state, experiment.model, experiment.geometry, naming)
    return {name: value.contiguous() for name, value in theirs.items()}


def write_diffusers_base(folder: Path) -> Path:
    """VAE, UMT5 and tokenizer as in the folders of a pipeline of diffusers."""
    vae, text = small_vae(), small_umt5()
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    return folder


def write_release_base(folder: Path) -> Path:
    """The same parts as files of the first release."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(release_vae(small_vae()), folder / "Wan2.1_VAE.pth")
    torch.save(release_umt5(small_umt5()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def small_vae() -> Any:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(base_dim=8)
    randomise(vae, 1)
    return vae.eval().requires_grad_(False)


def small_umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    net = UMT5EncoderModel(config)
    randomise(net, 2)
    return net.eval().requires_grad_(False)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: k for k, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    inner.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def release_umt5(net: Any) -> dict[str, Tensor]:
    """UMT5's weights as Wan's first release names them, written down from that release's code."""
    state, layers = net.state_dict(), net.config.num_layers
    out = {
        "token_embedding.weight": state["shared.weight"],
        "norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for k in range(layers):
        mine, at = f"blocks.{k}", f"encoder.block.{k}.layer"
        attention, dense = f"{at}.0.SelfAttention", f"{at}.1.DenseReluDense"
        out |= {
            f"{mine}.attn.{part}.weight": state[f"{attention}.{part}.weight"] for part in "qkvo"
        }
        bias = state[f"{attention}.relative_attention_bias.weight"]
        out |= {
            f"{mine}.norm1.weight": state[f"{at}.0.layer_norm.weight"],
            f"{mine}.norm2.weight": state[f"{at}.1.layer_norm.weight"],
            f"{mine}.pos_embedding.embedding.weight": bias,
            f"{mine}.ffn.gate.0.weight": state[f"{dense}.wi_0.weight"],
            f"{mine}.ffn.fc1.weight": state[f"{dense}.wi_1.weight"],
            f"{mine}.ffn.fc2.weight": state[f"{dense}.wo.weight"],
        }
    return {name: value.clone() for name, value in out.items()}


def release_vae(vae: Any) -> dict[str, Tensor]:
    """The VAE's weights as Wan's first release names them.

    Its names are tried against diffusers' own conversion, which keeps what it does not know.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    ends = [f"{part}.{kind}" for part in (
        "residual.2", "residual.6", "shortcut", "resample.1", "time_conv", "to_qkv", "proj",
    ) for kind in ("weight", "bias")]  # fmt: skip
    ends += ["residual.0.gamma", "residual.3.gamma", "norm.gamma"]
    stems = [f"encoder.downsamples.{k}" for k in range(20)]
    stems += [f"decoder.upsamples.{k}" for k in range(20)]
    stems += [f"{half}.middle.{k}" for half in ("encoder", "decoder") for k in range(3)]
    names = [f"{stem}.{end}" for stem in stems for end in ends]
    for whole in ("encoder.conv1", "decoder.conv1", "encoder.head.2", "decoder.head.2"):
        names += [f"{whole}.weight", f"{whole}.bias"]
    names += ["encoder.head.0.gamma", "decoder.head.0.gamma"]
    names += [f"{whole}.{kind}" for whole in ("conv1", "conv2") for kind in ("weight", "bias")]
    state, out = vae.state_dict(), dict[str, Tensor]()
    for name in names:
        (theirs,) = convert_wan_vae_to_diffusers({name: name})
        if theirs in state:
            out[name] = state[theirs].clone()
    return out


def write_sharded(folder: Path, tensors: dict[str, Tensor], stem: str) -> Path:
    """Two files and their index, as large models are published."""
    folder.mkdir(parents=True, exist_ok=True)
    names, where = sorted(tensors), dict[str, str]()
    for k, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{k:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    path = folder / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    return path
