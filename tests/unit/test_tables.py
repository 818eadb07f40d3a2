import csv
import io
from pathlib import Path

import pytest

from cfbench import render, tables
from cfbench.curves import time_curves
from cfbench.frame import build_frame
from cfbench.tables import Table
from cfmodel.presets import presets
from tests.helpers.reports import unit_normaliser, world

PAPER = Path(__file__).parents[2] / "results" / "paper"
SKILLS = {"ours": 0.8, "no-slow": 0.6, "frozen": 0.3, "rendered-truth": 0.93}


def ablation(**changes: object) -> Table:
    runs, scores = world(SKILLS)
    frame = build_frame(runs, scores, "tiny")
    fields: dict[str, object] = {
        "labels": {run.system: run.label for run in runs},
        "absent": {"no-cdmd": "weights not trained yet"},
        "paper": tables.read_paper(PAPER / "table3.csv"),
        "note": tables.coverage_note(frame, unit_normaliser(), "tiny"),
        "tier": "tiny",
        "header": "commit abc; command cfbench report",
    }
    found = tables.summaries(frame, unit_normaliser())
    return tables.ablation_table(found, **{**fields, **changes})  # type: ignore[arg-type]


def cells(text: str) -> dict[str, dict[str, str]]:
    lines = text.splitlines()
    assert lines[0].startswith("# commit abc; command")
    return {row["system"]: row for row in csv.DictReader(io.StringIO("\n".join(lines[1:])))}


@pytest.mark.parametrize("family", ["nano", "tiny", "wan-1.3b"])
def test_rows_are_the_presets_in_their_order(family: str) -> None:
    found = presets(family)  # type: ignore[arg-type]
    assert [name for name in tables.SYSTEMS if name in found] == list(found)
    assert {name: tables.SYSTEMS[name] for name in found} == {
        name: row.label for name, row in found.items()
    }
    assert set(found) >= tables.ALWAYS - set(tables.REFERENCES)


def test_every_row_stands_with_values_or_a_reason() -> None:
    rows = cells(tables.to_csv(ablation()))
    assert set(rows) == tables.ALWAYS | set(SKILLS)
    assert list(rows) == [name for name in tables.system_order(()) if name in rows]
    assert rows["ours"]["total"] == "82.50"
    assert rows["ours"]["total_scored"] == rows["ours"]["total_expected"] == "12"
    assert float(rows["ours"]["total_low"]) < 82.5 < float(rows["ours"]["total_high"])
    assert rows["no-cdmd"]["total"] == ""
    assert rows["no-cdmd"]["reason"] == "weights not trained yet"
    assert rows["uniform-2"]["reason"] == tables.NO_FILMS
    assert rows["rendered-truth"]["total"] == "95.50"


def test_further_rows_stand_where_they_are_planned() -> None:
    reasons = {"shared-decision": "weights not trained yet", "custom-1": "no scene"}
    rows = cells(tables.to_csv(ablation(absent=reasons)))
    assert rows["shared-decision"]["reason"] == "weights not trained yet"
    assert rows["custom-1"]["reason"] == "no scene"
    assert "per-layer-decision" not in rows


def test_paper_values_stand_beside_ours() -> None:
    rows = cells(tables.to_csv(ablation()))
    assert rows["ours"]["paper_total"] == "82.45"
    assert rows["no-cdmd"]["paper_dynamic"] == "48.12"
    assert rows["no-slow"]["paper_total"] == ""
    without = cells(tables.to_csv(ablation(paper={})))
    assert "paper_total" not in without["ours"]


def test_best_is_a_system_never_a_reference() -> None:
    table = ablation()
    assert {table.rows[index].system for index in tables.best_rows(table) if index is not None} == {
        "ours"
    }
    text = render.markdown(table)
    assert "**82.5** [" in text
    assert "**95.5**" not in text


def test_markdown_has_footnotes_and_never_claims_vbench() -> None:
    text = render.markdown(ablation())
    assert text.startswith("<!-- commit abc; command cfbench report -->")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    assert "w/o contextual distillation <sup>2</sup> | 0/0 | \N{EN DASH} |" in text
    assert "<sup>2</sup> weights not trained yet." in text
    assert "tiny-tier scores, not VBench scores" in text
    assert "*Label of rendered-truth* | 12/12" in text


def test_latex_is_balanced_and_escaped() -> None:
    text = render.latex(ablation())
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]
    columns = {line.count("&") for line in body if "multicolumn" not in line}
    assert columns == {12}
    assert text.count("{") == text.count("}")
    assert r"\toprule" in text
    assert r"\textbf{82.5}" in text
    assert r"95 \% interval" in text
    assert render.escape("a_b & 5 %") == r"a\_b \& 5 \%"


def test_html_escapes_labels() -> None:
    text = render.html_table(ablation(labels={"ours": "<Ours>"}))
    assert "&lt;Ours&gt;" in text
    assert "<Ours>" not in text


def test_partial_null_cells_name_their_columns() -> None:
    runs, scores = world({"ours": 0.5})
    kept = [score for score in scores if score.dimension != "color"]
    found = tables.summaries(build_frame(runs, kept, "tiny"), unit_normaliser())
    table = tables.ablation_table(
        found, labels={}, absent={}, paper={}, note="n", tier="tiny", header="h"
    )
    reason = tables.reasons(table.rows[0], table.columns)
    assert reason == ["Total, Semantic: missing color"]
    assert table.rows[0].cells[1].mean.value == pytest.approx(0.525)


def test_differences_are_paired_and_adjusted() -> None:
    runs, scores = world({"ours": 0.8, "no-slow": 0.6, "longlive": 0.7, "frozen": 0.3})
    frame = build_frame(runs, scores, "tiny")
    rows = {row.system: row for row in tables.differences(frame, unit_normaliser(), labels={})}
    assert list(rows) == ["no-slow", "longlive", "frozen"]
    assert rows["no-slow"].paired.mean == pytest.approx((0.2, 0.2, 0.2))
    assert rows["no-slow"].paired.p == 2 / 64
    assert rows["no-slow"].p_holm == 4 / 64
    assert rows["frozen"].p_holm is None
    text = tables.differences_csv(list(rows.values()), "h")
    assert "no-slow,w/o slow memory,20.00,20.00,20.00,0.0312,0.0625,12,12,6" in text
    power = rows["no-slow"].power
    assert power is not None
    assert power.prompts == 6
    page = render.html_differences(list(rows.values()))
    assert "<td>+20.00 <small>[20.00, 20.00]</small></td><td>0.062</td><td>12/12</td>" in page


def test_the_paper_stands_beside_a_measure_over_time() -> None:
    runs, scores = world({"ours": 0.8, "frozen": 0.3})
    frame = build_frame(runs, scores, "tiny")
    found = time_curves(frame, "dino_first")
    paper = {"ours": {"dino_first_10s": 91.45, "clip_f_10s": 95.8}}
    table = tables.time_table(found, labels={}, paper=paper, tier="tiny", header="h")
    ours, frozen = table.rows
    assert (table.name, table.columns[0], table.columns[-1]) == ("time-dino-first", "10 s", "60 s")
    assert ours.paper[0] == 91.45
    assert set(ours.paper[1:]) == {None} == set(frozen.paper)
    assert frozen.is_reference
    (curve,) = (one for one in found if one.system == "ours")
    for cell, mean in zip(ours.cells, curve.means, strict=True):
        assert cell.mean == mean
        assert (cell.mean.value is None) == bool(cell.reason)
    bare = tables.time_table(found, labels={}, paper={}, tier="tiny", header="h")
    assert bare.paper_columns == bare.rows[0].paper == ()


def test_dimension_table_has_sixteen_columns() -> None:
    runs, scores = world({"ours": 0.8})
    found = tables.summaries(build_frame(runs, scores, "tiny"), unit_normaliser())
    table = tables.dimension_table(found, labels={}, absent={}, note="n", tier="tiny", header="h")
    assert len(table.columns) == 16
    assert "tiny-tier" in table.title


def test_missing_paper_table_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="restore it"):
        tables.read_paper(tmp_path / "table3.csv")
