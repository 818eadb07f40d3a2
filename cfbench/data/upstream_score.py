"""Runs one dimension of the ``vbench`` package; in its environment, not in ours.

``python upstream_score.py ASKED.json TOLD.json``. Asked: ``dimension``, ``device``, ``local`` and
``films``, each with ``path``, ``prompt`` and ``aux``. Told, by path: a ``value`` or a ``reason``.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

BROKEN = (
    RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ImportError, ArithmeticError, EOFError,
)  # fmt: skip
"""What the package raises on films and weights that it cannot read and modules that it lacks."""
PERCENT = ("imaging_quality",)
"""Told per film as 0 to 100, in total as 0 to 1."""


def rows(films: list[dict[str, Any]], asked: dict[str, Any], parts: Any) -> dict[str, Any]:
    """What the package says of films, by path."""
    import torch

    name = asked["dimension"]
    info = [
        {
            "prompt_en": film["prompt"],
            "dimension": [name],
            "video_list": [film["path"]],
            "auxiliary_info": {} if film["aux"] is None else {name: film["aux"]},
        }
        for film in films
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "info.json"
        path.write_text(json.dumps(info), encoding="utf-8")
        compute = getattr(importlib.import_module(f"vbench.{name}"), f"compute_{name}")
        _, videos = compute(str(path), torch.device(asked["device"]), parts)
    scale = 100 if name in PERCENT else 1
    return {row["video_path"]: {"value": float(row["video_results"]) / scale} for row in videos}


def main() -> None:
    """Scores what is asked; a film that fails has a reason instead."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    utils: Any = importlib.import_module("vbench.utils")
    name, films = asked["dimension"], asked["films"]
    parts = utils.init_submodules([name], local=asked["local"], read_frame=False)[name]
    try:
        told = rows(films, asked, parts)
    except BROKEN:
        # One film can take the whole dimension with it; so each is tried by itself.
        told = dict[str, Any]()
        for film in films:
            try:
                told |= rows([film], asked, parts)
            except BROKEN as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                told[film["path"]] = {"reason": reason[:200]}
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
