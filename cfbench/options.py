"""Options that verbs of ``cfbench`` have in common."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="folder of films, records and reports")]
SuiteName = Annotated[str, typer.Option("--suite", help="scorer suite")]
Json = Annotated[bool, typer.Option("--json", help="result as JSON on stdout")]
To = Annotated[Path | None, typer.Option(help="folder to write; default is in --out")]
NormaliserFile = Annotated[
    Path | None, typer.Option("--normaliser", help="another file than the suite's own")
]

SUITE_DEFAULT = "tiny"
OUT_DEFAULT = Path("out/bench")


def typed() -> str:
    """What was typed, for the record."""
    return shlex.join(["cfbench", *sys.argv[1:]])
