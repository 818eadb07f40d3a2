import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cfbench import prompts
from cfbench.prompts import FIRST
from cfbench.scorers import rules
from cfbench.scorers.tiny import formulas, norm, samples, semantic, watch
from cfbench.scorers.tiny.damage import blur, damages, quantise
from cfbench.scorers.tiny.dims import TinySuite
from cfbench.scorers.tiny.expect import expect, parts_of
from cfbench.scorers.tiny.nets import (
    COLUMNS,
    HEIGHT,
    NETS,
    ROWS,
    WIDTH,
    ReaderOutput,
    text_bytes,
)
from cfbench.scorers.tiny.read import decode, pixels, targets
from cfbench.scorers.tiny.weights import ASSETS, assemble, fused, load, measuring_codec
from cfbench.types import Prompt, Segment
from cfbench.video import Clip, held
from cfmodel.io.codec import random_codec
from cfmodel.presets import ours
from cfmodel.tinyworld.film import film, scene_prompt, truth
from cfmodel.tinyworld.render import render
from cfmodel.tinyworld.scene import COLORS, SHAPES, sample_scene
from cfmodel.tinyworld.tracks import play

FPS = 16
CODEC = random_codec(ours("tiny").codec, device="cpu", dtype=torch.float32)


def prompt_of(seed: int, stratum: str = "short", chunks: int = 8) -> Prompt:
    tree = scene_prompt(seed, stratum, chunks=chunks)
    segments = tuple(Segment(**s) for s in tree["segments"])
    return Prompt(id=tree["id"], segments=segments, stratum=stratum, scene=tree["scene"])


@pytest.fixture(scope="module")
def nets():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return assemble({n: fused(kind()) for n, kind in NETS.items()}, dict.fromkeys(NETS, "0"))


def test_parameters_fit_the_budget():
    assert sum(p.numel() for kind in NETS.values() for p in kind().parameters()) <= 2_200_000


def test_consistency_by_hand():
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    # frame 1: (0.6 + 0.6) / 2; frame 2: negative similarities count as 0.
    assert rules.consistency(vectors) == pytest.approx([0.6, 0.0])


def test_flicker_by_hand():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 51
    assert rules.flicker(frames) == pytest.approx([0.8, 0.8])


def test_strong_flow_is_the_mean_of_the_top_twentieth():
    assert rules.strong_flow(np.arange(100.0).reshape(10, 10)) == pytest.approx(97.0)
    rng = np.random.default_rng(0)
    far = rng.gamma(2, 3, (96, 128)).astype(np.float32)
    grid = np.zeros_like(far)
    grid.ravel()[1 :: rules.SAMPLED] = 9  # large only where no sample looks
    for values in (far, far.round(), np.ones_like(far), grid, far[:1, :7]):
        count = max(1, int(values.size * 0.05))
        assert rules.strong_flow(values) == float(np.sort(values, axis=None)[::-1][:count].mean())
    far[3, 5] = np.nan
    assert np.isnan(rules.strong_flow(far))


def test_dynamic_needs_a_quarter_of_the_sampled_frames():
    limit = 6 / 256 * 80
    strong = np.array([limit + 1e-6] * 4 + [limit] * 11)
    moving = rules.moves(strong, 80, 128)
    assert moving.sum() == 4
    assert rules.is_dynamic(moving, 16)
    moving[0] = False
    assert not rules.is_dynamic(moving, 16)


def test_aesthetic_prefers_contrast_and_a_framed_subject():
    luma = np.zeros((3, 8, 8))
    luma[:, :4] = 0.32
    box = np.array([[0.4, 0.4, 0.6, 0.6], [0.9, 0.4, 1.0, 0.6], [0.0, 0.0, 0.0, 0.0]])
    value = formulas.aesthetic(luma, box, np.array([True, True, False]))
    assert value == pytest.approx([1.0, 0.5 + 0.5 * 0.2, 0.75])
    flat = formulas.aesthetic(luma * 0, box, np.array([True, True, False]))
    assert flat[0] == pytest.approx(0.5)


def test_noise_is_neither_clear_nor_contrast():
    rng = np.random.default_rng(0)
    picture = np.zeros((1, 80, 128))
    picture[:, 20:60, 40:90] = 0.5
    for strength in (10, 60):
        noisy = np.round(255 * picture + rng.normal(0, strength, picture.shape)) / 255
        assert formulas.clarity(noisy)[0] < 0.2
    assert formulas.clarity(picture)[0] == 1.0
    box = np.array([[0.4, 0.4, 0.6, 0.6]])
    noise = rng.normal(0, 0.25, picture.shape)
    assert formulas.aesthetic(noise, box, np.array([True]))[0] < 0.05


def test_latents_of_pieces_and_edges():
    codec = measuring_codec()
    frames = torch.cat(list(film(sample_scene(4), 80))).numpy()
    plain = watch.latent_std(frames, FPS, codec)
    assert len(plain) == 1  # a second piece would end after 81 frames
    assert len(watch.latent_std(frames[:16], FPS, codec)) == 0
    grey = np.repeat(frames.mean((1, 2, 3), keepdims=True), 3, 3).astype(np.uint8)
    flat = watch.latent_std(np.broadcast_to(grey, frames.shape).copy(), FPS, codec)
    loud = (128 + 3.0 * (frames - 128.0)).clip(0, 255).astype(np.uint8)
    assert flat[0] < 0.8 * plain[0] < 0.9 * watch.latent_std(loud, FPS, codec)[0]
    # The piece's first latent holds a single frame and does not count.
    other = frames.copy()
    other[0] = 0
    assert watch.latent_std(other, FPS, codec)[0] == pytest.approx(plain[0], rel=0.2)


def test_windows_leave_out_what_does_not_apply():
    values = np.array([1.0, 0.0, np.nan, np.nan, 1.0])
    rows = formulas.windows(values, np.arange(5.0), step_s=1.0, end_s=5.0)
    assert [(r.start_s, r.end_s, r.value) for r in rows] == [(0, 2, 0.5), (2, 4, None), (4, 5, 1.0)]


def scores_of(nets, frames, text: str):
    prompt = Prompt(id="p", segments=(Segment(text=text, seconds=60),))
    found = TinySuite(nets, CODEC).score(held(frames, FPS), prompt)
    return {score.dimension: score for score in found}


def test_scores_do_not_depend_on_blocks_or_on_who_scores_beside(nets):
    prompts_of = [prompt_of(seed) for seed in (1, 2)]
    clips: list[Clip] = []
    for prompt in prompts_of:
        frames = torch.cat(list(film(prompt.scene, 20))).numpy()
        clips.append(held(frames, FPS))
        parts = np.split(frames, [3, 15])
        streamed = dataclasses.replace(clips[-1], blocks=lambda parts=parts: iter(parts))
        assert TinySuite(nets, CODEC).score(streamed, prompt) == TinySuite(nets, CODEC).score(
            clips[-1], prompt
        )
    suite, alone = TinySuite(nets, CODEC), TinySuite(nets, CODEC)
    work = list(zip(clips, prompts_of, strict=True)) * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: suite.score(*pair), work))
    assert found == [alone.score(*pair) for pair in work]


def test_a_still_film_neither_flickers_nor_moves(nets):
    frames = next(iter(film(sample_scene(3), 1))).numpy().repeat(40, 0)
    scores = scores_of(nets, frames, "A red cube rests on snow. A fixed shot.")
    assert scores["temporal_flickering"].value == 1.0
    assert scores["motion_smoothness"].value == 1.0
    assert scores["dynamic_degree"].value == 0.0
    assert scores["flow_median"].value == 0.0
    assert scores["background_consistency"].value == pytest.approx(1.0)
    assert scores["dino_first"].value is None
    assert "shorter than 10 s" in scores["dino_first"].reason
    assert all((s.value is None) == bool(s.reason) for s in scores.values())


STALLS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
)


def test_standing_still_is_no_merit_where_a_motion_is_named(nets):
    still = np.random.default_rng(0).integers(0, 255, (1, HEIGHT, WIDTH, 3), np.uint8).repeat(40, 0)
    moving = np.stack([np.roll(blurred_noise(), 2 * k, axis=1) for k in range(40)])
    for text in ("A red cube hops on snow. A fixed shot.", "A red cube rests. An orbiting shot."):
        found, moves = scores_of(nets, still, text), scores_of(nets, moving, text)
        for name in STALLS:
            assert found[name].value == pytest.approx(0.0), name
            value = moves[name].value
            assert value is not None
            assert value > 0.5, name
    spins = scores_of(nets, still, "A red ball spins on snow. A fixed shot.")
    assert spins["motion_smoothness"].value == 1.0


def test_stalled_looks_a_second_around():
    strong = np.zeros(64)
    strong[32] = 0.6
    pairs_s = (np.arange(64) + 0.5) / 8
    stalled = formulas.stalled(strong, pairs_s, np.array([1.0, 3.0, 3.5, 5.0, 5.5, 7.0]))
    assert stalled.tolist() == [True, True, False, False, True, True]
    assert formulas.stalled(np.zeros(0), np.zeros(0), np.array([0.0])).tolist() == [True]


def blurred_noise() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((1, 3, HEIGHT, WIDTH), dtype=np.float32))
    smooth = blur(noise, torch.ones(1))[0].permute(1, 2, 0).numpy()
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def test_flow_sees_a_shift_and_draws_the_frame_between():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((1, 3, HEIGHT, WIDTH + 16), dtype=np.float32))
    wide = blur(noise, torch.ones(1))[0].permute(1, 2, 0).numpy()
    wide = ((wide - wide.min()) / np.ptp(wide) * 255).astype(np.uint8)
    frames = np.stack([wide[:, 2 * k : 2 * k + WIDTH] for k in range(5)])
    smooth, strong, median = watch.flow_measures(frames, 2)
    assert len(strong) == 2
    assert median == pytest.approx(4, abs=0.5)
    assert smooth.min() > 0.98
    assert rules.moves(strong, HEIGHT, WIDTH).all()


def output_of(marks: list[tuple[int, int, int, int]]) -> ReaderOutput:
    """A reader's maps with sure detections at (row, column), of a shape and a colour."""
    sizes = {"heat": 1, "box": 4, "shape": 8, "color": 8, "marking": 4, "share": 1}
    maps = {name: torch.zeros(1, size, ROWS, COLUMNS) for name, size in sizes.items()}
    maps["heat"] -= 8
    for k, (row, column, shape, color) in enumerate(marks):
        maps["heat"][0, 0, row, column] = 3.0 - k
        reach = 0.1 / (k + 1)
        maps["box"][0, :, row, column] = torch.tensor([-reach, -reach, reach, reach])
        maps["shape"][0, shape, row, column] = 5
        maps["color"][0, color, row, column] = 5
        maps["share"][0, 0, row, column] = 2
    scene = (torch.eye(6)[2:3], torch.eye(5)[4:], torch.full((1, 6), -3.0))
    return ReaderOutput(*maps.values(), *scene)


def test_detections_come_back_from_maps():
    seen = decode(output_of([(5, 4, 2, 6), (5, 12, 7, 0)]))
    assert (seen.score[0] > 0).tolist() == [True, True, False, False]
    assert seen.shape[0, :2].tolist() == [2, 7]
    assert seen.color[0, :2].tolist() == [6, 0]
    centre = (4.5 / COLUMNS, 5.5 / ROWS)
    wanted = [centre[0] - 0.1, centre[1] - 0.1, centre[0] + 0.1, centre[1] + 0.1]
    assert seen.box[0, 0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert (int(seen.ground), int(seen.sky)) == (2, 4)


def test_a_repeated_detection_is_dropped():
    maps = output_of([(5, 4, 2, 6), (5, 6, 2, 6)])
    maps.box[0, :, 5, 6] = maps.box[0, :, 5, 4] - 2 / COLUMNS * torch.tensor([1.0, 0, 1, 0])
    assert int((decode(maps).score > 0).sum()) == 1


def test_targets_agree_with_truth():
    tracks = play(sample_scene(11), torch.tensor([0, 40, 200]))
    measured = render(tracks, HEIGHT, WIDTH, truth=True).truth
    goal = targets(tracks, measured)
    scene = sample_scene(11)
    for n in range(3):
        if measured.visible[n, 0] < 0.9:
            continue
        left, top, right, bottom = measured.box[n, 0]
        row, column = int((top + bottom) / 2 * ROWS), int((left + right) / 2 * COLUMNS)
        assert goal["heat"][n, row, column] == pytest.approx(1)
        assert SHAPES[goal["shape"][n, row, column]] == scene.subjects[0].shape
        assert COLORS[goal["color"][n, row, column]] == scene.subjects[0].color
        assert torch.equal(goal["box"][n, :, row, column], measured.box[n, 0])
    assert (goal["heat"].amax((1, 2)) > 0.99).any()


def test_samplers_depend_on_the_seed_alone():
    for sampler in (samples.windows_item, samples.twins_item, samples.captions_item):
        (a, labels), (b, again) = sampler(5), sampler(5)
        assert torch.equal(a.camera, b.camera)
        assert all(torch.equal(labels[k], again[k]) for k in labels)
        assert not torch.equal(a.camera, sampler(6)[0].camera)


def test_windows_keep_to_one_event():
    seen = set()
    for seed in range(12):
        tracks, labels = samples.windows_item(seed)
        yaw = tracks.camera[:, 3].unflatten(0, (2, samples.WINDOW))
        moved = yaw[:, -1] - yaw[:, 0]
        for k in range(2):
            seen.add(int(labels["camera"][k]))
            if labels["camera"][k] == 1:
                assert (moved[k] > 0) == bool(labels["direction"][k])
            else:
                assert labels["direction"][k] == -1
            if labels["camera"][k] == 0:
                assert moved[k].abs() < 1e-5
    assert seen == {0, 1, 2, 3}


def test_expectations_follow_the_script():
    prompt = prompt_of(1000002, "long", chunks=40)
    sampled = np.arange(0, 40 * 12 - 3, 4)
    asked = expect(prompt, sampled, FPS, 29.8)
    full = truth(sample_scene(1000002, stratum="long", chunks=40), torch.from_numpy(sampled[::12]))
    assert np.allclose(asked.main[::12], full.visible[:, 0].numpy(), atol=0.12)
    assert asked.shown.any()
    assert asked.hidden.any()
    assert not (asked.shown & asked.hidden).any()
    for part in asked.parts[1:]:
        start = np.searchsorted(sampled / FPS, part.start_s)
        assert not asked.settled[start]


@pytest.mark.parametrize("name", FIRST)
def test_each_first_prompt_asks_for_every_dimension(name: str):
    prompt = next(p for p in prompts.load(prompts.DEFAULT_SET) if p.id == name)
    sampled = np.arange(0, 960, 16)
    asked = expect(prompt, sampled, FPS, 60.0)
    named = [asked.parts[k].named for k in asked.part]
    both = [n for n, shown in zip(named, asked.both, strict=True) if shown]
    assert asked.moving.any()
    assert any(n.shape and n.color for n in both)
    assert any(n.second_shape and n.side for n in both)
    assert (asked.side_x * np.array([n.side or 0 for n in named]) > 0)[asked.both].any()
    own = [n for n, seen in zip(named, asked.shown, strict=True) if seen and n.motion]
    assert any(n.event in ("hold", "orbit", "dolly") for n in own)
    assert any(n.ground or n.landmark for n in named)
    assert any(n.sky for n in named)


def test_expectations_without_a_scene_come_from_the_text():
    prompt = Prompt(
        id="p",
        segments=(
            Segment(text="A red cube hops on snow at night. A fixed shot.", seconds=3),
            Segment(text="A red cube hops on snow at night. The block is gone for now.", seconds=3),
            Segment(text="A pan to the left, leaving the cube. A red cube hops.", seconds=3),
        ),
    )
    asked = expect(prompt, np.arange(0, 144, 4), FPS, 9.0)
    assert asked.main[0] == 1
    assert asked.main[14] == 0
    assert np.isnan(asked.main[-1])
    assert [p.direction for p in asked.parts] == [None, None, -1]


def test_the_second_subjects_side_is_not_a_pans_direction():
    text = "The camera pans away to the right. A cube rests with a ball on the left."
    prompt = Prompt(id="p", segments=(Segment(text=text, seconds=3),))
    assert parts_of(prompt, 3.0)[0].direction == 1
    text = "A cube rests with a ball to its right. The view turns left, away from the cube."
    prompt = Prompt(id="p", segments=(Segment(text=text, seconds=3),))
    assert parts_of(prompt, 3.0)[0].direction == -1


def case_of(nets, marks, text: str, frames: int = 33):
    """A film whose every frame reads as given, against one caption."""
    grey = np.full((frames, HEIGHT, WIDTH, 3), 128, np.uint8)
    seen = watch.watch(grey, frames // FPS * FPS, FPS, nets, CODEC)
    one = decode(output_of(marks))
    seen.readings = one[torch.zeros(len(seen.sampled), dtype=torch.long)]
    prompt = Prompt(id="p", segments=(Segment(text=text, seconds=60),))
    asked = expect(prompt, seen.sampled, FPS, frames / FPS)
    return semantic.case(seen, asked, nets)


def test_named_attributes_are_judged_and_others_are_not(nets):
    box, ball = SHAPES.index("box"), SHAPES.index("sphere")
    red, blue = COLORS.index("red"), COLORS.index("blue")
    marks = [(5, 4, box, red), (5, 12, ball, blue)]
    text = "A red cube rests with a ball on the right at dawn. A fixed shot."
    case = case_of(nets, marks, text)
    for judge in (
        semantic.object_class,
        semantic.multiple_objects,
        semantic.color,
        semantic.spatial_relationship,
        semantic.appearance_style,
    ):
        values = judge(case).values
        assert np.nanmean(values) == 1.0, judge.__name__
        assert np.isnan(values[~case.scored]).all()
    assert semantic.scene(case).reason
    swapped = case_of(nets, marks, text.replace("right", "left").replace("red", "green"))
    assert np.nanmean(semantic.spatial_relationship(swapped).values) == 0.0
    assert np.nanmean(semantic.color(swapped).values) == 0.0
    alone = case_of(nets, marks[1:], text)
    assert np.nanmean(semantic.color(alone).values) == 0.0
    assert semantic.attributes(alone)["attr_sky"].value == 1.0
    assert semantic.attributes(alone)["attr_shape"].value == 0.0


def test_a_film_that_never_shows_its_subject_has_no_attributes(nets):
    case = case_of(nets, [], "A red cube rests on snow. A fixed shot.")
    found = semantic.attributes(case)
    assert [found[k].value for k in ("attr_shape", "attr_color", "attr_ground")] == [0.0] * 3
    assert found["attr_sky"].value is None
    hidden = case_of(nets, [], "A red cube rests on snow. The cube is out of view.")
    assert semantic.attributes(hidden)["attr_shape"].value is None
    assert np.nanmean(semantic.object_class(hidden).values) == 1.0


def test_damage_leaves_the_picture_at_severity_zero():
    rng = np.random.default_rng(1)
    clip = torch.from_numpy(rng.random((2, 5, 3, HEIGHT, WIDTH), dtype=np.float32))
    for name, damage in damages(None).items():
        generator = torch.Generator().manual_seed(0)
        same = damage(clip, torch.zeros(2), generator)
        worse = damage(clip, torch.ones(2), generator)
        assert torch.allclose(same, clip[:, 2], atol=2e-3), name
        assert (worse - clip[:, 2]).abs().mean() > 0.01, name


def test_blocks_are_rounded_in_place():
    x = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    assert torch.allclose(quantise(x, torch.tensor([0.01])), x, atol=1e-2)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="reads uint8"):
        pixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_texts_become_padded_bytes():
    rows = text_bytes(["ab", "x" * 300])
    assert rows[0, :3].tolist() == [97, 98, 0]
    assert int((rows[1] > 0).sum()) == 256


def test_fitted_ranges_never_invert():
    names = norm.DIMENSIONS
    low = dict.fromkeys(names, 0.9) | {"imaging_quality": 0.1}
    high = dict.fromkeys(names, 0.5)
    ranges = norm.fit(low, high)
    assert ranges["imaging_quality"] == (0.1, 0.5)
    assert ranges["dynamic_degree"] == (0.0, 0.5)


def test_destroyed_films_keep_their_length():
    shape = (41, HEIGHT, WIDTH, 3)
    films = [np.full(shape, shade, np.uint8) for shade in (30, 220)]
    made = norm.destroyed(films, 1)
    assert made.shape == shape
    assert np.array_equal(made, norm.destroyed(films, 1))
    # White noise of any strength keeps the mean on its side, and both films are there.
    sides = made.mean((1, 2, 3)) > 125
    assert 0 < sides.sum() < 41
    with pytest.raises(ValueError, match="two prompts or more"):
        norm.destroyed([], 1)


def test_the_normaliser_names_what_it_was_fitted_with(nets):
    suite = TinySuite(nets, CODEC)
    ranges = norm.fit(dict.fromkeys(norm.DIMENSIONS, 0.1), dict.fromkeys(norm.DIMENSIONS, 0.9))
    tree = json.loads(norm.document(ranges, suite, [prompt_of(1)]))
    assert tree["networks"] == nets.hashes
    assert set(tree["dimensions"].values()) == {spec.version for spec in suite.dimensions}
    assert tree["clamp"] is True


@pytest.mark.skipif(
    not all((ASSETS / f"{name}.safetensors").is_file() for name in NETS),
    reason="not all networks are bundled",
)
def test_bundled_reader_reads_rendered_frames():
    reader = load().reader
    right = []
    for seed in range(900, 906):
        scene = sample_scene(seed, stratum="stay")
        frames = next(iter(film(scene, 2)))
        with torch.inference_mode():
            seen = decode(reader(pixels(frames[:1])))
        main = scene.subjects[0]
        right.append(
            SHAPES[seen.shape[0, 0]] == main.shape and COLORS[seen.color[0, 0]] == main.color
        )
    assert sum(right) >= 5
