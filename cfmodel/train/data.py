"""The endless stream of the tiny world: scenes sampled and played by worker processes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cfmodel.config import seed_for
from cfmodel.tinyworld.caption import script_captions
from cfmodel.tinyworld.scene import Scene, chunk_start, sample_scene
from cfmodel.tinyworld.tracks import Tracks, play, stack

SCRIPT_CHUNKS = 81


@dataclass
class Clip:
    """A stretch of a scene: its frames' tracks, first chunk, and the caption of each chunk."""

    scene: Scene
    tracks: Tracks
    frames: torch.Tensor
    start: int
    texts: tuple[str, ...]


@dataclass
class Batch:
    """Clips of equal length: the text of each chunk, and all frames one clip after the other.

    What a worker sends is few large tensors: each one costs the receiver, however small it is.
    """

    texts: list[tuple[str, ...]]
    tracks: Tracks

    def __len__(self) -> int:
        return len(self.texts)


def contiguous_clip(chunks: int, start_share: float = 0.3) -> Callable[[int], Clip]:
    """Sampler of clips of ``chunks`` chunks; a share of them begins where the film begins.

    A clip that begins later still shows ``1 + 4 (n - 1)`` pixel frames, its first latent one.
    """

    def sample(seed: int) -> Clip:
        scene = sample_scene(seed, chunks=SCRIPT_CHUNKS)
        rng = random.Random(seed ^ 0x5EED)
        latest = max(scene.chunks - chunks, 0)
        start = 0 if rng.random() < start_share else rng.randint(0, latest)
        lines = script_captions(scene)
        by_chunk = [line.text for line in lines for _ in range(line.chunks)]
        first = chunk_start(start) + (3 if start else 0)
        frames = torch.arange(first, chunk_start(start + chunks))
        texts = tuple(by_chunk[start : start + chunks])
        return Clip(scene, play(scene, frames), frames, start, texts)

    return sample


def still_frames(count: int) -> Callable[[int], Clip]:
    """Sampler of ``count`` random frames of a scene, each with its own caption."""

    def sample(seed: int) -> Clip:
        scene = sample_scene(seed, chunks=SCRIPT_CHUNKS)
        rng = random.Random(seed ^ 0x5EED)
        lines = script_captions(scene)
        by_chunk = [line.text for line in lines for _ in range(line.chunks)]
        frames = sorted(rng.randrange(chunk_start(scene.chunks)) for _ in range(count))
        texts = tuple(by_chunk[0 if f < 9 else (f - 9) // 12 + 1] for f in frames)
        index = torch.tensor(frames)
        return Clip(scene, play(scene, index), index, 0, texts)

    return sample


class _Endless(IterableDataset[Batch]):
    def __init__(self, sample: Callable[[int], Clip], batch: int, stream: str) -> None:
        self.sample, self.batch, self.stream = sample, batch, stream

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = worker
        while True:
            seeds = [seed_for(self.stream, number * self.batch + k) for k in range(self.batch)]
            clips = [self.sample(seed) for seed in seeds]
            yield Batch([clip.texts for clip in clips], stack([clip.tracks for clip in clips]))
            number += workers


def world_stream(
    sample: Callable[[int], Clip], *, batch: int, stream: str, workers: int = 0
) -> Iterator[Batch]:
    """Endless batches; ``stream`` names the seeds, so train and held-out scenes never meet."""
    dataset = _Endless(sample, batch, stream)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
