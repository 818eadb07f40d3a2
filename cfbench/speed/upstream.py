"""Starts the two sides of a timing as processes of their own, with the same threads."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

OURS = "cfbench.scorers.vbench.timed"
LAST = 300
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Interpreter:
    """What runs the ``vbench`` package.

    Args:
        python: its interpreter.
        packages: a folder of unpacked wheels that it sees first, or None.
    """

    python: Path
    packages: Path | None = None


def theirs(job: Mapping[str, Any], work: Path, by: Interpreter, limit_s: float) -> dict[str, Any]:
    """What a job of ``cfbench/data/upstream_speed.py`` told, or a ``reason``.

    Raises:
        TimeoutError: the limit came first.
    """
    # What our own verbs ask of torch is no part of the package.
    more = {"VBENCH_CACHE_DIR": str(job["weights"]), "THP_MEM_ALLOC_ENABLE": "0"}
    if by.packages is not None:
        path = os.pathsep.join(filter(None, (str(by.packages), os.environ.get("PYTHONPATH"))))
        more["PYTHONPATH"] = path
    with resources.as_file(resources.files("cfbench") / "data" / "upstream_speed.py") as script:
        return _told([str(by.python), str(script)], job, work, more, limit_s)


def ours(job: Mapping[str, Any], work: Path, limit_s: float) -> dict[str, Any]:
    """What a job of our own told; raises and gives as ``theirs``."""
    return _told([sys.executable, "-m", OURS], job, work, {}, limit_s)


def _told(
    words: list[str], job: Mapping[str, Any], work: Path, more: Mapping[str, str], limit_s: float
) -> dict[str, Any]:
    asked, told = work / "job.json", work / "told.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    told.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), **more}
    try:
        ended = subprocess.run(
            [*words, str(asked), str(told)], env=environment, capture_output=True, text=True,
            errors="replace", check=False, timeout=limit_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"not done within {limit_s:.0f} s") from error
    if ended.returncode == 0 and told.is_file():
        return json.loads(told.read_text(encoding="utf-8"))
    last = " ".join(ended.stderr.strip().splitlines()[-3:])
    return {"reason": last[-LAST:] or f"ended with code {ended.returncode}"}
