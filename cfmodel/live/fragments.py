"""Pixel frames to fragments of MP4, in memory, for a browser's Media Source.

Dims: R pixel frames, Y rows, X columns.
"""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["h264", "vp9"]
KINDS: tuple[Kind, ...] = ("h264", "vp9")
"""H.264 first; browsers built without its licence play VP9."""
SECONDS_A_KEY = 3
"""Seconds from one key picture to the next, behind which a page may drop what was shown."""
MOVFLAGS = "empty_moov+default_base_moof+frag_every_frame"
AVCC_PROFILE = slice(5, 8)
"""Profile, constraints and level, counted from the box's name (ISO/IEC 14496-15, 5.3.3)."""


_CODERS: dict[Kind, tuple[str, dict[str, str]]] = {
    # No picture waits for a later one; one thread, since the model has the others.
    "h264": (
        "libx264", {"crf": "18", "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
    ),
    "vp9": (
        "libvpx-vp9",
        {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0",
         "threads": "1"},
    ),
}  # fmt: skip


class _Bytes:
    """A file that cannot be sought in, as ``io.BytesIO`` can."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Append bytes; how many."""
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        data, self.parts = b"".join(self.parts), []
        return data


class FragmentWriter:
    """Encodes one film. All that it gives, joined, is one fragmented MP4 (yuv420p).

    The last pixel frame of a push comes with the next push, since only then its duration is known.

    Args:
        kind: of codec.
        fps: pixel frames a second.
        height: rows, even.
        width: columns, even.

    Raises:
        ValueError: an odd height or width, which yuv420p cannot hold.
    """

    def __init__(self, kind: Kind, *, fps: int, height: int, width: int) -> None:
        import av
        from av.container import Flags

        if height % 2 or width % 2:
            raise ValueError(f"film of {height} x {width} pixels: expected even sizes for yuv420p")
        self._file = _Bytes()
        name, options = _CODERS[kind]
        container: Any = av.open(self._file, "w", format="mp4", options={"movflags": MOVFLAGS})
        container.flags |= Flags.flush_packets.value
        self._container: Any = container
        self._stream = container.add_stream(name, rate=fps, options=dict(options))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.gop_size = SECONDS_A_KEY * fps
        container.start_encoding()
        self._begin = self._file.take()
        self.mime = f'video/mp4; codecs="{_codecs(kind, self._begin)}"'

    def push(self, frames_RYXC: "NDArray[np.uint8]") -> bytes:
        """Encoded RGB frames (R, Y, X, 3), uint8, behind what the film begins with."""
        import av

        for frame_YXC in frames_RYXC:
            frame = av.VideoFrame.from_ndarray(frame_YXC, format="rgb24")
            self._container.mux(self._stream.encode(frame))
        begin, self._begin = self._begin, b""
        return begin + self._file.take()

    def close(self) -> bytes:
        """The film's last picture, and its end."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.take()


def _codecs(kind: Kind, begin: bytes) -> str:
    """What a browser is asked whether it plays it, in RFC 6381's form."""
    if kind == "vp9":
        return "vp09.00.10.08"
    box = begin[begin.index(b"avcC") :]
    return f"avc1.{box[AVCC_PROFILE].hex().upper()}"
