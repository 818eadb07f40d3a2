"""Functions recorded as CUDA graphs: the arguments on any device, the recording on CUDA."""

import pytest
import torch
from torch import Tensor

from cfmodel.nn.attention import PreparedView
from cfmodel.nn.masks import Mask
from cfmodel.nn.rope import RotaryTable
from cfmodel.recorded import WARMING, Recorded, _Arguments, _Recording


def _views(value: float, frames: int = 2) -> list[PreparedView]:
    table = RotaryTable(torch.full((1, 2), value), torch.full((1, 2), value + 1))
    mask = Mask(dense=torch.ones(1, frames, dtype=torch.bool))
    return [
        PreparedView(torch.full((1, frames), value), torch.full((1, 2), -value), table, mask),
        PreparedView(torch.full((1, frames), value + 2), torch.full((1, 2), 0.0), table, None),
    ]


def test_arguments_are_put_together_as_they_were_taken_apart():
    views = _views(1.0)
    taken = _Arguments.of((views, {"x": views[0].k_BKHD, "none": None}))
    (again, named) = taken.together()
    assert again[0].mask.dense is views[0].mask.dense
    assert again[1].query_table.cos is views[0].query_table.cos
    assert named["x"] is views[0].k_BKHD
    assert named["none"] is None
    # A tensor that comes five times is held once.
    assert len(taken.tensors) == 7


def test_other_shapes_structures_and_shared_tensors_are_other_calls():
    one, x = _Arguments.of((_views(1.0),)), torch.zeros(2)
    assert one.alike(_Arguments.of((_views(2.0),)))
    assert not one.alike(_Arguments.of((_views(1.0, frames=3),)))
    assert not one.alike(_Arguments.of((_views(1.0)[:1],)))
    assert not _Arguments.of((x, x)).alike(_Arguments.of((x, x.clone())))
    assert not _Arguments.of((x, None)).alike(_Arguments.of((x, 1)))


def test_a_changed_argument_is_never_taken_for_the_old_one():
    seen: list[list[float]] = []
    x, y = torch.tensor([1.0]), torch.tensor([10.0])
    recording = _Recording(lambda a, b: seen.append([a.item(), b.item()]), _Arguments.of((x, y)))
    recording.run([x, y])
    x.add_(1)
    recording.run([x, y])
    recording.run([x, torch.tensor([20.0])])
    assert seen == [[1, 10], [2, 10], [2, 20]]


def test_arguments_are_copied_once_while_they_stay_the_same(monkeypatch: pytest.MonkeyPatch):
    copied: list[int] = []
    real = torch._foreach_copy_

    def counted(to: list[Tensor], of: list[Tensor]) -> None:
        copied.append(len(of))
        real(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    x, y = torch.zeros(1), torch.zeros(1)
    recording = _Recording(lambda a, b: a + b, _Arguments.of((x, y)))
    for step in range(WARMING):
        recording.run([x.fill_(step), y])
    assert copied == [2, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_function_gives_what_an_ordinary_call_gives():
    weight = torch.randn(8, 8, device="cuda", requires_grad=True)

    def gradient(batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = (batch["x"] @ weight).square().mean()
        return loss.detach(), torch.autograd.grad(loss, [weight])

    run = Recorded(gradient, active=True)
    for _ in range(WARMING + 4):
        batch = {"x": torch.randn(4, 8, device="cuda")}
        loss, (found,) = run(batch)
        wanted, (right,) = gradient(batch)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(found, right)
        with torch.no_grad():
            weight.sub_(found, alpha=0.1)
