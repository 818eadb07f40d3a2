"""Chunks of a film made once more, with gradient, one at a time.

The memory that chunks read carries no gradient, so the gradient of a film is the sum of those of
its chunks. Made again after the film was scored, each chunk's graph is freed before the next one's
is built, and the memory is held once; kept from the first time, every chunk's graph holds the
memory as it was for that chunk.

Dims: B films, F latent frames of a chunk, G chunks, S text tokens, E text width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmodel.flow import x0_from_v
from cfmodel.memory.slots import SlotMemory
from cfmodel.rollout import commit_chunk, prepare_views
from cfmodel.train.flow_stages import half_traffic


class Pass(NamedTuple):
    """The last denoising pass of a chunk: what went in, its noise level, and the chunk it made."""

    xt: Tensor
    sigma: float
    x0: Tensor


class Replay:
    """The passes to be made again.

    Args:
        net: the student.
        memory: as it was before the first of them; the replay's own, which it goes on filling.
        text_BGSE: embedded texts of the chunks.
    """

    def __init__(self, net: Any, memory: SlotMemory, text_BGSE: Tensor) -> None:
        self.net, self.memory, self.text_BGSE = net, memory, text_BGSE
        self.passes: list[Pass] = []

    def terms(self, gradient: Tensor) -> Iterator[Tensor]:
        """Losses, one a chunk, whose gradients sum to the film's; see ``Film.terms``.

        Args:
            gradient: of the film's last latents, at least of those that are made again.
        """
        frames = self.passes[0].x0.shape[1]
        parts = gradient[:, -frames * len(self.passes) :].split(frames, 1)
        for chunk, (made, part) in enumerate(zip(self.passes, parts, strict=True)):
            words = self.net.text_kv(self.text_BGSE[:, chunk : chunk + 1])
            with torch.no_grad():
                views = prepare_views(self.net, self.memory, frames)
            sigma_BF = made.x0.new_full(made.x0.shape[:2], made.sigma)
            v = self.net(half_traffic(made.xt), sigma_BF, words, context=views).v_BFCXY
            yield (x0_from_v(made.xt, v.float(), made.sigma) * part).sum()
            if chunk + 1 < len(self.passes):
                with torch.no_grad():
                    commit_chunk(self.net, self.memory, half_traffic(made.x0), words, views)
