"""What a process that scores asks of the libraries in it, to be quick on a CPU."""

import ctypes
import sys
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
FREE = 2**26
"""Bytes of freed blocks that ``give_back`` leaves."""


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


class _InUse(ctypes.Structure):
    """The C library's account of its heap, ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def give_back() -> None:
    """Gives freed blocks back to the system where they have become many.

    What one network leaves behind would add to what the next one takes, since blocks of other
    sizes do not fit there. To do it costs a hundredth of a pair's flow.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    try:
        account, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:  # another C library, or one from before 2021
        return
    account.restype = _InUse
    if account().fordblks > FREE:
        trim(0)


def quickened(net: Net) -> Net:
    """The same network; on a CPU its linear layers are oneDNN's, as its convolutions are already.

    The other library, MKL, has no AVX-512 for processors of other makers: half the speed there.
    Features differ in the last digit. Weights of changed layers can no longer be read or moved.
    """
    if not torch.backends.mkldnn.is_available():
        return net
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                setattr(parent, name, mkldnn.to_mkldnn(child))
    return net
