"""How VBench makes a network's input of frames. Frames come as float pixels (B, 3, Y, X), 0 to 255.

What takes ``out`` writes there where it is given, on a CPU alone: to be given new memory costs as
much as to fill it.

Nothing is antialiased but what is said to be, and sizes are rounded down, as torchvision's
transforms do it there. On a CPU OpenCV resizes, by the same formulas as torch and three times as
fast; pixels are apart by 3e-3 levels at most, scores by 1e-7.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Floats = NDArray[np.float32]
CLIP_SIDE = DINO_SIDE = DREAMSIM_SIDE = 224
MUSIQ_SIDE = 512
UMT_SIDE, UMT_CROP = 256, 224
DINOV2_SIDE, DINOV2_CROP = 256, 224
LEVELS = 255.0
LINES = 40
"""Of a picture that are worked on at a time."""
VERSION = "2"
"""Of everything here: part of what stored features are known by."""


class Norm(NamedTuple):
    """What is taken off levels in [0, 1], and what the rest is divided by; a number a colour."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CLIP_NORM = Norm((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_NORM = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AS_THEY_ARE = Norm((0.0,) * 3, (1.0,) * 3)


def pixels(images_BYX3: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Float pixels (B, 3, Y, X) of frames, on a device."""
    if device.type != "cpu":
        return torch.from_numpy(images_BYX3).to(device).permute(0, 3, 1, 2).float()
    batch, rows, columns, _ = images_BYX3.shape
    out = torch.empty(batch, 3, rows, columns)
    for image, planes in zip(images_BYX3, out.numpy(), strict=True):
        for level, plane in zip(cv2.split(image), planes, strict=True):
            np.copyto(plane, level)
    return out


def unit(frames_B3YX: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    if frames_B3YX.device.type != "cpu":
        return frames_B3YX / LEVELS
    return torch.from_numpy(np.divide(frames_B3YX.numpy(), np.float32(LEVELS)))


def cut_to_levels(x: Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1] as whole levels: cut, not rounded, as VBench does it to drawn frames."""
    if x.device.type != "cpu":
        return x.mul(LEVELS).to(torch.uint8).cpu().numpy()
    # Much faster than torch, and in the processor's cache. Of very small frames AMT makes no
    # numbers.
    lines = x.contiguous().numpy().reshape(-1, x.shape[-1])
    levels, some = np.empty(lines.shape, np.uint8), np.empty((LINES, x.shape[-1]), np.float32)
    with np.errstate(invalid="ignore"):
        for start in range(0, len(lines), LINES):
            here = lines[start : start + LINES]
            np.multiply(here, np.float32(LEVELS), out=some[: len(here)])
            np.copyto(levels[start : start + LINES], some[: len(here)], casting="unsafe")
    return levels.reshape(x.shape)


def shorter_side(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Rows and columns after the shorter one becomes ``side``.

    Example:
        >>> shorter_side(480, 832, 224)
        (224, 388)
    """
    if rows <= columns:
        return side, int(side * columns / rows)
    return int(side * rows / columns), side


def clip_input(frames_B3YX: Tensor, out: Tensor | None = None) -> Tensor:
    """Shorter side 224, bicubic; middle square; normalised: (B, 3, 224, 224)."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], CLIP_SIDE)
    return _made(frames_B3YX, size, "bicubic", CLIP_NORM, crop=CLIP_SIDE, out=out)


def viclip_input(frames_B3YX: Tensor) -> Tensor:
    """As ``clip_input``, but rounded to whole levels after resizing: there, frames are bytes."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], CLIP_SIDE)
    # Rounding makes a whole level of a difference in the last digit: torch's own, as there.
    x = nnf.interpolate(frames_B3YX, size, mode="bicubic", align_corners=False)
    x = x.clamp(0, LEVELS).round()
    return _normalised(_middle(x, CLIP_SIDE), CLIP_NORM)


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
    return _normalised(_middle(x, CLIP_SIDE), CLIP_NORM)


def umt_input(image_YX3: NDArray[np.uint8]) -> Tensor:
    """Shorter side 256, OpenCV's bilinear; middle square of 224; normalised: (3, 224, 224)."""
    rows, columns = shorter_side(image_YX3.shape[0], image_YX3.shape[1], UMT_SIDE)
    small: NDArray[Any] = image_YX3
    if (rows, columns) != image_YX3.shape[:2]:
        small = cv2.resize(image_YX3, (columns, rows), interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1).float()[None]
    return _normalised(_middle(x, UMT_CROP), DINO_NORM)[0]


def dino_input(frames_B3YX: Tensor, out: Tensor | None = None) -> Tensor:
    """Shorter side 224, bilinear, nothing cropped; normalised."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], DINO_SIDE)
    return _made(frames_B3YX, size, "bilinear", DINO_NORM, out=out)


def dinov2_input(frames_B3YX: Tensor) -> Tensor:
    """Shorter side 256, bicubic and antialiased; middle square of 224; normalised."""
    size = shorter_side(frames_B3YX.shape[-2], frames_B3YX.shape[-1], DINOV2_SIDE)
    x = frames_B3YX
    if x.shape[-2:] != size:
        x = nnf.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
    return _normalised(_middle(x, DINOV2_CROP), DINO_NORM)


def dreamsim_input(frames_B3YX: Tensor) -> Tensor:
    """Squeezed to 224 by 224, bicubic and antialiased; as a share of 255, not cut to [0, 1]."""
    size = (DREAMSIM_SIDE, DREAMSIM_SIDE)
    x = nnf.interpolate(frames_B3YX, size, mode="bicubic", align_corners=False, antialias=True)
    return x / LEVELS


def musiq_input(frames_B3YX: Tensor, out: Tensor | None = None) -> Tensor:
    """Longer side at most 512, bilinear; in [0, 1]. VBench's mode ``longer``, its default."""
    rows, columns = frames_B3YX.shape[-2:]
    longest = max(rows, columns)
    size = rows, columns
    if longest > MUSIQ_SIDE:
        scale = MUSIQ_SIDE / longest
        size = int(scale * rows), int(scale * columns)
    return _made(frames_B3YX, size, "bilinear", AS_THEY_ARE, out=out)


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


def _made(
    x: Tensor,
    size: tuple[int, int],
    mode: str,
    norm: Norm,
    *,
    crop: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Frames resized, their middle square cut out, normalised: contiguous (B, 3, rows, columns)."""
    if x.device.type != "cpu":
        if x.shape[-2:] != size:
            x = nnf.interpolate(x, size, mode=mode, align_corners=False)
        return _normalised(x if crop is None else _middle(x, crop), norm)
    rows, columns = size
    shape = size if crop is None else (crop, crop)
    made = room(len(x), *shape) if out is None else out
    for image, seen in zip(_interleaved(x), _interleaved(made), strict=True):
        small: Any = np.ascontiguousarray(image)
        if image.shape[:2] != size:
            target: Any = seen if crop is None else None
            small = cv2.resize(small, (columns, rows), target, interpolation=_OPENCV[mode])
        _level(small if crop is None else small[_square(size, crop)], seen, norm)
    return made


def room(count: int, rows: int, columns: int) -> Tensor:
    """For so many inputs (count, 3, rows, columns) on a CPU, a pixel's colours side by side."""
    return torch.empty(count, 3, rows, columns, memory_format=torch.channels_last)


def _interleaved(x_B3YX: Tensor) -> Floats:
    """The same memory as (B, Y, X, 3)."""
    return x_B3YX.permute(0, 2, 3, 1).numpy()


def _square(size: tuple[int, int], side: int) -> tuple[slice, slice]:
    """The middle square; halves are rounded to even, as torchvision's crop does."""
    top, left = (round((length - side) / 2) for length in size)
    return slice(top, top + side), slice(left, left + side)


def _middle(x: Tensor, side: int) -> Tensor:
    return x[(..., *_square((x.shape[-2], x.shape[-1]), side))]


def _normalised(x: Tensor, norm: Norm) -> Tensor:
    """Levels become [0, 1], then a mean is taken off and the rest divided."""
    if x.device.type != "cpu":
        m, s = (torch.tensor(v, device=x.device)[:, None, None] for v in norm)
        return (x / LEVELS).sub_(m).div_(s)
    out = room(len(x), *x.shape[2:])
    for image, seen in zip(_interleaved(x), _interleaved(out), strict=True):
        _level(image, seen, norm)
    return out


def _level(image_YX3: Floats, out_YX3: Floats, norm: Norm) -> None:
    """One frame normalised.

    Without torch, whose threads are the networks' alone: others that wait for work take the cores
    from them.
    """
    np.divide(image_YX3, np.float32(LEVELS), out=out_YX3)
    if norm == AS_THEY_ARE:
        return
    # A row of all pixels' colours: numpy is slow over three numbers at a time.
    mean, std = (np.tile(np.asarray(values, np.float32), out_YX3.shape[1]) for values in norm)
    lines = out_YX3.reshape(len(out_YX3), -1)
    np.subtract(lines, mean, out=lines)
    np.divide(lines, std, out=lines)
