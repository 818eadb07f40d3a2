"""Weights on disk: safetensors with the config and the training record in their metadata.

Bundled files live in ``cfmodel/assets/<family>/`` and are listed with their hashes in
``cfmodel/assets/SHA256SUMS``, against which they are checked whenever they are loaded.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cfmodel.config import seed_for
from cfmodel.presets import NANO_RANDOM, TINY_LOCAL, TINY_STREAMED, TINY_STUDENT

FORMAT = 1
METADATA = "cfmodel"
SUFFIX = ".safetensors"
MANIFEST = "SHA256SUMS"
SHOWN = 3
"""Names of each kind that a report of misfits prints."""

BUNDLED: dict[str, str] = {
    TINY_STUDENT: "tiny/student",
    TINY_LOCAL: "tiny/local",
    TINY_STREAMED: "tiny/streaming",
}
"""Files under assets, by weights id. Codec and text encoder are ``<family>/codec`` and ``text``."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors of a file, and what the file says of itself.

    ``config`` is the experiment's JSON, ``record`` how the weights were trained.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def write_atomic(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of weights that have no file: names, shapes, dtypes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    note: str = "",
    dtype: torch.dtype | None = torch.bfloat16,
) -> str:
    """Write a weights file, atomically. Returns its sha256.

    Args:
        path: file to write; its folder is made.
        tensors: weights by name; no two may share memory.
        config: ``Experiment.to_json()``.
        record: how the weights were trained.
        note: a sentence for whoever opens the file.
        dtype: storage of floating point matrices and kernels; None keeps each tensor's own. Vectors
            (norms, biases, latent statistics) stay float32: they are few and set the scale.
    """
    stored = {}
    for name, value in tensors.items():
        kind = value.dtype
        if dtype is not None and value.is_floating_point():
            kind = dtype if value.ndim > 1 else torch.float32
        stored[name] = value.detach().to("cpu", kind).contiguous()
    about = {"format": FORMAT, "config": config, "record": record, "note": note}
    # One entry: safetensors writes several in no fixed order, and equal weights are equal files.
    data = save(stored, {METADATA: json.dumps(about, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def load_weights(path: Path, *, sha256: str | None = None) -> Weights:
    """Read a weights file on the CPU.

    Args:
        path: a safetensors file.
        sha256: expected hash of the file; None skips the comparison.

    Raises:
        ValueError: missing, truncated or corrupted file, or one with another hash.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; check the path, or install the package again")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is damaged: sha256 {found[:12]}, expected {sha256[:12]}; restore the file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is truncated or no safetensors file ({reason})") from error
    try:
        about = json.loads(metadata.get(METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged metadata ({error})") from error
    return Weights(
        path=path,
        sha256=found,
        tensors=tensors,
        config=about.get("config", {}),
        record=about.get("record", {}),
        note=about.get("note", ""),
    )


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """One line on how ``found`` differs from ``expected`` in names and shapes; empty if it fits."""
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if found[name].shape != expected[name].shape
    ]
    kinds = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": shapes,
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in kinds.items()
        if names
    )


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a module, strictly.

    Args:
        module: keeps its dtype, device and memory format.
        tensors: weights by name.
        where: what the message calls them.

    Raises:
        ValueError: a name or shape does not fit; the message counts and shows them.
    """
    report = misfits(module.state_dict(), tensors)
    if report:
        raise ValueError(
            f"{where} does not fit {type(module).__name__}: {report}; use the preset that these "
            "weights were made for, or name others with --set weights=PATH"
        )
    module.load_state_dict(dict(tensors))


def randomize(module: nn.Module, name: str, seed: int = 0) -> str:
    """Fill a module with weights that depend on name and seed alone. Returns their sha256.

    Unlike a training start, no layer is zero, so that every input changes the output.
    """

    def draw(key: str, value: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for("random-weights", name, seed, key))
        return torch.randn(value.shape, generator=generator)

    fill(module.state_dict().items(), draw)
    return tensors_sha256(module.state_dict())


@torch.no_grad()
def fill(weights: Iterable[tuple[str, Tensor]], draw: Callable[[str, Tensor], Tensor]) -> None:
    """Random matrices as large as their number of inputs asks for, no bias, gains of one.

    Args:
        weights: by name.
        draw: unit Gaussian numbers of the shape of a weight, given its name and the weight.
    """
    for key, value in weights:
        if value.ndim > 1:
            value.copy_(draw(key, value) * (value.numel() / value.shape[0]) ** -0.5)
        else:
            value.fill_(0.0 if key.endswith("bias") else 1.0)


def assets() -> Path:
    """Folder of the bundled weights."""
    return Path(str(resources.files("cfmodel"))) / "assets"


def manifest(folder: Path) -> dict[str, str]:
    """Hashes that a folder's ``SHA256SUMS`` lists, by relative path; empty without the file.

    Raises:
        ValueError: a line is not ``<sha256>  <path>``.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    listed = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not name or len(digest) != 64:
            raise ValueError(f"{path}: expected '<sha256>  <path>', got {line!r}")
        listed[name] = digest
    return listed


def pin(folder: Path) -> Path:
    """Write the ``SHA256SUMS`` of a folder's weights files. Returns its path."""
    lines = [
        f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob(f"*{SUFFIX}"))
    ]
    write_atomic(folder / MANIFEST, "".join(lines).encode())
    return folder / MANIFEST


def bundled(name: str, folder: Path | None = None) -> Weights:
    """A bundled file, checked against its listed hash.

    Args:
        name: as in ``tiny/codec``.
        folder: the assets; None is the package's own.

    Raises:
        ValueError: missing, damaged or unlisted file.
    """
    folder = folder or assets()
    path = folder / f"{name}{SUFFIX}"
    if not path.is_file():
        raise ValueError(
            f"bundled weights {name!r} are missing ({path}); install the package again"
        )
    listed = manifest(folder).get(f"{name}{SUFFIX}")
    if listed is None:
        raise ValueError(f"{path} is not listed in {folder / MANIFEST}; pin it there")
    return load_weights(path, sha256=listed)


def is_known(weights_id: str) -> bool:
    """Whether an id names bundled or random weights; others name a file, a folder or a hub id."""
    return weights_id == NANO_RANDOM or weights_id in BUNDLED


def resolve(weights_id: str, family: str) -> Weights | None:
    """The weights of an id that is known; None for random ones.

    Raises:
        ValueError: unknown id, one of another family, or a damaged file.
    """
    if weights_id == NANO_RANDOM:
        if family != "nano":
            raise ValueError(f"weights {weights_id!r} are random and for family nano, not {family}")
        return None
    if weights_id not in BUNDLED:
        known = ", ".join([*BUNDLED, NANO_RANDOM])
        raise ValueError(f"weights {weights_id!r} are not bundled; use one of {known}")
    return bundled(BUNDLED[weights_id])
