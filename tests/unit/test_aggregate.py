import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cfbench.aggregate import (
    DIMENSIONS,
    QUALITY,
    SEMANTIC,
    Range,
    aggregate,
    aggregate_rows,
    combine,
    film_total,
    load_normaliser,
    normaliser_bytes,
    parse_normaliser,
    suite_normaliser,
)
from cfbench.frame import build_frame, paired_totals, summarise
from tests.helpers.reports import UNIT_RANGES, run, score, sha, unit_normaliser, world

PAPER = Path(__file__).parents[2] / "results" / "paper"


def test_groups_are_vbench_s() -> None:
    assert len(QUALITY) == 7
    assert len(SEMANTIC) == 9
    assert sum(QUALITY.values()) == 6.5
    assert QUALITY["dynamic_degree"] == 0.5


def test_dynamic_degree_counts_half() -> None:
    values: dict[str, float | None] = dict.fromkeys(DIMENSIONS, 0.0)
    values["dynamic_degree"] = 1.0
    assert aggregate(values).quality == pytest.approx(0.5 / 6.5)
    values["dynamic_degree"], values["scene"] = 0.0, 1.0
    assert aggregate(values).total == pytest.approx(1 / 9 / 5)


def test_missing_dimension_is_null_and_named() -> None:
    values: dict[str, float | None] = dict.fromkeys(DIMENSIONS, 0.5)
    values["scene"] = None
    del values["temporal_style"]
    got = aggregate(values)
    assert got.quality == pytest.approx(0.5)
    assert got.semantic is None
    assert got.total is None
    assert got.missing == ("scene", "temporal_style")


def test_film_total_renormalises_within_groups() -> None:
    got = film_total({"dynamic_degree": 1.0, "imaging_quality": 0.4, "color": 0.7})
    assert got.quality == pytest.approx((0.5 * 1.0 + 0.4) / 1.5)
    assert got.total == pytest.approx((4 * 0.6 + 0.7) / 5)
    assert film_total({"color": 0.7}).total is None


def test_rows_equal_the_scalar_rule() -> None:
    values = np.random.default_rng(0).random((5, len(DIMENSIONS)))
    got = aggregate_rows(values, DIMENSIONS)
    for row, line in zip(got, values, strict=True):
        want = aggregate(dict(zip(DIMENSIONS, line.tolist(), strict=True)))
        assert row == pytest.approx([want.total, want.quality, want.semantic])
    values[0, 3] = np.nan
    assert np.isnan(aggregate_rows(values, DIMENSIONS)[0, 0])


def test_vbench_normaliser_has_its_constants_and_no_clamp() -> None:
    vbench = suite_normaliser("vbench")
    assert vbench.ranges["subject_consistency"] == Range(0.1462, 1)
    assert vbench.ranges["temporal_style"] == Range(0, 0.364)
    assert set(vbench.ranges) == set(DIMENSIONS)
    assert vbench.apply("scene", np.array([0.8222, 0.9]))[0] == pytest.approx(1)
    assert vbench.apply("motion_smoothness", np.array([1.0]))[0] > 1


def test_clamp_and_unknown_dimension() -> None:
    unit = unit_normaliser()
    got = unit.apply("scene", np.array([-1.0, 0.25, 2.0, np.nan]))
    assert got[:3].tolist() == [0, 0.25, 1]
    assert np.isnan(got[3])
    with pytest.raises(ValueError, match="no dimension 'charm'"):
        unit.apply("charm", np.zeros(1))


def test_normaliser_is_pinned_by_its_bytes(tmp_path: Path) -> None:
    raw = normaliser_bytes("t", clamp=True, ranges=UNIT_RANGES)
    path = tmp_path / "n.json"
    path.write_bytes(raw)
    pin = hashlib.sha256(raw).hexdigest()
    assert load_normaliser(path, pinned=pin).sha256 == pin
    path.write_bytes(raw.replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match="must not change"):
        load_normaliser(path, pinned=pin)
    with pytest.raises(ValueError, match="no such file"):
        load_normaliser(tmp_path / "other.json")
    with pytest.raises(ValueError, match="min < max"):
        parse_normaliser(normaliser_bytes("t", clamp=True, ranges={"scene": Range(1, 1)}), "t")
    with pytest.raises(ValueError, match="not JSON"):
        parse_normaliser(b"{", "t")
    with pytest.raises(ValueError, match="expected an object"):
        parse_normaliser(json.dumps([1]).encode(), "t")


def test_summary_applies_the_rule_to_film_means() -> None:
    runs, scores = world({"ours": 0.5})
    got = summarise(build_frame(runs, scores, "tiny"), unit_normaliser())
    assert got["total"].mean.value == pytest.approx(0.525)
    low, high = got["total"].mean.low, got["total"].mean.high
    assert low is not None
    assert high is not None
    assert low < 0.525 < high
    assert (got["scene"].scored, got["scene"].expected) == (12, 12)


def test_dimension_that_does_not_apply_leaves_the_mean_to_others() -> None:
    runs = [run("ours", prompt) for prompt in range(2)]
    films = [item.clip.sha256 for item in runs]
    scores = [score(film, name, 0.5) for film in films for name in DIMENSIONS[:-1]]
    scores.append(score(films[0], DIMENSIONS[-1], 0.9))
    scores.append(score(films[1], DIMENSIONS[-1], None, reason="does not apply: no text"))
    got = summarise(build_frame(runs, scores, "tiny"), unit_normaliser())
    assert got[DIMENSIONS[-1]].mean.value == pytest.approx(0.9)
    assert (got[DIMENSIONS[-1]].scored, got[DIMENSIONS[-1]].expected) == (1, 1)
    assert got["total"].mean.value is not None


def test_failure_below_coverage_makes_total_null() -> None:
    runs = [run("ours", prompt) for prompt in range(2)]
    films = [item.clip.sha256 for item in runs]
    scores = [score(film, name, 0.5) for film in films for name in DIMENSIONS[:-1]]
    scores.append(score(films[0], DIMENSIONS[-1], 0.9))
    scores.append(score(films[1], DIMENSIONS[-1], None, reason="detector failed"))
    got = summarise(build_frame(runs, scores, "tiny"), unit_normaliser())
    assert got[DIMENSIONS[-1]].mean.value is None
    assert got[DIMENSIONS[-1]].reason == "scored 1 of 2 films"
    assert got["total"].mean.value is None
    assert got["total"].reason == f"missing {DIMENSIONS[-1]}"
    assert got["quality"].mean.value == pytest.approx(0.5)


def test_newest_version_key_and_run_count() -> None:
    film = sha("ours", 0, 0)
    runs = [
        run("ours", 0),
        run("ours", 1, key="older", started="2025-01-01T00:00:00+00:00"),
        run("custom-1", 0),
    ]
    scores = [score(film, "scene", 0.1, version="9"), score(film, "scene", 0.2, version="10")]
    scores.append(score(film, "color", 0.9, tier="lite"))
    frame = build_frame(runs, scores, "tiny")
    assert [item.id for item in frame.runs] == ["ours-0-0"]
    assert frame.values_ND[0, DIMENSIONS.index("scene")] == 0.2
    assert np.isnan(frame.values_ND[0, DIMENSIONS.index("color")])


def test_pairs_are_totalled_over_shared_dimensions() -> None:
    runs = [run("ours", 0), run("no-slow", 0)]
    a, b = (item.clip.sha256 for item in runs)
    scores = [score(a, name, 0.6) for name in DIMENSIONS]
    scores += [score(b, name, 0.6) for name in DIMENSIONS if name != "scene"]
    scores[DIMENSIONS.index("scene")] = score(a, "scene", 0.0)
    frame = build_frame(runs, scores, "tiny")
    ours, other = paired_totals(
        frame.where(system="ours"), frame.where(system="no-slow"), unit_normaliser()
    )
    assert ours["p0", 0] == pytest.approx(0.6)
    assert other["p0", 0] == pytest.approx(0.6)


def _rows(name: str) -> list[dict[str, str]]:
    with (PAPER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "suffix", "broken"),
    [
        ("table2.csv", "_5s", set()),
        ("table2.csv", "_60s", {"longlive", "rolling-forcing", "infinity-rope", "ours"}),
        ("table3.csv", "", {"ours"}),
    ],
)
def test_paper_totals_recomputed(name: str, suffix: str, broken: set[str]) -> None:
    checked = 0
    for row in _rows(name):
        if not row[f"total{suffix}"]:
            continue
        checked += 1
        total = combine(float(row[f"quality{suffix}"]), float(row[f"semantic{suffix}"]))
        assert total == pytest.approx(float(row[f"total_by_formula{suffix}"]), abs=0.0051)
        is_broken = abs(total - float(row[f"total{suffix}"])) > 0.02
        assert is_broken == (row["system"] in broken)
        assert row[f"breaks_formula{suffix}"] == ("yes" if is_broken else "no")
    assert checked == {"_5s": 13, "_60s": 9, "": 5}[suffix]


def test_paper_table1_and_the_others_are_complete() -> None:
    rows = {row["system"]: row for row in _rows("table1.csv")}
    assert rows["ours"]["dino_first_60s"] == "87.89"
    assert rows["longlive"]["clip_t_10s"] == "36.95"
    assert rows["teacher"]["dino_first_20s"] == ""
    assert len(rows) == 5
    assert {row["baseline"]: row["ours_preferred_percent"] for row in _rows("user_study.csv")} == {
        "infinity-rope": "77.3",
        "longlive": "69.3",
    }
    implied = [row for row in _rows("independent.csv") if row["metric"] == "semantic_implied"]
    assert combine(84.79, float(implied[0]["value"])) == pytest.approx(82.23, abs=0.005)
