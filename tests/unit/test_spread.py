"""One film by several processes: the numbers of one process, one file, and clear refusals."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cfmodel.nn.masks import Mask
from cfmodel.nn.rope import RotaryTable
from cfmodel.nn.spread import Spread
from tests.helpers.nano import nano_model
from tests.helpers.spread import CASES, film

ROOT = Path(__file__).resolve().parents[2]
FP32 = 1e-5
MINUTES = 300


def together(*arguments: Any, size: int = 2) -> list[tuple[int, str, str]]:
    """Runs a module in so many processes as torchrun would; exit codes, outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *map(str, arguments)],
            cwd=ROOT,
            env={**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [child.communicate(timeout=MINUTES) for child in children]
    return [(child.returncode, *told) for child, told in zip(children, said, strict=True)]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("spread")
    for code, _, errors in together("tests.helpers.spread", folder):
        assert code == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_film_of_one(by_two, name):
    """Past evictions, across a change of text, with every decision the same on both."""
    latents, kept = film(name)
    first, second = (found[name] for found in by_two)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == kept
    torch.testing.assert_close(first[0], latents, atol=FP32, rtol=FP32)


@pytest.mark.slow
def test_the_first_process_writes_the_film_and_tells_of_it(tmp_path):
    out = tmp_path / "film.mp4"
    (code, said, errors), other = together(
        "cfmodel", "sample", "--preset", "nano", "--prompt", "a film", "--seconds", 2, "--out", out,
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert (code, other[0], other[1]) == (0, 0, ""), errors + other[2]
    told = json.loads(said)
    assert (told["processes"], told["films"][0]["out"]) == ("2", str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.slow
def test_tokens_that_do_not_divide_are_refused(tmp_path):
    found = together(
        "cfmodel", "sample", "--preset", "nano", "--prompt", "a film", "--seconds", 2,
        "--out", tmp_path / "film.mp4", "--device", "cpu", size=3,
    )  # fmt: skip
    for code, _, errors in found:
        assert code == 2
        assert "16 tokens of a frame do not divide among 3 processes" in errors


def test_a_model_refuses_too():
    with pytest.raises(ValueError, match="do not divide among 3"):
        nano_model().spread_over(Spread(0, 3))


def test_shares_are_parts_of_every_frame():
    x = torch.arange(12.0).view(1, 12, 1, 1)
    cos, sin = Spread(1, 2).table(RotaryTable(x, -x), frames=3)
    assert cos.flatten().tolist() == [2, 3, 6, 7, 10, 11]
    assert torch.equal(sin, -cos)


def test_rows_of_a_mask_follow_the_tokens():
    dense = torch.arange(12).view(1, 1, 12, 1).expand(1, 1, 12, 5)
    found = Spread(0, 2).mask(Mask(dense=dense), frames=3)
    assert found is not None
    assert found.dense is not None
    assert found.dense[0, 0, :, 0].tolist() == [0, 1, 4, 5, 8, 9]
    every = Mask(dense=dense[:, :, :1])
    assert Spread(0, 2).mask(every, frames=3) is every
    with pytest.raises(ValueError, match="flex"):
        Spread(0, 2).mask(Mask(), frames=3)
