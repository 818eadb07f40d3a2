"""Measures and scores of VBench's dimensions: the same bits from one process and from several."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cfbench import scorers
from cfbench.video import held
from tests.helpers.vbench_data import FPS, film, write_weights
from tests.parity.compare_vbench import asking

WORKERS = 2


class Job(NamedTuple):
    """A film to score: some frames of one of the proof's."""

    weights: Path
    kept: Path
    name: str
    start: int


class Found(NamedTuple):
    """Scores, values alone and whole, and the bytes of the measures that were kept."""

    values: dict[str, float | None]
    scores: list[dict[str, Any]]
    measures: dict[str, bytes]


def scored(job: Job) -> Found:
    """What a worker makes of a film."""
    torch.set_num_threads(1)
    clip = held(film(job.name)[job.start : job.start + 5], FPS)
    suite = scorers.load(f"vbench:{job.weights}", kept=job.kept)
    found = suite.score(clip, asking(job.name))
    paths = sorted(job.kept.rglob(f"{clip.sha256}/*.npz"))
    measures = {path.name: path.read_bytes() for path in paths}
    return Found({s.dimension: s.value for s in found}, [asdict(s) for s in found], measures)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("vbench"))


@pytest.mark.slow
def test_workers_and_order_change_no_bit(weights, tmp_path):
    def jobs(kept):
        return [Job(weights, tmp_path / kept, *f) for f in (("slow", 0), ("fast", 2), ("slow", 6))]

    threads = torch.get_num_threads()
    try:
        alone = [scored(job) for job in jobs("alone")]
    finally:
        torch.set_num_threads(threads)
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=spawning) as pool:
        several = list(pool.map(scored, reversed(jobs("several"))))
    assert several[::-1] == alone
    for found in alone:
        assert len(found.measures) == 10
        assert found.values["dynamic_degree"] is not None
        assert found.values["overall_consistency"] is not None
    assert alone[0].values != alone[2].values
