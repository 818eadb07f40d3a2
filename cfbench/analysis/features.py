"""A small embedding of pictures from pixels alone, and what films look like through one.

R pixel frames, Y rows, X columns, E width of an embedding, T samples of a film.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cfbench import video

Floats = NDArray[np.float64]
Feature = Callable[[video.Frames], Floats]
"""Vectors (R, E) of frames (R, Y, X, 3), RGB; near in Euclidean distance when frames are alike."""

GRID = (24, 16)  # cells across and down; OpenCV's order
FINE = (48, 32)
CELLS = (6, 4)
ORIENTATIONS = 6
LIGHT_FLOOR = 8.0  # of 100: keeps the grain of an even or dark picture from being blown up
FAINT = 16.0  # of Sobel's response, at most 1020: grain, no edge
CHROMA_SCALE = 0.5  # chroma of this share of the lightness counts as much as contrast
WEIGHTS = (0.5, 0.25, 0.25)  # lightness, chroma, gradients; squared lengths


def pixel_features(frames_RYXC: video.Frames) -> Floats:
    """Embedding of frames that needs no weights and hardly feels exposure.

    Lightness over a grid of 24 x 16 cells, without its mean and over its spread; chroma of the
    same cells over the mean lightness; strengths of edges in 6 directions over 6 x 4 cells, over
    their length. Each part counts with a fixed weight, so that a distance near 0 is the same
    picture and one near 1 another.

    Args:
        frames_RYXC: uint8 (R, Y, X, 3), RGB.

    Returns:
        Vectors (R, E).
    """
    return np.stack([_vector(image) for image in frames_RYXC])


def _vector(image: video.Frames) -> Floats:
    small = cv2.resize(image, GRID, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float64)
    light, chroma = lab[..., 0], lab[..., 1:]
    mean = float(light.mean())
    shape = (light - mean) / (float(light.std()) + LIGHT_FLOOR)
    colour = chroma / (mean + LIGHT_FLOOR) / CHROMA_SCALE
    gray = cv2.cvtColor(cv2.resize(image, FINE, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    edges = edge_histogram(np.asarray(gray, np.uint8))
    parts = (shape.ravel() / np.sqrt(shape.size), colour.ravel() / np.sqrt(shape.size), edges)
    scaled = [np.sqrt(weight) * part for weight, part in zip(WEIGHTS, parts, strict=True)]
    return np.concatenate(scaled)


def edge_histogram(gray_YX: video.Frames) -> Floats:
    """Strengths of edges by direction and cell, of length 1 (or shorter when there are hardly any).

    Args:
        gray_YX: uint8 (32, 48).

    Returns:
        Vector of 6 directions x 24 cells.
    """
    across = cv2.Sobel(gray_YX, cv2.CV_64F, 1, 0)
    down = cv2.Sobel(gray_YX, cv2.CV_64F, 0, 1)
    strength = np.maximum(np.hypot(across, down) - FAINT, 0)
    turn = np.mod(np.arctan2(down, across), np.pi) / np.pi * ORIENTATIONS
    bins = np.minimum(turn.astype(np.intp), ORIENTATIONS - 1)
    rows, columns = gray_YX.shape
    row = np.arange(rows)[:, None] * CELLS[1] // rows
    column = np.arange(columns)[None, :] * CELLS[0] // columns
    index = (row * CELLS[0] + column) * ORIENTATIONS + bins
    sums = np.bincount(index.ravel(), strength.ravel(), CELLS[0] * CELLS[1] * ORIENTATIONS)
    return sums / (float(np.linalg.norm(sums)) + FAINT * gray_YX.size / len(sums))


class Trace(NamedTuple):
    """A film as the detectors see it.

    Attributes:
        vectors_TE: embeddings, at most ``MAX_RATE`` a second.
        change_T: from the sample before, in levels of 255: mean over pixels; 0 for the first.
        spot_T: the same, of the cell that changes most.
        rate: samples a second.
    """

    vectors_TE: Floats
    change_T: Floats
    spot_T: Floats
    rate: float


MAX_RATE = 16.0
SPOT_GRID = (40, 24)


def trace(clip: video.Clip, feature: Feature = pixel_features) -> Trace:
    """What a film looks like to the detectors; it is decoded once, in blocks.

    Films of more than ``MAX_RATE`` frames a second are thinned to every k-th frame.

    Raises:
        DecodeError: the film cannot be decoded.
        ValueError: the film has no frame.
    """
    step = max(1, round(clip.rate / MAX_RATE))
    vectors: list[Floats] = []
    change: list[float] = []
    spot: list[float] = []
    before: tuple[video.Frames, Floats] | None = None
    for kept in clip.every(step):
        vectors.append(feature(kept))
        for image in kept:
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            cells = cv2.resize(gray, SPOT_GRID, interpolation=cv2.INTER_AREA).astype(np.float64)
            change.append(0.0 if before is None else float(cv2.absdiff(gray, before[0]).mean()))
            spot.append(0.0 if before is None else float(np.abs(cells - before[1]).max()))
            before = (gray, cells)
    if not vectors:
        raise ValueError("a film without frames has no events; expected at least one frame")
    return Trace(np.concatenate(vectors), np.array(change), np.array(spot), clip.rate / step)
