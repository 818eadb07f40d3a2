"""``cfbench``: verbs to functions. Heavy modules are imported by the verb that needs them."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from cfbench import (
    cli_films,
    cli_recall,
    cli_scale,
    cli_speed,
    cli_standard,
    cli_study,
    cli_study_analyse,
)
from cfbench.errors import INCOMPLETE, INTERRUPTED, USAGE, CfError
from cfbench.fanout import ATTEMPTS
from cfbench.options import (
    OUT_DEFAULT,
    SUITE_DEFAULT,
    SYSTEMS_DEFAULT,
    Address,
    Attempts,
    Attention,
    EngineName,
    JobLimit,
    Json,
    Limit,
    NormaliserFile,
    Out,
    Prompts,
    Seconds,
    Seeds,
    SuiteName,
    Systems,
    To,
    engine_of,
    typed,
)
from cfbench.output import say

if TYPE_CHECKING:
    from cfbench.types import Failure

log = logging.getLogger(__name__)

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises for options it does not know or cannot read."""

app = typer.Typer(
    name="cfbench",
    help="Makes films with every system, scores them, and reports.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Workers = Annotated[int, typer.Option(help="processes; 0 is one a GPU, or one a core")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>")]
Shard = Annotated[str, typer.Option(help="INDEX/COUNT: make only this part")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, do nothing")]


@app.command()
def generate(
    prompts: Prompts,
    systems: Systems = SYSTEMS_DEFAULT,
    limit: Limit = 0,
    seeds: Seeds = 1,
    seconds: Seconds = 60.0,
    out: Out = OUT_DEFAULT,
    workers: Workers = 0,
    device: Device = "auto",
    attention: Attention = "auto",
    shard: Shard = "0/1",
    engine: EngineName = "local",
    address: Address = "",
    attempts: Attempts = ATTEMPTS,
    job_limit: JobLimit = 0.0,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Makes the films that are missing; start it again to go on."""
    how = engine_of(engine, address, attempts, job_limit)
    from cfbench.run import make_films, make_plan, part_of, planned

    todo = make_plan(systems, prompts, limit, seeds, seconds)
    part = part_of(shard)
    if dry_run:
        say(planned(todo, out), as_json)
        return
    result, failed = make_films(todo, out, workers, device, attention, part, how)
    say(result, as_json)
    _finish(failed)


@app.command()
def measure(
    prompts: Prompts,
    systems: Systems = SYSTEMS_DEFAULT,
    limit: Limit = 0,
    seeds: Seeds = 1,
    seconds: Seconds = 60.0,
    suite: SuiteName = SUITE_DEFAULT,
    batch: Annotated[int, typer.Option(help="films made together; bytes depend on it")] = 1,
    out: Out = OUT_DEFAULT,
    workers: Workers = 0,
    device: Device = "auto",
    attention: Attention = "auto",
    shard: Shard = "0/1",
    engine: EngineName = "local",
    address: Address = "",
    attempts: Attempts = ATTEMPTS,
    job_limit: JobLimit = 0.0,
    as_json: Json = False,
) -> None:
    """Makes and scores the films that are missing, storing none; start it again to go on."""
    how = engine_of(engine, address, attempts, job_limit)
    from cfbench.run import make_plan, measure_films, part_of

    todo = make_plan(systems, prompts, limit, seeds, seconds)
    result, failed = measure_films(
        todo, out, suite=suite, batch=batch, workers=workers, device=device, attention=attention,
        part=part_of(shard), engine=how,
    )  # fmt: skip
    say(result, as_json)
    _finish(failed)


@app.command("protocol-gap")
def protocol_gap(
    prompts: Prompts = "32",
    system: Annotated[str, typer.Option(help="row: family/row or row")] = "tiny/ours",
    limit: Limit = 0,
    seeds: Seeds = 1,
    seconds: Seconds = 60.0,
    suite: SuiteName = SUITE_DEFAULT,
    workers: Workers = 0,
    device: Device = "auto",
    attention: Attention = "auto",
    to: Annotated[Path | None, typer.Option(help="JSON file to write too")] = None,
) -> None:
    """Scores of raw frames minus those of the same films as H.264 files (JSON)."""
    from cfbench.run import find_gap, make_plan

    todo = make_plan(system, prompts, limit, seeds, seconds)
    found = find_gap(
        todo, suite=suite, workers=workers, device=device, attention=attention, to=to,
        command=typed(),
    )  # fmt: skip
    say(found, True)


@app.command()
def score(
    out: Out = OUT_DEFAULT,
    suite: SuiteName = SUITE_DEFAULT,
    workers: Workers = 0,
    via: Annotated[
        str, typer.Option(help="native, or upstream: the vbench package, for --suite vbench")
    ] = "native",
    env: Annotated[Path, typer.Option(help="of vbench-env create")] = Path("out/vbench-env"),
    device: Annotated[str, typer.Option(help="of the vbench package")] = "cpu",
    features: Annotated[
        bool, typer.Option(help="keep what VBench's networks saw in --out/features")
    ] = True,
    engine: EngineName = "local",
    address: Address = "",
    attempts: Attempts = ATTEMPTS,
    job_limit: JobLimit = 0.0,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Scores the films that lack a score; start it again to go on."""
    how = engine_of(engine, address, attempts, job_limit)
    if via not in ("native", "upstream"):
        raise CfError(f"--via {via}: expected native or upstream")
    kind, _, folder = suite.partition(":")
    if via == "upstream" and kind != "vbench":
        raise CfError(f"--via upstream with --suite {suite}: expected vbench or vbench:FOLDER")
    if via == "upstream":
        suite = f"vbench-upstream:{folder}" if folder else "vbench-upstream"
    if dry_run:
        from cfbench import scorers
        from cfbench.score import missing
        from cfbench.store import open_store

        store = open_store(out)
        films = missing(store.runs(), store.scores(), scorers.load(suite).dimensions)
        say({"missing": len(films), "suite": suite}, as_json)
        return
    from cfbench.run import score_films, score_upstream

    if via == "upstream":
        result, failed = score_upstream(out, folder, env, device)
    else:
        result, failed = score_films(out, suite, workers, features, how)
    say(result, as_json)
    _finish(failed)


@app.command("vbench-env")
def vbench_env(
    action: Annotated[str, typer.Argument(help="create")],
    to: Annotated[Path, typer.Option(help="folder of the environment")] = Path("out/vbench-env"),
) -> None:
    """Makes an environment of its own for the vbench package, as a second opinion."""
    if action != "create":
        raise CfError(f"vbench-env {action!r}: expected create")
    from cfbench.vbench_env import create

    say({"python": str(create(to))}, False)


@app.command()
def verify(out: Out = OUT_DEFAULT, as_json: Json = False) -> None:
    """Checks hashes of films, coverage of scores and every line of the records."""
    from cfbench.store import open_store
    from cfbench.verify import verify as check

    report = check(open_store(out))
    say(report.tree(), as_json)
    if report.problems:
        raise CfError(f"{len(report.problems)} problems: " + "; ".join(report.problems), INCOMPLETE)


@app.command()
def compact(
    out: Out = OUT_DEFAULT,
    to: Annotated[
        Path | None, typer.Option(help="Parquet file of all scores to write, or folder with --by")
    ] = None,
    by: Annotated[str, typer.Option(help="columns that divide it: system,dimension")] = "",
    as_json: Json = False,
) -> None:
    """Puts a run's scores into partitioned Parquet, read faster; or all of them elsewhere."""
    from cfbench.compact import compact as write
    from cfbench.store import open_store

    if to is None:
        say({"scores": open_store(out).compact(), "out": str(out)}, as_json)
        return
    rows = write(open_store(out), to, [name for name in by.split(",") if name])
    say({"rows": rows, "table": str(to)}, as_json)


@app.command()
def pack(
    to: Annotated[Path, typer.Option(help="Parquet file to write")],
    out: Out = OUT_DEFAULT,
    suite: SuiteName = SUITE_DEFAULT,
    only: Annotated[str, typer.Option(help="systems to take, comma-separated; all if none")] = "",
    as_json: Json = False,
) -> None:
    """Writes what tables and curves read of a run, one row a film, to take elsewhere."""
    from cfbench.findings import tier_of
    from cfbench.packed import pack as write
    from cfbench.store import open_store

    count = write(open_store(out), to, tier_of(suite), [x for x in only.split(",") if x])
    say({"films": count, "table": str(to)}, as_json)


@app.command()
def unpack(
    table: Annotated[Path, typer.Argument(help="Parquet file of pack")],
    out: Out = OUT_DEFAULT,
    as_json: Json = False,
) -> None:
    """Makes a run of a packed table, without films; measure goes on from there."""
    from cfbench.packed import unpack as read

    say({"films": len(read(table, out).runs()), "out": str(out)}, as_json)


@app.command()
def report(
    out: Out = OUT_DEFAULT,
    to: To = None,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    paper: Annotated[bool, typer.Option(help="print the paper's values beside ours")] = True,
    readme: Annotated[
        Path | None, typer.Option(help="file whose table and picture are replaced too")
    ] = None,
    films: Annotated[bool, typer.Option(help="gallery and contact sheet too")] = True,
    recall: Annotated[Path | None, typer.Option(help="folder of cfbench recall")] = None,
    survey: Annotated[
        bool, typer.Option("--survey", help="what the films do: events, motion, drift, clips")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="make it again and compare, write nothing")
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes tables, plots, gallery and the page that holds them."""
    from cfbench.run import check_report, write_report

    if check:
        wrong = check_report(out, to or out, normaliser=normaliser)
        say({"differ": wrong}, as_json)
        if wrong:
            raise CfError(f"{', '.join(wrong)} differ; run cfbench report again", INCOMPLETE)
        return
    result = write_report(
        out,
        to or out,
        suite=suite,
        normaliser=normaliser,
        paper=paper,
        command=typed(),
        readme=readme,
        films=films,
        recall=recall,
        survey_films=survey,
    )
    say(result, as_json)


@app.command()
def curves(
    out: Out = OUT_DEFAULT,
    to: To = None,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    as_json: Json = False,
) -> None:
    """Writes the time curves alone."""
    from cfbench.run import write_curves

    folder = to or out / "curves"
    result = write_curves(out, folder, suite=suite, normaliser=normaliser, command=typed())
    say(result, as_json)


@app.command()
def gallery(
    out: Out = OUT_DEFAULT,
    to: To = None,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    as_json: Json = False,
) -> None:
    """Writes the page that plays systems side by side, alone."""
    from cfbench.run import write_gallery

    folder = to or out / "gallery"
    result = write_gallery(out, folder, suite=suite, normaliser=normaliser, command=typed())
    say(result, as_json)


@app.command()
def claims(
    out: Out = OUT_DEFAULT,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    to: Annotated[Path | None, typer.Option(help="list of figures to record them in")] = None,
    as_json: Json = False,
) -> None:
    """Figures of a store's films: attributes, motion beside truth, differences from ours."""
    from cfbench.run import find_claims, record_claims

    found = find_claims(out, suite=suite, normaliser=normaliser)
    if to is not None:
        record_claims(found, to, root=out, command=typed())
    say({claim.name: claim._asdict() if as_json else claim.value for claim in found}, as_json)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="lower case with underscores")],
    command: Annotated[list[str], typer.Argument(help="after --: what prints it as JSON")],
    key: Annotated[list[str], typer.Option(help="name on the way to the number; repeatable")],
    unit: Annotated[str, typer.Option(help="of the number")],
    target: Annotated[str, typer.Option(help="'<= 10', '>= 0.98' or '0.75 to 1.25'")] = "",
    source: Annotated[
        Path | None, typer.Option("--from", help="file it wrote elsewhere; nothing is run then")
    ] = None,
    device: Annotated[str, typer.Option(help="what it ran on")] = "cpu",
    to: Annotated[Path, typer.Option(help="list of figures")] = Path("results/figures.json"),
) -> None:
    """Runs a command and records a number of its JSON among the figures."""
    from cfbench.run import record_figure

    if source is not None and not source.is_file():
        raise CfError(f"no file {source}; name what the command wrote")
    made = record_figure(
        name, key, command, unit=unit, target=target, to=to, source=source, device=device
    )
    say({"figure": made.name, "value": made.value, "target": target, "met": made.is_met}, False)


@app.command()
def run(
    prompts: Prompts = "2",
    systems: Systems = SYSTEMS_DEFAULT,
    limit: Limit = 0,
    seeds: Seeds = 1,
    seconds: Seconds = 60.0,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    out: Out = OUT_DEFAULT,
    workers: Workers = 0,
    device: Device = "auto",
    attention: Attention = "auto",
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Films, scores and report in one; start it again to go on."""
    from cfbench.run import (
        check_suite,
        make_films,
        make_plan,
        planned,
        score_films,
        write_report,
    )

    todo = make_plan(systems, prompts, limit, seeds, seconds)
    check_suite(suite, normaliser)
    if dry_run:
        say(planned(todo, out), as_json)
        return
    log.info("1 of 3: films")
    films, failed = make_films(todo, out, workers, device, attention, (0, 1))
    log.info("2 of 3: scores")
    scores, unscored = score_films(out, suite, workers)
    log.info("3 of 3: report")
    page = write_report(out, out, suite=suite, normaliser=normaliser, paper=True, command=typed())
    say({"films": films, "scores": scores, "report": page}, as_json)
    _finish((*failed, *unscored))


app.command()(cli_films.events)
app.command("events-check")(cli_films.events_check)
app.command()(cli_films.drift)
app.command()(cli_films.motion)
app.command()(cli_films.survey)
app.command()(cli_films.consistency)
app.command()(cli_films.compare)
app.command()(cli_recall.recall)
app.command("recall-films")(cli_recall.recall_films)
app.add_typer(cli_speed.app, name="speed")
app.add_typer(cli_standard.app, name="vbench-suite")
cli_study.app.command()(cli_study_analyse.analyse)
app.add_typer(cli_study.app, name="study")
app.command()(cli_scale.plan)
app.command("plan-paper")(cli_scale.plan_paper)
app.command()(cli_scale.status)
app.command("speed-scale")(cli_scale.speed_scale)
app.command("trial-faults")(cli_scale.trial_faults)
app.command("trial-overhead")(cli_scale.trial_overhead)


def main() -> None:
    """The ``cfbench`` script: input errors become one line and exit code 2, gaps 3."""
    # Workers share the cores; sums in one order make results independent of how many there are.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Torch asks for large pages: a tenth of the time of convolutions on a CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    for package in ("cfbench", "cfmodel"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        _fail(f"{cast(Any, error).format_message()}; see cfbench --help", USAGE, error)
    except CfError as error:
        _fail(str(error), error.exit_code, error)
    except ValueError as error:
        log.debug("input error", exc_info=True)
        _fail(str(error), USAGE, error)
    except (KeyboardInterrupt, typer.Abort) as error:
        _fail("interrupted; the same command goes on from here", INTERRUPTED, error)
    else:
        raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    sys.stderr.write(f"cfbench: {' '.join(message.split())}\n")
    raise SystemExit(code) from error


def _finish(failed: "tuple[Failure, ...]") -> None:
    if failed:
        lines = [f"{f.system} {f.prompt_id} seed {f.seed}: {f.reason}" for f in failed]
        raise CfError(f"{len(failed)} films failed: " + "; ".join(lines), INCOMPLETE)
