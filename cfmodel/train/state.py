"""What a stage trains: a network with optimiser, moving average, accumulation, LoRA and shards.

``Trainable`` is built by its stage; the loop then prepares it for how the run is made: sharded over
processes, with activation checkpointing, with micro-batches. Preparing never changes a number
beyond rounding.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cfmodel.config import seed_for
from cfmodel.devices import world
from cfmodel.io.weights import save_weights
from cfmodel.nn.transformer import VideoTransformer

RAMP = 10
"""Updates over which a moving average forgets the weights that it began with."""
CHECKPOINT_PREFIX = "_checkpoint_wrapped_module."
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adaptation: ``W + alpha / rank * B A``, A and B trained alone.

    Args:
        rank: inner size.
        alpha: scale, over rank.
        targets: endings of the names of linear layers.

    Source: Hu et al., arXiv:2106.09685; the released context teacher has rank 128, alpha 128 on
    q, k, v, o, ffn.0 and ffn.2.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")


def lr_share(progress: float, updates: int, *, warmup: int, floor: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to ``floor``.

    Args:
        progress: of the run, in [0, 1].
        updates: done so far.
        warmup: updates until the peak.
        floor: share at the end; 1 is a constant rate.

    Example:
        >>> lr_share(0.0, 0, warmup=4, floor=0.2)
        0.25
        >>> lr_share(1.0, 100, warmup=4, floor=0.2)
        0.2
        >>> lr_share(0.7, 100, warmup=4, floor=1.0)
        1.0
    """
    share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    return share * min(1.0, (updates + 1) / warmup)


class Trainable:
    """A network with its optimiser, gradient clipping and moving average.

    Weights and moments are fp32; the forward runs under the caller's autocast.

    Args:
        module: is trained in place: what requires gradients of it, or its new LoRA layers alone.
        lr: peak learning rate; see ``lr_share``.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: bound of the gradient's norm.
        ema: decay of the moving average; 0 keeps none.
        ema_after: updates during which the average is the weights themselves.
        ema_on_host: keep the average in host memory; every update then copies the weights there.
        warmup: see ``lr_share``.
        floor: see ``lr_share``.
        lora: train an adaptation instead of the weights.

    Attributes:
        ema: the averaged network; ``module`` itself without an average.
        updates: done so far.
        rate: learning rate of the last of them.
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
        ema_after: int = 0,
        ema_on_host: bool = False,
        warmup: int = 100,
        floor: float = 0.05,
        lora: Lora | None = None,
    ) -> None:
        self.module = module
        self.lr, self.clip, self.decay, self.decay_after = lr, clip, ema, ema_after
        self.warmup, self.floor = warmup, floor
        self.updates, self.rate = 0, 0.0
        self.lora = lora
        self._betas, self._weight_decay = betas, weight_decay
        self._accumulate, self._pending = 1, 0
        if lora is not None:
            add_lora(module, lora)
        self.ema = copy.deepcopy(module).requires_grad_(False) if ema else module
        self._on_host = bool(ema) and ema_on_host
        if self._on_host:
            self.ema.cpu()
        self._bind()

    def _bind(self) -> None:
        """Takes hold of the parameters as they are now.

        They are looked up once: between a pass and its end a sharded module names whole ones.
        """
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.names = [name.replace(CHECKPOINT_PREFIX, "") for name, _ in named]
        self.parameters = [p for _, p in named]
        averages = {
            name.replace(CHECKPOINT_PREFIX, ""): p for name, p in self.ema.named_parameters()
        }
        self._averages = [averages[name] for name in self.names]
        first = self.parameters[0]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.lr, betas=self._betas, weight_decay=self._weight_decay,
            fused=first.is_cuda,
        )  # fmt: skip
        self._finite = torch.ones((), dtype=torch.bool, device=first.device)

    def prepare(
        self, *, accumulate: int = 1, checkpointing: bool = False, sharded: bool = False
    ) -> None:
        """Makes ready for a run; called once, before the first update.

        Args:
            accumulate: calls of ``update`` that make one step of the optimiser.
            checkpointing: keep no activations inside a block, compute them again instead.
            sharded: spread weights, gradients, moments and average over all processes (FSDP2).

        Raises:
            ValueError: a network without blocks cannot do what is asked for.
        """
        if accumulate < 1:
            raise ValueError(f"accumulate={accumulate}: expected 1 or more")
        self._accumulate = accumulate
        if checkpointing:
            checkpoint_blocks(self.module)
        if sharded:
            shard(self.module)
            if self.ema is not self.module:
                shard(self.ema)
        if checkpointing or sharded:
            self._bind()

    def update(self, loss: Tensor | Iterable[Tensor], progress: float) -> Tensor:
        """One optimiser step on ``loss``, or its share of one; the gradient's norm before clipping.

        With micro-batches the step is on the mean of their losses, and the norm is NaN until the
        last of them.

        Args:
            loss: a scalar, or the terms of one, of which each is sent back before the next is made.
            progress: of the run, in [0, 1].
        """
        for term in (loss,) if isinstance(loss, Tensor) else loss:
            (term / self._accumulate).backward()
        self._pending += 1
        if self._pending < self._accumulate:
            return torch.full((), math.nan, device=self.parameters[0].device)
        self._pending = 0
        return self._descend(progress)

    def descend(self, gradients: Iterable[Tensor], progress: float) -> Tensor:
        """The same with gradients that are known, in the order of ``parameters``, in one batch."""
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        return self._descend(progress)

    def _descend(self, progress: float) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self._finite &= norm.isfinite()
        share = lr_share(progress, self.updates, warmup=self.warmup, floor=self.floor)
        self.rate = self.lr * share
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        # Freed at once: another network's update comes next.
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        if self.decay:
            self._average()
        return norm

    @property
    def is_finite(self) -> bool:
        """Whether the gradients of all updates were; waits for the device."""
        return bool(self._finite)

    @torch.no_grad()
    def _average(self) -> None:
        # Ramp the horizon so that the average forgets the initial weights.
        keep = min(self.decay, (1 + self.updates) / (RAMP + self.updates))
        if self.updates <= self.decay_after:
            keep = 0.0
        # Shards alone: an average of shards is the shard of the average.
        mine, average = [_local(p) for p in self.parameters], [_local(p) for p in self._averages]
        if self._on_host:
            # One at a time: a second set of weights on the host would serve nothing.
            for a, p in zip(average, mine, strict=True):
                a.lerp_(p.cpu(), 1 - keep)
        else:
            torch._foreach_lerp_(average, mine, 1 - keep)  # pyright: ignore[reportPrivateUsage]
        for a, b in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            a.copy_(b)

    def export(self) -> dict[str, Tensor]:
        """Averaged weights by the network's own names, whole, on the CPU, adaptation merged.

        Every process must call it; all but the first get an empty dictionary.
        """
        state = dict[str, Tensor]()
        for name, value in self.ema.state_dict().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if world().rank == 0:
                state[name] = whole.detach().cpu()
        return state if self.lora is None else merged(state, self.lora.alpha / self.lora.rank)

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on changing, as tensors that may be read into in place.

        A parameter that was never updated has zero moments and zero steps, which is what the
        optimiser would give it; asking the optimiser itself would count a step that was not made.
        """
        state: dict[str, Any] = {
            "module": self.module.state_dict(),
            "updates": torch.tensor(self.updates),
            "rate": torch.tensor(self.rate, dtype=torch.float64),
            "exp_avg": {}, "exp_avg_sq": {}, "step": {},
        }  # fmt: skip
        if self.ema is not self.module:
            state["ema"] = self.ema.state_dict()
        for name, p in zip(self.names, self.parameters, strict=True):
            held = self.optimizer.state.get(p, {})
            for key in ("exp_avg", "exp_avg_sq"):
                state[key][name] = held[key] if held else torch.zeros_like(p.detach())
            state["step"][name] = held["step"] if held else torch.zeros(())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave, whose moments it takes over."""
        self.module.load_state_dict(state["module"])
        if self.ema is not self.module:
            self.ema.load_state_dict(state["ema"])
        self.updates, self.rate = int(state["updates"]), float(state["rate"])
        for name, p in zip(self.names, self.parameters, strict=True):
            steps = state["step"][name]
            # A fused optimiser counts on the device, any other on the CPU.
            self.optimizer.state[p] = {
                "step": steps.to(p.device if p.is_cuda else "cpu", torch.float32),
                "exp_avg": state["exp_avg"][name],
                "exp_avg_sq": state["exp_avg_sq"][name],
            }


def _local(p: Tensor) -> Tensor:
    return p.to_local() if isinstance(p, DTensor) else p.detach()


def _blocks(module: nn.Module, purpose: str) -> nn.ModuleList:
    if not isinstance(module, VideoTransformer):
        raise ValueError(
            f"{type(module).__name__} has no blocks, which {purpose} needs; train it without"
        )
    return module.blocks


def checkpoint_blocks(module: nn.Module) -> None:
    """Wraps every block so that its activations are computed again in the backward pass.

    Raises:
        ValueError: the network is no ``VideoTransformer``.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = _blocks(module, "activation checkpointing")
    for k, block in enumerate(blocks):
        # No block draws random numbers.
        blocks[k] = checkpoint_wrapper(block, preserve_rng_state=False)


def shard(module: nn.Module) -> None:
    """Spreads a network over all processes, a block at a time, in place.

    Keys and values of texts are made outside their block's pass, so they are units of their own.
    Weights are gathered in fp32 and cast by the caller's autocast, as in one process: the numbers
    stay the same. They are given back after every pass: kept whole, they would be stale after the
    optimiser's next step wherever a pass without gradient came before it.

    Raises:
        ValueError: the network is no ``VideoTransformer``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    blocks = _blocks(module, "more than one process")
    kind = next(module.parameters()).device.type
    mesh = init_device_mesh(kind, (world().size,))
    for block in blocks:
        cross: Any = block.cross
        fully_shard([cross.k, cross.norm_k, cross.v], mesh=mesh, reshard_after_forward=True)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(module, "text_kv")


def add_lora(module: nn.Module, lora: Lora) -> None:
    """Adds an adaptation that begins as no change, and freezes everything else.

    Raises:
        ValueError: peft is not installed, or no layer has a name that is asked for.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            "LoRA needs the package peft; pip install 'contextforcing[train]'"
        ) from error
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0
    )  # pyright: ignore[reportCallIssue]
    peft.inject_adapter_in_model(config, module)
    for name, p in module.named_parameters():
        if name.endswith(DOWN):
            generator = torch.Generator().manual_seed(seed_for("lora", name))
            drawn = torch.empty(p.shape).uniform_(-1, 1, generator=generator)
            p.data.copy_(drawn * p.shape[1] ** -0.5)


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights with their adaptation added, under the names that they had without one.

    Args:
        state: of a network with LoRA layers.
        scale: alpha over rank.
    """
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith((DOWN, UP)):
            continue
        layer, _, leaf = name.partition(BASE)
        if leaf == "weight":
            delta = state[layer + UP].float() @ state[layer + DOWN].float()
            value = value + (scale * delta).to(value.dtype)
        weights[f"{layer}.{leaf}" if leaf else name] = value
    return weights


def local_rows(total: int, parts: Sequence[int], what: str) -> int:
    """Rows of one micro-batch of one process.

    Args:
        total: rows of a step, over all processes and micro-batches.
        parts: numbers of processes and of micro-batches.
        what: name of the rows, for the message.

    Raises:
        ValueError: they do not divide equally.

    Example:
        >>> local_rows(64, (2, 4), "batch")
        8
    """
    count = math.prod(parts)
    if total % count:
        raise ValueError(
            f"{what}={total} does not divide among {count} parts ({' x '.join(map(str, parts))}); "
            f"use a multiple of {count}"
        )
    return total // count


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Writes a stage's weights file, in the first process alone.

    Args:
        path: file.
        tensors: of ``Trainable.export``, and what else goes with them.
        config: ``Experiment.to_json()``.
        record: how they were trained.
    """
    if world().rank == 0:
        save_weights(path, tensors, config=config, record=record)
