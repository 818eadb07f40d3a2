"""Figures of long films, in the style of ``cfbench.plots``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfbench.analysis.drift import Group, Settings
from cfbench.plots import BLUE, COLOURS, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, INK)
DASHES = ("-", "--", "-.", ":")
COLUMNS = 3
FAINT = 12  # more films than this are drawn fainter
TITLES = {
    "exposure": "Exposure (mean luma)",
    "saturation": "Saturation (colour spread)",
    "sharpness": "Sharpness (mean Laplacian)",
    "latent_std": "Spread of latents",
    "latent_mean": "Mean of latents (standard deviations)",
}


def drift_curves(out: Path, groups: Sequence[Group], settings: Settings) -> None:
    """Change of every measure against time: each film thin, the mean of a group thick.

    The grey zone is the band that a film may not leave; the dotted line ends the opening.

    Args:
        out: path; written as .pdf and .png.
        groups: one a group of films and measure.
        settings: with which they were measured.
    """
    names = list(dict.fromkeys(group.name for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    looks = {label: _look(label, index) for index, label in enumerate(labels)}
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    size = (3.6 * columns + 0.4, 2.6 * rows + 0.8)
    with figure(out, rows, columns, size, sharex=True) as (canvas, grid):
        for axes, name in zip(grid, names, strict=False):
            axes.axhspan(-100 * settings.band, 100 * settings.band, color="#EFEFEF", zorder=0)
            axes.axvline(settings.opening_s, color="#909090", lw=0.8, ls=":", zorder=1)
            for group in groups:
                if group.name == name:
                    _draw(axes, group, looks[group.label], settings)
            axes.set_title(TITLES.get(name, name.replace("_", " ").replace(":", ": ")), loc="left")
        for axes in grid[len(names) :]:
            axes.remove()
        for axes in grid[max(0, len(names) - columns) : len(names)]:
            axes.tick_params(labelbottom=True)
        canvas.supxlabel("time in the film (s)", fontsize=9)
        canvas.supylabel("change from the film's opening (%)", fontsize=9)
        handles = [_handle(looks[label]) for label in labels]
        canvas.legend(
            handles, labels, loc="outside upper left", ncols=min(4, len(labels)), fontsize=8
        )


def _look(label: str, index: int) -> tuple[str, str]:
    """Colour and dashes; groups called like a system have the colour that it has elsewhere."""
    colour = COLOURS.get(label, PALETTE[index % len(PALETTE)])
    return colour, DASHES[index // len(PALETTE) % len(DASHES)]


def _handle(look: tuple[str, str]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look[0], ls=look[1], lw=2)


def _draw(axes: "Axes", group: Group, look: tuple[str, str], settings: Settings) -> None:
    colour, dash = look
    times = group.starts_s + settings.window_s / 2
    changes = 100 * group.changes_NW
    alpha = 0.35 if len(changes) <= FAINT else 0.12
    if len(changes) > 1:
        axes.plot(times, changes.T, color=colour, lw=0.6, alpha=alpha, zorder=2)
    present = ~np.isnan(changes)
    count = present.sum(0)
    mean = np.where(present, changes, 0).sum(0) / np.maximum(count, 1)
    axes.plot(times[count > 0], mean[count > 0], color=colour, ls=dash, lw=2, zorder=3)
