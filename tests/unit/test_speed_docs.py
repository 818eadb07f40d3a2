"""Measured numbers in the documentation are those of the records."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["processes-1", "processes-2"])
def test_training_docs_tell_the_measured_iteration(name):
    record = json.loads((ROOT / "results/speed/train-1.3b.json").read_text())[name]
    summary, share = record["summary"], record["summary"]["share"]
    parts = [
        f"{summary['seconds'][part]:.1f} s, {100 * share[part]:.0f} %"
        for part in ("rollout", "student", "critic")
    ]
    row = " | ".join(
        [*parts, f"{summary['iteration_s']:.1f} s", f"{summary['peak_reserved_gib']:.1f} GiB"]
    )
    text = (ROOT / "docs/training.md").read_text()
    assert row in text
    hours = f"{record['recipe']['gpu_hours']:.0f}"
    assert {"processes-1": f"**{hours} GPU-hours", "processes-2": f"{hours} over two"}[name] in text
