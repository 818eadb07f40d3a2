"""VBench's dimensions, computed here and equal to the ``vbench`` package's; see docs/vbench.md."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfbench.scorers.vbench.suite import VBenchSuite


def load_suite(device: str, folder: str = "") -> "VBenchSuite":
    """The suite with the weights of a folder, laid out as the ``vbench`` package's cache.

    Args:
        device: where its networks run.
        folder: of the weights; empty is where that package keeps them.

    Raises:
        CfError: a named folder does not exist.
    """
    import torch

    from cfbench.errors import CfError
    from cfbench.scorers.vbench.files import DEFAULT, Folder
    from cfbench.scorers.vbench.suite import VBenchSuite

    root = Path(folder) if folder else Path.home() / DEFAULT
    if folder and not root.is_dir():
        raise CfError(f"--suite vbench:{folder}: no such folder of weights")
    return VBenchSuite(Folder(root), torch.device(device))
