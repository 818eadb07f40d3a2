"""Training a Wan: published weights, its VAE and UMT5, texts embedded when they are drawn."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from cfmodel import cli
from cfmodel.io import wan_parts
from cfmodel.io.weights import load_weights
from cfmodel.train import matching
from cfmodel.train import run as runs
from cfmodel.train.frozen import WanFrozen
from cfmodel.train.texts import Held, OnDemand
from tests.helpers import wan
from tests.helpers.nano import seeded

CPU = torch.device("cpu")
SMALL = wan.small_wan()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return wan.write_release_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def frozen(base):
    codec = wan_parts.wan_vae(str(base), device=CPU, dtype=torch.float32)
    return WanFrozen(codec, wan_parts.umt5(str(base), SMALL.text, device=CPU), CPU)


def test_frozen_wan_agrees_with_its_codec(frozen):
    z = seeded(2, 3, 16, 2, 2)
    shown = frozen.decode(z)
    streamed = frozen._codec.decoder(2).push(z).permute(0, 1, 4, 2, 3)
    assert shown.shape == (2, 9, 3, 16, 16)
    assert (shown * 255 - streamed).abs().max() <= 1
    again = frozen.encode(streamed / 255)
    # Film by film here, together there: sums in another order.
    other = frozen._codec.encode(streamed.permute(0, 1, 3, 4, 2))
    torch.testing.assert_close(again, other, atol=1e-3, rtol=1e-3)
    first = frozen.reencode(z)
    assert first.shape == (2, 1, 16, 2, 2)
    torch.testing.assert_close(first, frozen.encode(shown[:, -1:]))


def test_texts_are_embedded_once_a_call_and_may_be_empty(frozen):
    out = frozen.embed(["a red ball", "", "a red ball"])
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])


def test_on_demand_gives_what_is_held_and_forgets():
    table, asked = seeded(6, 2, 3).to(torch.bfloat16).float(), list[str]()

    def embed(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return table[[int(text) for text in texts]]

    drawn = OnDemand([str(k) for k in range(6)], embed, held=3)
    numbers = torch.tensor([[0, 1], [1, 2]])
    assert torch.equal(drawn.rows(numbers), Held(table, CPU).rows(numbers))
    assert asked == ["0", "1", "2"]
    drawn.rows(torch.tensor([2, 3]))
    assert asked == ["0", "1", "2", "3"]
    assert torch.equal(drawn.rows(torch.tensor([0])), table[:1])  # the oldest went
    assert asked == ["0", "1", "2", "3", "0"]


def test_published_weights_are_named_by_stage():
    assert set(runs.published(["base=o/r", "dmd=x.pt#generator"], SMALL)) == {"base", "dmd"}
    for wrong in ("base", "codec=x", "none=x", "base="):
        with pytest.raises(ValueError, match="expected STAGE=SOURCE"):
            runs.published([wrong], SMALL)


def test_stage_1_of_a_wan(base, monkeypatch, capsys, tmp_path):
    save_file(wan.named(wan.small_student(0), "wan"), tmp_path / "base.safetensors")
    student = {f"model.{k}": v for k, v in wan.named(wan.small_student(1), "wan").items()}
    torch.save({"generator": student}, tmp_path / "ode.pt")
    (tmp_path / "prompts.txt").write_text("a red ball\nred grass\na ball on grass\n")
    out = tmp_path / "out"
    given = [
        "train", "dmd", "--preset", "wan-1.3b", "--device", "cpu", "--base", base,
        "--init", f"base={tmp_path / 'base.safetensors'}",
        "--init", f"causal-init={tmp_path / 'ode.pt'}",
        "--prompts", tmp_path / "prompts.txt", "--batch", 2, "--steps", 1, "--guidance", 0.5,
        "--out", out, "--json",
        *(part for size in wan.SIZES for part in ("--set", size)),
    ]  # fmt: skip
    used, real = list[float](), matching.guided
    monkeypatch.setattr(
        matching, "guided", lambda a, b, weight: used.append(weight) or real(a, b, weight)
    )
    monkeypatch.setattr(sys, "argv", ["cfmodel", *map(str, given)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert set(used) == {0.5}
    record = json.loads(capsys.readouterr().out)["dmd"]
    assert record["evaluation"]["student_updates"] == 1
    made, before = load_weights(out / "dmd.safetensors").tensors, wan.small_student(1)
    assert made.keys() == before.keys()
    assert all(
        torch.allclose(made[name].float(), before[name], atol=0.05, rtol=0.02) for name in before
    )
