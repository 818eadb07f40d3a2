"""What the ``vbench`` package sees on the way to scores: actions, and flow of its static filter.

``python upstream_seen.py WEIGHTS FILMS OUT``, in the environment of ``cfbench vbench-env create``:
a folder of weights laid out as the package's cache, a folder of films, the JSON file to write.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from upstream_long import stand_in
from upstream_vbench import make_small


def actions(films: list[Path], cache: Path) -> dict[str, list[float]]:
    """Probabilities of the 400 classes, by film."""
    make_small()
    module: Any = importlib.import_module("vbench.human_action")
    made, seen = module.create_model, list[list[float]]()

    def noted(name: str, **kept: Any) -> Any:
        net = made(name, **kept)
        net.register_forward_hook(lambda *told: seen.append(torch.sigmoid(told[-1])[0].tolist()))
        return net

    module.create_model = noted
    weights = cache / "umt_model" / "l16_ptk710_ftk710_ftk400_f16_res224.pth"
    module.human_action(str(weights), [str(path) for path in films], torch.device("cpu"))
    return {path.stem: row for path, row in zip(films, seen, strict=True)}


def static(films: list[Path], cache: Path) -> dict[str, dict[str, Any]]:
    """Strong flow between neighbours and then between the ends, and what the filter decides."""
    stand_in("vbench-long-index")
    module: Any = importlib.import_module("vbench2_beta_long.static_filter")
    module.DEVICE = "cpu"
    weights = cache / "raft_model" / "models" / "raft-things.pth"
    asked = argparse.Namespace(
        model=str(weights), small=False, mixed_precision=False, alternate_corr=False
    )
    judge = module.StaticFilter(asked, "cpu")
    plain, strong = judge.get_score, list[float]()

    def noted(image: Any, flow: Any) -> float:
        strong.append(float(plain(image, flow)))
        return strong[-1]

    judge.get_score = noted
    found: dict[str, dict[str, Any]] = {}
    for path in films:
        strong.clear()
        calm = bool(judge.infer(str(path)))
        found[path.stem] = {"strong": [*strong], "static": calm}
    return found


def main() -> None:
    weights, folder, out = map(Path, sys.argv[1:])
    films = sorted(folder.glob("*.mp4"))
    with tempfile.TemporaryDirectory() as work:
        cache = Path(shutil.copytree(weights, Path(work) / "cache"))
        os.environ |= {"VBENCH_CACHE_DIR": str(cache), "TORCH_HOME": str(Path(work) / "torch")}
        found = {"actions": actions(films, cache), "static": static(films, cache)}
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
