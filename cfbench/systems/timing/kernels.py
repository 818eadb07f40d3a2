"""The kernels that a chunk cannot do without, alone: what remains of its time is overhead.

Dims: L tokens of a chunk, K keys, H heads, D head dim, E inputs, O outputs.
"""

import logging
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from cfbench.systems.timing.base import settle
from cfmodel.config import Experiment, seed_for
from cfmodel.nn import attention
from cfmodel.nn.fast import Fp8Linear, LinearGelu, to_fp8

log = logging.getLogger(__name__)

ROUNDS, CALLS = 5, 20
WARM = 3


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a call: the median of rounds of some calls one after the other."""
    for _ in range(WARM):
        call()
    found: list[float] = []
    for _ in range(ROUNDS):
        settle(device)
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        settle(device)
        found.append(1000 * (time.perf_counter() - began) / CALLS)
    return median(found)


class Drawn:
    """Random tensors and layers on a device, in the dtype that kernels are timed in."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._generator = torch.Generator(device).manual_seed(seed_for("speed", "kernels"))

    def __call__(self, *shape: int) -> Tensor:
        """Unit Gaussian numbers."""
        return torch.randn(shape, generator=self._generator, device=self.device).to(self.dtype)

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A layer."""
        layer = nn.Linear(inputs, outputs, device=self.device, dtype=self.dtype)
        layer.weight.copy_(self(outputs, inputs) * inputs**-0.5)
        return layer


def backends(device: torch.device) -> dict[str, attention.AttentionFn]:
    """Attention that runs here, by name."""
    if device.type != "cuda":
        return {"sdpa": attention.sdpa}
    name, best = attention.resolve("auto")
    return {"cudnn": attention.cudnn, name: best}


@torch.no_grad()
def attention_ms(experiment: Experiment, keys: dict[str, int], device: torch.device) -> Any:
    """Milliseconds of one layer's attention over as many keys, by backend and name of the keys."""
    model, geometry, draw = experiment.model, experiment.geometry, Drawn(device)
    head = (model.heads, model.head_dim)
    q = draw(1, geometry.chunk * geometry.tokens_per_frame, *head)
    told: dict[str, dict[str, float]] = {}
    for backend, attend in backends(device).items():
        told[backend] = {}
        for name, count in keys.items():
            k, v = draw(1, count, *head), draw(1, count, *head)
            told[backend][name] = timed(lambda a=attend, k=k, v=v: a(q, k, v, None), device)
    return told


@torch.no_grad()
def linear_ms(experiment: Experiment, device: torch.device) -> dict[str, float]:
    """Milliseconds of one layer's matrix products, exact and in eight bits."""
    model, geometry, draw = experiment.model, experiment.geometry, Drawn(device)
    width, ffn = model.width, model.ffn
    tokens = geometry.chunk * geometry.tokens_per_frame
    told: dict[str, float] = {}
    shapes = {"qkv": (width, 3 * width), "o": (width, width), "up": (width, ffn)}
    for name, (inputs, outputs) in {**shapes, "down": (ffn, width)}.items():
        x, layer = draw(tokens, inputs), draw.linear(inputs, outputs)
        told[name] = timed(lambda f=layer, x=x: f(x), device)
        for kind, by_row in (("fp8", True), ("fp8-tensor", False)):
            try:
                told[f"{name} {kind}"] = timed(_eight(layer, x, by_row), device)
            except RuntimeError as error:
                log.warning("no %s product of %s: %s", kind, name, error)
    up, x = draw.linear(width, ffn), draw(tokens, width)
    gelu, joined = nn.GELU(approximate="tanh"), LinearGelu(up)
    told["up, then gelu"] = timed(lambda: gelu(up(x)), device)
    told["up with gelu"] = timed(lambda: joined(x), device)
    return told


def _eight(layer: nn.Linear, x_LE: Tensor, by_row: bool) -> Callable[[], Tensor]:
    """The eight-bit product of inputs that have been made."""
    small, dtype = Fp8Linear(layer, by_row), x_LE.dtype
    numbers, scale = to_fp8(x_LE, by_row)
    return lambda: small.multiply(numbers, scale, dtype)


def floor_ms(
    experiment: Experiment, attend: dict[str, float], linear: dict[str, float], kind: str = ""
) -> float:
    """Milliseconds of a chunk that did nothing but attention and matrix products.

    ``attend`` is one layer's, over the ``memory`` and the ``text``, ``linear`` of ``linear_ms``;
    ``kind`` of products is nothing, or `` fp8`` with a blank in front.
    """
    each = linear[f"qkv{kind}"] + 3 * linear[f"o{kind}"]
    each += linear[f"up{kind}"] + linear[f"down{kind}"] + attend["memory"] + attend["text"]
    return (len(experiment.sample.steps) + 1) * experiment.model.layers * each
