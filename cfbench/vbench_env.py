"""An environment of its own for the ``vbench`` package, whose requirements do not fit ours.

Source: pins that were tried; without its own, which do not resolve beside numpy 2.
"""

import logging
import subprocess
import sys
import venv
from pathlib import Path

from cfbench.errors import CfError

log = logging.getLogger(__name__)

TORCH = ("torch==2.13.0",)
BESIDE = (
    "torchvision==0.28.0", "numpy>=2,<3", "setuptools<81", "packaging", "pillow", "scipy", "tqdm",
    "requests", "pyyaml", "timm==1.0.31", "transformers>=5,<6", "easydict", "omegaconf", "einops",
    "ftfy", "regex", "imageio", "imageio-ffmpeg", "opencv-python-headless", "decord==0.6.0",
    "open-clip-torch==3.3.0", "diffusers==0.42.0", "av", "peft",
)  # fmt: skip
ALONE = ("vbench==0.1.5", "pyiqa==0.1.16", "openai-clip==1.0.1", "dreamsim==0.2.1")
"""Installed without what they ask for."""
SHIM = '''\
"""Declares torchvision's two compiled operators where its wheel cannot load them (CPU builds)."""

import torch

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
'''
HOOK = '''\
"""Runs the shim when torchvision is first imported: other programs start as fast as ever."""

import importlib.abc
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import cfbench_torchvision_shim  # noqa: F401


sys.meta_path.insert(0, _Finder())
'''


def create(folder: Path) -> Path:
    """Makes the environment, or finishes one that was begun. Returns its Python.

    Raises:
        CfError: a package cannot be installed.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    for words in (TORCH, BESIDE, ("--no-deps", *ALONE)):
        log.info("installing %s", " ".join(words)[:80])
        _pip(python, words)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "cfbench_torchvision_shim.py").write_text(SHIM, encoding="utf-8")
    (packages / "cfbench_torchvision_hook.py").write_text(HOOK, encoding="utf-8")
    (packages / "cfbench_torchvision.pth").write_text(
        "import cfbench_torchvision_hook\n", encoding="utf-8"
    )
    return python


def _pip(python: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *words],
        stdout=sys.stderr, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CfError(f"pip cannot install {' '.join(words)[:80]}; see its message above")
