"""RAFT, the large network, under the names with which its authors publish ``raft-things.pth``.

Dims: B pairs, Y X rows and columns of pixels; inside, an eighth of them.

Source: RAFT (arXiv:2003.12039), as VBench's dynamic_degree uses it.
"""

from collections.abc import Mapping

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
        out = nnf.relu(self.norm1(self.conv1(x)))
        out = nnf.relu(self.norm2(self.conv2(out)))
        return nnf.relu(out + (x if self.downsample is None else self.downsample(x)))


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
        x = nnf.relu(self.norm1(self.conv1(x)))
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
        seen = nnf.relu(self.convc2(nnf.relu(self.convc1(seen))))
        moved = nnf.relu(self.convf2(nnf.relu(self.convf1(flow))))
        return torch.cat([nnf.relu(self.conv(torch.cat([seen, moved], 1))), flow], 1)


class _Gru(nn.Module):
    """A recurrent step along rows, then one along columns."""

    def __init__(self) -> None:
        super().__init__()
        for number, kernel, padding in ((1, (1, 5), (0, 2)), (2, (5, 1), (2, 0))):
            for gate in "zrq":
                conv = nn.Conv2d(3 * STATE, STATE, kernel, padding=padding)
                self.add_module(f"conv{gate}{number}", conv)

    def forward(self, state: Tensor, told: Tensor) -> Tensor:
        for number in (1, 2):
            z, r, q = (self.get_submodule(f"conv{gate}{number}") for gate in "zrq")
            both = torch.cat([state, told], 1)
            update, reset = z(both).sigmoid(), r(both).sigmoid()
            new = q(torch.cat([reset * state, told], 1)).tanh()
            state = (1 - update) * state + update * new
        return state


class _FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(STATE, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(nnf.relu(self.conv1(x)))


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
        a, b = (2 * (image / BRIGHTEST) - 1 for image in (a_B3YX, b_B3YX))
        first, second = self.fnet(torch.cat([a, b])).chunk(2)
        rows, columns = first.shape[-2:]
        pairs = correlations(first, second)
        pyramid = Pyramid(pairs, rows, columns, levels=LEVELS, radius=RADIUS)
        context = self.cnet(a)
        state, given = context[:, :STATE].tanh(), nnf.relu(context[:, STATE:])
        flow = a.new_zeros(len(a), 2, rows, columns)
        step = self.update_block
        for _ in range(ITERATIONS):
            motion = step.encoder(flow, pyramid.around(flow))
            state = step.gru(state, torch.cat([given, motion], 1))
            flow = flow + step.flow_head(state)
        return _enlarged(flow, MASK_SCALE * step.mask(state))


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
