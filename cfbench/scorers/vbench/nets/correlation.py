"""Correlations of two images' features at every pair of places, looked up around flows.

Dims: B pairs of images, C channels, Y X rows and columns; flows are (B, 2, Y, X), x first.

Source: RAFT (arXiv:2003.12039).
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor


def correlations(a_BCYX: Tensor, b_BCYX: Tensor) -> Tensor:
    """Of all places of the first image with all of the second, (B, Y X, Y X)."""
    scale = torch.sqrt(torch.tensor(float(a_BCYX.shape[1])))
    return a_BCYX.flatten(2).transpose(1, 2) @ b_BCYX.flatten(2) / scale


class Pyramid:
    """Correlations (B, Y X, Y X), the second image's places pooled again and again.

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
        y, x = torch.meshgrid(
            torch.arange(rows, device=pairs.device),
            torch.arange(columns, device=pairs.device),
            indexing="ij",
        )
        self._places = torch.stack([x, y]).float()[None]

    def around(self, flow_B2YX: Tensor) -> Tensor:
        """Correlations (B, levels (2 radius + 1)^2, Y, X) around where each place flows to."""
        batch, _, rows, columns = flow_B2YX.shape
        centre = (self._places + flow_B2YX).permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        found: list[Tensor] = []
        for level, table in enumerate(self._levels):
            places = centre / 2**level + self._window
            last = places.new_tensor([table.shape[3] - 1, table.shape[2] - 1])
            values = nnf.grid_sample(table, 2 * places / last - 1, align_corners=True)
            found.append(values.reshape(batch, rows, columns, -1))
        return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()
