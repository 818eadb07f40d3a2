"""VBench beside ours: ``python -m tests.parity.compare_vbench --env FOLDER --dino CHECKOUT``.

FOLDER is an environment of ``cfbench vbench-env create``, CHECKOUT one of facebookresearch/dino.
Prints the differences (JSON); ``--store`` keeps the package's scores for the tests.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av

from cfbench import scorers
from cfbench.scorers.vbench.suite import NEEDS
from cfbench.types import Prompt, Segment
from cfbench.video import held
from tests.helpers.vbench_data import COLUMNS, FILMS, FPS, ROWS, STYLES, TEXTS, film, write_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "vbench.json"
SCRIPT = Path(__file__).with_name("upstream_vbench.py")
PROMPT = Prompt(id="none", segments=(Segment(text="none", seconds=1),))


def asking(name: str) -> Prompt:
    """A prompt that asks for every dimension of a film."""
    asked: dict[str, Any] = dict.fromkeys(NEEDS)
    asked["appearance_style"] = {"appearance_style": STYLES[name]}
    segments = (Segment(text=TEXTS[name], seconds=1),)
    return Prompt(id=name, segments=segments, vbench=asked)


def ours(
    weights: Path, names: tuple[str, ...] = FILMS, suite: str = "vbench"
) -> dict[str, dict[str, float | None]]:
    """Our scores by film and dimension."""
    loaded = scorers.load(f"{suite}:{weights}")
    return {
        name: {s.dimension: s.value for s in loaded.score(held(film(name), FPS), asking(name))}
        for name in names
    }


def write_films(folder: Path) -> None:
    """The films as files that lose nothing."""
    folder.mkdir()
    for name in FILMS:
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "rgb24"
            for image in film(name):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    told = {"texts": TEXTS, "styles": STYLES}
    (folder / "texts.json").write_text(json.dumps(told), encoding="utf-8")


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
        words = [python, SCRIPT, weights, work / "films", given.dino.absolute(), work / "out.json"]
        subprocess.run(list(map(str, words)), check=True, stdout=sys.stderr)
        theirs = json.loads((work / "out.json").read_text(encoding="utf-8"))
        mine = ours(weights)
    if given.store:
        GOLDEN.write_text(json.dumps(theirs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    apart = {
        name: {key: abs(value - (mine[name][key] or 0)) for key, value in theirs[name].items()}
        for name in theirs
    }
    largest = max(value for row in apart.values() for value in row.values())
    sys.stdout.write(json.dumps({"films": apart, "largest": largest}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
