"""What an iteration takes: the real stage at nano size, in one process and in two."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfmodel import cli, presets
from cfmodel.config import Experiment
from cfmodel.train import measure
from cfmodel.train.films import Rollout
from cfmodel.train.measure import Meter, NoRoomError, Trial

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = (
    "geometry.height=64", "geometry.width=64", "model.layers=2", "model.heads=2", "model.width=48",
    "model.ffn=96", "model.text_width=24", "model.text_tokens=4",
)  # fmt: skip
"""The large family with its own numbers, at the sizes of nano."""
SHORT = 42
HALF = 2e-2
"""Relative: the teacher of this family is bfloat16, 8 bits of mantissa, guided six-fold."""


def small() -> Experiment:
    return presets.preset("wan-1.3b", SMALL)


def command(out: Path, name: str) -> list[str]:
    given = [word for item in SMALL for word in ("--set", item)]
    return [
        sys.executable, "-W", "ignore", "-m", "cfmodel", "measure", "--preset", "wan-1.3b", *given,
        "--out", str(out), "--name", name, "--latents", str(SHORT), "--batch", "2",
        "--iterations", "1", "--warmup", "1", "--device", "cpu",
    ]  # fmt: skip


def test_every_part_of_the_real_stage_is_measured(tmp_path):
    out = tmp_path / "speed" / "train.json"
    out.parent.mkdir()
    out.write_text('{"other": 1}', encoding="utf-8")
    trial = Trial(latents=SHORT, iterations=1, warmup=1, accumulate=2, batch=2)
    record = measure.run(small(), trial, CPU, out, "mine")
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["other"] == 1
    assert told["mine"] == record
    assert record["state"] == "done"
    assert record["rollout"]["replay"]
    each = ["rollout", "student", "critic"]
    assert [row["part"] for row in record["parts"]] == ["setup", *each * 4]
    assert set(record["summary"]["seconds"]) == set(each)
    assert sum(record["summary"]["share"].values()) == pytest.approx(1, abs=1e-3)
    assert all(math.isfinite(value) for step in record["steps"] for value in step.values())
    assert all(step["dmd"] > 0 and step["student_norm"] > 0 for step in record["steps"])
    # Two films, fourteen chunks of at most five passes, and the six that are made again with five
    # clean passes between them.
    assert record["steps"][-1]["student_passes"] <= 2 * (14 * 5 + 6 + 5)
    assert record["tokens"]["scored"] == 42 * small().geometry.tokens_per_frame
    assert record["summary"]["peak_reserved_gib"] is None


@pytest.mark.gpu
def test_memory_is_measured_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    trial = Trial(latents=SHORT, iterations=1)
    record = measure.run(small(), trial, torch.device("cuda"), tmp_path / "train.json", "mine")
    told = record["summary"]
    assert 0 < told["peak_allocated_gib"] <= told["peak_reserved_gib"] < record["device_gib"]
    assert all(math.isfinite(value) for step in record["steps"] for value in step.values())


def test_an_iteration_without_room_says_where_and_leaves_what_it_knew(tmp_path):
    meter = Meter(CPU, tmp_path / "train.json", "mine", {"device": "cpu"})
    with meter.part("rollout"):
        pass
    with pytest.raises(NoRoomError, match="out of memory in part critic of iteration 0 with"), \
            meter.part("critic"):  # fmt: skip
        raise torch.OutOfMemoryError
    told = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))["mine"]
    assert told["state"] == "out of memory in part critic"
    assert [row["part"] for row in told["parts"]] == ["rollout", "critic"]
    assert told["parts"][0]["seconds"] >= 0


def test_hours_are_those_of_the_recipe():
    record = {
        "latents": 105,
        "summary": {"seconds": {"rollout": 10.0, "critic": 5.0, "student": 20.0}},
    }
    found = measure.recipe(presets.ours("wan-1.3b"), Trial(), record)
    # Length grows from 84 by at most 3 * int(7 * progress / 1.2), of which half is drawn.
    plan = Rollout(shortest=84, longest=105, curriculum=1.2)
    mean = sum(84 + 1.5 * int(7 * k / 100 / 1.2) for k in range(100)) / 100
    assert measure.mean_length(plan) == pytest.approx(mean)
    seconds = 500 * 64 * (10 * mean / 105 + 5 + 20 / 5)
    assert found["gpu_hours"] == pytest.approx(seconds / 3600, abs=0.1)


def test_films_of_part_of_a_chunk_are_refused():
    with pytest.raises(ValueError, match="43 latents are no whole number of chunks"):
        measure.rollout_of(small(), Trial(latents=43))


def test_unknown_stage_is_an_error_of_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cfmodel", "measure", "--stage", "base"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == cli.USAGE
    assert "unknown stage 'base'; use dmd or cdmd" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path):
    """FSDP2 on gloo with replayed films, checkpointed blocks and the average on the host."""
    out = tmp_path / "train.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(out, "one"), cwd=ROOT, env=environment, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            command(out, "two"), cwd=ROOT,
            env={**environment, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "TORCHELASTIC_RUN_ID": "test"},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [child.wait() for child in children] == [0, 0]
    told = json.loads(out.read_text(encoding="utf-8"))
    assert (told["one"]["processes"], told["two"]["processes"]) == (1, 2)
    for one, two in zip(told["one"]["steps"], told["two"]["steps"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two == pytest.approx(one, rel=HALF)
