"""Readings of the memory other than ours: as released, with recent commits, and what scenes do."""

import dataclasses

import pytest
import torch

from cfmodel.config import MemoryConfig
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.attention import ChunkKV
from cfmodel.presets import presets
from tests.unit.test_memory import CHUNK, MODEL, TOKENS, chunk_kv, fill, frames_of, memory_of

RELEASED = presets("nano")["ours-released"].memory
ROLLING = presets("nano")["rolling-forcing"].memory
UNIFORM = MemoryConfig(promotion="uniform-2")


def shown(memory: SlotMemory, frames: int, *, clean: bool = False) -> list[tuple[int, int]]:
    """(frame, position) of what a pass reads, oldest position first; values are frames here."""
    view = memory.view(0, frames, clean=clean)
    held = view.v_BKHD[0, ::TOKENS, 0, 0].tolist()
    pairs = zip(map(int, held), view.positions_BT[0].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: pair[1])


def test_dense_filling_holds_every_early_frame_once():
    for chunks in range(7):
        memory = fill(dataclasses.replace(RELEASED, tau=-0.99), chunks)
        frames = [slot.frame for slot in memory.slots(0)]
        assert frames == list(range(chunks * CHUNK))
    memory = fill(dataclasses.replace(RELEASED, tau=-0.99), 10)
    assert [slot.frame for slot in memory.slots(0)] == [*range(15), 27, 28, 29]
    assert [slot.position for slot in memory.slots(0)] == list(range(18))


def test_promotions_take_the_place_of_the_oldest_dense_frames():
    memory = fill(dataclasses.replace(RELEASED, tau=1.0), 5)
    assert frames_of(memory, "sink") == [0, 1, 2]
    # Chunks 2, 3 and 4 were promoted to the first three slots, in which frames 3, 4 and 5 were.
    assert frames_of(memory, "slow") == [6, 9, 12, *range(6, 15)]
    full = fill(dataclasses.replace(RELEASED, tau=1.0), 20)
    assert frames_of(full, "slow") == list(range(24, 58, 3))
    assert frames_of(full, "fast") == [57, 58, 59]


def noisy(first: int, seed: int) -> ChunkKV:
    """A pass of a chunk whose keys are another film's."""
    return chunk_kv(first, [seed])


def test_every_pass_is_compared_with_the_pass_before_and_promotes_once():
    memory = fill(dataclasses.replace(RELEASED, tau=0.99), 2)
    # The first pass equals the last one seen: no surprise.
    alike = chunk_kv(CHUNK, [0])
    assert not memory.observe(ChunkKV(alike.k, alike.v, 2 * CHUNK))
    first = noisy(2 * CHUNK, 7)
    assert memory.observe(first)
    assert not memory.observe(noisy(2 * CHUNK, 8))
    memory.commit(chunk_kv(2 * CHUNK, [0]))
    assert [frame for frame in frames_of(memory, "slow") if frame == 6] == [6, 6]
    view = memory.view(0, CHUNK)
    at = view.positions_BT[0].tolist().index(3)
    kept = view.k_BKHD[0].unflatten(0, (-1, TOKENS))[at]
    assert torch.equal(kept, first.k[0][0, :TOKENS])


def test_passes_are_not_looked_at_by_ours():
    memory = fill(MemoryConfig(tau=1.0), 2)
    assert not memory.observe(noisy(2 * CHUNK, 7))
    assert memory.promotions == []


def test_commits_that_read_recent_frames_alone():
    memory = fill(dataclasses.replace(UNIFORM, commit_reads="recent"), 30)
    assert len(shown(memory, CHUNK)) == 18
    assert shown(memory, CHUNK, clean=True) == [(87, 15), (88, 16), (89, 17)]
    assert shown(fill(UNIFORM, 30), CHUNK, clean=True) == shown(fill(UNIFORM, 30), CHUNK)
    early = fill(dataclasses.replace(UNIFORM, commit_reads="recent"), 1)
    assert shown(early, CHUNK, clean=True) == [(0, 0), (1, 1), (2, 2)]


def test_rolling_windows_read_the_sink_just_before_the_newest_frames():
    memory = fill(ROLLING, 12)
    assert shown(memory, 15) == [(0, 30), (1, 31), (2, 32), (33, 33), (34, 34), (35, 35)]
    assert [frame for frame, _ in shown(memory, 3)] == [0, 1, 2, *range(21, 36)]
    assert [frame for frame, _ in shown(memory, 3, clean=True)] == list(range(18, 36))
    with pytest.raises(ValueError, match="expected 1 to 18"):
        memory.view(0, 19)


def test_a_flush_keeps_the_sink_and_two_latents():
    memory = fill(UNIFORM, 20)
    memory.flush()
    assert [(slot.frame, slot.role) for slot in memory.slots(0)] == [
        (0, "sink"), (1, "sink"), (2, "sink"), (58, "fast"), (59, "fast"),
    ]  # fmt: skip
    assert [frame for frame, _ in shown(memory, CHUNK)] == [0, 1, 2, 58, 59]
    memory.commit(chunk_kv(60, [0]))
    assert frames_of(memory, "slow") == [60]
    assert frames_of(memory, "fast") == [60, 61, 62]


def test_a_cut_moves_one_chunk_alone():
    memory = fill(presets("nano")["infinity-rope"].memory, 20)
    memory.cut()
    assert memory.view(0, CHUNK).query_positions_BF.tolist() == [[45, 46, 47]]
    assert [position for _, position in shown(memory, CHUNK)] == [0, 1, 2]
    memory.commit(chunk_kv(60, [0]))
    assert memory.view(0, CHUNK).query_positions_BF.tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("first", [0, 6])
def test_rewriting_leaves_the_sink_of_a_longer_film(first):
    memory = fill(presets("nano")["longlive"].memory, 6)
    frames = 18 - first
    size = (1, frames * TOKENS, MODEL.heads, MODEL.head_dim)
    memory.rewrite([(torch.full(size, 5.0), torch.full(size, 5.0))] * MODEL.layers, first)
    view = memory.view(1, CHUNK)
    rewritten = (view.k_BKHD[0].unflatten(0, (-1, TOKENS)) == 5).all(-1).all(-1).all(-1).tolist()
    assert rewritten == [first == 0] * 3 + [True] * 6


def test_state_remembers_a_flush():
    memory = fill(UNIFORM, 20)
    memory.flush()
    other = memory_of(UNIFORM)
    other.load_state_dict(memory.state_dict())
    assert other.slots(0) == memory.slots(0)
