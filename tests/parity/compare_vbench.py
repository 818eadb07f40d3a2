"""VBench beside ours: ``python -m tests.parity.compare_vbench --env FOLDER --dino CHECKOUT``.

FOLDER is an environment of ``cfbench vbench-env create``, CHECKOUT one of facebookresearch/dino.
Prints the differences (JSON), of scores and of what is seen on the way to them: probabilities of
actions, and flow in pixels of the static filter. ``--store`` keeps the package's scores for tests.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from cfbench import scorers, standard
from cfbench.scorers.vbench import protocol, static
from cfbench.scorers.vbench.files import Folder
from cfbench.scorers.vbench.suite import NEEDS
from cfbench.scorers.vbench.toolbox import Toolbox
from cfbench.scorers.vbench.watch import Nets, watch
from cfbench.types import Prompt, Segment
from cfbench.video import Frames, held
from tests.helpers.vbench_data import (
    COLUMNS,
    FILMS,
    FPS,
    ROWS,
    STYLES,
    TEXTS,
    film,
    long_film,
    write_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "vbench.json"
LONG_GOLDEN = GOLDEN.with_name("vbench-long.json")
SCRIPT = Path(__file__).with_name("upstream_vbench.py")
LONG_SCRIPT = Path(__file__).with_name("upstream_long.py")
SEEN_SCRIPT = Path(__file__).with_name("upstream_seen.py")
LONG_SUITES = ("vbench-long", "vbench-long-index")
TABLES = Path(protocol.__file__).parents[2] / "data" / protocol.LONG_TABLES
PROMPT = Prompt(id="none", segments=(Segment(text="none", seconds=1),))


def asking(name: str) -> Prompt:
    """A prompt that asks for every dimension of a film."""
    asked: dict[str, Any] = dict.fromkeys(NEEDS)
    asked["appearance_style"] = {"appearance_style": STYLES[name]}
    segments = (Segment(text=TEXTS[name], seconds=1),)
    return Prompt(id=name, segments=segments, vbench=asked)


def ours(weights: Path, names: tuple[str, ...] = FILMS) -> dict[str, dict[str, float | None]]:
    """Our scores by film and dimension."""
    suite = scorers.load(f"vbench:{weights}")
    return {
        name: {s.dimension: s.value for s in suite.score(held(film(name), FPS), asking(name))}
        for name in names
    }


def ours_long(weights: Path, name: str, dimensions: Iterable[str]) -> dict[str, float | None]:
    """Our scores of the long film, in the dimensions that VBench-Long was run in."""
    suite = scorers.load(f"{name}:{weights}")
    asked: dict[str, Any] = dict.fromkeys(dimensions)
    prompt = Prompt(id="long", segments=PROMPT.segments, vbench=asked)
    found = {s.dimension: s.value for s in suite.score(held(long_film(), FPS), prompt)}
    return {dimension: found[dimension] for dimension in asked}


def apart_before_scores(weights: Path, theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Differences by film: of any class's probability, of strong flow, of the static filter."""
    tools, cpu = Toolbox(Folder(weights), torch.device("cpu")), torch.device("cpu")
    found: dict[str, dict[str, float]] = {}
    for name in FILMS:
        frames = film(name)
        nets = Nets(umt=tools.net("umt"))
        acts = watch(iter((frames,)), FPS, (range(len(frames)),), nets, cpu).acts[0]
        flows = static.flows(held(frames, FPS), tools.net("raft"), cpu)
        calm = standard.is_static(*flows)
        told = theirs["static"][name]
        strong = np.concatenate([flows.strong, flows.ends])
        found[name] = {
            "action_probability": float(np.abs(acts - theirs["actions"][name]).max()),
            "static_flow_px": float(np.abs(strong - told["strong"]).max()),
            "static": float(calm != told["static"]),
        }
    return found


def write_film(path: Path, frames: Frames) -> None:
    """A film as a file that loses nothing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "rgb24"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_films(folder: Path) -> None:
    """The films, and what they are said to show."""
    folder.mkdir()
    for name in FILMS:
        write_film(folder / f"{name}.mp4", film(name))
    told = {"texts": TEXTS, "styles": STYLES}
    (folder / "texts.json").write_text(json.dumps(told), encoding="utf-8")


def number(value: float | None) -> float:
    """A score that there has to be."""
    assert value is not None, "we gave no score"
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--dino", type=Path, required=True)
    parser.add_argument("--store", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        weights = write_weights(work / "weights")
        write_films(work / "films")
        python = given.env.absolute() / "bin" / "python"
        out = work / "out.json"

        def theirs(*words: object) -> dict[str, Any]:
            subprocess.run([str(python), *map(str, words), str(out)], check=True, stdout=sys.stderr)
            return json.loads(out.read_text(encoding="utf-8"))

        seen = apart_before_scores(weights, theirs(SEEN_SCRIPT, weights, work / "films"))
        dino = given.dino.absolute()
        whole = theirs(SCRIPT, weights, work / "films", dino)
        write_film(work / "long.mp4", long_film())
        long = {
            name: theirs(LONG_SCRIPT, name, weights, work / "long.mp4", TABLES, dino)
            for name in LONG_SUITES
        }
        mine = ours(weights) | {name: ours_long(weights, name, long[name]) for name in LONG_SUITES}
    if given.store:
        for path, found in ((GOLDEN, whole), (LONG_GOLDEN, long)):
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    apart = {
        name: {key: abs(value - number(mine[name][key])) for key, value in rows.items()}
        for name, rows in {**whole, **long}.items()
    }
    largest = max(value for row in apart.values() for value in row.values())
    told = {"films": apart, "largest": largest, "seen": seen}
    sys.stdout.write(json.dumps(told, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
