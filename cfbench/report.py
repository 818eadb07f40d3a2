"""One call from a store to tables, plots, contact sheet, gallery and a page that holds them."""

import gzip
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from cfbench import context_plot, curves, extras, papers, plots, render
from cfbench import prompts as prompt_sets
from cfbench import readme as readme_file
from cfbench.compact import compact
from cfbench.drawing import Drawing, draw
from cfbench.extras import INPUTS, RECORDS, Extras
from cfbench.findings import Analysis, analyse, paper_folder, table_texts, tier_of, written
from cfbench.gallery import build_gallery
from cfbench.packed import unpack
from cfbench.page import render_page
from cfbench.progress import Reporter
from cfbench.sheet import system_sheet
from cfbench.store import LocalStore, open_store, write_atomic
from cfbench.tables import OURS

logger = logging.getLogger(__name__)

SCHEMA = 2
FROZEN = "frozen"
WRITERS = ("matplotlib", "pyarrow", "numpy")
"""Packages whose version decides the bytes of some files, by the suffixes ``WRITTEN``."""
WRITTEN = (".png", ".pdf", ".parquet")
STATE = "report.json"


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What was written, and what a reader must know."""

    page: Path
    files: tuple[str, ...]
    films: int
    systems: tuple[str, ...]
    normaliser_sha256: str
    warnings: tuple[str, ...]


def _drawings(analysis: Analysis, folder: Path, paths: Mapping[str, Path]) -> list[Drawing]:
    """Everything that is drawn from scores, and the contact sheet where there are films."""
    labels, runs = analysis.labels, analysis.frame.stored.runs
    titles = plots.row_titles(labels, analysis.frame.systems)
    sheet = [partial(system_sheet, folder / "contact-sheet", runs, paths, titles)] if paths else []
    points = curves.context_points(
        analysis.frame, analysis.found, analysis.curves.get(curves.CONSISTENCY, [])
    )
    # Those that take longest come first.
    return [
        *sheet,
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
    films: bool = True,
    beside: Extras | None = None,
    workers: int = 1,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Writes the whole report under ``out``; nothing in it needs a server or a network.

    Args:
        store_root: films and records.
        out: folder of the report.
        suite: whose scores (its tier's name, as ``tiny``).
        paper: print the paper's values beside ours, and its tables.
        command: that makes this report again; printed in every table.
        commit: of the code.
        absent: why systems have no films, by name; others without films say that they have none.
        normaliser: another normaliser than the one that ships for the suite.
        readme: a file whose table and picture between the markers are replaced.
        films: put in what shows films: gallery and contact sheet. Without, the report is made from
            its own folder ``inputs`` alone, and ``check`` makes all of it again.
        beside: forgetting curve, and what films do.
        workers: processes that draw.
        reporter: shows how far the drawing is.

    Raises:
        ValueError: nothing to report, no normaliser, or a ``readme`` without markers.
        CfError: no store there, or the disk refuses.
    """
    store, beside = open_store(store_root), beside or Extras()
    if readme is not None:
        readme_file.read(readme)
    reasons = dict(absent or {})
    header = f"commit {commit}; command {command}"
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = store
        if not films:
            hashes = extras.write_inputs(out / INPUTS, store, tier_of(suite), beside)
            source = unpack(out / INPUTS / RECORDS, Path(folder) / "store")
        analysis = analyse(
            source, suite=suite, paper=paper, header=header, absent=reasons, normaliser=normaliser
        )
    frame = analysis.frame
    texts = {
        **table_texts(analysis),
        **written(extras.behaviour(beside, frame, analysis.header)),
        **extras.texts(beside, frame, header),
    }
    for name, text in texts.items():
        write_atomic(out / name, text.encode())
    if films:
        compact(store, out / "tables" / "scores.parquet")
    paths = {run.clip.sha256: store.path(run.clip.sha256, "mp4") for run in frame.stored.runs}
    drawings = _drawings(analysis, out / "plots", paths if films else {})
    drawings += extras.drawings(beside, analysis.frame, out / "plots")
    draw(drawings, workers=workers, reporter=reporter or Reporter(quiet=True))
    if films:
        _gallery(analysis, store, out / "gallery")
    warnings = warnings_of(analysis)
    state: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": suite,
        "paper": paper,
        "header": header,
        "absent": reasons,
        "normaliser_sha256": analysis.normaliser.sha256,
        "warnings": warnings,
        "provenance": provenance(analysis, command=command, commit=commit),
        "films": films,
        "inputs": hashes,
        "written_with": {name: metadata.version(name) for name in WRITERS},
    }
    write_atomic(out / STATE, (json.dumps(state, indent=2, sort_keys=True) + "\n").encode())
    _page(analysis, beside, out, state)
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


def _gallery(analysis: Analysis, store: LocalStore, out: Path) -> None:
    build_gallery(
        out,
        analysis.frame,
        analysis.normaliser,
        prompts=prompt_sets.stored(analysis.frame.runs, lambda sha: store.path(sha, "json")),
        labels=analysis.labels,
        film_path=lambda sha: store.path(sha, "mp4"),
        tier=analysis.tier,
        header=analysis.header,
    )


def _page(analysis: Analysis, beside: Extras, out: Path, state: Mapping[str, Any]) -> None:
    sections = [("Paired differences and power", render.html_differences(analysis.differences))]
    if state["paper"]:
        sections += papers.sections(paper_folder())
    template = (resources.files("cfbench") / "static" / "report.html").read_text(encoding="utf-8")
    page = render_page(
        template,
        out,
        (*analysis.all_tables, *extras.behaviour(beside, analysis.frame, analysis.header)),
        warnings=state["warnings"],
        facts=state["provenance"],
        tier=analysis.tier,
        sections=sections,
    )
    write_atomic(out / "index.html", page.encode())


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
    """Makes a report again and compares: names of files that differ, are missing or too many.

    Of a report with films the tables are made again, from the store; one without films is made
    again whole, from its own inputs. Commit, command and reasons for null rows are taken from its
    ``report.json``.

    Raises:
        ValueError: no report there, or one of another version.
    """
    path = out / STATE
    if not path.is_file():
        raise ValueError(f"no report in {out}; run cfbench report first")
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {state.get('schema')}, expected {SCHEMA}; report again")
    if not state["films"]:
        return _check_whole(out, state, normaliser)
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


def _check_whole(out: Path, state: Mapping[str, Any], normaliser: Path | None) -> list[str]:
    facts = state["provenance"]
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "report"
        unpack(out / INPUTS / RECORDS, Path(folder) / "store")
        report(
            Path(folder) / "store",
            again,
            suite=state["suite"],
            paper=state["paper"],
            command=facts["command"],
            commit=facts["commit"],
            absent=state["absent"],
            normaliser=normaliser,
            films=False,
            beside=extras.read(out / INPUTS),
        )
        here = {name: metadata.version(name) for name in WRITERS}
        same = here == state["written_with"]
        if not same:
            logger.warning("written with %s, here are %s: pictures and parquet are not compared",
                           state["written_with"], here)  # fmt: skip
        names = {p.relative_to(root).as_posix() for root in (out, again) for p in _files(root)}
        skipped = () if same else (*WRITTEN, STATE)
        return sorted(
            name
            for name in names
            if not name.endswith(skipped) and _content(out / name) != _content(again / name)
        )


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def _content(path: Path) -> bytes | None:
    """What is in a file, whichever library packed it; None where there is none."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw
