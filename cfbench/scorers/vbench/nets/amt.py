"""AMT-S: the frame halfway between two, from flows in both directions and their correlations.

Names of weights are the published ones. Dims: B pairs, C channels, Y X rows and columns; flows are
(B, 2, Y, X), x first, in pixels of their own level.

Source: AMT (arXiv:2304.09790), its smallest model; VBench's motion_smoothness uses it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cfbench.scorers.vbench.nets.correlation import looked_up

RADIUS, LEVELS, FLOWS = 3, 4, 3
CHANNELS = (20, 32, 44, 56)
SKIP = 20
FEATURES, HIDDEN, MOTION, FLOW, CORRELATION = 84, 76, 68, 20, 64
SLOPE = 0.1
HALFWAY = 0.5
AT_ONCE = 4


def _scaled(x: Tensor, factor: float) -> Tensor:
    return nnf.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _warped(image: Tensor, flow_B2YX: Tensor) -> Tensor:
    """An image looked up at every pixel's place plus its flow, border repeated."""
    rows, columns = flow_B2YX.shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(-1.0, 1.0, rows, device=image.device),
        torch.linspace(-1.0, 1.0, columns, device=image.device),
        indexing="ij",
    )
    sizes = image.new_tensor([(image.shape[3] - 1) / 2, (image.shape[2] - 1) / 2])
    grid = torch.stack([x, y], -1) + flow_B2YX.permute(0, 2, 3, 1) / sizes
    return nnf.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


class _Bent(nn.PReLU):
    """PReLU in its input's memory, on a CPU a few channels at a time: the largest tensors here."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, changed."""
        count = input.shape[1] if input.is_cuda else AT_ONCE
        for part, slopes in zip(input.split(count, 1), self.weight.split(count), strict=True):
            part.copy_(nnf.prelu(part, slopes))
        return input


def _conv(into: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1), _Bent(out))


class _Mixing(nn.Module):
    """Convolutions of which every second sees the last ``SKIP`` channels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv3 = _conv(channels, channels), _conv(channels, channels)
        self.conv2, self.conv4 = _conv(SKIP, SKIP), _conv(SKIP, SKIP)
        self.conv5 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.prelu = _Bent(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for whole, side in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            out = whole(out)
            out[:, -SKIP:] = side(out[:, -SKIP:])
        return self.prelu(self.conv5(out).add_(x))


class _Pyramid(nn.Module):
    """Features of an image at a half, a quarter, an eighth and a sixteenth of its size."""

    def __init__(self) -> None:
        super().__init__()
        before = 3
        for level, channels in enumerate(CHANNELS, 1):
            self.add_module(
                f"pyramid{level}",
                nn.Sequential(_conv(before, channels, 2), _conv(channels, channels)),
            )
            before = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for part in self.children():
            x = part(x)
            levels.append(x)
        return levels


class _Decoder(nn.Module):
    """A level's decoder: twice the size, two flows and features out of what comes in."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        width = self._width(into)
        self.convblock = nn.Sequential(
            _conv(into, width), _Mixing(width), nn.ConvTranspose2d(width, out, 4, 2, 1)
        )

    @staticmethod
    def _width(into: int) -> int:
        # The time's single channel, or the flows' four, do not widen what follows.
        return into - 1 if into % 2 else into - 4

    def forward(self, *parts: Tensor) -> Tensor:
        return self.convblock(torch.cat(parts, 1))


class _Bottleneck(nn.Module):
    """Three convolutions around a shortcut, instance norms without weights."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        inner = out // 4
        self.conv1 = nn.Conv2d(into, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1)
        self.conv3 = nn.Conv2d(inner, out, 1)
        self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in (self.conv1, self.conv2, self.conv3):
            out = nnf.instance_norm(conv(out)).relu_()
        short = x if self.downsample is None else nnf.instance_norm(self.downsample(x))
        return out.add_(short).relu_()


class _Features(nn.Module):
    """Features at an eighth of an image's size, to be correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 7, 2, 3)
        self.layer1 = nn.Sequential(_Bottleneck(32, 32, 1), _Bottleneck(32, 32, 1))
        self.layer2 = nn.Sequential(_Bottleneck(32, 64, 2), _Bottleneck(64, 64, 1))
        self.layer3 = nn.Sequential(_Bottleneck(64, 96, 2), _Bottleneck(96, 96, 1))
        self.conv2 = nn.Conv2d(96, FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nnf.instance_norm(self.conv1(x)).relu_()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class _Correlations(NamedTuple):
    """Two images' features, whose correlations are looked up in both directions."""

    a: Tensor
    b: Tensor

    def around(self, flow01: Tensor, flow10: Tensor) -> Tensor:
        """Correlations around where flows lead: from the first image, then from the second."""
        return torch.cat(
            [
                looked_up(self.a, self.b, flow01, levels=LEVELS, radius=RADIUS),
                looked_up(self.b, self.a, flow10, levels=LEVELS, radius=RADIUS),
            ],
            1,
        )


class _Update(nn.Module):
    """Corrections of features and flows by correlations; works at an eighth of the image's size."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self._scale = scale
        self.convc1 = nn.Conv2d(2 * LEVELS * (2 * RADIUS + 1) ** 2, CORRELATION, 1)
        self.convf1 = nn.Conv2d(4, 2 * FLOW, 7, padding=3)
        self.convf2 = nn.Conv2d(2 * FLOW, FLOW, 3, padding=1)
        self.conv = nn.Conv2d(CORRELATION + FLOW, MOTION, 3, padding=1)
        self.gru = self._pair(MOTION + 4 + channels, HIDDEN)
        self.feat_head = self._pair(HIDDEN, channels)
        self.flow_head = self._pair(HIDDEN, 4)

    @staticmethod
    def _pair(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(into, HIDDEN, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(HIDDEN, out, 3, padding=1),
        )

    def forward(
        self, features: Tensor, flow: Tensor, correlations: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = self._scale
        small = features if scale == 1 else _scaled(features, 1 / scale)

        def active(x: Tensor) -> Tensor:
            return nnf.leaky_relu(x, SLOPE)

        seen = active(self.convc1(correlations))
        moved = active(self.convf2(active(self.convf1(flow))))
        told = active(self.conv(torch.cat([seen, moved], 1)))
        state = self.gru(torch.cat([told, flow, small], 1))
        more, change = self.feat_head(state), self.flow_head(state)
        if scale == 1:
            return more, change
        return _scaled(more, scale), scale * _scaled(change, scale)


class _Level(NamedTuple):
    features: Tensor
    flow0: Tensor
    flow1: Tensor


class AmtS(nn.Module):
    """The frame halfway between two images, each (B, 3, Y, X) in [0, 1]; sides divide by 16."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c3, c4 = CHANNELS
        self.feat_encoder, self.encoder = _Features(), _Pyramid()
        self.decoder4 = _Decoder(2 * c4 + 1, c3 + 4)
        self.decoder3 = _Decoder(3 * c3 + 4, c2 + 4)
        self.decoder2 = _Decoder(3 * c2 + 4, c1 + 4)
        self.decoder1 = _Decoder(3 * c1 + 4, 8 * FLOWS)
        self.update4, self.update3, self.update2 = _Update(c3, 1), _Update(c2, 2), _Update(c1, 4)
        self.comb_block = nn.Sequential(
            nn.Conv2d(3 * FLOWS, 6 * FLOWS, 3, 1, 1),
            _Bent(6 * FLOWS),
            nn.Conv2d(6 * FLOWS, 3, 3, 1, 1),
        )

    def forward(self, image0: Tensor, image1: Tensor) -> Tensor:
        """The frame between, (B, 3, Y, X) in [0, 1]."""
        mean = torch.cat([image0, image1], 2).mean((1, 2, 3), keepdim=True)
        image0, image1 = image0 - mean, image1 - mean
        # What a stage holds is gone when it returns: the last ones work on whole images.
        drawn = self._drawn(*self._told(image0, image1), image0, image1, mean)
        whole = torch.stack(drawn, 1).mean(1) + self.comb_block(torch.cat(drawn, 1))
        return whole.clamp(0, 1)

    def _told(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, _Level]:
        """What the last decoder says, and the level that it said it of."""
        both = self.feat_encoder(torch.cat([image0, image1]))
        pairs = _Correlations(*both.chunk(2))
        (a1, a2, a3, a4), (b1, b2, b3, b4) = self.encoder(image0), self.encoder(image1)
        when = a4.new_full((len(a4), 1, *a4.shape[2:]), HALFWAY)
        level = self._split(self.decoder4(a4, b4, when))
        level = self._corrected(self.update4, level, pairs, 1)
        for decoder, update, a, b, scale in (
            (self.decoder3, self.update3, a3, b3, 2),
            (self.decoder2, self.update2, a2, b2, 4),
        ):
            out = self._split(decoder.convblock(self._seen(level, a, b)))
            level = _Level(
                out.features,
                out.flow0 + 2 * _scaled(level.flow0, 2),
                out.flow1 + 2 * _scaled(level.flow1, 2),
            )
            level = self._corrected(update, level, pairs, scale)
        return self.decoder1.convblock(self._seen(level, a1, b1)), level

    @staticmethod
    def _seen(level: _Level, a: Tensor, b: Tensor) -> Tensor:
        """What a decoder is given."""
        seen = (_warped(a, level.flow0), _warped(b, level.flow1))
        return torch.cat([level.features, *seen, level.flow0, level.flow1], 1)

    @staticmethod
    def _split(out: Tensor) -> _Level:
        return _Level(out[:, 4:], out[:, :2], out[:, 2:4])

    @staticmethod
    def _corrected(update: _Update, level: _Level, pairs: _Correlations, scale: int) -> _Level:
        flow0, flow1 = level.flow0, level.flow1
        if scale > 1:
            flow0, flow1 = (_scaled(flow, 1 / scale) / scale for flow in (flow0, flow1))
        # From halfway to an end is half of the way from one end to the other.
        seen = pairs.around(flow1 / HALFWAY, flow0 / HALFWAY)
        more, change = update(level.features, torch.cat([flow0, flow1], 1), seen)
        change0, change1 = change.chunk(2, 1)
        return _Level(level.features + more, level.flow0 + change0, level.flow1 + change1)

    @staticmethod
    def _drawn(
        out: Tensor, level: _Level, image0: Tensor, image1: Tensor, mean: Tensor
    ) -> list[Tensor]:
        """The frame between by each pair of flows, not yet clamped."""
        flows0, flows1, masks, rest = out.split([2 * FLOWS, 2 * FLOWS, FLOWS, 3 * FLOWS], 1)
        flows0 = flows0 + 2 * _scaled(level.flow0, 2).repeat(1, FLOWS, 1, 1)
        flows1 = flows1 + 2 * _scaled(level.flow1, 2).repeat(1, FLOWS, 1, 1)
        masks = masks.sigmoid()
        drawn: list[Tensor] = []
        for k in range(FLOWS):
            seen0 = _warped(image0, flows0[:, 2 * k : 2 * k + 2])
            seen1 = _warped(image1, flows1[:, 2 * k : 2 * k + 2])
            mask = masks[:, k : k + 1]
            drawn.append(mask * seen0 + (1 - mask) * seen1 + mean + rest[:, 3 * k : 3 * k + 3])
        return drawn
