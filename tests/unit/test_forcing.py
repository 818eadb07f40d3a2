"""Teacher forcing in the memory's layout: who sees whom, where, and what a memory would show."""

from collections.abc import Iterator

import pytest
import torch

from cfmodel.config import Geometry
from cfmodel.memory.positions import place
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET
from cfmodel.train.draws import Draws
from cfmodel.train.flow_stages import FlowStage
from cfmodel.train.forcing import MemoryForcing, begins
from cfmodel.train.pool import ClipPool
from tests.helpers.nano import NANO, nano_model
from tests.helpers.stages import CPU, EMPTY, clips

CHUNK = NANO.geometry.chunk
LONG = SINK + SLOW
CLEAN = LONG + TARGET
"""Clean latents of the sequence: the long context, and a chunk before each chunk of the target."""


def objective() -> MemoryForcing:
    return MemoryForcing(NANO.geometry)


def batch_of(slow: int, opening: bool = False) -> torch.Tensor:
    """One clip's ``valid`` with so many slow latents."""
    valid = torch.ones(1, CONTEXT + TARGET, dtype=torch.bool)
    valid[:, SINK : LONG - slow] = False
    if opening:
        valid[:, :CONTEXT] = False
    return valid


def seen(row: int, allowed: torch.Tensor) -> list[int]:
    return allowed[0, row].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("slow", [0, 1, 5, SLOW])
def test_a_chunk_stands_where_the_memory_puts_it(slow: int):
    valid = batch_of(slow)
    positions = objective().positions(begins(valid))[0]
    allowed = objective().allowed(valid)
    sink, others = tuple(range(SINK)), tuple(range(100, 100 + slow + CHUNK))
    expected = place(
        "bounded", sink, others, committed=300, new_frames=CHUNK, capacity=LONG + LOCAL
    )
    for k in range(TARGET // CHUNK):
        first = CLEAN + k * CHUNK
        assert positions[first : first + CHUNK].tolist() == list(expected.query)
        columns = [c for c in seen(first, allowed) if c < CLEAN]
        assert positions[columns].tolist() == list(expected.memory)
        before = LONG + k * CHUNK
        assert columns[-CHUNK:] == list(range(before, before + CHUNK))


def test_a_beginning_is_its_own_sink_at_true_positions():
    valid = batch_of(0, opening=True)
    positions = objective().positions(torch.tensor([True]))[0]
    allowed = objective().allowed(valid)
    assert positions[CLEAN:].tolist() == list(range(TARGET))
    for k in range(TARGET // CHUNK):
        columns = [c for c in seen(CLEAN + k * CHUNK, allowed) if c < CLEAN]
        chunks = sorted({0, k - 1}) if k else []
        frames = [CHUNK * c + at for c in chunks for at in range(CHUNK)]
        assert positions[columns].tolist() == frames
        assert [c - LONG - CHUNK for c in columns] == frames


def test_what_is_absent_is_seen_by_nobody_but_itself():
    for opening in (False, True):
        valid = batch_of(2, opening)
        allowed = objective().allowed(valid)[0]
        absent = [k for k in range(LONG) if not valid[0, k]]
        assert absent
        columns = allowed[:, absent]
        assert columns.sum() == len(absent)
        assert all(allowed[k, k] for k in absent)


def test_no_clean_latent_sees_a_noisy_one_nor_the_future():
    for opening in (False, True):
        allowed = objective().allowed(batch_of(SLOW, opening))[0]
        assert not allowed[:CLEAN, CLEAN:].any()
        for k in range(TARGET // CHUNK):
            rows = slice(CLEAN + k * CHUNK, CLEAN + (k + 1) * CHUNK)
            later = allowed[rows, LONG + (k + 1) * CHUNK : CLEAN]
            others = allowed[rows, CLEAN:].clone()
            others[:, k * CHUNK : (k + 1) * CHUNK] = False
            assert not later.any()
            assert not others.any()


def test_gradient_reaches_what_writes_the_context():
    """The keys of what is remembered are trained too, not only how they are read."""
    forcing = objective()
    units = {name: x[:1] for name, x in clips(3, CONTEXT + TARGET).items()}
    batch = forcing.draw(units, Draws(CPU, 1))
    batch["clean"].requires_grad_()
    net = nano_model()
    forcing.loss(net, batch)[0].backward()
    grad = batch["clean"].grad
    assert grad is not None
    assert bool((grad.abs().sum((0, 2, 3, 4)) > 0).all())


def test_it_learns_to_copy_what_only_the_sink_shows():
    """Targets have the clip's colour, which the sink alone shows beside them."""

    def copies(number: int) -> dict[str, torch.Tensor]:
        units = clips(number, CONTEXT + TARGET)
        x0 = 2.0 * units["x0"][:, :1, :, :1, :1].expand_as(units["x0"]).clone()
        x0[:, SINK:CONTEXT] = 0.0
        return {**units, "x0": x0, "text": torch.zeros_like(units["text"])}

    pool = ClipPool(_count, copies, capacity=64, draws=Draws(CPU, 2), fill=64)
    stage = FlowStage(
        "context-init", objective(), NANO, CPU, pool, lambda: copies(10**6), EMPTY,
        batch=4, lr=3e-2, refill_every=10**6,
    )  # fmt: skip
    stage.begin()
    for k in range(40):
        stage.step(k, 0.0)
    with torch.no_grad():
        found = stage.objective.figures(stage.net, copies(10**6 + 1), Draws(CPU, 5))
    assert float(found["flow_loss_swapped"]) > 1.05 * float(found["flow_loss"])


def _count(first: int) -> Iterator[int]:
    return iter(range(first, 10**6))


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"geometry.chunk=2"):
        MemoryForcing(Geometry(chunk=2))
