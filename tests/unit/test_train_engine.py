"""The engine: accumulation, checkpointing, LoRA, resuming, two processes, divergence, stopping."""

import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cfmodel import cli
from cfmodel.train import checkpoint
from cfmodel.train.loop import DivergedError, Engine, StoppedError, stopping, train
from cfmodel.train.run import plan
from cfmodel.train.sinks import JsonLines, boards, contact_sheet
from cfmodel.train.state import CHECKPOINT_PREFIX, Lora, Trainable, merged
from tests.helpers.nano import NANO, nano_latents, nano_model, seeded
from tests.helpers.stages import stage, stops_after, weights_of, write_assets

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
WALL = ("seconds",)
"""What of a row of metrics is the clock's and not the run's."""
FP32 = 1e-4
"""Relative: sums of a few thousand fp32 terms in another order, over ten updates."""


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    text = (out / f"{name}-metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in WALL} for row in found]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def process(*arguments: Any, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.stages", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
    )


# --- one step -------------------------------------------------------------------------------------


def network(seed: int = 0) -> Any:
    return nano_model(seed=seed).requires_grad_(True)


def flow(net: Any, x: Tensor) -> Tensor:
    sigma = torch.full(x.shape[:2], 0.5)
    text = seeded(len(x), 1, NANO.model.text_tokens, NANO.model.text_width, seed=7)
    return net(x, sigma, net.text_kv(text)).v_BFCXY


def test_micro_batches_give_the_numbers_of_one_batch():
    x = nano_latents(4, 3)
    whole, parts = Trainable(network(), lr=1e-2, ema=0.9), Trainable(network(), lr=1e-2, ema=0.9)
    parts.prepare(accumulate=4)
    for _ in range(3):
        norm = whole.update(flow(whole.module, x).square().mean(), 0.1)
        # Texts are the same for all samples, as they are seeded by shape.
        norms = [parts.update((flow(parts.module, x)[k] ** 2).mean(), 0.1).item() for k in range(4)]
        assert [math.isnan(value) for value in norms] == [True, True, True, False]
        assert norms[-1] == pytest.approx(norm.item(), rel=1e-5)
    assert whole.updates == parts.updates == 3
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_checkpointed_blocks_give_equal_gradients_and_run_twice():
    x, calls = nano_latents(2, 3), list[int]()
    gradients = []
    for checkpointing in (False, True):
        trained = Trainable(network(), lr=1e-2)
        trained.prepare(checkpointing=checkpointing)
        net: Any = trained.module
        seen = list[int]()
        net.blocks[0].attn.o.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        flow(net, x).square().mean().backward()
        gradients.append([p.grad for p in trained.parameters])
        calls.append(len(seen))
        assert not any(CHECKPOINT_PREFIX in name for name in trained.export())
    assert calls == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_average_begins_where_it_is_told_to():
    net = nn.Linear(1, 1, bias=False)
    trained = Trainable(net, lr=0.1, ema=0.5, ema_after=2, warmup=1, floor=1.0)
    values = [net.weight.item()]
    for _ in range(4):
        trained.update(net(torch.ones(1, 1)).sum(), 0.0)
        values.append(net.weight.item())
    # 0.5 is beyond the ramp at the third update (4/13) and the fourth (5/14).
    third = values[2] + (values[3] - values[2]) * (1 - 4 / 13)
    fourth = third + (values[4] - third) * (1 - 5 / 14)
    assert trained.ema.weight.item() == pytest.approx(fourth, rel=1e-6)  # pyright: ignore


def test_average_on_the_host_is_the_average():
    both = [Trainable(network(), lr=1e-2, ema=0.9, ema_on_host=host) for host in (False, True)]
    x = nano_latents(2, 3)
    for each in both:
        for _ in range(3):
            each.update(flow(each.module, x).square().mean(), 0.1)
    assert same(both[0].ema.state_dict(), both[1].ema.state_dict())
    assert not same(both[1].ema.state_dict(), both[1].module.state_dict())


def test_terms_of_a_loss_are_sent_back_one_by_one():
    x = nano_latents(4, 3)
    whole, parts = Trainable(network(), lr=1e-2), Trainable(network(), lr=1e-2)
    sent = list[bool]()

    def terms():
        for k in range(4):
            yield (flow(parts.module, x)[k] ** 2).mean() / 4
            sent.append(parts.parameters[0].grad is not None)

    norm = whole.update(flow(whole.module, x).square().mean(), 0.1)
    assert parts.update(terms(), 0.1).item() == pytest.approx(norm.item(), rel=1e-5)
    assert sent == [True] * 4
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_state_of_an_unused_optimiser_is_not_touched_by_saving():
    trained, other = Trainable(network(), lr=1e-2), Trainable(network(), lr=1e-2)
    state = copy.deepcopy(trained.state_dict())
    assert not trained.optimizer.state
    other.load_state_dict(state)
    x = nano_latents(1, 3)
    for each in (trained, other):
        each.update(flow(each.module, x).square().mean(), 0.0)
    assert same(trained.module.state_dict(), other.module.state_dict())


# --- LoRA -----------------------------------------------------------------------------------------


def test_adaptation_begins_as_nothing_and_merges_into_the_names_that_were():
    pytest.importorskip("peft")
    x, plain = nano_latents(2, 3), network()
    before = flow(plain, x)
    names = list(plain.state_dict())
    frozen = copy.deepcopy(plain.state_dict())
    trained = Trainable(
        copy.deepcopy(plain), lr=0.05, warmup=1, ema=0.1, lora=Lora(rank=2, alpha=4)
    )
    torch.testing.assert_close(flow(trained.module, x), before)
    # q, k, v, o of two attentions and two layers of the MLP, in each block.
    assert len(trained.parameters) == NANO.model.layers * 10 * 2
    for _ in range(4):
        trained.update(flow(trained.module, x).square().mean(), 0.0)
    exported = trained.export()
    assert sorted(exported) == sorted(names)
    assert torch.equal(exported["patch_embed.weight"], frozen["patch_embed.weight"])
    plain.load_state_dict(exported)
    with torch.no_grad():
        torch.testing.assert_close(flow(plain, x), flow(trained.ema, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(flow(plain, x), before, atol=1e-3)


def test_merging_is_the_sum():
    state = {
        "a.base_layer.weight": seeded(3, 2), "a.base_layer.bias": seeded(3), "b": seeded(1),
        "a.lora_A.default.weight": seeded(1, 2, seed=1),
        "a.lora_B.default.weight": seeded(3, 1, seed=2),
    }  # fmt: skip
    plain = merged(state, 0.5)
    assert sorted(plain) == ["a.bias", "a.weight", "b"]
    added = 0.5 * seeded(3, 1, seed=2) @ seeded(1, 2, seed=1)
    torch.testing.assert_close(plain["a.weight"], seeded(3, 2) + added)


def test_without_peft_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"contextforcing\[train\]"):
        Trainable(network(), lr=0.1, lora=Lora(rank=1, alpha=1))


# --- resuming -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """``STEPS`` steps without a stop: metrics and weights by stage, made once."""
    made: dict[tuple[str, int], tuple[list[dict[str, Any]], dict[str, Tensor]]] = {}

    def run(name: str, steps: int = STEPS):
        if (name, steps) not in made:
            out, trained = tmp_path_factory.mktemp(name), stage(name)
            train(trained, out, steps=steps, engine=Engine(log_every=1))
            made[name, steps] = rows(out, name), weights_of(trained)
        return made[name, steps]

    return run


def test_killed_run_goes_on_bit_exactly(tmp_path, through):
    child = process(tmp_path, STEPS, 5, 8, "base")
    assert child.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("*-record.json"))
    (saved,) = (tmp_path / "base-checkpoint").iterdir()
    assert saved.name == "step-00000005"
    assert len(rows(tmp_path, "base")) == 8
    trained = stage("base")
    record = train(trained, tmp_path, steps=STEPS, engine=Engine(log_every=1))
    metrics, weights = through("base")
    assert record["resumed"] == 1
    assert rows(tmp_path, "base") == metrics
    assert same(weights_of(trained), weights)
    assert load_file(tmp_path / "base.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base-metrics.jsonl", "base-record.json", "base.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["causal-init", "teacher", "teacher-host", "dmd", "streaming"])
def test_stopped_run_goes_on_bit_exactly(name, tmp_path, through):
    steps = 4
    engine = Engine(log_every=1, stop=stops_after(2))
    with pytest.raises(StoppedError, match=r"after step 2; .*step-00000002 has it all"):
        train(stage(name), tmp_path, steps=steps, engine=engine)
    trained = stage(name)
    train(trained, tmp_path, steps=steps, engine=Engine(log_every=1))
    metrics, weights = through(name, steps)
    assert rows(tmp_path, name) == metrics
    assert same(weights_of(trained), weights)


def test_budget_in_seconds_goes_on_where_it_was(tmp_path):
    with pytest.raises(StoppedError):
        train(stage("base"), tmp_path, seconds=1e4, engine=Engine(stop=stops_after(2)))
    path = checkpoint.newest(tmp_path / "base-checkpoint")
    assert path is not None
    told = json.loads((path / checkpoint.RUN).read_text(encoding="utf-8"))
    assert 0 < told["position"]["seconds"] < 1e3
    told["position"]["seconds"] = 1e4
    (path / checkpoint.RUN).write_text(json.dumps(told), encoding="utf-8")
    record = train(stage("base"), tmp_path, seconds=1e4)
    assert record["steps"] == 2
    assert record["seconds"] >= 1e4


def test_checkpoint_of_another_run_is_refused(tmp_path):
    engine = Engine(stop=stops_after(1), identity={"preset": "a", "batch": 4})
    with pytest.raises(StoppedError):
        train(stage("base"), tmp_path, steps=4, engine=engine)
    with pytest.raises(ValueError, match=r"with batch=4, not 8; .*--fresh"):
        train(stage("base"), tmp_path, steps=4, engine=Engine(identity={"preset": "a", "batch": 8}))
    record = train(stage("base"), tmp_path, steps=2, engine=Engine(resume=False))
    assert record["resumed"] == 0


def test_newest_two_checkpoints_stay_and_halves_of_one_are_no_checkpoint(tmp_path):
    folder = checkpoint.folder_of(tmp_path, "base")
    with pytest.raises(StoppedError):
        train(stage("base"), tmp_path, steps=9, engine=Engine(save_every=1, stop=stops_after(5)))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000005"]
    half = folder / "step-00000006.part"
    half.mkdir()
    (half / checkpoint.RUN).write_text("{}", encoding="utf-8")
    assert checkpoint.newest(folder) == folder / "step-00000005"


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path, through):
    """FSDP2 on gloo, each process half of the batch; stopped and taken up again half way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        process(
            tmp_path, 4, 100, 0, "base", "dmd",
            RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_RUN_ID="test", **launched,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [child.wait() for child in children] == [0, 0]
    for name in ("base", "dmd"):
        metrics, weights = through(name, 4)
        curve = rows(tmp_path, name)
        assert len(curve) == len(metrics) == 4
        for two, one in zip(curve, metrics, strict=True):
            assert two == pytest.approx(one, rel=FP32, abs=1e-6)
        record = json.loads((tmp_path / f"{name}-record.json").read_text(encoding="utf-8"))
        assert (record["processes"], record["resumed"]) == (2, 1)
        kind = "student" if name == "dmd" else "net"
        stored = load_file(tmp_path / f"{name}.safetensors")
        for key, value in stored.items():
            # Stored as bfloat16, 8 bits of mantissa.
            torch.testing.assert_close(
                value.float(), weights[f"{kind}.ema.{key}"], rtol=2**-7, atol=1e-4
            )


def test_stage_that_cannot_be_spread_says_so():
    trained = Trainable(nn.Linear(1, 1), lr=0.1)
    with pytest.raises(ValueError, match="Linear has no blocks, which more than one process"):
        trained.prepare(sharded=True)


# --- divergence, stopping -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poison", "words"),
    [("loss", "loss nan"), ("gradient", "is not finite"), ("jump", "is beyond 50 times its best")],
)
def test_divergence_keeps_the_last_good_checkpoint(poison, words, tmp_path):
    trained = stage("base")
    whole_step, backward = trained.step, trained.trainables()["net"].update

    def poisoned(step: int, progress: float):
        metrics = dict(whole_step(step, progress))
        if step >= 3 and poison != "gradient":
            metrics["loss"] = torch.tensor(math.nan if poison == "loss" else 1e4)
        return metrics

    def update(loss: Any, progress: float) -> Tensor:
        late = trained.trainables()["net"].updates >= 3
        return backward(loss * math.nan if late and poison == "gradient" else loss, progress)

    trained.step, trained.trainables()["net"].update = poisoned, update
    engine = Engine(log_every=100, save_every=2)
    with pytest.raises(DivergedError, match=rf"{words}.*last good checkpoint is .*step-00000002;"):
        train(trained, tmp_path, steps=STEPS, engine=engine)
    stored = load_file(tmp_path / "base.safetensors")
    assert all(value.isfinite().all() for value in stored.values())
    assert (tmp_path / "base-checkpoint" / "step-00000002").is_dir()
    assert not list(tmp_path.glob("*-record.json"))


def test_divergence_in_the_last_step_is_seen_before_weights_are_written(tmp_path):
    trained = stage("base")
    trained.step = lambda step, progress: {"loss": torch.tensor(math.nan if step > 3 else 1.0)}
    with pytest.raises(DivergedError, match="at step 9; no checkpoint was written yet"):
        train(trained, tmp_path, steps=9, engine=Engine(log_every=100))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_asks_and_a_second_interrupt_interrupts(number):
    before = signal.getsignal(number)
    with stopping() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext():
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


# --- sinks ----------------------------------------------------------------------------------------


def test_lines_after_a_checkpoint_are_dropped(tmp_path):
    first = JsonLines(tmp_path / "m.jsonl")
    first.write({"step": 1, "loss": 0.5})
    position = first.position()
    first.write({"step": 2, "loss": 0.4})
    first.close()
    second = JsonLines(tmp_path / "m.jsonl", keep=position)
    second.write({"step": 2, "loss": None})
    second.close()
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


def test_boards_are_optional(tmp_path, monkeypatch):
    assert boards((), tmp_path, "base", first=0, about={}) == []
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"package wandb; pip install 'contextforcing\[train\]"):
        boards(("wandb",), tmp_path, "base", first=0, about={})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"contextforcing\[train\]"):
        boards(("tensorboard",), tmp_path, "base", first=0, about={})


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    (board,) = boards(("tensorboard",), tmp_path, "base", first=0, about={})
    board.write({"step": 1, "loss": 0.5, "norm": None})
    board.picture(1, torch.zeros(4, 4, 3, dtype=torch.uint8))
    board.close()
    (events,) = (tmp_path / "base-tensorboard").iterdir()
    written = events.read_bytes()
    assert b"loss" in written
    assert b"samples" in written
    assert b"norm" not in written


def test_contact_sheet_shows_moments_of_films_in_a_row():
    films = torch.zeros(5, 11, 3, 2, 3)
    films[1, 10] = 1.0
    sheet = contact_sheet(films)
    assert sheet.shape == (4 * 2, 6 * 3, 3)
    assert (sheet[2:4, 15:] == 255).all()
    assert sheet.sum() == 255 * 2 * 3 * 3
    latents = contact_sheet(torch.zeros(1, 2, 16, 2, 2))
    assert (latents == 128).all()
    with pytest.raises(ValueError, match="expected films"):
        contact_sheet(torch.zeros(2, 3, 4))


def test_samples_are_written_while_training(tmp_path, through):
    trained = stage("dmd")
    train(trained, tmp_path, steps=2, engine=Engine(samples_every=1))
    names = sorted(path.name for path in (tmp_path / "dmd-samples").iterdir())
    assert names == ["step-00000001.png", "step-00000002.png"]


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``cfmodel train`` at nano size, with random weights of codec and text encoder."""
    write_assets(tmp_path / "assets")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any):
        few = "--batch 4 --fill 1 --render 1 --capacity 8 --scripts 4 --assets assets --out out"
        line = ["train", *arguments, "--preset", "nano", "--device", "cpu", *few.split()]
        monkeypatch.setattr(sys, "argv", ["cfmodel", *map(str, line)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capsys.readouterr()

    return call


def test_verb_trains_stages_in_order_once(command):
    code, out, err = command("chunk", "causal-init", "--steps", 2, "--json", "--accumulate", 2)
    assert code == 0, err
    records = json.loads(out)
    assert set(records) == {"chunk", "causal-init"}
    assert records["chunk"]["run"]["steps"] == 2
    kept = sorted(path.name for path in Path("out").iterdir())
    assert kept == sorted(
        f"{name}{end}"
        for name in ("chunk", "causal-init")
        for end in ("-metrics.jsonl", "-record.json", ".safetensors")
    )
    written = Path("out/chunk.safetensors").stat().st_mtime_ns
    code, again, _ = command("chunk", "causal-init", "--steps", 2, "--json", "--accumulate", 2)
    assert (code, json.loads(again)) == (0, records)
    assert Path("out/chunk.safetensors").stat().st_mtime_ns == written


def test_verb_saves_and_exits_on_interrupt_and_goes_on(command, monkeypatch):
    from cfmodel.train.flow_stages import FlowStage

    step = FlowStage.step

    def interrupted(self: FlowStage, number: int, progress: float):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, progress)

    monkeypatch.setattr(FlowStage, "step", interrupted)
    code, out, err = command("chunk", "--steps", 5)
    assert (code, out) == (130, "")
    assert "stopped after step 3; out/chunk-checkpoint/step-00000003 has it all" in err
    monkeypatch.setattr(FlowStage, "step", step)
    code, out, err = command("chunk", "--steps", 5)
    assert code == 0, err
    assert out.startswith("chunk: 5 steps in ")
    assert [row["step"] for row in rows(Path("out"), "chunk")] == [1, 2, 3]


def test_verb_ends_with_three_where_the_loss_diverges(command, monkeypatch):
    from cfmodel.train.flow_stages import FlowStage

    monkeypatch.setattr(FlowStage, "step", lambda *_: {"loss": torch.tensor(math.inf)})
    code, out, err = command("chunk", "--steps", 5)
    assert (code, out) == (3, "")
    assert "loss inf" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bass", "--steps", 1), "unknown stage 'bass'; use codec"),
        (("chunk",), "no budget; give --seconds or --steps"),
        (("chunk", "--steps", 0), "a budget is not positive"),
        (("chunk", "chunk", "--steps", 1), "each may come once"),
        (("chunk", "--steps", 1, "--accumulate", 3), "batch=4 does not divide among 3 parts"),
        (("chunk", "--steps", 1, "--board", "paper"), "unknown board 'paper'"),
        (("causal-init", "--steps", 1), "no weights of the stage chunk, neither in"),
    ],
)
def test_verb_refuses_in_one_line(command, arguments, words):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("cfmodel: ")
    assert err.count("\n") == 1
    assert words in err
    assert not Path("out").exists()


def test_budgets_go_to_stages_in_order():
    budgets = plan(["chunk", "dmd"], [3.0, 4.0], None)
    assert [(stage, budget.seconds) for stage, budget in budgets.items()] == [
        ("chunk", 3.0),
        ("dmd", 4.0),
    ]
    with pytest.raises(ValueError, match="3 budgets for 2 stages"):
        plan(["chunk", "dmd"], [1.0] * 3, None)
