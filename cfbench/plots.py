"""Figures of a report, as PDF and PNG: time curves, context length, dimensions, differences.

One style: Okabe and Ito's colour-blind safe colours; ours is vermilion and thick, references are
black and broken, the systems of the moment coloured, the rest grey.
"""

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfbench.aggregate import DIMENSIONS, QUALITY
from cfbench.curves import CURVES, Curve
from cfbench.stats import Interval
from cfbench.tables import OURS, REFERENCES, Difference, Summaries, system_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008.
VERMILION, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
GREY, INK = "#B0B0B0", "#222222"
COLOURS: Mapping[str, str] = {
    OURS: VERMILION,
    "self-forcing": BLUE,
    "longlive": GREEN,
    "infinity-rope": PURPLE,
    "full-context": ORANGE,
    "no-slow": SKY,
    "rendered-truth": INK,
    "frozen": INK,
}
DASHES: Mapping[str, str] = {"rendered-truth": "--", "frozen": ":"}
DPI = 120
PALETTE = 256
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.dpi": DPI,
    "svg.hashsalt": "cfbench",
}


@contextmanager
def figure(
    out: Path, rows: int, columns: int, size: tuple[float, float], **kw: Any
) -> Generator[tuple["Figure", list["Axes"]]]:
    """A figure to draw on; written as ``out`` .pdf and .png when the block ends.

    Args:
        out: path; its suffix is replaced, its folder made.
        rows: of axes.
        columns: of axes.
        size: width and height in inches.
        kw: for ``subplots``: shared axes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with rc_context(RC):
        canvas = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.subplots(rows, columns, squeeze=False, **kw)
        yield canvas, list(grid.flat)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Laid out once: the engine costs more than the drawing, and each file would run it again.
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        # No dates in the files: equal data give equal figures.
        canvas.savefig(out.with_suffix(".pdf"), metadata={"CreationDate": None})
        raw = io.BytesIO()
        canvas.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
        # 256 colours are a third of the bytes, and no eye sees the difference.
        picture = Image.open(raw).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
        picture.save(out.with_suffix(".png"), optimize=True)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed to stand ``gap`` apart, in the order given.

    Example:
        >>> spread([0.0, 0.0], 1.0)
        [-0.5, 0.5]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    # Blocks of labels that touch: (sum of wished tops, count); merged while they overlap.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([positions[index] - rank * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    placed = [0.0] * len(positions)
    rank = 0
    for total, count in blocks:
        for _ in range(int(count)):
            placed[order[rank]] = total / count + rank * gap
            rank += 1
    return placed


def _points(curve: Curve) -> tuple[list[float], list[float], list[Interval]]:
    kept = [
        (time, mean)
        for time, mean in zip(curve.times_s, curve.means, strict=True)
        if mean.value is not None
    ]
    return [t for t, _ in kept], [100 * (m.value or 0) for _, m in kept], [m for _, m in kept]


def _draw(axes: "Axes", curve: Curve, colour: str, width: float, zorder: int, band: bool) -> None:
    times, values, means = _points(curve)
    style = DASHES.get(curve.system, "-")
    marker = "o" if width > 1 else ""
    axes.plot(times, values, color=colour, lw=width, ls=style, marker=marker, ms=3, zorder=zorder)
    if band and means and all(mean.low is not None for mean in means):
        low = [100 * (mean.low or 0) for mean in means]
        high = [100 * (mean.high or 0) for mean in means]
        axes.fill_between(times, low, high, color=colour, alpha=0.15, lw=0, zorder=zorder - 1)


def _end_labels(axes: "Axes", curves: Sequence[Curve], labels: Mapping[str, str]) -> None:
    ends = [(curve.system, *(lst[-1] for lst in _points(curve)[:2])) for curve in curves]
    bottom, top = axes.get_ylim()
    places = spread([value for _, _, value in ends], 0.062 * (top - bottom))
    for (system, time, value), place in zip(ends, places, strict=True):
        axes.annotate(
            labels[system],
            (time, value),
            xytext=(time + 3, place),
            color=COLOURS[system],
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": COLOURS[system], "lw": 0.5, "alpha": 0.6},
        )


def counted(curves: Sequence[Curve]) -> str:
    """How many films the points stand for, in words; systems that differ are told one by one."""
    counts: dict[str, list[int]] = {}
    for curve in curves:
        counts.setdefault(curve.system, []).extend(curve.scored)
    expected = {curve.system: curve.expected for curve in curves}
    spans = {name: (min(n), max(n), expected[name]) for name, n in counts.items()}
    if len(set(spans.values())) == 1:
        return f"films scored: {_span(*next(iter(spans.values())))} of every system"
    return "films scored: " + ", ".join(f"{name} {_span(*n)}" for name, n in spans.items())


def _span(least: int, most: int, expected: int) -> str:
    return f"{most}/{expected}" if least == most else f"{least} to {most}/{expected}"


def row_titles(system_labels: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """Labels of the systems found, in table order; recorded labels first."""
    order = system_order(found)
    return {name: system_labels.get(name, label) for name, label in order.items() if name in found}


def time_overview(
    out: Path,
    curves: Mapping[str, Sequence[Curve]],
    labels: Mapping[str, str],
    *,
    printed: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """All dimensions of ``CURVES`` against time: named systems coloured, the rest grey.

    Args:
        out: path; written as .pdf and .png, or not at all without curves.
        curves: by dimension.
        labels: recorded labels by system.
        printed: the paper's Table 1 by system (x100), drawn below ours on a scale of its own.
    """
    shown = {name: [c for c in curves[name] if _points(c)[0]] for name in CURVES if name in curves}
    shown = {name: found for name, found in shown.items() if found}
    if not shown:
        return
    below = {name: _printed(found, printed or {}) for name, found in shown.items()}
    rows = 2 if any(below.values()) else 1
    size = (4.6 * len(shown), 4.0 if rows == 1 else 6.6)
    with figure(out, rows, len(shown), size, height_ratios=[2, 1][:rows]) as (canvas, grid):
        for axes, (name, found) in zip(grid, shown.items(), strict=False):
            _overview(axes, name, found, labels)
        for axes, name in zip(grid[len(shown) :], shown, strict=False):
            _table1(axes, below[name], labels)
        grid[0].set_ylabel("x100")
        notes = [counted([curve for found in shown.values() for curve in found])]
        if any(c.system not in COLOURS for found in shown.values() for c in found):
            notes.append("grey: further ablations and baselines")
        canvas.supxlabel("; ".join(notes), fontsize=8, color="#707070")


def _overview(axes: "Axes", name: str, found: Sequence[Curve], labels: Mapping[str, str]) -> None:
    titles = row_titles(labels, [curve.system for curve in found])
    for curve in found:
        colour, main = COLOURS.get(curve.system, GREY), curve.system == OURS
        width = 2.4 if main else (1.4 if curve.system in COLOURS else 0.8)
        _draw(axes, curve, colour, width, 5 if main else 3, main)
    _end_labels(axes, [curve for curve in found if curve.system in COLOURS], titles)
    axes.set_title(CURVES[name], loc="left")
    axes.set_xlabel("time in the film (s)")
    axes.set_xticks(found[0].times_s)


Printed = Mapping[str, Sequence[tuple[float, float]]]


def _printed(found: Sequence[Curve], printed: Mapping[str, Mapping[str, float]]) -> Printed:
    """What the paper prints of one dimension, by system: times and values."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for system in [system for system in printed if system in COLOURS]:
        names = [(t, f"{found[0].dimension}_{t:g}s") for t in found[0].times_s]
        points = [(t, printed[system][name]) for t, name in names if name in printed[system]]
        if points:
            rows[system] = points
    return rows


def _table1(axes: "Axes", rows: Printed, labels: Mapping[str, str]) -> None:
    titles = row_titles(labels, list(rows))
    for system, points in rows.items():
        axes.plot(
            *zip(*points, strict=True), color=COLOURS[system], marker="D", mfc="white", ms=4,
            lw=1.2, label=titles[system],
        )  # fmt: skip
    axes.set_title("As printed: another model, other features", loc="left", fontsize=9)
    axes.set_xlabel("time in the film (s)")
    axes.set_xticks(sorted({t for points in rows.values() for t, _ in points}))


def time_multiples(
    out: Path, curves: Sequence[Curve], labels: Mapping[str, str], *, columns: int = 4
) -> None:
    """One small panel a system over the grey curves of all; ours is repeated in every panel."""
    from matplotlib.collections import LineCollection

    drawn = [curve for curve in curves if _points(curve)[0]]
    if not drawn:
        return
    titles = row_titles(labels, [curve.system for curve in drawn])
    by_system = {curve.system: curve for curve in drawn}
    rows = -(-len(titles) // columns)
    background = [np.column_stack(_points(curve)[:2]) for curve in drawn]
    size = (2.5 * columns, 1.75 * rows + 0.5)
    with figure(out, rows, columns, size, sharex=True, sharey=True) as (canvas, grid):
        for axes, (system, title) in zip(grid, titles.items(), strict=False):
            axes.add_collection(LineCollection(background, colors="#DCDCDC", linewidths=0.7))
            axes.autoscale_view()
            if OURS in by_system:
                _draw(axes, by_system[OURS], VERMILION, 0.9, 3, False)
            colour = COLOURS.get(system, BLUE)
            _draw(axes, by_system[system], colour, 2.0, 5, True)
            count = _span(
                min(by_system[system].scored), max(by_system[system].scored),
                by_system[system].expected,
            )  # fmt: skip
            axes.set_title(f"{title}, {count}", loc="left", fontsize=8, color=colour)
            axes.set_xticks(drawn[0].times_s)
        for axes in grid[len(titles) :]:
            axes.remove()
        for axes in grid[max(0, len(titles) - columns) : len(titles)]:
            axes.tick_params(labelbottom=True)
        note = "time in the film (s); thin vermilion: ours; band: 95 %; films scored/expected"
        canvas.supxlabel(note, fontsize=9)
        canvas.supylabel(f"{CURVES[drawn[0].dimension]} (x100)", fontsize=9)


def dimension_map(out: Path, found: Summaries, labels: Mapping[str, str]) -> None:
    """Normalised dimensions of every system as a heat map; hatched = null."""
    titles = row_titles(labels, list(found))
    names = ["total", "quality", "semantic", *DIMENSIONS]
    cells = [[found[system][name].mean.value for name in names] for system in titles]
    array = np.array([[np.nan if v is None else 100 * v for v in row] for row in cells])
    if not array.size:
        return
    with figure(out, 1, 1, (11.5, 1.9 + 0.29 * len(titles))) as (canvas, grid):
        axes = grid[0]
        axes.grid(visible=False)
        axes.patch.set(hatch="////", edgecolor="#C8C8C8", facecolor="#F4F4F4")
        image = axes.imshow(
            np.ma.masked_invalid(array), cmap="cividis", vmin=0, vmax=100, aspect="auto"
        )
        for (row, column), value in np.ndenumerate(array):
            if not np.isnan(value):
                ink = "white" if value < 55 else "black"
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=ink
                )
        heads = [name.replace("_", " ") for name in names]
        axes.set_xticks(range(len(names)), heads, rotation=40, ha="right", rotation_mode="anchor")
        counts = [f"{found[s]['total'].scored}/{found[s]['total'].expected}" for s in titles]
        rows = [f"{title}  {n}" for title, n in zip(titles.values(), counts, strict=True)]
        axes.set_yticks(range(len(rows)), rows)
        for boundary in (2.5, 2.5 + len(QUALITY)):
            axes.axvline(boundary, color="white", lw=3)
        first_reference = sum(name not in REFERENCES for name in titles)
        axes.axhline(first_reference - 0.5, color="white", lw=3)
        axes.tick_params(length=0)
        canvas.colorbar(image, ax=axes, label="normalised, x100", pad=0.01, fraction=0.03)


def whisker(axes: "Axes", place: float, mean: Interval, colour: str, *, zorder: float = 2) -> None:
    """The bar of an interval, in hundredths, on a line of a forest; nothing without bounds."""
    if mean.low is not None and mean.high is not None:
        ends = [100 * mean.low, 100 * mean.high]
        axes.plot(ends, [place, place], color=colour, lw=1.6, zorder=zorder)


def beside(axes: "Axes", place: float, text: str) -> None:
    """A small text right of a line of a forest."""
    axes.annotate(
        text, (1.01, place), xycoords=("axes fraction", "data"), fontsize=8, va="center",
        color="#505050",
    )  # fmt: skip


def p_text(p: float) -> str:
    """A p value for a picture.

    Example:
        >>> p_text(0.0002), p_text(0.0214)
        ('p < 0.001', 'p = 0.021')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def forest(out: Path, rows: Sequence[Difference]) -> None:
    """Paired differences of Total, ours minus each system, with 95 % intervals."""
    drawn = [row for row in rows if row.paired.mean.value is not None]
    if not drawn:
        return
    with figure(out, 1, 1, (7.6, 1.3 + 0.3 * len(drawn))) as (_, grid):
        axes = grid[0]
        axes.axvline(0, color=INK, lw=0.8)
        for place, row in enumerate(drawn):
            mean = row.paired.mean
            clear = mean.low is not None and mean.high is not None and mean.low * mean.high > 0
            colour = INK if row.system in REFERENCES else (BLUE if clear else "#808080")
            whisker(axes, place, mean, colour)
            axes.plot(100 * (mean.value or 0), place, "s", color=colour, ms=5)
            p = "" if row.p_holm is None else f"   {p_text(row.p_holm)}"
            beside(axes, place, f"n = {row.paired.scored}/{row.paired.expected}{p}")
        axes.set_yticks(range(len(drawn)), [row.label for row in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.set_xlabel(
            "Total of ours minus Total of the other, same prompt and seed (x100)\n"
            "right is better for ours; bars: 95 %, prompts resampled; p: Holm over systems"
        )
