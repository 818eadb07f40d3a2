"""The benchmark of generators at nano size on a CPU, beside a peer made for the test."""

import json
import sys

import pytest
import torch

from cfbench.errors import CfError
from cfbench.speed import generate, generate_page, machines
from cfbench.systems.timing import base, ours, run, several
from cfmodel.config import TextConfig
from cfmodel.random_text import random_umt5

FILES = {
    "wan/modules/attention.py": "",
    "wan/modules/model.py": "from diffusers.models.modeling_utils import ModelMixin",
    "wan/modules/causal_model.py": """
import torch
from wan.modules.model import ModelMixin
class CausalWanModel(ModelMixin):
    def __init__(self, dim, in_dim, **sizes):
        super().__init__()
        self.mix = torch.nn.Linear(in_dim, in_dim)
    def forward(self, x, *, kv_cache, **passed):
        assert attention is not None
        assert kv_cache[0]["local_end_index"].item() == kv_cache[0]["k"].shape[1]
        return self.mix(x.transpose(1, -1)).transpose(1, -1)
""",
    "utils/scheduler.py": """
import torch
class FlowMatchScheduler:
    def __init__(self, shift, sigma_min, extra_one_step): pass
    def set_timesteps(self, count, training):
        self.sigmas = torch.linspace(1, 0, count + 1)[:-1]
        self.timesteps = self.sigmas * count
    def add_noise(self, x, noise, at): return x + noise
""",
}


@pytest.fixture
def bench(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "peer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    checkouts = {"self-forcing": tmp_path / "peer", "longlive": tmp_path}
    return run.bench_of("nano", "cpu", "auto", checkouts)


def test_what_fails_is_told_and_the_same_command_goes_on(bench, tmp_path):
    to = tmp_path / "speed" / "generate.json"
    plan = generate.Plan(
        systems=("ours/off", "pooled/joined", "ours/wrong", "self-forcing", "longlive"),
        rounds=2, burst=2, chunks=2,
    )  # fmt: skip
    before = set(sys.modules)
    told = generate.measure(bench, plan, to, "here")
    assert set(told["systems"]) == {"ours/off", "pooled/joined", "self-forcing"}
    assert "lacks wan/modules/attention.py" in told["failed"]["build longlive"]
    assert "expected auto, off" in told["failed"]["build ours/wrong"]
    assert told["systems"]["ours/off"]["error"] == 0
    assert told["systems"]["self-forcing"]["chunks"] == plan.wanted
    assert told["film_ms"] > 0
    assert told["first_frames_s"] > 0
    assert 0 < told["growth_10min"] < 10
    assert told["failed"]["several"].endswith("needs two GPUs")
    assert not {"wan", "utils"} & (set(sys.modules) - before)
    before = json.loads(to.read_text())["machines"]["here"]["systems"]["ours/off"]
    generate.measure(bench, plan, to, "here")
    assert json.loads(to.read_text())["machines"]["here"]["systems"]["ours/off"] == before
    files = generate_page.put(to, "here")
    assert [path.suffix for path in files] == [".md", ".png", ".pdf"]
    assert "| ours, eager (sdpa) |" in files[0].read_text(encoding="utf-8")
    to.write_text("{", encoding="utf-8")
    with pytest.raises(CfError, match="damaged"):
        machines.read(to)


def test_no_part_begins_after_the_time(bench, tmp_path):
    told = generate.measure(bench, generate.Plan(minutes=1e-9), tmp_path / "g.json", "here")
    assert told["systems"] == {}
    assert told["failed"]["kernels"] == "no time was left"


def test_a_random_umt5_reads_texts_of_any_length():
    config = TextConfig(kind="umt5", width=16, tokens=6)
    encoder = random_umt5(config, torch.device("cpu"), layers=1, heads=2, ffn=8)
    short, long = encoder.encode(["a fox", "a fox " * 9])
    assert short.shape == long.shape == (6, 16)
    assert short.isfinite().all()
    assert long.isfinite().all()
    assert short[:3].any(1).all()
    assert not short[3:].any()
    assert long.any(1).all()


@pytest.mark.slow
def test_two_processes_are_timed_beside_one(bench, tmp_path):
    plan = generate.Plan(parts=("several",), chunks=2, processes=2)
    told = generate.measure(bench, plan, tmp_path / "g.json", "here")
    assert (told["systems"], told["failed"]) == ({}, {})
    found = json.loads((tmp_path / "g.json").read_text())["machines"]["here"]["several"]
    assert set(found["ms"]) == {"one", "prompts", *several.SPREAD}
    assert told["prompts_times"] == 2 * found["ms"]["one"] / found["ms"]["prompts"]


def test_arithmetic_of_a_chunk_is_that_of_the_published_floors():
    """202 TFLOP with 21 latents: 58.5 in linear layers, 141.3 in self-attention, 2.2 beside."""
    experiment = ours.experiment_of("wan-1.3b", "ours")
    found = base.work_of(experiment, base.keys_of(experiment))
    assert [round(found[name] / 1e12, 1) for name in ("linear", "attention", "cross")] == [
        58.5, 141.3, 2.2,
    ]  # fmt: skip
    pooled = base.keys_of(ours.experiment_of("wan-1.3b", "pooled"))
    assert pooled == 12 * experiment.geometry.tokens_per_frame
