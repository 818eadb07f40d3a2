"""A second world for planted films: a camera over a painted panorama, with something moving on it.

N pixel frames, Y rows, X columns.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cfbench import video
from cfbench.analysis.features import Floats
from cfbench.systems.scenes import HEIGHT, WIDTH

RATE = 16
"""Frames a second of planted films, as of the tiny world."""
WIDE, TALL = 8 * WIDTH, 2 * HEIGHT
OCTAVES = (2, 4, 8, 16, 32)


def paint(rng: np.random.Generator) -> video.Frames:
    """A panorama, uint8 (160, 1024, 3): coloured clouds of several sizes, discs and boxes."""
    canvas = np.zeros((TALL, WIDE, 3))
    for cells in OCTAVES:
        noise = rng.normal(size=(cells, cells * WIDE // TALL, 3)) / math.sqrt(cells)
        canvas += cv2.resize(noise, (WIDE, TALL), interpolation=cv2.INTER_CUBIC)
    canvas = 128 + 55 * (canvas - canvas.mean((0, 1))) / canvas.std()
    canvas += rng.uniform(-30, 30, 3)
    image = canvas.clip(0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(14, 30))):
        _stamp(image, rng)
    return image


def _stamp(image: video.Frames, rng: np.random.Generator) -> None:
    colour = tuple(int(level) for level in rng.integers(0, 256, 3))
    x, y = int(rng.integers(0, WIDE)), int(rng.integers(0, TALL))
    size = int(rng.integers(5, 26))
    if rng.random() < 0.5:
        cv2.circle(image, (x, y), size, colour, -1, cv2.LINE_AA)
    else:
        cv2.rectangle(image, (x - size, y - size // 2), (x + size, y + size // 2), colour, -1)


class Panorama:
    """A film over a panorama whose camera follows a path given frame by frame.

    Args:
        rng: of the picture and of what moves on it.
        path_N3: centre of the view across and down in [0, 1] of what the camera can reach, and the
            enlargement (1 = not enlarged), by frame.
        has_subject: whether a disc circles in front of the camera.
    """

    def __init__(self, rng: np.random.Generator, path_N3: Floats, *, has_subject: bool) -> None:
        self.frames = len(path_N3)
        self._path = path_N3
        self._image = paint(rng)
        self._subject = _Disc(rng) if has_subject else None

    def take(self, index_N: NDArray[np.intp]) -> video.Frames:
        """The frames with these numbers, uint8 (N, Y, X, 3)."""
        return np.stack([self._frame(int(index)) for index in index_N])

    def _frame(self, index: int) -> video.Frames:
        across, down, scale = self._path[index]
        x = WIDTH / 2 + across * (WIDE - WIDTH)
        y = HEIGHT / 2 + down * (TALL - HEIGHT)
        inverse = np.array(
            [[1 / scale, 0, x - WIDTH / 2 / scale], [0, 1 / scale, y - HEIGHT / 2 / scale]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(
            self._image, inverse, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        image = np.asarray(seen, np.uint8)
        if self._subject is not None:
            self._subject.draw(image, index / RATE)
        return image


class _Disc:
    """A disc that goes round in front of the camera."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        self._radius = int(rng.integers(5, 11))
        self._centre = rng.uniform((40, 30), (88, 50))
        self._reach = rng.uniform(5, 18)
        self._speed = rng.uniform(1.0, 3.5)
        self._phase = rng.uniform(0, math.tau)

    def draw(self, image: video.Frames, time_s: float) -> None:
        angle = self._phase + self._speed * time_s
        x = self._centre[0] + self._reach * math.cos(angle)
        y = self._centre[1] + self._reach * math.sin(angle)
        at = (round(16 * x), round(16 * y))
        cv2.circle(image, at, 16 * self._radius, self._colour, -1, cv2.LINE_AA, 4)


def ease(u: Floats) -> Floats:
    """From 0 to 1 with a slow beginning and end."""
    u = np.clip(u, 0, 1)
    return u * u * (3 - 2 * u)
