"""A contact sheet of films: a row for each system, a column for each time."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfbench import video
from cfbench.curves import TIMES_S
from cfbench.plots import RC, figure
from cfbench.store import write_atomic
from cfbench.types import RunRecord

logger = logging.getLogger(__name__)

SHEET_TIMES_S: tuple[float, ...] = (0.0, *TIMES_S)
GAP_PX = 2
WIDTH_IN, LABELS_IN = 9.0, 1.9
HEAD_PX, SIDE_PX, PNG_DPI = 22, 132, 100


def frames_at(path: Path, times_s: Sequence[float]) -> list[video.Frames]:
    """The pixel frames of a film at some times, the last one where it ends before.

    Raises:
        ValueError: the film cannot be decoded.
    """
    info = video.probe(path)
    wanted = [min(round(time * info.fps), info.frames - 1) for time in times_s]
    found = video.pick(path, set(wanted))
    return [found[index] for index in wanted]


def montage(rows: Sequence[Sequence[video.Frames]], gap: int = GAP_PX) -> video.Frames:
    """Images of one size in rows and columns on white.

    Raises:
        ValueError: no image, or images of several sizes.
    """
    shapes = {image.shape for row in rows for image in row}
    if len(shapes) != 1 or len({len(row) for row in rows}) != 1:
        raise ValueError(f"montage of {len(rows)} rows: images {shapes}; expected one size")
    height, width, _ = next(iter(shapes))
    columns = len(rows[0])
    size = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            sheet[top : top + height, left : left + width] = image
    return sheet


def draw_sheet(
    out: Path, rows: Mapping[str, Sequence[video.Frames]], times_s: Sequence[float], title: str
) -> None:
    """Writes ``out`` as PNG and PDF: labelled rows, times above.

    Args:
        out: path; its suffix is replaced.
        rows: images by label, one a time.
        times_s: of the columns.
        title: above the sheet.
    """
    sheet = montage(list(rows.values()))
    rows_px, columns_px = sheet.shape[:2]
    height = (WIDTH_IN - LABELS_IN) * rows_px / columns_px + 0.6
    with figure(out, 1, 1, (WIDTH_IN, height)) as (_, grid):
        axes = grid[0]
        # Of a fixed shape the axes would grow over the room that the layout left for labels.
        axes.imshow(sheet, interpolation="antialiased", aspect="auto")
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        step_x, step_y = (columns_px + GAP_PX) / len(times_s), (rows_px + GAP_PX) / len(rows)
        centres = [step_x * (index + 0.5) for index in range(len(times_s))]
        axes.set_xticks(centres, [f"{time:g} s" for time in times_s])
        axes.set_yticks([step_y * (index + 0.5) for index in range(len(rows))], list(rows))
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_title(title, loc="left", fontsize=9)


def choose_film(runs: Sequence[RunRecord]) -> tuple[str, int] | None:
    """The prompt and seed that most systems have; among equals one of the long stratum."""
    counts: dict[tuple[str, int], int] = {}
    strata: dict[str, str] = {}
    for run in runs:
        counts[run.prompt_id, run.seed] = counts.get((run.prompt_id, run.seed), 0) + 1
        strata[run.prompt_id] = run.stratum
    if not counts:
        return None
    return min(counts, key=lambda film: (-counts[film], strata[film[0]] != "long", film))


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Frames of one prompt and seed: images by label, one a time."""

    prompt: str
    seed: int
    rows: dict[str, list[video.Frames]]


def sheet_rows(
    runs: Sequence[RunRecord],
    paths: Mapping[str, Path],
    titles: Mapping[str, str],
    times_s: Sequence[float],
) -> Sheet | None:
    """Frames of the films that ``choose_film`` picks; None when no film can be read.

    Args:
        runs: films.
        paths: where films lie, by hash.
        titles: label by system, in row order; systems without one are left out.
        times_s: of the frames.
    """
    film = choose_film(runs)
    rows: dict[str, list[video.Frames]] = {}
    by_system = {run.system: run for run in runs if (run.prompt_id, run.seed) == film}
    for system, title in titles.items():
        if system not in by_system:
            continue
        path = paths[by_system[system].clip.sha256]
        if not path.is_file():
            logger.warning("no film of %s for the contact sheet", system)
            continue
        rows[title] = frames_at(path, times_s)
    return Sheet(prompt=film[0], seed=film[1], rows=rows) if film and rows else None


def system_sheet(
    out: Path,
    runs: Sequence[RunRecord],
    paths: Mapping[str, Path],
    titles: Mapping[str, str],
    times_s: Sequence[float] = SHEET_TIMES_S,
) -> bool:
    """The contact sheet of one prompt and seed over all systems; arguments as ``sheet_rows``.

    Args:
        out: path; its suffix is replaced.
        runs: films.
        paths: where films lie, by hash.
        titles: label by system, in row order.
        times_s: columns.

    Returns:
        False when no film could be read, and nothing was written.
    """
    sheet = sheet_rows(runs, paths, titles, times_s)
    if sheet is None:
        return False
    draw_sheet(out, sheet.rows, times_s, f"prompt {sheet.prompt}, seed {sheet.seed}")
    return True


def write_png(out: Path, sheet: Sheet, times_s: Sequence[float]) -> None:
    """The sheet as one PNG, pixel for pixel.

    Raises:
        CfError: the disk refuses.
    """
    import cv2
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = montage(list(sheet.rows.values()))
    rows_px, columns_px = image.shape[0] + HEAD_PX, image.shape[1] + SIDE_PX
    with rc_context(RC):
        canvas = FigureCanvasAgg(
            Figure(figsize=(columns_px / PNG_DPI, rows_px / PNG_DPI), dpi=PNG_DPI)
        )
        step_y, step_x = (image.shape[0] + GAP_PX) / len(sheet.rows), image.shape[1] / len(times_s)
        for index, label in enumerate(sheet.rows):
            y = 1 - (HEAD_PX + step_y * (index + 0.5)) / rows_px
            canvas.figure.text(0.006, y, label, va="center")
        for index, time in enumerate(times_s):
            x, y = (SIDE_PX + step_x * (index + 0.5)) / columns_px, 1 - HEAD_PX / 2 / rows_px
            canvas.figure.text(x, y, f"{time:g} s", ha="center", va="center")
        canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    drawn[HEAD_PX:, SIDE_PX:] = image
    best = [cv2.IMWRITE_PNG_COMPRESSION, 9]
    done, data = cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]), best)
    if not done:
        raise RuntimeError(f"cannot encode {out.name} as PNG")
    write_atomic(out, data.tobytes())
