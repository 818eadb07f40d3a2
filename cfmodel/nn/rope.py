"""Three-axis rotary embedding. Temporal positions are data, one index a frame.

Dims: B batch, F frames, L tokens (F * rows * columns), H heads, D head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10_000.0


class RotaryTable(NamedTuple):
    """Cosines and sines of every token's angles, float32, shape (1 or B, L, 1, D / 2)."""

    cos: Tensor
    sin: Tensor


def split_head(head_dim: int) -> tuple[int, int, int]:
    """Real dims of a head given to time, rows and columns.

    Source: Wan 2.1: (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6)).

    Example:
        >>> split_head(128)
        (44, 42, 42)
    """
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def _angles(positions: Tensor, dims: int) -> Tensor:
    # float64: a frame index of a long film times a frequency loses its phase in float32.
    exponents = torch.arange(0, dims, 2, dtype=torch.float64, device=positions.device) / dims
    return positions.to(torch.float64)[..., None] * THETA**-exponents


def rotary_table(positions: Tensor, grid: tuple[int, int], head_dim: int) -> RotaryTable:
    """The table of a sequence of frames.

    Args:
        positions: temporal indices, (F,) or (B, F), of any size and in any order.
        grid: rows and columns of tokens in a frame.
        head_dim: even number of channels of a head.

    Returns:
        Tables for F * rows * columns tokens, frame after frame, row after row.
    """
    rows, columns = grid
    time_dims, row_dims, column_dims = split_head(head_dim)
    device = positions.device
    time_BFN = _angles(positions if positions.dim() == 2 else positions[None], time_dims)
    rows_RN = _angles(torch.arange(rows, device=device), row_dims)
    columns_CN = _angles(torch.arange(columns, device=device), column_dims)
    size = (*time_BFN.shape[:2], rows, columns, -1)
    angles = torch.cat(
        [
            time_BFN[:, :, None, None].expand(size),
            rows_RN[None, None, :, None].expand(size),
            columns_CN[None, None, None].expand(size),
        ],
        dim=-1,
    ).flatten(1, 3)[:, :, None]
    return RotaryTable(angles.cos().float(), angles.sin().float())


def rotate(x_BLHD: Tensor, table: RotaryTable) -> Tensor:
    """``x_BLHD`` with each pair of neighbouring channels turned by its token's angle.

    The maths is float32; the result has the dtype of ``x_BLHD``.
    """
    even, odd = x_BLHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack(
        [even * table.cos - odd * table.sin, even * table.sin + odd * table.cos], dim=-1
    )
    return turned.flatten(-2).to(x_BLHD.dtype)
