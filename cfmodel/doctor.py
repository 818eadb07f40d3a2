"""The verb ``doctor``: what this machine has, and whether a preset can be sampled on it."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from cfmodel.config import Experiment

LIBRARIES = ("torch", "transformers", "diffusers", "safetensors", "av", "numpy", "rich", "typer")
NEEDED = ("torch", "transformers", "safetensors", "av", "rich")
"""Of these, what sampling imports."""


def diagnose(experiment: Experiment) -> dict[str, Any]:
    """Versions, devices, memory, attention, and bundled files with their state.

    ``missing`` lists, one line each, what stands in the way of sampling ``experiment``.
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
    if experiment.family == "wan-1.3b":
        missing.append("weights of family wan-1.3b are not bundled; use --preset tiny")
    missing += [state for state in files.values() if state != "ok"]
    return {
        "preset": f"{experiment.family}/{experiment.name}",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "device": str(device),
        "gpus": _gpus(),
        "attention": attention,
        "files": files,
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
