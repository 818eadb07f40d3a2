"""What the films of a run do: looked at once, told by system, drawn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cfbench import video
from cfbench.analysis import planted, survey, survey_draw
from cfbench.analysis.drift import Series
from cfbench.analysis.events import Event
from cfbench.analysis.survey import Behaviour, behaviour_table, values_of
from cfbench.analysis.surveying import write_survey
from cfbench.analysis.worlds import RATE
from cfbench.progress import Reporter
from cfbench.render import markdown
from cfbench.store import open_store
from tests.helpers.bench import cfbench
from tests.helpers.reports import run

SEED = 77
STARTS = np.arange(5) * 2.0
STEADY = Series("exposure", STARTS, np.full(5, 0.5))
FADING = Series("exposure", STARTS, np.array([0.5, 0.5, 0.5, 0.3, 0.1]))


def film(*events: Event, own: bool | None = True, series: Series = STEADY) -> Behaviour:
    return Behaviour(10.0, events, dynamic=True, own=own, reason="", series=(series,))


def test_values_are_shares_of_films_and_of_their_time():
    back, hold = Event("flashback", 4.0, 6.0, 0.5), Event("freeze", 6.0, 8.5, 0.5)
    assert values_of(film(back, back, hold))[:6] == (1, 0, 0.25, 1, 1, 0)
    loop = Event("loop", 0.0, 6.0, 0.5, 2.0)
    found = values_of(film(loop, own=None, series=FADING))
    assert found[:4] == (0, 0.6, 0, 1)
    assert np.isnan(found[4])
    assert found[5] == 1
    assert np.isnan(found[6])
    assert values_of(film()._replace(clips=0.75))[6] == 0.75


def test_events_at_changes_of_the_text_are_told_from_others():
    times = (4.0, 9.0)
    starts = {4.2: True, 3.8: True, 4.5: False, 9.0: True, 0.1: False}
    for start, expected in starts.items():
        assert survey.at_changes(Event("flashback", start, 10.0, 0.5), times) == expected


def test_a_tree_gives_the_film_back():
    back = Event("flashback", 4.0, 6.0, 0.5)
    tree = json.loads(json.dumps(film(back, own=None, series=FADING).tree()))
    found = survey.from_tree(tree)
    assert found.events == (back,)
    assert found.own is None
    (one,) = found.series
    assert (one.name, one.values_W.tolist()) == ("exposure", FADING.values_W.tolist())


def test_what_is_returned_is_what_is_kept(root: Path, tmp_path: Path):
    store, quiet = open_store(root), Reporter(quiet=True)
    first = survey.survey(store, tmp_path, features="", workers=1, reporter=quiet)
    again = survey.read(tmp_path, "")
    for sha, one in first.items():
        for mine, other in zip(one.series, again[sha].series, strict=True):
            assert mine.values_W.tolist() == other.values_W.tolist()


def test_films_that_nobody_looked_at_are_expected_and_not_scored():
    runs = [run("ours", 0), run("ours", 1), run("frozen", 0)]
    seen = {runs[0].clip.sha256: film(own=None)}
    table = behaviour_table(runs, seen, labels={"ours": "Ours"}, header="h")
    ours, frozen = table.rows
    flashback, own = ours.cells[0], ours.cells[4]
    assert (flashback.scored, flashback.expected, flashback.mean.value) == (1, 2, 0)
    assert (own.scored, own.reason) == (0, "no film could be judged")
    assert all(cell.mean.value is None for cell in frozen.cells)
    assert "**0.0**" not in markdown(table)


def test_the_clearest_flashback_is_of_longlive_where_it_has_one():
    weak, clear = (Event("flashback", 4.0, 6.0, score) for score in (0.2, 0.9))
    runs = [run(name, 0) for name in ("ours", "longlive", "rendered-truth")]
    seen = {each.clip.sha256: film(clear) for each in runs}
    seen[runs[1].clip.sha256] = film(weak, clear)
    shown = survey_draw.clearest(runs, seen)
    assert shown is not None
    assert (shown.run.system, shown.event) == ("longlive", clear)
    others = survey_draw.clearest([runs[0], runs[2]], seen)
    assert others is not None
    assert others.run.system == "ours"
    assert survey_draw.clearest(runs[2:], seen) is None


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one film with a planted flashback and one that only pans away and back."""
    root = tmp_path_factory.mktemp("survey") / "run"
    numbers = [planted.MIX.index(kind) for kind in ("flashback", "return")]
    with open_store(root, exists=False) as store:
        for name, number in zip(("longlive", "rendered-truth"), numbers, strict=True):
            path = store.scratch("mp4")
            clip = video.encode(path, [planted.film(number, SEED).frames], RATE)
            store.put(path, clip.sha256, "mp4")
            store.append("runs", dataclasses.replace(run(name, 0), clip=clip))
    return root


def test_the_verb_tells_and_draws_a_planted_flashback(root: Path, tmp_path: Path):
    done = cfbench("survey", "--out", str(root), "--to", str(tmp_path), "--workers", "1", "--json")
    told = json.loads(done.stdout)
    assert (told["films"], told["events"]["flashback"]) == (2, 1)
    assert told["flashbacks_at_changes_of_text"] == 0
    text = (tmp_path / "behaviour.csv").read_text(encoding="utf-8")
    cells = {line.split(",")[0]: line.split(",") for line in text.splitlines()[2:]}
    assert {name: row[2] for name, row in cells.items()} == {
        "longlive": "100.00", "rendered-truth": "0.00"
    }  # fmt: skip
    # The last value of three numbers and two counts, then the reason: from clip to clip.
    assert all(0 < float(row[-6]) < 100 for row in cells.values())
    for name in ("events", "drift", "flashback"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    kept = (tmp_path / survey.FILE).read_bytes()
    assert write_survey(root, tmp_path, features="tiny", workers=1, header="h") == told
    assert (tmp_path / survey.FILE).read_bytes() == kept
    assert len(survey.read(tmp_path, "tiny")) == 2
    assert not survey.read(tmp_path, "")
