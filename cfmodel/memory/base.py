"""What a memory is to the rest: read while a chunk is denoised, changed when it is done."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cfmodel.config import MemoryConfig
from cfmodel.nn.attention import ChunkKV, KVView

Role = Literal["sink", "slow", "fast"]


def to_device(host: Tensor, device: torch.device | str) -> Tensor:
    """``host`` on ``device``; the copy to CUDA is from pinned memory and waits for nothing."""
    if torch.device(device).type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class FrameSlot(NamedTuple):
    """One remembered latent frame: absolute index, why it is kept, its next temporal position."""

    frame: int
    role: Role
    position: int


class Memory(Protocol):
    """Keys and values of past frames, for each layer."""

    @property
    def config(self) -> MemoryConfig:
        """What decides which frames are kept and read."""
        ...

    @property
    def frames(self) -> int:
        """Latent frames committed so far."""
        ...

    def slots(self, layer: int, sample: int = 0) -> tuple[FrameSlot, ...]:
        """What a layer remembers of one film, in the order of positions; for tests and plots."""
        ...

    def view(self, layer: int, new_frames: int, *, clean: bool = False) -> KVView:
        """What a layer may attend to while ``new_frames`` are denoised, or in their clean pass."""
        ...

    def observe(self, chunk: ChunkKV) -> bool:
        """Look at a pass of a chunk; whether what is remembered has changed."""
        ...

    def commit(self, chunk: ChunkKV) -> None:
        """Take in a finished chunk: once, after its clean pass, all layers together."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...
