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
from cfbench.aggregate import DIMENSIONS, QUALITY
from cfbench.errors import CfError
from cfbench.scorers.vbench import prep, process
from cfbench.scorers.vbench.again import cut
from cfbench.scorers.vbench.files import FILES, PINNED, Folder
from cfbench.scorers.vbench.nets import vit
from cfbench.scorers.vbench.protocol import clips, fused
from cfbench.scorers.vbench.suite import ELSEWHERE, NEEDS, NOT_ASKED, VBenchSuite, measured
from cfbench.scorers.vbench.toolbox import Toolbox
from cfbench.scorers.vbench.watch import SMALLEST_SIDE, Nets, watch
from cfbench.types import Prompt
from cfbench.video import Clip, DecodeError, held
from tests.helpers.vbench_data import (
    FILMS,
    FPS,
    FRAMES,
    film,
    long_film,
    write_background,
    write_weights,
)
from tests.parity.compare_vbench import GOLDEN, LONG_GOLDEN, PROMPT, asking, ours, ours_long

TOLERANCE = 1e-6
SUITES = ("vbench", "vbench-long", "vbench-long-index")
YES_OR_NO = ("dynamic_degree", "human_action")
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
    assert all(0.001 < abs(v) < 0.9999 for k, v in theirs.items() if k not in YES_OR_NO)


@pytest.mark.slow
def test_films_differ_in_every_dimension(scored):
    for a, b in pairwise(scored.values()):
        assert all(abs(a[k] - b[k]) > 10 * TOLERANCE for k in NEEDS if k != "dynamic_degree")
    assert {scored[name]["human_action"] for name in FILMS} == {0.0, 1.0}


def test_without_weights_a_dimension_is_null_and_says_why(tmp_path):
    suite = scorers.load(f"vbench:{tmp_path}")
    found = {s.dimension: s for s in suite.score(held(film("slow"), FPS), PROMPT)}
    assert set(found) == set(DIMENSIONS)
    for name, score in found.items():
        assert (score.value is None) == (name != "temporal_flickering")
        assert score.tier == "reference"
        assert score.details["protocol"] == "custom"
        if name not in QUALITY:
            assert score.reason == NOT_ASKED
    assert found["aesthetic_quality"].reason == (
        f"no weights {FILES['clip-l14']}, {FILES['aesthetic']}"
    )
    assert found["subject_consistency"].version == "3.none"
    short = suite.score(held(film("slow")[:1], FPS), PROMPT)
    assert {s.dimension: s.reason for s in short}["temporal_flickering"].startswith(
        "does not apply: too few frames"
    )
    with pytest.raises(CfError, match="no such folder of weights"):
        scorers.load("vbench:/none/at/all")


def test_a_prompt_of_the_suite_is_scored_in_its_own_dimensions(tmp_path):
    asked = {"temporal_flickering": None, "scene": {"scene": {"scenery": "alley"}}}
    prompt = Prompt(id="vbench-0001", segments=PROMPT.segments, vbench=asked)
    suite = scorers.load(f"vbench:{tmp_path}")
    found = {s.dimension: s for s in suite.score(held(film("slow"), FPS), prompt)}
    assert [name for name, s in found.items() if s.value is not None] == ["temporal_flickering"]
    assert found["scene"].reason == ELSEWHERE
    assert found["imaging_quality"].reason == NOT_ASKED
    assert {s.details["protocol"] for s in found.values()} == {"vbench"}


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
    amt = tmp_path / FILES["amt"]
    amt.parent.mkdir()
    torch.save({"weight": torch.zeros(3, 8)}, amt)
    suite = VBenchSuite(Folder(tmp_path), CPU)
    with pytest.raises(ValueError, match=r"amt-s\.pth does not fit"):
        suite.score(held(film("slow")[:3], FPS), PROMPT)
    amt.unlink()
    dino = tmp_path / FILES["dino"]
    dino.parent.mkdir()
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, dino)
    with pytest.raises(ValueError, match="weights are of another network"):
        suite.score(held(film("slow")[:3], FPS), PROMPT)


class _Sums(torch.nn.Module):
    """In a network's place: features that tell frames apart."""

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, 0].mean((1, 2))], 1)


def test_blocks_do_not_matter():
    frames = film("fast")
    nets = Nets(dino=_Sums(), clip_b=_Sums())
    clip = range(len(frames))
    whole = measured(watch(iter([frames]), FPS, [clip], nets, CPU), clip)
    parts = iter([frames[:1], frames[1:6], frames[6:]])
    split = measured(watch(parts, FPS, [clip], nets, CPU), clip)
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

    frames = np.stack([np.full((64, 64, 3), k, np.uint8) for k in range(8)])
    shown = watch(iter([frames]), FPS, [range(8)], Nets(amt=Spy("amt")), CPU)
    # The last odd frame has no even one behind it.
    assert seen == [(0, 2), (2, 4), (4, 6)]
    assert shown.smooth == {1: 1.0, 3: 1.0, 5: 1.0}
    assert shown.flicker == dict.fromkeys(range(1, 8), 1.0)
    # Of a clip that begins at an odd frame it is the even ones; none is drawn twice.
    seen.clear()
    watch(iter([frames]), FPS, [range(4), range(1, 5), range(1, 6)], Nets(amt=Spy("amt")), CPU)
    assert sorted(seen) == [(0, 2), (1, 3), (3, 5)]


def test_sizes_of_inputs():
    x = torch.rand(1, 3, 480, 832) * 255
    assert prep.clip_input(x).shape == (1, 3, 224, 224)
    assert prep.dino_input(x).shape == (1, 3, 224, 388)
    assert prep.musiq_input(x).shape == (1, 3, 295, 512)
    assert prep.musiq_input(x[..., :100, :100]).shape == (1, 3, 100, 100)
    assert float(prep.musiq_input(x).max()) <= 1


@pytest.mark.parametrize("size", [(136, 208), (480, 832), (100, 90)])
@pytest.mark.parametrize("make", [prep.clip_input, prep.dino_input, prep.musiq_input])
def test_inputs_in_memory_that_is_there_are_the_same(make, size):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    x = prep.pixels(images, CPU)
    expected = make(x)
    room = torch.full_like(expected, torch.nan)
    for k in range(2):
        make(x[k : k + 1].contiguous(memory_format=torch.channels_last), room[k : k + 1])
    assert torch.equal(room, expected)


def test_freed_memory_is_given_back_after_growth_alone(monkeypatch):
    sizes, trims = [0, 10, process.GROWN, 5, 100, process.GROWN + 5, 3], []
    monkeypatch.setattr(process.Heap, "_resident", lambda self: sizes.pop(0))
    heap = process.Heap()
    monkeypatch.setattr(heap, "_trim", trims.append)
    for _ in range(4):
        heap.trim()
    assert (sizes, trims) == ([], [0, 0])


def test_padding_is_split_with_the_smaller_half_in_front():
    x = torch.arange(13 * 10, dtype=torch.float32).view(1, 1, 13, 10)
    wide = prep.padded(x, 8)
    assert wide.shape == (1, 1, 16, 16)
    assert torch.equal(wide[..., 1:14, 3:13], x)
    assert torch.equal(wide[..., 15, 3:13], x[..., 12, :])
    assert torch.equal(prep.unpadded(wide, 13, 10), x)
    assert torch.equal(prep.padded(x[..., :8, :8], 8), x[..., :8, :8])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 33, 47), (3, 8, 300), (3, 64, 64), (4, 65, 71)])
def test_odd_films_have_scores_or_reasons(shape, weights):
    frames = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    found = scorers.load(f"vbench:{weights}").score(held(frames, FPS), asking("slow"))
    for score in found:
        assert (score.value is None) == bool(score.reason)
        assert score.value is None or np.isfinite(score.value)
    values = {s.dimension: s.value for s in found}
    assert values["imaging_quality"] is not None
    large = min(shape[1:]) >= SMALLEST_SIDE and shape[0] > 2
    assert (values["motion_smoothness"] is not None) == large


@pytest.fixture
def tables(tmp_path):
    """A folder in which background consistency has its score, of clips too."""
    return write_background(tmp_path)


def test_clips_are_ranges_of_one_decode(tables):
    frames = long_film()
    found = {
        s.dimension: s
        for s in scorers.load(f"vbench-long-index:{tables}").score(held(frames, FPS), PROMPT)
    }
    alone = scorers.load(f"vbench:{tables}")
    parts = clips(len(frames), FPS, 2)
    each = [
        {s.dimension: s.value for s in alone.score(held(frames[c.start : c.stop], FPS), PROMPT)}
        for c in parts
    ]
    flicker = [row["temporal_flickering"] for row in each]
    assert found["temporal_flickering"].value == pytest.approx(np.mean(flicker), abs=1e-9)
    within = float(np.mean([row["background_consistency"] for row in each]))
    pixels = prep.pixels(frames[[c.start for c in parts]], CPU)
    with torch.inference_mode():
        seen = Toolbox(Folder(tables), CPU).dreamsim()(prep.dreamsim_input(pixels)).numpy()
    # Length 1 each: products are cosines. Each frame beside the one before it and the first one.
    pairs = [(seen[k] @ seen[k - 1] + seen[k] @ seen[0]) / 2 for k in range(1, len(seen))]
    expected = fused(within, float(np.mean(pairs)), "background_consistency")
    assert found["background_consistency"].value == pytest.approx(expected, abs=1e-6)
    assert abs(expected - within) > 1e-4
    told = found["background_consistency"].details
    assert (told["protocol"], told["clips"], told["clip_s"]) == ("vbench-long-index", 3, 2)
    assert found["subject_consistency"].value is None
    assert FILES["dinov2"] in found["subject_consistency"].reason
    versions = {scorers.load(f"{name}:{tables}").version for name in SUITES}
    assert versions == {"3", "3-long", "3-long-index"}


def test_clips_that_are_encoded_again_are_a_copy_of_a_copy(tables):
    frames = long_film()
    found, plain = (
        {
            s.dimension: s.value
            for s in scorers.load(f"{name}:{tables}").score(held(frames, FPS), PROMPT)
        }
        for name in ("vbench-long", "vbench-long-index")
    )
    for name in ("temporal_flickering", "background_consistency"):
        assert found[name] != plain[name]
        assert found[name] == pytest.approx(plain[name], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vbench-long", "vbench-long-index"])
def test_long_scores_equal_the_package(name, weights):
    theirs = json.loads(LONG_GOLDEN.read_text(encoding="utf-8"))[name]
    mine = ours_long(weights, name, theirs)
    assert len(theirs) == 5
    for dimension, value in theirs.items():
        assert mine[dimension] == pytest.approx(value, abs=TOLERANCE), dimension


@pytest.mark.parametrize("name", SUITES)
def test_a_film_of_other_frames_than_it_names_is_no_film(name, tables):
    frames = long_film()
    clip = Clip(sha256="0" * 64, frames=96, fps=FPS, blocks=lambda: iter((frames,)))
    with pytest.raises(DecodeError, match="other frames than the 96"):
        scorers.load(f"{name}:{tables}").score(clip, PROMPT)


def test_cutting_lets_go_of_what_is_past():
    frames = np.arange(80, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    parts = clips(80, 16, 2)
    found = list(cut(iter(np.split(frames, 8)), parts))
    for part, shown in zip(parts, found, strict=True):
        assert shown[:, 0, 0, 0].tolist() == list(part)


def test_dinov2_equals_the_one_of_transformers():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    theirs = Dinov2Model(config).eval()
    for value in theirs.state_dict().values():
        value.copy_(torch.randn(value.shape) * 0.1)
    names = {
        "embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "layernorm.": "norm.", "encoder.layer.": "blocks.", "attention.o_proj.": "attn.proj.",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    }  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    for k in range(2):
        for part in ("weight", "bias"):
            rows = [
                state.pop(f"blocks.{k}.attention.{which}_proj.{part}") for which in ("q", "k", "v")
            ]
            state[f"blocks.{k}.attn.qkv.{part}"] = torch.cat(rows)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(x).last_hidden_state[:, 0]
        torch.testing.assert_close(vit.dinov2(state)(x), expected, atol=1e-5, rtol=1e-5)


def test_a_clip_that_is_streamed():
    frames = film("slow")
    clip = Clip(sha256="0" * 64, frames=FRAMES, fps=FPS, blocks=lambda: iter(np.split(frames, 4)))
    suite = VBenchSuite(Folder(GOLDEN.parent), CPU)
    plain = {s.dimension: s.value for s in suite.score(held(frames, FPS), PROMPT)}
    assert {s.dimension: s.value for s in suite.score(clip, PROMPT)} == plain
