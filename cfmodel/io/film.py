"""Reading real films: whether they are whole, and their pictures at another rate and size.

Dims: R pixel frames, Y rows, X columns.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLOCK_S = Fraction(1, 2000)
"""Half of Matroska's millisecond, the coarsest clock in use: times that differ less are equal."""
LONGEST_HOLD_S = 5
"""A picture on display for longer says that times are damaged, or that the film is a slide show."""
SLACK_FRAMES = 2
"""By how many source frames a film may end before its stated end: muxers guess the last one."""
QUARTER_TURN = 90


class FilmError(ValueError):
    """A film that cannot be used; the message says why, and names no path."""


class FilmInfo(NamedTuple):
    """What a film file holds: seconds and rate of its pictures, rows and columns as stored."""

    seconds: float
    fps: float
    height: int
    width: int


class Shown(NamedTuple):
    """A picture (Y, X, 3), RGB, uint8, and the number of the film's own picture that it is."""

    rgb_YXC: "NDArray[np.uint8]"
    source: int


def probe(path: Path) -> FilmInfo:
    """What a film holds, from its packets: nothing is decoded, everything is read.

    Raises:
        FilmError: no film, no pictures, or a film that breaks off before its stated end.
    """
    first, end, packets, broken = None, Fraction(0), 0, False
    with _opened(path) as container:
        stream = container.streams.video[0]
        base, rate = stream.time_base, stream.average_rate
        for packet in container.demux(stream):
            broken = broken or packet.is_corrupt
            if packet.size and packet.pts is not None:
                packets += 1
                first = packet.pts if first is None else min(first, packet.pts)
                end = max(end, (packet.pts + (packet.duration or 0)) * base)
        if first is None or not rate:
            raise FilmError("holds no pictures with times")
        if stream.duration is not None:
            start = (stream.start_time or 0) * base
            broken = broken or end < start + stream.duration * base - SLACK_FRAMES / rate
        if broken:
            raise FilmError(f"truncated: breaks off after {packets} packets, {float(end):.2f} s")
        context = stream.codec_context
        seconds = float(end - first * base)
        return FilmInfo(seconds, float(rate), context.height, context.width)


def crop_box(shape: tuple[int, int], aspect: float) -> tuple[int, int, int, int]:
    """Centred box (top, left, rows, columns) of a picture, as large as it can be.

    Args:
        shape: rows and columns of the picture.
        aspect: columns over rows of the box, in stored pixels.

    Example:
        >>> crop_box((90, 160), 1.0)
        (0, 35, 90, 90)
    """
    height, width = shape
    rows = max(1, min(height, round(width / aspect)))
    columns = max(1, min(width, round(height * aspect)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def frames(path: Path, *, fps: int, height: int, width: int) -> Iterator[Shown]:
    """Pictures of a film at ``fps`` a second, centre-cropped and resized, as they are decoded.

    Picture k is the one on display at k / fps seconds after the film's first: none is blended,
    some are left out or come twice. Rotation and pixel aspect of the file are applied.

    Args:
        path: anything that FFmpeg reads.
        fps: pictures a second.
        height: rows of a picture.
        width: columns of a picture.

    Raises:
        FilmError: the film cannot be decoded, or its times make no sense; what came before holds.
    """
    due, held, zero = 0, None, Fraction(0)
    for picture in _decoded(path):
        zero = picture.begins if held is None else zero
        begins, ends = picture.begins - zero, picture.ends - zero
        if held is not None:
            hold = begins - held.begins
            if hold > LONGEST_HOLD_S:
                raise FilmError(
                    f"shows one picture for {float(hold):.1f} s; expected {LONGEST_HOLD_S} at most"
                )
            while Fraction(due, fps) < begins - CLOCK_S:
                yield held.shown((height, width))
                due += 1
        held = _Held(picture, begins, ends)
    while held is not None and Fraction(due, fps) < held.ends - CLOCK_S:
        yield held.shown((height, width))
        due += 1


class _Picture(NamedTuple):
    """A decoded picture, its times in seconds, and how much wider than high its pixels are."""

    number: int
    frame: Any
    begins: Fraction
    ends: Fraction
    pixel_aspect: float


class _Held:
    """The picture on display; converted when it is first asked for."""

    def __init__(self, picture: "_Picture", begins: Fraction, ends: Fraction) -> None:
        self.begins, self.ends = begins, ends
        self._picture = picture
        self._shown: Shown | None = None

    def shown(self, size: tuple[int, int]) -> Shown:
        if self._shown is None:
            self._shown = Shown(_fitted(self._picture, size), self._picture.number)
        return self._shown


def _decoded(path: Path) -> Iterator[_Picture]:
    """Pictures of a film in the order of display."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base = stream.time_base
        aspect = float(stream.sample_aspect_ratio or 1)
        usual = 1 / stream.average_rate if stream.average_rate else Fraction(0)
        for number, frame in enumerate(container.decode(stream)):
            if frame.pts is None:
                raise FilmError(f"picture {number} has no time")
            begins = frame.pts * base
            ends = begins + (frame.duration * base or usual)
            yield _Picture(number, frame, begins, ends, aspect)


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """A film with at least one video stream; what goes wrong inside becomes a ``FilmError``."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FilmError("has no video stream")
            yield container
    except FFmpegError as error:
        # Its text ends in the name of the file or of a function.
        raise FilmError(f"cannot be decoded: {error.strerror or error}") from error


def _fitted(picture: _Picture, size: tuple[int, int]) -> "NDArray[np.uint8]":
    """RGB (Y, X, 3) of a decoded picture, upright, cropped and resized to rows and columns."""
    import cv2
    import numpy as np
    from av.video.reformatter import Interpolation as Flag

    # The default darkens by two levels and differs between processors.
    exact = Flag.ACCURATE_RND | Flag.BITEXACT | Flag.FULL_CHR_H_INT | Flag.FULL_CHR_H_INP
    stored = picture.frame.reformat(format="rgb24", interpolation=Flag.BICUBIC | exact)
    turns = round(picture.frame.rotation / QUARTER_TURN)
    rgb = np.rot90(stored.to_ndarray(), turns)
    pixel_aspect = 1 / picture.pixel_aspect if turns % 2 else picture.pixel_aspect
    height, width = size
    top, left, rows, columns = crop_box(rgb.shape[:2], width / height / pixel_aspect)
    box = np.ascontiguousarray(rgb[top : top + rows, left : left + columns])
    shrinks = rows > height or columns > width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(box, (width, height), interpolation=how), np.uint8)
