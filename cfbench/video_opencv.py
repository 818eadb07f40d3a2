"""Films read through OpenCV, where PyAV is not installed: the same frames, bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cfbench.store import sha256_of
from cfbench.video import PLAIN_BLOCK, Clip, DecodeError, Frames


def stored(path: Path) -> Clip:
    """The film in a file; its frames are those of ``Clip.as_others``.

    Raises:
        DecodeError: the file is missing or is not a film.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DecodeError("cannot be opened: OpenCV sees no film")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return Clip(
        sha256=sha256_of(path), frames=count, fps=round(rate), exact_fps=rate,
        blocks=lambda: _blocks(path),
    )  # fmt: skip


def _blocks(path: Path) -> Iterator[Frames]:
    capture, block = cv2.VideoCapture(str(path)), list[Frames]()
    try:
        while (read := capture.read())[0]:
            block.append(np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8))
            if len(block) == PLAIN_BLOCK:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)
    finally:
        capture.release()
