import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfmodel.config import Geometry, MemoryConfig, ModelConfig, seed_for
from cfmodel.memory import select
from cfmodel.memory.positions import place
from cfmodel.memory.slots import GROWTH_CHUNKS, SlotMemory
from cfmodel.nn.attention import ChunkKV
from tests.helpers.nano import seeded

CHUNK = 3
GEOMETRY = Geometry(height=16, width=32)  # two tokens a frame
TOKENS = GEOMETRY.tokens_per_frame
MODEL = ModelConfig(layers=3, width=8, heads=2, ffn=8, text_width=4, text_tokens=1)
OURS = MemoryConfig()
UNIFORM = MemoryConfig(promotion="uniform-2")


def memory_of(config: MemoryConfig, batch: int = 1) -> SlotMemory:
    return SlotMemory(config, GEOMETRY, MODEL, batch=batch, device="cpu", dtype=torch.float32)


def chunk_kv(first: int, films: list[int]) -> ChunkKV:
    """Keys random by (film, layer, chunk), a common part making them alike; values = the frame."""
    size = (CHUNK * TOKENS, MODEL.heads, MODEL.head_dim)
    common = seeded(*size, seed=99)
    frames = torch.arange(first, first + CHUNK).repeat_interleave(TOKENS).float()
    v = frames[None, :, None, None].expand(len(films), *size)
    keys = tuple(
        torch.stack([common + seeded(*size, seed=seed_for(f, n, first)) for f in films])
        for n in range(MODEL.layers)
    )
    return ChunkKV(keys, (v,) * MODEL.layers, first)


def fill(config: MemoryConfig, chunks: int, films: list[int] | None = None) -> SlotMemory:
    films = films or [0]
    memory = memory_of(config, len(films))
    for index in range(chunks):
        memory.commit(chunk_kv(index * CHUNK, films))
    return memory


def frames_of(memory: SlotMemory, role: str, layer: int = 0, sample: int = 0) -> list[int]:
    return [slot.frame for slot in memory.slots(layer, sample) if slot.role == role]


configs = st.builds(
    MemoryConfig,
    sink=st.integers(0, 4),
    slow=st.integers(0, 4),
    fast=st.integers(3, 9),
    promotion=st.sampled_from(["surprisal-2", "surprisal-1", "uniform-2", "uniform-1"]),
    tau=st.sampled_from([-0.5, 0.3, 0.6, 1.0]),
    positions=st.sampled_from(["absolute", "window", "bounded"]),
    decision=st.sampled_from(["shared", "per-layer"]),
)
endless = st.builds(
    lambda config, bounded: dataclasses.replace(config, fast=None, positions=bounded),
    configs.filter(lambda config: config.positions != "bounded"),
    st.sampled_from(["absolute", "window"]),
)


@settings(max_examples=60, deadline=None)
@given(configs | endless, st.integers(1, 20))
def test_slots_hold_what_the_policy_says(config, chunks):
    memory = memory_of(config, batch=2)
    for index in range(chunks):
        memory.commit(chunk_kv(index * CHUNK, [0, 1]))
        end = (index + 1) * CHUNK
        for layer in range(MODEL.layers):
            for sample in range(2):
                check_slots(memory, config, end, layer, sample)


def check_slots(memory, config, end, layer, sample):
    slots = memory.slots(layer, sample)
    sink = frames_of(memory, "sink", layer, sample)
    slow = frames_of(memory, "slow", layer, sample)
    fast = frames_of(memory, "fast", layer, sample)
    assert sink == list(range(min(config.sink, end)))
    assert slow == sorted(set(slow))
    assert len(slow) <= config.slow
    assert set(slow) <= set(range(2 * CHUNK, end, CHUNK))
    past = end if config.fast is None else config.fast - CHUNK
    assert fast == list(range(max(len(sink), end - past), end))
    positions = [slot.position for slot in slots]
    if config.capacity is not None:
        assert len(slots) + CHUNK <= config.capacity
    if config.positions == "absolute":
        assert positions == [slot.frame for slot in slots]
    else:
        view = memory.view(layer, CHUNK)
        query = view.query_positions_BF[sample].tolist()
        assert positions + query == sorted(set(positions + query))
        assert positions[:1] in ([], [0]) or not sink
        if config.capacity is not None:
            assert query[-1] < config.capacity


@settings(max_examples=40, deadline=None)
@given(configs | endless, st.integers(0, 14))
def test_view_holds_the_frames_and_positions_of_the_slots(config, chunks):
    films = [0, 1]
    memory = fill(config, chunks, films)
    for layer in range(MODEL.layers):
        view = memory.view(layer, CHUNK)
        for sample in range(len(films)):
            frames = view.v_BKHD[sample, ::TOKENS, 0, 0].tolist()
            keys = view.k_BKHD[sample].unflatten(0, (-1, TOKENS))
            valid = [True] * len(frames)
            if view.valid_BT is not None:
                valid = view.valid_BT[sample].tolist()
            positions = view.positions_BT[sample].tolist()
            held = {
                (int(frame), position)
                for frame, position, has in zip(frames, positions, valid, strict=True)
                if has
            }
            slots = memory.slots(layer, sample)
            assert held == {(slot.frame, slot.position) for slot in slots}
            assert sum(valid) == len(slots)
            for frame, key, has in zip(frames, keys, valid, strict=True):
                if has:
                    source = chunk_kv(int(frame) // CHUNK * CHUNK, [films[sample]]).k[layer][0]
                    offset = int(frame) % CHUNK * TOKENS
                    assert torch.equal(key, source[offset : offset + TOKENS])


@settings(max_examples=30, deadline=None)
@given(configs, st.integers(1, 14))
def test_films_do_not_depend_on_their_batch_mates(config, chunks):
    together = fill(config, chunks, [4, 5])
    for sample, film in enumerate((4, 5)):
        alone = fill(config, chunks, [film])
        for layer in range(MODEL.layers):
            assert together.slots(layer, sample) == alone.slots(layer, 0)


def test_uniform_rules_give_the_known_frames():
    every_second = fill(UNIFORM, 30)
    assert frames_of(every_second, "sink") == [0, 1, 2]
    assert frames_of(every_second, "slow") == list(range(18, 85, 6))
    assert frames_of(every_second, "fast") == [87, 88, 89]
    every = fill(dataclasses.replace(UNIFORM, promotion="uniform-1"), 30)
    assert frames_of(every, "slow") == list(range(54, 88, 3))
    early = fill(UNIFORM, 5)
    assert frames_of(early, "slow") == [6, 12]


def test_bounded_positions_of_the_paper_in_steady_state():
    memory = fill(UNIFORM, 40)
    by_role = {
        role: [slot.position for slot in memory.slots(0) if slot.role == role]
        for role in ("sink", "slow", "fast")
    }
    assert by_role == {
        "sink": [0, 1, 2],
        "slow": list(range(3, 15)),
        "fast": [15, 16, 17],
    }
    assert memory.view(0, CHUNK).query_positions_BF.tolist() == [[18, 19, 20]]


def test_bounded_positions_at_the_start_are_the_true_frames():
    for chunks in range(3):
        memory = fill(UNIFORM, chunks)
        assert [slot.position for slot in memory.slots(0)] == list(range(chunks * CHUNK))
        query = memory.view(0, CHUNK).query_positions_BF.tolist()
        assert query == [list(range(chunks * CHUNK, (chunks + 1) * CHUNK))]


def test_positions_while_slow_memory_fills():
    memory = fill(UNIFORM, 4)
    assert [(s.frame, s.role, s.position) for s in memory.slots(0)] == [
        (0, "sink", 0),
        (1, "sink", 1),
        (2, "sink", 2),
        (6, "slow", 8),
        (9, "fast", 9),
        (10, "fast", 10),
        (11, "fast", 11),
    ]


def test_window_and_absolute_positions():
    infinity = MemoryConfig(sink=1, slow=0, fast=5, positions="window")
    memory = fill(infinity, 10)
    assert [tuple(slot) for slot in memory.slots(0)] == [
        (0, "sink", 0),
        (28, "fast", 1),
        (29, "fast", 2),
    ]
    assert memory.view(0, CHUNK).query_positions_BF.tolist() == [[3, 4, 5]]
    absolute = fill(dataclasses.replace(infinity, positions="absolute"), 10)
    assert absolute.view(0, CHUNK).query_positions_BF.tolist() == [[30, 31, 32]]


def test_a_run_of_duplicates_never_reaches_the_sink():
    placement = place(
        "bounded", (0, 1, 2), (6, 3, 4, 5, 6, 7, 8), committed=9, new_frames=3, capacity=36
    )
    assert placement.memory == (0, 1, 2, *range(3, 10))
    assert placement.query == (10, 11, 12)


def test_bounded_positions_need_a_capacity():
    with pytest.raises(ValueError, match="capacity"):
        place("bounded", (), (), committed=0, new_frames=3, capacity=None)


@pytest.mark.parametrize("decision", ["shared", "per-layer"])
def test_surprisal_by_definition(decision):
    """Replayed plainly: mean key, cosine to the last chunk's, below tau, oldest leaves."""
    config = MemoryConfig(tau=0.62, decision=decision, slow=3)
    chunks = 20
    memory = fill(config, chunks)
    expected = [[] for _ in range(MODEL.layers)]
    previous = None
    for index in range(chunks):
        means = [k[0].mean(0).flatten() for k in chunk_kv(index * CHUNK, [0]).k]
        if previous is not None and index >= 2 and index % 2 == 0:
            pairs = zip(means, previous, strict=True)
            cosines = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
            if decision == "shared":
                cosines = [sum(cosines) / len(cosines)] * len(cosines)
            for layer, cosine in enumerate(cosines):
                if cosine < config.tau:
                    expected[layer] = [*expected[layer], index * CHUNK][-config.slow :]
        previous = means
    assert [frames_of(memory, "slow", layer) for layer in range(MODEL.layers)] == expected
    kept = {test.kept for test in memory.promotions}
    assert kept == {True, False}
    same = len({tuple(frames) for frames in expected}) == 1
    assert same == (decision == "shared")


def test_promotions_are_logged_for_histograms():
    memory = fill(MemoryConfig(tau=1.0), 6, [0, 1])
    assert [(test.chunk, test.layer, test.sample) for test in memory.promotions] == [
        (chunk, layer, sample)
        for chunk in (2, 4)
        for layer in range(MODEL.layers)
        for sample in range(2)
    ]
    for test in memory.promotions:
        assert test.cosine is not None
        assert test.kept == (test.cosine < 1.0)
    assert all(test.cosine is None and test.kept for test in fill(UNIFORM, 6).promotions)


def test_threshold_is_strict():
    assert not select.is_surprising(0.95, 0.95)
    assert select.is_surprising(0.949, 0.95)
    assert select.promotions([[0.1, 0.99]], 0.95) == [[True, False]]


def test_cosines_need_equal_shapes():
    with pytest.raises(ValueError, match="expected equal"):
        select.surprisal_cosines(torch.zeros(2, 1, 4), torch.zeros(2, 1, 5), "shared")


def test_a_ragged_batch_is_marked():
    memory = fill(MemoryConfig(tau=0.6, decision="shared"), 10, [0, 1, 2, 3])
    counts = {len(memory.slots(0, sample)) for sample in range(4)}
    assert len(counts) > 1
    view = memory.view(0, CHUNK)
    assert view.valid_BT is not None
    assert view.valid_BT.sum(1).tolist() == [len(memory.slots(0, s)) for s in range(4)]
    assert fill(UNIFORM, 10, [0, 1]).view(0, CHUNK).valid_BT is None


def test_a_full_memory_is_read_without_a_copy():
    memory = fill(UNIFORM, 30)
    first, second = memory.view(1, CHUNK), memory.view(1, CHUNK)
    assert first.k_BKHD.data_ptr() == second.k_BKHD.data_ptr()
    assert first.k_BKHD.shape == (1, 18 * TOKENS, MODEL.heads, MODEL.head_dim)


def test_endless_memory_grows_seldom():
    config = MemoryConfig(sink=0, slow=0, fast=None, positions="absolute")
    memory = memory_of(config)
    buffers = set()
    for index in range(3 * GROWTH_CHUNKS):
        memory.commit(chunk_kv(index * CHUNK, [0]))
        buffers.add(memory.view(0, CHUNK).k_BKHD.untyped_storage().data_ptr())
    assert len(buffers) <= 3
    assert frames_of(memory, "fast") == list(range(3 * GROWTH_CHUNKS * CHUNK))


def test_reset_forgets():
    memory = fill(UNIFORM, 12)
    memory.reset()
    assert (memory.frames, memory.slots(0), memory.promotions) == (0, (), [])
    assert memory.view(0, CHUNK).k_BKHD.shape[1] == 0
    for index in range(7):
        memory.commit(chunk_kv(index * CHUNK, [0]))
    assert memory.slots(0) == fill(UNIFORM, 7).slots(0)


def test_wrong_chunks_are_refused():
    memory = fill(OURS, 2)
    with pytest.raises(RuntimeError, match="starts at frame 9, but 6"):
        memory.commit(chunk_kv(9, [0]))
    with pytest.raises(RuntimeError, match="expected 3 of"):
        memory.commit(chunk_kv(6, [0, 1]))
    good = chunk_kv(6, [0])
    with pytest.raises(RuntimeError, match="2 layers"):
        memory.commit(ChunkKV(good.k[:2], good.v[:2], 6))
    with pytest.raises(ValueError, match="new_frames=4"):
        memory.view(0, 4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at most the 21"):
        MemoryConfig(attend=24)
    with pytest.raises(ValueError, match="batch=0"):
        memory_of(OURS, 0)
    with pytest.raises(ValueError, match=r"memory\.fast=2"):
        memory_of(MemoryConfig(fast=2))


def in_room(memory: SlotMemory, chunk: ChunkKV) -> ChunkKV:
    """The chunk with its values where a pass puts them: behind those that the memory shows."""
    size, v = CHUNK * TOKENS, list[torch.Tensor]()
    for layer, values in enumerate(chunk.v):
        roomy = memory.view(layer, CHUNK).roomy_v_BKHD
        v.append(values if roomy is None else roomy[:, -size:].copy_(values))
    return ChunkKV(chunk.k, tuple(v), chunk.first_frame)


@pytest.mark.parametrize("fast", [4, 5, 6, 9])
@pytest.mark.parametrize("promotion", ["uniform-1", "uniform-2"])
def test_values_left_in_the_room_reach_their_slots(fast, promotion):
    """Also where the window is so small that its slots are the room of an earlier frame."""
    config = MemoryConfig(sink=6, slow=3, fast=fast, promotion=promotion)
    memory = memory_of(config)
    for index in range(12):
        chunk = chunk_kv(index * CHUNK, [0])
        memory.commit(in_room(memory, chunk))
        right = fill(config, index + 1)
        for layer in range(MODEL.layers):
            found, wanted = memory.view(layer, CHUNK), right.view(layer, CHUNK)
            assert torch.equal(found.v_BKHD, wanted.v_BKHD)
            assert torch.equal(found.k_BKHD, wanted.k_BKHD)


def test_an_endless_memory_never_settles_and_comes_back():
    config = MemoryConfig(sink=0, slow=0, fast=None, positions="absolute")
    memory = memory_of(config)
    for index in range(5 * GROWTH_CHUNKS // 2):
        memory.commit(chunk_kv(index * CHUNK, [0]))
        assert not memory.view(0, CHUNK).settled
    again = memory_of(config)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.view(1, CHUNK).v_BKHD, memory.view(1, CHUNK).v_BKHD)
    assert fill(UNIFORM, 30).view(0, CHUNK).settled


def test_a_state_laid_out_otherwise_is_refused():
    memory = fill(UNIFORM, 12)
    state = memory.state_dict()
    old = {**state, "k": state["k"][:, :, None], "v": state["v"][:, :, None]}
    with pytest.raises(ValueError, match="older version"):
        memory_of(UNIFORM).load_state_dict(old)
