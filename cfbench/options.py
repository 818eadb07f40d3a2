"""Options that verbs of ``cfbench`` have in common."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import CfError
from cfbench.fanout import Engine

Out = Annotated[Path, typer.Option(help="folder of films, records and reports")]
SuiteName = Annotated[str, typer.Option("--suite", help="scorer suite")]
Json = Annotated[bool, typer.Option("--json", help="result as JSON on stdout")]
To = Annotated[Path | None, typer.Option(help="folder to write; default is in --out")]
Workers = Annotated[int, typer.Option(help="processes; 0 is one a core")]
Attention = Annotated[str, typer.Option(help="auto, sdpa, cudnn, flex or flash")]
NormaliserFile = Annotated[
    Path | None, typer.Option("--normaliser", help="another file than the suite's own")
]
Systems = Annotated[
    str,
    typer.Option(help="rows, comma-separated: family/row, row, or family/all; +path=value varies"),
]
Prompts = Annotated[
    str,
    typer.Option(help=".jsonl or .txt file, how many of the tiny test prompts, or vbench[:DIM]"),
]
Limit = Annotated[int, typer.Option(help="prompts to take, balanced over strata; 0 is all")]
Seeds = Annotated[int, typer.Option(help="films a prompt")]
Seconds = Annotated[float, typer.Option(help="length of a film")]
EngineName = Annotated[str, typer.Option("--engine", help="local processes, or ray")]
Address = Annotated[str, typer.Option(help="of the Ray cluster, or auto; none starts Ray here")]
JobLimit = Annotated[float, typer.Option(help="seconds until a job counts as hung; 0 is never")]
Attempts = Annotated[int, typer.Option(help="times that a job is tried in all")]

SUITE_DEFAULT = "tiny"
SYSTEMS_DEFAULT = "tiny/all"
OUT_DEFAULT = Path("out/bench")


def typed() -> str:
    """What was typed, for the record."""
    return shlex.join(["cfbench", *sys.argv[1:]])


def staff(workers: int) -> int:
    """Processes for a number that a user gave; 0 is one a core."""
    if workers < 0:
        raise CfError(f"--workers {workers}: expected 0 or more")
    return workers or os.cpu_count() or 1


def engine_of(name: str, address: str, attempts: int, job_limit: float) -> Engine:
    """The engine that options ask for.

    Raises:
        CfError: there is no such engine.
    """
    return Engine(name=name, address=address, attempts=attempts, limit_s=job_limit)
