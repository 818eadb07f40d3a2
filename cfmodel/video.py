"""Writing a film as H.264 while it is made, and contact sheets.

Dims: R pixel frames, Y rows, X columns.
"""

import os
import platform
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cfmodel.io.weights import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CRF = 18
SAME_EVERYWHERE = (
    {"x264-params": "asm=avx2"} if platform.machine().lower() in ("x86_64", "amd64") else {}
)
"""x264's AVX-512 code gives the first film of a process other bytes from run to run."""


class FilmWriter:
    """An MP4 (H.264, yuv420p, index in front) that appears at its path when it is complete.

    A context manager; if the block fails, nothing is left behind.

    Args:
        path: file to write.
        fps: pixel frames a second.
        height: rows, even.
        width: columns, even.
        crf: x264's quality, smaller is better.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full.
        ValueError: an odd height or width, which yuv420p cannot hold.
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int, crf: int = CRF) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"film of {height} x {width} pixels: expected even sizes for yuv420p")
        self.path = path
        self.frames = 0
        self._size = (height, width, 3)
        self._part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        self._options = {"fps": fps, "crf": crf}
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "FilmWriter":
        import av

        self._container = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        # One thread: x264's output depends on their number.
        options = {"crf": str(self._options["crf"]), "threads": "1", **SAME_EVERYWHERE}
        self._stream = self._container.add_stream(
            "libx264", rate=self._options["fps"], options=options
        )
        self._stream.height, self._stream.width, _ = self._size
        self._stream.pix_fmt = "yuv420p"
        return self

    def write(self, frames_RYXC: "NDArray[np.uint8]") -> None:
        """Append RGB frames (R, Y, X, 3), uint8.

        Raises:
            ValueError: another shape.
            OSError: the disk is full.
        """
        import av

        if frames_RYXC.shape[1:] != self._size:
            raise ValueError(f"frames {frames_RYXC.shape}: expected (R, *{self._size})")
        for frame_YXC in frames_RYXC:
            frame = av.VideoFrame.from_ndarray(frame_YXC, format="rgb24")
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._close(kind is None)
            if kind is None:
                with self._part.open("rb") as file:
                    os.fsync(file.fileno())
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def _close(self, wanted: bool) -> None:
        try:
            self._container.close()
        except OSError:
            # A film that is thrown away may fail to close; the first error is the one to tell.
            if wanted:
                raise


def contact_sheet(frames_RYXC: "NDArray[np.uint8]", path: Path, *, columns: int = 6) -> None:
    """Write frames side by side as a PNG, row by row; the last row is filled up with white.

    Args:
        frames_RYXC: RGB frames, uint8.
        path: file to write, atomically.
        columns: frames in a row.

    Raises:
        ValueError: no frames.
        OSError: the file cannot be written.
    """
    import cv2
    import numpy as np

    if not len(frames_RYXC) or columns < 1:
        raise ValueError(f"{len(frames_RYXC)} frames in {columns} columns: expected at least one")
    rows = -(-len(frames_RYXC) // columns)
    _, height, width, _ = frames_RYXC.shape
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, frame_YXC in enumerate(frames_RYXC):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + height, x : x + width] = frame_YXC
    _, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    write_atomic(path, png.tobytes())
