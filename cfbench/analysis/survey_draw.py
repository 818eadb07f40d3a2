"""Figures of how films behave: events in time, drift by system, one flashback close up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfbench import video
from cfbench.analysis.draw import drift_curves
from cfbench.analysis.drift import Group, Settings, gather
from cfbench.analysis.events import Event, Thresholds, from_opening, lagged
from cfbench.analysis.features import trace
from cfbench.analysis.survey import Behaviour
from cfbench.plots import BLUE, COLOURS, GREY, INK, SKY, VERMILION, figure, row_titles
from cfbench.sheet import GAP_PX, frames_at, montage
from cfbench.tables import REFERENCES
from cfbench.types import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Behaviour]
ROW_IN = 0.19
BARS = {"freeze": GREY, "loop": SKY}
FIRST = "longlive"
"""The system whose flashback is shown, where it has one: the paper shows one of its films."""

MOMENTS_S = (-2.0, -0.25, 0.25, 1.0)
CLOSE_S = 6.0


class Shown(NamedTuple):
    """The flashback to show, and whose it is."""

    run: RunRecord
    event: Event


def event_lines(
    out: Path,
    runs: Sequence[RunRecord],
    found: Found,
    labels: Mapping[str, str],
    changes: Mapping[str, Sequence[float]],
) -> None:
    """Every film as a line, with what happens in it and when.

    Args:
        out: path; written as .pdf and .png, or not at all when nobody looked at a film.
        runs: films.
        found: what films do, by hash.
        labels: of systems.
        changes: when the text changes, by prompt.
    """
    titles = row_titles(labels, [run.system for run in runs])
    lines = [run for name in titles for run in runs if run.system == name]
    looked = [run for run in lines if run.clip.sha256 in found]
    if not looked:
        return
    with figure(out, 1, 1, (8.4, 1.4 + ROW_IN * len(looked))) as (canvas, grid):
        axes = grid[0]
        axes.grid(visible=False)
        for place, run in enumerate(looked):
            _events(axes, place, found[run.clip.sha256])
            times = changes.get(run.prompt_id, ())
            axes.plot(times, [place] * len(times), "|", color="#909090", ms=5, mew=0.7, zorder=1.5)
        last = len(looked)
        systems = [run.system for run in looked]
        starts = [k for k in range(last) if k == 0 or systems[k] != systems[k - 1]]
        for turn, (start, end) in enumerate(zip(starts, [*starts[1:], last], strict=True)):
            if turn % 2 == 0:
                axes.axhspan(start - 0.5, end - 0.5, color="#F3F3F3", lw=0, zorder=0)
            name = systems[start]
            axes.text(
                -0.01, (start + end - 1) / 2, titles[name], ha="right", va="center", fontsize=8,
                color=COLOURS.get(name, INK), transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        axes.set_yticks([])
        axes.set_ylim(last - 0.5, -0.5)
        axes.set_xlim(0, max(found[run.clip.sha256].seconds for run in looked))
        axes.set_xlabel(f"time in the film (s); {len(looked)}/{len(lines)} films looked at")
        _event_legend(canvas)


def _events(axes: "Axes", place: int, film: Behaviour) -> None:
    axes.plot([0, film.seconds], [place, place], color="#CFCFCF", lw=0.8, zorder=1)
    for event in film.events:
        if event.kind == "flashback":
            axes.plot(event.start_s, place, "v", color=VERMILION, ms=5.5, mew=0, zorder=4)
        else:
            width = event.end_s - event.start_s
            axes.barh(place, width, 0.62, event.start_s, color=BARS[event.kind], zorder=2)


def _event_legend(canvas: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=VERMILION, marker="v", ls="", ms=5.5, mew=0)]
    handles += [Patch(color=colour) for colour in BARS.values()]
    handles.append(Line2D([], [], color="#909090", marker="|", ls="", ms=6, mew=0.7))
    names = ["flashback to the opening", *BARS, "the text changes"]
    canvas.legend(handles, names, loc="outside upper left", ncols=4, fontsize=8)


def drift_by_system(
    out: Path, runs: Sequence[RunRecord], found: Found, labels: Mapping[str, str]
) -> None:
    """Drift of exposure, saturation and sharpness of the named systems.

    Args:
        out: path; written as .pdf and .png, or not at all when nobody looked at a film.
        runs: films.
        found: what films do, by hash.
        labels: of systems.
    """
    groups: list[Group] = []
    names: dict[str, str] = {}
    settings = Settings()
    for system, title in row_titles(labels, [run.system for run in runs]).items():
        mine = [run for run in runs if run.system == system]
        films = [found[r.clip.sha256].drifts() for r in mine if r.clip.sha256 in found]
        if system not in COLOURS or not films:
            continue
        for rows in zip(*films, strict=True):
            groups.append(gather(system, rows, settings))
        names[system] = title
    if groups:
        drift_curves(out, groups, settings, names)


def clearest(runs: Sequence[RunRecord], found: Found) -> Shown | None:
    """The clearest flashback of ``FIRST``, or of all systems that are no references."""
    shown = [
        Shown(run, event)
        for run in runs
        if run.system not in REFERENCES and run.clip.sha256 in found
        for event in found[run.clip.sha256].events
        if event.kind == "flashback"
    ]
    first = [one for one in shown if one.run.system == FIRST]
    return max(first or shown, key=lambda one: one.event.score, default=None)


def flashback(out: Path, shown: Shown, path: Path, label: str) -> None:
    """A flashback close up: how far each frame is from the opening and the one before, and frames.

    Args:
        out: path; written as .pdf and .png.
        shown: which one.
        path: of its film.
        label: of its system.

    Raises:
        DecodeError: the film cannot be decoded.
    """
    film, at = trace(video.stored(path)), shown.event.start_s
    opening = max(1, round(Thresholds().opening_s * film.rate))
    times = np.arange(len(film.vectors_TE)) / film.rate
    moments = [0.0, *(max(0.0, at + offset) for offset in MOMENTS_S)]
    images = frames_at(path, moments)
    heights = {"height_ratios": (1, 2)}
    with figure(out, 2, 1, (9.0, 4.6), gridspec_kw=heights) as (_, grid):
        top, axes = grid
        top.imshow(montage([images]))
        top.set_axis_off()
        for k, moment in enumerate(moments):
            middle = (k + 0.5) * images[0].shape[1] + k * GAP_PX
            top.text(middle, -4, f"{moment:.2f} s", ha="center", fontsize=8)
        axes.plot(times, from_opening(film.vectors_TE, opening), color=BLUE, lw=1.2,
                  label="to the nearest frame of the opening")  # fmt: skip
        axes.plot(times[1:], lagged(film.vectors_TE, 1), color=VERMILION, lw=0.9,
                  label="to the frame before")  # fmt: skip
        axes.axvspan(at, shown.event.end_s, color="#DEDEDE", zorder=0, label="flashback")
        for moment in moments[1:]:
            axes.axvline(moment, color=INK, lw=0.6, ls=":")
        axes.set_xlim(max(0.0, at - CLOSE_S), at + CLOSE_S)
        axes.set_xlabel(f"time in the film (s): {label}, {shown.run.prompt_id}")
        axes.set_ylabel("distance")
        axes.legend(fontsize=8, loc="upper left")
