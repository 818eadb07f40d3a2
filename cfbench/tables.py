"""Tables as data, and the same table as CSV, Markdown and LaTeX.

Cells hold values in [0, 1]; every output prints them x100.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfbench.aggregate import DIMENSIONS, QUALITY, Normaliser
from cfbench.curves import CURVES, Curve
from cfbench.frame import Estimate, Frame, paired_totals, summarise
from cfbench.stats import (
    RESAMPLES,
    Interval,
    Paired,
    Power,
    holm,
    paired,
    power_note,
    prompt_differences,
)
from cfbench.types import RAW_FRAMES

SYSTEMS: Mapping[str, str] = {
    "ours": "Ours",
    "uniform-1": "Uniform, every chunk",
    "uniform-2": "Uniform, every 2nd chunk",
    "no-cdmd": "w/o contextual distillation",
    "absolute": "w/o bounded positions",
    "no-slow": "w/o slow memory",
    "slow-2": "2 slow latents",
    "slow-4": "4 slow latents",
    "slow-8": "8 slow latents",
    "no-sink": "w/o sink",
    "surprisal-1": "Surprisal, every chunk",
    "tau-0.90": "tau = 0.90",
    "tau-0.95": "tau = 0.95",
    "contiguous-teacher": "Teacher context: contiguous",
    "memory-teacher": "Teacher context: memory",
    "no-recycling": "w/o error recycling",
    "per-layer-decision": "Promotion decided by each layer",
    "shared-decision": "Promotion decided for all layers",
    "pooled": "Slow memory pooled 2x2",
    "ours-released": "Ours, as released",
    "commit-forcing": "Ours, commits read recent",
    "self-forcing": "Self Forcing",
    "self-forcing-pp": "Self-Forcing++",
    "longlive": "LongLive, 3.0 s",
    "longlive-3.75": "LongLive, 3.75 s",
    "longlive-5.25": "LongLive, 5.25 s",
    "longlive-6": "LongLive, 6 s",
    "longlive-9": "LongLive, 9 s",
    "longlive-12": "LongLive, 12 s",
    "longlive-recache": "LongLive, re-cached",
    "infinity-rope": "Infinity-RoPE",
    "infinity-rope-flush": "Infinity-RoPE, flushed",
    "streaming-llm": "StreamingLLM-style",
    "full-context": "Full context",
    "rolling-forcing": "Rolling Forcing",
    "causvid": "CausVid",
}
"""Rows of the tables, in the presets' order."""

ALWAYS = frozenset(
    ("ours", "uniform-1", "uniform-2", "no-cdmd", "absolute", "rendered-truth", "frozen")
)
"""Rows of every table: the paper's, and the references. Others stand there if asked for."""

REFERENCES: Mapping[str, str] = {
    "rendered-truth": "Rendered truth",
    "frozen": "Frozen first frame",
}
"""Rows that bound the scale and are never the best of a column."""

STRATA = ("stay", "short", "long")
OURS = "ours"
NO_FILMS = "no films of this system in the store"
PAPER_NOTE = (
    "Paper: Context Forcing (arXiv:2602.06028), Table 3, VBench of 60 s films of a 1.3 B model; "
    "another scale, printed for the order of the rows. Its full row's Total does not follow from "
    "its Quality and Semantic, which give 82.06."
)
TABLE1_NOTE = (
    "Paper: Context Forcing (arXiv:2602.06028), Table 1, by DINOv2 and CLIP over films of a 1.3 B "
    "model of 100 prompts; another scale, printed for the order of the rows."
)
NO_FRAME = "no film has a frame there"
# (heading, key in the summary, column of the paper's table)
ABLATION_COLUMNS = (
    ("Total", "total", "total"),
    ("Quality", "quality", "quality"),
    ("Semantic", "semantic", "semantic"),
    ("Background", "raw:background_consistency", "background"),
    ("Subject", "raw:subject_consistency", "subject"),
    ("Dynamic", "raw:dynamic_degree", "dynamic"),
)

Summaries = Mapping[str, Mapping[str, Estimate]]
Paper = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: one estimate a column; ``note`` says why the whole row is null."""

    system: str
    label: str
    is_reference: bool
    cells: tuple[Estimate, ...]
    paper: tuple[float | None, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, columns and notes; ``header`` names the commit and command it came from.

    ``bold`` is whether the highest value of a column is the best, and marked so.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    paper_columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    header: str
    bold: bool = True


def summaries(
    frame: Frame, normaliser: Normaliser, *, resamples: int = RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """``frame.summarise`` of every system of the frame."""
    return {
        system: summarise(frame.where(system=system), normaliser, resamples=resamples)
        for system in frame.systems
    }


def read_paper(path: Path, key: str = "system") -> dict[str, dict[str, float]]:
    """Numbers of one of the paper's tables by row; texts and empty fields are left out.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(f"paper table {path}: no such file; restore it or ask for no paper values")
    rows: dict[str, dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row[key]] = {
                name: float(text)
                for name, text in row.items()
                if text.replace(".", "", 1).isdigit()
            }
    return rows


def system_order(found: Iterable[str]) -> dict[str, str]:
    """Labels in table order: presets, systems that no preset knows, references.

    Args:
        found: systems that stand in the table; the presets' rows need not be among them.
    """
    known = {*SYSTEMS, *REFERENCES}
    others = {name: name for name in sorted(set(found) - known)}
    return {**SYSTEMS, **others, **REFERENCES}


def _null(reason: str) -> Estimate:
    return Estimate(mean=Interval(None, None, None), scored=0, expected=0, reason=reason)


def _rows(
    found: Summaries,
    keys: Sequence[str],
    labels: Mapping[str, str],
    absent: Mapping[str, str],
) -> list[Row]:
    rows: list[Row] = []
    for system, label in system_order([*found, *absent]).items():
        if system not in ALWAYS and system not in found and system not in absent:
            continue
        note = "" if system in found else absent.get(system, NO_FILMS)
        cells = tuple(found[system][key] if not note else _null(note) for key in keys)
        rows.append(
            Row(
                system=system,
                label=labels.get(system, label),
                is_reference=system in REFERENCES,
                cells=cells,
                note=note,
            )
        )
    return rows


def coverage_note(frame: Frame, normaliser: Normaliser, tier: str) -> str:
    """One line on what the numbers are: tier, films, prompts, normaliser."""
    prompts, seeds = len(set(frame.prompts)), len({run.seed for run in frame.runs})
    source = "as made, no film stored" if frame.protocol == RAW_FRAMES else "of stored films"
    what = (
        "VBench-compatible scores of whole films (protocol custom), computed with your weights."
        if tier == "reference"
        else f"{tier}-tier scores, not VBench scores: VBench's aggregation rule over the {tier} "
        "tier's own dimensions."
    )
    return (
        f"{what} {len(frame.runs)} films of {prompts} prompts and {seeds} seeds; "
        f"protocol {frame.protocol} (frames {source}); "
        f"normaliser {normaliser.name} {normaliser.sha256[:12]}. Brackets: 95 % interval, "
        "resampling prompts (from 5 prompts on). Background, Subject and Dynamic are raw values."
    )


def ablation_table(
    found: Summaries,
    *,
    labels: Mapping[str, str],
    absent: Mapping[str, str],
    paper: Paper,
    note: str,
    tier: str,
    header: str,
    stratum: str = "",
) -> Table:
    """Total, Quality, Semantic, Background, Subject, Dynamic of every system.

    Args:
        found: ``summaries`` of the films; systems not in it become null rows.
        labels: label by system, as recorded with the films.
        absent: why a system has no films ("weights not trained yet"), by system.
        paper: the paper's Table 3 by system; empty leaves the paper's columns out.
        note: first footnote.
        tier: whose scores these are; named in the title.
        header: provenance, printed as a comment.
        stratum: of which stratum the films are; empty is all.
    """
    rows = _rows(found, [key for _, key, _ in ABLATION_COLUMNS], labels, absent)
    if paper:
        rows = [
            replace(
                row,
                paper=tuple(paper.get(row.system, {}).get(key) for _, _, key in ABLATION_COLUMNS),
            )
            for row in rows
        ]
    suffix = f"-{stratum}" if stratum else ""
    of_stratum = f", stratum {stratum}" if stratum else ""
    return Table(
        name=f"ablation{suffix}",
        title=f"Ablations and baselines, {tier}-tier scores{of_stratum}",
        columns=tuple(name for name, _, _ in ABLATION_COLUMNS),
        paper_columns=tuple(name for name, _, _ in ABLATION_COLUMNS) if paper else (),
        rows=tuple(rows),
        notes=(note, PAPER_NOTE) if paper else (note,),
        header=header,
    )


def dimension_table(
    found: Summaries,
    *,
    labels: Mapping[str, str],
    absent: Mapping[str, str],
    note: str,
    tier: str,
    header: str,
) -> Table:
    """The 16 dimensions, normalised, of every system."""
    return Table(
        name="dimensions",
        title=f"All dimensions, {tier}-tier scores, normalised",
        columns=tuple(name.replace("_", " ") for name in DIMENSIONS),
        paper_columns=(),
        rows=tuple(_rows(found, DIMENSIONS, labels, absent)),
        notes=(note, f"The first {len(QUALITY)} make Quality, the others Semantic."),
        header=header,
    )


def time_table(
    found: Sequence[Curve], *, labels: Mapping[str, str], paper: Paper, tier: str, header: str
) -> Table:
    """One measure at 10 to 60 s of every system, with the paper's values beside.

    Args:
        found: curves of the measure, one a system.
        labels: label by system.
        paper: the paper's Table 1 by system; empty leaves its columns out.
        tier: whose features these are.
        header: provenance.
    """
    measure, times = found[0].dimension, found[0].times_s
    known = {curve.system: curve for curve in found}
    rows = [
        Row(
            system=name,
            label=labels.get(name, label),
            is_reference=name in REFERENCES,
            cells=tuple(
                Estimate(
                    mean=mean,
                    scored=scored,
                    expected=known[name].expected,
                    reason="" if scored else NO_FRAME,
                )
                for mean, scored in zip(known[name].means, known[name].scored, strict=True)
            ),
            paper=tuple(paper.get(name, {}).get(f"{measure}_{time:g}s") for time in times if paper),
        )
        for name, label in system_order(known).items()
        if name in known
    ]
    columns = tuple(f"{time:g} s" for time in times)
    note = (
        f"Means of the windows around each time, by the {tier} tier's features. Brackets: 95 % "
        "interval, resampling prompts (from 5 on)."
    )
    return Table(
        name=f"time-{measure.replace('_', '-')}",
        title=CURVES[measure],
        columns=columns,
        paper_columns=columns if paper else (),
        rows=tuple(rows),
        notes=(note, TABLE1_NOTE) if paper else (note,),
        header=header,
        bold=False,
    )


def best_rows(table: Table) -> list[int | None]:
    """Row of the best value of each column among systems, or None; references do not count."""
    if not table.bold:
        return [None] * len(table.columns)
    best: list[int | None] = []
    for column in range(len(table.columns)):
        values = [
            (value, -index)
            for index, row in enumerate(table.rows)
            if not row.is_reference and (value := row.cells[column].mean.value) is not None
        ]
        best.append(-max(values)[1] if values else None)
    return best


@dataclass(frozen=True, kw_only=True)
class Difference:
    """``ours`` minus another system on film-level Totals; ``p_holm`` is adjusted over systems.

    ``power`` says what so many prompts can show, all systems compared together.
    """

    system: str
    label: str
    paired: Paired
    p_holm: float | None
    power: Power | None


def differences(
    frame: Frame,
    normaliser: Normaliser,
    *,
    labels: Mapping[str, str],
    base: str = OURS,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Paired differences of the base's film-level Totals to every other system's, Holm-adjusted.

    References are compared too but take no part in the adjustment.
    """
    ours = frame.where(system=base)
    order = {name: label for name, label in system_order(frame.systems).items() if name != base}
    totals = {
        name: paired_totals(ours, frame.where(system=name), normaliser)
        for name in order
        if name in frame.systems and ours.runs
    }
    results = {name: paired(*both, resamples=resamples) for name, both in totals.items()}
    tested = {n: r.p for n, r in results.items() if r.p is not None and n not in REFERENCES}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Difference(
            system=name,
            label=labels.get(name, order[name]),
            paired=result,
            p_holm=adjusted.get(name),
            # Holm begins with the smallest of all that are tested.
            power=power_note(prompt_differences(*totals[name]), tests=max(1, len(tested))),
        )
        for name, result in results.items()
    ]


def differences_csv(rows: Sequence[Difference], header: str) -> str:
    """Paired differences as CSV, x100."""
    out = io.StringIO()
    out.write(f"# {header}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "system",
            "label",
            "difference",
            "low",
            "high",
            "p",
            "p_holm",
            "pairs",
            "expected",
            "prompts",
            "detectable",
            "prompts_needed",
        ]
    )
    for row in rows:
        bounds = [_hundred(value) for value in row.paired.mean]
        tests = ["" if p is None else f"{p:.4f}" for p in (row.paired.p, row.p_holm)]
        counts = [row.paired.scored, row.paired.expected, row.paired.prompts]
        seen = ["", ""] if row.power is None else [_hundred(row.power.detectable), row.power.needed]
        writer.writerow([row.system, row.label, *bounds, *tests, *counts, *seen])
    return out.getvalue()


def _hundred(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def to_csv(table: Table) -> str:
    """The table as CSV: value, low, high, scored, expected for each column, reasons last."""
    out = io.StringIO()
    out.write(f"# {table.header}\n")
    writer = csv.writer(out, lineterminator="\n")
    head = ["system", "label"]
    for column in table.columns:
        name = column.lower().replace(" ", "_")
        head += [name, f"{name}_low", f"{name}_high", f"{name}_scored", f"{name}_expected"]
    head += [f"paper_{column.lower()}" for column in table.paper_columns]
    writer.writerow([*head, "reason"])
    for row in table.rows:
        line: list[str] = [row.system, row.label]
        for cell in row.cells:
            line += [*map(_hundred, cell.mean), str(cell.scored), str(cell.expected)]
        line += ["" if value is None else f"{value:.2f}" for value in row.paper]
        writer.writerow([*line, "; ".join(reasons(row, table.columns))])
    return out.getvalue()


def reasons(row: Row, columns: Sequence[str]) -> list[str]:
    """Why cells of a row are null, one text for each distinct reason."""
    if row.note:
        return [row.note]
    by_reason: dict[str, list[str]] = {}
    for column, cell in zip(columns, row.cells, strict=True):
        if cell.mean.value is None:
            by_reason.setdefault(cell.reason, []).append(column)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def footnotes(table: Table) -> tuple[dict[str, int], list[str]]:
    """Numbered reasons of null cells: number by system, and the texts; equal texts share one."""
    texts: list[str] = []
    numbers: dict[str, int] = {}
    for row in table.rows:
        found = "; ".join(reasons(row, table.columns))
        if not found:
            continue
        if found not in texts:
            texts.append(found)
        numbers[row.system] = texts.index(found) + 1
    return numbers, texts
