"""Verbs of recall. ``cli`` gives them their names."""

from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import CfError
from cfbench.options import Attention, Json, Out, Workers, staff
from cfbench.output import say

RECALLED = (
    "tiny/ours,tiny/uniform-2,tiny/uniform-1,tiny/self-forcing,tiny/longlive,tiny/infinity-rope"
)
GAPS, COUNT = "1,3,6,12,17,24,40", 16
QUICK_GAPS, QUICK_COUNT = "3,12", 5


def recall(
    systems: Annotated[
        str, typer.Option(help="comma-separated: family/row; truth and chance are added")
    ] = RECALLED,
    gaps: Annotated[str, typer.Option(help=f"seconds of quiet hold; default {GAPS}")] = "",
    count: Annotated[int, typer.Option(help=f"probes of each; default {COUNT}")] = 0,
    free: Annotated[
        str, typer.Option(help="holds asked of films without a forced history too")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help=f"holds of {QUICK_GAPS} s, {QUICK_COUNT} probes each")
    ] = False,
    out: Out = Path("out/recall"),
    seed: Annotated[int, typer.Option(help="of the systems' noise")] = 0,
    workers: Workers = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>")] = "cpu",
    attention: Attention = "auto",
) -> None:
    """Asks systems to show again what they saw once and left (JSON, plot); again to go on."""
    from cfbench.recall_run import forget

    addresses = [name.strip() for name in systems.split(",") if name.strip()]
    count = count or (QUICK_COUNT if quick else COUNT)
    if count < 1 or not addresses:
        raise CfError("recall needs a system and --count of at least 1")
    tree = forget(
        addresses,
        seconds("--gaps", gaps or (QUICK_GAPS if quick else GAPS)),
        count,
        out,
        free_s=seconds("--free", free) if free else (),
        seed=seed,
        workers=staff(workers),
        device=device,
        attention=attention,
    )
    say(tree, True)


def seconds(option: str, text: str) -> tuple[float, ...]:
    """Positive numbers, comma-separated.

    Raises:
        CfError: something else.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CfError(f"{option} {text!r}: expected seconds, as in 1,3,6,12") from error
    if min(found) <= 0:
        raise CfError(f"{option} {text!r}: expected positive seconds")
    return found


def recall_films(
    films: Annotated[list[Path], typer.Argument(help="films, or folders of films")],
    marks: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON: film, first_start_s, first_end_s, again_start_s, ..."),
    ] = None,
    feature: Annotated[
        str, typer.Option(help="module:function that embeds frames; default pixels")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="curve, as .pdf and .png")] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """How like its first showing is what films show again, from marks or from shots."""
    from cfbench.analysis.returns import find_returns, returns_told

    found = find_returns(films, marks=marks, feature=feature, workers=staff(workers), plot=plot)
    say(found if as_json else returns_told(found), as_json)
