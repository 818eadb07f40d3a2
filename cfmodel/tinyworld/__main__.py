"""``python -m cfmodel.tinyworld preview|prompts``: look at the world, or write its prompt sets."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def preview(
    out: Annotated[Path, typer.Option(help="PNG file to write")] = Path("out/tinyworld.png"),
    seed: Annotated[int, typer.Option(help="first scene")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="scenes")] = 12,
    columns: Annotated[int, typer.Option(min=1, help="moments of each scene")] = 10,
) -> None:
    """Draws a contact sheet: a scene a row, moments over its 60 seconds in the columns."""
    import cv2
    import torch

    from cfmodel.tinyworld.film import STRATA
    from cfmodel.tinyworld.render import render
    from cfmodel.tinyworld.scene import sample_scene
    from cfmodel.tinyworld.tracks import play

    sheet = []
    for k in range(rows):
        scene = sample_scene(seed + k, stratum=STRATA[k % len(STRATA)])
        frames = torch.linspace(0, 959, columns).long()
        sheet.append(torch.cat(list(render(play(scene, frames), 80, 128).rgb), -1))
    picture = (torch.cat(sheet, 1) * 255).byte().permute(1, 2, 0).numpy()[..., ::-1]
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), picture):
        raise typer.BadParameter(f"{out}: cannot write a picture there; give a .png path")
    typer.echo(out)


@app.command()
def prompts(
    out: Annotated[Path, typer.Option(help="JSONL file to write")],
    first: Annotated[int, typer.Option(help="first seed")] = 0,
    count: Annotated[int, typer.Option(min=3, help="prompts, a multiple of 3")] = 48,
) -> None:
    """Writes a prompt set: a third of the prompts in each stratum."""
    from cfmodel.tinyworld.film import STRATA, scene_prompt

    lines = [
        json.dumps(scene_prompt(first + k, STRATA[k % len(STRATA)]), sort_keys=True)
        for k in range(count)
    ]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo(f"{out}: {count} prompts")


@app.command()
def bench(
    frames: Annotated[int, typer.Option(min=1, help="frames in a call")] = 1536,
    calls: Annotated[int, typer.Option(min=1, help="timed calls")] = 10,
) -> None:
    """Prints frames/s with everything in view: three composite subjects and both landmarks."""
    import time
    from dataclasses import replace

    import torch

    from cfmodel.tinyworld.render import render
    from cfmodel.tinyworld.scene import sample_scene
    from cfmodel.tinyworld.tracks import play

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scene = next(
        s for s in map(sample_scene, range(1000)) if len(s.subjects) == 3 and s.subjects[1].depth
    )
    shapes = ("animal", "vehicle", "ring")
    subjects = [replace(s, shape=shape) for s, shape in zip(scene.subjects, shapes, strict=True)]
    subjects[2] = replace(subjects[2], place=0, lateral=-subjects[1].lateral, depth=1.2)
    places = [
        replace(p, bearing=0.0, lateral=x) for p, x in zip(scene.places, (-3, 3), strict=True)
    ]
    scene = replace(scene, subjects=tuple(subjects), places=tuple(places))
    tracks = play(scene, torch.zeros(frames, dtype=torch.long)).to(device)
    times = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        float(render(tracks, 80, 128).rgb.mean())
        times.append(time.perf_counter() - start)
    rate = frames / sorted(times[2:])[calls // 2]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    typer.echo(json.dumps({"frames_per_s": round(rate), "device": name, "frames": frames}))


if __name__ == "__main__":
    app()
