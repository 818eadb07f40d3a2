"""How VBench makes a network's input of frames. Frames come as float pixels (B, 3, Y, X), 0 to 255.

Nothing is antialiased, and sizes are rounded down, as torchvision's transforms do it there.
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor

CLIP_SIDE = DINO_SIDE = 224
MUSIQ_SIDE = 512
LEVELS = 255.0
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def shorter_side(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Rows and columns after the shorter one becomes ``side``.

    Example:
        >>> shorter_side(480, 832, 224)
        (224, 388)
    """
    if rows <= columns:
        return side, int(side * columns / rows)
    return int(side * rows / columns), side


def clip_input(frames_B3YX: Tensor) -> Tensor:
    """Shorter side 224, bicubic; middle square; normalised: (B, 3, 224, 224)."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], CLIP_SIDE)
    x = _resized(frames_B3YX, size, "bicubic")
    rows, columns = x.shape[-2:]
    # Halves are rounded to even, as torchvision's crop does.
    top, left = round((rows - CLIP_SIDE) / 2), round((columns - CLIP_SIDE) / 2)
    x = x[..., top : top + CLIP_SIDE, left : left + CLIP_SIDE]
    return _normalised(x, CLIP_MEAN, CLIP_STD)


def dino_input(frames_B3YX: Tensor) -> Tensor:
    """Shorter side 224, bilinear, nothing cropped; normalised."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], DINO_SIDE)
    x = _resized(frames_B3YX, size, "bilinear")
    return _normalised(x, DINO_MEAN, DINO_STD)


def musiq_input(frames_B3YX: Tensor) -> Tensor:
    """Longer side at most 512, bilinear; in [0, 1]. VBench's mode ``longer``, its default."""
    rows, columns = frames_B3YX.shape[-2:]
    longest = max(rows, columns)
    x = frames_B3YX
    if longest > MUSIQ_SIDE:
        scale = MUSIQ_SIDE / longest
        x = _resized(x, (int(scale * rows), int(scale * columns)), "bilinear")
    return x / LEVELS


def padded(frames_B3YX: Tensor, multiple: int) -> Tensor:
    """Sides become multiples, borders repeated, half of what is added (rounded down) in front.

    Source: RAFT's and AMT's demos, and VBench.
    """
    return nnf.pad(frames_B3YX, _margins(frames_B3YX.shape, multiple), mode="replicate")


def unpadded(frames_B3YX: Tensor, rows: int, columns: int) -> Tensor:
    """Frames without what ``padded`` added to ``rows`` and ``columns``."""
    top, left = (frames_B3YX.shape[2] - rows) // 2, (frames_B3YX.shape[3] - columns) // 2
    return frames_B3YX[..., top : top + rows, left : left + columns]


def _margins(shape: torch.Size, multiple: int) -> list[int]:
    gaps = [-size % multiple for size in (shape[3], shape[2])]
    return [side for gap in gaps for side in (gap // 2, gap - gap // 2)]


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return nnf.interpolate(x, size, mode=mode, align_corners=False, antialias=False)


def _normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    m, s = (torch.tensor(v, device=x.device)[:, None, None] for v in (mean, std))
    return (x / LEVELS - m) / s
