"""Losses in closed form, stop-gradients, and the loop's budget and divergence."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfmodel import cli
from cfmodel.train.loop import DivergedError, Engine, train
from cfmodel.train.losses import clean, dmd_gradient, dmd_loss, flow_loss, guided, noised
from cfmodel.train.state import Trainable

SHAPE = (2, 3, 4, 2, 2)


def _latents(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dmd_loss_carries_its_gradient_and_nothing_else() -> None:
    x, g = _latents(0).requires_grad_(), _latents(1).requires_grad_()
    dmd_loss(x, g).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, g.detach() / x.numel())
    assert g.grad is None


def test_dmd_gradient_is_the_analytic_one_between_gaussians() -> None:
    # For x0 ~ N(m, 1) the best clean estimate is m + a (xt - a m) / (a^2 + s^2), a = 1 - s.
    x, sigma = _latents(2), torch.full((2, 3), 0.4, dtype=torch.float64)
    xt = noised(x, _latents(3), sigma)

    def estimate(mean: float) -> Tensor:
        return mean + 0.6 * (xt - 0.6 * mean) / (0.36 + 0.16)

    got = dmd_gradient(x, estimate(1.0), estimate(-0.5))
    scale = (x - estimate(-0.5)).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(got * scale, torch.full_like(x, 1.5 * (1 - 0.36 / 0.52)))


def test_clean_inverts_noised_and_the_true_flow_has_no_loss() -> None:
    x0, eps = _latents(4).float(), _latents(5).float()
    sigma = torch.tensor([[0.1, 0.5, 0.9]]).expand(2, -1)
    torch.testing.assert_close(clean(noised(x0, eps, sigma), eps - x0, sigma), x0)
    assert flow_loss(eps - x0, x0, eps) == 0


def test_guidance_of_zero_is_the_conditional() -> None:
    a, b = _latents(6), _latents(7)
    torch.testing.assert_close(guided(a, b, 0.0), a)
    torch.testing.assert_close(guided(a, b, 2.0), 3 * a - 2 * b)


class _Stage:
    name = "toy"

    def __init__(self, losses: list[float] | None = None) -> None:
        net = nn.Linear(2, 1)
        nn.init.ones_(net.weight)  # far from what is learnt, whatever was drawn before
        self.trainable = Trainable(net, lr=0.1, ema=0.9, warmup=1)
        self.losses = losses

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        if self.losses is not None:
            return {"loss": torch.tensor(self.losses[min(step, len(self.losses) - 1)])}
        net = self.trainable.module
        loss = net(torch.ones(4, 2)).square().mean()
        self.trainable.update(loss, progress)
        return {"loss": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        return {}

    def save(self, out: Path, record: dict[str, object]) -> list[Path]:
        (out / "saved.json").write_text(json.dumps(record))
        return [out / "saved.json"]


def test_loop_stops_at_its_budget_and_learns(tmp_path: Path) -> None:
    stage = _Stage()
    record = train(stage, tmp_path, steps=40, engine=Engine(log_every=1))
    rows = (tmp_path / "toy-metrics.jsonl").read_text().splitlines()
    assert record["steps"] == len(rows) == 40
    assert json.loads(rows[-1])["loss"] < json.loads(rows[0])["loss"]
    trained, average = stage.trainable.module, stage.trainable.ema
    assert not torch.equal(next(trained.parameters()), next(average.parameters()))


def test_loop_refuses_no_budget_and_stops_on_divergence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budget"):
        train(_Stage(), tmp_path)
    with pytest.raises(DivergedError):
        train(_Stage([1.0, float("nan")]), tmp_path, steps=5, engine=Engine(log_every=1))
    assert not (tmp_path / "saved.json").exists()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("rolling-forcing", r"sample\.sampler='rolling'"),
        ("causvid", r"sample\.sampler='passes'"),
        ("ours-released", r"memory\.when='every-pass'"),
        ("commit-forcing", r"memory\.commit_reads='recent'"),
    ],
)
def test_ways_to_sample_that_are_not_trained_are_refused(row, field, monkeypatch, tmp_path, capsys):
    words = ["cfmodel", "train", "dmd", "--preset", f"nano/{row}", "--steps", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert re.search(field, capsys.readouterr().err)
