"""One call from a store to tables, plots, contact sheet, gallery and a page that holds them."""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import get_args

import numpy as np

from cfbench import context_plot, curves, plots, render, tables
from cfbench import prompts as prompt_sets
from cfbench import readme as readme_file
from cfbench.aggregate import Normaliser, load_normaliser, suite_normaliser
from cfbench.compact import compact
from cfbench.drawing import Drawing, draw
from cfbench.frame import Frame, build_frame
from cfbench.gallery import build_gallery
from cfbench.page import render_page
from cfbench.progress import Reporter
from cfbench.sheet import system_sheet
from cfbench.store import LocalStore, open_store, write_atomic
from cfbench.tables import OURS, Summaries, Table
from cfbench.types import Tier

logger = logging.getLogger(__name__)

SCHEMA = 1
FROZEN = "frozen"


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What was written, and what a reader must know."""

    page: Path
    files: tuple[str, ...]
    films: int
    systems: tuple[str, ...]
    normaliser_sha256: str
    warnings: tuple[str, ...]


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


def _tier(suite: str) -> Tier:
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
    tier = _tier(suite)
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
    return Analysis(
        frame=frame,
        normaliser=chosen,
        found=found,
        labels=labels,
        main=main,
        all_tables=(main, *by_stratum, dimensions),
        differences=tuple(tables.differences(frame, chosen, labels=labels)),
        curves={name: curves.time_curves(frame, name) for name in present},
        table1=tables.read_paper(paper_folder() / "table1.csv") if paper else {},
        tier=tier,
        header=header,
    )


def table_texts(analysis: Analysis) -> dict[str, str]:
    """Every table file by its path under the report: what ``check`` compares."""
    texts: dict[str, str] = {}
    for table in analysis.all_tables:
        texts[f"tables/{table.name}.csv"] = tables.to_csv(table)
        texts[f"tables/{table.name}.md"] = render.markdown(table)
        texts[f"tables/{table.name}.tex"] = render.latex(table)
    texts["tables/differences.csv"] = tables.differences_csv(analysis.differences, analysis.header)
    texts["tables/curves.csv"] = _curves_csv(analysis)
    texts["tables/films.csv"] = _films_csv(analysis)
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


def _drawings(analysis: Analysis, folder: Path, paths: Mapping[str, Path]) -> list[Drawing]:
    labels, runs = analysis.labels, analysis.frame.stored.runs
    titles = plots.row_titles(labels, analysis.frame.systems)
    points = curves.context_points(
        analysis.frame, analysis.found, analysis.curves.get(curves.CONSISTENCY, [])
    )
    # Those that take longest come first.
    return [
        partial(system_sheet, folder / "contact-sheet", runs, paths, titles),
        *(
            partial(plots.time_multiples, folder / f"time-{name.replace('_', '-')}", found, labels)
            for name, found in analysis.curves.items()
        ),
        partial(context_plot.context_length, folder / "context-length", points, labels),
        partial(
            plots.time_overview, folder / "time", analysis.curves, labels, printed=analysis.table1
        ),
        partial(plots.dimension_map, folder / "dimensions", analysis.found, labels),
        partial(plots.forest, folder / "differences", analysis.differences),
    ]


def warnings_of(analysis: Analysis) -> list[str]:
    """What makes the numbers doubtful, in sentences."""
    found = analysis.found
    warnings: list[str] = []
    totals = {name: found[name]["total"].mean.value for name in (OURS, FROZEN) if name in found}
    ours, frozen = totals.get(OURS), totals.get(FROZEN)
    if ours is not None and frozen is not None and frozen > ours:
        warnings.append(
            f"A frozen first frame scores {100 * frozen:.1f} on Total and ours {100 * ours:.1f}: "
            "the scorer rewards standing still, so do not trust the Totals."
        )
    dirty = sorted({run.system for run in analysis.frame.runs if run.code.get("dirty")})
    if dirty:
        warnings.append(f"Made with uncommitted changes to the code: {', '.join(dirty)}.")
    return warnings


def report(
    store_root: Path,
    out: Path,
    *,
    suite: str,
    paper: bool = True,
    command: str,
    commit: str,
    absent: Mapping[str, str] | None = None,
    normaliser: Path | None = None,
    readme: Path | None = None,
    workers: int = 1,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Writes the whole report under ``out``; nothing in it needs a server or a network.

    Args:
        store_root: films and records.
        out: folder of the report.
        suite: whose scores (its tier's name, as ``tiny``).
        paper: print the paper's Table 3 beside ours.
        command: that makes this report again; printed in every table.
        commit: of the code.
        absent: why systems have no films, by name; others without films say that they have none.
        normaliser: another normaliser than the one that ships for the suite.
        readme: a file whose table and picture between the markers are replaced.
        workers: processes that draw.
        reporter: shows how far the drawing is.

    Raises:
        ValueError: nothing to report, no normaliser, or a ``readme`` without markers.
        CfError: no store there, or the disk refuses.
    """
    store = open_store(store_root)
    if readme is not None:
        readme_file.read(readme)
    reasons = dict(absent or {})
    header = f"commit {commit}; command {command}"
    analysis = analyse(
        store, suite=suite, paper=paper, header=header, absent=reasons, normaliser=normaliser
    )
    texts = table_texts(analysis)
    for name, text in texts.items():
        write_atomic(out / name, text.encode())
    compact(store, out / "tables" / "scores.parquet")
    frame = analysis.frame
    paths = {run.clip.sha256: store.path(run.clip.sha256, "mp4") for run in frame.stored.runs}
    drawings = _drawings(analysis, out / "plots", paths)
    draw(drawings, workers=workers, reporter=reporter or Reporter(quiet=True))
    build_gallery(
        out / "gallery",
        frame,
        analysis.normaliser,
        prompts=prompt_sets.stored(frame.runs, lambda sha: store.path(sha, "json")),
        labels=analysis.labels,
        film_path=lambda sha: store.path(sha, "mp4"),
        tier=analysis.tier,
        header=header,
    )
    warnings = warnings_of(analysis)
    facts = provenance(analysis, command=command, commit=commit)
    state = {
        "schema": SCHEMA,
        "suite": suite,
        "paper": paper,
        "header": header,
        "absent": reasons,
        "normaliser_sha256": analysis.normaliser.sha256,
        "warnings": warnings,
        "provenance": facts,
    }
    write_atomic(out / "report.json", (json.dumps(state, indent=2, sort_keys=True) + "\n").encode())
    template = (resources.files("cfbench") / "static" / "report.html").read_text(encoding="utf-8")
    page = render_page(
        template, out, analysis.all_tables, warnings=warnings, facts=facts, tier=analysis.tier
    )
    write_atomic(out / "index.html", page.encode())
    if readme is not None:
        table = render.markdown(analysis.main)
        readme_file.update(readme, table, frame.stored.runs, paths, analysis.labels)
    for warning in warnings:
        logger.warning("%s", warning)
    return ReportResult(
        page=out / "index.html",
        files=tuple(sorted(texts)),
        films=len(frame.runs),
        systems=frame.systems,
        normaliser_sha256=analysis.normaliser.sha256,
        warnings=tuple(warnings),
    )


def provenance(analysis: Analysis, *, command: str, commit: str) -> dict[str, str]:
    """Where the numbers come from, as names and texts."""
    runs, normaliser = analysis.frame.runs, analysis.normaliser
    commits = Counter(str(run.code.get("commit", ""))[:12] or "unknown" for run in runs)
    devices = Counter(str(run.environment.get("device", "unknown")) for run in runs)
    return {
        "commit": commit,
        "command": command,
        "films": f"{len(runs)} of {len(analysis.frame.systems)} systems",
        "protocol": analysis.frame.protocol,
        "films by commit": ", ".join(f"{name}: {count}" for name, count in sorted(commits.items())),
        "films by device": ", ".join(f"{name}: {count}" for name, count in sorted(devices.items())),
        "normaliser": f"{normaliser.name}, sha256 {normaliser.sha256}",
        "versions of dimensions": _versions(analysis.frame.versions),
    }


def _versions(found: Mapping[str, str]) -> str:
    if len(set(found.values())) == 1:
        return f"all {len(found)}: {next(iter(found.values()))}"
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def check(store_root: Path, out: Path, *, normaliser: Path | None = None) -> list[str]:
    """Makes the tables of a report again and compares: names of files that differ or are missing.

    The report's own commit, command and reasons for null rows are taken from its ``report.json``.

    Raises:
        ValueError: no report there, or one of another version.
    """
    path = out / "report.json"
    if not path.is_file():
        raise ValueError(f"no report in {out}; run cfbench report first")
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {state.get('schema')}, expected {SCHEMA}; report again")
    analysis = analyse(
        open_store(store_root),
        suite=state["suite"],
        paper=state["paper"],
        header=state["header"],
        absent=state["absent"],
        normaliser=normaliser,
    )
    wrong = [
        name
        for name, text in table_texts(analysis).items()
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text
    ]
    if analysis.normaliser.sha256 != state["normaliser_sha256"]:
        wrong.append("normaliser")
    return sorted(wrong)
