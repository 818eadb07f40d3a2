"""The one training loop. A stage is a ``Strategy``; it owns its networks and what a step does.

Budgets are seconds or steps, whichever ends first, so that a stage ends when its machine must be
given back. Metrics go to ``metrics.jsonl``; a loss that is not finite or explodes stops the run
and keeps the weights of the last check.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

CHECK_EVERY = 50
EXPLODED = 50.0


class DivergedError(RuntimeError):
    """The loss is not finite or grew beyond reason; the last good weights are kept."""


class Trainable:
    """A network with its optimiser, gradient clipping and moving average.

    Weights and moments are fp32; the forward runs under the caller's autocast. ``lr`` falls along
    a cosine from its peak to ``floor`` of it over the run, after a linear warm-up.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        clip: float = 1.0,
        ema: float = 0.0,
        warmup: int = 100,
        floor: float = 0.05,
    ) -> None:
        self.module = module
        self.lr, self.clip, self.decay = lr, clip, ema
        self.warmup, self.floor = warmup, floor
        self.updates = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        fused = self.parameters[0].is_cuda
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused
        )
        self.ema = copy.deepcopy(module).requires_grad_(False) if ema else module

    def update(self, loss: Tensor, progress: float) -> Tensor:
        """One optimiser step on ``loss``; the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        rate = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
        rate *= min(1.0, (self.updates + 1) / self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate
        self.optimizer.step()
        self.updates += 1
        if self.decay:
            self._average()
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        # Ramp the horizon so that the average forgets the initial weights.
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine: list[Tensor] = [p.detach() for p in self.module.parameters()]
        average: list[Tensor] = list(self.ema.parameters())
        torch._foreach_lerp_(average, mine, 1 - keep)  # pyright: ignore[reportPrivateUsage]
        for a, b in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            a.copy_(b)


class Strategy(Protocol):
    """One stage of training."""

    name: str

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """Does one update and returns scalars; ``loss`` is watched for divergence."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Held-out figures of the present weights."""
        ...

    def save(self, out: Path, record: dict[str, Any]) -> Iterable[Path]:
        """Writes the weights to keep, with ``record`` in their metadata."""
        ...


def train(
    strategy: Strategy,
    out: Path,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    log_every: int = CHECK_EVERY,
    save_every_s: float | None = None,
) -> dict[str, Any]:
    """Runs a stage to its budget, evaluates it and saves its weights into ``out``.

    Returns the record that is stored with the weights: budget spent, steps, last and held-out
    metrics.

    Raises:
        ValueError: no budget.
        DivergedError: the loss is not finite or exploded.
    """
    if steps is None and seconds is None:
        raise ValueError("no budget: give steps or seconds")
    out.mkdir(parents=True, exist_ok=True)
    started, step, last = time.monotonic(), 0, dict[str, float]()
    saved_at = started
    best = math.inf
    with (out / f"{strategy.name}-metrics.jsonl").open("a", encoding="utf-8") as sink:
        while True:
            elapsed = time.monotonic() - started
            progress = max(
                step / steps if steps is not None else 0.0,
                elapsed / seconds if seconds is not None else 0.0,
            )
            if progress >= 1:
                break
            metrics = strategy.step(step, progress)
            step += 1
            if step % log_every and step > 3:
                continue
            last = {name: float(value) for name, value in metrics.items()}
            row = {"step": step, "seconds": round(time.monotonic() - started, 2), **last}
            sink.write(json.dumps(row) + "\n")
            sink.flush()
            logger.info("%s %s", strategy.name, json.dumps(row))
            best = min(best, abs(last["loss"]) + 1e-3)
            if not math.isfinite(last["loss"]) or abs(last["loss"]) > EXPLODED * max(best, 1.0):
                raise DivergedError(f"{strategy.name}: loss {last['loss']} at step {step}")
            if save_every_s and time.monotonic() - saved_at > save_every_s:
                saved_at = time.monotonic()
                strategy.save(out, {"stage": strategy.name, "steps": step, "partial": True})
    # Before anything else can fail, keep what the budget bought.
    strategy.save(out, {"stage": strategy.name, "steps": step, "partial": True})
    record: dict[str, Any] = {
        "stage": strategy.name,
        "steps": step,
        "seconds": round(time.monotonic() - started, 1),
        "last": last,
        "evaluation": dict(strategy.evaluate()),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    strategy.save(out, record)
    (out / f"{strategy.name}-record.json").write_text(json.dumps(record, indent=1) + "\n")
    logger.info("%s done %s", strategy.name, json.dumps(record["evaluation"]))
    return record
