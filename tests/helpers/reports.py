"""Synthetic runs and scores for the tests of tables, curves, gallery and report."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cfbench.aggregate import DIMENSIONS, Normaliser, Range, normaliser_bytes, parse_normaliser
from cfbench.types import ClipInfo, RunRecord, Score, WindowScore

MEMORY = {"sink": 3, "slow": 12, "fast": 6, "promotion": "surprisal-2"}
GEOMETRY = {"chunk": 3, "fps": 16, "vae_stride": [4, 8, 8]}
STRATA = ("stay", "short", "long")
UNIT_RANGES = {name: Range(0, 1) for name in DIMENSIONS}


def unit_normaliser() -> Normaliser:
    return parse_normaliser(normaliser_bytes("unit", clamp=True, ranges=UNIT_RANGES), "test")


def sha(system: str, prompt: int, seed: int) -> str:
    return hashlib.sha256(f"{system} {prompt} {seed}".encode()).hexdigest()


def run(system: str, prompt: int, seed: int = 0, **changes: Any) -> RunRecord:
    clip = ClipInfo(
        sha256=changes.pop("sha256", sha(system, prompt, seed)),
        frames=969,
        fps=16,
        width=128,
        height=80,
        codec="h264",
        bytes=1000,
    )
    fields: dict[str, Any] = {
        "id": f"{system}-{prompt}-{seed}",
        "system": system,
        "label": f"Label of {system}",
        "key": f"key-{system}",
        "experiment": {"memory": MEMORY, "geometry": GEOMETRY},
        "prompt_id": f"p{prompt}",
        "prompt_sha": "0" * 64,
        "stratum": STRATA[prompt % 3],
        "seed": seed,
        "chunks": 81,
        "clip": clip,
        "weights": {},
        "code": {"commit": "abc", "dirty": False},
        "environment": {"device": "cpu"},
        "batch": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "peak_gib": 1.0,
        "fps_generated": 16.0,
    }
    return RunRecord(**{**fields, **changes})


def score(clip_sha: str, dimension: str, value: float | None, **changes: Any) -> Score:
    fields: dict[str, Any] = {"version": "1", "tier": "tiny", "reason": "" if value else "none"}
    fields |= changes
    return Score(clip_sha=clip_sha, dimension=dimension, value=value, **fields)


def world(
    skills: Mapping[str, float], *, prompts: int = 6, seeds: Sequence[int] = (0, 1)
) -> tuple[list[RunRecord], list[Score]]:
    """Films whose every normalised dimension is the system's skill plus 0.01 x prompt."""
    runs: list[RunRecord] = []
    scores: list[Score] = []
    for system, skill in skills.items():
        for prompt in range(prompts):
            for seed in seeds:
                runs.append(run(system, prompt, seed))
                film = runs[-1].clip.sha256
                value = skill + 0.01 * prompt
                scores += [score(film, name, value) for name in DIMENSIONS]
                windows = tuple(
                    WindowScore(start_s=t - 0.5, end_s=t + 0.5, value=value - 0.001 * t)
                    for t in range(10, 70, 10)
                )
                scores.append(score(film, "dino_first", value, windows=windows))
    return runs, scores
