"""The verb that compares the transformer with diffusers' at any size."""

import json
import sys

import pytest
import torch

from cfmodel import cli, parity
from tests.helpers.wan import small_wan


def test_dtypes_are_compared_and_a_wrong_weight_shows(monkeypatch):
    experiment = small_wan()
    kinds = [torch.bfloat16, torch.float32]
    rows = parity.compare(experiment, torch.device("cpu"), kinds, frames=2)
    exact, half = rows["float32"], rows["bfloat16"]
    assert exact["max_abs"] < 1e-5 > exact["ours_to_fp32"]
    assert exact["theirs_to_fp32"] == 0
    # The same rounding, in another order: no farther from the truth than diffusers is.
    assert 1e-3 < half["ours_to_fp32"] < 1.5 * half["theirs_to_fp32"]
    real = parity.from_wan

    def wrong(state, model, naming):
        ours = dict(real(state, model, naming))
        ours["blocks.1.attn.o.bias"] = ours["blocks.1.attn.o.bias"] + 0.01
        return ours

    monkeypatch.setattr(parity, "from_wan", wrong)
    rows = parity.compare(experiment, torch.device("cpu"), [torch.float32], frames=2)
    assert rows["float32"]["max_abs"] > 1e-4


def test_verb_writes_its_record(monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "parity.json"
    given = ["parity", "--small", "--frames", "2", "--device", "cpu", "--out", str(out)]
    given += ["--set", "geometry.height=32", "--set", "geometry.width=32"]
    monkeypatch.setattr(sys, "argv", ["cfmodel", *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    record = json.loads(out.read_text())
    assert record == json.loads(capsys.readouterr().out)
    assert len(record["compared"]) == 3
    assert 0 < record["max_abs_fp32"] < 1e-5
