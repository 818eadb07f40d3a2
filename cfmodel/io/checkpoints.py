"""Weights as others publish them: found, read without running code, recognised by their names.

A source is a file, a folder, or a hub id (``owner/name``, ``owner/name/path/in/it``, either with
``@revision``). ``#entry`` behind a ``.pt`` chooses one of the state dicts in it.
"""

import hashlib
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cfmodel.config import ModelConfig
from cfmodel.io.wan import Naming, from_wan
from cfmodel.io.weights import SUFFIX, Weights, file_sha256, load_weights, misfits

Layout = Literal["cfmodel", "wan", "diffusers"]
Role = Literal["transformer", "vae", "text"]

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
INDEX = f"{SUFFIX}.index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?(@[\w.-]+)?")
ENTRIES = ("generator_ema", "generator", "model", "state_dict")
"""State dicts within a ``.pt``, best first: few-step models are published to be run averaged."""
LORA_ENTRIES = ("generator_lora", *ENTRIES)
WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module")
OUTER = ("model", "generator", "transformer", "base_model")
ROLE_FILES: dict[Role, tuple[str, ...]] = {
    "transformer": (
        f"transformer/diffusion_pytorch_model{INDEX}",
        f"transformer/diffusion_pytorch_model{SUFFIX}",
        f"diffusion_pytorch_model{INDEX}",
        f"diffusion_pytorch_model{SUFFIX}",
        "model.pt",
    ),
    "vae": (
        f"vae/diffusion_pytorch_model{SUFFIX}",
        "Wan2.1_VAE.pth",
        f"diffusion_pytorch_model{SUFFIX}",
    ),
    "text": (
        f"text_encoder/model{INDEX}",
        f"text_encoder/model{SUFFIX}",
        f"model{INDEX}",
        f"model{SUFFIX}",
        "models_t5_umt5-xxl-enc-bf16.pth",
    ),
}
"""Where a role's weights lie in a folder, in the layouts of diffusers and of the first release. The
latter names its transformer as a folder of diffusers' VAE alone would name that."""
TOKENIZERS = ("tokenizer/*", "google/umt5-xxl/*")
SIGNS: dict[Layout, str] = {
    "cfmodel": "blocks.0.attn.q.weight",
    "wan": "blocks.0.self_attn.q.weight",
    "diffusers": "blocks.0.attn1.to_q.weight",
}
UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch raises on files that are cut short, damaged or something else."""


class Raw(NamedTuple):
    """State dict of a source as it stands there, and the hash of the files that it came from.

    ``entry`` is which one of a ``.pt``; ``config`` and ``record`` are those of a file of ours.
    """

    tensors: dict[str, Tensor]
    sha256: str
    entry: str = ""
    config: Mapping[str, Any] = {}
    record: Mapping[str, Any] = {}


def split_entry(source: str) -> tuple[str, str]:
    """A source without its ``#entry``, and the entry; empty if it names none.

    Example:
        >>> split_entry("a/model.pt#generator")
        ('a/model.pt', 'generator')
    """
    where, _, entry = source.partition("#")
    return where, entry


def find(source: str, role: Role, *, fetch: bool = True) -> Path:
    """The file of a role's weights: a file itself, or the index of several.

    Args:
        source: file, folder or hub id; a hub id is fetched, or taken from the hub's cache.
        role: which of a folder's files is meant.
        fetch: whether a hub id may be downloaded; else it must be in the hub's cache.

    Raises:
        ValueError: there is no such file, folder or hub id, or nothing in it of that role.
    """
    where, _ = split_entry(source)
    path = Path(where).expanduser()
    if not path.exists():
        if not HUB_ID.fullmatch(where) or where.startswith("."):
            raise ValueError(f"no weights at {where}; expected a file, a folder or a hub id")
        path = _fetched(where, role, fetch)
    if path.is_file():
        return path
    for name in ROLE_FILES[role]:
        if (path / name).is_file():
            return path / name
    alone = [p for p in sorted(path.glob("*")) if p.suffix in (SUFFIX, *PICKLED)]
    if role == "transformer" and len(alone) == 1:
        return alone[0]
    raise ValueError(
        f"{where} holds no {role} weights; expected one of {', '.join(ROLE_FILES[role])}"
    )


def _fetched(where: str, role: Role, fetch: bool) -> Path:
    """A hub id's file, or the folder of its files of a role."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = where.partition("@")
    owner, repo, *inside = name.split("/", 2)
    use: dict[str, Any] = {
        "repo_id": f"{owner}/{repo}", "revision": revision or None, "local_files_only": not fetch,
    }  # fmt: skip
    try:
        if inside and Path(inside[0]).suffix:
            return Path(hf_hub_download(filename=inside[0], **use))
        within = f"{inside[0].rstrip('/')}/" if inside else ""
        folder = Path(snapshot_download(allow_patterns=_wanted(role, within), **use))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot fetch {where} ({reason}); check the id and the network, or download it and "
            "name the folder"
        ) from error
    return folder / within


def _wanted(role: Role, within: str) -> list[str]:
    """What of a repository is fetched for a role, in the folder ``within`` of it."""
    names = list(ROLE_FILES[role])
    if role == "vae" and not within:
        # At the root of the first release this name is the transformer's.
        names.remove(f"diffusion_pytorch_model{SUFFIX}")
    patterns = [name.replace(INDEX, f"*{SUFFIX}*") for name in names]
    if role == "transformer":
        patterns += [f"*{suffix}" for suffix in PICKLED] if within else []
    elif role == "text":
        patterns += TOKENIZERS
    return [within + pattern for pattern in (*patterns, "*config.json")]


def read(path: Path, *, entry: str = "", entries: tuple[str, ...] = ENTRIES) -> Raw:
    """The state dict of a file, or of all files of an index, on the CPU. No code in it is run.

    Args:
        path: safetensors, the JSON index of several, or a file of ``torch.save``.
        entry: which state dict of a ``.pt`` that holds several.
        entries: those that are looked for where none is named, best first.

    Raises:
        ValueError: missing, cut short or damaged, something else, or holding more than tensors.
    """
    if path.name.endswith(INDEX):
        return _read_index(path)
    if path.suffix == SUFFIX:
        found = load_weights(path)
        return Raw(found.tensors, found.sha256, "", found.config, found.record)
    if path.suffix not in PICKLED:
        raise ValueError(f"{path}: expected {SUFFIX}, {INDEX} or one of {', '.join(PICKLED)}")
    state, chosen = _chosen(_unpickled(path), entry, entries, path)
    return Raw(state, file_sha256(path), chosen)


def _read_index(path: Path) -> Raw:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = tuple(path.parent / name for name in sorted(set(names.values())))
    except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no index of weights files; restore it") from error
    tensors: dict[str, Tensor] = {}
    lines: list[str] = []
    for file in files:
        part = load_weights(file)
        tensors |= part.tensors
        lines.append(f"{part.sha256}  {file.name}\n")
    if lacking := sorted(set(names) - set(tensors)):
        raise ValueError(f"{path} lists {len(lacking)} weights that are in no file: {lacking[:3]}")
    return Raw(tensors, hashlib.sha256("".join(lines).encode()).hexdigest())


def _unpickled(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"no weights at {path}; check the path")
    try:
        # Only the newer form, a zip, can be mapped instead of read.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors, perhaps code, and is not opened; get "
            "it anew, or save its state dict alone where you trust it"
        ) from error
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is truncated or no file of torch.save ({reason})") from error


def _chosen(
    tree: Any, entry: str, entries: tuple[str, ...], path: Path
) -> tuple[dict[str, Tensor], str]:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds a {type(tree).__name__}; expected a state dict")
    inner = [str(name) for name, value in tree.items() if isinstance(value, Mapping)]
    if entry and entry not in inner:
        raise ValueError(f"{path} has no state dict {entry!r}; it has {', '.join(inner) or 'one'}")
    name = entry or next((name for name in entries if name in inner), "")
    state = tree[name] if name else tree
    if any(not isinstance(value, Tensor) for value in state.values()) or not state:
        raise ValueError(f"{path} holds no state dict; it has {', '.join(map(str, tree))[:200]}")
    return {str(key): value for key, value in state.items()}, name


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without what wrappers put into and before their names.

    Example:
        >>> list(bare({"model._fsdp_wrapped_module.blocks.0.attn.q.weight": torch.zeros(1)}))
        ['blocks.0.attn.q.weight']
    """
    parts = {name: [p for p in name.split(".") if p not in WRAPPERS] for name in tensors}
    while True:
        first = {names[0] for names in parts.values() if names}
        if len(first) != 1 or not first <= set(OUTER):
            break
        parts = {name: rest[1:] for name, rest in parts.items()}
    return {".".join(parts[name]): value for name, value in tensors.items()}


def layout_of(tensors: Mapping[str, Tensor], where: str) -> Layout:
    """Whose names these are.

    Raises:
        ValueError: nobody's that is known.
    """
    for layout, sign in SIGNS.items():
        if sign in tensors:
            return layout
    shown = ", ".join(sorted(tensors)[:3])
    raise ValueError(
        f"{where} is no video transformer that is known: none of its names is one of "
        f"{', '.join(SIGNS.values())}; it begins with {shown}"
    )


def ours_of(tensors: Mapping[str, Tensor], model: ModelConfig, where: str) -> dict[str, Tensor]:
    """Weights under our names, of whatever layout they are.

    Raises:
        ValueError: unknown layout, or names that the model does not have.
    """
    plain = bare(tensors)
    layout = layout_of(plain, where)
    if layout == "cfmodel":
        return plain
    naming: Naming = layout
    try:
        return from_wan(plain, model, naming)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def merged(
    tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor], *, alpha: float | None = None
) -> dict[str, Tensor]:
    """Weights with a low-rank adaptation added: ``W + alpha / rank * B A``, summed in float32.

    Args:
        tensors: base weights, bare names.
        lora: ``<name>.lora_A.weight`` (rank, in) and ``<name>.lora_B.weight`` (out, rank), peft's
            own prefixes and adapter name allowed.
        alpha: of the adaptation; None is the rank.

    Raises:
        ValueError: half of a pair, a weight that the base does not have, or another shape.
    """
    plain = {name.replace(".default.weight", ".weight"): t for name, t in bare(lora).items()}
    down = {name.removesuffix(".lora_A.weight") for name in plain if name.endswith("A.weight")}
    up = {name.removesuffix(".lora_B.weight") for name in plain if name.endswith("B.weight")}
    other = set(plain) - {f"{name}.lora_{k}.weight" for name in down | up for k in "AB"}
    absent = [name for name in sorted(down | up) if f"{name}.weight" not in tensors]
    if down != up or other or absent or not down:
        wrong = sorted((down ^ up) | other | set(absent))[:3]
        raise ValueError(f"not an adaptation of these weights: {', '.join(wrong) or 'it is empty'}")
    result = dict(tensors)
    for name in down:
        a, b = plain[f"{name}.lora_A.weight"].float(), plain[f"{name}.lora_B.weight"].float()
        base = tensors[f"{name}.weight"]
        if (len(b), a.shape[-1]) != tuple(base.shape) or len(a) != b.shape[-1]:
            raise ValueError(
                f"adaptation of {name}: {tuple(b.shape)} x {tuple(a.shape)} does not give "
                f"{tuple(base.shape)}"
            )
        scale = 1.0 if alpha is None else alpha / len(a)
        result[f"{name}.weight"] = (base.float() + scale * (b @ a)).to(base.dtype)
    return result


def student(
    source: str,
    model: ModelConfig,
    expected: Mapping[str, Tensor],
    *,
    lora: str | None = None,
    alpha: float | None = None,
) -> Weights:
    """A transformer's weights under our names, with what they are and where they came from.

    Args:
        source: see the module.
        model: sizes of the transformer.
        expected: its state dict, to compare names and shapes with; may be on ``meta``.
        lora: source of an adaptation to add.
        alpha: see ``merged``.

    Raises:
        ValueError: they cannot be found, read or recognised, or do not fit.
    """
    path = find(source, "transformer")
    raw = read(path, entry=split_entry(source)[1])
    tensors, note = raw.tensors, f"{path.name}{'#' if raw.entry else ''}{raw.entry}"
    sha256 = raw.sha256
    if lora is not None:
        at = find(lora, "transformer")
        low = read(at, entry=split_entry(lora)[1], entries=LORA_ENTRIES)
        tensors = merged(bare(tensors), low.tensors, alpha=alpha)
        note += f" + {at.name}{'#' if low.entry else ''}{low.entry}"
        sha256 = hashlib.sha256(f"{raw.sha256} {low.sha256}".encode()).hexdigest()
    ours = ours_of(tensors, model, str(path))
    if report := misfits(expected, ours):
        raise ValueError(f"{path} does not fit the preset's sizes: {report}; choose its preset")
    return Weights(
        path=path, sha256=sha256, tensors=ours, note=note,
        config=dict(raw.config), record={} if lora else dict(raw.record),
    )  # fmt: skip
