"""RAFT through torchvision, with the weights that its authors published (``raft-things.pth``).

Dims: B pairs, Y X rows and columns of pixels.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

ITERATIONS = 20
MULTIPLE = 8
LEVELS = 255
_KEPT: list[Any] = []
"""Operators that were declared here: they last as long as what declared them."""

_NAMES = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"encoder\.conv1\.", "encoder.convnormrelu.0."),
    (r"encoder\.norm1\.", "encoder.convnormrelu.1."),
    (r"encoder\.conv2\.", "encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def torchvision() -> Any:
    """Torchvision, also beside a CPU build of torch, whose wheel lacks its compiled operators.

    Without them importing it fails at two operators, which are declared here and never called.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import torchvision as found
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision as found
    return found


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights under torchvision's names; norms that stand there twice come once."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = name.removeprefix("module.")
        if re.search(r"layer\d\.\d\.norm3\.", name):
            continue
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        out[name] = value
    return out


def raft(tensors: Mapping[str, Tensor]) -> Any:
    """The large network with its published weights.

    Raises:
        ValueError: they are of another network.
    """
    torchvision()
    from torchvision.models.optical_flow import raft_large

    net = raft_large(weights=None)
    try:
        net.load_state_dict(renamed(tensors))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1].strip()
        raise ValueError(f"weights are of another network than RAFT ({reason})") from error
    return net.eval().requires_grad_(False)


@torch.no_grad()
def flow(net: Any, a_B3YX: Tensor, b_B3YX: Tensor) -> Tensor:
    """Flow (B, 2, Y', X') in pixels between images of 0 to 255, sides padded to multiples of 8.

    Source: RAFT's demo and VBench: borders repeated, the padding split on both sides and kept.
    """
    rows, columns = a_B3YX.shape[-2:]
    more = [-size % MULTIPLE for size in (columns, rows)]
    sides = [side for gap in more for side in (gap // 2, gap - gap // 2)]
    a, b = (nnf.pad(x, sides, mode="replicate") * (2 / LEVELS) - 1 for x in (a_B3YX, b_B3YX))
    return net(a, b, num_flow_updates=ITERATIONS)[-1]
