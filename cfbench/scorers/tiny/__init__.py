"""The tiny tier: scorers trained on the tiny world's truth, with other seeds than any generator."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfbench.scorers.tiny.dims import TinySuite


def load_suite(device: str) -> "TinySuite":
    """The suite with its bundled networks on a device.

    Raises:
        CfError: weights are missing or damaged.
    """
    import torch

    from cfbench.scorers.tiny.dims import TinySuite
    from cfbench.scorers.tiny.weights import load, measuring_codec

    where = torch.device(device)
    return TinySuite(load(device=where), measuring_codec(where))
