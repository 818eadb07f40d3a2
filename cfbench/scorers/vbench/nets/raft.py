"""RAFT, the large network, under the names with which its authors publish ``raft-things.pth``.

Dims: B pairs, Y X rows and columns of pixels; inside, an eighth of them.

Source: RAFT (arXiv:2003.12039), as VBench's dynamic_degree uses it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfbench.scorers.vbench.nets.correlation import Pyramid, correlations

ITERATIONS = 20
MULTIPLE = 8
BRIGHTEST = 255
LEVELS, RADIUS = 4, 4
STATE = 128
FEATURES = 256
MASK_SCALE = 0.25
NEIGHBOURS = 9


class _Residual(nn.Module):
    def __init__(self, into: int, out: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else nn.InstanceNorm2d
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.norm1, self.norm2 = norm(out), norm(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride), norm(out)) if stride > 1 else None
        )

    def forward(self, x: Tensor) -> Tensor:
        # In place where nothing else holds the tensor: a half less memory at half the image's size.
        out = self.norm1(self.conv1(x)).relu_()
        out = self.norm2(self.conv2(out)).relu_()
        return out.add_(x if self.downsample is None else self.downsample(x)).relu_()


class _Encoder(nn.Module):
    """Features at an eighth of an image's size."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.norm1 = nn.BatchNorm2d(64) if batch_norm else nn.InstanceNorm2d(64)

        def layer(into: int, out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                _Residual(into, out, stride, batch_norm=batch_norm),
                _Residual(out, out, 1, batch_norm=batch_norm),
            )

        self.layer1, self.layer2, self.layer3 = (
            layer(64, 64, 1),
            layer(64, 96, 2),
            layer(96, 128, 2),
        )
        self.conv2 = nn.Conv2d(128, FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu_()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class _Motion(nn.Module):
    """Correlations and flow as features, the flow itself behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(64 + 192, STATE - 2, 3, padding=1)

    def forward(self, flow: Tensor, seen: Tensor) -> Tensor:
        seen = self.convc2(self.convc1(seen).relu_()).relu_()
        moved = self.convf2(self.convf1(flow).relu_()).relu_()
        return torch.cat([self.conv(torch.cat([seen, moved], 1)).relu_(), flow], 1)


class _Given(NamedTuple):
    """What a direction's three convolutions make of the context, which no step changes."""

    gates: Tensor
    new: Tensor


class _Gru(nn.Module):
    """A recurrent step along rows, then one along columns.

    Convolutions are linear: the context's share of them is made once a pair, not once a step.
    """

    def __init__(self) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int]) -> nn.Conv2d:
            return nn.Conv2d(3 * STATE, STATE, kernel, padding=(kernel[0] // 2, kernel[1] // 2))

        self.convz1, self.convr1, self.convq1 = (conv((1, 5)) for _ in range(3))
        self.convz2, self.convr2, self.convq2 = (conv((5, 1)) for _ in range(3))

    def given(self, context: Tensor) -> list[_Given]:
        """The context's share, by direction."""
        here = slice(STATE, 2 * STATE)
        found: list[_Given] = []
        for z, r, q in self._directions():
            weight, bias = _joined(z, r)
            gates = nnf.conv2d(context, weight[:, here], bias, padding=z.padding)
            new = nnf.conv2d(context, q.weight[:, here], q.bias, padding=q.padding)
            found.append(_Given(gates, new))
        return found

    def forward(self, state: Tensor, motion: Tensor, given: list[_Given]) -> Tensor:
        """The next state."""
        for (z, r, q), share in zip(self._directions(), given, strict=True):
            weight, _ = _joined(z, r)
            both = torch.cat([state, motion], 1)
            gates = nnf.conv2d(both, _without_context(weight), None, padding=z.padding)
            update, reset = gates.add_(share.gates).sigmoid_().chunk(2, 1)
            both = torch.cat([reset * state, motion], 1)
            new = nnf.conv2d(both, _without_context(q.weight), None, padding=q.padding)
            new.add_(share.new).tanh_()
            state = (1 - update).mul_(state).add_(new.mul_(update))
        return state

    def _directions(self) -> list[tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]]:
        return [(self.convz1, self.convr1, self.convq1), (self.convz2, self.convr2, self.convq2)]


def _joined(a: nn.Conv2d, b: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of two convolutions side by side."""
    weight = torch.cat([a.weight, b.weight])
    return weight, torch.cat([x.bias for x in (a, b) if x.bias is not None])


def _without_context(weight: Tensor) -> Tensor:
    return torch.cat([weight[:, :STATE], weight[:, 2 * STATE :]], 1)


class _FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(STATE, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu_())


class _Update(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru, self.flow_head = _Motion(), _Gru(), _FlowHead()
        self.mask = nn.Sequential(
            nn.Conv2d(STATE, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, MULTIPLE**2 * NEIGHBOURS, 1),
        )


class Raft(nn.Module):
    """Flow between images of 0 to 255, (B, 3, Y, X) each, sides divisible by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet, self.cnet = _Encoder(batch_norm=False), _Encoder(batch_norm=True)
        self.update_block = _Update()

    def forward(self, a_B3YX: Tensor, b_B3YX: Tensor) -> Tensor:
        """Flow (B, 2, Y, X) in pixels, x first."""
        first, second = self.features(torch.cat([a_B3YX, b_B3YX])).chunk(2)
        return self.flow(a_B3YX, first, second)

    def features(self, images_B3YX: Tensor) -> Tensor:
        """What images are compared by (B, C, Y, X); of use for every pair that an image is in."""
        return self.fnet(_centred(images_B3YX))

    def flow(self, a_B3YX: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Flow (B, 2, Y, X) in pixels, x first, of images whose ``features`` are known.

        Args:
            a_B3YX: the first images.
            first: their features.
            second: those of the second images.
        """
        flow, state = self._found(a_B3YX, first, second)
        return _enlarged(flow, self.update_block.mask(state).mul_(MASK_SCALE))

    def _found(self, a_B3YX: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Flow at an eighth of the size and the last state; correlations are gone then."""
        rows, columns = first.shape[-2:]
        step = self.update_block
        state, context = self.cnet(_centred(a_B3YX)).split(STATE, 1)
        state, given = state.tanh(), step.gru.given(context.relu())
        del context
        pairs = correlations(first.flatten(2), second)
        pyramid = Pyramid(pairs, rows, columns, levels=LEVELS, radius=RADIUS)
        flow = first.new_zeros(len(first), 2, rows, columns)
        for _ in range(ITERATIONS):
            motion = step.encoder(flow, pyramid.around(flow))
            state = step.gru(state, motion, given)
            flow = flow + step.flow_head(state)
        return flow, state


def _centred(images: Tensor) -> Tensor:
    return 2 * (images / BRIGHTEST) - 1


def _enlarged(flow_B2YX: Tensor, mask: Tensor) -> Tensor:
    """Flow at eight times the size, each pixel a learnt mean of its nine neighbours."""
    batch, _, rows, columns = flow_B2YX.shape
    shares = mask.view(batch, 1, NEIGHBOURS, MULTIPLE, MULTIPLE, rows, columns).softmax(2)
    near = nnf.unfold(MULTIPLE * flow_B2YX, (3, 3), padding=1)
    near = near.view(batch, 2, NEIGHBOURS, 1, 1, rows, columns)
    fine = (shares * near).sum(2).permute(0, 1, 4, 2, 5, 3)
    return fine.reshape(batch, 2, MULTIPLE * rows, MULTIPLE * columns)


def raft(tensors: Mapping[str, Tensor]) -> Raft:
    """The network with its published weights, whose norms of shortcuts stand there twice.

    Raises:
        ValueError: they are of another network.
    """
    plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    net = Raft()
    try:
        net.load_state_dict({k: v for k, v in plain.items() if ".norm3." not in k})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1].strip()
        raise ValueError(f"weights are of another network than RAFT ({reason})") from error
    return net.eval().requires_grad_(False)
