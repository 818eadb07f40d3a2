"""Spaces of features in which frames are compared with each other and with texts.

R frames, Y rows, X columns, E width of a space.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cfbench.errors import CfError
from cfbench.scorers.rules import Floats

Frames = NDArray[np.uint8]

AT_ONCE = 16
TINY, REFERENCE = "tiny", "reference"
SPACES = ("dino", "clip")
"""Of what stands there, and of what texts tell: DINOv2 and CLIP, or the tiny tier's two."""


class Space(NamedTuple):
    """One space: unit vectors (R, E) of frames (R, Y, X, 3), and (E,) of a text if it has texts."""

    images: Callable[[Frames], Floats]
    texts: Callable[[str], Floats] | None = None


@cache
def load(name: str) -> Mapping[str, Space]:
    """Spaces by name, of those of ``SPACES`` whose weights are there.

    Args:
        name: ``tiny``, or ``reference`` or ``reference:FOLDER`` with DINOv2 ViT-B/14 and CLIP
            ViT-B/32 as in VBench's folder of weights, whose hashes are pinned there.

    Raises:
        CfError: another name, no such folder, or no weights in it.
    """
    kind, _, folder = name.partition(":")
    if kind == TINY and not folder:
        return _tiny()
    if kind == REFERENCE:
        return _reference(folder)
    raise CfError(f"features {name!r}: expected tiny, reference or reference:FOLDER")


def _tiny() -> Mapping[str, Space]:
    from cfbench.scorers.tiny import weights
    from cfbench.scorers.tiny.nets import text_bytes
    from cfbench.scorers.tiny.read import pixels
    from cfbench.scorers.tiny.watch import sized

    nets = weights.load()

    def frames(images: Callable[[Tensor], Tensor]) -> Callable[[Frames], Floats]:
        return _batched(lambda block: images(pixels(torch.from_numpy(sized(block)))))

    @torch.inference_mode()
    def text(words: str) -> Floats:
        return _unit(nets.dual.texts(text_bytes([words])))[0]

    return {"dino": Space(frames(nets.features)), "clip": Space(frames(nets.dual.images), text)}


def _reference(folder: str) -> Mapping[str, Space]:
    from cfbench.scorers.vbench import load_suite, prep
    from cfbench.scorers.vbench.files import FILES

    tools = load_suite("cpu", folder).tools
    found: dict[str, Space] = {}

    def frames(net: nn.Module, prepare: Callable[[Tensor], Tensor]) -> Callable[[Frames], Floats]:
        return _batched(lambda block: net(prepare(_float(block))))

    dinov2, clip = tools.net("dinov2"), tools.net("clip-b32")
    if dinov2 is not None:
        found["dino"] = Space(frames(dinov2, prep.dinov2_input))
    if clip is not None:
        texts = tools.text("clip-b32") if tools.folder.has("bpe") else None
        found["clip"] = Space(frames(clip, prep.clip_input), texts)
    if not found:
        raise CfError(
            f"no weights {FILES['dinov2']} or {FILES['clip-b32']} in {tools.folder.root}; see "
            "docs/vbench.md"
        )
    return found


def _float(block: Frames) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(block)).permute(0, 3, 1, 2).float()


def _batched(net: Callable[[Frames], Any]) -> Callable[[Frames], Floats]:
    @torch.inference_mode()
    def images(block: Frames) -> Floats:
        parts = [_unit(net(block[at : at + AT_ONCE])) for at in range(0, len(block), AT_ONCE)]
        return np.concatenate(parts)

    return images


def _unit(vectors: Tensor) -> Floats:
    found = vectors.float().cpu().numpy().astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)
