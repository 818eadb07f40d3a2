import csv
import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from typer.testing import CliRunner

from cfbench.cli import app
from cfbench.errors import CfError
from cfbench.report import paper_folder
from cfbench.study import database
from cfbench.study import design as designs
from cfbench.study.analysis_draw import bars
from cfbench.study.analysis_page import paper_rates, write_analysis
from cfbench.study.analysis_tables import preference_rows
from cfbench.study.answers import load_study, read_answers
from cfbench.study.findings import analyse
from cfbench.study.raters import VOTES
from cfbench.study.writer import DATABASE
from tests.helpers.raters import answers, design, simulate, vote, write_export

PAPER = {"infinity-rope": 77.3, "longlive": 69.3}
FILES = ("analysis.json", "analysis.md", "preference.csv", "preference.tex")
PLOTS = ("preference.pdf", "preference.png", "forest.pdf", "forest.png")
write = partial(write_analysis, design=None, header="commit 0; command x")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    plan = design(prompts=8, questions=2)
    made = simulate(plan, raters=10, seed=0, careless=2)
    return write_export(tmp_path_factory.mktemp("export"), made)


@pytest.fixture(scope="module")
def out(export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    done = CliRunner().invoke(app, ["study", "analyse", str(export), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert "excluded: 2" in done.output
    return folder


def test_one_command_writes_everything(out):
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "plots"])
    assert sorted(path.name for path in (out / "plots").iterdir()) == sorted(PLOTS)
    for name in FILES:
        assert "cfbench" in (out / name).read_text(encoding="utf-8")


def test_equal_votes_give_equal_files(export, tmp_path):
    for name in ("a", "b"):
        write(export, tmp_path / name, paper=paper_folder())
    for name in (*FILES, *(f"plots/{plot}" for plot in PLOTS)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_json_and_csv_say_the_same(out):
    tree = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    lines = (out / "preference.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines[1:]))
    assert len(rows) == 2 * (2 * 2 + 2)
    for name, counted in (("kept", "kept"), ("all", "all")):
        mine = [row for row in rows if row["raters_counted"] == counted]
        for row, found in zip(mine, tree[name]["preferences"] + tree[name]["pooled"], strict=True):
            assert [int(row[k]) for k in ("win", "tie", "loss")] == [
                found[k] for k in ("win", "tie", "loss")
            ]
            assert float(row["rate"]) == pytest.approx(
                100 * found["rate"]["mean"]["value"], abs=0.01
            )
            assert float(row["low"]) < float(row["rate"]) < float(row["high"])
    assert tree["kept"]["raters"] == 8
    assert tree["all"]["raters"] == 10
    assert list(tree["excluded"]["raters"]) == ["r00", "r01"]
    assert {row["paper"] for row in rows} == {"77.3", "69.3"}


def test_page_tells_both_sets_and_who_was_left_out(out):
    text = (out / "analysis.md").read_text(encoding="utf-8")
    assert "## Preference: raters by the design's rules" in text
    assert "## Preference: all raters" in text
    assert "- `r00`: failed 2 instruction checks; at most 1" in text
    latex = (out / "preference.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin") == latex.count(r"\end") == 2
    body = latex.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {9}


def test_papers_values_are_those_printed_and_drawn_as_printed():
    assert paper_rates(paper_folder()) == PAPER
    plan = design(prompts=2, questions=1)
    found = analyse(answers(plan, [vote("r", "c0-p0"), vote("r", "c0-p1", "tie")])).kept
    *own, printed = bars(plan, found, "c0", PAPER)
    assert [bar.parts for bar in own] == [(50.0, 50.0, 0.0)] * 2
    assert printed.parts == pytest.approx((77.3, 0.0, 22.7))
    assert printed.is_printed
    assert [bar.is_printed for bar in bars(plan, found, "c0", {})] == [False, False]
    # No bar of the paper's alone, as if it were a result.
    assert bars(plan, found, "c1", PAPER) == []


def test_values_of_the_paper_can_be_left_out(export, tmp_path):
    write(export, tmp_path, paper=None)
    assert "as printed" not in (tmp_path / "analysis.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ([], "no votes"),
        ([vote("r", "c0-p0"), vote("r", "c0-p1", "right")], "too few raters for an interval: 1"),
        (
            [vote(f"r{r}", f"c0-p{p}", "tie") for r in range(6) for p in range(6)],
            "all votes are alike",
        ),
        ([vote("r", "c0-p0", "cannot")], "no votes"),
    ],
    ids=["none", "one rater", "all ties", "nobody could judge"],
)
def test_studies_that_tell_nothing_say_why(tmp_path, votes, reason):
    plan = design(prompts=6, questions=1)
    write(write_export(tmp_path / "export", answers(plan, votes)), tmp_path / "out", paper=None)
    text = (tmp_path / "out" / "analysis.md").read_text(encoding="utf-8")
    assert reason in text
    assert "nan" not in text.replace("nance", "")
    json.loads(
        (tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"), parse_constant=_bad
    )


def _bad(name):
    raise ValueError(name)


def test_everyone_left_out_leaves_the_second_table(tmp_path):
    plan = design(prompts=6, questions=1)
    made = simulate(plan, raters=6, seed=0, careless=6)
    study = analyse(made)
    assert study.kept.votes == 0
    assert study.everyone.votes == 72
    assert [row[2] for row in preference_rows(plan, study.kept, plan.systems, {})] == ["0"] * 4


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    with pytest.raises(CfError, match="--design") as caught:
        write(tmp_path, tmp_path / "out", paper=None)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.fixture
def served(tmp_path):
    """A study's own folder: one rater, three pairs, one answer changed afterwards."""
    plan = design(prompts=3, questions=1)
    folder = tmp_path / "study"
    designs.seal(plan, folder)
    (folder / VOTES).mkdir()
    detail = {
        "reason": "", "watched_left_s": 60.0, "watched_right_s": 60.0, "replays": 0,
        "hidden_s": 0.0, "response_s": 70.0, "client": "",
    }  # fmt: skip
    items = [[0, 0, "c0-p0", "", "left"], [1, 0, "c0-p1", "", "right"]]
    given = [("c0-p0", "left"), ("c0-p1", "left"), ("c0-p0", "right")]
    events = [
        database.event("session", "r", token="t", code="c", consent="y"),
        database.event("block", "r", items=items),
        *(
            database.event("vote", "r", pair=pair, question="q0", answer=answer, detail=detail)
            for pair, answer in given
        ),
    ]
    with_numbers = [{**event, "seq": seq, "at": "2026"} for seq, event in enumerate(events, 1)]
    db = database.connect(folder / VOTES / DATABASE)
    database.fold(db, with_numbers)
    yield folder
    db.close()


def test_a_study_is_read_while_it_is_served(served, tmp_path):
    before = database.dump(database.connect(served / VOTES / DATABASE, read_only=True))
    found = read_answers(served)
    assert [(v.pair, v.answer, v.side_of_ours, v.changes) for v in found.votes] == [
        ("c0-p1", "left", "right", 0),
        ("c0-p0", "right", "left", 1),
    ]
    assert [row.session for row in found.sessions] == ["r"]
    assert database.dump(database.connect(served / VOTES / DATABASE, read_only=True)) == before
    (row, _) = analyse(found).kept.pooled
    assert (row.win, row.loss) == (0, 2)
    with pytest.raises(CfError, match="leave --design out"):
        read_answers(served, tmp_path / "design.json")


def test_an_export_and_the_study_itself_read_alike(served, tmp_path):
    live = load_study(served)
    folder = write_export(tmp_path / "export", replace(live, design_sha=""))
    shutil.copy(served / "design.json", folder)
    (folder / "key.json").unlink()
    found = read_answers(folder)
    assert found == live
