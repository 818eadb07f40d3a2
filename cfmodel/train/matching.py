"""Distribution matching on a student's own films: stages ``dmd``, ``cdmd`` and ``streaming``.

They differ in how films are rolled out and in what the teacher sees (``cfmodel.train.films``,
``cfmodel.train.streams``).

Dims: B films, F latent frames, S text tokens, E text width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.flow import per_frame, shift_sigma
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.recorded import Recorded
from cfmodel.train.draws import Draws
from cfmodel.train.films import Film, Films
from cfmodel.train.flow_stages import half_traffic
from cfmodel.train.losses import dmd_gradient, dmd_loss, flow_loss, guided
from cfmodel.train.state import Trainable, write_weights
from cfmodel.train.teacher import score_flow

SIGMA_RANGE = (0.02, 0.98)
SHOWN = 4
PROGRAMS = 32
"""Programs that the compiler may make of a block: it is run with and without gradient, memory and
mask, in float32 and bfloat16. Beyond its default, 8, blocks would run eagerly without an error."""

Part = Literal["rollout", "student", "critic"]
Clock = Callable[[Part], AbstractContextManager[None]]
"""Goes around a part of a step, to time it."""


def untimed(part: Part) -> AbstractContextManager[None]:
    """No clock."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Numbers of a distribution-matching stage.

    Args:
        guidance: weight w of ``cond + w (cond - uncond)`` of the teacher; both see the context.
        opening_guidance: the same where beginnings of films have a teacher of their own; None is
            no other.
        negative: text of the latter; the release gives Wan's list of flaws in English here.
        shift: flow shift of the noise levels at which films are scored.
        lr: of the student.
        critic_lr: of the critic.
        betas: of the student's optimiser.
        critic_betas: of the critic's.
        weight_decay: of both.
        clip: of both gradients' norms.
        ema: of the student.
        every: batches of films from one student update to the next.
        critic_updates: critic updates on each batch, each at fresh noise.
        ema_on_host: see ``Trainable``.
        half_teacher: keep the teacher in bfloat16, in which its passes on CUDA are made anyway; its
            time embedding is rounded too, as in sampling.
    """

    guidance: float
    shift: float
    lr: float
    opening_guidance: float | None = None
    negative: str = ""
    critic_lr: float
    betas: tuple[float, float] = (0.0, 0.99)
    critic_betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.01
    clip: float = 2.0
    ema: float = 0.99
    every: int = 1
    critic_updates: int = 3
    ema_on_host: bool = False
    half_teacher: bool = False


def score(net: Any, film: Film, xt: Tensor, sigma_B: Tensor, text: Tensor) -> Tensor:
    """The flow (B, 21, C, X, Y), float32, of the noisy target, with the film's context if any."""
    if film.context is None:
        sigma_BF = sigma_B[:, None].expand(-1, xt.shape[1])
        return net(half_traffic(xt), sigma_BF, net.text_kv(text)).v_BFCXY.float()
    return score_flow(net, torch.cat([film.context, xt], 1), sigma_B, text, film.valid)


class MatchingStage:
    """Student against teacher and critic, on films that the student rolls out itself.

    Every iteration rolls out a batch of films. The critic learns from it ``critic_updates`` times;
    every ``every``-th batch is made with gradients and updates the student first.

    Args:
        name: of the stage, and of its weights file.
        experiment: of the student: its model, memory and sampler.
        device: where all of it is.
        films: where films come from.
        empty_SE: the embedded empty text.
        numbers: see ``Matching``.
        student: weights to begin with.
        teacher: weights of the teacher, and of the critic to begin with.
        opener: weights of another teacher, without context, for targets that begin a film.
        compiled: compile the blocks.
        recorded: replay passes that carry no gradient to the student as CUDA graphs.
        decode: pixels (B, R, 3, Y, X) of latents, for samples.
        seed: of the draws.
        clock: goes around the parts of each step.

    Source: arXiv:2602.06028 sections 6 and 7; there ``every`` is 5, ``critic_updates`` 1, and the
    critic never sees the batch that the student learns from.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        device: torch.device,
        films: Films,
        empty_SE: Tensor,
        numbers: Matching,
        *,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        opener: Mapping[str, Tensor] | None = None,
        compiled: bool = False,
        recorded: bool = False,
        decode: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        clock: Clock = untimed,
    ) -> None:
        self._clock = clock
        if compiled:
            # Imported here: it takes seconds.
            from torch._dynamo import config

            config.recompile_limit = max(config.recompile_limit, PROGRAMS)
        self.name, self.experiment, self.device = name, experiment, device
        self.films, self.numbers, self._compiled = films, numbers, compiled
        self.empty_SE = empty_SE.to(device)
        n = numbers
        self.student = Trainable(
            self._net(student), lr=n.lr, betas=n.betas, ema=n.ema, ema_on_host=n.ema_on_host,
            warmup=20, clip=n.clip, weight_decay=n.weight_decay,
        )  # fmt: skip
        self.critic = Trainable(
            self._net(teacher), lr=n.critic_lr, betas=n.critic_betas, warmup=20, clip=n.clip,
            weight_decay=n.weight_decay,
        )  # fmt: skip
        # Its weights carry no gradient because it runs without one; asking for none as well would
        # make it another program to the compiler than the critic.
        self.teacher = self._teacher(teacher)
        self.opener = None if opener is None else self._teacher(opener)
        self.draws = Draws(device, seed)
        self._recorded = recorded
        self._judge = Recorded(self._direction, active=recorded)
        self._descent = Recorded(self._gradients, active=recorded)
        self._decode, self._seen = decode, torch.zeros(0)

    def _net(self, state: Mapping[str, Tensor]) -> VideoTransformer:
        # Weights of its own would be drawn for nothing, which takes a while at 1.3 B.
        with torch.device("meta"):
            net = VideoTransformer(self.experiment.model, self.experiment.geometry)
        net.to_empty(device=self.device)
        net.load_state_dict(dict(state))
        if self._compiled:
            net.compile_parts()
        return net

    def _teacher(self, state: Mapping[str, Tensor]) -> VideoTransformer:
        net = self._net(state)
        return net.to(torch.bfloat16) if self.numbers.half_teacher else net

    def begin(self) -> None:
        """Nothing to fill."""

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One batch of films: perhaps a student update, then the critic's updates."""
        mine = step % self.numbers.every == 0
        with self._mixed(self.device.type == "cuda"):
            with self._clock("rollout"):
                film = self.films.make(self.student.module, progress, grad=mine)
            metrics = dict[str, Tensor]()
            if mine:
                with self._clock("student"):
                    metrics |= self._student_step(film, progress)
            # Whatever hangs on the student's gradient is let go before the critic needs the room.
            film = film._replace(target=film.target.detach(), terms=None)
            self._seen = film.target[:SHOWN]
            with self._clock("critic"):
                for _ in range(self.numbers.critic_updates):
                    metrics |= self._critic_step(film, progress)
            return metrics

    def _mixed(self, enabled: bool) -> torch.autocast:
        # Uncached: the networks change between passes, and with them their weights' bf16 copies.
        return torch.autocast(self.device.type, torch.bfloat16, enabled, cache_enabled=False)

    def _noised(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise level of each film (B,), noise, and the noisy target."""
        sigma_B = shift_sigma(self.draws.uniform(len(x0)), self.numbers.shift).clamp(*SIGMA_RANGE)
        eps, sigma = self.draws.like(x0), per_frame(sigma_B[:, None])
        return sigma_B, eps, (1 - sigma) * x0 + sigma * eps

    def _student_step(self, film: Film, progress: float) -> dict[str, Tensor]:
        x0 = film.target
        with torch.no_grad():
            sigma_B, _, xt = self._noised(x0)
            gradient = self._judge(film._replace(target=x0.detach(), terms=None), xt, sigma_B)
        loss = dmd_loss(x0, gradient)
        if film.terms is not None:
            loss = film.terms(gradient / gradient.numel())
        norm = self.student.update(loss, progress)
        return {"dmd": gradient.abs().mean(), "student_norm": norm, "std": x0.detach().std()}

    def _critic_step(self, film: Film, progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            sigma_B, eps, xt = self._noised(film.target)
        if self._recorded:
            loss, gradients = self._descent(film, xt, sigma_B, eps)
            norm = self.critic.descend(gradients, progress)
        else:
            loss = self._miss(film, xt, sigma_B, eps)
            norm = self.critic.update(loss, progress)
        return {"loss": loss.detach(), "critic_norm": norm}

    @torch.no_grad()
    def _direction(self, film: Film, xt: Tensor, sigma_B: Tensor) -> Tensor:
        """Where the student's latents should not go, by critic and teacher."""
        sigma, numbers = per_frame(sigma_B[:, None]), self.numbers

        def clean(net: Any, film: Film, text: Tensor) -> Tensor:
            return xt - sigma * score(net, film, xt, sigma_B, text)

        teacher, seen, guidance = self.teacher, film, numbers.guidance
        if film.opening and self.opener is not None:
            teacher = self.opener
            guidance = guidance if numbers.opening_guidance is None else numbers.opening_guidance
            seen = Film(film.target, film.text[:, -film.target.shape[1] :])
        empty = self.empty_SE.expand_as(seen.text)
        with self._mixed(self.device.type == "cuda" or numbers.half_teacher):
            cond, uncond = clean(teacher, seen, seen.text), clean(teacher, seen, empty)
        real = guided(cond, uncond, guidance)
        return dmd_gradient(film.target, clean(self.critic.module, film, film.text), real)

    def _miss(self, film: Film, xt: Tensor, sigma_B: Tensor, eps: Tensor) -> Tensor:
        v = score(self.critic.module, film, xt, sigma_B, film.text)
        return flow_loss(v, film.target, eps)

    def _gradients(self, film: Film, *noisy: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = self._miss(film, *noisy)
        return loss.detach(), torch.autograd.grad(loss, self.critic.parameters)

    def evaluate(self) -> dict[str, float]:
        """What was spent: updates of each network and latents generated."""
        return {
            "student_updates": float(self.student.updates),
            "critic_updates": float(self.critic.updates),
            "latents_generated": float(self.films.latents),
        }

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged student."""
        path = out / f"{self.name}.safetensors"
        write_weights(path, self.student.export(), config=self.experiment.to_json(), record=record)
        return [path]

    def samples(self) -> Tensor:
        """Films of the last step: pixels if there is a decoder, else latents."""
        return self._seen if self._decode is None else self._decode(self._seen)

    def trainables(self) -> dict[str, Trainable]:
        """Student and critic."""
        return {"student": self.student, "critic": self.critic}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: random numbers, and the films in work."""
        return {"draws": self.draws.state_dict(), "films": self.films.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.draws.load_state_dict(state["draws"])
        self.films.load_state_dict(state["films"])
