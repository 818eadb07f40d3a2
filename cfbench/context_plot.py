"""Quality and consistency against context length, in the style of ``cfbench.plots``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfbench.curves import SERIES, ContextPoint
from cfbench.plots import COLOURS, GREY, figure, row_titles, spread
from cfbench.stats import Interval
from cfbench.tables import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def context_length(out: Path, points: Sequence[ContextPoint], labels: Mapping[str, str]) -> None:
    """Quality and 60 s consistency against what the memory covers and what it holds.

    A window that weights were not trained for measures that mismatch too, so systems of equal
    weights are joined by a line (``SERIES``); the others are points.

    Args:
        out: path; written as .pdf and .png, or not at all without points.
        points: one a system.
        labels: recorded labels by system.
    """
    measures = (("Quality", "quality"), ("Similarity to the first frame at 60 s", "consistency"))
    axes_x = (
        ("context covered (s)", "span_s"),
        ("latents held, the chunk included", "held_latents"),
    )
    if not points:
        return
    titles = row_titles(labels, [point.system for point in points])
    order = {name: index for index, name in enumerate(titles, 1)}
    with figure(out, 2, 2, (12.0, 8.6), sharey="row") as (canvas, grid):
        for row, (title, measure) in enumerate(measures):
            for column, (heading, key) in enumerate(axes_x):
                axes = grid[2 * row + column]
                kept = [
                    (float(getattr(point, key)), mean, point.system)
                    for point in points
                    if (mean := getattr(point, measure)).value is not None
                ]
                _lines(axes, kept)
                _numbered(axes, kept, order)
                axes.set_xscale("log")
                ticks = _apart([x for x, _, _ in sorted(kept, key=lambda k: k[2] != OURS)])
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.minorticks_off()
                if row == 1:
                    axes.set_xlabel(heading)
                if column == 0:
                    axes.set_ylabel(f"{title} (x100)")
        counts = {point.system: f"{point.scored}/{point.expected}" for point in points}
        names = [f"{order[name]}  {title}, {counts[name]}" for name, title in titles.items()]
        handles = [_handle(name) for name in titles]
        found = {name for name, members in SERIES.items() if len({*members} & {*titles}) > 1}
        names += [name for name in SERIES if name in found]
        handles += [_handle(SERIES[name][-1], ls="-") for name in SERIES if name in found]
        canvas.legend(
            handles, names, loc="outside lower center", ncols=4, fontsize=8, handletextpad=0.2
        )


def _colour(system: str) -> str:
    """A series has its colour throughout, other systems that of every figure."""
    mine = next((members for members in SERIES.values() if system in members), ())
    named = next((COLOURS[name] for name in (*mine[-1:], *mine) if name in COLOURS), GREY)
    return named if mine else COLOURS.get(system, GREY)


def _lines(axes: "Axes", kept: Sequence[tuple[float, Interval, str]]) -> None:
    for members in SERIES.values():
        mine = {system: (x, 100 * (mean.value or 0)) for x, mean, system in kept}
        line = [mine[name] for name in members if name in mine]
        if len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=_colour(members[-1]), lw=1.5, zorder=3)


def _handle(system: str, ls: str = "") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=_colour(system), marker="o", ls=ls, ms=5)


def _apart(ticks: Sequence[float], ratio: float = 1.3) -> list[float]:
    """Ticks that stand a ratio apart, earlier ones first served."""
    kept: list[float] = []
    for tick in ticks:
        if all(max(tick, old) >= ratio * min(tick, old) for old in kept):
            kept.append(tick)
    return sorted(kept)


def _numbered(
    axes: "Axes", kept: Sequence[tuple[float, Interval, str]], order: Mapping[str, int]
) -> None:
    """Points with their number beside them; equal abscissae share a column of numbers."""
    values = [100 * (mean.value or 0) for _, mean, _ in kept]
    for (x, mean, system), value in zip(kept, values, strict=True):
        colour = _colour(system)
        if mean.low is not None and mean.high is not None:
            axes.plot([x, x], [100 * mean.low, 100 * mean.high], color=colour, lw=1, alpha=0.5)
        axes.plot(x, value, "o", color=colour, ms=7 if system == OURS else 5, zorder=4)
    bottom, top = axes.get_ylim()
    axes.margins(x=0.12)
    for x in {x for x, _, _ in kept}:
        column = [index for index, point in enumerate(kept) if point[0] == x]
        lift = 0.028 * (top - bottom)
        places = spread([values[index] + lift for index in column], 0.045 * (top - bottom))
        for index, place in zip(column, places, strict=True):
            system = kept[index][2]
            axes.annotate(
                str(order[system]),
                (x, values[index]),
                xytext=(x * 1.05, place),
                fontsize=7,
                va="center",
                fontweight="bold" if system == OURS else "normal",
                color="#707070" if _colour(system) == GREY else _colour(system),
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#A0A0A0"},
            )
