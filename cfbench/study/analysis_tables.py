"""Findings of a study as a JSON tree, CSV, Markdown and LaTeX. Shares are printed x100."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cfbench.render import DASH, escape
from cfbench.stats import Interval, p_text
from cfbench.study.findings import Findings, Study
from cfbench.study.preference import Preference, SideBias
from cfbench.study.tables import Comparison, Design
from cfbench.study.ties import Agreement, Strengths

Rows = list[list[str]]

HEAD = (
    "Against",
    "Question",
    "n",
    "Win",
    "Tie",
    "Loss",
    "Win rate [interval]",
    "Prompts",
    "p",
    "Holm",
)
CSV_HEAD = (
    "raters_counted", "comparison", "ours", "baseline", "question", "n", "win", "tie", "loss",
    "cannot", "raters", "prompts", "rate", "low", "high", "decisive_rate", "decisive_low",
    "decisive_high", "design_effect", "prompts_ours", "prompts_baseline", "prompts_even", "p",
    "p_holm", "prompts_needed", "paper", "reason",
)  # fmt: skip
NOTE = (
    "Win, tie and loss in per cent of the n judged votes. Win rate: ties count one half; interval "
    "by resampling raters and prompts together. Prompts: on which ours was preferred by most, and "
    "the other. p: exact two-sided sign test over these prompts; Holm over all rows."
)


def percent(value: float | None, digits: int = 1) -> str:
    """A share x100; a dash for none.

    Example:
        >>> percent(0.773)
        '77.3'
    """
    return DASH if value is None else f"{100 * value:.{digits}f}"


def bracketed(mean: Interval, scale: float = 100.0, digits: int = 1) -> str:
    """A value with its bounds, if it has them."""
    if mean.value is None:
        return DASH
    value = f"{scale * mean.value:.{digits}f}"
    if mean.low is None or mean.high is None:
        return value
    return f"{value} [{scale * mean.low:.{digits}f}, {scale * mean.high:.{digits}f}]"


def csv_table(study: Study, paper: Mapping[str, float], header: str) -> str:
    """Every comparison and question, and all questions pooled, for both sets of raters."""
    out = io.StringIO()
    out.write(f"# {header}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    comparisons = {item.name: item for item in study.answers.design.comparisons}
    for name, found in (("kept", study.kept), ("all", study.everyone)):
        for row in (*found.preferences, *found.pooled):
            writer.writerow([name, *_csv_cells(row, comparisons[row.comparison], paper)])
    return out.getvalue()


def _csv_cells(row: Preference, item: Comparison, paper: Mapping[str, float]) -> list[str]:
    needed = None if row.power is None else row.power.needed
    counts = (row.n, row.win, row.tie, row.loss, row.cannot, row.raters, row.prompts)
    shares = [percent(value, 2) for value in (*row.rate.mean, *row.decisive.mean)]
    effect = row.rate.design_effect
    cells = [
        item.name, item.ours, item.baseline, row.question, *map(str, counts), *shares,
        "" if effect is None else f"{effect:.3f}", *map(str, row.sign[:3]),
        *("" if p is None else f"{p:.6f}" for p in (row.sign.p, row.p_holm)),
        "" if needed is None else str(needed), _paper(paper, item.baseline), row.rate.reason,
    ]  # fmt: skip
    return ["" if cell == DASH else cell for cell in cells]


def _paper(paper: Mapping[str, float], baseline: str) -> str:
    return f"{paper[baseline]:.1f}" if baseline in paper else ""


def preference_rows(
    design: Design, found: Findings, labels: Mapping[str, str], paper: Mapping[str, float]
) -> Rows:
    """Cells under ``HEAD``, the pooled row and the paper's behind those of its comparison."""
    rows: Rows = []
    for item in design.comparisons:
        mine = [row for row in found.preferences if row.comparison == item.name]
        pooled = [row for row in found.pooled if row.comparison == item.name]
        for row in (*mine, *pooled):
            label = row.question if row in mine else "all questions"
            shares = [percent(k / row.n) if row.n else DASH for k in (row.win, row.tie, row.loss)]
            prompts = f"{row.sign.ours}:{row.sign.baseline}"
            tests = [p_text(row.sign.p), p_text(row.p_holm)]
            rate = bracketed(row.rate.mean)
            rows.append([labels[item.baseline], label, str(row.n), *shares, rate, prompts, *tests])
        if item.baseline in paper:
            share = paper[item.baseline]
            values = [f"{share:.1f}", DASH, f"{100 - share:.1f}", f"{share:.1f}", DASH, DASH, DASH]
            rows.append([labels[item.baseline], "paper, as printed", DASH, *values])
    return rows


def reasons(rows: Sequence[Preference], labels: Mapping[str, str]) -> list[str]:
    """Why rows have no interval, one line a distinct reason.

    Args:
        rows: to look at.
        labels: what each comparison is called.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.rate.reason:
            found.setdefault(row.rate.reason, []).append(f"{labels[row.comparison]} {row.question}")
    return [f"No interval ({', '.join(names)}): {reason}." for reason, names in found.items()]


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    """A GitHub Markdown table; the first two columns are texts."""
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join([":--", ":--", *["--:"] * (len(head) - 2)]) + "|")
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def latex_table(rows: Rows, notes: Sequence[str], header: str) -> str:
    """The preference table with booktabs rules; needs ``booktabs`` and ``graphicx``."""
    lines = [
        f"% {header}",
        r"\begin{table}[t]",
        r"\centering",
        r"\caption{Blind pairwise preference for ours.}",
        r"\label{tab:preference}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{ll{'c' * (len(HEAD) - 2)}}}",
        r"\toprule",
        " & ".join(escape(name) for name in HEAD) + r" \\",
    ]
    last = ""
    for row in rows:
        if row[0] != last:
            lines.append(r"\midrule")
        last = row[0]
        lines.append(" & ".join(escape(cell).replace("<", "$<$") for cell in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\raggedright\footnotesize"]
    lines += [rf"{escape(note)}\\" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def strength_rows(found: Mapping[str, Strengths], labels: Mapping[str, str]) -> Rows:
    """Question, system, log-strength against ours, chance of a tie between equals."""
    rows: Rows = []
    for question, fit in found.items():
        if not fit.logs:
            rows.append([question, DASH, DASH, DASH, fit.reason])
            continue
        tie = None if fit.tie is None else fit.tie / (2 + fit.tie)
        for name, mean in list(fit.logs.items())[1:]:
            rows.append([question, labels[name], bracketed(mean, 1.0, 2), percent(tie), fit.reason])
    return rows


def agreement_rows(nominal: Mapping[str, Agreement], interval: Mapping[str, Agreement]) -> Rows:
    """Question, reason, units, both alphas."""
    return [
        [
            question,
            found.reason,
            str(found.units),
            bracketed(found.alpha, 1.0, 3),
            bracketed(interval[question].alpha, 1.0, 3),
        ]
        for question, found in nominal.items()
    ]


def side_rows(found: Mapping[str, SideBias]) -> Rows:
    """Question, reason, votes left and right, share of left, p."""
    return [
        [
            question,
            side.share.reason,
            str(side.left),
            str(side.right),
            bracketed(side.share.mean),
            p_text(side.p),
        ]
        for question, side in found.items()
    ]


def power_rows(found: Findings) -> Rows:
    """True rate among decisive votes, independent votes, votes to collect, at Holm's first step."""
    return [
        [
            percent(row.rate, 0),
            str(row.independent),
            DASH if row.votes is None else str(row.votes),
            DASH if row.adjusted is None else str(row.adjusted),
        ]
        for row in found.planned
    ]


def tree(study: Study, paper: Mapping[str, float], header: str) -> dict[str, Any]:
    """Everything that was found, as JSON; shares lie in [0, 1], the paper's in per cent."""
    design = study.answers.design
    return {
        "provenance": header,
        "design": study.answers.design_sha,
        "plan": plain(design.analysis),
        "comparisons": [plain(item) for item in design.comparisons],
        "excluded": {
            "raters": {name: list(texts) for name, texts in study.exclusions.raters.items()},
            "unwatched_votes": len(study.exclusions.unwatched),
        },
        "kept": plain(study.kept),
        "all": plain(study.everyone),
        "paper_percent": dict(paper),
    }


def plain(value: Any) -> Any:
    """Records as JSON trees: named tuples and dataclasses become objects.

    Example:
        >>> plain(Interval(0.5, None, None))
        {'value': 0.5, 'low': None, 'high': None}
    """
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(vars(value)[name]) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
