"""What several verbs share: the whole chain in one call, and parts of the report on their own."""

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfbench import prompts as prompt_sets
from cfbench import provenance
from cfbench.aggregate import load_normaliser, suite_normaliser
from cfbench.errors import CfError
from cfbench.fanout import LOCAL, Engine
from cfbench.store import now, open_store, write_atomic
from cfbench.types import Tier

if TYPE_CHECKING:
    from cfbench.claims import Claim
    from cfbench.figures import Figure
    from cfbench.generate import Outcome
    from cfbench.plan import Plan
    from cfbench.score import Outcome as Scored
    from cfbench.types import Failure

log = logging.getLogger(__name__)

MOST_DRAWERS = 4
"""More processes start slower than they draw."""


def make_plan(systems: str, prompts: str, limit: int, seeds: int, seconds: float) -> "Plan":
    """The plan that options ask for.

    Raises:
        CfError: unknown systems, or prompts that cannot be read or taken.
    """
    from cfbench import plan as plans
    from cfbench.systems import check_prompts, describe

    found = prompt_sets.choose(prompts, limit)
    specs = describe([name.strip() for name in systems.split(",") if name.strip()])
    todo = plans.make(specs, found, seeds=seeds, seconds=seconds)
    for warning in check_prompts([spec.address for spec in specs], found):
        log.warning("%s", warning)
    return todo


def planned(todo: "Plan", out: Path) -> dict[str, Any]:
    """Which films a plan asks for and which of them a store lacks."""
    from cfbench import plan as plans
    from cfbench.generate import need_bytes

    left = plans.missing(todo.jobs, open_store(out, exists=False).done_ids())
    specs = {spec.address: spec for spec in todo.specs}
    return {
        "films": len(todo.jobs),
        "missing": len(left),
        "need_mb": round(need_bytes(left, specs) / 1e6, 1),
        "null": {row.system: row.reason for row in todo.null},
        "systems": {
            spec.name: sum(job.system == spec.address for job in left) for spec in todo.specs
        },
    }


def staff_of(engine: Engine, device: str, workers: int) -> tuple[list[str], Engine]:
    """The device of each worker, and the engine with the GPUs that each holds.

    Raises:
        CfError: no such device, here or in the cluster.
    """
    if engine.name == "ray":
        from cfbench import cluster

        found = cluster.devices(engine, device, workers)
    else:
        from cfbench.systems.cf import devices

        found = devices(device, workers)
    return found, replace(engine, gpus_each=int(not found[0].startswith("cpu")))


def make_films(
    todo: "Plan",
    out: Path,
    workers: int,
    device: str,
    attention: str,
    part: tuple[int, int],
    engine: Engine = LOCAL,
) -> tuple[dict[str, Any], "tuple[Failure, ...]"]:
    """Makes what is missing of a plan; what was done, and what failed."""
    from cfbench.generate import generate as make
    from cfbench.progress import Reporter

    found, engine = staff_of(engine, device, workers)
    with Reporter() as reporter:
        outcome = make(
            todo,
            out,
            devices=found,
            attention=attention,
            reporter=reporter,
            part=part,
            engine=engine,
        )
    return _made(todo, outcome), outcome.failed


def measure_films(
    todo: "Plan",
    out: Path,
    *,
    suite: str,
    batch: int,
    workers: int,
    device: str,
    attention: str,
    part: tuple[int, int],
    engine: Engine = LOCAL,
) -> tuple[dict[str, Any], "tuple[Failure, ...]"]:
    """Makes and scores what is missing of a plan; what was done, and what failed."""
    from cfbench.measure import measure
    from cfbench.progress import Reporter

    found, engine = staff_of(engine, device, workers)
    with Reporter() as reporter:
        outcome = measure(
            todo,
            out,
            suite_name=suite,
            devices=found,
            attention=attention,
            batch=batch,
            threads=max(1, (os.cpu_count() or 1) // len(found)),
            reporter=reporter,
            part=part,
            engine=engine,
        )
    return _made(todo, outcome), outcome.failed


def _made(todo: "Plan", outcome: "Outcome") -> dict[str, Any]:
    return {
        "made": outcome.made,
        "present": outcome.present,
        "failed": [asdict(failure) for failure in outcome.failed],
        "null": {row.system: row.reason for row in todo.null},
    }


def find_gap(
    todo: "Plan",
    *,
    suite: str,
    workers: int,
    device: str,
    attention: str,
    to: Path | None,
    command: str,
) -> dict[str, Any]:
    """The gap between raw frames and files on a plan's films, written to a file if one is named."""
    from cfbench.gap import protocol_gap
    from cfbench.progress import Reporter
    from cfbench.systems.cf import devices

    with Reporter() as reporter:
        found = protocol_gap(
            todo,
            suite_name=suite,
            devices=devices(device, workers),
            attention=attention,
            reporter=reporter,
        )
    found |= {"command": command, "commit": provenance.words()}
    if to is not None:
        write_atomic(to, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
    return found


def score_films(
    out: Path, suite: str, workers: int, features: bool = True, engine: Engine = LOCAL
) -> tuple[dict[str, Any], "tuple[Failure, ...]"]:
    """Scores what lacks scores; what was done, and what failed."""
    from cfbench.progress import Reporter
    from cfbench.score import score as measure

    found, engine = staff_of(engine, "cpu", workers)
    with Reporter() as reporter:
        outcome = measure(
            out, suite, workers=len(found), reporter=reporter, features=features, engine=engine
        )
    return _told(outcome), outcome.failed


def score_upstream(
    out: Path, folder: str, env: Path, device: str
) -> tuple[dict[str, Any], "tuple[Failure, ...]"]:
    """As ``score_films``, by the ``vbench`` package."""
    from cfbench.progress import Reporter
    from cfbench.upstream import score as ask

    with Reporter() as reporter:
        outcome = ask(out, folder, env, device=device, reporter=reporter)
    return _told(outcome), outcome.failed


def _told(outcome: "Scored") -> dict[str, Any]:
    return {
        "scored": outcome.scored,
        "present": outcome.present,
        "failed": [asdict(failure) for failure in outcome.failed],
    }


def part_of(text: str) -> tuple[int, int]:
    """Index and count of ``INDEX/COUNT``.

    Raises:
        CfError: another text.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise CfError(f"--shard {text!r}: expected INDEX/COUNT, as in 0/4")
    return int(index), int(count)


def tier_of(suite: str) -> Tier:
    """The tier whose scores a suite gives.

    Raises:
        CfError: unknown suite.
    """
    from cfbench import scorers

    return scorers.load(suite).dimensions[0].tier


def check_suite(suite: str, normaliser: Path | None) -> None:
    """Refuse early what scores or report would refuse after hours of films.

    Raises:
        ValueError: no normaliser ships for the suite, or the file is not one.
        CfError: unknown suite, or its networks are missing or damaged.
    """
    tier = tier_of(suite)
    if normaliser:
        load_normaliser(normaliser)
    else:
        suite_normaliser(tier)


def absent(root: Path) -> dict[str, str]:
    """Why systems have no films, by name: as planned, or because all of their films failed."""
    store = open_store(root)
    reasons: dict[str, str] = dict(store.plan()["null"])
    have = {run.system for run in store.runs()}
    for failure in store.failures():
        if failure.stage == "generate" and failure.system not in have:
            reasons.setdefault(failure.system, failure.reason)
    return reasons


def write_report(
    root: Path,
    to: Path,
    *,
    suite: str,
    normaliser: Path | None,
    paper: bool,
    command: str,
    readme: Path | None = None,
    films: bool = True,
    recall: Path | None = None,
    survey_films: bool = False,
) -> dict[str, Any]:
    """The whole report of a store; returns what was written, and the minutes that it took.

    Args:
        root: of the store.
        to: folder of the report.
        suite: whose scores.
        normaliser: another than the suite's own.
        paper: the paper's values too.
        command: printed in every table.
        readme: a file that gets table and picture.
        films: gallery and contact sheet too.
        recall: folder of ``cfbench recall``, whose curve is put in.
        survey_films: look at the films for what they do.

    Raises:
        ValueError: nothing to report, or no normaliser.
        CfError: no store there, no answers, or the disk refuses.
    """
    from cfbench.extras import gather
    from cfbench.progress import Reporter
    from cfbench.report import report

    began = time.monotonic()
    workers = min(os.cpu_count() or 1, MOST_DRAWERS)
    with Reporter() as reporter:
        beside = gather(
            root,
            tier_of(suite),
            recall=recall,
            survey_films=survey_films,
            workers=workers,
            reporter=reporter,
        )
        result = report(
            root,
            to,
            suite=tier_of(suite),
            paper=paper,
            command=command,
            commit=provenance.words(),
            absent=absent(root),
            normaliser=normaliser,
            readme=readme,
            films=films,
            beside=beside,
            workers=workers,
            reporter=reporter,
        )
    tree = {**asdict(result), "minutes": round((time.monotonic() - began) / 60, 2)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in tree.items()}


def check_report(root: Path, to: Path, *, normaliser: Path | None) -> list[str]:
    """Names of the report's files that are not as the records give them."""
    from cfbench.report import check

    return check(root, to, normaliser=normaliser)


def write_curves(
    root: Path, to: Path, *, suite: str, normaliser: Path | None, command: str
) -> dict[str, Any]:
    """The time curves alone, as CSV and plots.

    Raises:
        CfError: the suite has no dimension with a curve.
    """
    from cfbench import plots
    from cfbench.findings import analyse, table_texts

    analysis = analyse(
        open_store(root),
        suite=tier_of(suite),
        paper=False,
        header=f"commit {provenance.words()}; command {command}",
        absent=absent(root),
        normaliser=normaliser,
    )
    if not analysis.curves:
        raise CfError(f"suite {suite!r} scores no dimension over time; use another --suite")
    write_atomic(to / "curves.csv", table_texts(analysis)["tables/curves.csv"].encode())
    plots.time_overview(to / "time", analysis.curves, analysis.labels)
    points = {name: len(found) for name, found in analysis.curves.items()}
    return {"curves": points, "table": str(to / "curves.csv")}


def write_gallery(
    root: Path, to: Path, *, suite: str, normaliser: Path | None, command: str
) -> dict[str, Any]:
    """The gallery page alone."""
    from cfbench.findings import analyse
    from cfbench.gallery import build_gallery

    store = open_store(root)
    analysis = analyse(
        store,
        suite=tier_of(suite),
        paper=False,
        header=f"commit {provenance.words()}; command {command}",
        absent=absent(root),
        normaliser=normaliser,
    )
    page = build_gallery(
        to,
        analysis.frame,
        analysis.normaliser,
        prompts=prompt_sets.stored(store.runs(), lambda sha: store.path(sha, "json")),
        labels=analysis.labels,
        film_path=lambda sha: store.path(sha, "mp4"),
        tier=analysis.tier,
        header=analysis.header,
    )
    return {"page": str(page), "films": len(analysis.frame.runs)}


def find_claims(root: Path, *, suite: str, normaliser: Path | None) -> "list[Claim]":
    """Figures of a store's films.

    Raises:
        ValueError: no films of ours, or no normaliser.
        CfError: no store there.
    """
    from cfbench.claims import claims
    from cfbench.frame import build_frame

    store, tier = open_store(root), tier_of(suite)
    chosen = load_normaliser(normaliser) if normaliser else suite_normaliser(tier)
    return claims(build_frame(store.runs(), store.scores(), tier), chosen)


def record_claims(found: "Sequence[Claim]", path: Path, *, root: Path, command: str) -> None:
    """Figures into the list at ``path``, with where they come from."""
    from cfbench.figures import Figure, record

    runs = open_store(root).runs()
    devices = sorted({str(run.environment.get("device", "unknown")) for run in runs})
    for claim in found:
        record(
            path,
            Figure(
                **claim._asdict(), command=command, commit=provenance.words(),
                device=", ".join(devices), at=now(),
            ),
        )  # fmt: skip


def record_figure(
    name: str,
    keys: "Sequence[str]",
    command: "Sequence[str]",
    *,
    unit: str,
    target: str,
    to: Path,
    source: Path | None,
    device: str,
) -> "Figure":
    """A number that a command prints, into the list of figures.

    Args:
        name: of the figure.
        keys: where it stands in the command's JSON.
        command: run here, unless there is a source.
        unit: of the number.
        target: see ``Figure``.
        to: the list.
        source: a file that the command wrote elsewhere; the command is then noted, not run.
        device: what it ran on.

    Raises:
        ValueError: the command failed, or there is no such number.
    """
    import subprocess

    from cfbench.figures import Figure, number_in, record

    if source is not None:
        text, where = source.read_text(encoding="utf-8"), source.name
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(
                f"{command[0]} ended with exit code {done.returncode}; nothing recorded"
            )
        text, where = done.stdout, f"what {command[0]} printed"
    value, low, high = number_in(text, keys, where)
    figure = Figure(
        name=name, value=value, low=low, high=high, unit=unit, target=target, device=device,
        command=shlex.join(command), commit=provenance.words(), at=now(),
    )  # fmt: skip
    record(to, figure)
    return figure
