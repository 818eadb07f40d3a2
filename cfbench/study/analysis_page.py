"""The analysis of a study as files: JSON, CSV, Markdown, LaTeX, figures; one command writes all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfbench.render import DASH
from cfbench.store import write_atomic
from cfbench.study import analysis_tables as tables
from cfbench.study.analysis_draw import forest, stacked
from cfbench.study.answers import read_answers
from cfbench.study.findings import Findings, Study, analyse
from cfbench.tables import read_paper

SETS: tuple[str, str] = ("raters by the design's rules", "all raters")
PAPER_FILE, PAPER_KEY, PAPER_COLUMN = "user_study.csv", "baseline", "ours_preferred_percent"


def write_analysis(
    export: Path, out: Path, *, design: Path | None, paper: Path | None, header: str
) -> dict[str, Any]:
    """Writes the analysis of an exported study; what was found, in short.

    Args:
        export: folder of ``cfbench study export``, or the study's own.
        out: folder to write.
        design: the study's ``design.json``, if it does not lie in ``export``.
        paper: folder of the paper's tables, drawn beside; None leaves them out.
        header: provenance, printed in every file.

    Raises:
        CfError: see ``read_answers``; or the disk refuses.
    """
    study = analyse(read_answers(export, design))
    printed = paper_rates(paper) if paper else {}
    labels = study.answers.design.systems
    plan = study.answers.design
    rows = tables.preference_rows(plan, study.kept, labels, printed)
    notes = [tables.NOTE, *tables.reasons(study.kept.preferences, called(study))]
    found = tables.tree(study, printed, header)
    write_atomic(out / "analysis.json", _json(found))
    write_atomic(out / "preference.csv", tables.csv_table(study, printed, header).encode())
    write_atomic(out / "preference.tex", tables.latex_table(rows, notes, header).encode())
    sets: dict[str, Findings] = dict(zip(SETS, (study.kept, study.everyone), strict=True))
    drawn = {
        "preference": stacked(out / "plots" / "preference", plan, study.kept, labels, printed),
        "forest": forest(out / "plots" / "forest", plan, sets, labels, printed),
    }
    figures = [name for name, is_drawn in drawn.items() if is_drawn]
    write_atomic(out / "analysis.md", page(study, printed, header, figures).encode())
    return {
        "page": str(out / "analysis.md"),
        "raters": study.everyone.raters,
        "excluded": len(study.exclusions.raters),
        "votes": study.kept.votes,
        "preferences": {
            f"{called(study)[row.comparison]} {row.question}": tables.bracketed(row.rate.mean)
            for row in study.kept.preferences
        },
    }


def paper_rates(folder: Path) -> dict[str, float]:
    """Per cent that preferred the paper's system, by baseline."""
    found = read_paper(folder / PAPER_FILE, PAPER_KEY)
    return {name: row[PAPER_COLUMN] for name, row in found.items()}


def called(study: Study) -> dict[str, str]:
    """What each comparison is called: its baseline's label."""
    design = study.answers.design
    return {item.name: design.systems[item.baseline] for item in design.comparisons}


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def page(study: Study, paper: Mapping[str, float], header: str, figures: list[str]) -> str:
    """The report in Markdown.

    Args:
        study: what was found.
        paper: per cent that preferred the paper's system, by baseline.
        header: provenance.
        figures: names of the figures that were drawn.
    """
    design, labels = study.answers.design, study.answers.design.systems
    lines = [
        f"<!-- {header} -->", "", "# Blind pairwise study", "",
        f"{len(study.answers.sessions)} sessions, {study.everyone.raters} raters who voted, "
        f"{study.everyone.votes} votes on main pairs; design `{study.answers.design_sha[:12]}`.",
        f"Intervals hold {100 * design.analysis.confidence:g} %, {design.analysis.replicates} "
        "resamples. A dash has its reason below its table or in its note.", "",
    ]  # fmt: skip
    lines += [f"![{name}](plots/{name}.png)\n" for name in figures]
    for title, found in zip(SETS, (study.kept, study.everyone), strict=True):
        lines += [f"## Preference: {title}", ""]
        rows = tables.preference_rows(design, found, labels, paper)
        lines += [tables.markdown_table(tables.HEAD, rows)]
        lines += [f"{text}  " for text in tables.reasons(found.preferences, called(study))]
        if found is study.kept:
            lines += [f"{tables.NOTE}", "", *_excluded(study), *_details(found, labels)]
    return "\n".join(lines).rstrip() + "\n"


def _excluded(study: Study) -> list[str]:
    raters = study.exclusions.raters
    lines = [
        "## Left out by the design's rules",
        "",
        f"{len(raters)} raters, and {len(study.exclusions.unwatched)} votes of the others that "
        "were given without watching both films. Nothing is deleted.",
        "",
    ]
    lines += [f"- `{name}`: {'; '.join(texts)}" for name, texts in sorted(raters.items())]
    return [*lines, ""] if raters else lines


def _details(found: Findings, labels: Mapping[str, str]) -> list[str]:
    again = found.consistency
    effect, share = found.pilot
    return [
        "## Strengths (Bradley-Terry with ties)", "",
        "Log-strength against ours, which stands at 0; below 0 ours is stronger.", "",
        tables.markdown_table(
            ("Question", "System", "Log-strength [interval]", "Tie between equals (%)", "Note"),
            tables.strength_rows(found.strengths, labels),
        ),
        "## Agreement of raters (Krippendorff's alpha)", "",
        tables.markdown_table(
            ("Question", "Note", "Pairs", "Nominal [interval]", "Interval [interval]"),
            tables.agreement_rows(found.nominal, found.interval),
        ),
        "## Sides", "",
        "Decisive votes for the side, whatever it showed; p over raters. 50 is no bias.", "",
        tables.markdown_table(
            ("Question", "Note", "Left", "Right", "Left (%) [interval]", "p"),
            tables.side_rows(found.sides),
        ),
        "## Repeated pairs", "",
        f"{again.repeated} answers to repeated pairs: {again.alike} alike, {again.moved} to or "
        f"from a tie, {again.turned} turned around.", "",
        "## Power", "",
        f"Design effect {DASH if effect is None else f'{effect:.2f}'}, decisive "
        f"{tables.percent(share)} % of votes asked for. Votes a comparison and question that find "
        "a true preference in four of five studies:", "",
        tables.markdown_table(
            ("True rate (%)", "Independent, decisive", "Votes to collect", "Holm's first step"),
            tables.power_rows(found),
        ),
    ]  # fmt: skip
