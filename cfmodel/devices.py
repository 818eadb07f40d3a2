"""Processes that work together: who this one is, and how they agree.

One process needs no launcher. Under ``torchrun`` every process calls ``joined`` once; whoever asks
afterwards learns its rank from ``world``.
"""

import gc
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

BACKENDS = "cpu:gloo,cuda:nccl"
"""Numbers of the host are agreed upon without waiting for the GPU."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for others, of which one may fill a pool or write a checkpoint."""


class World(NamedTuple):
    """This process among all of them."""

    rank: int
    size: int

    def mine(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor that all processes hold alike.

        Raises:
            ValueError: the rows do not divide equally.

        Example:
            >>> World(1, 2).mine(torch.arange(4))
            tensor([2, 3])
        """
        if len(whole) % self.size:
            raise ValueError(f"{len(whole)} rows do not divide among {self.size} processes")
        rows = len(whole) // self.size
        return whole[self.rank * rows : (self.rank + 1) * rows]


def world() -> World:
    """Rank and number of the processes that work together; (0, 1) without a launcher."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


@contextmanager
def joined(device: torch.device) -> Generator[torch.device]:
    """The device of this process, joined with the others if ``torchrun`` started it.

    Args:
        device: kind of device; each process of a host takes the CUDA device of its local rank.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        # Networks spread over the processes, of which cycles may hold some, go before the group:
        # freed by an interpreter that ends, they abort it now and then.
        gc.collect()
        dist.destroy_process_group()


def agreed(*values: float) -> tuple[float, ...]:
    """The first process's values, in every process: clocks differ, and a branch on them must not.

    Example:
        >>> agreed(0.5, 1.0)
        (0.5, 1.0)
    """
    if world().size == 1:
        return values
    told = torch.tensor(values, dtype=torch.float64)
    dist.broadcast(told, 0)
    return tuple(told.tolist())


def mean_of_all(values: Mapping[str, float]) -> dict[str, float]:
    """Means over processes, by name. Every process must bring the same names."""
    if world().size == 1 or not values:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, (total / world().size).tolist(), strict=True))


def barrier() -> None:
    """Returns when every process has come here."""
    mean_of_all({"": 0.0})
