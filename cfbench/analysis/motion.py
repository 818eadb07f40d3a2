"""Motion of the camera taken out before VBench's rule of dynamic degree is applied.

Y rows, X columns, N points.
"""

import itertools
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cfbench import video
from cfbench.scorers.rules import interval, is_dynamic, moves, strong_flow

Floats = NDArray[np.float64]

POINTS = 400
QUALITY = 0.002  # of the strongest corner; one hard edge must not rule out the rest
APART_PX = 3
WINDOW_PX = 15
ROUND_TRIP_PX = 0.5
INLIER_PX = 1.0
LEAST_POINTS = 12
LEAST_SHARE = 0.4  # of the points that one homography must carry to be the camera's
BORDER = 0.04  # of the shorter side: flow next to what came into view is a guess
LEAST_JUDGED = 0.5  # of the pairs that move


class Pair(NamedTuple):
    """Two frames 1/8 s apart.

    Attributes:
        raw: strong flow between them, in pixels: the mean of the largest 5 %.
        own: the same after the camera's homography is taken out; None when none was found.
        camera: mean length of the homography's own flow, in pixels; None as above.
    """

    raw: float
    own: float | None
    camera: float | None


class Motion(NamedTuple):
    """What moves in a film.

    Attributes:
        dynamic: VBench's rule on all motion.
        own: the same rule on motion that no camera explains; None when it cannot be judged.
        reason: why ``own`` is None, else empty.
        camera_speed: mean speed of the camera's flow over the picture, in shares of the shorter
            side a second; median over the pairs in which it was found.
        pairs: looked at.
        judged: of these, with a homography, or without any motion that would need one.
    """

    dynamic: bool
    own: bool | None
    reason: str
    camera_speed: float | None
    pairs: int
    judged: int


def camera_between(
    first_YX: video.Frames, second_YX: video.Frames
) -> NDArray[np.floating[Any]] | None:
    """Homography (3, 3) that takes points of one picture to the next, or None.

    Corners are followed there and back; those that return are fitted with RANSAC. A picture with
    too few corners, or in which no homography carries enough of them, has none.

    Args:
        first_YX: uint8, gray.
        second_YX: uint8, gray, of the same size.
    """
    # OpenCV's types leave out that both functions give None where there is nothing.
    found: Any = cv2.goodFeaturesToTrack(first_YX, POINTS, QUALITY, APART_PX)
    if found is None or len(found) < LEAST_POINTS:
        return None
    corners = np.asarray(found, np.float32)
    size = (WINDOW_PX, WINDOW_PX)
    # The points to find are written over, so they are arrays of their own.
    there, ok, _ = cv2.calcOpticalFlowPyrLK(
        first_YX, second_YX, corners, corners.copy(), winSize=size
    )
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(
        second_YX, first_YX, there, there.copy(), winSize=size
    )
    off = np.linalg.norm((back - corners).reshape(-1, 2), axis=1)
    kept = (ok.ravel() == 1) & (ok_back.ravel() == 1) & (off < ROUND_TRIP_PX)
    if int(kept.sum()) < LEAST_POINTS:
        return None
    # OpenCV draws RANSAC's samples from a generator that it seeds anew in every call.
    matrix: Any
    matrix, inliers = cv2.findHomography(corners[kept], there[kept], cv2.RANSAC, INLIER_PX)
    if matrix is None or float(inliers.mean()) < LEAST_SHARE:
        return None
    return np.asarray(matrix, np.float64)


def flow_of(matrix: NDArray[np.floating[Any]], height: int, width: int) -> Floats:
    """Flow (Y, X, 2) in pixels, across and down, that a homography makes.

    Example:
        >>> flow_of(np.array([[1.0, 0, 3], [0, 1, -1], [0, 0, 1]]), 2, 2)[0, 0].tolist()
        [3.0, -1.0]
    """
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    points = np.stack([across, down, np.ones_like(across)], -1).astype(np.float64)
    moved = points @ matrix.T
    return moved[..., :2] / moved[..., 2:] - points[..., :2]


def look_at(first_YX: video.Frames, second_YX: video.Frames) -> Pair:
    """Motion between two gray pictures, with and without that of the camera.

    The second picture is brought back by the camera's homography before the flow is taken anew, so
    that what is left does not depend on how well large motion is measured.
    """
    height, width = first_YX.shape
    raw = strong_flow(_lengths(_flow(first_YX, second_YX)))
    if not bool(moves(np.array([raw]), height, width)[0]):
        return Pair(raw, raw, None)
    matrix = camera_between(first_YX, second_YX)
    if matrix is None:
        return Pair(raw, None, None)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (width, height)
    back = np.asarray(cv2.warpPerspective(second_YX, matrix, size, flags=flags), np.uint8)
    seen = cv2.warpPerspective(np.full_like(second_YX, 255), matrix, size, flags=flags)
    border = max(1, round(BORDER * min(size)))
    # Erosion treats what lies outside of the picture as seen, so the frame's own rim stays.
    inside = cv2.erode(seen, np.ones((2 * border + 1, 2 * border + 1), np.uint8)) == 255
    camera = float(_lengths(flow_of(matrix, height, width)).mean())
    if not inside.any():
        return Pair(raw, None, camera)
    # What came into view has no counterpart: the first picture stands in for it.
    back = np.where(inside, back, first_YX)
    return Pair(raw, strong_flow(_lengths(_flow(first_YX, back))[inside]), camera)


def _flow(first_YX: video.Frames, second_YX: video.Frames) -> Floats:
    """Dense flow (Y, X, 2) by inverse search (Kroeger et al. 2016), which needs no weights."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start = np.zeros((*first_YX.shape, 2), np.float32)
    return np.asarray(search.calc(first_YX, second_YX, start), np.float64)


def _lengths(flow_YX2: Floats) -> Floats:
    return np.linalg.norm(flow_YX2, axis=-1)


def motion(clip: video.Clip) -> Motion:
    """What moves in a film: everything, and what no camera explains.

    Pairs of frames and the rule are VBench's; the flow is another one, so values near its threshold
    may fall on the other side. A camera that turns or zooms is a homography. One that travels is
    not where things stand at several distances: their parallax counts as motion of their own.

    Raises:
        DecodeError: the film cannot be decoded.
        ValueError: the film has a single frame.

    Source: VBench, dynamic_degree, whose flow contains the camera's.
    """
    step = interval(clip.rate)
    grays = [
        np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        for block in clip.every(step)
        for image in block
    ]
    if len(grays) < 2:
        raise ValueError("motion needs two frames 1/8 s apart; the film is too short")
    pairs = [look_at(a, b) for a, b in itertools.pairwise(grays)]
    return summarise(pairs, grays[0].shape, len(grays), step / clip.rate)


def summarise(pairs: list[Pair], size_YX: tuple[int, ...], sampled: int, apart_s: float) -> Motion:
    """The rule over the pairs of a film, with and without the camera's motion.

    Args:
        pairs: in order.
        size_YX: of the pictures.
        sampled: pictures that the rule counts.
        apart_s: between the pictures of a pair.
    """
    height, width = size_YX
    raw = moves(np.array([pair.raw for pair in pairs]), height, width)
    judged = np.array([pair.own is not None for pair in pairs])
    left = np.array([0.0 if pair.own is None else pair.own for pair in pairs])
    cameras = [pair.camera for pair in pairs if pair.camera is not None]
    known = int((judged & raw).sum())
    enough = known >= LEAST_JUDGED * int(raw.sum())
    # Pairs without a homography say nothing; the rule's share is taken over the others.
    own = is_dynamic(moves(left, height, width), sampled - int((~judged).sum())) if enough else None
    reason = (
        "" if enough else f"no camera motion found in {int(raw.sum()) - known} of {int(raw.sum())}"
    )
    return Motion(
        dynamic=is_dynamic(raw, sampled),
        own=own,
        reason=reason and f"{reason} pairs that move",
        camera_speed=float(np.median(cameras)) / min(height, width) / apart_s if cameras else None,
        pairs=len(pairs),
        judged=int(judged.sum()),
    )
