"""Everything that a report says, computed from the records before anything is written."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from cfbench import curves, render, tables
from cfbench.aggregate import Normaliser, load_normaliser, suite_normaliser
from cfbench.frame import Frame, build_frame
from cfbench.store import LocalStore
from cfbench.tables import Summaries, Table
from cfbench.types import Tier


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything computed from the records, before anything is written."""

    frame: Frame
    normaliser: Normaliser
    found: Summaries
    labels: Mapping[str, str]
    main: Table
    all_tables: tuple[Table, ...]
    differences: tuple[tables.Difference, ...]
    curves: Mapping[str, list[curves.Curve]]
    table1: tables.Paper
    tier: Tier
    header: str


def paper_folder() -> Path:
    """Where the paper's tables lie in a checkout.

    Raises:
        ValueError: this is not a checkout.
    """
    folder = Path(__file__).resolve().parent.parent / "results" / "paper"
    if not folder.is_dir():
        raise ValueError(
            f"no paper tables in {folder}; run from a checkout, or leave the paper's values out"
        )
    return folder


def tier_of(suite: str) -> Tier:
    """The tier of a suite's scores.

    Raises:
        ValueError: it has none to report.
    """
    for tier in get_args(Tier):
        if suite == tier:
            return tier
    raise ValueError(f"suite {suite!r} has no tier to report; use one of {get_args(Tier)}")


def analyse(
    store: LocalStore,
    *,
    suite: str,
    paper: bool,
    header: str,
    absent: Mapping[str, str],
    normaliser: Path | None = None,
) -> Analysis:
    """Tables, differences and curves of a store's films in one suite's scores.

    Raises:
        ValueError: a suite without an aggregate, or no films to report on.
    """
    tier = tier_of(suite)
    chosen = load_normaliser(normaliser) if normaliser else suite_normaliser(suite)
    frame = build_frame(store.runs(), store.scores(), tier)
    if not frame.runs:
        raise ValueError(f"no films in {store.root}; run cfbench generate and score first")
    header = f"{header}; protocol {frame.protocol}"
    labels = {run.system: run.label for run in frame.runs}
    found = tables.summaries(frame, chosen)
    printed = tables.read_paper(paper_folder() / "table3.csv") if paper else {}

    def ablation(part: Frame, stratum: str, values: tables.Paper) -> Table:
        return tables.ablation_table(
            tables.summaries(part, chosen) if stratum else found,
            labels=labels,
            absent=absent,
            paper=values,
            note=tables.coverage_note(part, chosen, tier),
            tier=tier,
            header=header,
            stratum=stratum,
        )

    main = ablation(frame, "", printed)
    strata = [name for name in tables.STRATA if any(run.stratum == name for run in frame.runs)]
    dimensions = tables.dimension_table(
        found,
        labels=labels,
        absent=absent,
        note=tables.coverage_note(frame, chosen, tier),
        tier=tier,
        header=header,
    )
    by_stratum = [ablation(frame.where(stratum=name), name, {}) for name in strata]
    present = [name for name in curves.CURVES if name in frame.dimensions]
    known = {name: curves.time_curves(frame, name) for name in present}
    table1 = tables.read_paper(paper_folder() / "table1.csv") if paper else {}
    over_time = [
        tables.time_table(rows, labels=labels, paper=table1, tier=tier, header=header)
        for rows in known.values()
    ]
    return Analysis(
        frame=frame,
        normaliser=chosen,
        found=found,
        labels=labels,
        main=main,
        all_tables=(main, *over_time, *by_stratum, dimensions),
        differences=tuple(tables.differences(frame, chosen, labels=labels)),
        curves=known,
        table1=table1,
        tier=tier,
        header=header,
    )


def table_texts(analysis: Analysis) -> dict[str, str]:
    """Every table file by its path under the report: what ``check`` compares."""
    texts = written(analysis.all_tables)
    texts["tables/differences.csv"] = tables.differences_csv(analysis.differences, analysis.header)
    texts["tables/curves.csv"] = _curves_csv(analysis)
    texts["tables/films.csv"] = _films_csv(analysis)
    return texts


def written(found: Iterable[Table]) -> dict[str, str]:
    """The files of tables by their path under the report."""
    texts: dict[str, str] = {}
    for table in found:
        texts[f"tables/{table.name}.csv"] = tables.to_csv(table)
        texts[f"tables/{table.name}.md"] = render.markdown(table)
        texts[f"tables/{table.name}.tex"] = render.latex(table)
    return texts


def _curves_csv(analysis: Analysis) -> str:
    out = io.StringIO()
    out.write(f"# {analysis.header}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["system", "dimension", "time_s", "value", "low", "high", "scored", "expected"])
    for found in analysis.curves.values():
        for curve in found:
            for time, mean, scored in zip(curve.times_s, curve.means, curve.scored, strict=True):
                bounds = ["" if v is None else f"{100 * v:.3f}" for v in mean]
                place = [curve.system, curve.dimension, f"{time:g}"]
                writer.writerow([*place, *bounds, scored, curve.expected])
    return out.getvalue()


def _films_csv(analysis: Analysis) -> str:
    """Raw values of every film, one row a film."""
    frame = analysis.frame
    out = io.StringIO()
    out.write(f"# {analysis.header}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["system", "prompt", "stratum", "seed", "film", *frame.dimensions])
    for run, row in zip(frame.runs, frame.values_ND, strict=True):
        values = ["" if np.isnan(value) else f"{value:.6g}" for value in row]
        place = [run.system, run.prompt_id, run.stratum, run.seed, run.clip.sha256[:12]]
        writer.writerow([*place, *values])
    return out.getvalue()
