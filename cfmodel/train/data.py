"""The endless stream of the tiny world: scenes sampled and played by worker processes.

What a worker sends is few large tensors: each one costs the receiver, however small it is.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cfmodel.config import seed_for
from cfmodel.memory.select import is_candidate
from cfmodel.tinyworld.caption import script_captions
from cfmodel.tinyworld.scene import EventKind, Scene, chunk_start, sample_scene
from cfmodel.tinyworld.tracks import Tracks, play, stack

SCRIPT_CHUNKS = 81
SINK, SLOW, LOCAL, TARGET = 3, 12, 6, 21
CONTEXT = SINK + SLOW + LOCAL
"""Latents of a context clip: sink, slow, local context, then the target."""
RETURN_SHARE = 0.65
"""Share of context clips that are placed where something comes back; some scenes have no such."""
OPENING_SHARE = 0.15
"""Share of context clips whose target is the beginning of a film."""

_MOVING: tuple[EventKind, ...] = ("orbit", "dolly", "pan-away", "pan-back", "exit", "enter")
KEPT_MOVING, KEPT_QUIET, KEPT_ALL = 0.7, 0.15, 0.3

T = TypeVar("T")


@dataclass
class Batch:
    """Clips of equal length: the text of each chunk, and all frames one clip after the other."""

    texts: list[tuple[str, ...]]
    tracks: Tracks

    def __len__(self) -> int:
        return len(self.texts)


def texts_by_chunk(scene: Scene) -> list[str]:
    """The caption of each chunk of a scene's script."""
    return [line.text for line in script_captions(scene) for _ in range(line.chunks)]


def contiguous_clips(chunks: int, start_share: float = 0.3) -> Callable[[list[int]], Batch]:
    """Sampler of clips of ``chunks`` chunks; a share of them begins where the film begins.

    A clip that begins later still shows ``1 + 4 (n - 1)`` pixel frames, its first latent one.
    """

    def one(seed: int) -> tuple[tuple[str, ...], Tracks]:
        scene = sample_scene(seed, chunks=SCRIPT_CHUNKS)
        rng = random.Random(seed ^ 0x5EED)
        latest = max(scene.chunks - chunks, 0)
        start = 0 if rng.random() < start_share else rng.randint(0, latest)
        first = chunk_start(start) + (3 if start else 0)
        frames = torch.arange(first, chunk_start(start + chunks))
        return tuple(texts_by_chunk(scene)[start : start + chunks]), play(scene, frames)

    def sample(seeds: list[int]) -> Batch:
        texts, tracks = zip(*map(one, seeds), strict=True)
        return Batch(list(texts), stack(list(tracks)))

    return sample


TRIES = 64
"""Scenes looked at for one in which something comes back in time; two or three do as a rule."""


def openings(chunks: int, told: int) -> Callable[[list[int]], Batch]:
    """Sampler of the first ``chunks`` chunks of films, with the texts of the first ``told``.

    In the target that follows something comes back, as ``returns_at`` has it.

    Raises:
        RuntimeError: none of many scenes is like that, as when ``chunks`` is too small.
    """

    def one(seed: int) -> Scene:
        soon = range(chunks, chunks + TARGET // 3)
        for k in range(TRIES):
            scene = sample_scene(seed_for("opening", seed, k), chunks=max(told, SCRIPT_CHUNKS))
            if any(chunk in soon for chunk in returns_at(scene)):
                return scene
        raise RuntimeError(f"nothing comes back after {chunks} chunks in {TRIES} scenes")

    def sample(seeds: list[int]) -> Batch:
        scenes = [one(seed) for seed in seeds]
        frames = torch.arange(chunk_start(chunks))
        texts = [tuple(texts_by_chunk(scene)[:told]) for scene in scenes]
        return Batch(texts, stack([play(scene, frames) for scene in scenes]))

    return sample


@dataclass
class ContextBatch:
    """Clips for a teacher that sees a memory: sink, chosen slow latents, local context, target.

    ``texts`` has one text a latent, empty where a slow slot is. ``slow`` names the clip and the
    slot of each slow latent that there is, ``slow_tracks`` its frames (one before its four);
    ``sink_tracks`` are the frames of the first chunk, ``tail_tracks`` those of local context and
    target with one frame before them. ``returning`` (B,) says that the target shows something
    again that no local latent shows.

    ``opening`` (B,): the target is the beginning of a film, and nothing comes before it. The tail
    then is the film's first frames, its target the first 21 latents of these.
    """

    texts: list[tuple[str, ...]]
    sink_tracks: Tracks
    slow_tracks: Tracks
    tail_tracks: Tracks
    slow: torch.Tensor
    returning: torch.Tensor
    opening: torch.Tensor

    def __len__(self) -> int:
        return len(self.texts)


def returns_at(scene: Scene) -> list[int]:
    """Chunks at which something out of view for longer than the local context comes back.

    The first place or the subject after an absence, or the second place at a further visit. The
    latter is never in a film's sink.
    """
    found, chunk, visited = [], 0, False
    for k, event in enumerate(scene.script):
        before = scene.script[k - 1] if k else event
        gone = before.kind in ("away", "absent") and before.chunks * 3 >= LOCAL
        if event.kind in ("pan-back", "enter") and gone:
            found.append(chunk)
        if event.kind == "pan-away":
            if visited:
                found.append(chunk)
            visited = True
        chunk += event.chunks
    return found


def kept_chunks(scene: Scene, start: int, rng: random.Random) -> list[int]:
    """Chunks before the local context of ``start`` whose first latent slow memory may hold.

    Drawn as a surprisal rule would: most candidates while something moves, few in quiet holds;
    sometimes all of them. The newest ``SLOW`` stay.
    """
    kinds = [event.kind for event in scene.script for _ in range(event.chunks)]
    everything = rng.random() < KEPT_ALL
    candidates = [
        c for c in range(start - LOCAL // 3) if is_candidate(c, "surprisal-2") and c < len(kinds)
    ]
    share = [KEPT_MOVING if kind in _MOVING else KEPT_QUIET for kind in kinds]
    kept = [c for c in candidates if everything or rng.random() < share[c]]
    return kept[-SLOW:]


def context_clips(opening: float = OPENING_SHARE) -> Callable[[list[int]], ContextBatch]:
    """Sampler of context clips; most of their targets show something that comes back.

    Args:
        opening: share of clips whose target is the beginning of a film, with no context.
    """
    chunks = TARGET // 3

    def start_of(scene: Scene, rng: random.Random) -> tuple[int, bool]:
        first, last = (SINK + LOCAL) // 3, scene.chunks - chunks
        starts = [c for c in returns_at(scene) if first <= c <= last]
        if starts and rng.random() < RETURN_SHARE:
            return max(first, rng.choice(starts) - rng.randint(0, 1)), True
        return rng.randint(first, last), False

    def first(scene: Scene) -> tuple[tuple[str, ...], list[Tracks], list[int], bool, bool]:
        text = texts_by_chunk(scene)
        frames = (torch.arange(chunk_start(1)), torch.arange(4 * (LOCAL + TARGET) + 1))
        texts = (*[""] * CONTEXT, *(text[k // 3] for k in range(TARGET)))
        return texts, [play(scene, index) for index in frames], [], False, True

    def one(seed: int) -> tuple[tuple[str, ...], list[Tracks], list[int], bool, bool]:
        scene, rng = sample_scene(seed, chunks=SCRIPT_CHUNKS), random.Random(seed ^ 0x5EED)
        if random.Random(seed ^ 0x09E1).random() < opening:
            return first(scene)
        start, returning = start_of(scene, rng)
        kept = kept_chunks(scene, start, rng)
        tail = 3 * start - LOCAL  # first latent of the local context
        frames = [
            torch.arange(chunk_start(1)),
            *(torch.arange(12 * c - 4, 12 * c + 1) for c in kept),
            torch.arange(4 * tail - 4, 4 * (tail + LOCAL + TARGET - 1) + 1),
        ]
        text = texts_by_chunk(scene)
        slots = list(range(SLOW - len(kept), SLOW))  # the newest is next to the local context
        slow = dict(zip(slots, kept, strict=True))
        texts = (
            *[text[0]] * SINK,
            *(text[slow[k]] if k in slow else "" for k in range(SLOW)),
            *(text[(tail + k) // 3] for k in range(LOCAL + TARGET)),
        )
        return texts, [play(scene, index) for index in frames], slots, returning, False

    def sample(seeds: list[int]) -> ContextBatch:
        texts, parts, slots, returning, openings = zip(*map(one, seeds), strict=True)
        slow = [(k, slot) for k, of_clip in enumerate(slots) for slot in of_clip]
        inner = [tracks for part in parts for tracks in part[1:-1]]
        return ContextBatch(
            texts=list(texts),
            sink_tracks=stack([part[0] for part in parts]),
            slow_tracks=stack(inner) if inner else parts[0][0][:0],
            tail_tracks=stack([part[-1] for part in parts]),
            slow=torch.tensor(slow, dtype=torch.int64).view(-1, 2),
            returning=torch.tensor(returning),
            opening=torch.tensor(openings),
        )

    return sample


@dataclass
class Scripts:
    """Texts of films from their beginning, chunk by chunk, and where something comes back."""

    texts: list[tuple[str, ...]]
    returns: torch.Tensor


def scripts(chunks: int) -> Callable[[list[int]], Scripts]:
    """Sampler of scripts of ``chunks`` chunks; ``returns`` (B, chunks) marks ``returns_at``."""

    def sample(seeds: list[int]) -> Scripts:
        scenes = [sample_scene(seed, chunks=max(chunks, SCRIPT_CHUNKS)) for seed in seeds]
        marks = torch.zeros(len(scenes), chunks, dtype=torch.bool)
        for k, scene in enumerate(scenes):
            marks[k, [c for c in returns_at(scene) if c < chunks]] = True
        return Scripts([tuple(texts_by_chunk(scene)[:chunks]) for scene in scenes], marks)

    return sample


class _Endless(IterableDataset[T], Generic[T]):
    def __init__(
        self, sample: Callable[[list[int]], T], batch: int, stream: str, first: int
    ) -> None:
        self.sample, self.batch, self.stream, self.first = sample, batch, stream, first

    def __iter__(self) -> Iterator[T]:
        torch.set_num_threads(1)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.first + worker
        while True:
            yield self.sample(
                [seed_for(self.stream, number * self.batch + k) for k in range(self.batch)]
            )
            number += workers


def world_stream(
    sample: Callable[[list[int]], T], *, batch: int, stream: str, workers: int = 0, first: int = 0
) -> Iterator[T]:
    """Endless batches; ``stream`` names the seeds, so train and held-out scenes never meet.

    Args:
        sample: makes a batch of as many seeds.
        batch: clips of a batch.
        stream: name of the stream.
        workers: processes; the order of batches does not depend on how many.
        first: number of the first batch, to go on where a run stopped.
    """
    loader = DataLoader(
        _Endless(sample, batch, stream, first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
