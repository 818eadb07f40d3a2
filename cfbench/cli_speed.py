"""Verbs of ``cfbench speed``: how long things take, beside those who do the same."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import CfError
from cfbench.output import say

app = typer.Typer(help="Timings beside others' programs.", no_args_is_help=True)

RESULTS = Path("results/speed/score.json")


@app.command()
def score(
    out: Annotated[Path, typer.Option(help="folder of films and weights made for it")] = Path(
        "out/speed-score"
    ),
    to: Annotated[Path, typer.Option(help="file of results, written as they come")] = RESULTS,
    label: Annotated[str, typer.Option(help="of this machine in the file")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>")] = "cpu",
    threads: Annotated[int, typer.Option(help="of torch, on both sides")] = 1,
    films: Annotated[int, typer.Option(help="films that both sides score")] = 2,
    seconds: Annotated[float, typer.Option(help="length of these films")] = 5.0,
    long_seconds: Annotated[float, typer.Option(help="of the film read without networks")] = 60.0,
    rounds: Annotated[int, typer.Option(help="times that reading is timed")] = 3,
    parts: Annotated[str, typer.Option(help="some of load,long,whole")] = "load,long,whole",
    upstream_python: Annotated[
        Path, typer.Option(help="interpreter with the vbench package: of vbench-env create")
    ] = Path("out/vbench-env/bin/python"),
    upstream_here: Annotated[
        Path | None, typer.Option(help="folder of unpacked wheels; this interpreter runs them")
    ] = None,
    dino: Annotated[
        Path | None, typer.Option(help="checkout of facebookresearch/dino; else no subject")
    ] = None,
    minutes: Annotated[float, typer.Option(help="stop after; the same command goes on")] = 0.0,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="make the films, time nothing")
    ] = False,
    take: Annotated[
        Path | None, typer.Option("--from", help="file of another machine to take over")
    ] = None,
) -> None:
    """Times VBench's prompt-free dimensions beside the vbench package's (JSON)."""
    from cfbench.speed import films as material
    from cfbench.speed.score import LOAD, LONG, WHOLE, Setting, measure, merged
    from cfbench.speed.upstream import Interpreter

    if take is not None:
        say({"machines": merged(take, to)}, True)
        return
    asked = tuple(word.strip() for word in parts.split(","))
    if not asked or set(asked) - {LOAD, LONG, WHOLE}:
        raise CfError(f"--parts {parts}: expected some of {LOAD},{LONG},{WHOLE}")
    if min(threads, films, rounds) < 1 or seconds <= 0 or long_seconds <= 0 or minutes < 0:
        raise CfError("threads, films, rounds and lengths are at least 1, minutes at least 0")
    if prepare:
        made = [
            *material.made(out / "films", films, seconds),
            *material.made(out / "films", 1, long_seconds),
        ]
        say({"films": [path.name for path in made]}, True)
        return
    by = Interpreter(upstream_python.absolute())
    if upstream_here is not None:
        by = Interpreter(Path(sys.executable), upstream_here.absolute())
    if not by.python.exists():
        raise CfError(f"{by.python} is no interpreter; run cfbench vbench-env create first")
    setting = Setting(
        label=label, work=out, device=device, threads=threads, films=films, seconds=seconds,
        long_seconds=long_seconds, rounds=rounds, parts=asked, by=by, dino=dino,
    )  # fmt: skip
    say(measure(setting, to, minutes), True)


@app.command()
def generate(
    preset: Annotated[str, typer.Option(help="family of our presets")] = "wan-1.3b",
    to: Annotated[Path, typer.Option(help="file of results, written as they come")] = Path(
        "results/speed/generate.json"
    ),
    label: Annotated[str, typer.Option(help="of this machine in the file")] = "gpu",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>")] = "cuda",
    attention: Annotated[
        str, typer.Option(help="of our generator: auto, sdpa, cudnn or flash")
    ] = "auto",
    systems: Annotated[str, typer.Option(help="as in ours/auto,self-forcing; all if absent")] = "",
    self_forcing: Annotated[
        Path | None, typer.Option(help="checkout of guandeh17/Self-Forcing")
    ] = None,
    longlive: Annotated[
        Path | None, typer.Option(help="checkout of NVlabs/LongLive, branch v1.0")
    ] = None,
    rounds: Annotated[int, typer.Option(help="turns of each system")] = 6,
    burst: Annotated[int, typer.Option(help="chunks of a turn, the first not counted")] = 3,
    parts: Annotated[
        str,
        typer.Option(help="some of kernels,systems,decoder,film,first,growth,several; else all"),
    ] = "",
    processes: Annotated[int, typer.Option(help="of several; 0 is one a GPU")] = 0,
    minutes: Annotated[float, typer.Option(help="begin nothing new after; 0 is never")] = 0.0,
    page: Annotated[bool, typer.Option("--page", help="only draw what is in the file")] = False,
) -> None:
    """Times our generator beside others on random weights (JSON, Markdown, PNG)."""
    from cfbench.speed import generate as timing
    from cfbench.speed import generate_page

    if not page:
        from cfbench.systems.timing.run import bench_of

        if rounds < 1 or burst < 2 or minutes < 0:
            raise CfError("rounds are at least 1, a burst at least 2, minutes at least 0")
        asked = tuple(word.strip() for word in systems.split(",") if word.strip())
        chosen = tuple(word.strip() for word in parts.split(",") if word.strip())
        if set(chosen) - set(timing.PARTS):
            raise CfError(f"--parts {parts}: expected some of {','.join(timing.PARTS)}")
        named = {"self-forcing": self_forcing, "longlive": longlive}
        checkouts = {name: path for name, path in named.items() if path is not None}
        plan = timing.Plan(
            systems=asked or timing.SYSTEMS, rounds=rounds, burst=burst,
            parts=chosen or timing.PARTS, processes=processes, minutes=minutes,
        )  # fmt: skip
        bench = bench_of(preset, device, attention, checkouts)
        say(timing.measure(bench, plan, to, label), True)
    made = generate_page.put(to, label)
    say({"files": [str(path) for path in made]}, False)


@app.command()
def table(
    results: Annotated[Path, typer.Option("--from", help="file of cfbench speed score")] = RESULTS,
    into: Annotated[Path, typer.Option(help="document with the table's markers")] = Path(
        "docs/vbench.md"
    ),
) -> None:
    """Puts the table of measured times into the documentation."""
    from cfbench.speed.table import put

    if not results.is_file() or not into.is_file():
        raise CfError(f"--from {results} --into {into}: expected two files")
    put(results, into)
    say({"document": str(into)}, False)
