"""DreamSim's ensemble beside what it is made of; its package's own scores are in tests/parity."""

import json

import pytest
import torch

from cfbench.scorers.vbench.files import DREAMSIM, FILES, Folder
from cfbench.scorers.vbench.nets.dreamsim import NORMS, dreamsim
from cfbench.scorers.vbench.nets.vit import dino
from cfbench.scorers.vbench.toolbox import Toolbox
from tests.helpers.vbench_data import DREAMSIM_ALPHA, DREAMSIM_RANK, write_weights

SCALE = DREAMSIM_ALPHA / DREAMSIM_RANK
WIDTHS = (128, 32, 32)
LAYER = "base_model.model.extractor_list.{}.model.blocks.{}.attn.qkv.lora_{}.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(write_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def files(folder):
    return [folder.tensors(name) for name in DREAMSIM[:3]], folder.tensors("dreamsim-lora")


@pytest.fixture
def images():
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_feature_has_mean_zero_and_length_one(files, images):
    seen = dreamsim(*files, SCALE)(images)
    assert seen.shape == (2, sum(WIDTHS))
    assert seen.mean(-1).abs().max() < 1e-6
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2))


def test_changes_are_added_to_every_network(files, images):
    bases, adapter = files
    whole = [dict(base) for base in bases]
    for number, base in enumerate(whole):
        for block in range(2):
            a, b = (adapter[LAYER.format(number, block, half)] for half in "AB")
            name = f"blocks.{block}.attn.qkv.weight"
            base[name] = base[name] + SCALE * b @ a
    merged, bare = dreamsim(whole, {}, 1.0), dreamsim(bases, {}, 1.0)
    seen = dreamsim(bases, adapter, SCALE)
    torch.testing.assert_close(seen(images), merged(images))
    for net, plain in zip(seen.nets, bare.nets, strict=True):
        assert (net(images) - plain(images)).abs().max() > 1e-3


def test_dino_is_read_before_its_last_norm(files, images):
    bases, _ = files
    net, normed = dreamsim(bases, {}, 1.0).nets[0], dino(bases[0])
    torch.testing.assert_close(normed.norm_out(net(images)), normed(images))


def test_only_one_of_both_clips_has_the_approximate_gelu(files, images):
    bases, _ = files
    # Large inputs, since the two are alike near zero.
    loud = {k: v * 8 if k.endswith("mlp.fc1.weight") else v for k, v in bases[1].items()}
    _, clip, open_clip = dreamsim([bases[0], loud, loud], {}, 1.0).nets
    assert (clip(images) - open_clip(images)).abs().max() > 1e-3


def test_networks_are_given_their_own_normalisation(files, images):
    bases, _ = files
    net = dreamsim(bases, {}, 1.0)
    parts = [
        one(
            (images - torch.tensor(norm.mean)[:, None, None])
            / torch.tensor(norm.std)[:, None, None]
        )
        for one, norm in zip(net.nets, NORMS, strict=True)
    ]
    whole = torch.cat(parts, -1)
    whole = whole - whole.mean(-1, keepdim=True)
    torch.testing.assert_close(net(images), torch.nn.functional.normalize(whole, dim=-1))
    assert NORMS[0] != NORMS[1] == NORMS[2]


def test_rank_and_alpha_are_read_from_the_settings(folder, files, images):
    net = Toolbox(folder, torch.device("cpu")).dreamsim()
    torch.testing.assert_close(net(images), dreamsim(*files, SCALE)(images))


@pytest.mark.parametrize("fault", ["strange", "other size", "no rank", "not json", "torn"])
def test_what_does_not_fit_is_refused_by_name(fault, tmp_path):
    root = write_weights(tmp_path)
    settings, adapter = root / FILES["dreamsim-settings"], root / FILES["dreamsim-lora"]
    said = json.loads(settings.read_text("utf-8"))
    match fault:
        case "strange":
            adapter.write_bytes(_stored({"head.weight": torch.zeros(1)}))
        case "other size":
            halves = {LAYER.format(0, 0, half): torch.ones(2, 2) for half in "AB"}
            adapter.write_bytes(_stored(halves))
        case "no rank":
            settings.write_text(json.dumps({"lora_alpha": said["lora_alpha"]}), encoding="utf-8")
        case "not json":
            settings.write_text("{", encoding="utf-8")
        case _:
            adapter.write_bytes(adapter.read_bytes()[:100])
    name = settings.name if fault == "not json" else adapter.name
    with pytest.raises(Exception, match=name):
        Toolbox(Folder(root), torch.device("cpu")).dreamsim()


def _stored(tensors):
    from safetensors.torch import save

    return save(tensors)
