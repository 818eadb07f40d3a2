"""A study of moving stripes, made in a moment: for load trials and tests, never for raters."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfbench import prompts as prompt_sets
from cfbench.store import LocalStore
from cfbench.study.design import Spec, build
from cfbench.study.tables import Design
from cfbench.types import Prompt, RunRecord, Segment
from cfbench.video import encode

if TYPE_CHECKING:
    from cfbench.video import Frames

SYSTEMS = ("ours", "longlive", "infinity-rope")
FPS, SIDE_PX = 16, 64


def make(folder: Path, *, prompts: int = 4, seconds: int = 1, spec: Spec | None = None) -> Design:
    """Make a run under ``folder/run`` and its study under ``folder/study``."""
    with LocalStore(folder / "run") as store:
        for index in range(prompts):
            prompt = Prompt(id=f"p{index}", segments=(Segment(text=f"stripes {index}", seconds=1),))
            sha = store.put_bytes(prompt_sets.canonical(prompt), "json")
            for system in SYSTEMS:
                _film(store, system, prompt, sha, seconds)
    return build(folder / "run", folder / "study", spec or Spec())


def _film(store: LocalStore, system: str, prompt: Prompt, sha: str, seconds: int) -> None:
    path = store.scratch("mp4")
    place = 10 * SYSTEMS.index(system) + int(prompt.id[1:])
    clip = encode(path, _stripes(place, seconds * FPS), FPS)
    store.put(path, clip.sha256, "mp4")
    record = RunRecord(
        id=f"{system}-{prompt.id}", system=system, label=system, key="toy", experiment={},
        prompt_id=prompt.id, prompt_sha=sha, stratum="", seed=0, chunks=1, clip=clip, weights={},
        code={}, environment={}, batch=1, started="", seconds=0.0, peak_gib=0.0, fps_generated=0.0,
    )  # fmt: skip
    store.append("runs", record)


def _stripes(phase: int, count: int) -> "Iterator[Frames]":
    columns = np.arange(SIDE_PX)
    for frame in range(count):
        wave = (columns * (1 + phase % 7) + 3 * frame + 16 * phase) % 256
        shape = (1, SIDE_PX, SIDE_PX, 3)
        yield np.broadcast_to(wave[None, None, :, None], shape).astype(np.uint8)
