"""Our dimensions against what the ``vbench`` package made of the same weights and frames.

Its scores are kept in tests/golden/vbench.json; ``make parity`` makes them anew.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cfbench import scorers
from cfbench.errors import CfError
from cfbench.scorers.vbench import prep
from cfbench.scorers.vbench.files import FILES, PINNED, Folder
from cfbench.scorers.vbench.suite import NEEDS, VBenchSuite, measured
from cfbench.scorers.vbench.watch import Nets, watch
from cfbench.video import Clip, held
from tests.helpers.vbench_data import FILMS, FPS, FRAMES, film, write_weights
from tests.parity.compare_vbench import GOLDEN, PROMPT, ours

TOLERANCE = 1e-6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("vbench"))


@pytest.fixture(scope="module")
def scored(weights):
    return ours(weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILMS)
def test_scores_equal_the_package(name, scored):
    theirs = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert set(theirs) == set(NEEDS)
    for dimension, value in theirs.items():
        assert scored[name][dimension] == pytest.approx(value, abs=TOLERANCE)
    # No dimension is at an end of its scale, where anything would agree.
    assert all(0.001 < abs(v) < 0.9999 for k, v in theirs.items() if k != "dynamic_degree")


@pytest.mark.slow
def test_films_differ_in_every_dimension(scored):
    for a, b in pairwise(scored.values()):
        assert all(abs(a[k] - b[k]) > 10 * TOLERANCE for k in NEEDS if k != "dynamic_degree")


def test_without_weights_a_dimension_is_null_and_says_why(tmp_path):
    suite = scorers.load(f"vbench:{tmp_path}")
    found = {s.dimension: s for s in suite.score(held(film("slow"), FPS), PROMPT)}
    assert set(found) == set(NEEDS)
    for name, score in found.items():
        assert (score.value is None) == (name != "temporal_flickering")
        assert score.tier == "reference"
        assert score.details["protocol"] == "custom"
    assert found["aesthetic_quality"].reason == (
        f"no weights {FILES['clip-l14']}, {FILES['aesthetic']}"
    )
    assert found["subject_consistency"].version == "1.none"
    short = suite.score(held(film("slow")[:1], FPS), PROMPT)
    assert {s.dimension: s.reason for s in short}["temporal_flickering"].endswith("too short")
    with pytest.raises(CfError, match="no such folder of weights"):
        scorers.load("vbench:/none/at/all")


def test_other_damaged_and_foreign_weights_are_refused(tmp_path):
    path = tmp_path / FILES["aesthetic"]
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, path)
    first = Folder(tmp_path)
    assert len(first.sha256("aesthetic")) == 64
    assert json.loads((tmp_path / PINNED).read_text())[FILES["aesthetic"]]
    assert first.tensors("aesthetic")["weight"].shape == (1, 8)
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, path)
    with pytest.raises(CfError, match="is another file than before"):
        Folder(tmp_path).sha256("aesthetic")
    (tmp_path / PINNED).unlink()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CfError, match="is damaged or no weights file"):
        Folder(tmp_path).tensors("aesthetic")
    (tmp_path / PINNED).unlink()
    torch.save({"weight": torch.zeros(1, 8), "code": Path.exists}, path)
    with pytest.raises(CfError, match="is damaged or no weights file"):
        Folder(tmp_path).tensors("aesthetic")
    (tmp_path / PINNED).unlink()
    torch.save({"weight": torch.zeros(3, 8), "bias": torch.zeros(3)}, path)
    suite = VBenchSuite(Folder(tmp_path), CPU)
    with pytest.raises(ValueError, match=r"sa_0_4_vit_l_14_linear\.pth does not fit"):
        suite.score(held(film("slow")[:3], FPS), PROMPT)
    dino = tmp_path / FILES["dino"]
    dino.parent.mkdir()
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, dino)
    path.unlink()
    with pytest.raises(ValueError, match="weights are of another network"):
        suite.score(held(film("slow")[:3], FPS), PROMPT)


class _Sums(torch.nn.Module):
    """In a network's place: features that tell frames apart."""

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, 0].mean((1, 2))], 1)


def test_blocks_do_not_matter():
    frames = film("fast")
    nets = Nets(dino=_Sums(), clip_b=_Sums())
    whole = measured(watch(iter([frames]), FPS, nets, CPU))
    parts = iter([frames[:1], frames[1:6], frames[6:]])
    split = measured(watch(parts, FPS, nets, CPU))
    assert split == pytest.approx(whole, abs=1e-7)
    assert whole["subject_consistency"] is not None


def test_which_frames_are_compared():
    seen: list[tuple[int, int]] = []

    class Spy:
        def __init__(self, tag):
            self.tag = tag

        def __call__(self, a, b, **_):
            seen.append((int(a.mean() * 255 + 0.5), int(b.mean() * 255 + 0.5)))
            return a

    frames = np.stack([np.full((16, 16, 3), k, np.uint8) for k in range(8)])
    shown = watch(iter([frames]), FPS, Nets(amt=Spy("amt")), CPU)
    # The last odd frame has no even one behind it.
    assert seen == [(0, 2), (2, 4), (4, 6)]
    assert shown.smooth == [1.0, 1.0, 1.0]
    assert shown.flicker == [1.0] * 7


def test_sizes_of_inputs():
    x = torch.rand(1, 3, 480, 832) * 255
    assert prep.clip_input(x).shape == (1, 3, 224, 224)
    assert prep.dino_input(x).shape == (1, 3, 224, 388)
    assert prep.musiq_input(x).shape == (1, 3, 295, 512)
    assert prep.musiq_input(x[..., :100, :100]).shape == (1, 3, 100, 100)
    assert float(prep.musiq_input(x).max()) <= 1


def test_padding_is_split_with_the_smaller_half_in_front():
    x = torch.arange(13 * 10, dtype=torch.float32).view(1, 1, 13, 10)
    wide = prep.padded(x, 8)
    assert wide.shape == (1, 1, 16, 16)
    assert torch.equal(wide[..., 1:14, 3:13], x)
    assert torch.equal(wide[..., 15, 3:13], x[..., 12, :])
    assert torch.equal(prep.unpadded(wide, 13, 10), x)
    assert torch.equal(prep.padded(x[..., :8, :8], 8), x[..., :8, :8])


def test_a_clip_that_is_streamed():
    frames = film("slow")
    clip = Clip(sha256="0" * 64, frames=FRAMES, fps=FPS, blocks=lambda: iter(np.split(frames, 4)))
    suite = VBenchSuite(Folder(GOLDEN.parent), CPU)
    plain = {s.dimension: s.value for s in suite.score(held(frames, FPS), PROMPT)}
    assert {s.dimension: s.value for s in suite.score(clip, PROMPT)} == plain
