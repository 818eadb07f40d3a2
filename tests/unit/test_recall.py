"""Forced histories: what is asked for is out of view when they end, and in view later."""

import pytest
import torch

from cfmodel.tinyworld.caption import parse
from cfmodel.tinyworld.film import truth
from cfmodel.tinyworld.recall import recall
from cfmodel.tinyworld.scene import SUBJECTS, chunk_start


@pytest.mark.parametrize("gap_s", [1.0, 12.0])
def test_second_place_is_seen_left_and_seen_again(gap_s):
    probe = recall(3, gap_s)
    who = probe.scene.subjects.index(probe.subject)
    end = chunk_start(probe.history + probe.chunks)
    frames = torch.arange(0, end, 8)
    seen = truth(probe.scene, frames, 40, 64)
    thing = seen.coverage[:, [who, SUBJECTS + 1]]
    inside = frames < chunk_start(probe.history)
    assert thing[frames < 48].max() == 0  # never in the first three seconds
    assert (thing[inside].max(0).values > 0).all()  # shown by the history
    last = frames[inside][thing[inside, 0] > 0].max()
    # Frames are looked at in steps of 8; it takes over when the camera has turned for 1.5 s.
    assert 0 <= (chunk_start(probe.history) - int(last)) / 16 - probe.unseen_s <= 8 / 16
    assert probe.unseen_s >= probe.gap_s + 1.5
    rest = (frames >= probe.shown[0]) & (frames < probe.shown[1])
    assert (seen.visible[rest, who] > 0.6).all()
    read = (frames >= probe.read[0]) & (frames < probe.read[1])
    assert (seen.visible[read, who] > 0.6).all()


def test_scene_is_the_same_for_every_gap_and_captions_do_not_name_the_second_place():
    short, long = recall(5, 3.0), recall(5, 24.0)
    assert short.scene.subjects == long.scene.subjects
    assert long.gap_s == pytest.approx(24.0)
    assert sum(s["seconds"] for s in long.segments()) == pytest.approx(
        chunk_start(long.history + long.chunks) / 16
    )
    for segment in long.segments():
        named = parse(segment["text"])
        assert named.shape == long.scene.subjects[0].shape
        assert named.landmark in (None, long.scene.places[0].landmark)
