"""Films of a study: made alike, so that nothing but the picture tells one from another.

Every film gets the same number of frames, size, frame rate and encoder settings, and the same size
in bytes: a ``free`` box, which players skip, fills it up. R pixel frames, Y rows, X columns.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfbench.errors import CfError
from cfbench.store import sha256_of
from cfbench.study.tables import Medium
from cfbench.video import canonical, decode, encode, probe

if TYPE_CHECKING:
    from cfbench.video import Frames

COARSE_PX = 16
"""Side of the squares that a degraded copy consists of."""
TAG_BYTES = 32
"""At a film's end, inside the box that fills it up: other bytes each time it is served, so that
two raters cannot find out by a hash that they saw the same film."""
BOX_HEADER = 8
STEP_BYTES = 1 << 16


def coarse(block: "Frames", size: int = COARSE_PX) -> "Frames":
    """Frames (R, Y, X, 3) whose squares of ``size`` pixels all have their first pixel's colour."""
    _, rows, columns, _ = block.shape
    kept = block[:, ::size, ::size]
    return kept.repeat(size, axis=1).repeat(size, axis=2)[:, :rows, :columns]


def make(source: Path, target: Path, frames: int, *, degraded: bool = False) -> None:
    """Write the first ``frames`` pixel frames of a film anew, or of its degraded copy.

    Raises:
        DecodeError: the film cannot be decoded or is shorter.
    """

    def blocks() -> "Iterator[Frames]":
        for block in canonical(decode(source), frames):
            yield coarse(block) if degraded else block

    encode(target, blocks(), probe(source).fps)


def pad(paths: Sequence[Path]) -> int:
    """Fill all films up to one size, which is returned, in bytes.

    Raises:
        ValueError: no film, or one larger than a box can fill.
    """
    sizes = {path: path.stat().st_size for path in paths}
    least = max(sizes.values()) + BOX_HEADER + TAG_BYTES
    size = -(-least // STEP_BYTES) * STEP_BYTES
    for path, before in sizes.items():
        box = size - before
        with path.open("ab") as handle:
            handle.write(box.to_bytes(4, "big") + b"free" + bytes(box - BOX_HEADER))
    return size


def describe(path: Path) -> Medium:
    """What a film of a study is.

    Raises:
        DecodeError: it cannot be opened.
    """
    info = probe(path)
    return Medium(
        file=path.name, sha256=info.sha256, bytes=info.bytes, frames=info.frames, fps=info.fps,
        width=info.width, height=info.height,
    )  # fmt: skip


def check_alike(paths: Sequence[Path]) -> None:
    """Refuse films that differ in anything but their picture.

    Compared are frames, rate, size in pixels and bytes, codec, pixel format, the time of the first
    frame, other streams, tags, and whether the index comes before the picture (faststart).

    Raises:
        CfError: naming the film and what differs.
    """
    first: dict[str, Any] = {}
    for path in paths:
        facts = _facts(path)
        first = first or facts
        wrong = [name for name in facts if facts[name] != first[name]]
        if wrong:
            told = ", ".join(f"{name} {facts[name]} instead of {first[name]}" for name in wrong)
            raise CfError(f"film {path.name} has {told}; make all films of the study alike")
    must = {"codec": "h264", "pixels": "yuv420p", "streams": 1, "index_first": True, "start": 0.0}
    for name, value in must.items():
        if first and first[name] != value:
            raise CfError(f"films have {name} {first[name]}; expected {value}")


def check_whole(folder: Path, media: dict[str, Medium]) -> None:
    """Refuse a study whose films are not those of its design.

    Raises:
        CfError: naming the film that is missing or has changed.
    """
    for medium in media.values():
        path = folder / medium.file
        if not path.is_file():
            raise CfError(f"film {medium.file} of the design is missing in {folder}; build again")
        if sha256_of(path) != medium.sha256:
            raise CfError(f"film {medium.file} has changed since the design was sealed")


def _facts(path: Path) -> dict[str, Any]:
    import av

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        head = path.open("rb").read(STEP_BYTES)
        moov, mdat = head.find(b"moov"), head.find(b"mdat")
        first = next(container.decode(video=0))
        return {
            "frames": video.frames,
            "fps": str(video.average_rate),
            "width": video.codec_context.width,
            "height": video.codec_context.height,
            "codec": video.codec_context.name,
            "pixels": video.codec_context.pix_fmt,
            "streams": len(container.streams),
            "start": float(first.time or 0.0),
            "tags": dict(container.metadata) | dict(video.metadata),
            "index_first": moov >= 0 and (mdat < 0 or moov < mdat),
            "bytes": path.stat().st_size,
        }
