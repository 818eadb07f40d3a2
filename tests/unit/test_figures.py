import json
from pathlib import Path
from typing import Any

import pytest

from cfbench.figures import Figure, load, record

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
