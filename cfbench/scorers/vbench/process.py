"""What a process that scores asks of the libraries in it; no number depends on it."""

import ctypes
import sys

import cv2

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Of ``mallopt``: free bytes above which memory is given back; blocks outside of heaps; heaps."""
MOST = 2**31 - 1


def settle() -> None:
    """Keeps freed memory, and OpenCV to one thread, from here on.

    glibc gives large blocks back to the system at once, and their pages are made anew for every
    layer of every frame: a fifth of a film's time on a CPU. OpenCV's threads and torch's, each
    waiting for work in a loop, take the cores from one another: ten times the time on two cores.
    """
    cv2.setNumThreads(1)
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, MOST)
