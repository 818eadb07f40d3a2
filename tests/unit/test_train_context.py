"""Context clips, error banks, the teacher, self-made films and distribution matching."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cfmodel.config import MemoryConfig
from cfmodel.nn.transformer import VideoTransformer
from cfmodel.presets import ours
from cfmodel.tinyworld.caption import parse
from cfmodel.tinyworld.scene import EVENTS, chunk_start, sample_scene
from cfmodel.train.codec import CodecStage
from cfmodel.train.data import (
    CONTEXT,
    LOCAL,
    SCRIPT_CHUNKS,
    SINK,
    SLOW,
    TARGET,
    context_clips,
    contiguous_clips,
    kept_chunks,
    openings,
    returns_at,
    scripts,
    world_stream,
)
from cfmodel.train.draws import Draws
from cfmodel.train.errors import ErrorBank, Recycling, bank_bytes, clean_error, noise_error
from cfmodel.train.films import Film, FreshFilms, Rollout, remembered
from cfmodel.train.losses import noised
from cfmodel.train.matching import Matching, MatchingStage, score
from cfmodel.train.pool import ClipPool, Ring, context_units
from cfmodel.train.roller import Roller
from cfmodel.train.stages import NUMBERS
from cfmodel.train.state import Trainable
from cfmodel.train.streams import ContextStream, StreamingFilms
from cfmodel.train.teacher import ContextTeacher, score_flow
from cfmodel.train.texts import Held, Texts
from tests.helpers.nano import NANO, nano_model, seeded

CPU = torch.device("cpu")
MODEL = NANO.model


class PixelEmbedder:
    """Latents that are means of their frames' pixels, so that a test can tell which frames."""

    def encode(self, rgb: Tensor) -> Tensor:
        first, rest = rgb[:, :1].mean((1, 3, 4)), rgb[:, 1:].unflatten(1, (-1, 4)).mean((2, 4, 5))
        means = torch.cat([first[:, None], rest], 1)
        rows, columns = NANO.geometry.latent_size
        return means[..., None, None].expand(-1, -1, -1, rows, columns)

    def embed(self, texts: list[str]) -> Tensor:
        return torch.tensor([[[float(len(text))]] for text in texts])


# --- data -----------------------------------------------------------------------------------------


def test_returns_are_of_things_that_were_gone_for_longer_than_the_local_context():
    kinds = set()
    for seed in range(60):
        scene = sample_scene(seed)
        starts = [sum(e.chunks for e in scene.script[:k]) for k in range(len(scene.script))]
        for chunk in returns_at(scene):
            k = starts.index(chunk)
            event, before = scene.script[k], scene.script[k - 1]
            kinds.add(event.kind)
            if event.kind in ("pan-back", "enter"):
                assert before.kind in ("away", "absent")
                assert before.chunks * 3 >= LOCAL
            else:
                assert event.kind == "pan-away"
                assert any(e.kind == "pan-away" for e in scene.script[:k])
    assert kinds == {"pan-back", "enter", "pan-away"}


def test_most_context_clips_show_something_again():
    batch = context_clips()(list(range(100)))
    assert batch.returning.float().mean() >= 0.5


def test_context_clips_hold_the_frames_that_they_name():
    batch = context_clips(opening=0)([3, 4, 5, 6])
    assert len(batch) == 4
    assert len(batch.sink_tracks) == 4 * chunk_start(1)
    assert len(batch.tail_tracks) == 4 * (1 + 4 * (LOCAL + TARGET))
    assert len(batch.slow_tracks) == 5 * len(batch.slow)
    for texts in batch.texts:
        assert len(texts) == CONTEXT + TARGET
        assert all(texts[:SINK])
        assert all(texts[SINK + SLOW :])
    for clip, slot in batch.slow.tolist():
        assert batch.texts[clip][SINK + slot]
    held = {clip: [s for c, s in batch.slow.tolist() if c == clip] for clip in range(4)}
    for slots in held.values():
        assert slots == list(range(SLOW - len(slots), SLOW))


def test_some_context_clips_are_the_beginning_of_a_film():
    share = context_clips()(list(range(200))).opening.float().mean()
    assert 0.08 < share < 0.25
    batch = context_clips(opening=1)([3, 4])
    assert not batch.returning.any()
    assert not len(batch.slow)
    units = context_units(PixelEmbedder(), ours("tiny").geometry, CPU)(batch)
    assert units["valid"].sum(1).tolist() == [TARGET, TARGET]
    assert units["valid"][:, CONTEXT:].all()
    assert not any(text for texts in batch.texts for text in texts[:CONTEXT])
    # The target's latents are those of the film from its first frame on.
    from cfmodel.tinyworld.render import render

    rgb = render(batch.tail_tracks[: 1 + 4 * 2], 80, 128).rgb
    target = units["x0"][0, CONTEXT:, :, 0, 0]
    torch.testing.assert_close(target[0], rgb[0].mean((1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(target[2], rgb[5:9].mean((0, 2, 3)), atol=1e-5, rtol=0)


def test_kept_chunks_are_old_candidates_only():
    import random

    for seed in range(30):
        kept = kept_chunks(sample_scene(seed), 30, random.Random(seed))
        assert kept == sorted(kept)
        assert len(kept) <= SLOW
        assert all(c % 2 == 0 and 2 <= c < 28 for c in kept)


def test_context_units_encode_what_continuous_encoding_gives():
    # A film whose brightness is its frame number: each latent tells which frames it was made of.
    embedder = PixelEmbedder()
    seeds = [11, 12]
    batch = context_clips(opening=0)(seeds)
    make = context_units(embedder, ours("tiny").geometry, CPU)
    units = make(batch)
    assert units["x0"].shape[:2] == (2, CONTEXT + TARGET)
    assert units["valid"][:, :SINK].all()
    assert units["valid"][:, SINK + SLOW :].all()
    assert units["valid"].sum() == 2 * (SINK + LOCAL + TARGET) + len(batch.slow)
    absent = ~units["valid"]
    assert (units["x0"][absent] == 0).all()
    # Slow latents come from the four frames after the one in front of them.
    clip, slot = batch.slow[0].tolist()
    from cfmodel.tinyworld.render import render

    rgb = render(batch.slow_tracks[:5], 80, 128).rgb
    torch.testing.assert_close(
        units["x0"][clip, SINK + slot, :, 0, 0], rgb[1:].mean((0, 2, 3)), atol=1e-5, rtol=0
    )


def test_stream_goes_on_from_any_batch_and_does_not_depend_on_workers():
    sample = contiguous_clips(2)
    stream = world_stream(sample, batch=2, stream="s")
    batches = [next(stream) for _ in range(3)]
    again = next(world_stream(sample, batch=2, stream="s", first=2))
    assert again.texts == batches[2].texts
    worked = world_stream(sample, batch=2, stream="s", workers=2)
    assert [next(worked).texts for _ in range(3)] == [b.texts for b in batches]


def test_scripts_mark_returns():
    made = scripts(30)([1, 2, 3])
    assert [len(row) for row in made.texts] == [30] * 3
    for k, seed in enumerate((1, 2, 3)):
        expected = [c for c in returns_at(sample_scene(seed)) if c < 30]
        assert made.returns[k].nonzero().flatten().tolist() == expected


def test_decoder_stage_leaves_the_latents_alone(tmp_path: Path):
    small = dataclasses.replace(NANO, geometry=ours("tiny").geometry)
    whole = CodecStage(small, CPU, batch=2)
    whole.evaluate()
    before = load_file(whole.save(tmp_path / "a", {})[0])
    stage = CodecStage(small, CPU, init=before, batch=2)
    stage.step(0, 0.1)
    stage.evaluate()
    after = load_file(stage.save(tmp_path / "b", {})[0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


# --- pool -----------------------------------------------------------------------------------------


def test_ring_replaces_the_oldest():
    ring, random = Ring(3), torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="empty"):
        ring.draw(1, random)
    for value in range(5):
        ring.put({"x": torch.tensor([value])})
    assert ring.filled == 3
    assert ring.taken == 5
    assert set(ring.draw(64, random)["x"].tolist()) == {2, 3, 4}


def test_pool_keeps_halves_and_gives_floats():
    pool = ClipPool(
        lambda first: iter(range(first, 100)),
        lambda k: {"x0": torch.full((1, 2), k / 3), "valid": torch.ones(1, dtype=torch.bool)},
        capacity=4,
        draws=Draws(CPU, 0),
    )
    for _ in range(6):
        pool.refill()
    units = pool.read(8)
    assert pool.distinct == 6
    assert units["x0"].dtype == torch.float32
    assert units["valid"].dtype == torch.bool
    assert units["x0"].min() >= 2 / 3 - 0.01


# --- error banks ----------------------------------------------------------------------------------


def test_errors_are_those_of_clean_latents_and_of_noise():
    x0, eps = seeded(4, 3, seed=1), seeded(4, 3, seed=2)
    sigma, v = torch.tensor(0.3), seeded(4, 3, seed=3)
    xt = (1 - sigma) * x0 + sigma * eps
    goal = eps - x0
    torch.testing.assert_close(clean_error(v, goal, sigma), (xt - sigma * v) - x0)
    torch.testing.assert_close(noise_error(v, goal, sigma), (xt + (1 - sigma) * v) - eps)


@pytest.mark.parametrize("host", [False, True])
def test_bank_keeps_bins_apart_and_replaces_the_nearest(host):
    bank = ErrorBank(4, 2, (1,), CPU, host=host)
    low, high = torch.tensor([0.1]), torch.tensor([0.9])
    bank.add(torch.tensor([[1.0]]), low)
    bank.add(torch.tensor([[5.0]]), low)
    bank.add(torch.tensor([[-9.0]]), high)
    assert bank.counts.tolist() == [2, 0, 0, 1]
    bank.add(torch.tensor([[4.0]]), low)  # nearest to 5, which it replaces
    draws = Draws(CPU, 0)
    found, there = bank.draw(draws, torch.full((64,), 0.1), 64)
    assert there.all()
    assert set(found.flatten().tolist()) == {1.0, 4.0}
    _, there = bank.draw(draws, torch.tensor([0.4]), 1)
    assert not there.any()
    found, there = bank.draw(draws, None, 300)
    assert there.all()
    share = (found == -9).float().mean()
    assert 0.2 < share < 0.47  # one of three entries


@pytest.mark.parametrize("host", [False, True])
def test_empty_bank_gives_no_error_from_any_bin(host):
    found, there = ErrorBank(4, 2, (1,), CPU, host=host).draw(Draws(CPU, 0), None, 8)
    assert not there.any()
    assert not found.any()


def test_bank_on_the_host_is_the_same_bank():
    """Stored, replaced, drawn, saved and restored alike, more entries than a search takes at once.

    An error that was stored does not follow what its maker does with it afterwards.
    """
    banks = [ErrorBank(2, 40, (3, 2), CPU, host=host) for host in (False, True)]
    for seed in range(4):
        errors, sigma = seeded(32, 3, 2, seed=seed).bfloat16(), seeded(32, seed=seed + 9).sigmoid()
        for bank in banks:
            mine = errors.clone()
            bank.add(mine, sigma)
            mine.zero_()
    assert banks[0].counts.tolist() == [40, 40]
    again = ErrorBank(2, 40, (3, 2), CPU, host=True)
    again.load_state_dict(copy.deepcopy(banks[1].state_dict()))
    for level in (None, torch.full((64,), 0.8)):
        on_device, on_host, restored = (
            bank.draw(Draws(CPU, 5), level, 64)[0] for bank in (*banks, again)
        )
        assert torch.equal(on_device, on_host)
        assert torch.equal(on_device, restored)


def test_bank_on_the_host_holds_what_came_and_no_more():
    bank = ErrorBank(2, 500, (3, 2), CPU, host=True)
    bank.add(seeded(5, 3, 2), torch.full((5,), 0.9))
    held = [entry for entries in bank.state_dict()["stored"] for entry in entries]
    assert sum(entry.nbytes for entry in held) == bank_bytes(5, (3, 2))
    assert NUMBERS["wan-1.3b"].recycling.host
    assert not NUMBERS["tiny"].recycling.host


# --- teacher --------------------------------------------------------------------------------------


def _units(batch: int = 2) -> dict[str, Tensor]:
    frames = CONTEXT + TARGET
    valid = torch.ones(batch, frames, dtype=torch.bool)
    valid[0, SINK : SINK + 5] = False
    rows, columns = NANO.geometry.latent_size
    return {
        "x0": seeded(batch, frames, MODEL.latent_channels, rows, columns, seed=4),
        "text": seeded(batch, frames, MODEL.text_tokens, MODEL.text_width, seed=5),
        "valid": valid,
        "returning": torch.tensor([True] * batch),
    }


def test_absent_context_is_not_seen_and_present_context_is():
    net, units = nano_model(), _units()
    sigma = torch.full((2,), 0.5)

    def flow(x0: Tensor) -> Tensor:
        return score_flow(net, x0, sigma, units["text"], units["valid"])

    clean, other = flow(units["x0"]), units["x0"].clone()
    other[0, SINK] = 9.0
    torch.testing.assert_close(flow(other), clean)
    other[0, SINK + 6] = 9.0
    assert (flow(other)[0] - clean[0]).abs().max() > 1e-4
    assert clean.shape[1] == TARGET


class _Spy:
    """A network that remembers what it was given and predicts zero flow."""

    geometry = NANO.geometry

    def __init__(self) -> None:
        self.x = torch.zeros(())

    def text_kv(self, text: Tensor) -> Tensor:
        return text

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, mask: Any = None) -> Any:
        self.x = x
        return type("Out", (), {"v_BFCXY": torch.zeros_like(x)})()


def test_teacher_puts_errors_where_and_as_often_as_told():
    recycling = Recycling(bins=1, entries=4, local=1.0, target=1.0, noise=0.0, clean=0.0, updates=0)
    teacher, spy, units = ContextTeacher(NANO, CPU, recycling), _Spy(), _units(64)
    rows, columns = NANO.geometry.latent_size
    bump = torch.full((1, TARGET, MODEL.latent_channels, rows, columns), 100.0)
    teacher.clean.add(bump, torch.tensor([0.5]))
    teacher.loss(spy, teacher.draw(units, Draws(CPU, 0)))
    context = spy.x[:, :CONTEXT] - units["x0"][:, :CONTEXT]
    assert (context[:, : SINK + SLOW] == 0).all()
    torch.testing.assert_close(
        context[:, SINK + SLOW :], torch.full_like(context[:, -LOCAL:], 100.0), atol=1e-3, rtol=0
    )
    assert spy.x[:, CONTEXT:].mean((1, 2, 3, 4)).max() > 10

    spared = ContextTeacher(NANO, CPU, dataclasses.replace(recycling, clean=0.5))
    spared.clean.add(bump, torch.tensor([0.5]))
    spared.loss(spy, spared.draw(units, Draws(CPU, 0)))
    hit = (spy.x[:, CONTEXT - LOCAL : CONTEXT] - units["x0"][:, CONTEXT - LOCAL : CONTEXT]).abs()
    assert 0.3 < (hit.amax((1, 2, 3, 4)) > 1).float().mean() < 0.7


def test_teacher_aims_at_the_uncorrupted_target():
    # With zero flow and errors on the target, the loss is that of the clean goal.
    recycling = Recycling(bins=1, entries=1, local=0.0, target=1.0, noise=0.0, clean=0.0, updates=0)
    teacher, units = ContextTeacher(NANO, CPU, recycling), _units(8)
    before, _ = teacher.loss(_Spy(), teacher.draw(units, Draws(CPU, 0)))
    rows, columns = NANO.geometry.latent_size
    shape = (1, TARGET, MODEL.latent_channels, rows, columns)
    teacher.clean.add(torch.full(shape, 50.0), torch.tensor([0.5]))
    after, _ = teacher.loss(_Spy(), teacher.draw(units, Draws(CPU, 0)))
    torch.testing.assert_close(after, before)


def test_teacher_stores_its_errors():
    teacher = ContextTeacher(NANO, CPU, Recycling(bins=2, entries=8, updates=3))
    batch = teacher.draw(_units(4), Draws(CPU, 0))
    teacher.learn(batch, teacher.loss(nano_model(), batch)[1].detach())
    assert teacher.clean.counts.sum() == teacher.noise.counts.sum() == 3


# --- films ----------------------------------------------------------------------------------------


def _texts(films: int = 6, chunks: int = 12) -> Texts:
    table = seeded(20, MODEL.text_tokens, MODEL.text_width, seed=8)
    index = torch.randint(20, (films, chunks), generator=torch.Generator().manual_seed(0))
    returns = torch.zeros(films, chunks, dtype=torch.bool)
    returns[2, chunks - 2] = True
    return Texts(Held(table, CPU), index, returns, CPU)


def _roller(batch: int = 2, **memory: Any) -> Roller:
    changed = dataclasses.replace(NANO.memory, **memory)
    return Roller(dataclasses.replace(NANO, memory=changed), batch, Draws(CPU, 0))


def test_length_of_films_grows_with_the_curriculum():
    plan = Rollout(shortest=84, longest=105, curriculum=0.5)
    assert plan.length(0.0, 0.999) == 84
    assert {plan.length(1.0, u / 100) for u in range(100)} == {84, 87, 90, 93, 96, 99, 102, 105}
    assert max(plan.length(0.25, u / 100) for u in range(100)) == 93


def test_texts_prefer_films_with_a_return():
    texts, random = _texts(), torch.Generator().manual_seed(0)
    wanted = texts.draw(1, 12, torch.Generator().manual_seed(1), returning=1.0)
    again = texts.draw(4, 12, random, returning=1.0)
    assert all(torch.equal(row, wanted[0]) for row in again)


def test_texts_midway_are_stretches_of_one_script():
    script = torch.arange(2 * 12).view(2, 12)  # each chunk of each film has a text of its own
    table = torch.arange(24.0)[:, None, None]
    texts = Texts(Held(table, CPU), script, torch.zeros(2, 12, dtype=torch.bool), CPU)
    drawn = texts.draw(400, 5, torch.Generator().manual_seed(0), midway=0.5)[..., 0, 0]
    assert (drawn.diff(dim=1) == 1).all()
    starts = drawn[:, 0] % 12
    assert set(starts.tolist()) == set(range(8))
    # Half of them, and one in 8 of the others by chance, begin where the film does.
    assert 0.46 < float((starts == 0).float().mean()) < 0.66
    assert (texts.draw(50, 5, torch.Generator().manual_seed(0))[:, 0, 0, 0] % 12 == 0).all()


def test_stage_1_is_told_of_every_event():
    """The first chunks of a script hold still: a student shown only these never learns the rest."""
    rows = scripts(SCRIPT_CHUNKS)(list(range(40))).texts
    kinds = [[parse(text).event for text in row] for row in rows]
    index = torch.tensor([[EVENTS.index(kind) for kind in row if kind] for row in kinds])
    table = torch.arange(float(len(EVENTS)))[:, None, None]
    texts = Texts(Held(table, CPU), index, torch.zeros_like(index, dtype=torch.bool), CPU)
    plan = NUMBERS["tiny"].local
    drawn = texts.draw(400, 7, torch.Generator().manual_seed(0), midway=plan.midway).flatten()
    share = torch.bincount(drawn.long(), minlength=len(EVENTS)) / len(drawn)
    assert share.min() > 0.01
    assert share[EVENTS.index("away")] > 0.1


def test_padded_memory_is_the_same_film():
    model, draws = nano_model(), [Draws(CPU, 3), Draws(CPU, 3)]
    text = model.text_kv(seeded(2, 12, MODEL.text_tokens, MODEL.text_width, seed=8))
    films = []
    for padded, source in zip((False, True), draws, strict=True):
        roller = _roller()
        roller.draws = source
        memory = roller.memory()
        memory._padded = padded
        films.append(
            torch.cat([roller.chunk(model, memory, text.select(k), exit_step=3) for k in range(9)])
        )
    torch.testing.assert_close(films[1], films[0], atol=1e-5, rtol=1e-5)


def test_endless_memory_cannot_be_padded():
    roller = _roller(sink=0, slow=0, fast=None, positions="absolute")
    assert roller.memory().view(0, 3).valid_BT is None


def test_gradient_flows_through_the_free_chunks_alone():
    net = nano_model().requires_grad_(True)
    plan = Rollout(shortest=30, longest=30, free=18, first_clean=True, context="memory")
    film = FreshFilms(_roller(), _texts(), plan).make(net, 1.0, grad=True)
    assert film.context is not None
    assert not film.context.requires_grad
    assert film.target.shape[1] == TARGET
    # The first chunk of the target was made before the free ones.
    gradients = torch.autograd.grad(
        film.target[:, :3].sum(), list(net.parameters()), retain_graph=True, allow_unused=True
    )
    assert all(g is None or not g.any() for g in gradients)
    for start in range(3, TARGET, 3):
        gradient = torch.autograd.grad(
            film.target[:, start : start + 3].square().sum(),
            net.head.linear.weight,
            retain_graph=True,
        )[0]
        assert gradient.abs().max() > 0


def _film_gradients(plan: Rollout, *, checkpointing: bool = False) -> list[Tensor]:
    """Gradients of a fixed function of a film's target, and the target, from the same draws."""
    trained = Trainable(nano_model().requires_grad_(True), lr=1.0, clip=1e9)
    trained.prepare(checkpointing=checkpointing)
    film = FreshFilms(_roller(tau=0.9999), _texts(chunks=14), plan).make(
        trained.module, 1.0, grad=True
    )
    weight = seeded(*film.target.shape, seed=11)
    if film.terms is None:
        (film.target * weight).sum().backward()
    else:
        assert not film.target.requires_grad
        for term in film.terms(weight):
            term.backward()
    found = [p.grad for p in trained.parameters]
    return [film.target.detach(), *(g for g in found if g is not None)]


def test_activations_computed_again_read_the_memory_of_their_time():
    """By the backward pass later chunks have taken the slots of earlier ones."""
    plan = Rollout(shortest=42, longest=42, free=18, first_clean=True, context="memory")
    kept, again = _film_gradients(plan), _film_gradients(plan, checkpointing=True)
    assert len(kept) == len(again)
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("context", ["memory", "contiguous"])
def test_replayed_chunks_give_the_gradients_of_the_film(context):
    plan = Rollout(shortest=42, longest=42, free=18, first_clean=True, context=context)
    kept = _film_gradients(plan)
    again = _film_gradients(dataclasses.replace(plan, replay=True), checkpointing=True)
    assert len(kept) == len(again)
    for a, b in zip(kept, again, strict=True):
        # Sums over films and tokens in another order, in fp32.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [StreamingFilms, ContextStream])
def test_replayed_streams_give_the_gradients_of_the_film(kind):
    """The second call's window may begin with latents of the first, which carry no gradient."""
    memory, plan = {
        StreamingFilms: ({"slow": 0, "fast": 9, "positions": "absolute"}, Rollout(stream=60)),
        ContextStream: ({"tau": 0.9999}, Rollout(stream=72, context="memory")),
    }[kind]
    found = list[list[Tensor]]()
    for replay in (False, True):
        net = nano_model().requires_grad_(True)
        films = kind(
            _roller(**memory), _texts(chunks=24), dataclasses.replace(plan, replay=replay),
            reencode=lambda latents: latents[:, -1:],
        )  # fmt: skip
        films.make(net, 0.0, grad=False)
        film = films.make(net, 0.0, grad=True)
        weight = seeded(*film.target.shape, seed=11)
        terms = film.terms(weight) if film.terms else [(film.target * weight).sum()]
        for term in terms:
            term.backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_replay_of_a_reencoded_window_is_refused():
    plan = Rollout(shortest=36, longest=36, replay=True)
    with pytest.raises(ValueError, match="replay cannot leave out"):
        FreshFilms(_roller(), _texts(), plan)


def test_no_gradient_without_asking():
    net = nano_model().requires_grad_(True)
    film = FreshFilms(_roller(), _texts(), Rollout()).make(net, 1.0, grad=False)
    assert not film.target.requires_grad
    assert film.context is None
    assert film.text.shape[1] == TARGET // 3


def test_memory_context_is_what_the_slots_hold():
    held = [[6, 12, 24, 27], []]
    frames, valid = remembered(held, 30, CPU)
    assert frames[0].tolist() == [0, 1, 2, *[0] * 10, 6, 12, *range(24, 30)]
    assert valid[0].sum() == SINK + 2 + LOCAL
    assert valid[1].sum() == SINK + LOCAL
    film = FreshFilms(_roller(), _texts(), Rollout(shortest=30, longest=30, context="memory"))
    made = film.make(nano_model(), 1.0, grad=False)
    assert made.context is not None
    assert made.valid is not None
    assert made.text.shape[1] == CONTEXT + TARGET
    assert (made.context[~made.valid[:, :CONTEXT]] == 0).all()
    assert made.context[made.valid[:, :CONTEXT]].abs().amax((1, 2, 3)).min() > 0


def test_contiguous_context_needs_neither_mask_nor_a_text_a_latent():
    plan = Rollout(shortest=45, longest=45, context="contiguous")
    films = FreshFilms(_roller(), _texts(chunks=15), plan, reencode=lambda x: x[:, -1:])
    net = nano_model()
    film = films.make(net, 1.0, grad=False)
    assert film.context is not None
    assert (film.valid, film.text.shape[1]) == (None, (CONTEXT + TARGET) // 3)
    sigma, there = torch.tensor([0.4, 0.7]), torch.ones(2, CONTEXT + TARGET, dtype=torch.bool)
    masked = film._replace(text=film.text.repeat_interleave(3, 1), valid=there)
    torch.testing.assert_close(
        score(net, film, film.target, sigma, film.text),
        score(net, masked, film.target, sigma, masked.text),
    )


def test_windows_in_mid_film_begin_with_a_reencoded_frame():
    seen = []

    def reencode(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.full_like(latents[:, :1], 7.0)

    plan = Rollout(shortest=36, longest=36)
    film = FreshFilms(_roller(), _texts(), plan, reencode=reencode).make(
        nano_model(), 1.0, grad=False
    )
    assert (film.target[:, 0] == 7).all()
    assert not (film.target[:, 1] == 7).any()
    assert seen[0].shape[1] == 4
    with pytest.raises(RuntimeError, match="codec"):
        FreshFilms(_roller(), _texts(), plan).make(nano_model(), 1.0, grad=False)


def test_stream_goes_on_and_starts_anew():
    films = StreamingFilms(
        _roller(slow=0, fast=9, positions="absolute"), _texts(chunks=20),
        Rollout(stream=60), reencode=lambda latents: torch.full_like(latents[:, :1], 7.0),
    )  # fmt: skip
    net = nano_model()
    first = films.make(net, 0.0, grad=False)
    second = films.make(net, 0.0, grad=False)
    assert first.target.shape == second.target.shape
    torch.testing.assert_close(second.target[:, 1:3], first.target[:, -2:])
    assert (second.target[:, 0] == 7).all()
    assert not (first.target[:, 0] == 7).all()
    films.make(net, 0.0, grad=False)
    assert films._memory is not None
    assert films._memory.frames == 57
    films.make(net, 0.0, grad=False)
    assert films._memory.frames == 21


@pytest.mark.parametrize("context", ["memory", "contiguous"])
def test_context_stream_shows_finished_films(context):
    before = {"memory": 0, "contiguous": 21}[context]
    opening = 7.0
    films = ContextStream(
        _roller(tau=0.9999), _texts(chunks=32), Rollout(stream=96, context=context),
        reencode=lambda latents: torch.full_like(latents[:, :1], opening),
    )  # fmt: skip
    net, made = nano_model().requires_grad_(True), list[Film]()
    for k in range(3 if context == "memory" else 2):
        made.append(films.make(net, 0.0, grad=True))
        # The target is a try of its own; the films go on in all steps.
        assert films._made.shape[1] == before + (k + 1) * TARGET
        assert not films._made.requires_grad
        assert made[-1].target.requires_grad
        assert films._memory is not None
        assert films._memory.frames == films._made.shape[1]
    film, start = made[-1], films._made.shape[1] - TARGET
    if context == "memory":
        # Nothing comes before a film's beginning.
        assert made[0].valid is not None
        assert made[0].valid.sum(1).tolist() == [TARGET] * len(made[0].target)
        assert made[0].context is not None
        assert not made[0].context.any()
    assert film.context is not None
    assert not film.context.requires_grad
    # What is next to the target is what the films hold there.
    torch.testing.assert_close(film.context[:, -6:], films._made[:, start - 6 : start])
    tried = film.target.detach()
    assert (tried - films._made[:, start:]).abs().max() > 0.01
    if context == "memory":
        assert film.valid is not None
        assert int(film.valid.sum(1).min()) > 3 + 6 + TARGET  # slow memory is in use
        torch.testing.assert_close(film.context[:, :3], films._made[:, :3])
    else:
        assert (film.context[:, 0] == opening).all()
    # All of the target may learn, its last chunk too, and no earlier film does.
    for first in range(0, TARGET, 3):
        gradient = torch.autograd.grad(
            film.target[:, first : first + 3].square().sum(),
            net.head.linear.weight,
            retain_graph=True,
        )[0]
        assert gradient.abs().max() > 0
    # No other target has room after the next one, so these films are not made to go on.
    whole = films.latents
    films.make(net, 0.0, grad=False)
    assert films.latents - whole == len(film.target) * TARGET
    films.make(net, 0.0, grad=False)
    assert films._made.shape[1] == before + TARGET


class Beginnings:
    """Two rendered films, as far as a stream can tell."""

    def __init__(self, films: int, chunks: int = 28) -> None:
        shape = (films, 42, *_roller().sizes[2:])
        texts = _texts(chunks=chunks).draw(films, chunks, torch.Generator().manual_seed(5))
        self.units = {"x0": seeded(*shape, seed=21), "text": texts}
        self.calls = list[str]()

    def fill(self) -> None:
        self.calls.append("fill")

    def refill(self) -> None:
        self.calls.append("refill")

    def read(self, batch: int) -> dict[str, Tensor]:
        self.calls.append("read")
        return {name: x[:batch] for name, x in self.units.items()}

    def state_dict(self) -> dict[str, list[str]]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state) -> None:
        self.calls = state["calls"]


def test_films_may_begin_with_what_the_student_did_not_make():
    roller = _roller(tau=0.9999)
    given = Beginnings(roller.batch)
    plan = Rollout(stream=84, context="memory", history=1.0, after=2 * TARGET)
    films, net = ContextStream(roller, _texts(chunks=28), plan, histories=given), nano_model()
    truth, text = given.units["x0"], given.units["text"]
    first, second = (films.make(net, 0.0, grad=False) for _ in range(2))
    # The teacher is shown what was given, and the memory holds it as the student would read it.
    torch.testing.assert_close(first.context[:, -6:], truth[:, -6:])
    torch.testing.assert_close(first.context[:, :3], truth[:, :3])
    torch.testing.assert_close(first.text[:, -1], text[:, 42 // 3 + 6])
    alone, words = roller.memory(), net.text_kv(text)
    for k, chunk in enumerate(truth.split(3, 1)):
        roller.commit(net, alone, chunk, words.select(k))
    held = [slot.frame for slot in alone.slots(0, 0) if slot.role == "slow"]
    assert [frame for frame in held if frame < 42 - 6] == _slow_of(first, truth)
    # The second target has the student's own latents next to it, and what was given further back.
    torch.testing.assert_close(second.context[:, :3], truth[:, :3])
    assert (second.context[0, -1] - truth[0]).abs().sum((1, 2, 3)).min() > 0.01
    # These films end after two targets.
    assert given.calls == ["fill", "refill", "read"]
    films.make(net, 0.0, grad=False)
    assert given.calls == 2 * ["fill", "refill", "read"]


@pytest.mark.parametrize(("history", "opening"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.6), (0.3, 0.3)])
def test_shares_of_targets(history, opening):
    """How often a film is of a kind, times its targets, is the share of targets wanted."""
    given, texts = Beginnings(2), _texts(chunks=28)
    plan = Rollout(stream=84, context="memory", history=history, opening=opening, after=2 * TARGET)
    kinds = ContextStream(_roller(), texts, plan, histories=given).kinds()
    targets = {
        kind: kinds[kind] * count
        for kind, count in {"history": 2, "opening": 1, "whole": 4}.items()
    }
    wanted = {"history": history, "opening": opening, "whole": 1 - history - opening}
    assert targets == pytest.approx(wanted)


def test_films_end_with_their_opening_or_go_on():
    roller, texts = _roller(batch=1), _texts(chunks=28)
    plan = Rollout(stream=63, context="memory", opening=0.5)
    films, net = ContextStream(roller, texts, plan), nano_model()
    first = [films.make(net, 0.0, grad=False).opening for _ in range(24)]
    starts = [k for k, opening in enumerate(first) if opening]
    lengths = {b - a for a, b in itertools.pairwise(starts)}
    assert lengths == {1, 3}


def test_shares_that_cannot_be_had_are_refused():
    plan = Rollout(stream=84, context="memory", history=0.6, opening=0.6)
    with pytest.raises(ValueError, match="more than all"):
        ContextStream(_roller(), _texts(chunks=28), plan, histories=Beginnings(2))
    with pytest.raises(ValueError, match="none are given"):
        ContextStream(
            _roller(), _texts(chunks=28), Rollout(stream=84, context="memory", history=0.5)
        )
    with pytest.raises(ValueError, match="no target"):
        ContextStream(
            _roller(), _texts(chunks=28), Rollout(stream=84, context="contiguous", opening=0.5)
        )


def test_something_comes_back_after_a_rendered_beginning():
    batch = openings(21, 35)(list(range(24)))
    assert {len(text) for text in batch.texts} == {35}
    frames = len(batch.tracks) // 24
    assert frames == 249
    coming = {"pan-away", "pan-back", "enter"}
    back = [coming & {parse(text).event for text in row[21:28]} for row in batch.texts]
    assert all(back)
    with pytest.raises(RuntimeError, match="nothing comes back"):
        openings(-7, 35)([1])


def _slow_of(film: Film, truth: Tensor) -> list[int]:
    """Which latents of the first film fill the slow part of the teacher's context."""
    assert film.context is not None
    assert film.valid is not None
    return [
        int((truth[0] - slot).abs().sum((1, 2, 3)).argmin())
        for slot, there in zip(film.context[0, 3:15], film.valid[0, 3:15], strict=True)
        if there
    ]


def test_histories_go_on_where_a_run_stopped():
    plan = Rollout(stream=84, context="memory", history=0.5)

    given = [Beginnings(_roller().batch) for _ in range(3)]

    def films(histories: Beginnings) -> ContextStream:
        roller = _roller(tau=0.9999)
        return ContextStream(roller, _texts(chunks=28), plan, histories=histories, seed=3)

    net, whole, first = nano_model(), films(given[0]), films(given[1])
    wanted = [whole.make(net, 0.0, grad=False) for _ in range(6)][3:]
    for _ in range(3):
        first.make(net, 0.0, grad=False)
    again = films(given[2])
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    for film in wanted:
        torch.testing.assert_close(again.make(net, 0.0, grad=False).target, film.target)
    assert given[2].calls == given[0].calls


def test_too_short_films_are_refused():
    with pytest.raises(ValueError, match="has to see something"):
        ContextStream(_roller(), _texts(), Rollout(stream=72))
    with pytest.raises(ValueError, match="no room"):
        ContextStream(_roller(), _texts(), Rollout(stream=18, context="memory"))
    with pytest.raises(ValueError, match="embed longer"):
        ContextStream(_roller(), _texts(chunks=5), Rollout(stream=72, context="memory"))
    with pytest.raises(ValueError, match="no room"):
        FreshFilms(_roller(), _texts(), Rollout(context="contiguous"))
    with pytest.raises(ValueError, match="embed longer"):
        FreshFilms(_roller(), _texts(chunks=5), Rollout())


# --- matching -------------------------------------------------------------------------------------


class _Gaussian:
    """Scores of N(mean of the context, 1): the target's every pixel is drawn around it."""

    def __init__(self, bias: float) -> None:
        self.bias = bias
        self.geometry = NANO.geometry

    def text_kv(self, text: Tensor) -> Tensor:
        return text

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, mask: Any = None) -> Any:
        mean = x[:, :CONTEXT].mean((1, 2, 3, 4), keepdim=True) + self.bias
        a, s = 1 - sigma[:, :1, None, None, None], sigma[:, :1, None, None, None]
        x0 = mean + a * (x - a * mean) / (a**2 + s**2)
        return type("Out", (), {"v_BFCXY": (x - x0) / s})()


def test_contextual_gradient_is_the_analytic_one():
    """Teacher N(m, 1) and critic N(m + 1, 1), m the mean of the context, all in closed form."""
    units = _units()
    film = Film(units["x0"][:, CONTEXT:], units["text"], units["x0"][:, :CONTEXT], units["valid"])
    sigma = torch.tensor([0.4, 0.7])
    xt = noised(film.target, seeded(*film.target.shape, seed=9), sigma[:, None].expand(-1, TARGET))
    each = sigma[:, None, None, None, None]
    real = xt - each * score(_Gaussian(0.0), film, xt, sigma, film.text)
    fake = xt - each * score(_Gaussian(1.0), film, xt, sigma, film.text)
    a = 1 - each
    expected = (1 - a**2 / (a**2 + each**2)).expand_as(fake)
    torch.testing.assert_close(fake - real, expected, atol=1e-4, rtol=1e-4)
    # Another context, another mean: the scores see it.
    other = film._replace(context=units["x0"][:, :CONTEXT] + 3)
    moved = xt - each * score(_Gaussian(0.0), other, xt, sigma, film.text)
    torch.testing.assert_close(moved - real, 3 * expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("large", [False, True])
def test_stage_updates_student_and_critic_and_leaves_the_teacher(large):
    """Also as at 1.3 B: replayed, the average on the host, the teacher in bfloat16."""
    weights = VideoTransformer(MODEL, NANO.geometry).state_dict()
    plan = Rollout(shortest=30, longest=30, context="memory", replay=large)
    films = FreshFilms(_roller(), _texts(), plan)
    stage = MatchingStage(
        "cdmd", NANO, CPU, films, torch.zeros(MODEL.text_tokens, MODEL.text_width),
        Matching(guidance=2.0, shift=1.0, lr=1e-2, critic_lr=1e-2, every=2, critic_updates=2,
                 ema_on_host=large, half_teacher=large),
        student=weights, teacher=weights,
    )  # fmt: skip
    critic: Any = stage.critic.module
    critic.head.linear.weight.data.add_(0.01)
    for step in range(4):
        metrics = stage.step(step, 0.1)
        assert ("dmd" in metrics) == (step % 2 == 0)
    assert stage.student.updates == 2
    assert stage.critic.updates == 8
    after = stage.teacher.state_dict()
    kind = torch.bfloat16 if large else torch.float32
    assert all(torch.equal(after[name], weights[name].to(kind)) for name in weights)
    assert all(p.grad is None for p in stage.teacher.parameters())
    name = "head.linear.weight"
    assert not torch.equal(stage.student.module.state_dict()[name], weights[name])
    assert stage.evaluate()["latents_generated"] == 4 * 2 * 30


@pytest.mark.parametrize("spoilt", ["teacher", "opener"])
def test_openings_and_no_other_targets_have_a_judge_of_their_own(spoilt):
    """A judge that knows nothing gives no direction: where it was asked, that is zero."""
    weights = VideoTransformer(MODEL, NANO.geometry).state_dict()
    plan = Rollout(stream=63, context="memory")
    films = ContextStream(_roller(), _texts(chunks=21), plan)
    stage = MatchingStage(
        "cdmd", NANO, CPU, films, torch.zeros(MODEL.text_tokens, MODEL.text_width),
        Matching(guidance=1.0, opening_guidance=2.0, shift=1.0, lr=1e-3, critic_lr=1e-3),
        student=weights, teacher=weights, opener=weights,
    )  # fmt: skip
    critic: Any = stage.critic.module
    critic.head.linear.weight.data.add_(0.01)
    judge: Any = getattr(stage, spoilt)
    judge.head.linear.weight.data.fill_(torch.nan)
    silent = [float(stage.step(step, 0.1)["dmd"]) == 0 for step in range(6)]
    opening = [True, False, False, True, False, False]
    assert silent == [first == (spoilt == "opener") for first in opening]


def test_memory_config_of_a_stage_is_the_experiments():
    assert isinstance(_roller(slow=0).memory().config, MemoryConfig)
    assert _roller(slow=0).memory().config.slow == 0
