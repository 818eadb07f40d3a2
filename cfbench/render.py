"""A table as Markdown, LaTeX (booktabs) and HTML, with bold bests, intervals and footnotes."""

import html
from collections.abc import Sequence

from cfbench.frame import Estimate
from cfbench.stats import p_text
from cfbench.tables import Difference, Table, best_rows, footnotes

DASH = "\N{EN DASH}"
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


def _number(cell: Estimate) -> str:
    return DASH if cell.mean.value is None else f"{100 * cell.mean.value:.1f}"


def _bounds(cell: Estimate) -> str:
    if cell.mean.low is None or cell.mean.high is None:
        return ""
    return f"[{100 * cell.mean.low:.1f}, {100 * cell.mean.high:.1f}]"


def _printed(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _count(cells: Sequence[Estimate]) -> str:
    expected = max((cell.expected for cell in cells), default=0)
    scored = min((cell.scored for cell in cells if cell.expected == expected), default=0)
    return f"{scored}/{expected}"


def markdown(table: Table) -> str:
    """The table as GitHub Markdown; the provenance is an HTML comment on the first line."""
    best = best_rows(table)
    numbers, texts = footnotes(table)
    paper = [f"{name} (paper)" for name in table.paper_columns]
    head = ["", "films", *table.columns, *paper]
    lines = [f"<!-- {table.header} -->", "", f"**{table.title}**", ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("|" + "|".join([":--", *["--:"] * (len(head) - 1)]) + "|")
    for index, row in enumerate(table.rows):
        mark = f" <sup>{numbers[row.system]}</sup>" if row.system in numbers else ""
        label = f"*{row.label}*" if row.is_reference else row.label
        fields = [label + mark, _count(row.cells)]
        for column, cell in enumerate(row.cells):
            number = _number(cell)
            number = f"**{number}**" if best[column] == index else number
            fields.append(f"{number} {_bounds(cell)}".strip())
        fields += [_printed(value) for value in row.paper]
        lines.append("| " + " | ".join(fields) + " |")
    lines.append("")
    lines += [f"<sup>{number}</sup> {text}.  " for number, text in enumerate(texts, 1)]
    lines += [f"{note}  " for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text).replace(DASH, "--")


def latex(table: Table) -> str:
    """The table as a LaTeX ``table`` with booktabs rules; needs ``booktabs`` and ``graphicx``."""
    best = best_rows(table)
    numbers, texts = footnotes(table)
    own, paper = len(table.columns), len(table.paper_columns)
    lines = [
        f"% {table.header}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape(table.title)}.}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * own}{'c' * paper}}}",
        r"\toprule",
    ]
    if paper:
        lines.append(
            rf"& \multicolumn{{{own}}}{{c}}{{This run}} & \multicolumn{{{paper}}}{{c}}{{Paper}} \\"
        )
        lines.append(rf"\cmidrule(lr){{2-{own + 1}}}\cmidrule(lr){{{own + 2}-{own + paper + 1}}}")
    names = [escape(name) for name in (*table.columns, *table.paper_columns)]
    lines += [" & ".join(["", *names]) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if row.is_reference and index and not table.rows[index - 1].is_reference:
            lines.append(r"\midrule")
        mark = rf"$^{{{numbers[row.system]}}}$" if row.system in numbers else ""
        fields = [escape(row.label) + mark]
        for column, cell in enumerate(row.cells):
            number = escape(_number(cell))
            number = rf"\textbf{{{number}}}" if best[column] == index else number
            bounds = _bounds(cell)
            fields.append(number + (rf" {{\scriptsize {bounds}}}" if bounds else ""))
        fields += [escape(_printed(value)) for value in row.paper]
        lines.append(" & ".join(fields) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\raggedright\footnotesize"]
    lines += [rf"$^{{{number}}}$ {escape(text)}.\\" for number, text in enumerate(texts, 1)]
    lines += [rf"{escape(note)}\\" for note in table.notes]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def html_differences(rows: Sequence[Difference]) -> str:
    """Paired differences as an HTML fragment, with what so many prompts can show."""
    heads = ("", "ours minus it", "p (Holm)", "pairs", "detectable", "prompts needed")
    lines = ["<table>", "<caption>Total, ours minus each system, same prompt and seed</caption>"]
    lines.append("<thead><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr></thead>")
    for row in rows:
        mean, power = row.paired.mean, row.power
        value = DASH if mean.value is None else f"{100 * mean.value:+.2f}"
        if mean.low is not None and mean.high is not None:
            value += f" <small>[{100 * mean.low:.2f}, {100 * mean.high:.2f}]</small>"
        seen = DASH if power is None else f"{100 * power.detectable:.2f}"
        needed = DASH if power is None or power.needed is None else str(power.needed)
        cells = (value, p_text(row.p_holm), f"{row.paired.scored}/{row.paired.expected}", seen)
        told = "".join(f"<td>{cell}</td>" for cell in (*cells, needed))
        lines.append(f"<tr><th>{html.escape(row.label)}</th>{told}</tr>")
    lines.append("</table>")
    note = (
        "Detectable: the smallest true difference that so many prompts find in four of five "
        "studies; prompts needed: to find the difference seen here. Both allow for all systems "
        "being compared together, and both need five prompts."
    )
    return "\n".join([*lines, f'<p class="note">{note}</p>'])


def html_table(table: Table) -> str:
    """The table as an HTML fragment: no provenance, classes ``best`` and ``reference``."""
    best = best_rows(table)
    numbers, texts = footnotes(table)
    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>", "<thead>"]
    if table.paper_columns:
        lines.append(
            f'<tr><th colspan="2"></th><th colspan="{len(table.columns)}">this run</th>'
            f'<th colspan="{len(table.paper_columns)}">paper</th></tr>'
        )
    names = ["", "films", *table.columns, *table.paper_columns]
    lines += ["<tr>", *(f"<th>{html.escape(name)}</th>" for name in names), "</tr></thead><tbody>"]
    for index, row in enumerate(table.rows):
        mark = f"<sup>{numbers[row.system]}</sup>" if row.system in numbers else ""
        kind = ' class="reference"' if row.is_reference else ""
        lines.append(
            f"<tr{kind}><th>{html.escape(row.label)}{mark}</th><td>{_count(row.cells)}</td>"
        )
        for column, cell in enumerate(row.cells):
            kind = ' class="best"' if best[column] == index else ""
            bounds = f" <small>{_bounds(cell)}</small>" if _bounds(cell) else ""
            lines.append(f"<td{kind}>{_number(cell)}{bounds}</td>")
        lines += [f'<td class="paper">{_printed(value)}</td>' for value in row.paper]
        lines.append("</tr>")
    lines.append("</tbody></table>")
    notes = [f"<sup>{number}</sup> {html.escape(text)}." for number, text in enumerate(texts, 1)]
    notes += [html.escape(note) for note in table.notes]
    return "\n".join([*lines, *(f'<p class="note">{note}</p>' for note in notes)])
