"""Films on disk: H.264 in MP4, the same bytes for the same frames; read in blocks.

R pixel frames, Y rows, X columns.
"""

import hashlib
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfbench.errors import CfError, unwritable
from cfbench.store import sha256_of
from cfbench.types import ClipInfo

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

Frames = NDArray[np.uint8]

CRF = 18
CODEC = f"h264-crf{CRF}"
SAME_EVERYWHERE = (
    {"x264-params": "asm=avx2"} if platform.machine().lower() in ("x86_64", "amd64") else {}
)
"""x264's AVX-512 code gives the first film of a process other bytes from run to run."""
BT709, LIMITED_RANGE = 1, 1
SEI = 6  # H.264 unit in which x264 writes its version and settings
DECODE_BLOCK, PLAIN_BLOCK = 64, 4


class DecodeError(ValueError):
    """A film that is missing, is not a film, or breaks off."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A film to look at, wherever its frames are: see ``stored`` and ``held``.

    ``blocks`` gives the frames in blocks (R, Y, X, 3), RGB, from the first one each time it is
    called; a film that breaks off raises ``DecodeError`` there. ``plain`` gives them with colours
    as OpenCV and decord convert them, where that is another thing: see ``decode``; ``exact_fps`` is
    the frame rate where it is no whole number; ``note`` is what its scores should tell beside
    their values.
    """

    sha256: str
    frames: int
    fps: int
    blocks: Callable[[], Iterator[Frames]]
    plain: Callable[[], Iterator[Frames]] | None = None
    exact_fps: float | None = None
    note: str = ""

    @property
    def rate(self) -> float:
        """Frames a second, not rounded."""
        return self.exact_fps or self.fps

    def as_others(self) -> Iterator[Frames]:
        """Frames as OpenCV and decord give them."""
        return (self.plain or self.blocks)()

    def every(self, step: int) -> Iterator[Frames]:
        """Every ``step``-th frame from the first one on, in blocks (R, Y, X, 3), R from 1."""
        seen = 0
        for block in self.blocks():
            kept = block[-seen % step :: step]
            seen += len(block)
            if len(kept):
                yield kept

    @property
    def scored(self) -> int:
        """How many frames are scored."""
        return canonical_frames(self.frames, self.fps)


def stored(path: Path) -> Clip:
    """The film in a file.

    Raises:
        DecodeError: the file is missing or is not a film.
    """
    info = probe(path)
    return Clip(
        sha256=info.sha256, frames=info.frames, fps=info.fps,
        blocks=lambda: decode(path), plain=lambda: decode(path, block=PLAIN_BLOCK, exact=False),
        exact_fps=_rate(path), note=_uneven(path),
    )  # fmt: skip


def held(frames: Frames, fps: int) -> Clip:
    """The film whose frames (R, Y, X, 3) are these; its hash is of their bytes in this order."""
    sha = hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()
    return Clip(sha256=sha, frames=len(frames), fps=fps, blocks=lambda: iter((frames,)))


def encode(path: Path, frames: Iterable[Frames], fps: int) -> ClipInfo:
    """Write frames to an MP4 as they come and return what was written.

    One encoder thread, no dates and no version strings, so equal frames give equal bytes.

    Args:
        path: file to write; its folder exists. Removed again when anything fails.
        frames: blocks (R, Y, X, 3), RGB; Y and X even.
        fps: pixel frames a second.

    Raises:
        ValueError: no frame, a block of another shape or type, or odd sizes.
        CfError: the disk is full or refuses.
    """
    done = False
    try:
        count, height, width = _encode(path, frames, fps)
        done = True
        return ClipInfo(
            sha256=sha256_of(path),
            frames=count,
            fps=fps,
            width=width,
            height=height,
            codec=CODEC,
            bytes=path.stat().st_size,
        )
    finally:
        if not done:
            path.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterable[Frames], fps: int) -> tuple[int, int, int]:
    av = _av()
    blocks = iter(frames)
    first = next(blocks, None)
    if first is None or not len(first):
        raise ValueError("a film needs at least one frame; got none")
    _, height, width, _ = _check(first, None)
    # fflags: no version strings; faststart: a browser shows the first frame at once.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    count = 0
    try:
        with av.open(str(path), "w", format="mp4", options=options) as container:
            settings = {
                "crf": str(CRF), "flags": "+bitexact", "threads": "1", **SAME_EVERYWHERE
            }  # fmt: skip
            stream = container.add_stream("libx264", rate=fps, options=settings)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count = 1
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
            strip = None
            for block in _chain(first, blocks):
                _check(block, (height, width))
                for image in block:
                    packets = stream.encode(_to_yuv(av, image))
                    if strip is None:
                        strip = av.bitstream.BitStreamFilterContext(
                            f"filter_units=remove_types={SEI}", in_stream=stream
                        )
                    _mux(container, stream, strip, packets)
                    count += 1
            _mux(container, stream, strip, [*stream.encode(None), None])
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise ValueError(f"cannot encode {width}x{height} frames: {error}") from error
    return count, height, width


def decode(path: Path, *, block: int = DECODE_BLOCK, exact: bool = True) -> Iterator[Frames]:
    """Frames of a film in blocks (at most ``block``, Y, X, 3), RGB.

    Args:
        path: the film.
        block: frames at a time.
        exact: convert colours without bias; else as FFmpeg does by itself, and with it OpenCV and
            decord, bit for bit: up to 36 levels apart where colours change from pixel to pixel.

    Raises:
        DecodeError: the file is missing, is not a film, or breaks off.
    """
    av = _av()
    try:
        with _open(path) as container:
            stack: list[Frames] = []
            # One for all frames: to set it up costs more than to use it.
            convert = av.video.reformatter.VideoReformatter()
            for frame in container.decode(video=0):
                stack.append(_to_rgb(av, frame) if exact else _as_others(convert, frame))
                if len(stack) == block:
                    yield np.stack(stack)
                    stack = []
            if stack:
                yield np.stack(stack)
    except av.error.FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror or error}") from error


def pick(path: Path, wanted: set[int]) -> dict[int, Frames]:
    """Some frames of a film by index, each (Y, X, 3), RGB; only these are converted.

    Raises:
        DecodeError: the film cannot be decoded, or ends before the last of them.
    """
    av = _av()
    found: dict[int, Frames] = {}
    try:
        with _open(path) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    found[index] = _to_rgb(av, frame)
                if len(found) == len(wanted):
                    return found
    except av.error.FFmpegError as error:
        raise DecodeError(f"cannot be decoded: {error.strerror or error}") from error
    raise DecodeError(f"breaks off before frame {max(wanted)}")


def probe(path: Path) -> ClipInfo:
    """What a film file says that it holds, without decoding it.

    Raises:
        DecodeError: the file is missing or is not a film.
    """
    av = _av()
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            if rate is None:
                raise DecodeError("cannot be decoded: it has no frame rate")
            return ClipInfo(
                sha256=sha256_of(path),
                frames=stream.frames,
                fps=round(rate),
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                codec=stream.codec_context.name,
                bytes=path.stat().st_size,
            )
    except av.error.FFmpegError as error:
        raise DecodeError(f"cannot be opened: {error.strerror or error}") from error


def _rate(path: Path) -> float | None:
    with _open(path) as container:
        rate = container.streams.video[0].average_rate
        return None if rate is None else float(rate)


def _uneven(path: Path) -> str:
    """What to say of a film whose frames do not last equally long; nothing of others."""
    with _open(path) as container:
        stream = container.streams.video[0]
        try:
            shown = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        except _av().error.FFmpegError:  # decoding will tell it
            return ""
        lengths = [b - a for a, b in itertools.pairwise(shown)]
        # Where the clock does not divide a frame's length, lengths differ by one tick.
        if stream.time_base is None or not lengths or max(lengths) - min(lengths) <= 1:
            return ""
        least, most = (1000 * float(n * stream.time_base) for n in (min(lengths), max(lengths)))
        return f"variable frame rate ({least:.0f} to {most:.0f} ms a frame); scored as if even"


def canonical_frames(stored: int, fps: int) -> int:
    """Pixel frames that are scored: whole seconds of film (960 of 969 at 16 fps).

    A film shorter than a second is scored as a whole.
    """
    return stored // fps * fps or stored


def canonical(frames: Iterable[Frames], limit: int) -> Iterator[Frames]:
    """The first ``limit`` frames of a stream of blocks.

    Raises:
        DecodeError: the stream ends before.
    """
    left = limit
    for block in frames:
        if left <= 0:
            return
        yield block[:left]
        left -= len(block[:left])
    if left > 0:
        raise DecodeError(f"breaks off after {limit - left} of {limit} frames")


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise CfError("films need PyAV, which is not installed; pip install av") from error
    return av


def _open(path: Path) -> "InputContainer":
    container = _av().open(str(path))
    if not container.streams.video:
        container.close()
        raise DecodeError("cannot be decoded: it has no video stream")
    container.streams.video[0].codec_context.thread_count = 1
    return container


def _to_yuv(av: Any, image: Frames) -> "VideoFrame":
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace="ITU709",
        dst_color_range="MPEG",
        interpolation=_scaling(av),
        threads=1,
    )


def _to_rgb(av: Any, frame: "VideoFrame") -> Frames:
    rgb = frame.reformat(format="rgb24", interpolation=_scaling(av), threads=1)
    return np.asarray(rgb.to_ndarray(), np.uint8)


def _as_others(convert: "VideoReformatter", frame: "VideoFrame") -> Frames:
    rgb = convert.reformat(frame, format="rgb24", threads=1)
    # A view, since the block that it goes into is a copy; rows may have padding behind them.
    plane: Any = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
    return rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)


def _scaling(av: Any) -> Any:
    # The default loses 2 levels a round trip, one of them always darker, and differs between
    # processors; with these flags it is 0.4, without a bias.
    kind = av.video.reformatter.Interpolation
    exact = kind.ACCURATE_RND | kind.BITEXACT | kind.FULL_CHR_H_INT | kind.FULL_CHR_H_INP
    return kind.BICUBIC | exact


def _mux(container: Any, stream: Any, strip: Any, packets: Iterable[Any]) -> None:
    for packet in packets:
        for clean in strip.filter(packet):
            clean.stream = stream
            container.mux(clean)


def _chain(first: Frames, rest: Iterator[Frames]) -> Iterator[Frames]:
    yield first
    yield from rest


def _check(block: Frames, size: tuple[int, int] | None) -> tuple[int, ...]:
    ok = block.ndim == 4 and block.shape[3] == 3 and block.dtype == np.uint8
    if not ok or block.shape[1] % 2 or block.shape[2] % 2:
        raise ValueError(
            f"a block of frames is {block.dtype} {block.shape}; expected uint8 (R, Y, X, 3), "
            "Y and X even"
        )
    if size is not None and block.shape[1:3] != size:
        raise ValueError(f"a block of frames is {block.shape[1:3]}, those before were {size}")
    return block.shape
