"""The paper's printed tables as they stand in ``results/paper``, for a page."""

import csv
import html
from collections.abc import Mapping
from pathlib import Path

TITLES: Mapping[str, str] = {
    "table1.csv": "Table 1: consistency of 60 s films",
    "table2.csv": "Table 2: VBench at 5 s and 60 s",
    "table3.csv": "Table 3: ablations at 60 s",
    "user_study.csv": "User study",
    "independent.csv": "Independent measurements of the released checkpoint",
}
MARK = "<sup>\N{DAGGER}</sup>"
NOTE = (
    f"{MARK} breaks VBench's own rule, Total = (4 Quality + Semantic) / 5, by more than 0.02; "
    "the column of totals by formula is ours."
)
BREAKS = "breaks_formula"


def broken(row: Mapping[str, str]) -> set[str]:
    """Columns of a row whose Total does not follow from its Quality and Semantic.

    Example:
        >>> broken({"total_60s": "83.64", "breaks_formula_60s": "yes", "breaks_formula_5s": "no"})
        {'total_60s'}
    """
    marks = {name for name, text in row.items() if name.startswith(BREAKS) and text == "yes"}
    return {f"total{name.removeprefix(BREAKS)}" for name in marks}


def sections(folder: Path) -> list[tuple[str, str]]:
    """Title and HTML of every table in a folder."""
    return [(title, _table(folder / name)) for name, title in TITLES.items()]


def _table(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if not name.startswith(BREAKS)]
    heads = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    lines = ['<div class="scroll"><table>', f"<thead><tr>{heads}</tr></thead><tbody>"]
    for row in rows:
        marked = broken(row)
        cells = [f"{html.escape(row[n])}{MARK if n in marked else ''}" for n in names]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    lines.append("</tbody></table></div>")
    if any(broken(row) for row in rows):
        lines.append(f'<p class="note">{NOTE}</p>')
    return "\n".join(lines)
