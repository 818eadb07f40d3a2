"""Networks of VBench's dimensions by the file that they come from, made when first asked for."""

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfbench.scorers import rules
from cfbench.scorers.vbench import process, watch
from cfbench.scorers.vbench.files import DREAMSIM, FILES, Folder
from cfbench.scorers.vbench.nets import raft, video, vit
from cfbench.scorers.vbench.nets.amt import AmtS
from cfbench.scorers.vbench.nets.block import Net, under
from cfbench.scorers.vbench.nets.dreamsim import DreamSim, dreamsim
from cfbench.scorers.vbench.nets.musiq import Musiq
from cfbench.scorers.vbench.nets.text import TextTransformer, Words, text_half
from cfbench.scorers.vbench.prep import UMT_CROP


@dataclass
class Toolbox:
    """Networks by the file that they come from, made when they are first asked for."""

    folder: Folder
    device: torch.device
    _made: dict[str, Any] = field(default_factory=dict, repr=False)
    _read: tuple[str, dict[str, Tensor]] = field(default=("", {}), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def net(self, name: str) -> Any:
        """A network, float32; None where its file is not there.

        Raises:
            CfError: the file is damaged.
            ValueError: it holds another network's weights.
        """
        return self._kept(name, lambda: self._built(name, MAKERS[name]))

    def dreamsim(self) -> DreamSim:
        """DreamSim's ensemble, whose files have to be there.

        Raises:
            CfError, ValueError: as ``net``.
        """
        return self._kept("dreamsim", self._dreamsim)

    def text(self, name: str) -> "Reader":
        """What reads texts with the weights of a file.

        Raises:
            CfError, ValueError: as ``net``.
        """
        words = self._kept("bpe", lambda: Words(self.folder.path("bpe")))
        half = self._kept(f"{name}-text", lambda: self._built(name, TEXT_MAKERS[name]))
        return Reader(words, half)

    def scale(self, name: str) -> float:
        """The learnt scale of CLIP's similarities."""
        return self._kept(f"{name}-scale", lambda: float(self._tensors(name)["logit_scale"].exp()))

    def _kept(self, key: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """Of the file read last, once: both halves of a network are often wanted together."""
        if self._read[0] != name:
            self._read = (name, self.folder.tensors(name))
        return self._read[1]

    def _built(self, name: str, make: Callable[[Any], nn.Module]) -> Any:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if not self.folder.has(name):
            return None
        with _fitting(FILES[name]):
            net = make(self._tensors(name))
        return self._ready(net)

    def _dreamsim(self) -> DreamSim:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        *bases, adapter, settings = DREAMSIM
        said = self.folder.settings(settings)
        weights = [self.folder.tensors(name) for name in bases]
        with _fitting(FILES[adapter]):
            scale = float(said["lora_alpha"]) / float(said["r"])
            net = dreamsim(weights, self.folder.tensors(adapter), scale)
        return self._ready(net)

    def _ready(self, net: Net) -> Net:
        return process.quickened(net.to(self.device).eval().requires_grad_(False))


@contextmanager
def _fitting(file: str) -> Generator[None]:
    """Weights that do not fit are a ValueError that names the file."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} does not fit: {reason}") from error


@dataclass
class Reader:
    """Unit features of texts, each made once."""

    words: Words
    net: TextTransformer
    _known: dict[str, rules.Floats] = field(default_factory=dict)

    @torch.inference_mode()
    def __call__(self, text: str) -> rules.Floats:
        """The feature (E,) of a text, of unit length."""
        if text not in self._known:
            ids = self.words([text], self.net.length).to(self.net.positions.device)
            feature = self.net(ids)[0].cpu().numpy().astype(np.float64)
            self._known[text] = feature / np.linalg.norm(feature)
        return self._known[text]


def _filled(make: Callable[[], nn.Module]) -> Callable[[Mapping[str, Tensor]], nn.Module]:
    def fill(tensors: Mapping[str, Tensor]) -> nn.Module:
        net = make()
        net.load_state_dict(tensors)
        return net

    return fill


def _head(tensors: Mapping[str, Tensor]) -> nn.Module:
    return _filled(lambda: nn.Linear(tensors["weight"].shape[1], 1))(tensors)


def _umt(tensors: Mapping[str, Tensor]) -> nn.Module:
    return video.umt(tensors, frames=watch.UMT_FRAMES, side=UMT_CROP)


def _viclip_text(tensors: Mapping[str, Tensor]) -> nn.Module:
    return text_half(under(tensors, "text_encoder."))


MAKERS: Mapping[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "dino": vit.dino,
    "dinov2": vit.dinov2,
    "clip-b32": vit.clip,
    "clip-l14": vit.clip,
    "aesthetic": _head,
    "musiq": _filled(Musiq),
    "amt": _filled(AmtS),
    "raft": raft.raft,
    "viclip": video.viclip,
    "umt": _umt,
}
TEXT_MAKERS: Mapping[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "clip-b32": text_half,
    "viclip": _viclip_text,
}
