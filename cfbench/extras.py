"""What a report has beside scores: the forgetting curve, and what its films do.

Both are inputs of the report, as the records are, and lie in its folder ``inputs``.
"""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cfbench.analysis import survey
from cfbench.analysis.survey import Behaviour
from cfbench.drawing import Drawing
from cfbench.errors import CfError
from cfbench.frame import Frame
from cfbench.packed import pack
from cfbench.progress import Reporter
from cfbench.recall import FILE as RECALL
from cfbench.recall import Answer, answers, parsed
from cfbench.store import LocalStore, open_store, sha256_of, write_atomic
from cfbench.tables import Table
from cfbench.types import Tier

INPUTS = "inputs"
RECORDS, ANSWERS, CHANGES = "records.parquet", "recall.jsonl.gz", "changes.json"
WITH_FEATURES: tuple[Tier, ...] = ("tiny",)
"""Tiers whose features ship, so that films' clips can be compared with each other."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Answers of the recall probe, and what films do; either may be empty.

    Args:
        answers: of the probe.
        films: what films do, by their hash.
        features: by which their clips were compared.
        changes: when the text changes, in seconds, by prompt.
    """

    answers: tuple[Answer, ...] = ()
    films: Mapping[str, Behaviour] = field(default_factory=dict[str, Behaviour])
    features: str = ""
    changes: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])

    def write(self, folder: Path) -> None:
        """Put both into a folder."""
        if self.answers:
            lines = sorted(answer.line() for answer in self.answers)
            write_atomic(folder / ANSWERS, gzip.compress("".join(lines).encode(), mtime=0))
        if self.films:
            survey.written(folder, self.films, self.features)
            text = json.dumps(
                {"features": self.features, "changes_s": self.changes}, sort_keys=True
            )
            write_atomic(folder / CHANGES, f"{text}\n".encode())


def read(folder: Path) -> Extras:
    """What lies in a folder."""
    path = folder / CHANGES
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changes = {name: tuple(times) for name, times in told.get("changes_s", {}).items()}
    features = told.get("features", "")
    packed = folder / ANSWERS
    lines = gzip.decompress(packed.read_bytes()).decode() if packed.is_file() else ""
    return Extras(
        answers=tuple(parsed(lines)),
        films=survey.read(folder, features),
        features=features,
        changes=changes,
    )


def write_inputs(folder: Path, store: LocalStore, tier: Tier, extras: Extras) -> dict[str, str]:
    """Records and extras into a folder, and the sha256 of each file there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pack(store, folder / RECORDS, tier)
    extras.write(folder)
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def gather(
    root: Path,
    tier: Tier,
    *,
    recall: Path | None,
    survey_films: bool,
    workers: int,
    reporter: Reporter,
) -> Extras:
    """The extras that a report of a store is asked for.

    Args:
        root: of the store.
        tier: whose scores are reported.
        recall: folder of answers, or None.
        survey_films: whether its films are looked at.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: no answers there, no store, or a film that cannot be decoded.
    """
    asked = () if recall is None else tuple(answers(recall))
    if recall is not None and not asked:
        raise CfError(f"no answers in {recall / RECALL}; run cfbench recall --out {recall} first")
    if not survey_films:
        return Extras(answers=asked)
    store, features = open_store(root), tier if tier in WITH_FEATURES else ""
    found = survey.survey(
        store, root / "survey", features=features, workers=workers, reporter=reporter
    )
    changes = survey.changes_of(store, survey.films_of(store))
    return Extras(answers=asked, films=found, features=features, changes=changes)


def behaviour(extras: Extras, frame: Frame, header: str) -> tuple[Table, ...]:
    """What films do, by system; no table where nobody looked."""
    if not extras.films:
        return ()
    labels = {run.system: run.label for run in frame.runs}
    return (survey.behaviour_table(frame.runs, extras.films, labels=labels, header=header),)


def texts(extras: Extras, frame: Frame, header: str) -> dict[str, str]:
    """Tables of the extras by their path under the report."""
    found: dict[str, str] = {}
    if extras.films:
        found["tables/events.csv"] = _events_csv(extras, frame, header)
    if extras.answers:
        tree = json.dumps(_curve(extras), indent=2, sort_keys=True)
        found["tables/forgetting.json"] = f"{tree}\n"
    return found


def _curve(extras: Extras) -> dict[str, Any]:
    from cfbench.recall_run import tree_of

    return tree_of(extras.answers)


def _events_csv(extras: Extras, frame: Frame, header: str) -> str:
    out = io.StringIO()
    out.write(f"# {header}\n")
    writer = csv.writer(out, lineterminator="\n")
    names = ("kind", "start_s", "end_s", "score", "period_s")
    writer.writerow(["system", "prompt", "seed", *names])
    for run in frame.runs:
        film = extras.films.get(run.clip.sha256)
        for event in () if film is None else film.events:
            cells = ["" if value is None else value for value in event]
            writer.writerow([run.system, run.prompt_id, run.seed, *cells])
    return out.getvalue()


def drawings(extras: Extras, frame: Frame, folder: Path) -> list[Drawing]:
    """Pictures of the extras."""
    from cfbench.analysis import survey_draw
    from cfbench.recall_plot import forgetting

    found: list[Drawing] = []
    if extras.answers:
        tree = _curve(extras)
        found.append(partial(forgetting, folder / "forgetting", tree, tree["labels"]))
    if extras.films:
        labels = {run.system: run.label for run in frame.runs}
        runs, films = frame.runs, extras.films
        found += [
            partial(
                survey_draw.event_lines, folder / "events", runs, films, labels, extras.changes
            ),
            partial(survey_draw.drift_by_system, folder / "drift", runs, films, labels),
        ]
    return found
