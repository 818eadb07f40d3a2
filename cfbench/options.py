"""Options that verbs of ``cfbench`` have in common."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import CfError

Out = Annotated[Path, typer.Option(help="folder of films, records and reports")]
SuiteName = Annotated[str, typer.Option("--suite", help="scorer suite")]
Json = Annotated[bool, typer.Option("--json", help="result as JSON on stdout")]
To = Annotated[Path | None, typer.Option(help="folder to write; default is in --out")]
Workers = Annotated[int, typer.Option(help="processes; 0 is one a core")]
Attention = Annotated[str, typer.Option(help="auto, sdpa, flex or flash")]
NormaliserFile = Annotated[
    Path | None, typer.Option("--normaliser", help="another file than the suite's own")
]

SUITE_DEFAULT = "tiny"
OUT_DEFAULT = Path("out/bench")


def typed() -> str:
    """What was typed, for the record."""
    return shlex.join(["cfbench", *sys.argv[1:]])


def staff(workers: int) -> int:
    """Processes for a number that a user gave; 0 is one a core."""
    if workers < 0:
        raise CfError(f"--workers {workers}: expected 0 or more")
    return workers or os.cpu_count() or 1
