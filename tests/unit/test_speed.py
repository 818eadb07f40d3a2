"""Long rollouts at nano size: what is measured, and that nothing grows with the film."""

import gc
import json

import pytest
import torch

from cfmodel import cli, presets, speed
from cfmodel.memory.slots import TESTS_KEPT
from cfmodel.pipeline import Request

CPU = torch.device("cpu")
FULL = presets.preset("nano", ("memory.tau=1.0",))
"""Every candidate is promoted, so that slow memory fills as soon as it can."""


def test_a_film_is_measured_end_to_end(tmp_path):
    out = tmp_path / "speed.json"
    out.write_text('{"other": 1}', encoding="utf-8")
    made = speed.measure(FULL, [60.0], out, device=CPU)
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["other"] == 1
    assert record["60s"] == json.loads(json.dumps(made))["60s"]
    film = record["60s"]
    assert (film["chunks"], film["pixel_frames"], film["slots"]) == (81, 969, 18)
    assert film["film_bytes"] > 1000
    assert [len(row) for row in film["rows"].values()] == [81] * 3
    assert film["state"] == "done"
    assert film["summary"]["gpu_growth_gib"] is None
    assert abs(film["summary"]["host_growth_gib"]) < 0.02
    assert "81 chunks" in speed.lines(made)[0]


def test_a_run_that_is_cut_off_leaves_what_it_knew(tmp_path):
    told = []

    def stop(record):
        told.append((record["state"], len(record["rows"]["ms"])))
        if len(told) == 3:
            raise KeyboardInterrupt

    pipeline = speed.random_pipeline(FULL, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        speed.run(pipeline, 20.0, film=tmp_path / "film.mp4", tell=stop)
    assert told == [("running", 2), ("running", 4), ("running", 6)]
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_is_told(tmp_path):
    made = speed.measure(FULL, [60.0], tmp_path / "speed.json", device=torch.device("cuda"))
    assert made["60s"]["dtype"] == "bfloat16"
    assert abs(made["60s"]["summary"]["gpu_growth_gib"]) < 0.1


def counted() -> int:
    """Elements of all tensors that are alive."""
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if type(x) is torch.Tensor)


@pytest.mark.parametrize("row", ["ours", "ours-released", "longlive-recache", "rolling-forcing"])
def test_no_tensor_is_kept_longer_than_the_memory_reaches(row):
    """Also where something is kept for later: scenes to recache, windows, tests of every pass."""
    experiment = presets.preset(f"nano/{row}", ("memory.tau=1.0",) if "ours" in row else ())
    pipeline = speed.random_pipeline(experiment, device=CPU)
    memory = pipeline.memory(1)
    segments = tuple((text, 9.0) for text in "abcdefgh")
    sizes = []
    for chunk, _ in enumerate(pipeline.latents([Request("a", segments, 0)], 99, memory=memory)):
        if chunk in (40, 88):
            sizes.append(counted())
    assert sizes[0] == sizes[1]


def test_tests_of_candidates_are_bounded():
    memory = speed.random_pipeline(FULL, device=CPU).memory(1)
    assert memory._tests.maxlen == TESTS_KEPT


def test_tenths_and_growth():
    assert speed.growth([0.0] * 10 + [1.0] * 90) == 0
    assert speed.growth([float(at) for at in range(100)]) == 80
    assert speed.growth([None] * 100) is None
    rows = {"ms": [9.0] * 10 + [2.0] * 80 + [3.0] * 10, "gpu_gib": [1.0] * 100}
    found = speed.summary({**rows, "host_gib": [None] * 100})
    assert (found["ms_ratio"], found["gpu_growth_gib"]) == (1.5, 0)
    with pytest.raises(ValueError, match="19 chunks are too few"):
        speed.tenths(range(19))


def test_the_command_refuses_short_films(monkeypatch, tmp_path, capsys):
    out = tmp_path / "speed.json"
    words = ["cfmodel", "rollout-speed", "--preset", "nano", "--seconds", "5", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        cli.main()
    assert "too few to compare tenths" in capsys.readouterr().err
    assert not out.exists()
