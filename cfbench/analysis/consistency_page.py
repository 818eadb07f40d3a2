"""Consistency over time of groups of films: looked at, put in tables beside the paper's, drawn."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfbench import plots, render, tables
from cfbench import prompts as prompt_sets
from cfbench.analysis.consistency import (
    CLIPS,
    MEASURES,
    Consistency,
    FilmTask,
    Segments,
    consistency_of,
    curves_of,
)
from cfbench.analysis.drifting import group_labels
from cfbench.analysis.watch import films_in, look
from cfbench.curves import TIMES_S, Curve
from cfbench.errors import CfError
from cfbench.frame import Estimate, current_runs
from cfbench.progress import Reporter
from cfbench.stats import Interval, mean_interval
from cfbench.store import open_store, write_atomic
from cfbench.tables import Paper, Row, Table

TITLES: Mapping[str, tuple[str, str]] = {
    "tiny": ("tiny place features", "tiny text-aligned features"),
    "reference": ("DINOv2 ViT-B/14", "CLIP ViT-B/32"),
}
WHOLE_FILM_S = 1e9
PAPER_NOTE = (
    "Paper: Context Forcing (arXiv:2602.06028), Table 1: five films each of 100 MovieGenBench "
    "prompts by a 1.3 B model; which DINOv2 and CLIP is not stated."
)


def tasks_of_run(root: Path, features: str) -> tuple[list[FilmTask], dict[str, str]]:
    """The stored films of a run, a group for each system; and the systems' labels.

    Raises:
        CfError: no run there, or one without stored films.
    """
    store = open_store(root)
    runs = [run for run in current_runs(store.runs()) if run.clip.is_stored]
    if not runs:
        raise CfError(f"no stored films in {root}; run cfbench generate first")
    texts = prompt_sets.stored(runs, lambda sha: store.path(sha, "json"))
    tasks = [
        FilmTask(
            store.path(run.clip.sha256, "mp4"),
            run.system,
            run.prompt_id,
            tuple((s.text, s.seconds) for s in texts[run.prompt_id].segments)
            if run.prompt_id in texts
            else (),
            features,
        )
        for run in runs
    ]
    return tasks, {run.system: run.label for run in runs}


def tasks_of_films(
    paths: Sequence[Path], texts: Mapping[str, str], features: str
) -> list[FilmTask]:
    """Films, a group for each path; films of equal stem are of one prompt.

    Raises:
        CfError: no film.
    """
    paths = list(dict.fromkeys(paths))
    tasks: list[FilmTask] = []
    for path, label in zip(paths, group_labels(paths), strict=True):
        for film in films_in([path]):
            text = texts.get(film.stem)
            segments: Segments = () if text is None else ((text, WHOLE_FILM_S),)
            tasks.append(FilmTask(film, label, film.stem, segments, features))
    return tasks


def read_texts(path: Path | None) -> dict[str, str]:
    """Texts by film stem: a JSON object, or a CSV with the columns film and text.

    Raises:
        ValueError: no such file, or something else in it.
    """
    if path is None:
        return {}
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return {str(stem): str(text) for stem, text in json.loads(content).items()}
        return {row["film"]: row["text"] for row in csv.DictReader(content.splitlines())}
    except (OSError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"--texts {path}: {error}; expected texts by film stem") from error


def find_consistency(
    paths: Sequence[Path],
    *,
    run: Path | None,
    texts: Path | None,
    features: str,
    workers: int,
    paper: Paper,
    to: Path | None,
    header: str,
) -> dict[str, Any]:
    """Consistency of groups of films as a JSON tree; tables and plot into a folder.

    Args:
        paths: films and folders of films, a group each; and
        run: whose systems are groups too.
        texts: texts of the films of ``paths``, for similarity to the text.
        features: see ``spaces.load``.
        workers: processes.
        paper: the paper's Table 1 by system, or empty.
        to: folder of tables and plot, or None.
        header: provenance, printed in the tables.

    Raises:
        CfError: no film, no weights, or films that cannot be decoded.
        ValueError: texts that cannot be read.
    """
    tasks, labels = ([], {}) if run is None else tasks_of_run(run, features)
    if paths:
        tasks += tasks_of_films(paths, read_texts(texts), features)
    if not tasks:
        raise CfError("name films, or a run with --run")
    with Reporter() as reporter:
        results = look(tasks, consistency_of, workers=workers, reporter=reporter)
    groups: dict[str, list[tuple[str, Consistency]]] = {}
    for task, result in zip(tasks, results, strict=True):
        groups.setdefault(task.group, []).append((task.cluster, result))
    by_group = {name: curves_of(name, films) for name, films in groups.items()}
    clips = {name: _clips(films) for name, films in groups.items()}
    if to is not None:
        _write(to, by_group, clips, labels, paper, features, header)
    return {
        "features": features,
        "groups": {
            name: {
                "films": len(groups[name]),
                "curves": {m: _curve_tree(c) for m, c in curves.items()},
                "clip_to_clip": {m: e.mean._asdict() for m, e in clips[name].items()},
            }
            for name, curves in by_group.items()
        },
    }


def _clips(films: Sequence[tuple[str, Consistency]]) -> dict[str, Estimate]:
    clusters, found = [cluster for cluster, _ in films], dict[str, Estimate]()
    for measure in CLIPS:
        values = np.array(
            [np.nan if (v := film.clips.get(measure)) is None else v for _, film in films],
            np.float64,
        )
        scored = int((~np.isnan(values)).sum())
        found[measure] = Estimate(
            mean=mean_interval(values, clusters),
            scored=scored,
            expected=len(films),
            reason="" if scored else "no weights, or films of less than two clips",
        )
    return found


def _curve_tree(curve: Curve) -> dict[str, Any]:
    return {
        f"{time:g}": {**mean._asdict(), "scored": scored, "expected": curve.expected}
        for time, mean, scored in zip(curve.times_s, curve.means, curve.scored, strict=True)
    }


def table_of(
    measure: str,
    by_group: Mapping[str, Mapping[str, Curve]],
    clips: Mapping[str, Mapping[str, Estimate]],
    labels: Mapping[str, str],
    paper: Paper,
    *,
    title: str,
    header: str,
) -> Table:
    """One measure at every time with its clip-to-clip consistency, the paper's values beside."""
    between = {"dino_first": "dino_clips", "clip_f": "clip_clips"}.get(measure)
    times = [f"{time:g} s" for time in TIMES_S]
    rows: list[Row] = []
    for name, label in tables.system_order(by_group).items():
        if name not in by_group:
            continue
        cells = _cells(by_group[name].get(measure))
        if between is not None:
            cells.append(clips[name][between])
        rows.append(
            Row(
                system=name,
                label=labels.get(name, label),
                is_reference=name in tables.REFERENCES,
                cells=tuple(cells),
                paper=tuple(paper.get(name, {}).get(f"{measure}_{t:g}s") for t in TIMES_S),
            )
        )
    note = (
        f"{title}. Means over the frames within 0.5 s; brackets: 95 % interval, resampling prompts "
        "(from 5 prompts on). Clips: consistency of the first frames of clips of 2 s, raw."
    )
    return Table(
        name=f"consistency-{measure.replace('_', '-')}",
        title=title,
        columns=(*times, "Clips") if between is not None else tuple(times),
        paper_columns=tuple(times) if paper else (),
        rows=tuple(rows),
        notes=(note, PAPER_NOTE) if paper else (note,),
        header=header,
    )


def _cells(curve: Curve | None) -> list[Estimate]:
    if curve is None:
        none = Estimate(mean=Interval(None, None, None), scored=0, expected=0, reason="no weights")
        return [none] * len(TIMES_S)
    return [
        Estimate(
            mean=mean, scored=scored, expected=curve.expected,
            reason="" if mean.value is not None else "films end before",
        )
        for mean, scored in zip(curve.means, curve.scored, strict=True)
    ]  # fmt: skip


def _write(
    to: Path,
    by_group: Mapping[str, Mapping[str, Curve]],
    clips: Mapping[str, Mapping[str, Estimate]],
    labels: Mapping[str, str],
    paper: Paper,
    features: str,
    header: str,
) -> None:
    places, told = TITLES[features.partition(":")[0]]
    titles = {
        "dino_first": f"Similarity to the first frame, {places}",
        "clip_f": f"Similarity to the first frame, {told}",
        "clip_t": f"Similarity to the text, {told}",
    }
    found = {m: [c[m] for c in by_group.values() if m in c] for m in MEASURES}
    for measure in [m for m in MEASURES if found[m]]:
        table = table_of(
            measure, by_group, clips, labels, paper, title=titles[measure], header=header
        )
        for suffix, text in (
            ("csv", tables.to_csv(table)), ("md", render.markdown(table)),
            ("tex", render.latex(table)),
        ):  # fmt: skip
            write_atomic(to / f"{table.name}.{suffix}", text.encode())
    plots.time_overview(to / "consistency", found, labels, printed=paper)


def consistency_told(found: Mapping[str, Any]) -> dict[str, str]:
    """Curves in words, by group and measure."""
    told: dict[str, str] = {}
    for group, tree in found["groups"].items():
        for measure, curve in tree["curves"].items():
            known = [f"{t} s {100 * c['value']:.1f}" for t, c in curve.items() if c["scored"]]
            told[f"{group} {measure}"] = ", ".join(known)
        known = [
            f"{measure} {100 * cell['value']:.1f}"
            for measure, cell in tree["clip_to_clip"].items()
            if cell["value"] is not None
        ]
        told[f"{group} clip to clip"] = ", ".join(known) or "no value"
    return told
