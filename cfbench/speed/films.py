"""Films for timings: textures that slide, the same bytes wherever they are made."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cfbench import video

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
            part = path.with_suffix(".part")
            video.encode(part, frames(round(seconds * FPS) + 1, seed), FPS)
            part.replace(path)
    return paths
