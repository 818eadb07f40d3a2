"""A page about two systems of a run: one file beside its films and figures, no request anywhere."""

import html
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from cfbench import prompts as prompt_sets
from cfbench.aggregate import load_normaliser, suite_normaliser
from cfbench.analysis.compare import TOTAL, Case, Comparison, Row, compare, hashes
from cfbench.analysis.draw import compare_curves, compare_forest
from cfbench.drawing import draw
from cfbench.frame import build_frame
from cfbench.gallery import link_films
from cfbench.page import fill
from cfbench.progress import Reporter
from cfbench.render import DASH
from cfbench.stats import Interval, p_text
from cfbench.store import open_store, write_atomic
from cfbench.tables import system_order
from cfbench.types import Prompt, Tier

FIGURES: Mapping[str, str] = {
    "curves": "Against time, and the difference",
    "differences": "Paired differences",
}


def write_comparison(
    root: Path,
    to: Path,
    systems: tuple[str, str],
    *,
    tier: Tier,
    normaliser: Path | None,
    header: str,
) -> dict[str, Any]:
    """Writes the page, its figures and its films under ``to``; what it says, as a JSON tree.

    Args:
        root: store of the run.
        to: folder of the page.
        systems: names of A and B.
        tier: whose scores.
        normaliser: another normaliser than the one that ships for the tier.
        header: provenance, printed at the end of the page.

    Raises:
        ValueError: see ``compare``; or no normaliser.
        CfError: no store there, or the disk refuses.
    """
    store = open_store(root)
    chosen = load_normaliser(normaliser) if normaliser else suite_normaliser(tier)
    frame = build_frame(store.runs(), store.scores(), tier)
    found = compare(frame, chosen, systems)
    order = system_order(frame.systems)
    recorded = {run.system: run.label for run in frame.runs}
    labels = (
        recorded.get(systems[0], order[systems[0]]),
        recorded.get(systems[1], order[systems[1]]),
    )
    paths = {run.clip.sha256: store.path(run.clip.sha256, "mp4") for run in frame.stored.runs}
    shown = hashes([*found.best, *found.worst])
    sources = link_films(to / "films", {sha: paths[sha] for sha in shown if sha in paths})
    drawings = [
        partial(compare_curves, to / "curves", found, labels),
        partial(compare_forest, to / "differences", found, labels),
    ]
    with Reporter(quiet=True) as reporter:
        draw(drawings, workers=1, reporter=reporter)
    texts = prompt_sets.stored(frame.runs, lambda sha: store.path(sha, "json"))
    page = render(found, labels, to=to, tier=tier, prompts=texts, sources=sources, header=header)
    write_atomic(to / "index.html", page.encode())
    return {"page": str(to / "index.html"), **tree(found)}


def tree(found: Comparison) -> dict[str, Any]:
    """The numbers of a comparison as JSON, on the scale of the scores (0 to 1)."""
    return {
        "systems": list(found.systems),
        "rows": {row.name: _row_tree(row) for row in found.rows},
        "best": [case.prompt for case in found.best],
        "worst": [case.prompt for case in found.worst],
    }


def _row_tree(row: Row) -> dict[str, Any]:
    return {
        **row.paired.mean._asdict(),
        "a": row.a,
        "b": row.b,
        "p_holm": row.p_holm,
        "scored": row.paired.scored,
        "expected": row.paired.expected,
        "power": None if row.power is None else row.power._asdict(),
    }


def render(
    found: Comparison,
    labels: tuple[str, str],
    *,
    to: Path,
    tier: str,
    prompts: Mapping[str, Prompt],
    sources: Mapping[str, str],
    header: str,
) -> str:
    """The page's HTML.

    Args:
        found: what to show.
        labels: of A and B.
        to: the page's folder; of the figures, those that exist there are shown.
        tier: whose scores these are.
        prompts: by id; one that is not there is shown by its id.
        sources: relative URL by film hash; a film that is not there is named as missing.
        header: provenance.
    """
    body = [_table(found.rows, labels), f'<p class="note">{html.escape(_power(found.rows))}</p>']
    for name, title in FIGURES.items():
        if (to / f"{name}.png").is_file():
            body.append(f"<h2>{html.escape(title)}</h2>")
            body.append(f'<p><img src="{name}.png" alt="{html.escape(title)}"></p>')
            body.append(f'<p class="note"><a href="{name}.pdf">pdf</a></p>')
    for title, cases in (("best", found.best), ("worst", found.worst)):
        if cases:
            heading = f"Prompts where {labels[0]} does {title} against {labels[1]}"
            body.append(f"<h2>{html.escape(heading)}</h2>")
            body += [_case(case, labels, prompts, sources) for case in cases]
    body.append(f'<p class="provenance">{html.escape(header)}</p>')
    lead = (
        f"{tier}-tier scores of films of equal prompt and seed, normalised, x100; they are not "
        "VBench scores. Brackets: 95 %, prompts resampled."
    )
    template = (resources.files("cfbench") / "static" / "compare.html").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(f"{labels[0]} against {labels[1]}"),
        "lead": html.escape(lead),
        "body": "\n".join(body),
    }
    return fill(template, parts)


def _table(rows: Sequence[Row], labels: tuple[str, str]) -> str:
    head = (
        f'<tr><th></th><th class="a">{html.escape(labels[0])}</th>'
        f'<th class="b">{html.escape(labels[1])}</th>'
        "<th>difference</th><th>p</th><th>films</th></tr>"
    )
    lines = [
        f"<tr><th>{html.escape(row.name.replace('_', ' '))}</th><td>{_number(row.a)}</td>"
        f"<td>{_number(row.b)}</td><td>{_bounds(row.paired.mean)}</td>"
        f"<td>{p_text(row.p_holm)}</td>"
        f"<td>{row.paired.scored}/{row.paired.expected}</td></tr>"
        for row in rows
    ]
    note = (
        '<p class="note">p: sign flips of prompts; of the dimensions adjusted by Holm over all of '
        "them, of the total its own. films: pairs scored of pairs expected.</p>"
    )
    table = f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>{note}'


def _number(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}"


def _bounds(mean: Interval) -> str:
    if mean.value is None:
        return DASH
    if mean.low is None or mean.high is None:
        return f"{100 * mean.value:+.1f}"
    return f"{100 * mean.value:+.1f} [{100 * mean.low:+.1f}, {100 * mean.high:+.1f}]"


def _power(rows: Sequence[Row]) -> str:
    total = next(row for row in rows if row.name == TOTAL)
    if total.power is None:
        return (
            f"Power: {total.paired.prompts} prompts are too few for an interval; make at least 5."
        )
    text = (
        f"Power: {total.power.prompts} prompts find a true difference of the total of "
        f"{100 * total.power.detectable:.1f} in four of five studies"
    )
    if total.power.needed is None:
        return f"{text}."
    return f"{text}; the one seen here would need {total.power.needed}."


def _case(
    case: Case, labels: tuple[str, str], prompts: Mapping[str, Prompt], sources: Mapping[str, str]
) -> str:
    prompt = prompts.get(case.prompt)
    text = prompt.text if prompt is not None else ""
    title = (
        f"{case.prompt}: {100 * case.difference:+.1f} over {case.seeds} "
        f"{'seed' if case.seeds == 1 else 'seeds'}, shown: seed {case.seed}"
    )
    films = [
        _film(label, total, sources.get(sha), side)
        for label, total, sha, side in zip(labels, case.totals, case.films, "ab", strict=True)
    ]
    return (
        f"<article><h3>{html.escape(title)}</h3><p>{html.escape(text)}</p>"
        f'<div class="films">{"".join(films)}</div>'
        '<button type="button">Play both</button></article>'
    )


def _film(label: str, total: float, source: str | None, side: str) -> str:
    caption = f'<figcaption class="{side}">{html.escape(label)}: {100 * total:.1f}</figcaption>'
    if source is None:
        return f'<figure>{caption}<p class="note">this film is not in the store</p></figure>'
    url = html.escape(source)
    film = f'<video src="{url}" preload="metadata" controls muted loop playsinline></video>'
    return f"<figure>{caption}{film}</figure>"
