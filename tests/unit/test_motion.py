import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfbench import video
from cfbench.analysis.motion import Pair, camera_between, flow_of, look_at, motion, summarise
from cfbench.analysis.worlds import HEIGHT, WIDTH, Panorama
from tests.helpers.bench import cfbench

FRAMES = 64


def path(pan: float, zoom: float = 0.0, shake: float = 0.0) -> np.ndarray:
    """A camera that pans by a share of the panorama, zooms and shakes, in 4 s."""
    u = np.linspace(0, 1, FRAMES)
    jitter = shake * np.random.default_rng(3).normal(size=FRAMES)
    return np.stack([0.2 + pan * u + jitter, np.full(FRAMES, 0.5), 1.2 + zoom * u], 1)


def film(track: np.ndarray, *, moving: bool, seed: int = 1) -> np.ndarray:
    """A panorama, with or without a ball that swings in front of it."""
    world = Panorama(np.random.default_rng(seed), track, has_subject=False)
    frames = world.take(np.arange(FRAMES)).copy()
    for k, image in enumerate(frames if moving else []):
        x = WIDTH / 2 + 30 * math.sin(2 * math.pi * k / 32)
        ball = image.copy()
        cv2.circle(ball, (round(x), HEIGHT // 2), 13, (240, 240, 30), -1, cv2.LINE_AA)
        cv2.circle(ball, (round(x) - 4, HEIGHT // 2 - 3), 5, (20, 20, 160), -1, cv2.LINE_AA)
        frames[k] = ball
    return frames


PAN, ZOOM, SHAKE, STILL = path(0.12), path(0.0, 1.6), path(0.0, 0.0, 0.004), path(0.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("track", "moving", "dynamic", "own"),
    [
        (PAN, False, True, False),
        (PAN, True, True, True),
        (ZOOM, False, True, False),
        (ZOOM, True, True, True),
        (SHAKE, False, True, False),
        (STILL, False, False, False),
        (STILL, True, True, True),
    ],
    ids=["pan", "pan+ball", "zoom", "zoom+ball", "shake", "still", "ball"],
)
def test_camera_is_told_from_things(
    track: np.ndarray, moving: bool, dynamic: bool, own: bool, seed: int
) -> None:
    found = motion(video.held(film(track, moving=moving, seed=seed), 16))
    assert (found.dynamic, found.own) == (dynamic, own), found
    assert (found.pairs, found.reason) == (31, "")


def test_speed_of_the_camera() -> None:
    # 0.12 of what the camera can reach (7 pictures) x 1.2 enlargement, over 63/16 s.
    found = motion(video.held(film(PAN, moving=False), 16))
    pixels = 0.12 * 7 * WIDTH * 1.2
    assert found.camera_speed == pytest.approx(pixels / HEIGHT / (63 / 16), rel=0.03)


def test_homography_is_found_and_drawn() -> None:
    true = np.array([[1.03, 0.02, 2.5], [-0.02, 1.02, -1.5], [1e-4, -5e-5, 1.0]])
    picture = cv2.cvtColor(film(STILL, moving=False)[0], cv2.COLOR_RGB2GRAY)
    moved = cv2.warpPerspective(picture, true, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    found = camera_between(picture, moved)
    assert found is not None
    gap = flow_of(found, HEIGHT, WIDTH) - flow_of(true, HEIGHT, WIDTH)
    assert np.linalg.norm(gap, axis=-1).mean() < 0.2  # pixels
    pair = look_at(picture, moved)
    assert pair.own is not None
    assert pair.own < 0.5 < 2 < pair.raw


def test_an_even_picture_has_no_camera() -> None:
    even = np.full((HEIGHT, WIDTH), 90, np.uint8)
    assert camera_between(even, even) is None
    # Nothing moves, so nothing has to be explained.
    assert look_at(even, even).own == pytest.approx(0, abs=1e-3)


def test_without_a_camera_the_rule_says_nothing() -> None:
    lost = [Pair(9.0, None, None)] * 12 + [Pair(9.0, 0.1, 8.9)] * 3
    found = summarise(lost, (80, 128), 16, 0.125)
    assert (found.dynamic, found.own, found.judged) == (True, None, 3)
    assert found.reason == "no camera motion found in 12 of 15 pairs that move"
    known = [Pair(9.0, 5.0, 8.9)] * 4 + [Pair(9.0, 0.1, 8.9)] * 4 + [Pair(9.0, None, None)] * 7
    assert summarise(known, (80, 128), 16, 0.125).own is True
    assert summarise([*known[1:], known[-1]], (80, 128), 17, 0.125).own is None


def test_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="two frames"):
        motion(video.held(film(STILL, moving=False)[:1], 16))


def test_verb(tmp_path: Path) -> None:
    video.encode(tmp_path / "pan.mp4", [film(PAN, moving=False)], 16)
    video.encode(tmp_path / "ball.mp4", [film(PAN, moving=True)], 16)
    done = cfbench("motion", tmp_path, "--json", "--workers", "1")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert {Path(name).stem: row["own"] for name, row in tree["films"].items()} == {
        "pan": False,
        "ball": True,
    }
    assert tree["dynamic"] == {"value": 1.0, "scored": 2, "expected": 2}
    assert tree["own"] == {"value": 0.5, "scored": 2, "expected": 2}
