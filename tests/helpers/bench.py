"""Records, prompts and runs of the harness for tests."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cfbench.store import LocalStore
from cfbench.types import ClipInfo, RunRecord, Score
from cfmodel.tinyworld.film import STRATA, scene_prompt

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("started", "seconds", "peak_gib", "fps_generated")
# The revision differs between runs when somebody edits the tree in between.
LEFT_OUT = (*TIMES, "code")
CLIP = ClipInfo(
    sha256="ab" * 32, frames=57, fps=16, width=64, height=64, codec="h264-crf18", bytes=100
)


def prompt_file(path: Path, count: int = 2) -> Path:
    """A prompt set of the tiny world, scenes included."""
    lines = [json.dumps(scene_prompt(seed, STRATA[seed % 3])) for seed in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_record(name: str = "job", **changes: Any) -> RunRecord:
    record = RunRecord(
        id=name,
        system="ours",
        label="Ours",
        key="k",
        experiment={"family": "nano"},
        prompt_id="p",
        prompt_sha="cd" * 32,
        stratum="stay",
        seed=0,
        chunks=5,
        clip=CLIP,
        weights={},
        code={},
        environment={},
        batch=1,
        started="2026-01-01T00:00:00.000+00:00",
        seconds=1.0,
        peak_gib=0.1,
        fps_generated=57.0,
    )
    return dataclasses.replace(record, **changes)


def score_record(sha: str, dimension: str, value: float | None, version: str = "1") -> Score:
    return Score(clip_sha=sha, dimension=dimension, version=version, tier="lite", value=value)


def untimed(root: Path) -> list[dict[str, Any]]:
    """The records of a store without what may differ between equal runs."""
    trees = [dataclasses.asdict(run) for run in LocalStore(root).runs()]
    return [{name: tree[name] for name in tree if name not in LEFT_OUT} for tree in trees]


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "cfbench", *map(str, args)]


def cfbench(*args: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """``cfbench`` in a process of its own, as a user runs it."""
    return subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=timeout_s,
        check=False,
    )
