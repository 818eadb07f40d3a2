"""The verb ``doctor``: what this machine has, and whether a preset can be sampled on it."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from cfmodel.config import Experiment, MemoryConfig

LIBRARIES = ("torch", "transformers", "diffusers", "safetensors", "av", "numpy", "rich", "typer")
NEEDED = ("torch", "transformers", "safetensors", "av", "rich")
"""Of these, what sampling imports."""
WAN_LICENCE = "Apache-2.0, as Wan 2.1 is published"
PUBLISHED = {
    "Self Forcing": "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt",
    "Rolling Forcing": "TencentARC/RollingForcing/checkpoints/rolling_forcing_dmd.pt",
}
"""Hub ids of students that their authors' READMEs name; docs/weights.md has the others."""
HALF_BYTES, ACTIVATIONS_GIB = 2, 3.0
"""Bytes of a number as films are made on a GPU; room for a chunk's activations and the decoder."""


def diagnose(
    experiment: Experiment, *, weights: str | None = None, base: str | None = None
) -> dict[str, Any]:
    """Versions, devices, memory, attention, and files with their state.

    ``missing`` lists, one line each, what stands in the way of sampling ``experiment``.

    Args:
        experiment: what is to be sampled.
        weights: source of the student, where the family bundles none.
        base: source of Wan's VAE and UMT5; None is the published one. Nothing is fetched.
    """
    import torch

    from cfmodel.pipeline import choose_attention, choose_device

    device = choose_device(None)
    attention, _ = choose_attention("auto", device)
    libraries = {name: _version(name) for name in LIBRARIES}
    files = _files(experiment)
    missing = [
        f"package {name} is not installed; pip install {name}"
        for name in NEEDED
        if libraries[name] is None
    ]
    if experiment.weights is None:
        missing.append(f"weights of {experiment.family}/{experiment.name} are not trained yet")
    missing += [state for state in files.values() if state != "ok"]
    parts = _wan_parts(experiment, weights, base) if experiment.family == "wan-1.3b" else []
    missing += [f"{part['part']}: {part['missing']}" for part in parts if part["missing"]]
    gpus, needs_gib = _gpus(), _needs_gib(experiment, parts)
    if parts and gpus and max(gpu["memory_gib"] for gpu in gpus) < needs_gib:
        missing.append(f"a GPU with about {needs_gib} GiB; use --device cpu, which takes hours")
    return {
        "preset": f"{experiment.family}/{experiment.name}",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "device": str(device),
        "gpus": gpus,
        "needs_gib": needs_gib,
        "attention": attention,
        "files": files,
        "parts": parts,
        "missing": missing,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """A report of ``diagnose`` as lines of text."""
    out = [f"preset     {report['preset']}"]
    out.append(f"python     {report['python']} on {report['platform']}")
    versions = report["libraries"].items()
    out.append(
        "libraries  " + ", ".join(f"{name} {found or 'missing'}" for name, found in versions)
    )
    out.append(
        f"device     {report['device']}, attention {report['attention']}, {report['cpus']} CPUs, "
        f"{report['threads']} threads, {report['memory_gib']} GiB memory"
    )
    out += [f"gpu        {gpu['name']}, {gpu['memory_gib']} GiB" for gpu in report["gpus"]]
    out += [f"file       {name}: {state}" for name, state in report["files"].items()]
    for part in report["parts"]:
        state = part["source"] if not part["missing"] else "missing"
        out.append(f"part       {part['part']}, {part['gib']} GiB, {part['licence']}: {state}")
    if report["parts"]:
        out.append(f"needs      about {report['needs_gib']} GiB of GPU memory to make one film")
    out += [f"missing    {line}" for line in report["missing"]]
    return [*out, "not ready" if report["missing"] else "ready"]


def _version(name: str) -> str | None:
    # Asking for metadata alone would call a broken installation installed.
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.metadata.version(name)


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": p.name, "memory_gib": round(p.total_memory / 2**30, 1)} for p in found]


def _files(experiment: Experiment) -> dict[str, str]:
    """State of each bundled file that the preset needs: ``ok``, or what is wrong."""
    from cfmodel.io.weights import BUNDLED, bundled

    if experiment.family != "tiny":
        return {}
    student = BUNDLED.get(experiment.weights or "")
    states = {}
    for name in ("tiny/codec", "tiny/text", *([student] if student else [])):
        try:
            bundled(name)
        except ValueError as error:
            states[name] = str(error)
        else:
            states[name] = "ok"
    return states


def _wan_parts(
    experiment: Experiment, weights: str | None, base: str | None
) -> list[dict[str, Any]]:
    """What a Wan is made of: size, licence, and where it is or where it is to be put."""
    from cfmodel.io.wan_parts import BASE

    known = "; ".join(f"{name}: {source}" for name, source in PUBLISHED.items())
    student = f"name its file, folder or hub id with --weights ({known}; docs/weights.md)"
    fetch = f"name its folder with --base, or download {BASE} once, which sampling does by itself"
    rows: list[dict[str, Any]] = []
    for part, role, source, hint in (
        ("student", "transformer", weights, student),
        ("VAE", "vae", base or BASE, fetch),
        ("text encoder UMT5-XXL", "text", base or BASE, fetch),
    ):
        found = None if source is None else _local(source, role)
        missing = hint if source is None else "" if found else f"{source} is not here; {hint}"
        rows.append(
            {
                "part": part, "source": str(found or source or ""), "missing": missing,
                "gib": round(_parameters(experiment, role) * HALF_BYTES / 2**30, 1),
                "licence": "its own" if role == "transformer" else WAN_LICENCE,
            }
        )  # fmt: skip
    return rows


def _local(source: str, role: Any) -> Path | None:
    """The file of a role, if it can be had without the network."""
    from cfmodel.io.checkpoints import find

    try:
        return find(source, role, fetch=False)
    except ValueError:
        return None


def _parameters(experiment: Experiment, role: str) -> int:
    """Parameters of a network, counted on the meta device."""
    import torch
    from torch import nn

    with torch.device("meta"):
        if role == "vae":
            from diffusers import AutoencoderKLWan

            net: nn.Module = AutoencoderKLWan()
        elif role == "text":
            from transformers import UMT5Config, UMT5EncoderModel

            sizes = UMT5Config(
                vocab_size=256_384, d_model=experiment.text.width, d_kv=64, d_ff=10_240,
                num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
            )  # fmt: skip
            net = UMT5EncoderModel(sizes)
        else:
            from cfmodel.nn.transformer import VideoTransformer

            net = VideoTransformer(experiment.model, experiment.geometry)
    return sum(weight.numel() for weight in net.parameters())


def _needs_gib(experiment: Experiment, parts: list[dict[str, Any]]) -> float:
    """About how much GPU memory one film takes: weights, memory and its rotated copy, the rest."""
    if not parts:
        return 0.0
    model, memory = experiment.model, experiment.memory
    latents = memory.capacity or MemoryConfig().capacity or 0
    numbers = 2 * model.layers * latents * experiment.geometry.tokens_per_frame * model.width
    # The keys are held once more, rotated.
    held = 1.5 * numbers * HALF_BYTES / 2**30
    return round(sum(part["gib"] for part in parts) + held + ACTIVATIONS_GIB, 1)
