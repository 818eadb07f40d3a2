"""The weights that VBench's dimensions need: where they lie, and that they stay the same files.

The folder is laid out as the ``vbench`` package lays out its cache, so that one serves both.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cfbench.errors import CfError
from cfbench.store import sha256_of, write_atomic
from cfmodel.io.checkpoints import unpickled

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
}
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

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights in a file, on the CPU, float32.

        Raises:
            CfError: the file is damaged or holds something else.
        """
        path = self.root / FILES[name]
        self.sha256(name)
        state = self._archived(path) if path.parent.name == "clip_model" else None
        if state is None:
            try:
                state, _ = unpickled(path, entries=INNER)
            except ValueError as error:
                raise CfError(str(error)) from error
        return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}

    @staticmethod
    def _archived(path: Path) -> dict[str, Tensor] | None:
        """Weights of an archive of TorchScript, as OpenAI publishes CLIP; None if it is none."""
        try:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        except RuntimeError:
            return None
