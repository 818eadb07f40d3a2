"""VBench's dimensions, computed here and equal to the ``vbench`` package's; see docs/vbench.md."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfbench.scorers.vbench.files import Folder
    from cfbench.scorers.vbench.suite import VBenchSuite
    from cfbench.scorers.vbench.upstream import UpstreamSuite


def load_suite(device: str, folder: str = "") -> "VBenchSuite":
    """Films scored whole, with the weights of a folder laid out as the ``vbench`` package's cache.

    Args:
        device: where its networks run.
        folder: of the weights; empty is where that package keeps them.

    Raises:
        CfError: a named folder does not exist.
    """
    return _load("vbench", device, folder)


def load_long(device: str, folder: str = "") -> "VBenchSuite":
    """As ``load_suite``, in clips that are encoded again: VBench-Long."""
    return _load("vbench-long", device, folder)


def load_long_index(device: str, folder: str = "") -> "VBenchSuite":
    """As ``load_long``, but nothing is encoded again: clips are ranges of frames."""
    return _load("vbench-long-index", device, folder)


def load_upstream(device: str, folder: str = "") -> "UpstreamSuite":
    """What the package itself said of films; see ``cfbench.upstream``."""
    from cfbench.scorers.vbench.upstream import UpstreamSuite

    del device
    return UpstreamSuite(_weights("vbench-upstream", folder))


def _load(name: str, device: str, folder: str) -> "VBenchSuite":
    import torch

    from cfbench.scorers.vbench import process, protocol
    from cfbench.scorers.vbench.suite import VBenchSuite

    process.settle()
    rules = {rule.name: rule for rule in (protocol.WHOLE, protocol.LONG, protocol.INDEX)}
    return VBenchSuite(_weights(name, folder), torch.device(device), rules[name])


def _weights(name: str, folder: str) -> "Folder":
    from cfbench.errors import CfError
    from cfbench.scorers.vbench.files import DEFAULT, Folder

    if folder and not Path(folder).is_dir():
        raise CfError(f"--suite {name}:{folder}: no such folder of weights")
    return Folder(Path(folder) if folder else Path.home() / DEFAULT)
