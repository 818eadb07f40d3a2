import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfbench import context_plot, curves, plots
from cfbench.curves import at_time, held_latents, span_s, time_curves
from cfbench.frame import build_frame
from cfbench.tables import differences, summaries
from cfbench.types import WindowScore
from cfmodel.presets import presets
from tests.helpers.reports import GEOMETRY, MEMORY, run, score, unit_normaliser, world


def window(start: float, end: float, value: float | None) -> WindowScore:
    return WindowScore(start_s=start, end_s=end, value=value)


def test_a_window_around_the_time_is_taken_as_it_is() -> None:
    windows = [window(9.5, 10.5, 0.9), window(19.5, 20.5, 0.5), window(59.5, 60.0, 0.3)]
    assert at_time(windows, 10) == 0.9
    assert at_time(windows, 60) == 0.3
    assert at_time(windows, 30) is None


def test_other_windows_count_by_overlap() -> None:
    windows = [window(8, 10, 0.2), window(10, 12, 0.6), window(10.2, 10.4, None)]
    assert at_time(windows, 10) == pytest.approx(0.4)
    assert at_time(windows, 10.25) == pytest.approx(0.25 * 0.2 + 0.75 * 0.6)


def test_curves_follow_the_films() -> None:
    runs, scores = world({"ours": 0.8, "no-slow": 0.6})
    found = {c.system: c for c in time_curves(build_frame(runs, scores, "tiny"), "dino_first")}
    values = [mean.value for mean in found["ours"].means]
    assert values == pytest.approx([0.825 - 0.001 * t for t in range(10, 70, 10)])
    mean = found["ours"].means[0]
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 0.815 < mean.high
    assert found["no-slow"].scored == (12,) * 6


def test_every_curve_says_how_many_films_it_stands_for() -> None:
    runs, scores = world({"ours": 0.8, "no-slow": 0.6})
    whole = time_curves(build_frame(runs, scores, "tiny"), "dino_first")
    assert plots.counted(whole) == "films scored: 12/12 of every system"
    lacking = [s for s in scores if s.clip_sha != runs[0].clip.sha256]
    less = time_curves(build_frame(runs, lacking, "tiny"), "dino_first")
    assert "ours 11/12" in plots.counted(less)
    assert "no-slow 12/12" in plots.counted(less)
    assert "ours 11 to 12/12" in plots.counted([*less, *whole])


def test_a_time_without_a_film_is_null() -> None:
    runs = [run("ours", 0)]
    film = runs[0].clip.sha256
    scores = [score(film, "dino_first", 0.5, windows=(window(9.5, 10.5, 0.5),))]
    curve = time_curves(build_frame(runs, scores, "tiny"), "dino_first")[0]
    assert [mean.value for mean in curve.means] == [0.5, None, None, None, None, None]
    assert curve.scored == (1, 0, 0, 0, 0, 0)
    assert curve.expected == 1


@pytest.mark.parametrize(
    ("name", "seconds", "latents"),
    [
        ("ours", 20.25, 21),
        ("uniform-1", 11.25, 21),
        ("uniform-2", 20.25, 21),
        ("no-slow", 2.25, 9),
        ("self-forcing", 5.25, 21),
        ("longlive", 3.0, 12),
        ("longlive-3.75", 3.75, 15),
        ("longlive-6", 6.0, 24),
        ("longlive-9", 9.0, 36),
        ("longlive-12", 12.0, 48),
        ("slow-2", 5.25, 11),
        ("slow-4", 8.25, 13),
        ("slow-8", 14.25, 17),
        ("infinity-rope", 1.5, 6),
        ("full-context", 60.75, 243),
    ],
)
def test_context_of_the_presets(name: str, seconds: float, latents: int) -> None:
    experiment = presets("tiny")[name].to_json()
    assert span_s(experiment, 81) == seconds
    assert held_latents(experiment, 81) == latents


def test_context_never_exceeds_the_film_and_needs_a_memory() -> None:
    experiment = {"memory": MEMORY, "geometry": GEOMETRY}
    assert span_s(experiment, 2) == 6 * 4 / 16
    assert held_latents(experiment, 2) == 6
    assert span_s({"geometry": GEOMETRY}, 81) is None
    assert held_latents({}, 81) is None


def test_series_differ_in_their_context_alone() -> None:
    """Longer from one to the next, over equal weights."""
    for members in curves.SERIES.values():
        rows = [presets("tiny")[name] for name in members]
        assert len({row.weights for row in rows}) == 1
        spans = [span_s(row.to_json(), 81) for row in rows]
        assert spans == sorted(spans)
        fields = ("sink", "promotion", "positions", "tau", "decision", "commit_reads")
        assert len({tuple(getattr(row.memory, f) for f in fields) for row in rows}) == 1


def test_context_points_are_sorted_and_skip_references() -> None:
    runs, scores = world({"ours": 0.8}, prompts=2)
    short = {"memory": {**MEMORY, "slow": 0}, "geometry": GEOMETRY}
    more, more_scores = world({"no-slow": 0.6, "frozen": 0.3}, prompts=2)
    changed = [
        run(
            item.system,
            int(item.prompt_id[1:]),
            item.seed,
            experiment=short if item.system == "no-slow" else {},
        )
        for item in more
    ]
    frame = build_frame([*runs, *changed], [*scores, *more_scores], "tiny")
    points = curves.context_points(
        frame, summaries(frame, unit_normaliser()), time_curves(frame, "dino_first")
    )
    assert [(point.system, point.span_s) for point in points] == [
        ("no-slow", 2.25),
        ("ours", 20.25),
    ]
    assert points[1].quality.value == pytest.approx(0.805)
    assert points[1].consistency.value == pytest.approx(0.745)


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    st.floats(0.1, 10),
)
def test_labels_stand_apart_in_order(positions: list[float], gap: float) -> None:
    placed = plots.spread(positions, gap)
    order = sorted(range(len(placed)), key=lambda index: placed[index])
    wished = [positions[index] for index in order]
    assert wished == sorted(wished)
    steps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap - 1e-9 for step in steps)
    assert math.fsum(placed) == pytest.approx(math.fsum(positions), abs=1e-6)


def test_far_labels_stay_where_they_are() -> None:
    assert plots.spread([3.0, 1.0], 0.5) == [3.0, 1.0]


def test_plots_are_written_and_repeat_to_the_byte(tmp_path: Path) -> None:
    runs, scores = world({"ours": 0.8, "tau-0.90": 0.7, "frozen": 0.3})
    frame = build_frame(runs, scores, "tiny")
    found, labels = summaries(frame, unit_normaliser()), {"ours": "Ours & co."}
    dino = time_curves(frame, "dino_first")
    for folder in (tmp_path / "a", tmp_path / "b"):
        printed = {"ours": {"dino_first_10s": 91.45, "dino_first_60s": 87.89}}
        plots.time_overview(folder / "time", {"dino_first": dino}, labels, printed=printed)
        plots.forest(folder / "forest", differences(frame, unit_normaliser(), labels=labels))
    points = curves.context_points(frame, found, dino)
    context_plot.context_length(tmp_path / "a" / "context", points, labels)
    plots.time_multiples(tmp_path / "a" / "multiples", dino, labels)
    plots.dimension_map(tmp_path / "a" / "dimensions", found, labels)
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(written) == 10
    for name in written:
        content = (tmp_path / "a" / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"%PDF")
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


def test_nothing_to_plot_writes_nothing(tmp_path: Path) -> None:
    plots.time_overview(tmp_path / "time", {}, {})
    plots.time_multiples(tmp_path / "multiples", [], {})
    context_plot.context_length(tmp_path / "context", [], {})
    plots.dimension_map(tmp_path / "dimensions", {}, {})
    plots.forest(tmp_path / "forest", [])
    assert list(tmp_path.iterdir()) == []
