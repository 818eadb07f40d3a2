"""The verb that analyses a study. ``cli`` gives it its name, ``cfbench study analyse``."""

from pathlib import Path
from typing import Annotated

import typer

from cfbench.options import Json, typed
from cfbench.output import say


def analyse(
    export: Annotated[Path, typer.Argument(help="folder of cfbench study export, or of the study")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    design: Annotated[
        Path | None, typer.Option(help="the study's design.json; default lies in the export")
    ] = None,
    paper: Annotated[bool, typer.Option(help="the paper's printed values beside")] = True,
    as_json: Json = False,
) -> None:
    """Preference with intervals, tests, ties, agreement, bias and power: tables and figures."""
    from cfbench.provenance import words
    from cfbench.report import paper_folder
    from cfbench.study.analysis_page import write_analysis

    header = f"commit {words()}; command {typed()}"
    found = write_analysis(
        export, out, design=design, paper=paper_folder() if paper else None, header=header
    )
    say(found, as_json)
