"""Stage ``dmd``: distribution matching on the student's own rollouts (stage 1, local).

Dims: B batch, F latent frames, G chunks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfmodel.config import Experiment, seed_for
from cfmodel.flow import FewStep, add_noise, shift_sigma, x0_from_v
from cfmodel.io.weights import save_weights
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.transformer import TextKV, VideoTransformer
from cfmodel.rollout import commit_chunk, prepare_views
from cfmodel.train.loop import Trainable
from cfmodel.train.losses import clean, dmd_gradient, dmd_loss, flow_loss, guided, noised

SIGMA_RANGE = (0.02, 0.98)


def student_rollout(
    net: VideoTransformer,
    memory: SlotMemory,
    text: TextKV,
    noise: torch.Generator,
    *,
    flow: FewStep,
    exit_step: int,
    chunks: int,
    shape: tuple[int, ...],
    grad: bool,
) -> Tensor:
    """Latents B F C X Y of the student's own film; each chunk stops at ``exit_step``.

    Gradient flows through the exit step alone: earlier steps, the memory and its clean commit
    pass carry none.

    Source: Self Forcing, as in arXiv:2602.06028 section 6.
    """
    device = noise.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    films = []
    for chunk in range(chunks):
        mine = text.select(chunk)
        with torch.no_grad():
            views = prepare_views(net, memory, shape[1])
        x0 = torch.zeros(shape, device=device)
        for step in range(exit_step + 1):
            sigma = flow.sigmas[step]
            xt = add_noise(x0, torch.randn(shape, generator=noise, device=device), sigma)
            sigma_BF = torch.full(shape[:2], sigma, device=device)
            with torch.set_grad_enabled(grad and step == exit_step):
                v = net(xt.to(dtype), sigma_BF, mine, context=views).v_BFCXY
                x0 = x0_from_v(xt, v.float(), sigma)
        films.append(x0)
        if chunk + 1 < chunks:
            with torch.no_grad():
                commit_chunk(net, memory, x0.detach().to(dtype), _detached(mine), views)
    return torch.cat(films, 1)


def _detached(text: TextKV) -> TextKV:
    return TextKV(tuple(k.detach() for k in text.k), tuple(v.detach() for v in text.v))


class DmdStage:
    """Student against teacher and critic, on films that the student rolls out itself.

    Every iteration rolls out a batch of films. The critic learns from it ``critic_updates`` times,
    each at fresh noise; every ``every``-th batch is made with gradients and updates the student
    first.

    Args:
        texts: (N, G, S, E) embedded captions of N films, one a chunk.
        guidance: weight w of ``cond + w (cond - uncond)``.

    Source: arXiv:2602.06028 section 6; there ``every`` is 5 and ``critic_updates`` 1.
    """

    name = "dmd"

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        texts: Tensor,
        empty_SE: Tensor,
        *,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        batch: int = 192,
        every: int = 1,
        critic_updates: int = 3,
        guidance: float = 2.0,
        lr: float = 2e-4,
        critic_lr: float = 4e-4,
        teacher_shift: float = 1.0,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        self.experiment, self.device, self.texts = experiment, device, texts
        self.batch, self.every, self.critic_updates = batch, every, critic_updates
        self.guidance, self.teacher_shift, self._compiled = guidance, teacher_shift, compiled
        self.empty_SE = empty_SE.to(device)
        self.chunks = texts.shape[1]
        self.flow = FewStep.from_config(experiment.sample)
        self.student = Trainable(
            self._net(student), lr=lr, betas=(0.0, 0.99), ema=0.99, warmup=20, clip=2.0
        )
        self.critic = Trainable(
            self._net(teacher), lr=critic_lr, betas=(0.0, 0.99), warmup=20, clip=2.0
        )
        self.teacher = self._net(teacher).requires_grad_(False)
        self._random = torch.Generator(device=device).manual_seed(seed)
        self._choice = torch.Generator().manual_seed(seed_for("dmd", seed))
        self.latents = 0

    def _net(self, state: Mapping[str, Tensor]) -> VideoTransformer:
        net = VideoTransformer(self.experiment.model, self.experiment.geometry)
        net.load_state_dict(dict(state))
        if self._compiled:
            # All blocks are one piece of code, so this compiles once for each kind of pass.
            for block in net.blocks:
                block.compile()
        return net.to(self.device)

    def _text(self) -> Tensor:
        pick = torch.randint(len(self.texts), (self.batch,), generator=self._choice)
        return self.texts[pick].to(self.device).float()

    def _film(self, text: Tensor, *, grad: bool) -> Tensor:
        size, model = self.experiment.geometry, self.experiment.model
        net: Any = self.student.module
        memory = SlotMemory(
            self.experiment.memory, size, model, batch=self.batch, device=self.device,
            dtype=torch.bfloat16 if self.device.type == "cuda" else torch.float32,
        )  # fmt: skip
        exit_step = int(torch.randint(len(self.flow.sigmas), (1,), generator=self._choice))
        self.latents += self.batch * size.chunk * self.chunks
        with torch.set_grad_enabled(grad):
            kv = net.text_kv(text)
        return student_rollout(
            net, memory, kv, self._random, flow=self.flow, exit_step=exit_step,
            chunks=self.chunks, grad=grad,
            shape=(self.batch, size.chunk, model.latent_channels, *size.latent_size),
        )  # fmt: skip

    def _sigma(self, frames: int) -> Tensor:
        u = torch.rand(self.batch, generator=self._random, device=self.device)
        sigma = shift_sigma(u, self.teacher_shift).clamp(*SIGMA_RANGE)
        return sigma[:, None].expand(-1, frames)

    def step(self, step: int, progress: float) -> Mapping[str, Tensor]:
        """One batch of films: perhaps a student update, then the critic's updates."""
        mine = step % self.every == 0
        # Uncached: the networks change between passes, and with them their weights' bf16 copies.
        mixed = torch.autocast(
            self.device.type, torch.bfloat16, self.device.type == "cuda", cache_enabled=False
        )
        with mixed:
            text = self._text()
            with torch.set_grad_enabled(mine):
                x0 = self._film(text, grad=mine)
            metrics = self._student_step(x0, text, progress) if mine else dict[str, Tensor]()
            for _ in range(self.critic_updates):
                metrics |= self._critic_step(x0.detach(), text, progress)
            return metrics

    def _student_step(self, x0: Tensor, text: Tensor, progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            sigma_BF = self._sigma(x0.shape[1])
            xt = noised(x0, self._noise(x0), sigma_BF)
            empty = self.empty_SE.expand_as(text)
            cond = clean(xt, _score(self.teacher, xt, sigma_BF, text), sigma_BF)
            none = clean(xt, _score(self.teacher, xt, sigma_BF, empty), sigma_BF)
            fake = clean(xt, _score(self.critic.module, xt, sigma_BF, text), sigma_BF)
            gradient = dmd_gradient(x0, fake, guided(cond, none, self.guidance))
        loss = dmd_loss(x0, gradient)
        norm = self.student.update(loss, progress)
        return {"dmd": gradient.abs().mean(), "student_norm": norm, "std": x0.detach().std()}

    def _critic_step(self, x0: Tensor, text: Tensor, progress: float) -> dict[str, Tensor]:
        sigma_BF, eps = self._sigma(x0.shape[1]), self._noise(x0)
        v = _score(self.critic.module, noised(x0, eps, sigma_BF), sigma_BF, text)
        loss = flow_loss(v, x0, eps)
        norm = self.critic.update(loss, progress)
        return {"loss": loss.detach(), "critic_norm": norm}

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._random, device=self.device)

    def evaluate(self) -> dict[str, float]:
        """What was spent: updates of each network and latents generated."""
        return {
            "student_updates": float(self.student.updates),
            "critic_updates": float(self.critic.updates),
            "latents_generated": float(self.latents),
        }

    def save(self, out: Path, record: dict[str, Any]) -> list[Path]:
        """Writes the averaged student."""
        path = out / "student.safetensors"
        state = self.student.ema.state_dict()
        save_weights(path, state, config=self.experiment.to_json(), record=record)
        return [path]


def _score(net: Any, xt: Tensor, sigma_BF: Tensor, text_BGSE: Tensor) -> Tensor:
    xt = xt.to(torch.bfloat16) if xt.is_cuda else xt
    return net(xt, sigma_BF, net.text_kv(text_BGSE)).v_BFCXY
