"""Teacher forcing: a causal network denoises every chunk of a clip given clean ones, in one pass.

Dims: B batch, F latents of a clip, Q latents of the sequence that a pass is made of, G texts,
S text tokens, E text width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cfmodel.config import Geometry
from cfmodel.flow import shift_sigma
from cfmodel.nn.masks import Mask, frame_mask, teacher_forcing, token_mask
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET
from cfmodel.train.draws import Draws
from cfmodel.train.flow_stages import ObjectiveNet, half_traffic
from cfmodel.train.losses import flow_loss, noised
from cfmodel.train.pool import Units

CONTEXT_NOISE = 0.2


class TeacherForcing:
    """Every chunk is denoised given the clean chunks before it, all in one pass.

    The noise level is drawn per chunk. The clean chunks carry a little noise, from none to
    ``CONTEXT_NOISE``, since a student's own chunks are not perfect either.

    Source: the causal initialisation that Self Forcing and Context Forcing begin from.
    """

    def __init__(self, geometry: Geometry, shift: float = 1.0) -> None:
        self.geometry, self.shift = geometry, shift
        self._masks: dict[int, Mask] = {}

    def draw(self, units: Units, draws: Draws) -> Units:
        """Noise levels, noise, and a context with a little noise of its own."""
        spread = CONTEXT_NOISE * draws.uniform(len(units["x0"]), 1, 1, 1, 1)
        return self._drawn(units, draws, spread)

    def loss(self, net: ObjectiveNet, batch: Units) -> tuple[Tensor, Tensor]:
        """Mean squared error of the flow of the noisy half."""
        x0, eps, sigma_BF, text = batch["x0"], batch["eps"], batch["sigma"], batch["text"]
        frames = x0.shape[1]
        if frames not in self._masks:
            self._masks[frames] = frame_mask(
                teacher_forcing(frames, self.geometry.chunk), 2 * frames,
                self.geometry.tokens_per_frame, device=x0.device,
            )  # fmt: skip
        v = net(
            half_traffic(torch.cat([batch["context"], noised(x0, eps, sigma_BF)], 1)),
            torch.cat([torch.zeros_like(sigma_BF), sigma_BF], 1),
            net.text_kv(torch.cat([text, text], 1)),
            positions=torch.arange(frames, device=x0.device).repeat(2),
            mask=self._masks[frames],
        ).v_BFCXY[:, frames:]
        return flow_loss(v, x0, eps), v

    def learn(self, batch: Units, v: Tensor) -> None:
        """Nothing: it learns nothing on its way."""

    def figures(self, net: ObjectiveNet, units: Units, draws: Draws) -> dict[str, Tensor]:
        """The loss with a clean context."""
        batch = self._drawn(units, draws, units["x0"].new_zeros(()))
        return {"flow_loss": self.loss(net, batch)[0]}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it learns nothing on its way."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing."""

    def _drawn(self, units: Units, draws: Draws, spread: Tensor) -> Units:
        x0 = units["x0"]
        noisy = _noise(x0, self.geometry.chunk, self.shift, draws)
        return {
            **noisy, "x0": x0, "context": x0 + spread * draws.like(x0), "text": units["text"],
        }  # fmt: skip


def _noise(x0: Tensor, chunk: int, shift: float, draws: Draws) -> Units:
    """Noise, and a noise level (B, F) for each chunk."""
    eps = draws.like(x0)
    sigma_BG = shift_sigma(draws.uniform(len(x0), x0.shape[1] // chunk), shift)
    return {"eps": eps, "sigma": sigma_BG.repeat_interleave(chunk, 1)}


def begins(valid_BF: Tensor) -> Tensor:
    """Which context clips have a film's beginning for their target: nothing is before it (B,)."""
    return ~valid_BF[:, :CONTEXT].any(1)


class MemoryForcing:
    """Every chunk of a target is denoised given what a student's memory would show it.

    Of context clips. A chunk sees sink and slow latents at the memory's first positions, the chunk
    before it at the last positions of the past, and itself at those of the chunk being made; so all
    chunks of a target stand at the same place. Where the target is a film's beginning, its first
    chunk is the sink, and positions are true ones. What is clean carries a little noise, as in
    ``TeacherForcing``.

    A clean chunk is read at the position where later ones find it, and does not see the chunk
    before it there; a memory's own keys come of a pass that did.

    Args:
        geometry: gives frames of a chunk and tokens of a frame.
        shift: of the noise levels.

    Raises:
        ValueError: sink, local context or target are no whole number of chunks.

    Source: the memory of arXiv:2602.06028 section 3, eq. 8, before its stage 2; a deviation, see
    docs/design.md.
    """

    def __init__(self, geometry: Geometry, shift: float = 1.0) -> None:
        chunk = geometry.chunk
        if any(part % chunk for part in (SINK, LOCAL, TARGET)) or chunk > SINK:
            raise ValueError(
                f"geometry.chunk={chunk}: expected a divisor of {SINK}, {LOCAL} and {TARGET}"
            )
        self.geometry, self.shift = geometry, shift
        # The chunk before the target, and all chunks of the target that another one follows.
        self._clean = torch.cat(
            [
                torch.arange(SINK + SLOW),
                torch.arange(CONTEXT - chunk, CONTEXT + TARGET - chunk),
            ]
        )
        self._shown = torch.cat([self._clean, torch.arange(CONTEXT, CONTEXT + TARGET)])

    def draw(self, units: Units, draws: Draws) -> Units:
        """Noise levels, noise, clean latents with a little noise, and who sees whom."""
        spread = CONTEXT_NOISE * draws.uniform(len(units["x0"]), 1, 1, 1, 1)
        return self._drawn(units, draws, spread)

    def loss(self, net: ObjectiveNet, batch: Units) -> tuple[Tensor, Tensor]:
        """Mean squared error of the flow of the target."""
        x0, eps, sigma_BF, clean = (batch[name] for name in ("x0", "eps", "sigma", "clean"))
        mask = token_mask(batch["allowed"], self.geometry.tokens_per_frame, net.mask_form)
        v = net(
            half_traffic(torch.cat([clean, noised(x0, eps, sigma_BF)], 1)),
            torch.cat([sigma_BF.new_zeros(clean.shape[:2]), sigma_BF], 1),
            net.text_kv(batch["text"]),
            positions=batch["positions"],
            mask=mask,
        ).v_BFCXY[:, clean.shape[1] :]
        return flow_loss(v, x0, eps), v

    def learn(self, batch: Units, v: Tensor) -> None:
        """Nothing: it learns nothing on its way."""

    def figures(self, net: ObjectiveNet, units: Units, draws: Draws) -> dict[str, Tensor]:
        """Losses with a clean context: its own, and another clip's sink and slow latents."""
        batch = self._drawn(units, draws, units["x0"].new_zeros(()))
        swapped = dict(batch)
        swapped["clean"] = batch["clean"].clone()
        swapped["clean"][:, : SINK + SLOW] = batch["clean"][:, : SINK + SLOW].roll(1, 0)
        found = {"flow_loss": batch, "flow_loss_swapped": swapped}
        return {name: self.loss(net, each)[0] for name, each in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it learns nothing on its way."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing."""

    def positions(self, opening_B: Tensor) -> Tensor:
        """Rotary positions (B, Q) of the sequence; ``opening_B`` says which targets begin films."""
        chunk, device = self.geometry.chunk, opening_B.device
        last = torch.arange(SINK + SLOW, SINK + SLOW + LOCAL, device=device)
        past, new = last[-2 * chunk : -chunk], last[-chunk:]
        count = TARGET // chunk
        packed = [torch.arange(SINK + SLOW, device=device), past.repeat(count), new.repeat(count)]
        true = torch.arange(TARGET, device=device)
        absent = true.new_zeros(SINK + SLOW + chunk)
        rows = torch.stack([torch.cat(packed), torch.cat([absent, true[:-chunk], true])])
        return rows[opening_B.long()]

    def allowed(self, valid_BF: Tensor) -> Tensor:
        """Which latents of the sequence see which (B, Q, Q): rows see columns.

        Args:
            valid_BF: which latents of the clips there are.
        """
        chunk, device = self.geometry.chunk, valid_BF.device
        frames = self._shown.to(device)
        noisy = torch.arange(len(frames), device=device) >= len(self._clean)
        # Chunks counted from the target's first, the one before it is -1; of the long context none.
        place = (frames - CONTEXT).div(chunk, rounding_mode="floor")
        long = frames < SINK + SLOW
        itself = (noisy[:, None] == noisy) & (place[:, None] == place) & ~long & ~long[:, None]
        before = noisy[:, None] & ~noisy & ~long & (place == place[:, None] - 1)
        sink = long & (frames < SINK)
        order = long[:, None] & long & (frames <= frames[:, None])
        memory = itself | before | (~long[:, None] & long) | order | (sink[:, None] & sink)
        earlier = ~noisy & ~long & (place[:, None] > place)
        near = (place == 0) | (place == place[:, None] - 1)
        beginning = itself | (earlier & near & (place >= 0) & ~long[:, None])
        here = valid_BF[:, frames]
        seen = torch.where(begins(valid_BF)[:, None, None], beginning, memory) & here[:, None]
        # What is not there sees itself, since a row of a softmax must see something.
        return seen | torch.eye(len(frames), dtype=torch.bool, device=device)

    def _drawn(self, units: Units, draws: Draws, spread: Tensor) -> Units:
        x0, valid = units["x0"], units["valid"]
        device = x0.device
        target = x0[:, CONTEXT:]
        clean = (x0 + spread * draws.like(x0))[:, self._clean.to(device)]
        text = units["text"]
        each = text.repeat_interleave(x0.shape[1] // text.shape[1], 1)
        return {
            **_noise(target, self.geometry.chunk, self.shift, draws),
            "x0": target,
            "clean": clean,
            "text": each[:, self._shown.to(device)],
            "allowed": self.allowed(valid),
            "positions": self.positions(begins(valid)),
        }
