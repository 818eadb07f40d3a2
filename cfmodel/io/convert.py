"""A transformer's weights from one layout to another, and as a folder with a model card."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.io.checkpoints import Layout, student
from cfmodel.io.wan import to_wan
from cfmodel.io.weights import SUFFIX, Weights, save_weights, write_atomic
from cfmodel.nn.transformer import VideoTransformer

Kept = Literal["keep", "float32", "bfloat16", "float16"]
DTYPES: dict[Kept, torch.dtype | None] = {
    "keep": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAYOUTS: tuple[Layout, ...] = ("cfmodel", "wan", "diffusers")
CARD = "README.md"


def load_student(
    source: str, experiment: Experiment, *, lora: str | None = None, alpha: float | None = None
) -> Weights:
    """Weights of a source, compared with what the experiment's transformer expects.

    Raises:
        ValueError: see ``cfmodel.io.checkpoints.student``.
    """
    with torch.device("meta"):
        expected = VideoTransformer(experiment.model, experiment.geometry).state_dict()
    return student(source, experiment.model, expected, lora=lora, alpha=alpha)


def arranged(found: Weights, to: Layout, experiment: Experiment) -> dict[str, Tensor]:
    """Weights under the names of a layout."""
    if to == "cfmodel":
        return found.tensors
    return to_wan(found.tensors, experiment.model, experiment.geometry, to)


def write(
    found: Weights, path: Path, to: Layout, experiment: Experiment, *, dtype: Kept = "keep"
) -> str:
    """One safetensors file in a layout. Returns its sha256.

    Args:
        found: the weights.
        path: file to write, ending in ``.safetensors``; its folder is made.
        to: whose names.
        experiment: their sizes; its JSON goes into a file of ours.
        dtype: of floating point tensors; ``keep`` changes no bit.

    Raises:
        ValueError: another ending.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"--out {path}: expected a name that ends in {SUFFIX}")
    kind = DTYPES[dtype]
    tensors = {
        name: value if kind is None or not value.is_floating_point() else value.to(kind)
        for name, value in arranged(found, to, experiment).items()
    }
    if to == "cfmodel":
        config = dict(found.config) or experiment.to_json()
        source = {"source": found.note, "source_sha256": found.sha256}
        record = {**source, **found.record}
        return save_weights(path, tensors, config=config, record=record, dtype=None)
    data = save({name: value.contiguous() for name, value in tensors.items()}, {"format": "pt"})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def diffusers_config(experiment: Experiment) -> dict[str, Any]:
    """What ``WanTransformer3DModel`` is built from, for the sizes of an experiment."""
    model, geometry = experiment.model, experiment.geometry
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(geometry.patch),
        "num_attention_heads": model.heads,
        "attention_head_dim": model.head_dim,
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels,
        "text_dim": model.text_width,
        "freq_dim": model.freq_width,
        "ffn_dim": model.ffn,
        "num_layers": model.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": model.eps,
    }


def export(
    found: Weights,
    folder: Path,
    experiment: Experiment,
    *,
    licence: str,
    dtype: Kept = "keep",
) -> dict[str, str]:
    """A folder to share: weights for ``cfmodel`` and for diffusers, and a card.

    Args:
        found: the weights.
        folder: made; a file of the same name in it is replaced.
        experiment: what they are sampled with.
        licence: SPDX id or name; the one who publishes knows it, the weights do not.
        dtype: as in ``write``.

    Returns:
        sha256 of each file by its name in the folder.
    """
    names: dict[str, Layout] = {
        f"cfmodel{SUFFIX}": "cfmodel",
        f"transformer/diffusion_pytorch_model{SUFFIX}": "diffusers",
    }
    written = {
        name: write(found, folder / name, to, experiment, dtype=dtype) for name, to in names.items()
    }
    config = json.dumps(diffusers_config(experiment), indent=2, sort_keys=True) + "\n"
    write_atomic(folder / "transformer" / "config.json", config.encode())
    write_atomic(folder / CARD, card(found, experiment, written, licence).encode())
    return written


def card(found: Weights, experiment: Experiment, files: Mapping[str, str], licence: str) -> str:
    """A model card in Markdown: what it is, how it was trained, how it is used, what it is not."""
    model, memory, sample = experiment.model, experiment.memory, experiment.sample
    rows = "\n".join(f"| `{name}` | `{sha256}` |" for name, sha256 in files.items())
    known = {**found.record, "source": found.note, "source sha256": found.sha256}
    record = "\n".join(f"- {name}: {value}" for name, value in sorted(known.items()))
    family = experiment.family
    preset = f"{family}/{experiment.base or experiment.name}"
    data = (
        "The tiny world, a procedural 3-D world: no films of people, no personal data. It knows "
        "nothing else."
        if family == "tiny"
        else "See the record above; whoever publishes these weights should name data and consent."
    )
    return f"""---
license: {licence}
library_name: cfmodel
pipeline_tag: text-to-video
tags: [context-forcing, long-video, {family}]
---

# {experiment.label}, {family}

A causal video transformer that makes films chunk by chunk from text: {model.layers} layers of width
{model.width}, {len(sample.steps)} steps a chunk, flow shift {sample.shift:g}. Memory: sink
{memory.sink}, slow {memory.slow} ({memory.promotion}, tau {memory.tau:g}), fast {memory.fast}
latents, {memory.positions} positions. Method: Context Forcing, arXiv:2602.06028.

## Use

```bash
cfmodel sample --preset {preset} --weights cfmodel{SUFFIX} --prompt "..." --out film.mp4
```

`transformer/` loads into diffusers' `WanTransformer3DModel`; a pipeline that is not causal makes
other films from it than these weights were trained for.

## Training record

{record}

## Data

{data}

## Files

| file | sha256 |
| --- | --- |
{rows}
"""
