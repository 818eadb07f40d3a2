"""What worker processes draw for the networks' training: tracks of frames, and their labels.

N frames of an item. A sampler depends on its seed alone.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cfbench.scorers.tiny.nets import CAMERAS, text_bytes
from cfmodel.config import seed_for
from cfmodel.tinyworld.caption import script_captions
from cfmodel.tinyworld.scene import (
    COLORS,
    GROUNDS,
    LANDMARKS,
    MARKINGS,
    MOTIONS,
    SHAPES,
    SKIES,
    EventKind,
    Scene,
    chunk_start,
    sample_scene,
)
from cfmodel.tinyworld.tracks import Tracks, play, stack

CHUNKS = 81
FRAMES = 8
WINDOW, WINDOW_STEP = 16, 2
CLIP = 5
PER_GROUP = 3

Item = tuple[Tracks, dict[str, Tensor]]
Sampler = Callable[[int], Item]

_CAMERA: dict[EventKind, str] = {
    "pan-away": "pan",
    "pan-back": "pan",
    "orbit": "orbit",
    "dolly": "dolly",
}
_SHOWN: tuple[EventKind, ...] = ("hold", "orbit", "dolly")


def _rng(seed: int) -> random.Random:
    return random.Random(seed ^ 0x5C0E)


def _spans(scene: Scene) -> list[tuple[int, int]]:
    """First and past-the-last pixel frame of every event."""
    spans, chunk = [], 0
    for event in scene.script:
        spans.append((chunk_start(chunk), chunk_start(chunk + event.chunks)))
        chunk += event.chunks
    return spans


def frames_item(seed: int) -> Item:
    """Random frames of a scene."""
    scene, rng = sample_scene(seed, chunks=CHUNKS), _rng(seed)
    last = chunk_start(scene.chunks)
    index = torch.tensor(sorted(rng.randrange(last) for _ in range(FRAMES)))
    return play(scene, index), {}


def windows_item(seed: int) -> Item:
    """Two windows, each within one event; ``motion`` is -1 where the script overrides it."""
    scene, rng = sample_scene(seed, chunks=CHUNKS), _rng(seed)
    reach = (WINDOW - 1) * WINDOW_STEP + 1
    fitting: dict[str, list[int]] = {}
    spans = _spans(scene)
    for k, (start, end) in enumerate(spans):
        if end - start >= reach:
            kind = _CAMERA.get(scene.script[k].kind, "still")
            # Windows that show the main subject at rest count as a kind of their own.
            shown = scene.script[k].kind == "hold"
            fitting.setdefault("hold" if shown else kind, []).append(k)
    frames, motion, camera, direction = [], [], [], []
    for kind in rng.choices(sorted(fitting), k=2):
        k = rng.choice(fitting[kind])
        start, end = spans[k]
        first = rng.randint(start, end - reach)
        frames.append(first + WINDOW_STEP * torch.arange(WINDOW))
        event = scene.script[k].kind
        own = event in _SHOWN
        motion.append(MOTIONS.index(scene.subjects[0].motion) if own else -1)
        camera.append(CAMERAS.index(_CAMERA.get(event, "still")))
        right = (scene.places[1].bearing > 0) == (event == "pan-away")
        direction.append(int(right) if kind == "pan" else -1)
    labels = {
        "motion": torch.tensor(motion),
        "camera": torch.tensor(camera),
        "direction": torch.tensor(direction),
    }
    return play(scene, torch.cat(frames)), labels


def captions_item(seed: int) -> Item:
    """Frames of a scene, and the caption of each as bytes."""
    scene, rng = sample_scene(seed, chunks=CHUNKS), _rng(seed)
    lines, spans = script_captions(scene, seed=rng.randrange(1 << 20)), _spans(scene)
    frames, texts = [], []
    for k in rng.choices(range(len(spans)), k=4):
        frames.append(rng.randrange(*spans[k]))
        texts.append(lines[k].text)
    labels = {"text": text_bytes(texts), "scene": torch.full((4,), seed >> 1)}
    return play(scene, torch.tensor(frames)), labels


def clips_item(seed: int) -> Item:
    """Two short clips of neighbouring frames."""
    scene, rng = sample_scene(seed, chunks=CHUNKS), _rng(seed)
    last = chunk_start(scene.chunks) - CLIP
    starts = [rng.randrange(last) for _ in range(2)]
    index = torch.cat([start + torch.arange(CLIP) for start in starts])
    return play(scene, index), {}


def twins_item(seed: int) -> Item:
    """Frames of a scene and of one that differs in one thing; ``place`` is 0 or 1 for each.

    The twin is what drift makes of a scene, so it must count as another one.
    """
    scene, rng = sample_scene(seed, chunks=CHUNKS), _rng(seed)
    tracks, places = [], []
    for each in (scene, _twin(scene, rng)):
        frames = []
        for place in (0, 1):
            spans = [
                span
                for event, span in zip(each.script, _spans(each), strict=True)
                if event.kind not in ("pan-away", "pan-back") and (event.kind == "away") == place
            ]
            spans = spans or [(0, 9)]
            count = 2 * PER_GROUP if place == 0 else PER_GROUP
            frames += [rng.randrange(*rng.choice(spans)) for _ in range(count)]
        tracks.append(play(each, torch.tensor(frames)))
    away = (torch.stack([t.camera[:, 3] for t in tracks]) - scene.places[0].bearing).abs() > 0.8
    places = away.long()
    return stack(tracks), {"place": places.flatten()}


def _twin(scene: Scene, rng: random.Random) -> Scene:
    def other(values: tuple[str, ...], present: str) -> str:
        return rng.choice([value for value in values if value != present])

    main, rest = scene.subjects[0], scene.subjects[1:]
    place, second = scene.places
    match rng.randrange(6):
        case 0:
            return replace(scene, ground=other(GROUNDS, scene.ground))
        case 1:
            return replace(scene, sky=other(SKIES, scene.sky))
        case 2:
            return replace(scene, subjects=(replace(main, shape=other(SHAPES, main.shape)), *rest))
        case 3:
            return replace(scene, subjects=(replace(main, color=other(COLORS, main.color)), *rest))
        case 4:
            mark = replace(main, marking=other(MARKINGS, main.marking))
            return replace(scene, subjects=(mark, *rest))
        case _:
            turned = replace(
                place, landmark=other(LANDMARKS, place.landmark), lateral=-place.lateral
            )
            return replace(scene, places=(turned, second))


class _Endless(IterableDataset[Item]):
    def __init__(self, sampler: Sampler, items: int, stream: str) -> None:
        self.sampler, self.items, self.stream = sampler, items, stream

    def __iter__(self) -> Iterator[Item]:
        torch.set_num_threads(1)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = worker
        while True:
            yield gather(self.sampler, self.stream, number * self.items, self.items)
            number += workers


def gather(sampler: Sampler, stream: str, first: int, count: int) -> Item:
    """Items ``first`` to ``first + count`` of a stream, one after the other."""
    items = [sampler(seed_for(stream, first + k)) for k in range(count)]
    labels = {name: torch.cat([item[1][name] for item in items]) for name in items[0][1]}
    return stack([item[0] for item in items]), labels


def endless(sampler: Sampler, *, items: int, stream: str, workers: int) -> Iterator[Item]:
    """Endless batches of ``items`` items; ``stream`` names the seeds."""
    loader = DataLoader(
        _Endless(sampler, items, stream),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
