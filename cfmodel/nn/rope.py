"""Three-axis rotary embedding. Temporal positions are data, one index a frame.

Dims: B batch, F frames, L tokens (F * rows * columns), H heads, D head dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

THETA = 10_000.0


class RotaryTable(NamedTuple):
    """What every token's channels are multiplied with, float32, shape (1 or B, L, 1, D).

    ``cos`` has each angle's cosine twice, for the two channels of a pair; ``sin`` has the sine
    negated, for the first, then as it is.
    """

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


def pooled_centres(size: int, pool: int, device: torch.device | str) -> Tensor:
    """Where the middles of ``pool`` neighbouring rows (or columns) are, the last perhaps of fewer.

    Example:
        >>> pooled_centres(5, 2, "cpu").tolist()
        [0.5, 2.5, 4.0]
    """
    at = torch.arange(size, dtype=torch.float64, device=device)
    return at if pool == 1 else nnf.avg_pool1d(at[None], pool, ceil_mode=True)[0]


def pooled_size(grid: tuple[int, int], pool: int) -> int:
    """Tokens of a frame whose tokens are means over ``pool`` rows and columns.

    Example:
        >>> pooled_size((5, 8), 1), pooled_size((5, 8), 2)
        (40, 12)
    """
    rows, columns = grid
    return -(-rows // pool) * -(-columns // pool)


def rotary_table(
    positions: Tensor, grid: tuple[int, int], head_dim: int, pool: int = 1
) -> RotaryTable:
    """The table of a sequence of frames.

    Args:
        positions: temporal indices, (F,) or (B, F), of any size and in any order.
        grid: rows and columns of tokens in a frame.
        head_dim: even number of channels of a head.
        pool: tokens are means of this many rows and columns, and stand in their middle.

    Returns:
        Tables for F * rows * columns tokens, frame after frame, row after row.
    """
    rows, columns = grid
    time_dims, row_dims, column_dims = split_head(head_dim)
    device = positions.device
    time_BFN = _angles(positions if positions.dim() == 2 else positions[None], time_dims)
    rows_RN = _angles(pooled_centres(rows, pool, device), row_dims)
    columns_CN = _angles(pooled_centres(columns, pool, device), column_dims)
    size = (*time_BFN.shape[:2], rows_RN.shape[0], columns_CN.shape[0], -1)

    def per_token(of: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [
            of(time_BFN)[:, :, None, None].expand(size),
            of(rows_RN)[None, None, :, None].expand(size),
            of(columns_CN)[None, None, None].expand(size),
        ]
        return torch.cat(parts, dim=-1).flatten(1, 3)[:, :, None]

    cos = per_token(lambda angles: angles.cos().float())
    sin = per_token(lambda angles: angles.sin().float())
    return RotaryTable(cos.repeat_interleave(2, -1), torch.stack([-sin, sin], dim=-1).flatten(-2))


def table_of(rows: RotaryTable, positions: Tensor) -> RotaryTable:
    """The table of a sequence of frames from a table of frames 0, 1, 2, ...

    Args:
        rows: shape (R, P, 1, D): P tokens of each of R frames.
        positions: temporal indices below R, (F,) or (B, F).
    """
    at_BF = positions if positions.dim() == 2 else positions[None]
    return RotaryTable(rows.cos[at_BF].flatten(1, 2), rows.sin[at_BF].flatten(1, 2))


def rotate(x_BLHD: Tensor, table: RotaryTable) -> Tensor:
    """``x_BLHD`` with each pair of neighbouring channels turned by its token's angle.

    The maths is float32; the result has the dtype of ``x_BLHD``.
    """
    x = x_BLHD.float()
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * table.cos + swapped * table.sin).to(x_BLHD.dtype)
