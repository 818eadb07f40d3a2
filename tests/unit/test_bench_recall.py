"""The recall probe: truth reads right, a forgetful system at chance, a killed run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfbench import recall, systems
from cfbench.progress import Reporter

QUIET = Reporter(quiet=True)


class Forgetful:
    """Shows the end of the history for ever."""

    asked = 0

    def continued(
        self, prompt_id: str, segments: Any, seed: int, history: np.ndarray, chunks: int
    ) -> np.ndarray:
        Forgetful.asked += 1
        return np.repeat(history[-1:], chunks * 12, 0)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "load", lambda *_: Forgetful())
    Forgetful.asked = 0


def _ask(folder: Path, gaps: list[float], count: int) -> list[recall.Answer]:
    names = ["tiny/forgetful", "tiny/rendered-truth"]
    return recall.ask(names, gaps, count, folder, reporter=QUIET)


@pytest.mark.slow
def test_truth_is_read_right_and_the_forgetful_is_not(forgetful: None, tmp_path: Path):
    found = _ask(tmp_path, [3.0], 5)
    table = recall.summary(found, ours="tiny/rendered-truth")
    truth, lost = (
        table["systems"][f"tiny/{name}"]["3"]["mean"]["value"]
        for name in ("rendered-truth", "forgetful")
    )
    assert truth > 0.9
    assert lost < 0.45
    difference = table["ours_minus"]["tiny/forgetful"]["3"]
    assert difference["value"] == pytest.approx(truth - lost)
    assert difference["low"] > 0
    assert difference["probes"] == 5


def test_a_cut_line_is_asked_again_and_the_rest_is_kept(forgetful: None, tmp_path: Path):
    _ask(tmp_path, [1.0], 2)
    path = tmp_path / recall.FILE
    whole = path.read_text()
    lines = whole.splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    before = Forgetful.asked
    found = _ask(tmp_path, [1.0], 2)
    assert Forgetful.asked == before  # the line that was cut was the truth's
    assert sorted(a.key for a in found) == sorted(
        recall.Answer(**json.loads(line)).key for line in lines
    )
    assert len(recall.answers(tmp_path)) == 4


def test_mean_of_an_answer():
    answer = recall.Answer("s", 0, 1.0, 0, {"shape": 1.0, "color": 0.5})
    assert recall.value(answer, recall.OVERALL) == 0.75
    assert recall.value(answer, "color") == 0.5
