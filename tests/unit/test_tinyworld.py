"""The tiny world: scenes repeat, parsing inverts captions, absences last as promised."""

import json
import random

import pytest
import torch

from cfmodel.tinyworld.caption import caption, parse, sample_mentions, script_captions
from cfmodel.tinyworld.film import last_seen, scene_prompt, truth
from cfmodel.tinyworld.render import render
from cfmodel.tinyworld.scene import chunk_start, event_at, sample_scene, scene_from_json
from cfmodel.tinyworld.tracks import play


def test_scene_repeats_and_survives_json() -> None:
    scene = sample_scene(7, stratum="long")
    assert scene == sample_scene(7, stratum="long") != sample_scene(8, stratum="long")
    assert scene_from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_scene_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="world version"):
        scene_from_json({**sample_scene(1).to_json(), "version": 0})


def test_places_are_at_least_90_degrees_apart() -> None:
    for seed in range(50):
        first, second = sample_scene(seed).places
        assert abs(first.bearing - second.bearing) >= torch.pi / 2


@pytest.mark.parametrize("held_out", [False, True])
def test_parsing_reads_back_what_a_caption_names(held_out: bool) -> None:
    for seed in range(200):
        scene, rng = sample_scene(seed), random.Random(seed)
        mentions = sample_mentions(rng)
        event = scene.script[seed % len(scene.script)]
        named = parse(caption(scene, event, mentions, rng, held_out=held_out))
        main = scene.subjects[0]
        assert named.recognised
        assert (named.shape, named.motion, named.event) == (main.shape, main.motion, event.kind)
        assert named.color == (main.color if mentions.color else None)
        assert named.ground == (scene.ground if mentions.ground else None)
        assert named.sky == (scene.sky if mentions.sky else None)
        assert named.landmark == (scene.places[0].landmark if mentions.landmark else None)


def test_text_outside_the_grammar_is_not_recognised() -> None:
    assert not parse("An oil painting of Shanghai").recognised


def test_segments_end_where_chunks_end() -> None:
    prompt = scene_prompt(3, "short")
    seconds = sum(segment["seconds"] for segment in prompt["segments"])
    assert seconds == chunk_start(81) / 16


def test_every_event_has_its_caption() -> None:
    scene = sample_scene(5)
    lines = script_captions(scene)
    chunk = 0
    for line, event in zip(lines, scene.script, strict=True):
        assert event_at(scene, chunk) == event
        assert parse(line.text).event == event.kind
        chunk += line.chunks


@pytest.mark.parametrize(("stratum", "longest"), [("stay", 0.0), ("short", 3.0), ("long", 20.0)])
def test_absence_lasts_as_the_stratum_says(stratum: str, longest: float) -> None:
    step = 4
    for seed in (11, 12, 13):
        scene = sample_scene(seed, stratum=stratum)  # pyright: ignore[reportArgumentType]
        visible = truth(scene, torch.arange(0, 480, step), 40, 64).visible
        gone = last_seen(visible, 0.02)[:, 0].max().item() * step / 16
        assert gone <= longest + 0.5


def test_visibility_is_zero_behind_the_camera_and_one_in_front() -> None:
    scene = next(
        s
        for s in (sample_scene(k, stratum="long") for k in range(100))
        if any(e.kind == "away" for e in s.script[:4])
    )
    chunk, frames = 0, []
    for event in scene.script[:4]:
        if event.kind == "away":
            frames.append(chunk_start(chunk + 1))
        chunk += event.chunks
    measured = truth(scene, torch.tensor([0, frames[0]])).visible[:, 0]
    assert measured[0] > 0.6
    assert measured[1] == 0


def test_film_does_not_depend_on_its_blocks() -> None:
    scene = sample_scene(21)
    frames = torch.arange(0, 60, 20)
    whole = render(play(scene, frames), 80, 128).rgb
    single = torch.cat([render(play(scene, frames[k : k + 1]), 80, 128).rgb for k in range(3)])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)


def test_last_seen_counts_from_the_latest_sight() -> None:
    visible = torch.tensor([[0.0], [1.0], [0.0], [0.0], [1.0]])
    assert last_seen(visible).flatten().tolist() == [-1, 0, 1, 2, 0]
