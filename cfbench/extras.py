"""What a report has beside scores: the forgetting curve, and events of its films.

Both are inputs of the report, as the records are, and lie in its folder ``inputs``.
"""

import csv
import gzip
import html
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cfbench.drawing import Drawing
from cfbench.errors import CfError
from cfbench.frame import Frame, build_frame
from cfbench.packed import pack
from cfbench.progress import Reporter
from cfbench.recall import FILE as RECALL
from cfbench.recall import Answer, answers, parsed
from cfbench.store import LocalStore, open_store, sha256_of, write_atomic
from cfbench.types import Tier

INPUTS = "inputs"
RECORDS, ANSWERS, EVENTS = "records.parquet", "recall.jsonl.gz", "events.json"
KINDS = ("flashback", "loop", "freeze")

Events = Mapping[str, Sequence[Mapping[str, Any]]]
"""Events by the hash of their film; a film without any has an empty list."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Answers of the recall probe, and events of films; either may be empty."""

    answers: tuple[Answer, ...] = ()
    events: Events = field(default_factory=dict[str, Sequence[Mapping[str, Any]]])

    def write(self, folder: Path) -> None:
        """Put both into a folder."""
        if self.answers:
            lines = sorted(answer.line() for answer in self.answers)
            write_atomic(folder / ANSWERS, gzip.compress("".join(lines).encode(), mtime=0))
        if self.events:
            text = json.dumps(self.events, indent=1, sort_keys=True)
            write_atomic(folder / EVENTS, f"{text}\n".encode())


def read(folder: Path) -> Extras:
    """What lies in a folder."""
    path = folder / EVENTS
    events = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    packed = folder / ANSWERS
    lines = gzip.decompress(packed.read_bytes()).decode() if packed.is_file() else ""
    return Extras(answers=tuple(parsed(lines)), events=events)


def write_inputs(folder: Path, store: LocalStore, tier: Tier, extras: Extras) -> dict[str, str]:
    """Records and extras into a folder, and the sha256 of each file there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pack(store, folder / RECORDS, tier)
    extras.write(folder)
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def find_events(frame: Frame, store: LocalStore, *, workers: int, reporter: Reporter) -> Events:
    """Flashbacks, loops and freezes of a run's stored films.

    Raises:
        CfError: a film that cannot be decoded.
    """
    from cfbench.analysis.run import FilmTask, events_of
    from cfbench.analysis.watch import look

    hashes = list(dict.fromkeys(run.clip.sha256 for run in frame.stored.runs))
    tasks = [FilmTask(store.path(sha, "mp4"), "") for sha in hashes]
    found = look(tasks, events_of, workers=workers, reporter=reporter)
    return dict(zip(hashes, found, strict=True))


def gather(
    root: Path,
    tier: Tier,
    *,
    recall: Path | None,
    events: bool,
    workers: int,
    reporter: Reporter,
) -> Extras:
    """The extras that a report of a store is asked for.

    Args:
        root: of the store.
        tier: whose scores are reported.
        recall: folder of answers, or None.
        events: whether its films are looked through.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: no answers there, no store, or a film that cannot be decoded.
    """
    asked = () if recall is None else tuple(answers(recall))
    if recall is not None and not asked:
        raise CfError(f"no answers in {recall / RECALL}; run cfbench recall --out {recall} first")
    if not events:
        return Extras(answers=asked)
    store = open_store(root)
    frame = build_frame(store.runs(), store.scores(), tier)
    found = find_events(frame, store, workers=workers, reporter=reporter)
    return Extras(answers=asked, events=found)


def texts(extras: Extras, frame: Frame, header: str) -> dict[str, str]:
    """Tables of the extras by their path under the report."""
    found: dict[str, str] = {}
    if extras.events:
        found["tables/events.csv"] = _events_csv(extras.events, frame, header)
    if extras.answers:
        tree = json.dumps(_curve(extras), indent=2, sort_keys=True)
        found["tables/forgetting.json"] = f"{tree}\n"
    return found


def _curve(extras: Extras) -> dict[str, Any]:
    from cfbench.recall_run import tree_of

    return tree_of(extras.answers)


def _events_csv(events: Events, frame: Frame, header: str) -> str:
    out = io.StringIO()
    out.write(f"# {header}\n")
    writer = csv.writer(out, lineterminator="\n")
    names = ("kind", "start_s", "end_s", "score", "period_s")
    writer.writerow(["system", "prompt", "seed", *names])
    for run in frame.runs:
        for event in events.get(run.clip.sha256, ()):
            cells = ["" if event[name] is None else event[name] for name in names]
            writer.writerow([run.system, run.prompt_id, run.seed, *cells])
    return out.getvalue()


def drawings(extras: Extras, folder: Path) -> list[Drawing]:
    """Pictures of the extras."""
    from cfbench.recall_plot import forgetting

    if not extras.answers:
        return []
    tree = _curve(extras)
    return [partial(forgetting, folder / "forgetting", tree, tree["labels"])]


def sections(extras: Extras, frame: Frame, titles: Mapping[str, str]) -> list[tuple[str, str]]:
    """Title and HTML of what is told of events, a row for each system.

    Args:
        extras: the events.
        frame: the report's films.
        titles: labels of its systems, in the tables' order.
    """
    if not extras.events:
        return []
    heads = "".join(f"<th>{kind}s</th>" for kind in KINDS)
    lines = [f"<table><thead><tr><th></th><th>films</th>{heads}</tr></thead><tbody>"]
    for system, title in titles.items():
        runs = frame.where(system=system).runs
        seen = [extras.events[r.clip.sha256] for r in runs if r.clip.sha256 in extras.events]
        cells = "".join(f"<td>{_told(seen, kind)}</td>" for kind in KINDS)
        count = f"{len(seen)}/{len(runs)}"
        lines.append(f"<tr><th>{html.escape(title)}</th><td>{count}</td>{cells}</tr>")
    lines.append("</tbody></table>")
    note = (
        "How many of each, and in brackets in how many films. Texts that turn the camera back ask "
        "for a return: one that jumps there is a flashback, one at the pace of a camera is none. A "
        "still scene is a freeze by this rule, in rendered films too. "
        '<a href="tables/events.csv">csv</a>'
    )
    return [("Flashbacks, loops, freezes", "\n".join([*lines, f'<p class="note">{note}</p>']))]


def _told(films: Sequence[Sequence[Mapping[str, Any]]], kind: str) -> str:
    counts = [sum(event["kind"] == kind for event in film) for film in films]
    return f"{sum(counts)} ({sum(count > 0 for count in counts)})"
