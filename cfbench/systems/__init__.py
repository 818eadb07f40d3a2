"""Systems by name: ``family/row`` or ``row`` of the tiny family.

A row is one of the table below or, for everything else, a preset of the model package. A preset
may carry changed fields, as in ``tiny/ours+memory.tau=0.9``. The path of a manifest, which ends in
``.toml``, is a program of others (``cfbench.systems.external``).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cfbench.plan import SystemSpec
from cfbench.registry import Table
from cfbench.types import Job, Prompt
from cfbench.video import Frames

SYSTEMS = Table(
    kind="system",
    entries={
        "preset": "cfbench.systems.cf:PRESET",
        "rendered-truth": "cfbench.systems.reference:RENDERED_TRUTH",
        "frozen": "cfbench.systems.reference:FROZEN",
        "external": "cfbench.systems.external:EXTERNAL",
    },
    group="cfbench.systems",
)
PRESET = "preset"
EXTERNAL = "external"
MANIFEST = ".toml"
KINDS = (PRESET, EXTERNAL)
"""Entries that are no rows themselves."""
ALL = "all"


class System(Protocol):
    """A loaded system. ``weights`` are hashes by part, ``facts`` what it resolved (device, ...)."""

    weights: dict[str, str]
    facts: dict[str, str]

    def films(self, jobs: Sequence[Job]) -> Iterator[Frames]:
        """Films of jobs of equal length, made together, in blocks (B, R, Y, X, 3) as they come."""
        ...

    def peak_gib(self) -> float:
        """Most memory used so far: of the device, or of the process on a CPU."""
        ...


class Factory(Protocol):
    """An entry of the table."""

    def describe(self, address: str) -> SystemSpec:
        """What the address stands for, without loading anything heavy."""
        ...

    def check_prompts(self, address: str, prompts: Sequence[Prompt]) -> list[str]:
        """Warnings about prompts that the system was not made for.

        Raises:
            CfError: a prompt that it cannot take.
        """
        ...

    def load(self, address: str, device: str, attention: str) -> System:
        """The system, ready to generate on ``device``."""
        ...


def factory(address: str) -> Factory:
    """The factory behind an address."""
    if address.endswith(MANIFEST):
        return SYSTEMS.get(EXTERNAL)
    row = address.partition("+")[0].rpartition("/")[2]
    return SYSTEMS.get(row if row in SYSTEMS.targets() and row not in KINDS else PRESET)


def describe(addresses: Sequence[str]) -> list[SystemSpec]:
    """Specs of systems in order; ``all`` or ``family/all`` stands for every row of a family.

    Raises:
        CfError: unknown name; the message lists close ones.
    """
    return [factory(address).describe(address) for address in _rows(addresses)]


def _rows(addresses: Sequence[str]) -> list[str]:
    rows: list[str] = []
    for address in addresses:
        head, slash, row = address.rpartition("/")
        rows += SYSTEMS.get(PRESET).rows(head + slash) if row == ALL else [address]
    return rows


def check_prompts(addresses: Sequence[str], prompts: Sequence[Prompt]) -> list[str]:
    """Warnings about prompts that a system was not made for, each once.

    Raises:
        CfError: a prompt that a system cannot take.
    """
    found = (factory(address).check_prompts(address, prompts) for address in _rows(addresses))
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def load(address: str, device: str, attention: str) -> System:
    """The system behind an address, ready to generate."""
    return factory(address).load(address, device, attention)


@dataclass(kw_only=True)
class Loader:
    """Systems by address, one loaded at a time.

    Args:
        device: as torch names it.
        attention: backend, or auto.
    """

    device: str
    attention: str
    _loaded: tuple[str, System] | None = field(default=None, repr=False)

    def __call__(self, address: str) -> System:
        """The system behind an address; the one before is let go of."""
        if self._loaded is None or self._loaded[0] != address:
            self._loaded = None  # frees the old system's memory before the next one is loaded
            self._loaded = address, load(address, self.device, self.attention)
        return self._loaded[1]
