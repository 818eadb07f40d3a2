"""A preset's text encoder at its size, without published weights."""

from typing import Any

import torch

from cfmodel.config import Experiment, TextConfig, seed_for
from cfmodel.io.text import TextEncoder, Umt5Text
from cfmodel.io.weights import fill
from cfmodel.pipeline import load_text

VOCABULARY = 256_384
LAYERS, HEADS, FFN = 24, 64, 10_240
"""Of UMT5-XXL, Wan's."""
END = 1


def encoder_of(experiment: Experiment, device: torch.device) -> TextEncoder:
    """UMT5 with random weights where the preset has UMT5, else its own encoder."""
    if experiment.text.kind == "umt5":
        return random_umt5(experiment.text, device)
    return load_text(experiment, device=device)


@torch.no_grad()
def random_umt5(
    config: TextConfig,
    device: torch.device,
    *,
    layers: int = LAYERS,
    heads: int = HEADS,
    ffn: int = FFN,
) -> Umt5Text:
    """UMT5 of these sizes, bfloat16, its weights drawn on the device."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = UMT5Config(
        vocab_size=VOCABULARY, d_model=config.width, d_kv=config.width // heads, d_ff=ffn,
        num_layers=layers, num_heads=heads,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = UMT5EncoderModel(sizes)
    model.to(torch.bfloat16).to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed_for("speed", "umt5"))
    fill(
        model.state_dict().items(),
        lambda _, value: torch.empty_like(value).normal_(generator=generator),
    )
    return Umt5Text(
        model.requires_grad_(False), _words, "", tokens=config.tokens, max_bytes=config.max_bytes
    )


def _words(
    texts: list[str], *, truncation: bool, max_length: int, return_tensors: str
) -> dict[str, torch.Tensor]:
    """Stands for the tokenizer, whose file is published with the weights: a number a word."""
    assert truncation, "as the encoder asks"
    assert return_tensors == "pt", "as the encoder asks"
    words = texts[0].split()[: max_length - 1]
    ids = [2 + seed_for("word", word) % (VOCABULARY - 2) for word in words]
    found = torch.tensor([[*ids, END]])
    return {"input_ids": found, "attention_mask": torch.ones_like(found)}
