"""Whether films are static, by RAFT: VBench's filter before flicker."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from cfbench import standard, video
from cfbench.errors import CfError
from cfbench.scorers import rules
from cfbench.scorers.vbench import prep, process
from cfbench.scorers.vbench.files import FILES, Folder
from cfbench.scorers.vbench.nets import raft
from cfbench.scorers.vbench.toolbox import Toolbox


def judge(weights: Path, device: str) -> Callable[[Path], bool]:
    """What tells whether a film is static.

    Args:
        weights: folder laid out as the package's cache.
        device: where RAFT runs.

    Raises:
        CfError: no weights.
    """
    process.settle()
    net = Toolbox(Folder(weights), torch.device(device)).net("raft")
    if net is None:
        raise CfError(f"no weights {FILES['raft']} in {weights}")
    return lambda path: still(video.stored(path), net, torch.device(device))


def still(clip: video.Clip, net: raft.Raft, device: torch.device) -> bool:
    """Whether a film is static; a film of one frame is.

    Raises:
        DecodeError: the film cannot be decoded.
    """
    found = flows(clip, net, device)
    return standard.is_static(found.strong, found.ends, found.rows, found.columns)


class Flows(NamedTuple):
    """Mean of the largest 2 % of flow, in pixels, and the size of a frame.

    ``strong`` is of each frame to the next, ``ends`` of the first to the last and back.
    """

    strong: rules.Floats
    ends: rules.Floats
    rows: int
    columns: int


@torch.inference_mode()
def flows(clip: video.Clip, net: raft.Raft, device: torch.device) -> Flows:
    """What tells whether a film is static.

    Raises:
        DecodeError: the film cannot be decoded.
    """
    strong, first, last, size = list[float](), None, None, (0, 0)
    for block in clip.as_others():
        for image in block:
            size = image.shape[:2]
            pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float()[None]
            shown = prep.padded(pixels, raft.MULTIPLE)
            now = (shown, net.features(shown))
            if last is not None:
                strong.append(_strong(net, last, now))
            first, last = first or now, now
    if first is None or last is None:
        raise video.DecodeError("has no frame")
    ends = [_strong(net, first, last), _strong(net, last, first)]
    return Flows(np.array(strong), np.array(ends), *size)


def _strong(net: raft.Raft, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    u, v = net.flow(a[0], a[1], b[1])[0].cpu().numpy()
    return rules.strong_flow(cv2.magnitude(u, v), standard.STATIC_SHARE)
