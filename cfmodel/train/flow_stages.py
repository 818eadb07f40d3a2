"""Flow matching on pools of clips: one stage, and what it is trained to do as an ``Objective``.

``base`` is bidirectional; causal objectives are in ``cfmodel.train.forcing``, the context teacher's
in ``cfmodel.train.teacher``.

Dims: B batch, F latent frames, G texts, S text tokens, E text width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.flow import shift_sigma
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.recorded import Recorded
from cfmodel.train.draws import Draws
from cfmodel.train.losses import flow_loss, noised
from cfmodel.train.pool import Units
from cfmodel.train.state import Lora, Trainable, write_weights

EMPTY_SHARE = 0.1
EVALUATIONS = 4

ObjectiveNet = Any
"""A ``VideoTransformer``, perhaps wrapped."""


class Objective(Protocol):
    """What a flow stage minimises."""

    def draw(self, units: Units, draws: Draws) -> Units:
        """What a pass is made of: noise levels, noisy latents and the like; no gradient."""
        ...

    def loss(self, net: ObjectiveNet, batch: Units) -> tuple[Tensor, Tensor]:
        """The loss of what was drawn, and the flow (B, F, C, X, Y) that it judges.

        A pure function of weights and tensors, which may be recorded; called under autocast.
        """
        ...

    def learn(self, batch: Units, v: Tensor) -> None:
        """Takes notice of the flow that was predicted, without gradient."""
        ...

    def figures(self, net: ObjectiveNet, units: Units, draws: Draws) -> dict[str, Tensor]:
        """Held-out figures of a batch; called under autocast, without gradient."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        ...


class Pool(Protocol):
    """Where clips come from."""

    @property
    def distinct(self) -> int:
        """Clips made so far."""
        ...

    def fill(self) -> None:
        """Makes the clips without which training must not begin."""
        ...

    def refill(self) -> None:
        """Makes new clips."""
        ...

    def read(self, batch: int) -> Units:
        """Random clips."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        ...


class FlowStage:
    """A network trained on clips of a pool, a tenth of them with empty texts.

    Args:
        name: of the stage, and of its weights file.
        objective: what is minimised.
        experiment: gives the sizes of the network.
        device: where all of it is.
        pool: of clips.
        held_out: makes units that no pool holds, for the figures.
        empty_SE: the embedded empty text.
        batch: clips that this process takes in at a time.
        lr: peak learning rate.
        init: weights to begin with; None is a random network.
        lora: train an adaptation of them instead of the weights themselves.
        refill_every: steps after which the pool takes in new clips, until it has shown ``clips``.
        clips: see there.
        compiled: compile the blocks.
        recorded: replay passes as CUDA graphs.
        seed: of weights and draws.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        experiment: Experiment,
        device: torch.device,
        pool: Pool,
        held_out: Callable[[], Units],
        empty_SE: Tensor,
        *,
        batch: int,
        lr: float,
        init: Mapping[str, Tensor] | None = None,
        lora: Lora | None = None,
        refill_every: int = 10,
        clips: int = 20_480,
        compiled: bool = False,
        recorded: bool = False,
        seed: int = 0,
    ) -> None:
        self.name, self.objective, self.experiment, self.device = (
            name,
            objective,
            experiment,
            device,
        )
        self.pool, self.held_out, self.batch = pool, held_out, batch
        self.refill_every, self.clips = refill_every, clips
        self.empty_SE = empty_SE.to(device)
        self.net = VideoTransformer(experiment.model, experiment.geometry)
        self.net.reset_parameters(seed)
        if init is not None:
            self.net.load_state_dict(dict(init))
        self.net.to(device)
        self.trainable = Trainable(self.net, lr=lr, ema=0.999, warmup=300, lora=lora)
        self.draws = Draws(device, seed)
        if compiled:
            self.net.compile_parts()
        self._recorded = recorded
        self._descent = Recorded(self._gradients, active=recorded)

    def begin(self) -> None:
        """Fills the pool."""
        self.pool.fill()

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One update, and now and then new clips."""
        if step % self.refill_every == 0 and self.pool.distinct < self.clips:
            self.pool.refill()
        units = self.pool.read(self.batch)
        empty = self.draws.chance(EMPTY_SHARE, len(units["text"]))[:, None, None, None]
        units["text"] = torch.where(empty, self.empty_SE, units["text"])
        batch = self.objective.draw(units, self.draws)
        if self._recorded:
            loss, v, gradients = self._descent(batch)
            norm = self.trainable.descend(gradients, progress)
        else:
            loss, v = self._passes(batch)
            norm = self.trainable.update(loss, progress)
        self.objective.learn(batch, v.detach())
        return {"loss": loss.detach(), "norm": norm}

    def _passes(self, batch: Units) -> tuple[Tensor, Tensor]:
        with self._mixed():
            return self.objective.loss(self.net, batch)

    def _gradients(self, batch: Units) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        loss, v = self._passes(batch)
        return loss.detach(), v.detach(), torch.autograd.grad(loss, self.trainable.parameters)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The averaged network's figures on held-out clips, and how many clips were shown."""
        draws, found = Draws(self.device, 1), dict[str, list[float]]()
        for _ in range(EVALUATIONS if self.device.type == "cuda" else 1):
            with self._mixed():
                each = self.objective.figures(self.trainable.ema, self.held_out(), draws)
            for name, value in each.items():
                found.setdefault(name, []).append(float(value))
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return {**means, "distinct_clips": float(self.pool.distinct)}

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged weights."""
        path = out / f"{self.name}.safetensors"
        write_weights(
            path, self.trainable.export(), config=self.experiment.to_json(), record=record
        )
        return [path]

    def trainables(self) -> dict[str, Trainable]:
        """The network."""
        return {"net": self.trainable}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: clips, random numbers, and what the objective has learnt."""
        return {
            "pool": self.pool.state_dict(),
            "draws": self.draws.state_dict(),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.pool.load_state_dict(state["pool"])
        self.draws.load_state_dict(state["draws"])
        self.objective.load_state_dict(state["objective"])


def half_traffic(x: Tensor) -> Tensor:
    """Latents as they enter a network in training: bfloat16 on CUDA, under autocast.

    The residual stream has the dtype of the latents; half of it is half of the memory traffic.
    """
    return x.to(torch.bfloat16) if x.is_cuda else x


class Bidirectional:
    """One noise level for all frames of a clip, every frame sees every other."""

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def draw(self, units: Units, draws: Draws) -> Units:
        """Noise levels and noise."""
        x0 = units["x0"]
        eps, sigma_B = draws.like(x0), shift_sigma(draws.uniform(len(x0)), self.shift)
        return {"x0": x0, "eps": eps, "sigma": sigma_B, "text": units["text"]}

    def loss(self, net: ObjectiveNet, batch: Units) -> tuple[Tensor, Tensor]:
        """Mean squared error of the flow."""
        x0, eps = batch["x0"], batch["eps"]
        sigma_BF = batch["sigma"][:, None].expand(-1, x0.shape[1])
        xt = half_traffic(noised(x0, eps, sigma_BF))
        v = net(xt, sigma_BF, net.text_kv(batch["text"])).v_BFCXY
        return flow_loss(v, x0, eps), v

    def learn(self, batch: Units, v: Tensor) -> None:
        """Nothing: it learns nothing on its way."""

    def figures(self, net: ObjectiveNet, units: Units, draws: Draws) -> dict[str, Tensor]:
        """The same loss."""
        return {"flow_loss": self.loss(net, self.draw(units, draws))[0]}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it learns nothing on its way."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing."""
