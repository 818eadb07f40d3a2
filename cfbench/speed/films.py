"""Films for timings: textures that slide, the same bytes wherever they are made."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cfbench import video
from cfbench.errors import CfError

ROWS, COLUMNS, FPS = 480, 832, 16
MARGIN = 64
"""Pixels that the view slides over."""
OCTAVES = (8, 32, 128, 512)
GREY, CONTRAST = 128, 60
PERIOD, SWAY = 96, 1.3
"""Frames of a round of the view down, and how much faster it goes across."""


def frames(count: int, seed: int) -> Iterator[video.Frames]:
    """Blocks of one frame (1, Y, X, 3), RGB."""
    import cv2

    rng = np.random.default_rng(seed)
    size = (COLUMNS + 2 * MARGIN, ROWS + 2 * MARGIN)
    wide = np.zeros((size[1], size[0], 3), np.float32)
    for cells in OCTAVES:
        shape = (cells * ROWS // COLUMNS + 2, cells, 3)
        coarse = rng.uniform(-1, 1, shape).astype(np.float32)
        smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        wide += smooth * np.float32(OCTAVES[0] / cells) ** 0.5
    picture = (GREY + CONTRAST * wide).clip(0, 255).astype(np.uint8)
    for number in range(count):
        angle = 2 * np.pi * number / PERIOD
        top, left = (round(MARGIN * (1 + 0.9 * x)) for x in (np.sin(angle), np.cos(SWAY * angle)))
        yield np.ascontiguousarray(picture[None, top : top + ROWS, left : left + COLUMNS])


def made(folder: Path, count: int, seconds: float) -> list[Path]:
    """Films in a folder, encoded now where they are not there yet.

    One frame more than whole seconds, as Wan's latents give.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"film-{seconds:g}s-{number}.mp4" for number in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            part = path.with_name(f"part-{path.name}")
            shown = frames(round(seconds * FPS) + 1, seed)
            if importlib.util.find_spec("av") is not None:
                video.encode(part, shown, FPS)
            else:
                written_by_opencv(part, shown)
            part.replace(path)
    return paths


def written_by_opencv(path: Path, blocks: Iterator[video.Frames]) -> None:
    """A film in MPEG-4, where PyAV is not installed; both sides of a timing read the same one.

    Raises:
        CfError: OpenCV cannot write it.
    """
    import cv2

    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), code, FPS, (COLUMNS, ROWS))
    try:
        if not writer.isOpened():
            raise CfError(f"OpenCV cannot write {path}")
        for block in blocks:
            for image in block:
                writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()
