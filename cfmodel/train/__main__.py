"""``python -m cfmodel.train STAGE...``: trains stages of the tiny model."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    stages: Annotated[list[str], typer.Argument(help="codec text base causal-init dmd")],
    preset: Annotated[str, typer.Option(help="family, or family/row")] = "tiny",
    out: Annotated[Path, typer.Option(help="folder for weights and metrics")] = Path("out/train"),
    assets: Annotated[
        Path | None, typer.Option(help="weights of earlier stages; default: the package's own")
    ] = None,
    seconds: Annotated[list[float] | None, typer.Option(help="budget, once a stage")] = None,
    steps: Annotated[int | None, typer.Option(help="budget in steps, for all stages")] = None,
    device: Annotated[str | None, typer.Option(help="default: cuda if present")] = None,
    workers: Annotated[int, typer.Option(help="processes that sample scenes")] = 0,
    compiled: Annotated[bool, typer.Option("--compile", help="use torch.compile")] = False,
    batch: Annotated[int | None, typer.Option(help="films or captions a step")] = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    capacity: Annotated[int, typer.Option(help="clips held in the latent pool")] = 8192,
    fill: Annotated[int, typer.Option(help="clips rendered before the first step")] = 2048,
    clips: Annotated[
        int, typer.Option(help="distinct clips shown at least, time allowing")
    ] = 20_480,
    render: Annotated[int, typer.Option(help="clips rendered at a time")] = 64,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path=value")] = None,
) -> None:
    """Trains STAGES in order, each to its budget; prints their records as JSON."""
    import torch

    from cfmodel.presets import preset as find
    from cfmodel.train import run as runs
    from cfmodel.train.stages import STAGES, Resources

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or (seconds and len(seconds) != len(stages)):
        typer.echo(
            f"stages {stages} with {len(seconds or [])} budgets: expected stages of "
            f"{', '.join(STAGES)}, and one --seconds each",
            err=True,
        )
        raise typer.Exit(2)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    use = Resources(
        out=out,
        assets=assets or Path(runs.__file__).parents[1] / "assets" / "tiny",
        device=torch.device(chosen),
        workers=workers,
        compiled=compiled,
        batch=batch,
        lr=lr,
        capacity=capacity,
        fill=fill,
        clips=clips,
        render=render,
    )
    experiment = find(preset, tuple(set_ or ()))
    records = runs.run(stages, experiment, use, seconds=seconds, steps=steps)  # type: ignore[arg-type]
    typer.echo(json.dumps(records, indent=1))


if __name__ == "__main__":
    app()
