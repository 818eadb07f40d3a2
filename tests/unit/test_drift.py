import json
from pathlib import Path

import numpy as np
import pytest

from cfbench import video
from cfbench.analysis.draw import drift_curves
from cfbench.analysis.drift import (
    Series,
    Settings,
    drift,
    frame_values,
    gather,
    latent_series,
    pixel_series,
    score_series,
    slope,
)
from cfbench.analysis.drifting import find_drift, read_latents
from cfbench.errors import CfError
from cfbench.store import open_store
from cfbench.types import WindowScore
from tests.helpers.bench import cfbench
from tests.helpers.reports import score

SETTINGS = Settings(resamples=400)


def fading(seconds: float = 20.0, dim: float = 0.0, fps: int = 8) -> np.ndarray:
    """Stripes of two colours whose brightness falls by a share a minute, from 4 s on."""
    stripes = np.zeros((32, 48, 3))
    stripes[:, ::2] = (200, 120, 40)
    stripes[:, 1::2] = (60, 80, 160)
    times = np.arange(round(seconds * fps)) / fps
    light = 1 - dim / 60 * np.clip(times - 4, 0, None)
    return (stripes * light[:, None, None, None] + 0.5).astype(np.uint8)


def line(values: list[float], scale: float | None = None) -> Series:
    return Series("x", 2.0 * np.arange(len(values)), np.array(values), scale)


def test_values_of_a_frame() -> None:
    even = np.full((16, 16, 3), 128, np.uint8)
    assert frame_values(even) == (pytest.approx(128 / 255), 0.0, 0.0)
    red = even.copy()
    red[..., 1:] = 28
    assert frame_values(red)[1] == pytest.approx(100 / 255)
    checks = ((np.indices((16, 16)).sum(0) % 2)[..., None] * 100 + np.zeros(3)).astype(np.uint8)
    # Of a board of 0 and 100 the Laplacian is 4 x 100 everywhere.
    assert frame_values(checks)[2] == pytest.approx(400)


def test_a_fading_film_has_its_slope_and_fails_on_time() -> None:
    clip = video.held(fading(dim=1.5), 8)
    exposure, saturation, sharpness = (drift(s, SETTINGS) for s in pixel_series(clip, SETTINGS))
    # Over 4..20 s light falls by 0.4; windows of 2 s are told by their means.
    for found in (exposure, saturation, sharpness):
        assert found.changes_W[0] == pytest.approx(0, abs=0.01)
        assert found.changes_W[-1] == pytest.approx(-1.5 / 60 * 15, abs=0.02)
        # -0.25 is reached 10 s after 4 s: the window from 14 s is the first beyond.
        assert found.fails_s == 14.0
        assert found.worst_s == 18.0
        assert found.slope.low is not None
        assert found.slope.high is not None
        assert found.slope.low < found.slope.high < 0


def test_a_steady_film_does_not_drift() -> None:
    for series in pixel_series(video.held(fading(), 8), SETTINGS):
        found = drift(series, SETTINGS)
        assert found.slope == (0.0, 0.0, 0.0)
        assert (found.worst, found.fails_s) == (0.0, None)


def test_windows_and_a_short_end() -> None:
    for seconds, windows in ((20.0, 10), (20.9, 10), (21.0, 11), (1.0, 1)):
        series = pixel_series(video.held(fading(seconds), 8), SETTINGS)[0]
        assert len(series.values_W) == windows
    with pytest.raises(ValueError, match="less than half a window"):
        pixel_series(video.held(fading(0.5), 8), SETTINGS)


def test_slope_is_least_squares_and_its_interval_covers() -> None:
    times = np.arange(30) / 30
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        noise = np.convolve(rng.normal(size=32), [0.5, 0.7, 0.5], "valid")
        values = 0.8 * times + noise
        found = slope(times, values, SETTINGS)
        assert found.value == pytest.approx(np.polyfit(times, values, 1)[0])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.8 <= found.high
    # Blocks of 3 of 30 windows know less than all of the dependence: nominal 95 %.
    assert 0.8 <= hits / 200 <= 0.98


def test_few_windows_have_no_interval() -> None:
    found = slope(np.arange(4.0), np.arange(4.0), SETTINGS)
    # Sums are taken in another order on other processors.
    assert found == (pytest.approx(1.0), None, None)
    assert slope(np.zeros(1), np.zeros(1), SETTINGS) == (None, None, None)


def test_the_opening_cannot_fail_and_gaps_are_left_out() -> None:
    found = drift(line([1.0, 3.0, np.nan, 2.1, 3.2]), SETTINGS)
    assert found.fails_s == 8.0
    assert (found.worst, found.worst_s) == (pytest.approx(0.6), 8.0)
    assert np.isnan(found.changes_W[2])


@pytest.mark.parametrize("values", [[np.nan, np.nan, 1.0, 2.0], [0.0, 0.0, 1.0, 2.0]])
def test_nothing_is_said_without_an_opening(values: list[float]) -> None:
    found = drift(line(values), SETTINGS)
    assert found.slope.value is None
    assert found.fails_s is None
    assert np.isnan(found.changes_W).all()


def test_latents_by_window() -> None:
    rng = np.random.default_rng(1)
    grow = np.where(np.arange(80) < 40, 1.0, 1.5)
    latents = rng.normal(size=(80, 4, 8, 8)) * grow[:, None, None, None]
    latents[60:] += 0.9
    spread, mean = (drift(s, SETTINGS) for s in latent_series(latents, 20.0, SETTINGS))
    assert spread.fails_s == 10.0
    assert spread.changes_W[6] == pytest.approx(0.5, abs=0.05)
    assert mean.fails_s == 14.0  # the window of 14..16 s holds the first moved latents
    assert mean.changes_W[-1] == pytest.approx(0.9, abs=0.05)
    with pytest.raises(ValueError, match=r"expected \(F, C, Y, X\)"):
        latent_series(latents[0], 20.0, SETTINGS)


def test_scores_by_overlap() -> None:
    windows = tuple(WindowScore(start_s=s, end_s=s + 1, value=s / 10) for s in range(8))
    (series,) = score_series([score("f", "dino", 0.5, windows=windows)], 8.0, SETTINGS)
    assert series.name == "score:dino"
    assert series.values_W == pytest.approx([0.05, 0.25, 0.45, 0.65])
    assert score_series([score("f", "dino", 0.5)], 8.0, SETTINGS) == []


def test_groups_average_films_of_any_length() -> None:
    films = [drift(line(values), SETTINGS) for values in ([1.0] * 6, [1.0, 1, 2, 2], [1.0, 1, 1])]
    group = gather("all", films, SETTINGS)
    assert group.changes_NW.shape == (3, 6)
    assert np.isnan(group.changes_NW[1, 4:]).all()
    assert (group.failed, group.films, group.fails_s) == (1, 3, 4.0)
    slopes = [film.slope.value for film in films]
    assert group.slope.value == pytest.approx(np.mean(slopes))
    with pytest.raises(ValueError, match="no film"):
        gather("none", [], SETTINGS)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="band=0"):
        Settings(band=0)


def test_curves_are_drawn(tmp_path: Path) -> None:
    groups = [
        gather(label, [drift(line([1.0, 1, 1 + step, 1, 1]), SETTINGS)], SETTINGS)
        for label, step in (("ours", 0.1), ("other", 0.3))
    ]
    drift_curves(tmp_path / "drift", groups, SETTINGS)
    drift_curves(tmp_path / "alone", groups[:1], SETTINGS)
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("drift", "alone")]
    assert sizes[0] > sizes[1]
    assert (tmp_path / "drift.pdf").is_file()


def test_verb(tmp_path: Path) -> None:
    for name, dim in (("dim", 1.5), ("same", 0.0)):
        (tmp_path / name).mkdir()
        video.encode(tmp_path / name / f"{name}.mp4", [fading(dim=dim)], 8)
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(40, 2, 4, 4)))
    folders = (tmp_path / "dim", tmp_path / "same")
    options = ("--latents", tmp_path, "--plot", tmp_path / "out", "--workers", "1")
    done = cfbench("drift", *folders, *options, "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    fails = {
        (g["group"], g["measure"]): g["median_time_to_failure_s"]
        for g in tree["groups"]
        if g["measure"] in ("exposure", "latent_std")
    }
    assert fails == {
        ("dim", "exposure"): 14.0,
        ("same", "exposure"): None,
        ("dim", "latent_std"): None,
        ("same", "latent_std"): None,
    }
    assert (tmp_path / "out.png").is_file()
    spoken = cfbench("drift", *folders, "--workers", "1")
    assert "dim exposure: -" in spoken.stdout
    assert "1 of 1 films left the band, half of these by 14 s" in spoken.stdout


def test_scores_of_a_run_go_to_the_film_that_they_are_of(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    hashes = [
        video.encode(films / f"{name}.mp4", [fading(8, dim=dim)], 8).sha256
        for name, dim in (("a", 0.0), ("b", 1.0))
    ]
    windows = tuple(WindowScore(start_s=t, end_s=t + 2, value=1 - t / 10) for t in (0, 2, 4, 6))
    store = open_store(tmp_path / "run", exists=False)
    store.append("scores", score(hashes[1], "dino_first", 0.5, windows=windows))
    found = find_drift(
        [films], latents=None, store=tmp_path / "run", settings=SETTINGS, workers=1, plot=None
    )["films"]
    named = {Path(film).stem: [one["measure"] for one in many] for film, many in found.items()}
    assert "score:dino_first" in named["b"]
    assert not any(name.startswith("score:") for name in named["a"])


def test_latents_must_be_there_and_be_numbers(tmp_path: Path) -> None:
    video.encode(tmp_path / "a.mp4", [fading(4)], 8)
    with pytest.raises(CfError, match="write them there"):
        find_drift(
            [tmp_path], latents=tmp_path, store=None, settings=SETTINGS, workers=1, plot=None
        )
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a \.npy file"):
        read_latents(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match="floating-point"):
        read_latents(tmp_path / "a.npy")
