"""Weights files: what is stored, and every way in which a file can be unusable."""

import hashlib

import pytest
import torch
from torch import nn

from cfmodel.io.weights import (
    bundled,
    load_into,
    load_weights,
    manifest,
    pin,
    randomize,
    resolve,
    save_weights,
    tensors_sha256,
    write_atomic,
)


def net(width=3):
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny" / "codec.safetensors"
    save_weights(path, net().state_dict(), config={"a": 1}, record={"steps": 7}, note="hello")
    return path


def test_round_trip(file):
    weights = load_weights(file)
    assert weights.config == {"a": 1}
    assert weights.record == {"steps": 7}
    assert weights.note == "hello"
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    kinds = {name: value.dtype for name, value in weights.tensors.items()}
    assert kinds["0.weight"] == torch.bfloat16
    assert kinds["0.bias"] == kinds["1.weight"] == torch.float32


def test_equal_weights_make_equal_files(tmp_path):
    state = net().state_dict()
    shas = [
        save_weights(tmp_path / name, state, config={"b": 1, "a": 2}, record={})
        for name in ("a.safetensors", "b.safetensors")
    ]
    assert shas[0] == shas[1]


def test_own_dtypes_are_kept_on_request(tmp_path):
    path = tmp_path / "x.safetensors"
    state = net().state_dict()
    save_weights(path, state, config={}, record={}, dtype=None)
    assert all(
        torch.equal(value, state[name]) for name, value in load_weights(path).tensors.items()
    )


def test_channels_last_weights_survive(tmp_path):
    kernel = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    save_weights(tmp_path / "x.safetensors", {"k": kernel}, config={}, record={}, dtype=None)
    assert torch.equal(load_weights(tmp_path / "x.safetensors").tensors["k"], kernel)


def test_unusable_files(file, tmp_path):
    data = file.read_bytes()
    with pytest.raises(ValueError, match="no weights at"):
        load_weights(tmp_path / "none.safetensors")
    for broken in (b"", data[:100], data[:-1], b"\xff" * 64):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="truncated or no safetensors file") as caught:
            load_weights(file)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found(file, tmp_path):
    pin(tmp_path)
    assert set(bundled("tiny/codec", tmp_path).tensors) == set(net().state_dict())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    load_weights(file)
    with pytest.raises(ValueError, match="is damaged: sha256"):
        bundled("tiny/codec", tmp_path)


def test_bundled_files_must_be_there_and_listed(file, tmp_path):
    with pytest.raises(ValueError, match="is not listed"):
        bundled("tiny/codec", tmp_path)
    with pytest.raises(ValueError, match="missing"):
        bundled("tiny/student", tmp_path)
    (tmp_path / "SHA256SUMS").write_text("abc codec\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected '<sha256>  <path>'"):
        manifest(tmp_path)


def test_misfits_are_reported_by_name(file):
    tensors = load_weights(file).tensors
    module = net()
    load_into(module, tensors, "x")
    assert torch.equal(module.state_dict()["0.bias"], tensors["0.bias"])
    tensors["extra"] = tensors.pop("1.bias")
    with pytest.raises(ValueError, match=r"1 missing: 1\.bias; 1 unexpected: extra"):
        load_into(net(), tensors, "x")
    with pytest.raises(ValueError, match=r"of another shape: 0\.bias \(3,\) for \(5,\)"):
        load_into(net(5), load_weights(file).tensors, "x")


def test_random_weights_are_always_the_same_and_never_zero():
    a, b = net(), net()
    assert randomize(a, "x") == randomize(b, "x") == tensors_sha256(a.state_dict())
    assert randomize(b, "y") != tensors_sha256(a.state_dict())
    assert a.state_dict()["0.weight"].all()


def test_resolve():
    assert resolve("nano-random", "nano") is None
    with pytest.raises(ValueError, match="for family nano, not tiny"):
        resolve("nano-random", "tiny")
    with pytest.raises(ValueError, match="are not bundled; use one of"):
        resolve("context-forcing", "wan-1.3b")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "none" / "x", b"1")
    (tmp_path / "full").mkdir()
    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "full", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
