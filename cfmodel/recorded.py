"""Functions of tensors recorded as CUDA graphs: small networks wait for launches otherwise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARMING = 3
"""Ordinary runs before a function is recorded, in which it compiles and chooses its kernels."""


class Fixed:
    """A tensor that a recording reads and writes where it lies, instead of a copy of it.

    Another tensor in the same place, of the same sizes, is equal to it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)


class _Arguments(NamedTuple):
    """Arguments taken apart: every tensor once, where each stands, and all that is no tensor."""

    tensors: list[Tensor]
    order: tuple[int | None, ...]
    others: tuple[Any, ...]
    spec: Any

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> "_Arguments":
        leaves, spec = pytree.tree_flatten(args)
        unique = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        places = {key: k for k, key in enumerate(unique)}
        order = tuple(places.get(id(leaf)) for leaf in leaves)
        others = tuple(leaf for leaf in leaves if id(leaf) not in places)
        return cls(list(unique.values()), order, others, spec)

    def alike(self, other: "_Arguments") -> bool:
        """Whether they differ in what tensors hold alone."""
        return (
            self.order == other.order
            and self.others == other.others
            and self.spec == other.spec
            and all(
                a.shape == b.shape and a.dtype == b.dtype
                for a, b in zip(self.tensors, other.tensors, strict=True)
            )
        )

    def together(self) -> tuple[Any, ...]:
        """The arguments as they were given."""
        others = iter(self.others)
        leaves = [next(others) if k is None else self.tensors[k] for k in self.order]
        return pytree.tree_unflatten(leaves, self.spec)


class _Recording:
    """One function at one combination of shapes, with its own copies of the arguments."""

    def __init__(self, function: Callable[..., Any], arguments: _Arguments) -> None:
        self._function = function
        self.held = arguments._replace(
            tensors=[torch.empty_like(x, requires_grad=False) for x in arguments.tensors]
        )
        self._known: list[tuple[Tensor, int]] = []
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: Any = None

    def run(self, tensors: list[Tensor]) -> Any:
        self._take(tensors)
        if self._runs < WARMING:
            self._runs += 1
            return self._function(*self.held.together())
        # A graph takes down what runs on the current device, which may be another one.
        with torch.cuda.device(tensors[0].device):
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                # Other threads may go on using the device.
                with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                    self._found = self._function(*self.held.together())
            self._graph.replay()
        return self._found

    @torch.no_grad()
    def _take(self, tensors: list[Tensor]) -> None:
        """Copies the arguments; what is the same object with the same content is there already."""
        now = [(x, x._version) for x in tensors]  # pyright: ignore[reportPrivateUsage]
        new = [
            k for k, (x, version) in enumerate(now)
            if not self._known or self._known[k][0] is not x or self._known[k][1] != version
        ]  # fmt: skip
        if new:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage]
                [self.held.tensors[k] for k in new], [tensors[k] for k in new]
            )
        self._known = now


class Recorded:
    """A function that is replayed as a CUDA graph after its first runs.

    It must do all of its work on the device without waiting for it, draw no random numbers, and
    read nothing that changes but its arguments and what stays in its place, as weights do. What it
    returns is valid until its next call. Each combination of shapes is recorded once.

    Args:
        function: of tensors, and of tuples, lists and dictionaries of them; of ``Fixed`` tensors
            too, which are read and written in their place.
        active: whether to record at all; otherwise every call is an ordinary one.
        most: how many recordings are kept, each with memory of its own; the oldest goes.
    """

    def __init__(
        self, function: Callable[..., Any], *, active: bool, most: int | None = None
    ) -> None:
        self._function, self._active, self._most = function, active, most
        self._recordings: list[_Recording] = []

    def __call__(self, *args: Any) -> Any:
        """What the function returns for ``args``."""
        if not self._active:
            return self._function(*args)
        arguments = _Arguments.of(args)
        for recording in self._recordings:
            if recording.held.alike(arguments):
                return recording.run(arguments.tensors)
        if self._most is not None and len(self._recordings) >= self._most:
            del self._recordings[0]
        self._recordings.append(_Recording(self._function, arguments))
        return self._recordings[-1].run(arguments.tensors)
