"""Builds what is timed, warms it up, and times it turn by turn in one process."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfbench.errors import CfError
from cfbench.systems.timing import decode, kernels, ours, peers, several
from cfbench.systems.timing.base import (
    Maker,
    facts,
    keys_of,
    settle,
    tidy,
    watched,
    work_of,
)
from cfmodel.config import Attention, Experiment
from cfmodel.io.codec import Codec
from cfmodel.pipeline import choose_device
from cfmodel.random_text import encoder_of

log = logging.getLogger(__name__)

__all__ = ["FAILURES", "Bench", "Built", "bench_of", "decoded", "facts", "tidy"]

FAILURES = (
    ArithmeticError, AssertionError, AttributeError, CfError, ImportError, LookupError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a part may fail with, be it ours or a peer's, without ending the others."""
WARM = 6
"""Chunks before times are taken: in them parts compile and passes are recorded."""
COMPILED = "compiled"
EARLY_S, LATE_S = 30.0, 600.0
"""Lengths of film at which chunks are compared."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to time, and where: a family of presets, our attention, folders of peers by name."""

    family: str
    device: torch.device
    attention: Attention
    checkouts: Mapping[str, Path]

    @property
    def dtype(self) -> torch.dtype:
        """In which generators run."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def ours(self) -> Experiment:
        """The preset that all others are beside."""
        return ours.experiment_of(self.family, "ours")


def bench_of(family: str, device: str, attention: str, checkouts: Mapping[str, Path]) -> Bench:
    """A bench of words of the command line.

    Raises:
        CfError: no such device, backend or family.
    """
    backend = ours.backend_of(attention)
    try:
        where = choose_device(device)
        bench = Bench(family=family, device=where, attention=backend, checkouts=checkouts)
        bench.ours.key()
    except ValueError as error:
        raise CfError(str(error)) from error
    return bench


def kernel_times(bench: Bench) -> dict[str, Any]:
    """Times of a layer's kernels alone, and the least that chunks can take with them."""
    experiment = bench.ours
    texts = {"text": experiment.model.text_tokens}
    rows = {row: keys_of(ours.experiment_of(bench.family, row)) for row in ("ours", "pooled")}
    attend = kernels.attention_ms(experiment, {**rows, **texts}, bench.device)
    linear = kernels.linear_ms(experiment, bench.device)
    floors: dict[str, dict[str, float]] = {}
    for backend, times in attend.items():
        for row in rows:
            each = {"memory": times[row], "text": times["text"]}
            for kind in ("", " fp8") if "down fp8" in linear else ("",):
                found = kernels.floor_ms(experiment, each, linear, kind)
                floors.setdefault(backend, {})[f"{row}{kind}"] = found
    return {"attention_ms": attend, "linear_ms": linear, "floor_ms": floors}


def references(bench: Bench, systems: Sequence[str]) -> dict[str, Tensor]:
    """First chunks in float32, by preset row or peer; what fails is left out.

    The system itself will tell why.
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(subject(system) for system in systems):
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found[name] = _reference(bench, name)
        except FAILURES as error:
            log.warning("no float32 chunk of %s: %s", name, error)
        tidy(bench.device)
    return found


def subject(system: str) -> str:
    """What a system is a fast form of: a row of our presets, or a peer."""
    return system.partition("/")[0].removesuffix(f"-{COMPILED}")


def _reference(bench: Bench, name: str) -> Tensor:
    if name in peers.PEERS:
        return _theirs(bench, name, torch.float32).step().cpu()
    return ours.reference(ours.experiment_of(bench.family, name), bench.device)


class Built:
    """A system, warm.

    Its name is a row of our presets, a slash and what makes it fast, as in ``ours/auto+fp8``; or a
    peer, perhaps with ``-compiled`` behind it.

    Raises:
        CfError: unknown name, or a peer without a checkout.
    """

    def __init__(self, bench: Bench, name: str, right: Mapping[str, Tensor]) -> None:
        self._device = bench.device
        began = time.perf_counter()
        row, slash, words = name.partition("/")
        with watched(bench.device) as told:
            self.maker = _ours(bench, row, words) if slash else _theirs(bench, name, bench.dtype)
            settle(bench.device)
            built = time.perf_counter()
            first = self.maker.step().float().cpu()
            compiled = time.perf_counter()
            for _ in range(WARM):
                self.maker.step()
            settle(bench.device)
        warmed = time.perf_counter()
        self.record: dict[str, Any] = {
            **self.maker.facts,
            **told,
            "build_s": built - began,
            "first_chunk_s": compiled - built,
            "warm_s": warmed - compiled,
            "work": work_of(bench.ours, self.maker.facts["keys"]),
            "samples_ms": [],
        }
        if subject(name) in right:
            self.record["error"] = ours.apart(first, right[subject(name)])
        tidy(bench.device)

    def sample(self, burst: int) -> list[float]:
        """Milliseconds of chunks that follow another without a wait: all but a burst's first."""
        return sampled(self.maker, self._device, burst)


def sampled(maker: Maker, device: torch.device, burst: int) -> list[float]:
    """Milliseconds of all chunks of a burst but its first, which follows a wait."""
    found = list[float]()
    if device.type != "cuda":
        for _ in range(burst):
            began = time.perf_counter()
            maker.step()
            found.append(1000 * (time.perf_counter() - began))
        return found[1:]
    marks = list[torch.cuda.Event]()
    for _ in range(burst):
        maker.step()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        marks.append(mark)
    settle(device)
    return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]


def _ours(bench: Bench, row: str, words: str) -> Maker:
    experiment = ours.experiment_of(bench.family, row)
    fast = ours.choices(words)
    # What is measured against is plain PyTorch.
    attention = "sdpa" if words == "off" else bench.attention
    return ours.Ours(experiment, fast, device=bench.device, dtype=bench.dtype, attention=attention)


def _theirs(bench: Bench, name: str, dtype: torch.dtype) -> Maker:
    peer = subject(name)
    if peer not in peers.PEERS:
        raise CfError(f"unknown system {name!r}; ours are as in ours/auto, peers {[*peers.PEERS]}")
    if peer not in bench.checkouts:
        raise CfError(f"{name} needs its checkout; name it with --{peer} FOLDER")
    checkout = peers.Checkout(bench.checkouts[peer])
    return peers.Theirs(
        peers.PEERS[peer], checkout, bench.ours, device=bench.device, dtype=dtype,
        compiled=name.endswith(COMPILED),
    )  # fmt: skip


def grown(bench: Bench, chunks: int) -> dict[str, Any]:
    """Times of chunks 30 seconds and 10 minutes into a film, whose frames between are random.

    Only their keys and values are, so that nobody waits for ten minutes of film.
    """
    made = _ours(bench, "ours", "auto" if bench.device.type == "cuda" else "off")
    assert isinstance(made, ours.Ours), "one of ours"
    timed: dict[str, Any] = {}
    for name, seconds in (("early_ms", EARLY_S), ("late_ms", LATE_S)):
        ours.fill(made.memory, bench.ours.geometry.chunks_for(seconds))
        for _ in range(WARM):
            made.step()
        timed[name] = sampled(made, bench.device, chunks + 1)
    return timed


def several_gpus(bench: Bench, chunks: int, processes: int) -> dict[str, Any]:
    """Many prompts, and one film, on several GPUs beside one; 0 processes are one a GPU."""
    gpus = torch.cuda.device_count() if bench.device.type == "cuda" else 1
    tidy(bench.device)
    return several.together(bench.family, bench.attention, bench.device, chunks, processes or gpus)


def decoded(bench: Bench, chunks: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Parts with the decoder, by name: alone, beside the generator, and a film's beginning."""
    compiled = bench.device.type == "cuda"
    held: dict[str, Any] = {}

    def alone() -> dict[str, Any]:
        tidy(bench.device)
        held["codec"] = decode.codec_of(bench.ours, bench.device, compiled=compiled)
        return decode.alone(bench.ours, held["codec"], bench.device, chunks)

    def made() -> tuple[ours.Ours, Codec]:
        if "codec" not in held:
            held["codec"] = decode.codec_of(bench.ours, bench.device, compiled=compiled)
        found = _ours(bench, "ours", "auto" if compiled else "off")
        assert isinstance(found, ours.Ours), "one of ours"
        return found, held["codec"]

    yield "decoder", alone
    yield "film", lambda: decode.beside(*made(), chunks)
    yield "first", lambda: decode.first(*made(), encoder_of(bench.ours, bench.device))
