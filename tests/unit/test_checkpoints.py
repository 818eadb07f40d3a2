"""Published weights: every layout gives the same transformer, and nothing unsafe is opened."""

import pickle
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfmodel.io import checkpoints, wan_parts
from cfmodel.io.checkpoints import bare, find, merged, read, student
from cfmodel.io.convert import export, load_student, write
from cfmodel.io.weights import save_weights
from tests.helpers import wan
from tests.helpers.nano import seeded

SMALL = wan.small_wan()
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def state():
    return wan.small_student()


def _wrapped(tensors, *before):
    return {".".join((*before, name)): value for name, value in tensors.items()}


def _write(kind, state, folder):
    """The student as somebody publishes it; returns its source."""
    theirs = wan.named(state, "wan")
    match kind:
        case "ours":
            save_weights(folder / "s.safetensors", state, config={}, record={}, dtype=None)
            return folder / "s.safetensors"
        case "original folder":
            save_file(theirs, folder / "diffusion_pytorch_model.safetensors")
            return folder
        case "diffusers folder":
            wan.write_sharded(
                folder / "transformer", wan.named(state, "diffusers"), "diffusion_pytorch_model"
            )
            return folder
        case "Self-Forcing":
            other = {name: value + 1 for name, value in theirs.items()}
            tree = {
                "generator": _wrapped(other, "model"),
                "generator_ema": _wrapped(theirs, "model"),
            }
            torch.save(tree, folder / "self_forcing_dmd.pt")
            return folder / "self_forcing_dmd.pt"
        case "FSDP":
            names = {name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value
                     for name, value in theirs.items()}  # fmt: skip
            tree = {"generator": _wrapped(names, "model", "_fsdp_wrapped_module")}
            torch.save(tree, folder / "model.pt")
            return folder
        case "chosen entry":
            torch.save({"generator": theirs, "generator_ema": {}}, folder / "model.pt")
            return f"{folder}/model.pt#generator"
        case _:
            torch.save(theirs, folder / "model.pt", _use_new_zipfile_serialization=False)
            return folder / "model.pt"


@pytest.mark.parametrize(
    "kind",
    ["ours", "original folder", "diffusers folder", "Self-Forcing", "FSDP", "chosen entry", "bare"],
)
def test_every_layout_gives_the_same_weights(kind, state, tmp_path):
    found = student(str(_write(kind, state, tmp_path)), SMALL.model, state)
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], state[name]) for name in state)
    assert len(found.sha256) == 64


def test_an_adaptation_is_merged(state, tmp_path):
    theirs, rank = wan.named(state, "wan"), 3
    name = "blocks.1.self_attn.q"
    a, b = seeded(rank, 48), seeded(48, rank, seed=1)
    low = {f"base_model.model.{name}.lora_A.default.weight": a,
           f"base_model.model.{name}.lora_B.default.weight": b}  # fmt: skip
    torch.save({"generator": _wrapped(theirs, "model")}, tmp_path / "base.pt")
    torch.save({"generator_lora": low, "critic_lora": {}}, tmp_path / "lora.pt")
    source, lora = str(tmp_path / "base.pt"), str(tmp_path / "lora.pt")
    found = student(source, SMALL.model, state, lora=lora, alpha=6.0)
    wanted = theirs[f"{name}.weight"] + 2 * (b @ a)
    torch.testing.assert_close(found.tensors["blocks.1.attn.q.weight"], wanted)
    same = [n for n in state if torch.equal(found.tensors[n], state[n])]
    assert len(same) == len(state) - 1
    assert "generator_lora" in found.note
    plain = student(source, SMALL.model, state, lora=lora)
    torch.testing.assert_close(
        plain.tensors["blocks.1.attn.q.weight"], theirs[f"{name}.weight"] + b @ a
    )
    with pytest.raises(ValueError, match="not an adaptation"):
        merged(theirs, {f"{name}.lora_A.weight": a})
    with pytest.raises(ValueError, match=r"not an adaptation of these weights: blocks\.9"):
        merged(theirs, {"blocks.9.lora_A.weight": a, "blocks.9.lora_B.weight": b})
    with pytest.raises(ValueError, match="does not give"):
        merged(theirs, {f"{name}.lora_A.weight": a[:, :5], f"{name}.lora_B.weight": b})


class Exploit:
    def __reduce__(self):
        return (print, ("run",))


def test_what_is_refused(state, tmp_path, capfd):
    theirs = wan.named(state, "wan")
    path = tmp_path / "m.pt"
    with path.open("wb") as file:
        pickle.dump({"generator": theirs, "more": Exploit()}, file)
    with pytest.raises(ValueError, match="more than tensors, perhaps code"):
        read(path)
    torch.save({"generator": theirs, "args": Exploit()}, path)
    with pytest.raises(ValueError, match="more than tensors, perhaps code"):
        read(path)
    assert "run" not in capfd.readouterr().out
    torch.save(theirs, path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            read(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        read(path)
    torch.save({"generator": theirs, "step": 3}, path)
    with pytest.raises(ValueError, match="no state dict 'critic'; it has generator"):
        read(path, entry="critic")
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="holds no state dict; it has step"):
        read(path)
    with pytest.raises(ValueError, match=r"expected \.safetensors"):
        read(tmp_path / "x.txt")


def test_misfits_are_reported(state, tmp_path):
    theirs = wan.named(state, "wan")
    save_file(theirs | {"blocks.0.extra": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"unknown \['blocks.0.extra'\] \(1\)"):
        student(str(tmp_path / "a.safetensors"), SMALL.model, state)
    save_file(theirs | {"head.head.bias": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(
        ValueError, match=r"1 of another shape: head.linear.bias \(3,\) for \(64,\)"
    ):
        student(str(tmp_path / "b.safetensors"), SMALL.model, state)
    save_file({"w": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="no video transformer that is known"):
        student(str(tmp_path / "c.safetensors"), SMALL.model, state)
    with pytest.raises(ValueError, match="expected a file, a folder or a hub id"):
        find(str(tmp_path / "none.pt"), "transformer")
    with pytest.raises(ValueError, match="holds no vae weights"):
        find(str(tmp_path), "vae")
    index = wan.write_sharded(tmp_path / "cut", theirs, "diffusion_pytorch_model")
    first = sorted(index.parent.glob("*-00001-*"))[0]
    first.write_bytes(first.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated"):
        student(str(index), SMALL.model, state)


def test_a_hub_id_that_cannot_be_fetched(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(**use):
        asked.append(use)
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"cannot fetch o/r/c/m.pt@v1 \(no network\)"):
        find("o/r/c/m.pt@v1#generator", "transformer")
    with pytest.raises(ValueError, match="cannot fetch o/r"):
        find("o/r", "vae")
    assert asked[0] == {
        "filename": "c/m.pt", "repo_id": "o/r", "revision": "v1", "local_files_only": False,
    }  # fmt: skip
    assert any("vae/diffusion" in pattern for pattern in asked[1]["allow_patterns"])


def test_of_a_hub_repository_only_a_role_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    asked: list[list[str]] = []

    def fetched(**use):
        asked.append(use["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    release = [
        "diffusion_pytorch_model.safetensors",
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/spiece.model",
    ]
    inner = [f"vae/{release[0]}", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"]
    wanted = {
        "vae": {release[1], inner[0]},
        "transformer": {release[0], inner[1]},
        "text": {release[2]},
    }
    for role, names in wanted.items():
        with pytest.raises(ValueError, match=f"o/r holds no {role} weights"):
            find("o/r", role)
        found = {n for n in (*release, *inner) if any(fnmatch(n, p) for p in asked[-1])}
        assert found == names
    (tmp_path / "few").mkdir()
    torch.save({}, tmp_path / "few" / "x.pt")
    assert find("o/r/few", "transformer") == tmp_path / "few" / "x.pt"
    assert any(fnmatch("few/x.pt", pattern) for pattern in asked[-1])
    assert not any(fnmatch("x.pt", pattern) for pattern in asked[-1])
    with pytest.raises(ValueError, match="o/r/none holds no transformer weights"):
        find("o/r/none", "transformer")


def test_a_hub_folder_is_used(monkeypatch, state, tmp_path):
    import huggingface_hub

    _write("diffusers folder", state, tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **use: str(tmp_path))
    assert student("o/r", SMALL.model, state).tensors.keys() == state.keys()


def test_names_lose_their_wrappers_alone():
    names = ("model.generator.a.model.w", "model.generator.b")
    assert list(bare(dict.fromkeys(names, torch.zeros(1)))) == ["a.model.w", "b"]


@pytest.mark.parametrize("to", ["wan", "diffusers", "cfmodel"])
def test_conversions_round_trip(to, state, tmp_path):
    source = _write("Self-Forcing", state, tmp_path)
    there = tmp_path / "there.safetensors"
    write(load_student(str(source), SMALL), there, to, SMALL)
    back = load_student(str(there), SMALL)
    assert all(torch.equal(back.tensors[name], state[name]) for name in state)
    if to != "cfmodel":
        assert load_file(there).keys() == wan.named(state, to).keys()
    else:
        assert back.record["source"] == "self_forcing_dmd.pt#generator_ema"
    half = tmp_path / "half.safetensors"
    write(back, half, to, SMALL, dtype="bfloat16")
    assert {value.dtype for value in load_file(half).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        write(back, tmp_path / "x.pt", to, SMALL)


def test_an_export_loads_into_diffusers(state, tmp_path):
    from diffusers import WanTransformer3DModel

    found = load_student(str(_write("ours", state, tmp_path)), SMALL)
    files = export(found, tmp_path / "card", SMALL, licence="apache-2.0")
    network = WanTransformer3DModel.from_pretrained(tmp_path / "card" / "transformer")
    theirs = network.state_dict()
    wanted = wan.named(state, "diffusers")
    assert all(torch.equal(theirs[name], wanted[name]) for name in theirs)
    text = (tmp_path / "card" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert all(sha256 in text for sha256 in files.values())
    again = load_student(str(tmp_path / "card" / "cfmodel.safetensors"), SMALL)
    assert all(torch.equal(again.tensors[name], state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize("write_base", [wan.write_diffusers_base, wan.write_release_base])
def test_vae_and_text_of_both_layouts(write_base, tmp_path):
    folder = str(write_base(tmp_path / "base"))
    codec = wan_parts.wan_vae(folder, **CPU)
    z = seeded(1, 2, 16, 4, 4)
    reference = wan.small_vae()
    raw = codec.normaliser.to_codec(z).transpose(1, 2)
    theirs = reference.decode(raw).sample.transpose(1, 2) / 2 + 0.5
    shown = codec.decoder(1).push(z).permute(0, 1, 4, 2, 3)
    assert ((theirs.clamp(0, 1) * 255).round() - shown).abs().max() <= 1
    text = wan_parts.umt5(folder, SMALL.text, device="cpu")
    out = text.encode(["a  red ball", "a red &amp; ball"])
    ids = torch.tensor([[0, 1, 2, 6]])
    whole = wan.small_umt5()(input_ids=ids, attention_mask=ids * 0 + 1).last_hidden_state
    torch.testing.assert_close(out[0, :4], whole[0], rtol=1e-5, atol=1e-5)
    assert not out[0, 4:].any()
    assert out[1, 4].any()


def test_parts_that_are_not_there(tmp_path):
    wan.write_diffusers_base(tmp_path)
    with pytest.raises(ValueError, match=r"has width 16, but text\.width=4096"):
        wan_parts.umt5(str(tmp_path), wan.preset("wan-1.3b").text, device="cpu")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        wan_parts.umt5(str(tmp_path), SMALL.text, device="cpu")
    (tmp_path / "tokenizer").rmdir()
    with pytest.raises(ValueError, match="no tokenizer beside"):
        wan_parts.umt5(str(tmp_path), SMALL.text, device="cpu")
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        wan_parts.wan_vae(str(tmp_path), **CPU)


def test_entries_are_split():
    assert checkpoints.split_entry("o/r/m.pt@main#critic") == ("o/r/m.pt@main", "critic")
