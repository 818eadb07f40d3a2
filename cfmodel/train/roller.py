"""A student rolled out over its memory, chunk after chunk, the last step perhaps with gradient.

Dims: B films, F latent frames, C latent channels, X rows and Y columns of a latent.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.config import Experiment
from cfmodel.flow import FewStep, add_noise, x0_from_v
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import PreparedView
from cfmodel.nn.transformer import TextKV
from cfmodel.passes import Passes
from cfmodel.recorded import Recorded
from cfmodel.rollout import prepare_views, take_in
from cfmodel.train.draws import Draws
from cfmodel.train.flow_stages import half_traffic
from cfmodel.train.replay import Pass, Replay


class Sizes(NamedTuple):
    """Shape of a chunk's latents."""

    batch: int
    frames: int
    channels: int
    rows: int
    columns: int


class _Passes:
    """The passes of a student: denoising, and the clean one; recorded if asked for."""

    def __init__(self, net: Any, recorded: bool) -> None:
        self.net = net
        self.recorded_flow = Recorded(self.flow, active=recorded)
        self.recorded_kv = Recorded(Passes(net).clean, active=recorded)

    def flow(self, xt: Tensor, sigma_BF: Tensor, text: TextKV, views: list[PreparedView]) -> Tensor:
        return self.net(xt, sigma_BF, text, context=views).v_BFCXY

    @torch.no_grad()
    def take_in(
        self, memory: SlotMemory, x0: Tensor, text: TextKV, views: list[PreparedView]
    ) -> None:
        take_in(memory, self.recorded_kv(half_traffic(x0.detach()), text, views))


@dataclass
class Roller:
    """Rolls a student out, chunk after chunk, over one memory.

    With ``recorded`` passes without gradient are replayed as CUDA graphs.

    Gradient flows through the last step of a chunk made with it: earlier steps, the memory and the
    clean commit pass carry none.

    Source: Self Forcing, as in arXiv:2602.06028 sections 6 and 7.
    """

    experiment: Experiment
    batch: int
    draws: Draws
    recorded: bool = False

    def __post_init__(self) -> None:
        size = self.experiment.geometry
        self.sizes = Sizes(
            self.batch, size.chunk, self.experiment.model.latent_channels, *size.latent_size
        )
        self.flow = FewStep.from_config(self.experiment.sample)
        self._passes: _Passes | None = None

    def memory(self) -> SlotMemory:
        """An empty memory of the experiment."""
        experiment, device = self.experiment, self.draws.device
        return SlotMemory(
            experiment.memory, experiment.geometry, experiment.model, batch=self.batch,
            device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            padded=experiment.memory.fast is not None,
        )  # fmt: skip

    def chunk(
        self,
        net: Any,
        memory: SlotMemory,
        text: TextKV,
        *,
        exit_step: int,
        with_grad: TextKV | None = None,
        commit: bool = True,
        replay: Replay | None = None,
    ) -> Tensor:
        """Latents (B, 3, C, X, Y) of the next chunk, stopped at ``exit_step``.

        Args:
            net: the student.
            memory: what it reads; takes in the chunk.
            text: of the chunk, without gradient.
            exit_step: index of the last denoising step.
            with_grad: the same text with gradient, if the last step is to carry it.
            commit: whether the memory takes in the chunk.
            replay: takes down the last step, if that is to be made again with gradient.
        """
        device, xt = self.draws.device, torch.zeros(0)
        passes = self._passes_of(net)
        with torch.no_grad():
            views = prepare_views(net, memory, self.sizes.frames)
            bright = views
            if with_grad is not None:
                # What the backward pass reads again must stay as it is until then: the clean pass
                # writes into a view's room, and later chunks over what the memory holds.
                bright = [
                    view._replace(k_BKHD=view.k_BKHD.clone(), v_BKHD=view.v_BKHD.clone())
                    for view in views
                ]
        x0 = torch.zeros(self.sizes, device=device)
        for step in range(exit_step + 1):
            sigma = self.flow.sigmas[step]
            xt = add_noise(x0.detach(), self.draws.normal(*self.sizes), sigma)
            sigma_BF = torch.full(self.sizes[:2], sigma, device=device)
            mine = with_grad is not None and step == exit_step
            with torch.set_grad_enabled(mine):
                words = with_grad if mine and with_grad is not None else text
                run = passes.flow if mine else passes.recorded_flow
                v = run(half_traffic(xt), sigma_BF, words, bright if mine else views)
                x0 = x0_from_v(xt, v.float(), sigma)
        if replay is not None:
            replay.passes.append(Pass(xt, self.flow.sigmas[exit_step], x0))
        if commit:
            passes.take_in(memory, x0, text, views)
        return x0

    def commit(self, net: Any, memory: SlotMemory, x0: Tensor, text: TextKV) -> None:
        """A chunk (B, 3, C, X, Y) that the student did not make goes into the memory."""
        with torch.no_grad():
            views = prepare_views(net, memory, self.sizes.frames)
        self._passes_of(net).take_in(memory, x0, text, views)

    def _passes_of(self, net: Any) -> _Passes:
        if self._passes is None or self._passes.net is not net:
            self._passes = _Passes(net, self.recorded)
        return self._passes
