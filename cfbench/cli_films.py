"""Verbs for any films, whoever made them: events, drift, motion. ``cli`` gives them their names."""

from pathlib import Path
from typing import Annotated

import typer

from cfbench.errors import CfError
from cfbench.options import (
    OUT_DEFAULT,
    SUITE_DEFAULT,
    Json,
    NormaliserFile,
    Out,
    SuiteName,
    To,
    Workers,
    staff,
    typed,
)
from cfbench.output import say

Films = Annotated[list[Path], typer.Argument(help="films, or folders of films")]
FeatureName = Annotated[
    str, typer.Option("--feature", help="module:function that embeds frames; default pixels")
]


def events(
    films: Films, feature: FeatureName = "", workers: Workers = 0, as_json: Json = False
) -> None:
    """Flashbacks to the opening, loops and freezes of films."""
    from cfbench.analysis.run import find_events, told

    found = find_events(films, feature=feature, workers=staff(workers))
    say(found if as_json else told(found), as_json)


def events_check(
    count: Annotated[int, typer.Option("--films", help="planted films to make")] = 480,
    seed: Annotated[int, typer.Option(help="1 to 4 chose the thresholds; others judge them")] = 5,
    workers: Workers = 0,
) -> None:
    """Precision and recall of the event detectors on films with planted events (JSON)."""
    from cfbench.analysis.run import check_events

    if count < 1:
        raise CfError(f"--films {count}: expected at least 1")
    say(check_events(count, seed, workers=staff(workers)), True)


def drift(
    films: Films,
    latents: Annotated[
        Path | None, typer.Option(help="folder with a .npy (F, C, Y, X) for each film's stem")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--scores", help="run whose scores of these films count too")
    ] = None,
    window: Annotated[float, typer.Option(help="length of a window in s")] = 2.0,
    opening: Annotated[float, typer.Option(help="length of the opening in s")] = 4.0,
    band: Annotated[float, typer.Option(help="share of the opening beyond which it failed")] = 0.25,
    plot: Annotated[Path | None, typer.Option(help="curves, as .pdf and .png")] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Exposure, saturation, sharpness, latents and scores against each film's opening."""
    from cfbench.analysis.drift import Settings
    from cfbench.analysis.drifting import drift_told, find_drift

    settings = Settings(window_s=window, opening_s=opening, band=band)
    found = find_drift(
        films, latents=latents, store=store, settings=settings, workers=staff(workers), plot=plot
    )
    say(found if as_json else drift_told(found), as_json)


def motion(films: Films, workers: Workers = 0, as_json: Json = False) -> None:
    """Dynamic degree with the camera's motion and without it."""
    from cfbench.analysis.run import find_motion

    say(find_motion(films, workers=staff(workers)), as_json)


def consistency(
    films: Annotated[
        list[Path] | None, typer.Argument(help="films, or folders of films; a group each")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="run whose systems are groups too")] = None,
    features: Annotated[
        str, typer.Option(help="tiny, or reference[:FOLDER] for DINOv2 and CLIP")
    ] = "tiny",
    texts: Annotated[
        Path | None, typer.Option(help="JSON or CSV with a text for each film's stem")
    ] = None,
    paper: Annotated[bool, typer.Option(help="put the paper's Table 1 beside")] = True,
    to: Annotated[Path | None, typer.Option(help="folder of tables and plot")] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Similarity to first frame and text at 10 to 60 s, and from clip to clip (Table 1)."""
    from cfbench.analysis.consistency_page import consistency_told, find_consistency
    from cfbench.findings import paper_folder
    from cfbench.provenance import words
    from cfbench.tables import read_paper

    found = find_consistency(
        films or [], run=run, texts=texts, features=features, workers=staff(workers),
        paper=read_paper(paper_folder() / "table1.csv") if paper else {}, to=to,
        header=f"commit {words()}; command {typed()}",
    )  # fmt: skip
    say(found if as_json else consistency_told(found), as_json)


def survey(
    out: Out = OUT_DEFAULT,
    to: To = None,
    features: Annotated[
        str, typer.Option(help="tiny, reference[:FOLDER], or nothing: no comparison of clips")
    ] = "tiny",
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Events, motion and drift of every system of a run: table and plots."""
    from cfbench.analysis.surveying import write_survey
    from cfbench.provenance import words

    header = f"commit {words()}; command {typed()}"
    folder, count = to or out / "survey", staff(workers)
    found = write_survey(out, folder, features=features, workers=count, header=header)
    say(found, as_json)


def compare(
    a: Annotated[str, typer.Argument(help="system, as in the table's rows: ours")],
    b: Annotated[str, typer.Argument(help="system to hold it against")],
    out: Out = OUT_DEFAULT,
    to: To = None,
    suite: SuiteName = SUITE_DEFAULT,
    normaliser: NormaliserFile = None,
    as_json: Json = False,
) -> None:
    """Writes a page about two systems: curves, differences, best and worst prompts."""
    from cfbench.analysis.compare_page import write_comparison
    from cfbench.provenance import words
    from cfbench.run import tier_of

    folder = to or out / f"compare-{a}-{b}"
    header = f"commit {words()}; command {typed()}"
    found = write_comparison(
        out, folder, (a, b), tier=tier_of(suite), normaliser=normaliser, header=header
    )
    total = found["rows"]["total"]["value"]
    say(found if as_json else {"page": found["page"], "total difference": f"{total:+.4f}"}, as_json)
