"""The forgetting curve: what is recalled against how long it was out of view."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cfbench.plots import BLUE, COLOURS, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, figure
from cfbench.recall import OVERALL, row
from cfbench.tables import system_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS: Mapping[str, str] = {
    OVERALL: "Mean of the attributes",
    "landmark": "Which landmark",
    "layout": "Where it stands",
    "shape": "Shape of the second subject",
    "color": "Its colour",
    "marking": "Its marking",
}
CHANCE, TRUTH = "another-scene", "codec-truth"
NAMES: Mapping[str, str] = {
    "rendered-truth": "Rendered truth",
    TRUTH: "Truth through the codec",
    CHANCE: "Chance (truth of other scenes)",
}
PALETTE = (VERMILION, GREEN, BLUE, PURPLE, ORANGE, SKY)
PLAIN = "#8A8A8A"
TICKS_S = (0.5, 1, 2, 4, 8, 16, 32, 48)


class Line(NamedTuple):
    """One system in one panel: times, values with bounds, and how it is drawn."""

    times_s: list[float]
    cells: list[Mapping[str, Any]]
    colour: str
    style: str
    marker: str


def looks(addresses: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of every system, in the order of the tables."""
    names = {row(address): address for address in addresses}
    found: dict[str, tuple[str, str]] = {}
    free = [c for c in PALETTE if c not in [COLOURS.get(n) for n in names]]
    for name in [name for name in system_order(names) if name in names]:
        if name in NAMES:
            found[names[name]] = (PLAIN if name == CHANCE else INK, ":" if name == CHANCE else "--")
        else:
            colour = COLOURS.get(name) or (free.pop(0) if free else PLAIN)
            found[names[name]] = (colour, "-")
    return found


def forgetting(out: Path, tree: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Draws a summary of ``cfbench.recall`` with the presets' recent past.

    Args:
        out: path; written as .pdf and .png.
        tree: the summary, with ``recent_past_s`` by system.
        labels: names of systems by address.
    """
    systems: Mapping[str, Mapping[str, Any]] = tree["systems"]
    if not systems:
        return
    styles = looks(list(systems))
    with figure(out, 2, 3, (11.5, 7.0), sharex=True, sharey=True) as (canvas, grid):
        for axes, (name, title) in zip(grid, PANELS.items(), strict=True):
            for system, style in styles.items():
                _draw(axes, _line(systems[system], name, *style))
            axes.set_title(title, loc="left")
        _breaks(grid[0], tree["recent_past_s"], styles)
        for system, gaps in tree["free"].items():
            _draw(grid[0], _line(gaps, OVERALL, styles[system][0], ":", mark="s"))
            _draw_chance(grid[0], list(gaps.values()), styles[system][0])
        axes = grid[0]
        axes.set_xscale("log")
        axes.set_xlim(0.4, 60)
        axes.set_ylim(-3, 103)
        axes.set_xticks(TICKS_S, [f"{tick:g}" for tick in TICKS_S])
        axes.minorticks_off()
        grid[4].set_xlabel("seconds out of view when the system takes over")
        canvas.supylabel("share of frames that show it right (x100)", fontsize=9)
        handles, names = _legend(tree, styles, labels)
        canvas.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def _line(gaps: Mapping[str, Any], name: str, colour: str, style: str, mark: str = "o") -> Line:
    rows = sorted((gap for gap in gaps.values()), key=lambda gap: gap["unseen_s"])
    rows = [gap for gap in rows if gap[name]["value"] is not None]
    return Line([gap["unseen_s"] for gap in rows], [gap[name] for gap in rows], colour, style, mark)


def _draw(axes: "Axes", line: Line) -> None:
    values = [100 * cell["value"] for cell in line.cells]
    free = line.marker == "s"
    axes.plot(
        line.times_s, values, color=line.colour, ls=line.style, marker=line.marker, lw=1.6,
        ms=4 if free else 3.5, mfc="white" if free else line.colour,
    )  # fmt: skip
    bounds = [
        (time, 100 * cell["low"], 100 * cell["high"])
        for time, cell in zip(line.times_s, line.cells, strict=True)
        if cell["low"] is not None
    ]
    if bounds and not free:
        times, low, high = zip(*bounds, strict=True)
        axes.fill_between(times, low, high, color=line.colour, alpha=0.1, lw=0)
        axes.vlines(times, low, high, color=line.colour, alpha=0.4, lw=0.8)


def _draw_chance(axes: "Axes", cells: Sequence[Mapping[str, Any]], colour: str) -> None:
    """What free films would share with other films' first looks."""
    known = [cell for cell in cells if cell["chance"][OVERALL] is not None]
    times = [cell["unseen_s"] for cell in known]
    values = [100 * cell["chance"][OVERALL] for cell in known]
    axes.plot(times, values, color=colour, ls="", marker="x", ms=5, zorder=2)


def _breaks(
    axes: "Axes", past: Mapping[str, float | None], styles: Mapping[str, tuple[str, str]]
) -> None:
    """A line where each system's recent past ends, from the top down, equal ones side by side."""
    seen: dict[float, int] = {}
    for system, (colour, _) in styles.items():
        end = past.get(system)
        if end is None:
            continue
        shift = 1 + 0.035 * seen.get(end, 0)
        seen[end] = seen.get(end, 0) + 1
        axes.axvline(end * shift, color=colour, lw=1.2, ls=(0, (1, 2)), zorder=1)
        axes.plot(end * shift, 101, marker="v", color=colour, ms=6, clip_on=False, zorder=5)


def _legend(
    tree: Mapping[str, Any], styles: Mapping[str, tuple[str, str]], labels: Mapping[str, str]
) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    names: list[str] = []
    for system, (colour, style) in styles.items():
        cells = [gap[OVERALL] for gap in tree["systems"][system].values()]
        scored, expected = (sum(cell[key] for cell in cells) for key in ("scored", "expected"))
        label = NAMES.get(row(system)) or labels.get(system, row(system))
        handles.append(Line2D([], [], color=colour, ls=style, marker="o", ms=3.5, lw=1.6))
        names.append(f"{label}: {scored}/{expected} answers")
    handles.append(Line2D([], [], color=PLAIN, ls=(0, (1, 2)), marker="v", ms=5, lw=1.2))
    names.append("where a system's recent past ends")
    if tree["free"]:
        cells = [gap[OVERALL] for gaps in tree["free"].values() for gap in gaps.values()]
        scored, expected = (sum(cell[key] for cell in cells) for key in ("scored", "expected"))
        handles.append(Line2D([], [], color=PLAIN, ls=":", marker="s", mfc="white", ms=4))
        names.append(f"free-running films, against their own first look: {scored}/{expected}")
        handles.append(Line2D([], [], color=PLAIN, ls="", marker="x", ms=5))
        names.append("the same films against each other's first looks: their chance")
    return handles, names
