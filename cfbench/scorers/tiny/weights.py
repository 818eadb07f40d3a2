"""The trained networks of the tiny tier, as they ship in ``cfbench/assets/tiny``."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cfbench.errors import CfError
from cfbench.scorers.tiny.nets import NETS, Dual, Features, Imaging, Motion, Reader
from cfmodel.io.codec import Codec, tae_codec
from cfmodel.io.weights import bundled
from cfmodel.presets import ours

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "tiny"


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The five networks, ready to judge, and the sha256 of each one's file."""

    reader: Reader
    motion: Motion
    dual: Dual
    imaging: Imaging
    features: Features
    hashes: dict[str, str]


def load(folder: Path = ASSETS, device: torch.device | None = None) -> Networks:
    """The networks stored in a folder, fp32, normalisation folded into convolutions.

    Raises:
        CfError: a file is missing, damaged, or of another layout.
    """
    if device is not None and device.type == "cuda":
        # Ten bits of mantissa would move scores away from those that a CPU gives.
        torch.backends.cudnn.allow_tf32 = False
    nets: dict[str, nn.Module] = {}
    hashes: dict[str, str] = {}
    for name in NETS:
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            raise CfError(
                f"the tiny tier has no weights {path.name}; restore cfbench/assets/tiny or run "
                f"python -m cfbench.scorers.tiny.train {name}"
            )
        nets[name] = load_net(name, path).to(device or torch.device("cpu"))
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return assemble(nets, hashes)


def reader_digits(folder: Path = ASSETS) -> str:
    """First 6 digits of the sha256 of the network that reads frames."""
    return hashlib.sha256((folder / "reader.safetensors").read_bytes()).hexdigest()[:6]


def measuring_codec(device: torch.device | None = None) -> Codec:
    """The bundled codec of the tiny world, float32 on every device.

    Raises:
        ValueError: its weights are missing or damaged.
    """
    return tae_codec(
        ours("tiny").codec, bundled("tiny/codec"), device=device or "cpu", dtype=torch.float32
    )


def assemble(nets: dict[str, nn.Module], hashes: dict[str, str]) -> Networks:
    """Networks by name as one record.

    Raises:
        ValueError: one is missing or of another kind.
    """
    wrong = [name for name, kind in NETS.items() if not isinstance(nets.get(name), kind)]
    if wrong:
        raise ValueError(f"networks {wrong} are missing or of another kind; expected {list(NETS)}")
    return Networks(**nets, hashes=hashes)  # pyright: ignore[reportArgumentType]


def load_net(name: str, path: Path) -> nn.Module:
    """One network from its file.

    Raises:
        CfError: the file is damaged or holds something else.
    """
    with torch.random.fork_rng(devices=[]):
        net = NETS[name]()
    try:
        found = {key: value.float() for key, value in load_file(path).items()}
        counters = {key for key in net.state_dict() if key.endswith("num_batches_tracked")}
        lacking, foreign = net.load_state_dict(found, strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise CfError(
            f"{path.name} is damaged or of another layout ({error}); restore it"
        ) from error
    if foreign or set(lacking) - counters:
        raise CfError(f"{path.name} holds another network than {name}; restore it")
    return fused(net)


def fused(net: nn.Module) -> nn.Module:
    """A copy for inference with every batch norm folded into the convolution before it."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            for k in range(len(module) - 1):
                conv, norm = module[k], module[k + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[k] = fuse_conv_bn_eval(conv, norm)
                    module[k + 1] = nn.Identity()
    return net
