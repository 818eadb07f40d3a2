"""Where metrics and pictures of a run go: a JSON line each, and boards on request.

Dims: N films, F frames (or pixel frames) of each, C channels, X rows, Y columns.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from cfmodel.io.weights import write_atomic

Board = Literal["tensorboard", "wandb"]
BOARDS: tuple[Board, ...] = ("tensorboard", "wandb")
Row = Mapping[str, float | int | None]

FILMS, MOMENTS = 4, 6
RGB = 3
LATENT_RANGE = 6.0
"""Latents are about unit Gaussian: -3 is black, 3 is white."""


class Sink(Protocol):
    """Takes in what a run measures."""

    def write(self, row: Row) -> None:
        """Takes in the numbers of one ``step``; None is a number that is not finite."""
        ...

    def picture(self, step: int, sheet: Tensor) -> None:
        """Takes in a picture (X, Y, 3), uint8."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


def finite(row: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """The row with None for numbers that JSON has no word for.

    Example:
        >>> finite({"loss": float("nan"), "step": 3})
        {'loss': None, 'step': 3}
    """
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


class JsonLines:
    """``<stage>-metrics.jsonl``: one JSON object a line, written through at once.

    Args:
        path: file.
        keep: bytes of it to go on after; what a run wrote after its checkpoint is dropped.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self._file = path.open("ab")
        self._file.truncate(keep)

    def write(self, row: Row) -> None:
        """Appends a line."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written; they are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def picture(self, step: int, sheet: Tensor) -> None:
        """Pictures are files of their own."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Scalars and pictures as TensorBoard's event files.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--board tensorboard needs the package tensorboard; "
                "pip install 'contextforcing[train]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=first)

    def write(self, row: Row) -> None:
        """Adds every number but the step."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def picture(self, step: int, sheet: Tensor) -> None:
        """Adds the picture."""
        self._writer.add_image("samples", sheet, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """A run at Weights & Biases, or what ``wandb`` is configured to write instead.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, folder: Path, *, name: str, about: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "--board wandb needs the package wandb; pip install 'contextforcing[train]'"
            ) from error
        self._wandb: Any = wandb
        self._run: Any = self._wandb.init(
            project="contextforcing", name=name, dir=str(folder), config=dict(about)
        )

    def write(self, row: Row) -> None:
        """Logs the row at its step."""
        values = {name: value for name, value in row.items() if value is not None}
        self._run.log(values, step=row["step"])

    def picture(self, step: int, sheet: Tensor) -> None:
        """Logs the picture."""
        self._run.log({"samples": self._wandb.Image(sheet.numpy())}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def boards(
    names: Sequence[Board], out: Path, stage: str, *, first: int, about: Mapping[str, Any]
) -> list[Sink]:
    """The boards asked for; none is imported otherwise.

    Args:
        names: which.
        out: folder of the run.
        stage: what is trained.
        first: step from which the run writes; what a board has of later steps is void.
        about: settings of the run, for boards that show them.

    Raises:
        ValueError: a package is not installed.
    """
    made: list[Sink] = []
    for name in names:
        match name:
            case "tensorboard":
                made.append(TensorBoard(out / f"{stage}-tensorboard", first=first))
            case "wandb":
                made.append(WandB(out, name=stage, about=about))
    return made


def contact_sheet(films_NFCXY: Tensor) -> Tensor:
    """A picture (X, Y, 3), uint8: a row a film, moments from left to right.

    Args:
        films_NFCXY: pixels in [0, 1] if C is 3; else latents, of which three channels are shown.

    Raises:
        ValueError: the films have no frames, or too few channels.
    """
    if films_NFCXY.ndim != 5 or films_NFCXY.shape[2] < RGB or not films_NFCXY[:, :, 0].numel():
        raise ValueError(
            f"samples of shape {tuple(films_NFCXY.shape)}: expected films, frames, 3 or more "
            "channels, rows, columns"
        )
    films = films_NFCXY[:FILMS].detach().float().cpu()
    count = films.shape[1]
    picks = torch.linspace(0, count - 1, min(MOMENTS, count)).round().long()
    shown = films[:, picks, :RGB]
    if films.shape[2] != RGB:
        shown = shown / LATENT_RANGE + 0.5
    # Films above each other, moments beside each other.
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1)
    return (sheet.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous()


def write_png(path: Path, sheet: Tensor) -> None:
    """Writes a picture (X, Y, 3), uint8."""
    import cv2

    done, data = cv2.imencode(".png", sheet.flip(-1).contiguous().numpy())
    assert done, "PNG takes any picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.tobytes())
