"""Figures of long films, in the style of ``cfbench.plots``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfbench.analysis.compare import Comparison
from cfbench.analysis.drift import Group, Settings
from cfbench.analysis.returns import Return
from cfbench.curves import CURVES
from cfbench.plots import (
    BLUE,
    COLOURS,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    beside,
    counted,
    figure,
    whisker,
)
from cfbench.plots import DASHES as REFERENCES
from cfbench.stats import Interval

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


def drift_curves(
    out: Path,
    groups: Sequence[Group],
    settings: Settings,
    titles: Mapping[str, str] | None = None,
) -> None:
    """Change of every measure against time: each film thin, the mean of a group thick.

    The grey zone is the band that a film may not leave; the dotted line ends the opening.

    Args:
        out: path; written as .pdf and .png.
        groups: one a group of films and measure.
        settings: with which they were measured.
        titles: how the legend calls groups, by label; others are called by their label.
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
            handles,
            _counted(labels, groups, titles or {}),
            loc="outside upper left",
            ncols=min(4, len(labels)),
            fontsize=8,
        )


def _counted(
    labels: Sequence[str], groups: Sequence[Group], titles: Mapping[str, str]
) -> list[str]:
    """Labels with films scored of expected: the fewest of all measures."""
    found: list[str] = []
    for label in labels:
        mine = [group for group in groups if group.label == label]
        scored = min(group.films for group in mine)
        title = titles.get(label, label)
        found.append(f"{title}: {scored}/{max(len(g.changes_NW) for g in mine)} films")
    return found


def _look(label: str, index: int) -> tuple[str, str]:
    """Colour and dashes; groups called like a system have the colour that it has elsewhere."""
    colour = COLOURS.get(label, PALETTE[index % len(PALETTE)])
    return colour, REFERENCES.get(label, DASHES[index // len(PALETTE) % len(DASHES)])


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


A, B = VERMILION, BLUE


def compare_curves(out: Path, found: Comparison, labels: tuple[str, str]) -> None:
    """Curves of two systems against time, and below them their paired difference.

    Bands and bars are 95 % over prompts, absent where there are fewer than 5.

    Args:
        out: path; written as .pdf and .png, or not at all without a curve.
        found: the comparison.
        labels: of A and B.
    """
    gaps = [gap for gap in found.gaps if any(mean.value is not None for mean in gap.means)]
    if not gaps:
        return
    size = (3.9 * len(gaps) + 0.4, 5.0)
    with figure(out, 2, len(gaps), size, sharex=True) as (canvas, grid):
        for axes, below, gap in zip(grid, grid[len(gaps) :], gaps, strict=False):
            by_system = {curve.system: curve for curve in found.curves[gap.dimension]}
            for system, colour in zip(found.systems, (A, B), strict=True):
                curve = by_system[system]
                _line(axes, curve.times_s, curve.means, colour, "-" if colour == A else "--")
            below.axhline(0, color=INK, lw=0.8)
            _line(below, gap.times_s, gap.means, INK, "-")
            axes.set_title(CURVES[gap.dimension], loc="left", fontsize=9)
            below.set_xlabel("time in the film (s)")
            below.set_xticks(gap.times_s)
        grid[0].set_ylabel("x100")
        grid[len(gaps)].set_ylabel("difference x100")
        handles = [_handle((A, "-")), _handle((B, "--")), _handle((INK, "-"))]
        names = [*labels, f"{labels[0]} minus {labels[1]}"]
        canvas.legend(handles, names, loc="outside upper left", ncols=3, fontsize=8)
        shown = [curve for gap in gaps for curve in found.curves[gap.dimension]]
        canvas.supxlabel(counted(shown), fontsize=8, color="#707070")


def _line(
    axes: "Axes", times: Sequence[float], means: Sequence[Interval], colour: str, dash: str
) -> None:
    kept = [(t, m.value, m.low, m.high) for t, m in zip(times, means, strict=True)
            if m.value is not None]  # fmt: skip
    if not kept:
        return
    at = [row[0] for row in kept]
    axes.plot(at, [100 * row[1] for row in kept], color=colour, ls=dash, lw=2, marker="o", ms=3)
    bounds = [(t, low, high) for t, _, low, high in kept if low is not None and high is not None]
    if bounds:
        low, high = ([100 * row[k] for row in bounds] for k in (1, 2))
        axes.fill_between([row[0] for row in bounds], low, high, color=colour, alpha=0.15, lw=0)


def compare_forest(out: Path, found: Comparison, labels: tuple[str, str]) -> None:
    """Paired differences of total and dimensions with intervals.

    Args:
        out: path; written as .pdf and .png.
        found: the comparison.
        labels: of A and B.
    """
    rows = [row for row in found.rows if row.paired.mean.value is not None]
    with figure(out, 1, 1, (7.6, 1.3 + 0.27 * len(rows))) as (_, grid):
        axes = grid[0]
        axes.axvline(0, color=INK, lw=0.8)
        for place, row in enumerate(rows):
            mean = row.paired.mean
            value = 100 * (mean.value or 0.0)
            sure = mean.low is not None and mean.high is not None and mean.low * mean.high > 0
            colour = (A if value > 0 else B) if sure else "#808080"
            whisker(axes, place, mean, colour)
            marker = "D" if row.name == "total" else "o"
            axes.plot(value, place, marker, color=colour, ms=6 if row.name == "total" else 5)
            beside(axes, place, f"{row.paired.scored}/{row.paired.expected}")
        axes.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(
            f"{labels[0]} minus {labels[1]}, same prompt and seed (x100)\n"
            "bars: 95 %, prompts resampled; grey: the interval holds 0, or there is none; "
            "right: pairs scored/expected"
        )


def return_curve(out: Path, found: Sequence[Return], rows: Sequence[Mapping[str, Any]]) -> None:
    """Likeness of what films show again against absence, with its chance.

    Args:
        out: path; written as .pdf and .png.
        found: everything that was shown again, a dot each.
        rows: the curve.
    """
    films = len({each.film for each in found})
    with figure(out, 1, 1, (6.2, 4.2)) as (canvas, grid):
        axes = grid[0]
        times = [each.absent_s for each in found]
        axes.plot(times, [each.likeness for each in found], ".", color=SKY, ms=4, alpha=0.6)
        for name, colour, dash in (("likeness", BLUE, "-"), ("chance", "#707070", "--")):
            kept = [row for row in rows if row[name]["value"] is not None]
            at = [row["absent_s"] for row in kept]
            axes.plot(at, [row[name]["value"] for row in kept], dash, color=colour, marker="o")
            bounds = [row for row in kept if row[name]["low"] is not None]
            low, high = ([row[name][key] for row in bounds] for key in ("low", "high"))
            axes.fill_between([r["absent_s"] for r in bounds], low, high, color=colour, alpha=0.15)
        axes.set_xlabel("seconds between the two showings")
        axes.set_ylabel("cosine of mean embeddings")
        names = [f"shown again: {len(found)} times in {films} films", "chance: other films, marks"]
        handles = [_handle((BLUE, "-")), _handle(("#707070", "--"))]
        canvas.legend(handles, names, loc="outside upper left", ncols=2, fontsize=8)
