"""Measures of films on disk: the same numbers as without them, whatever happened in between."""

from collections import Counter

import numpy as np
import pytest
import torch

from cfbench import scorers
from cfbench.scorers.vbench.drawn import clip_shapes, drawn, written
from cfbench.scorers.vbench.features import Features
from cfbench.scorers.vbench.files import FILES, Folder
from cfbench.scorers.vbench.suite import VBenchSuite
from cfbench.scorers.vbench.watch import Nets, watch
from cfbench.types import Prompt, Segment
from cfbench.video import Clip, held
from tests.helpers.vbench_data import FPS, dinov2_shapes, film, long_film, write_background

PROMPT = Prompt(id="none", segments=(Segment(text="none", seconds=1),))
CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path):
    """CLIP alone, so that background consistency and flicker have scores."""
    path = tmp_path / "weights" / FILES["clip-b32"]
    path.parent.mkdir(parents=True)
    torch.save(drawn("clip-b32", clip_shapes(32, 32, 64, 2)), path)
    return tmp_path / "weights"


def suite(name, weights, kept):
    found = scorers.load(f"{name}:{weights}", kept=kept)
    assert isinstance(found, VBenchSuite)
    return found


def values(of, clip):
    return {s.dimension: s.value for s in of.score(clip, PROMPT)}


def counted(frames):
    """A film, and how often it was decoded."""
    times = Counter[str]()

    def blocks():
        times["decoded"] += 1
        return iter((frames,))

    plain = held(frames, FPS)
    return Clip(sha256=plain.sha256, frames=len(frames), fps=FPS, blocks=blocks), times


def test_windows_are_ranges_of_what_was_seen_once(tmp_path):
    clip, times = counted(long_film())
    weights, kept = write_background(tmp_path / "weights"), tmp_path / "features"
    written(weights, {"dinov2": drawn("dinov2", dinov2_shapes())})
    fresh = {n: values(suite(n, weights, None), clip) for n in ("vbench", "vbench-long-index")}
    assert times["decoded"] == 2
    for name in ("vbench-long-index", "vbench", "vbench-long-index"):
        assert values(suite(name, weights, kept), clip) == fresh[name]
    # Whole and in clips from one look; bit for bit what the decode gave.
    assert times["decoded"] == 3
    assert fresh["vbench"]["background_consistency"] is not None
    assert fresh["vbench"] != fresh["vbench-long-index"]


def test_damage_and_leftovers_of_a_crash_change_nothing(weights, tmp_path):
    clip, times = counted(film("fast"))
    kept = tmp_path / "features"
    expected = values(suite("vbench", weights, kept), clip)
    files = sorted(kept.rglob("*.npz"))
    assert {path.name.split("-")[0] for path in files} == {"clip", "flicker"}
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[1].with_name(f".{files[1].name}.1").write_bytes(b"half a file")
    assert values(suite("vbench", weights, kept), clip) == expected
    assert times["decoded"] == 2
    assert values(suite("vbench", weights, kept), clip) == expected
    assert times["decoded"] == 2


def test_other_weights_are_other_measures(weights, tmp_path):
    clip, times = counted(film("slow"))
    kept = tmp_path / "features"
    first = values(suite("vbench", weights, kept), clip)
    torch.save(drawn("other", clip_shapes(32, 32, 64, 2)), weights / FILES["clip-b32"])
    (weights / "cfbench-pinned.json").unlink()
    second = values(suite("vbench", weights, kept), clip)
    assert times["decoded"] == 2
    assert first["background_consistency"] != second["background_consistency"]
    assert first["temporal_flickering"] == second["temporal_flickering"]


class _Halfway(torch.nn.Module):
    def forward(self, a, b):
        return (a + b) / 2


class _Shift(torch.nn.Module):
    def features(self, images):
        return images[:, :2, ::8, ::8].clone()

    def flow(self, images, first, second):
        return torch.nn.functional.interpolate(second - first, images.shape[-2:])


def test_every_kind_of_measure_comes_back_as_it_was(tmp_path):
    frames = long_film()
    clip, times = counted(frames)
    nets = Nets(amt=_Halfway(), raft=_Shift())
    kept = Features(tmp_path / "features", Folder(tmp_path), CPU)
    for name in ("amt", "raft"):
        path = tmp_path / FILES[name]
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    parts = (range(48), range(32, 80))
    fresh = watch(iter((frames,)), FPS, parts, nets, CPU)
    for _ in range(2):
        assert kept.watch(clip, parts, nets) == fresh
    assert times["decoded"] == 1
    # Clips at odd frames need others drawn again, and only then it is looked at again.
    odd = (range(1, 49),)
    assert kept.watch(clip, odd, nets).smooth == watch(iter((frames,)), FPS, odd, nets, CPU).smooth
    assert times["decoded"] == 2


def test_order_and_company_change_no_number(weights, tmp_path):
    clips = [held(film(name), FPS) for name in ("slow", "fast")]
    one, other = (suite("vbench", weights, tmp_path / n) for n in ("a", "b"))
    forward = [values(one, clip) for clip in clips]
    backward = [values(other, clip) for clip in reversed(clips)]
    assert forward == backward[::-1]
    names = [
        {
            path.relative_to(tmp_path / n): path.read_bytes()
            for path in (tmp_path / n).rglob("*.npz")
        }
        for n in ("a", "b")
    ]
    assert names[0] == names[1]
    assert all(np.isfinite(v) for v in forward[0].values() if v is not None)
