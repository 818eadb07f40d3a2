"""The report as one static page beside its files: relative links, no request anywhere."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfbench.render import html_table
from cfbench.tables import Table

PLOTS: Mapping[str, str] = {
    "contact-sheet": "Films",
    "time": "Against time",
    "forgetting": "The forgetting curve: shown once, left, asked for",
    "context-length": "Quality against context length",
    "dimensions": "All dimensions",
    "differences": "Paired differences",
    "events": "Flashbacks, loops and freezes, a line a film",
    "drift": "Drift of exposure, saturation and sharpness",
    "time-dino-first": "Similarity to the first frame, by system",
    "time-clip-f": "Similarity to the first frame, text-aligned features, by system",
    "time-clip-t": "Similarity to the text, by system",
}


def fill(template: str, parts: Mapping[str, str]) -> str:
    """``template`` with each ``{{name}}`` replaced; the parts themselves are not looked into.

    Raises:
        ValueError: the template names a part that is not given.
    """
    pieces = template.split("{{")
    done = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        if name not in parts:
            raise ValueError(f"template names {name!r}; expected one of {sorted(parts)}")
        done.append(parts[name] + rest)
    return "".join(done)


def _files(table: Table) -> str:
    links = [
        f'<a href="tables/{table.name}.{suffix}">{suffix}</a>' for suffix in ("csv", "md", "tex")
    ]
    return f'<p class="note">{" ".join(links)}</p>'


def render_page(
    template: str,
    out: Path,
    tables: Sequence[Table],
    *,
    warnings: Sequence[str],
    facts: Mapping[str, str],
    tier: str,
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """The page's HTML.

    Args:
        template: with ``{{title}}``, ``{{lead}}`` and ``{{body}}``.
        out: the report's folder; of the plots, those that exist there are shown.
        tables: the first stands on top, the others at the end.
        warnings: shown above everything.
        facts: provenance by name.
        tier: whose scores these are.
        sections: titles and HTML of what stands between pictures and further tables.
    """
    body = [f'<p class="warning">{html.escape(text)}</p>' for text in warnings]
    main, *others = tables
    body += [f'<div class="scroll">{html_table(main)}</div>', _files(main)]
    if (out / "gallery" / "index.html").is_file():
        body.append('<p><a href="gallery/index.html">All films side by side, in step</a></p>')
    for name, title in PLOTS.items():
        if not (out / "plots" / f"{name}.png").is_file():
            continue
        body.append(f"<h2>{html.escape(title)}</h2>")
        body.append(
            f'<p><img src="plots/{name}.png" alt="{html.escape(title)}" loading="lazy"></p>'
        )
        body.append(f'<p class="note"><a href="plots/{name}.pdf">pdf</a></p>')
    for title, content in sections:
        body += [f"<h2>{html.escape(title)}</h2>", content]
    body.append("<h2>Further tables</h2>")
    for table in others:
        body += [f'<div class="scroll">{html_table(table)}</div>', _files(table)]
    extra = ("differences.csv", "curves.csv", "events.csv", "films.csv", "scores.parquet")
    given = [f"tables/{name}" for name in extra if (out / "tables" / name).is_file()]
    given += [f"inputs/{path.name}" for path in sorted((out / "inputs").glob("*"))]
    links = " ".join(f'<a href="{name}">{Path(name).name}</a>' for name in given)
    body.append(f"<h2>Data</h2><p>{links}</p><h2>Provenance</h2><dl>")
    body += [f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()]
    body.append("</dl>")
    lead = (
        f"{tier}-tier scores, aggregated by VBench's rule; they are not VBench scores. "
        "Every number is x100."
    )
    return fill(template, {"title": "Benchmark report", "lead": lead, "body": "\n".join(body)})
