"""The recall probe: truth reads right, a forgetful system at chance, a killed run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfbench import recall, recall_plot, systems
from cfbench.cli_recall import seconds
from cfbench.curves import recent_past_s
from cfbench.errors import CfError
from cfbench.progress import Reporter
from cfbench.recall import Answer, Task
from cfbench.scorers.tiny import recall as probes
from cfbench.scorers.tiny.weights import load, measuring_codec
from cfmodel.presets import presets
from tests.helpers.bench import cfbench

QUIET = Reporter(quiet=True)
ATTRIBUTES = probes.ATTRIBUTES


class Forgetful:
    """Shows the end of the history for ever."""

    asked = 0

    def continued(
        self, prompt_id: str, segments: Any, seed: int, history: np.ndarray, chunks: int, **_: Any
    ) -> np.ndarray:
        Forgetful.asked += 1
        return np.repeat(history[-1:], chunks * 12, 0)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "load", lambda *_: Forgetful())
    Forgetful.asked = 0


def _ask(folder: Path, gaps: list[float], count: int, *names: str) -> list[Answer]:
    names = names or ("tiny/ours", "tiny/rendered-truth")
    return recall.ask(recall.plan(names, gaps, count), folder, reporter=QUIET)


@pytest.mark.slow
def test_truth_is_read_right_and_the_forgetful_is_not(forgetful: None, tmp_path: Path):
    names = ("tiny/ours", "tiny/rendered-truth", "another-scene")
    found = _ask(tmp_path, [1.0], 5, *names)
    table = recall.summary(found, ours="tiny/rendered-truth")
    lost, truth, chance = (table["systems"][name]["1"]["mean"]["value"] for name in names)
    assert truth > 0.9
    assert 0.1 < chance < 0.5
    assert lost < 0.45
    difference = table["ours_minus"]["tiny/ours"]["1"]
    assert difference["value"] == pytest.approx(truth - lost)
    assert difference["low"] > 0
    assert difference["probes"] == 5


def test_the_codec_costs_the_truth_next_to_nothing():
    nets, asked = load(), probes.probe(0, 1.0)
    frames = probes.round_trip(asked, measuring_codec())
    assert frames.shape == asked.truth.shape
    assert np.abs(frames.astype(int) - asked.truth).mean() < 8
    shares = probes.read(asked, frames, nets)
    # Markings are a few pixels wide and are what the codec loses first.
    assert [shares[name] for name in ("landmark", "layout", "shape", "color")] == [1, 1, 1, 1]


def test_layout_is_where_the_landmark_stands():
    nets, asked = load(), probes.probe(0, 1.0)
    shifted = np.roll(asked.truth, asked.truth.shape[2] // 4, axis=2)
    assert probes.read(asked, asked.truth, nets)["layout"] == 1
    assert probes.read(asked, shifted, nets)["layout"] == 0


def test_a_cut_line_is_asked_again_and_the_rest_is_kept(forgetful: None, tmp_path: Path):
    _ask(tmp_path, [1.0], 1)
    path = tmp_path / recall.FILE
    whole = path.read_text()
    lines = whole.splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    before = Forgetful.asked
    found = _ask(tmp_path, [1.0], 1)
    assert Forgetful.asked == before  # the line that was cut was the truth's
    assert sorted(a.line() for a in found) == sorted(line + "\n" for line in lines)
    assert len(recall.answers(tmp_path)) == 2


def test_order_and_repeats_of_lines_do_not_matter():
    lines = [_answer(k, 0.1 * k).line() for k in (2, 0, 1)]
    found = recall.parsed("".join([_answer(2, 0.9).line(), *lines]))
    assert [a.task.number for a in found] == [0, 1, 2]
    assert found[2].shares["shape"] == 0.2


def test_an_answer_of_other_weights_is_asked_anew(forgetful: None, tmp_path: Path):
    found = _ask(tmp_path, [1.0], 1)
    other = found[0].task._replace(made_by="another")
    (tmp_path / recall.FILE).write_text(found[0]._replace(task=other).line())
    before = Forgetful.asked
    _ask(tmp_path, [1.0], 1)
    assert Forgetful.asked == before + 1


def test_a_system_that_is_not_trained_is_refused(tmp_path: Path):
    with pytest.raises(CfError, match="not trained"):
        recall.plan(["tiny/no-recycling"], [1.0], 1)


def _answer(number: int, share: float | None, *, way: Any = "forced", **looks: Any) -> Answer:
    shares = dict.fromkeys(ATTRIBUTES, share)
    return Answer(Task("tiny/ours", number, 1.0, 0, way, "k"), 4.0, shares, looks)


def test_values_of_an_answer():
    assert recall.value({"shape": 1.0, "color": 0.5}, recall.OVERALL) == 0.75
    assert recall.value({"shape": None, "color": 0.5}, recall.OVERALL) == 0.5
    assert np.isnan(recall.value({"shape": None}, "shape"))


def _looks(landmark: int, column: float) -> dict[str, Any]:
    first = {"shape": 1, "color": 1, "marking": 1, "landmark": landmark, "column": column}
    again = {name: [value] * 4 for name, value in first.items()}
    return {"first": first, "again": {**again, "there": [True] * 4, "sure": [True] * 4}}


def test_free_films_have_a_chance_of_their_own():
    """Films that all show the same arch are consistent, and no memory is needed for it."""
    same = [_answer(k, 1.0, way="free", **_looks(1, 5.0)) for k in range(2)]
    cell = recall.summary(same)["free"]["tiny/ours"]["1"]
    assert cell["chance"]["landmark"] == 1
    other = [*same, _answer(2, 1.0, way="free", **_looks(2, 9.0))]
    cell = recall.summary(other)["free"]["tiny/ours"]["1"]
    assert cell["chance"]["landmark"] == pytest.approx(2 / 6)
    assert cell["chance"]["layout"] == pytest.approx(2 / 6)
    assert cell["chance"]["shape"] == 1
    assert recall.summary(other)["systems"] == {}


def test_unanswered_attributes_are_counted_out():
    cell = recall.summary([_answer(0, None), _answer(1, 0.5)])["systems"]["tiny/ours"]["1"]
    assert (cell["shape"]["value"], cell["shape"]["scored"], cell["shape"]["expected"]) == (
        0.5, 1, 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "past_s"),
    [
        ("infinity-rope", 0.5), ("longlive", 1.5), ("self-forcing", 4.5), ("uniform-1", 9.75),
        ("uniform-2", 18.75), ("ours", 18.75), ("no-slow", 0.75), ("full-context", None),
    ],
)  # fmt: skip
def test_recent_past_of_the_presets(name: str, past_s: float | None):
    assert recent_past_s(presets("tiny")[name].to_json()) == past_s


def test_curve_is_drawn(tmp_path: Path):
    rows = [_answer(k, 0.2 * k) for k in range(5)]
    rows += [_answer(k, 0.5, way="free", **_looks(k, 3.0)) for k in range(2)]
    rows += [a._replace(task=a.task._replace(system="another-scene")) for a in rows[:5]]
    tree = recall.summary(rows, ours="tiny/ours")
    tree["recent_past_s"] = {"tiny/ours": 18.75}
    recall_plot.forgetting(tmp_path / "curve", tree, {"tiny/ours": "Ours"})
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "curve.png").is_file()
    recall_plot.forgetting(tmp_path / "none", recall.summary([]) | {"recent_past_s": {}}, {})
    assert not (tmp_path / "none.pdf").exists()


def test_seconds_are_read_or_refused():
    assert seconds("--gaps", "1,2.5") == (1.0, 2.5)
    for text in ("one", "0,1", ""):
        with pytest.raises(CfError, match="--gaps"):
            seconds("--gaps", text)


def test_the_verb_prints_json_and_writes_its_curve(tmp_path: Path):
    done = cfbench(
        "recall", "--systems", "tiny/rendered-truth", "--gaps", "1", "--count", "1",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert json.loads(done.stdout)["systems"]["codec-truth"]["1"]["landmark"]["value"] == 1
    assert (tmp_path / "forgetting.pdf").is_file()
    assert json.loads((tmp_path / "forgetting.json").read_text())["labels"] == {}
