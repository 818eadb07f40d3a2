"""What a process that scores asks of the libraries in it, to be quick on a CPU."""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from torch import nn
from torch.utils import mkldnn

Net = TypeVar("Net", bound=nn.Module)

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Of ``mallopt``: free bytes above which memory is given back; size of blocks that always are;
heaps."""
MOST, HUGE = 2**31 - 1, 2**23
"""Larger blocks are given back at once, so that one network's do not add to the next one's."""
GROWN = 2**26
"""Bytes that a process may grow by before freed blocks are given back."""


def settle() -> None:
    """Keeps small blocks of freed memory, and OpenCV to one thread, from here on.

    Pages that are given back are made anew for every layer of every frame. OpenCV's threads and
    torch's, each waiting for work in a loop, take the cores from one another: ten times the time
    on two cores.
    """
    cv2.setNumThreads(1)
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_THRESHOLD, HUGE)
    mallopt(TRIM_THRESHOLD, MOST)


class Heap:
    """Gives freed blocks back to the system where the process has grown by them.

    What one network leaves behind would add to what the next one takes, since blocks of other
    sizes do not fit there. To give them back costs a hundredth of a pair's flow.
    """

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = None
        if sys.platform.startswith("linux"):
            with contextlib.suppress(AttributeError):  # another C library
                self._trim = ctypes.CDLL(None).malloc_trim
        self._least = self._resident()

    def trim(self) -> None:
        """Gives back what is free, if the process is larger than after the last time by much."""
        if self._trim is None or self._resident() - self._least < GROWN:
            return
        self._trim(0)
        self._least = self._resident()

    def _resident(self) -> int:
        """Bytes of this process in memory; 0 where nothing can be given back."""
        if self._trim is None:
            return 0
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE


def quickened(net: Net) -> Net:
    """The same network; on some CPUs its linear layers are oneDNN's, as its convolutions are.

    The other library, MKL, has AVX-512 for its own maker's processors alone: half the speed on
    others, a tenth more on these. Features differ in the last digit. Weights of changed layers can
    no longer be read or moved.
    """
    if not torch.backends.mkldnn.is_available() or _has_own_mkl():
        return net
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                setattr(parent, name, mkldnn.to_mkldnn(child))
    return net


def _has_own_mkl() -> bool:
    """Whether torch multiplies by MKL on a processor of MKL's maker, as far as Linux tells."""
    told = Path("/proc/cpuinfo")
    if not torch.backends.mkl.is_available() or not told.is_file():
        return False
    return "GenuineIntel" in told.read_text("ascii", errors="replace")
