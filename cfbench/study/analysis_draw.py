"""Figures of a study in the style of ``cfbench.plots``: stacked bars as the paper has, forest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cfbench.plots import BLUE, GREY, INK, VERMILION, beside, figure, p_text, whisker
from cfbench.stats import Interval
from cfbench.study.findings import Findings
from cfbench.study.preference import Preference
from cfbench.study.tables import Design

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = 0.45  # opacity of the bars that are printed values and not of this study
NARROWEST = 4.0  # per cent of a bar that holds its number


class Bar(NamedTuple):
    """A stacked bar in per cent: ours, tie, other; ``mean`` is the win rate, ties half."""

    label: str
    parts: tuple[float, float, float]
    mean: Interval
    is_printed: bool = False


def bars(design: Design, found: Findings, comparison: str, paper: Mapping[str, float]) -> list[Bar]:
    """Bars of one comparison: each question, all together, and the paper's where it has one.

    Args:
        design: of the study.
        found: in the votes.
        comparison: name of the comparison.
        paper: per cent that preferred ours, by baseline.
    """
    texts = {question.id: question.id for question in design.questions}
    rows = [row for row in found.preferences if row.comparison == comparison]
    rows += [row for row in found.pooled if row.comparison == comparison]
    made = [
        Bar(f"{texts.get(row.question, 'all questions')}\nn = {row.n}", parts(row), row.rate.mean)
        for row in rows
        if row.n
    ]
    baseline = next(item.baseline for item in design.comparisons if item.name == comparison)
    if made and baseline in paper:
        share = paper[baseline]
        none = Interval(None, None, None)
        made.append(Bar("paper, as printed\nn not stated", (share, 0.0, 100 - share), none, True))
    return made


def parts(row: Preference) -> tuple[float, float, float]:
    """Per cent of judged votes for ours, tied, for the other."""
    return (100 * row.win / row.n, 100 * row.tie / row.n, 100 * row.loss / row.n)


def stacked(
    out: Path,
    design: Design,
    found: Findings,
    labels: Mapping[str, str],
    paper: Mapping[str, float],
) -> bool:
    """Stacked bars of every comparison; False, and no file, where there is no judged vote.

    The dashed line is one half. The mark is the win rate, ties counting one half, and its bar
    the clustered interval.

    Args:
        out: path; written as .pdf and .png.
        design: of the study.
        found: in the votes.
        labels: label by system.
        paper: per cent that preferred ours, by baseline.
    """
    drawn = [(item, bars(design, found, item.name, paper)) for item in design.comparisons]
    drawn = [(item, made) for item, made in drawn if made]
    if not drawn:
        return False
    tallest = max(len(made) for _, made in drawn)
    size = (4.3 * len(drawn) + 0.8, 0.62 * tallest + 1.5)
    with figure(out, 1, len(drawn), size) as (canvas, grid):
        for axes, (item, made) in zip(grid, drawn, strict=True):
            _stack(axes, made)
            axes.set_title(f"{labels[item.ours]} vs {labels[item.baseline]}", loc="left")
            axes.set_ylim(tallest - 0.4, -0.6)
        handles, names = grid[0].get_legend_handles_labels()
        canvas.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    return True


def _stack(axes: "Axes", made: Sequence[Bar]) -> None:
    for place, bar in enumerate(made):
        left = 0.0
        opacity = PALE if bar.is_printed else 0.9
        for part, colour, name in zip(
            bar.parts, (VERMILION, GREY, BLUE), ("ours preferred", "tie", "other preferred"),
            strict=True,
        ):  # fmt: skip
            axes.barh(
                place, part, left=left, height=0.62, color=colour, alpha=opacity,
                label=name if place == 0 else None, zorder=2,
            )  # fmt: skip
            if part >= NARROWEST:
                axes.text(
                    left + part / 2, place + 0.19, f"{part:.1f}", ha="center", va="center",
                    fontsize=7.5, color=INK, zorder=4,
                )  # fmt: skip
            left += part
        _mark(
            axes, place, bar.mean, "win rate, ties half, with its interval" if not place else None
        )
    axes.axvline(50, color=INK, lw=1, ls="--", zorder=3)
    axes.set_xlim(0, 100)
    axes.set_yticks(range(len(made)), [bar.label for bar in made], fontsize=8)
    axes.set_xlabel("share of votes (%)")
    axes.grid(visible=False)


def _mark(axes: "Axes", place: int, mean: Interval, name: str | None) -> None:
    if mean.value is None:
        return
    height = place - 0.12
    whisker(axes, height, mean, INK, zorder=5)
    axes.plot(
        100 * mean.value, height, "D", color="white", mec=INK, ms=5, zorder=6, label=name, ls=""
    )


def forest(
    out: Path,
    design: Design,
    sets: Mapping[str, Findings],
    labels: Mapping[str, str],
    paper: Mapping[str, float],
) -> bool:
    """Win rates of every comparison and question, one mark a set of raters; False without votes.

    Args:
        out: path; written as .pdf and .png.
        design: of the study.
        sets: findings by what the set is called; the first is drawn in colour, others in grey.
        labels: label by system.
        paper: per cent that preferred ours, by baseline; a dotted line over its comparison.
    """
    main, *_ = sets.values()
    rows = [row for row in main.preferences if row.n]
    if not rows:
        return False
    baselines = {item.name: item.baseline for item in design.comparisons}
    with figure(out, 1, 1, (8.2, 1.5 + 0.42 * len(rows))) as (canvas, grid):
        axes = grid[0]
        for index, (name, found) in enumerate(sets.items()):
            by_cell = {(row.comparison, row.question): row for row in found.preferences}
            for place, row in enumerate(rows):
                _rate(axes, place + 0.24 * index, by_cell[row.comparison, row.question], index,
                         name if place == 0 else None)  # fmt: skip
        for place, row in enumerate(rows):
            if baselines[row.comparison] in paper:
                share = paper[baselines[row.comparison]]
                axes.plot(
                    [share] * 2, [place - 0.35, place + 0.5], color=VERMILION, lw=1, ls=":",
                    label="paper, as printed, over its three questions" if place == 0 else None,
                )  # fmt: skip
            p = "" if row.p_holm is None else f"  {p_text(row.p_holm)}"
            beside(axes, place, f"n = {row.n}{p}")
        names = [f"{labels[baselines[row.comparison]]}: {row.question}" for row in rows]
        axes.axvline(50, color=INK, lw=1, ls="--")
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.3, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel(
            f"win rate of ours, ties half (%); bars: {100 * design.analysis.confidence:g} %, "
            "raters and prompts resampled\n"
            "p: exact sign test over prompts, Holm over all rows"
        )
        canvas.legend(loc="outside upper center", ncols=3, fontsize=8)
    return True


def _rate(axes: "Axes", place: float, row: Preference, index: int, name: str | None) -> None:
    mean = row.rate.mean
    if mean.value is None:
        return
    colour = GREY if index else BLUE
    whisker(axes, place, mean, colour)
    axes.plot(
        100 * mean.value, place, "s", color=colour, ms=5 if not index else 4, label=name, ls=""
    )
