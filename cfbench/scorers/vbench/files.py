"""The weights that VBench's dimensions need: where they lie, and that they stay the same files.

The folder is laid out as the ``vbench`` package lays out its cache, so that one serves both.
"""

import json
import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cfbench.errors import CfError
from cfbench.store import sha256_of, write_atomic

log = logging.getLogger(__name__)

DEFAULT = Path(".cache") / "vbench"
"""In the user's home, where the ``vbench`` package keeps them."""
PINNED = "cfbench-pinned.json"
FILES = {
    "dino": "dino_model/dino_vitbase16_pretrain.pth",
    "clip-b32": "clip_model/ViT-B-32.pt",
    "clip-l14": "clip_model/ViT-L-14.pt",
    "aesthetic": "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    "musiq": "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "amt": "amt_model/amt-s.pth",
    "raft": "raft_model/models/raft-things.pth",
    "viclip": "ViCLIP/ViClip-InternVid-10M-FLT.pth",
    "bpe": "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
    "umt": "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
    "dinov2": "dinov2_model/dinov2_vitb14_pretrain.pth",
    "dreamsim-clip": "dreamsim/clip_vitb16_pretrain.pth.tar",
    "dreamsim-open-clip": "dreamsim/open_clip_vitb16_pretrain.pth.tar",
    "dreamsim-lora": "dreamsim/ensemble_lora/adapter_model.safetensors",
    "dreamsim-settings": "dreamsim/ensemble_lora/adapter_config.json",
}
DREAMSIM = ("dino", "dreamsim-clip", "dreamsim-open-clip", "dreamsim-lora", "dreamsim-settings")
"""All that DreamSim's ensemble is made of; its DINO is the published one."""
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError,
    AttributeError, SafetensorError,
)  # fmt: skip
"""What torch raises on files that are damaged, something else, or hold more than tensors."""
INNER = ("state_dict", "params", "model")
"""State dicts within a file, where it has more than one thing in it."""


@dataclass
class Folder:
    """Weights files by name, hashed when they are first asked for."""

    root: Path
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.root / FILES[name]).is_file()

    def sha256(self, name: str) -> str:
        """Hash of a file; on first use it is pinned in the folder, and must stay what it was.

        Raises:
            CfError: it is another file than the one that was pinned.
        """
        if name not in self._hashes:
            self._hashes[name] = sha256_of(self.root / FILES[name])
            self._pin(name, self._hashes[name])
        return self._hashes[name]

    def _pin(self, name: str, found: str) -> None:
        path = self.root / PINNED
        try:
            pinned: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        except json.JSONDecodeError as error:
            raise CfError(
                f"{path} is damaged ({error}); delete it to pin the files anew"
            ) from error
        if FILES[name] not in pinned:
            self._write({**pinned, FILES[name]: found})
        elif pinned[FILES[name]] != found:
            raise CfError(
                f"{self.root / FILES[name]} is another file than before: sha256 {found[:12]}, "
                f"pinned {pinned[FILES[name]][:12]}; restore it, or delete {path}"
            )

    def _write(self, pinned: dict[str, str]) -> None:
        try:
            content = json.dumps(pinned, indent=1, sort_keys=True) + "\n"
            write_atomic(self.root / PINNED, content.encode())
        except PermissionError:
            log.warning("%s cannot be written: files are not pinned", self.root / PINNED)

    def path(self, name: str) -> Path:
        """Where a file lies that was pinned or is what it was.

        Raises:
            CfError: as ``sha256``.
        """
        self.sha256(name)
        return self.root / FILES[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights in a file, on the CPU, float32.

        Raises:
            CfError: the file is damaged or holds something else.
        """
        path = self.path(name)
        try:
            tree = self._opened(path)
        except UNREADABLE as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
            raise CfError(f"{path} is damaged or no weights file ({reason[:120]})") from error
        state: Any = tree
        for inner in INNER:
            if isinstance(state, dict) and isinstance(state.get(inner), dict):
                state = state[inner]
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise CfError(f"{path} holds no state dict; get it anew")
        return {str(k): v.float() if v.is_floating_point() else v for k, v in state.items()}

    def settings(self, name: str) -> dict[str, Any]:
        """What a JSON file says.

        Raises:
            CfError: the file is damaged.
        """
        path = self.path(name)
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise CfError(f"{path} is damaged ({error})") from error

    @staticmethod
    def _opened(path: Path) -> Any:
        if path.suffix == ".safetensors":
            return load_file(path)
        # OpenAI publishes CLIP as an archive of TorchScript, of which the weights alone are kept.
        if path.parent.name == "clip_model":
            try:
                return torch.jit.load(str(path), map_location="cpu").state_dict()
            except RuntimeError:
                pass
        return torch.load(path, map_location="cpu", weights_only=True)
