"""Verbs of VBench's standard suite: ``cfbench vbench-suite``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cfbench.errors import INCOMPLETE, CfError
from cfbench.output import say

app = typer.Typer(help="Films of VBench's standard suite, by name.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="of films under the package's names")]


@app.command()
def check(folder: Folder) -> None:
    """Which of the suite's films a folder holds (JSON); exit code 3 while some are missing."""
    from dataclasses import asdict

    from cfbench import standard
    from cfbench.prompts import vbench_suite

    found = standard.coverage(folder, vbench_suite())
    say(asdict(found), True)
    if found.missing:
        names = "; ".join(found.missing[:3])
        raise CfError(f"{len(found.missing)} films are missing: {names} ...", INCOMPLETE)


@app.command()
def link(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="run whose films these are")],
    system: Annotated[str, typer.Option(help="row; needed where the run has several")] = "",
) -> None:
    """Links a run's films of VBench's prompts under the package's names; samples by seed."""
    from cfbench import standard
    from cfbench.prompts import vbench_suite
    from cfbench.store import open_store

    store = open_store(out)
    runs = [run for run in store.runs() if system in ("", run.system, run.label)]
    found = standard.links(
        runs, vbench_suite(), lambda run: store.path(run.clip.sha256, "mp4").absolute()
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path)
    say({"films": len(found)}, True)


@app.command()
def static(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="folder of links to the first five static ones")],
    weights: Annotated[Path, typer.Option(help="folder laid out as the package's cache")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>")] = "cpu",
) -> None:
    """VBench's static filter over the films that flicker is scored on (JSON)."""
    from cfbench import standard
    from cfbench.prompts import vbench_suite
    from cfbench.scorers.vbench.static import judge

    still, few = judge(weights, device), dict[str, Any]()
    to.mkdir(parents=True, exist_ok=True)
    kept = 0
    for prompt in vbench_suite(standard.FLICKER):
        names = (standard.file_name(prompt.text, k) for k in range(standard.FLICKER_SAMPLES))
        there = [path for name in names if (path := folder / name).exists()]
        found = standard.first_static(there, still)
        for sample, path in enumerate(found):
            link = to / standard.file_name(prompt.text, sample)
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())
        kept += len(found)
        if len(found) < standard.SAMPLES:
            few[prompt.text] = len(found)
    say({"static": kept, "few": few}, True)
    if few:
        raise CfError(f"{len(few)} prompts have fewer than 5 static films", INCOMPLETE)


@app.command()
def totals(
    out: Annotated[Path, typer.Option(help="run whose films were scored by --suite vbench")],
) -> None:
    """Quality, Semantic and Total of a run's systems, null with what is missing (JSON).

    Beside them, under names of their own: ``quality_custom`` over the six dimensions that need no
    prompt of VBench's, and ``semantic_partial`` over those that there are.
    """
    from cfbench import standard
    from cfbench.store import open_store

    store = open_store(out)
    say(standard.totals(store.runs(), store.scores()), True)
