import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cfbench.figures import Figure, load, number_in, record
from cfbench.run import record_figure

FIELDS: dict[str, Any] = {
    "name": "cli_help_s",
    "value": 0.4,
    "unit": "s",
    "target": "<= 0.5",
    "command": "make figures",
    "commit": "abc",
    "device": "2 CPU cores",
    "at": "2026-11-23T10:00:00+00:00",
}


def figure(**changes: Any) -> Figure:
    return Figure(**{**FIELDS, **changes})


def test_newest_measurement_of_a_name_wins(tmp_path: Path) -> None:
    path = tmp_path / "results" / "figures.json"
    assert record(path, figure(value=0.4))
    assert record(path, figure(name="assets_mb", value=30, target="<= 40", unit="MB"))
    assert record(path, figure(value=0.3, at="2026-11-23T13:00:00+02:00"))
    assert not record(path, figure(value=0.9, at="2026-11-23T10:59:00+00:00"))
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == ["assets_mb", "cli_help_s"]
    assert rows[1]["value"] == 0.3
    assert set(rows[0]) == set(FIELDS) | {"low", "high"}
    assert load(path)["assets_mb"].value == 30


def test_targets_are_compared() -> None:
    assert figure().is_met is True
    assert figure(value=0.6).is_met is False
    assert figure(target=">= 0.4").is_met is True
    assert figure(target="").is_met is None
    assert figure(target="0.4 to 0.5").is_met is True
    assert figure(target="-0.1 to 0.1").is_met is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "CLI help"}, "expected a name"),
        ({"value": float("nan")}, "finite"),
        ({"low": 0.5}, "above value"),
        ({"high": 0.3}, "below value"),
        ({"target": "about 1"}, "expected '<= 10'"),
        ({"target": "<= ten"}, "expected numbers"),
        ({"target": "low to high"}, "expected numbers"),
        ({"at": "yesterday"}, "ISO time"),
        ({"at": "2026-11-23T10:00:00"}, "offset"),
        ({"command": ""}, "how to repeat"),
    ],
)
def test_bad_figures_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figure(**changes)


def test_damaged_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text('[{"name": "x"}]')
    with pytest.raises(ValueError, match="not a list of figures"):
        record(path, figure())
    assert path.read_text() == '[{"name": "x"}]'


@pytest.mark.parametrize(
    ("text", "keys", "words"),
    [
        ("none", ["a"], "holds no JSON object"),
        ('{"a": 1}', ["b"], "has nothing at b; it has a"),
        ('{"a": 1}', ["a", "b"], "has nothing at a/b"),
        ('{"a": true}', ["a"], "expected a number"),
        ('{"a": {"value": null, "low": null}}', ["a"], "has no value at a"),
    ],
)
def test_numbers_that_are_not_there(text: str, keys: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        number_in(text, keys, "out")


def test_a_number_comes_from_the_last_object_or_from_the_whole() -> None:
    assert number_in('{"a": 1}\n{"a": 2}\n', ["a"], "out") == (2.0, None, None)
    pretty = json.dumps({"x/y": {"12": {"value": 0.5, "low": 0.1, "high": 0.9}}}, indent=1)
    assert number_in(pretty, ["x/y", "12"], "out") == (0.5, 0.1, 0.9)


def test_what_a_command_prints_is_recorded(tmp_path: Path) -> None:
    to = tmp_path / "figures.json"
    command = [sys.executable, "-c", "print('{\"made\": 3}')"]
    made = record_figure(
        "films_made", ["made"], command, unit="films", target=">= 3", to=to, source=None,
        device="cpu",
    )  # fmt: skip
    assert (made.value, made.is_met) == (3.0, True)
    (row,) = json.loads(to.read_text())
    assert row["command"].startswith(sys.executable)
    command[-1] = "raise SystemExit(3)"
    use = {"unit": "films", "target": "", "to": to, "device": "cpu"}
    with pytest.raises(ValueError, match="exit code 3; nothing recorded"):
        record_figure("films_made", ["made"], command, source=None, **use)
    (tmp_path / "x.json").write_text('{"made": 5}')
    record_figure("films_made", ["made"], ["gpu"], source=tmp_path / "x.json", **use)
    assert load(to)["films_made"].value == 5
