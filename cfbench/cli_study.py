"""Verbs of the blind user study. ``cli`` gives them their name, ``cfbench study``."""

from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import INCOMPLETE, CfError
from cfbench.options import Json
from cfbench.output import say

app = typer.Typer(help="A blind pairwise study of films.", no_args_is_help=True)

StudyFolder = Annotated[Path, typer.Option("--study", help="folder of the study")]
STUDY_DEFAULT = Path("out/study")


@app.command()
def build(
    run: Annotated[Path, typer.Option("--out", help="folder of cfbench run, with its films")],
    study: StudyFolder = STUDY_DEFAULT,
    design: Annotated[
        Path | None, typer.Option(help="JSON file: comparisons, questions, prompts, blocks, ...")
    ] = None,
) -> None:
    """Makes films alike, decides who is asked what, and seals both before the first vote."""
    from cfbench.study import design as designs

    spec = designs.Spec() if design is None else designs.read_spec(design)
    made = designs.build(run, study, spec)
    _, sealed = designs.load(study)
    say({"study": str(study), "pairs": len(made.pairs), "films": len(made.media),
         "design": sealed}, False)  # fmt: skip


@app.command()
def serve(
    study: StudyFolder = STUDY_DEFAULT,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 7860,
    page: Annotated[bool, typer.Option(help="the raters' page, not the routes alone")] = True,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="a proxy on this machine names the raters")
    ] = False,
) -> None:
    """Shows the study to raters until it is stopped; start it again to go on."""
    from cfbench.study.serve import serve as run

    run(study, host, port, with_page=page, behind_proxy=behind_proxy)


@app.command()
def status(study: StudyFolder = STUDY_DEFAULT, as_json: Json = False) -> None:
    """Votes a cell, blind to what was answered; also while the study runs."""
    from cfbench.study.export import status as count

    say(count(study), as_json)


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="folder to write")],
    study: StudyFolder = STUDY_DEFAULT,
    as_json: Json = False,
) -> None:
    """Writes votes and sessions as CSV, JSONL and Parquet, and the key that names the systems."""
    from cfbench.study.export import export as write

    say(write(study, to), as_json)


@app.command()
def trial(
    raters: Annotated[int, typer.Option(help="who vote in the same moment", min=1)] = 200,
    rounds: Annotated[int, typer.Option(help="of SIGKILL under load", min=1)] = 50,
    port: Annotated[int, typer.Option(help="port of the trial's server")] = 7861,
    seed: Annotated[int, typer.Option(help="of the moments of killing")] = 0,
    to: Annotated[Path, typer.Option(help="file to write")] = Path("results/speed/study.json"),
) -> None:
    """Load and faults: 200 raters at once, servers killed under load, votes counted (JSON)."""
    from cfbench.study.trial import trial as run

    found = run(raters, rounds, port, seed, to)
    say(found, True)
    if found["votes_lost"] or not found["rebuilt_equal"]:
        raise CfError("votes were lost, or the mirror differs from the database", INCOMPLETE)
