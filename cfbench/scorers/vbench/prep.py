"""How VBench makes a network's input of frames. Frames come as float pixels (B, 3, Y, X), 0 to 255.

Nothing is antialiased but what is said to be, and sizes are rounded down, as torchvision's
transforms do it there. On a CPU OpenCV resizes, by the same formulas as torch and three times as
fast; pixels are apart by 3e-3 levels at most, scores by 1e-7.
"""

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CLIP_SIDE = DINO_SIDE = 224
MUSIQ_SIDE = 512
UMT_SIDE, UMT_CROP = 256, 224
DINOV2_SIDE, DINOV2_CROP = 256, 224
LEVELS = 255.0
VERSION = "2"
"""Of everything here: part of what stored features are known by."""
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
    x = _middle(_resized(frames_B3YX, size, "bicubic"), CLIP_SIDE)
    return _normalised(x, CLIP_MEAN, CLIP_STD)


def viclip_input(frames_B3YX: Tensor) -> Tensor:
    """As ``clip_input``, but rounded to whole levels after resizing: there, frames are bytes."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], CLIP_SIDE)
    # Rounding makes a whole level of a difference in the last digit: torch's own, as there.
    x = nnf.interpolate(frames_B3YX, size, mode="bicubic", align_corners=False)
    x = x.clamp(0, LEVELS).round()
    return _normalised(_middle(x, CLIP_SIDE), CLIP_MEAN, CLIP_STD)


def style_input(images_BYX3: NDArray[np.uint8]) -> Tensor:
    """Shorter side 224, bicubic and antialiased; middle square; normalised: (B, 3, 224, 224).

    Appearance style alone resizes pictures of PIL, which always antialiases.
    """
    rows, columns = shorter_side(images_BYX3.shape[1], images_BYX3.shape[2], CLIP_SIDE)
    small = [
        np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
        for image in images_BYX3
    ]
    x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float()
    return _normalised(_middle(x, CLIP_SIDE), CLIP_MEAN, CLIP_STD)


def umt_input(image_YX3: NDArray[np.uint8]) -> Tensor:
    """Shorter side 256, OpenCV's bilinear; middle square of 224; normalised: (3, 224, 224)."""
    rows, columns = shorter_side(image_YX3.shape[0], image_YX3.shape[1], UMT_SIDE)
    small: NDArray[Any] = image_YX3
    if (rows, columns) != image_YX3.shape[:2]:
        small = cv2.resize(image_YX3, (columns, rows), interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1).float()[None]
    return _normalised(_middle(x, UMT_CROP), DINO_MEAN, DINO_STD)[0]


def dino_input(frames_B3YX: Tensor) -> Tensor:
    """Shorter side 224, bilinear, nothing cropped; normalised."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], DINO_SIDE)
    x = _resized(frames_B3YX, size, "bilinear")
    return _normalised(x, DINO_MEAN, DINO_STD)


def dinov2_input(frames_B3YX: Tensor) -> Tensor:
    """Shorter side 256, bicubic and antialiased; middle square of 224; normalised."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], DINOV2_SIDE)
    x = _middle(_resized(frames_B3YX, size, "bicubic", antialias=True), DINOV2_CROP)
    return _normalised(x, DINO_MEAN, DINO_STD)


def musiq_input(frames_B3YX: Tensor) -> Tensor:
    """Longer side at most 512, bilinear; in [0, 1]. VBench's mode ``longer``, its default."""
    rows, columns = frames_B3YX.shape[-2:]
    longest = max(rows, columns)
    x = frames_B3YX
    if longest > MUSIQ_SIDE:
        scale = MUSIQ_SIDE / longest
        x = _resized(x, (int(scale * rows), int(scale * columns)), "bilinear")
    return _normalised(x)


def padded(frames_B3YX: Tensor, multiple: int) -> Tensor:
    """Sides become multiples, borders repeated, half of what is added (rounded down) in front.

    Source: RAFT's and AMT's demos, and VBench.
    """
    if not any(size % multiple for size in frames_B3YX.shape[2:]):
        return frames_B3YX
    return nnf.pad(frames_B3YX, _margins(frames_B3YX.shape, multiple), mode="replicate")


def unpadded(frames_B3YX: Tensor, rows: int, columns: int) -> Tensor:
    """Frames without what ``padded`` added to ``rows`` and ``columns``."""
    top, left = (frames_B3YX.shape[2] - rows) // 2, (frames_B3YX.shape[3] - columns) // 2
    return frames_B3YX[..., top : top + rows, left : left + columns]


def _margins(shape: torch.Size, multiple: int) -> list[int]:
    gaps = [-size % multiple for size in (shape[3], shape[2])]
    return [side for gap in gaps for side in (gap // 2, gap - gap // 2)]


_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def _resized(x: Tensor, size: tuple[int, int], mode: str, *, antialias: bool = False) -> Tensor:
    if x.shape[-2:] == size:
        return x
    if x.device.type != "cpu" or antialias:
        return nnf.interpolate(x, size, mode=mode, align_corners=False, antialias=antialias)
    rows, columns = size
    images = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
    small = np.empty((len(images), rows, columns, images.shape[-1]), images.dtype)
    for image, out in zip(images, small, strict=True):
        cv2.resize(image, (columns, rows), dst=out, interpolation=_OPENCV[mode])
    return torch.from_numpy(small).permute(0, 3, 1, 2)


def _middle(x: Tensor, side: int) -> Tensor:
    rows, columns = x.shape[-2:]
    # Halves are rounded to even, as torchvision's crop does.
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    return x[..., top : top + side, left : left + side]


def _normalised(
    x: Tensor, mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3
) -> Tensor:
    """Levels become [0, 1], then a mean is taken off and the rest divided."""
    if x.device.type != "cpu":
        m, s = (torch.tensor(v, device=x.device)[:, None, None] for v in (mean, std))
        return (x / LEVELS).sub_(m).div_(s)
    # Torch's threads are the networks' alone: others that wait for work take the cores from them.
    out = np.empty(x.shape, np.float32)
    for image, planes in zip(x.permute(0, 2, 3, 1).numpy(), out, strict=True):
        for level, plane, m, s in zip(cv2.split(image), planes, mean, std, strict=True):
            np.divide(level, np.float32(LEVELS), out=plane)
            if (m, s) != (0, 1):
                np.subtract(plane, np.float32(m), out=plane)
                np.divide(plane, np.float32(s), out=plane)
    return torch.from_numpy(out)
