"""Correlations of two images' features at every pair of places, looked up around flows.

Dims: B pairs of images, C channels, Y X rows and columns; flows are (B, 2, Y, X), x first.

Source: RAFT (arXiv:2003.12039).
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor

PLACES_AT_ONCE = {"cpu": 780, "cuda": 2**20}
"""Places of an image whose correlations with all of another are held, where few are asked for."""


def correlations(a_BCL: Tensor, b_BCYX: Tensor) -> Tensor:
    """Of some places of the first image with all of the second, (B, L, Y X)."""
    scale = torch.sqrt(torch.tensor(float(a_BCL.shape[1])))
    return (a_BCL.transpose(1, 2) @ b_BCYX.flatten(2)).div_(scale)


def looked_up(
    a_BCYX: Tensor, b_BCYX: Tensor, flow_B2YX: Tensor, *, levels: int, radius: int
) -> Tensor:
    """Correlations (B, levels (2 radius + 1)^2, Y, X) around where the first image's places flow.

    As ``Pyramid.around`` of all of them, which costs a table of (Y X)^2 numbers; here it is made
    piece by piece, each time anew.
    """
    rows, columns = flow_B2YX.shape[-2:]
    targets = targets_of(flow_B2YX)
    found: list[Tensor] = []
    count = PLACES_AT_ONCE[a_BCYX.device.type]
    for places, where in zip(
        a_BCYX.flatten(2).split(count, 2), targets.split(count, 1), strict=True
    ):
        table = correlations(places, b_BCYX)
        found.append(Pyramid(table, rows, columns, levels=levels, radius=radius).at(where))
    return torch.cat(found, 1).transpose(1, 2).unflatten(2, (rows, columns)).contiguous()


def targets_of(flow_B2YX: Tensor) -> Tensor:
    """Where each place of an image flows to, (B, Y X, 2), x first."""
    rows, columns = flow_B2YX.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=flow_B2YX.device),
        torch.arange(columns, device=flow_B2YX.device),
        indexing="ij",
    )
    return (torch.stack([x, y]).float() + flow_B2YX).flatten(2).transpose(1, 2)


class Pyramid:
    """Correlations (B, L, Y X), the second image's places pooled again and again.

    Args:
        pairs: see ``correlations``.
        rows: Y.
        columns: X.
        levels: sizes, each half of the one before.
        radius: places that are looked up on each side.
    """

    def __init__(self, pairs: Tensor, rows: int, columns: int, *, levels: int, radius: int) -> None:
        table = pairs.reshape(-1, 1, rows, columns)
        self._levels = [table]
        for _ in range(levels - 1):
            table = nnf.avg_pool2d(table, 2, stride=2)
            self._levels.append(table)
        steps = torch.linspace(-radius, radius, 2 * radius + 1, device=pairs.device)
        # The published weights were trained with the rows' steps first in each pair.
        self._window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)[None]

    def around(self, flow_B2YX: Tensor) -> Tensor:
        """Correlations (B, levels (2 radius + 1)^2, Y, X) around where each place flows to."""
        found = self.at(targets_of(flow_B2YX))
        return found.transpose(1, 2).unflatten(2, flow_B2YX.shape[-2:]).contiguous()

    def at(self, targets_BL2: Tensor) -> Tensor:
        """Correlations (B, L, levels (2 radius + 1)^2) of each place around its target."""
        centre = targets_BL2.reshape(-1, 1, 1, 2)
        found: list[Tensor] = []
        for level, table in enumerate(self._levels):
            places = centre / 2**level + self._window
            last = places.new_tensor([table.shape[3] - 1, table.shape[2] - 1])
            values = nnf.grid_sample(table, 2 * places / last - 1, align_corners=True)
            found.append(values.reshape(*targets_BL2.shape[:2], -1))
        return torch.cat(found, -1)
