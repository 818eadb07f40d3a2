import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfbench import video
from cfbench.analysis import events as ev
from cfbench.analysis import planted
from cfbench.analysis.events import Event, Thresholds, band, detect, lagged
from cfbench.analysis.features import Trace, pixel_features, trace
from cfbench.analysis.run import events_of, find_events
from cfbench.analysis.verdict import Number, Verdict, is_hit, judge, tally
from cfbench.analysis.watch import feature_named, films_in, look
from cfbench.analysis.worlds import RATE
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.systems.scenes import SceneFilm
from cfmodel.tinyworld.film import film as scene_film
from cfmodel.tinyworld.scene import sample_scene
from tests.helpers.bench import cfbench

SEED = 77  # of neither the set that chose the thresholds nor the one that judges them


def found(number: int) -> Verdict:
    made = planted.film(number, SEED)
    return Verdict(made.name, made.events, tuple(detect(trace(video.held(made.frames, RATE)))))


@pytest.mark.parametrize("number", range(12, 24))
def test_planted_films_are_seen_through(number: int) -> None:
    verdict = found(number)
    counts = tally([verdict])
    assert counts["wrong"] == {}, verdict


def test_planted_films_depend_on_number_and_seed_alone() -> None:
    first, again, other = (planted.film(16, seed) for seed in (3, 3, 4))
    assert (first.frames == again.frames).all()
    assert first.events == again.events
    assert first.frames.shape != other.frames.shape or (first.frames != other.frames).any()


def test_kinds_take_turns_and_half_of_the_films_are_innocent() -> None:
    assert {*planted.MIX} == {*planted.PLANTED, *planted.INNOCENT}
    assert sum(kind in planted.INNOCENT for kind in planted.MIX) * 2 == len(planted.MIX)


def test_a_scene_gives_any_frame_in_any_order() -> None:
    world = SceneFilm(5, "short", 200)
    scene = sample_scene(5, stratum="short", chunks=18)
    want = np.concatenate([block.numpy() for block in scene_film(scene, 40)])
    order = np.array([39, 0, 17, 0])
    assert (world.take(order) == want[order]).all()
    kinds = [kind for kind, _, _ in world.events()]
    assert "pan-away" in kinds
    assert world.events()[-1][2] == 200


@given(st.integers(1, 7), st.integers(8, 40), st.integers(0, 9))
def test_band_holds_every_lag(longest: int, count: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    found = band(vectors, longest)
    for lag in range(1, longest + 1):
        assert found[lag, : count - lag] == pytest.approx(lagged(vectors, lag))
        assert np.isnan(found[lag, count - lag :]).all()


def test_band_goes_on_past_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    whole = band(vectors, 9)
    monkeypatch.setattr(ev, "BLOCK", 8)
    np.testing.assert_allclose(band(vectors, 9), whole, atol=1e-12)


def walk(count: int, seed: int = 0) -> np.ndarray:
    """Vectors that wander, a little at a time."""
    steps = np.random.default_rng(seed).normal(size=(count, 24))
    return 0.04 * np.cumsum(steps, axis=0)


def as_trace(vectors: np.ndarray, change: np.ndarray | None = None) -> Trace:
    moved = np.full(len(vectors), 5.0) if change is None else change
    return Trace(vectors, moved, moved, 16.0)


def test_any_feature_that_goes_back_at_once_is_a_flashback_and_a_slow_way_back_is_none() -> None:
    out = walk(240)
    sudden = np.concatenate([out, out[4:60]])
    (event,) = detect(as_trace(sudden))
    assert event.kind == "flashback"
    assert event.start_s == pytest.approx(15.0, abs=0.13)
    slow = np.concatenate([out, out[::-1]])
    assert detect(as_trace(slow)) == []


def test_a_jump_to_elsewhere_is_no_flashback() -> None:
    out = walk(240)
    assert detect(as_trace(np.concatenate([out, 5 + walk(120, 1)]))) == []


def test_a_loop_needs_a_seam_and_has_its_period() -> None:
    out = walk(300)
    looped = np.concatenate([out[:100], *[out[100:140]] * 4, out[140:]])
    (event,) = detect(as_trace(looped))
    assert (event.kind, event.period_s) == ("loop", 2.5)
    assert is_hit(Event("loop", 100 / 16, 260 / 16, 1.0, 2.5), event)
    at = np.arange(300)[:, None] * 2 * np.pi / 40
    round_and_round = np.concatenate([np.sin(at), np.cos(at)], axis=1)
    assert detect(as_trace(round_and_round)) == []


def test_one_repeat_is_no_loop() -> None:
    out = walk(200)
    twice = np.concatenate([out[:100], *[out[100:140]] * 2, out[140:]])
    assert [event.kind for event in detect(as_trace(twice))] == []


def test_a_freeze_lasts_and_survives_a_redrawn_picture() -> None:
    change = np.full(160, 4.0)
    change[33:81] = 0.0
    change[50] = 3.0
    change[100:110] = 0.0  # 11 samples: too short
    (event,) = [e for e in detect(as_trace(walk(160), change)) if e.kind == "freeze"]
    assert (event.start_s, event.end_s) == (2.0, 81 / 16)
    assert event.score == 1.0


def test_a_film_shorter_than_anything_has_no_events() -> None:
    for count in range(1, 20):
        assert detect(as_trace(walk(count))) == []


def test_features_hardly_feel_exposure_and_tell_places_apart() -> None:
    frames = planted.film(13, SEED).frames
    picture = frames[:1]
    darker = (picture * 0.8).astype(np.uint8)
    other = planted.film(15, SEED).frames[:1]
    one, dark, away = (pixel_features(image)[0] for image in (picture, darker, other))
    assert np.linalg.norm(one - dark) < 0.25 * np.linalg.norm(one - away)


def test_fast_films_are_thinned() -> None:
    frames = planted.film(16, SEED).frames[:41]
    whole, thin = trace(video.held(frames, 16)), trace(video.held(frames, 48))
    assert (len(whole.vectors_TE), whole.rate) == (41, 16)
    assert (len(thin.vectors_TE), thin.rate) == (14, 16)
    assert (thin.vectors_TE == whole.vectors_TE[::3]).all()
    assert thin.change_T[0] == 0


def blocked(frames: np.ndarray, size: int) -> video.Clip:
    blocks = [frames[k : k + size] for k in range(0, len(frames), size)]
    return video.Clip(sha256="", frames=len(frames), fps=48, blocks=lambda: iter(blocks))


def test_blocks_do_not_matter() -> None:
    frames = planted.film(16, SEED).frames[:30]
    whole = trace(video.held(frames, 48))
    for size in (1, 7):
        parts = trace(blocked(frames, size))
        assert (parts.vectors_TE == whole.vectors_TE).all()
        assert (parts.change_T == whole.change_T).all()


def test_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="without frames"):
        trace(blocked(np.zeros((0, 8, 8, 3), np.uint8), 4))


FLASH, LOOP = Event("flashback", 5.0, 9.0, 1.0), Event("loop", 4.0, 12.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("truth", "event", "hit"),
    [
        (FLASH, Event("flashback", 5.5, 6.0, 0.1), True),
        (FLASH, Event("flashback", 5.6, 9.0, 0.1), False),
        (FLASH, Event("freeze", 5.0, 9.0, 0.1), False),
        (LOOP, Event("loop", 3.0, 13.0, 0.1, 2.05), True),
        (LOOP, Event("loop", 3.0, 13.0, 0.1, 4.0), True),
        (LOOP, Event("loop", 3.0, 13.0, 0.1, 3.0), False),
        (LOOP, Event("loop", 3.0, 13.0, 0.1, 0.9), False),
        (LOOP, Event("loop", 10.0, 20.0, 0.1, 2.0), False),
    ],
)
def test_what_counts_as_a_hit(truth: Event, event: Event, hit: bool) -> None:
    assert is_hit(truth, event) == hit


def test_tally_counts_each_found_event_once() -> None:
    again = (Event("flashback", 5.1, 9, 0.5), Event("flashback", 5.2, 9, 0.5))
    counts = tally([Verdict("a", (FLASH,), again), Verdict("b", (LOOP,), ()), Verdict("c", (), ())])
    flash = counts["kinds"]["flashback"]
    assert (flash["planted"], flash["found"], flash["hit"]) == (1, 2, 1)
    assert flash["precision"]["value"] == 0.5
    assert flash["recall"]["value"] == 1.0
    assert counts["kinds"]["loop"]["recall"]["value"] == 0.0
    assert counts["kinds"]["loop"]["precision"]["value"] is None
    assert sorted(counts["wrong"]) == ["a", "b"]


def test_a_film_is_judged_as_a_file() -> None:
    verdict = judge(Number(16, SEED))
    assert [event.kind for event in verdict.truth] == ["freeze"]
    assert tally([verdict])["wrong"] == {}


def brightness(frames: np.ndarray) -> np.ndarray:
    """A feature for tests."""
    return frames.mean((1, 2)) / 255


def test_verb_over_a_folder(tmp_path: Path) -> None:
    made = planted.film(16, SEED)
    (tmp_path / "sub").mkdir()
    video.encode(tmp_path / "sub" / "film.mp4", [made.frames], 16)
    (tmp_path / "notes.txt").write_text("no film")
    done = cfbench("events", tmp_path, "--json", "--workers", "1")
    assert done.returncode == 0, done.stderr
    ((path, events),) = json.loads(done.stdout).items()
    assert path.endswith("film.mp4")
    assert [event["kind"] for event in events] == ["freeze"]
    spoken = cfbench(
        "events", tmp_path, "--workers", "1", "--feature", "tests.unit.test_events:brightness"
    )
    assert "freeze" in spoken.stdout
    assert cfbench("events", tmp_path / "none").returncode == 2


def test_broken_films_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(CfError, match=r"bad\.mp4.*cannot be opened"):
        find_events([tmp_path], feature="", workers=1)


def test_input_is_checked(tmp_path: Path) -> None:
    with pytest.raises(CfError, match="no film in"):
        films_in([tmp_path])
    with pytest.raises(CfError, match="expected module:function"):
        feature_named("cfbench.analysis.features:nothing")
    with pytest.raises(CfError, match="expected module:function"):
        feature_named("no.such.module:thing")
    with Reporter(quiet=True) as reporter:
        assert look([3, 4], str, workers=1, reporter=reporter) == ["3", "4"]
    assert events_of.__module__ == "cfbench.analysis.run"


def test_thresholds_decide() -> None:
    out = walk(240)
    sudden = as_trace(np.concatenate([out, out[4:60]]))
    assert detect(sudden, Thresholds(away=100.0)) == []
    assert detect(sudden, Thresholds(sudden=1000.0)) == []
