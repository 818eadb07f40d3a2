"""Films with events at known times, and films that only look as if they had some.

N pixel frames, Y rows, X columns. A film is a *world* that gives any frame by its number, a list of
numbers to show, and marks of the camera (grain, exposure, shake) laid over the frames shown. A
flashback shows the opening's numbers again, a loop those of a stretch, a freeze one number; so
what is planted is true by construction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cfbench import video
from cfbench.analysis.events import Event, Kind
from cfbench.analysis.features import Floats
from cfbench.analysis.worlds import RATE, Panorama, ease
from cfbench.systems.scenes import HEIGHT, WIDTH, Leaves, SceneFilm

PLANTED: tuple[Kind, ...] = ("flashback", "loop", "freeze")
INNOCENT = ("return", "cut", "zoom", "shake", "still", "flicker")
MIX = ("flashback", "return", "loop", "cut", "freeze", "zoom", "flashback", "shake", "loop",
       "still", "freeze", "flicker")  # fmt: skip
"""What films hold in turn: half of them an event, half of them none."""


class World(Protocol):
    """Gives any frame of a film by its number."""

    frames: int

    def take(self, index_N: NDArray[np.intp]) -> video.Frames:
        """Frames uint8 (N, Y, X, 3)."""
        ...


class Planted(NamedTuple):
    """A film and what is true of it.

    Attributes:
        name: unique within a set: ``kind-world-number``.
        kind: what was planted, or which innocent thing it shows.
        frames: uint8 (N, Y, X, 3).
        events: what a detector should find.
    """

    name: str
    kind: str
    frames: video.Frames
    events: tuple[Event, ...]


@dataclass
class Reel:
    """A film in the making: which frames to show, what to lay over them, what is true."""

    world: World
    index_N: NDArray[np.intp]
    others: list[tuple[int, int, World]] = field(default_factory=list)
    touched: list[tuple[int, int]] = field(default_factory=list)
    blend: dict[int, int] = field(default_factory=dict)
    shift_N2: Floats | None = None
    exposure_N: Floats | None = None
    frozen: list[tuple[int, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def film(number: int, seed: int) -> Planted:
    """The film with this number of the set with this seed: kinds take turns, as in ``MIX``.

    Every second round is in the tiny world, the others over panoramas.
    """
    rng = np.random.default_rng([seed, number])
    kind = MIX[number % len(MIX)]
    is_tiny = (number // len(MIX)) % 2 == 0
    reel = MAKERS[kind](rng, is_tiny)
    frames = _develop(reel, rng)
    name = f"{kind}-{'tiny' if is_tiny else 'panorama'}-{number}"
    return Planted(name, kind, frames, tuple(reel.events))


# Worlds.


def _seconds(rng: np.random.Generator, low: float, high: float) -> int:
    return round(float(rng.uniform(low, high)) * RATE)


def _tiny(rng: np.random.Generator, frames: int, stratum: Leaves) -> World:
    return SceneFilm(int(rng.integers(1 << 30)), stratum, frames)


MOVING: tuple[Leaves, ...] = ("short", "long")


def _short_or_long(rng: np.random.Generator) -> Leaves:
    return MOVING[int(rng.integers(2))]


def _leaving(rng: np.random.Generator, is_tiny: bool) -> tuple[World, int, int]:
    """A world that leaves its opening, and a stretch in which it is away; 18 to 26 s."""
    total = _seconds(rng, 18, 26)
    if not is_tiny:
        leave = _seconds(rng, 3, 7)
        across = _wander(rng, total, leave)
        return Panorama(rng, across, has_subject=bool(rng.random() < 0.6)), leave + 32, total
    while True:
        world = SceneFilm(int(rng.integers(1 << 30)), "long", total)
        away = [(a, b) for kind, a, b in world.events() if kind == "away" and b - a > 5 * RATE]
        if away and away[0][0] > 3 * RATE:
            return world, *away[0]


def _wander(rng: np.random.Generator, total: int, leave: int) -> Floats:
    """A path that stays near its start until ``leave``, then goes on elsewhere for good."""
    at = np.arange(total)
    side = rng.choice((-1.0, 1.0))
    start = 0.5 - side * rng.uniform(0.2, 0.4)
    pace = _seconds(rng, 1.5, 4)
    far = side * rng.uniform(0.25, 0.4) * ease((at - leave) / pace)
    slow = side * rng.uniform(0.0, 0.15) * at / total
    sway = 0.004 * np.sin(at / RATE * rng.uniform(0.5, 2) + rng.uniform(0, 6))
    across = start + far + slow + sway
    down = 0.5 + 0.2 * np.sin(at / RATE * rng.uniform(0.1, 0.4) + rng.uniform(0, 6))
    return np.stack([across, down, np.full(total, rng.uniform(1.0, 1.4))], 1)


def _staying(rng: np.random.Generator, is_tiny: bool, zoom: float = 0.0) -> World:
    """A world whose camera stays, but for a slow zoom."""
    total = _seconds(rng, 12, 20)
    if is_tiny and zoom == 0.0:
        return _tiny(rng, total, "stay")
    at = np.arange(total) / total
    start = rng.uniform(1.0, 1.3)
    ones = np.ones(total)
    path = np.stack(
        [rng.uniform(0.1, 0.9) * ones, rng.uniform(0.2, 0.8) * ones, start + zoom * ease(at)], 1
    )
    return Panorama(rng, path, has_subject=bool(rng.random() < 0.7))


def _restless(rng: np.random.Generator, is_tiny: bool) -> World:
    """A world whose camera moves throughout."""
    total = _seconds(rng, 16, 24)
    if is_tiny:
        return _tiny(rng, total, _short_or_long(rng))
    at = np.arange(total) / RATE
    turns = rng.uniform(0.15, 0.5, 3)
    across = 0.5 + 0.3 * np.sin(turns[0] * at) + 0.1 * np.sin(2.3 * turns[1] * at + 1)
    down = 0.5 + 0.3 * np.sin(turns[2] * at + rng.uniform(0, 6))
    scale = np.full(total, rng.uniform(1.0, 1.4))
    return Panorama(rng, np.stack([across, down, scale], 1), has_subject=bool(rng.random() < 0.6))


# What is planted.


def _flashback(rng: np.random.Generator, is_tiny: bool) -> Reel:
    world, first, last = _leaving(rng, is_tiny)
    index = np.arange(world.frames)
    at = int(rng.integers(first + RATE, last - RATE))
    length = _seconds(rng, 0.5, 4) if rng.random() < 0.7 else world.frames
    end = min(world.frames, at + length)
    # The opening comes back from its first half second on, and goes on from there.
    begin = int(rng.integers(0, RATE // 2))
    back = begin + np.arange(end - at)
    left = next((k for k, frame in enumerate(back) if frame >= first), len(back))
    index[at:end] = back
    reel = Reel(world, index, touched=[(at, end)], blend={at: int(rng.choice((0, 0, 1, 2, 3)))})
    reel.events.append(Event("flashback", at / RATE, (at + left) / RATE, 1.0))
    return reel


def _loop(rng: np.random.Generator, is_tiny: bool) -> Reel:
    while True:
        world = _restless(rng, is_tiny)
        period = _seconds(rng, 2, 5)
        start = _seconds(rng, 2, 8)
        source = np.arange(start, start + period)
        if start + period <= world.frames and _moves(world, source):
            break
    rounds = int(rng.integers(3, 6))
    looped = np.tile(source, rounds)
    rest = np.arange(start + period, world.frames)
    index = np.concatenate([np.arange(start), looped, rest])
    reel = Reel(world, index.astype(np.intp))
    blend = int(rng.choice((0, 0, 2)))
    reel.blend = {start + k * period: blend for k in range(1, rounds)}
    span = (start / RATE, (start + rounds * period) / RATE)
    reel.events.append(Event("loop", *span, 1.0, period / RATE))
    return reel


LEAST_MOVE = 12.0  # levels: two pictures that differ by less are not worth calling a loop


def _moves(world: World, source: NDArray[np.intp]) -> bool:
    """Whether the picture changes by much within a stretch, so that repeating it is an event."""
    picks = world.take(source[:: max(1, len(source) // 4)]).astype(np.float64)
    return max(float(np.abs(picks[0] - other).mean()) for other in picks[1:]) > LEAST_MOVE


def _freeze(rng: np.random.Generator, is_tiny: bool) -> Reel:
    world = _restless(rng, is_tiny)
    at, length = _seconds(rng, 2, 8), _seconds(rng, 1.5, 6)
    if rng.random() < 0.25:
        length = world.frames - at
    held = np.full(length, at)
    skips = rng.random() < 0.5
    rest = np.arange(at + (length if skips else 1), world.frames)
    index = np.concatenate([np.arange(at), held, rest]).astype(np.intp)
    reel = Reel(world, index, frozen=[(at, at + length)])
    reel.events.append(Event("freeze", at / RATE, (at + length) / RATE, 1.0))
    return reel


# What only looks like it.


def _return(rng: np.random.Generator, is_tiny: bool) -> Reel:
    """The camera pans away and comes back."""
    if is_tiny:
        world = _tiny(rng, _seconds(rng, 20, 28), _short_or_long(rng))
        return Reel(world, np.arange(world.frames))
    total, leave = _seconds(rng, 16, 24), _seconds(rng, 2, 5)
    pace, stay = _seconds(rng, 1.5, 4), _seconds(rng, 0.5, 6)
    at = np.arange(total)
    out = ease((at - leave) / pace) - ease((at - leave - pace - stay) / pace)
    start, far = rng.uniform(0.1, 0.4), rng.uniform(0.15, 0.5)
    ones = np.ones(total)
    path = np.stack(
        [start + far * out, rng.uniform(0.2, 0.8) * ones, rng.uniform(1, 1.4) * ones], 1
    )
    return Reel(Panorama(rng, path, has_subject=bool(rng.random() < 0.6)), at)


def _cut(rng: np.random.Generator, is_tiny: bool) -> Reel:
    """One to three hard cuts, each to a place not seen before."""
    world = _restless(rng, is_tiny)
    reel = Reel(world, np.arange(world.frames))
    cuts = np.sort(rng.choice(np.arange(2 * RATE, world.frames - RATE), 3, replace=False))
    for at in cuts[: int(rng.integers(1, 4))]:
        reel.others.append((int(at), world.frames, _restless(rng, is_tiny)))
    return reel


def _zoom(rng: np.random.Generator, is_tiny: bool) -> Reel:
    world = _staying(rng, False, zoom=float(rng.uniform(0.4, 1.5)))
    index = np.arange(world.frames)
    return Reel(world, index[::-1].copy() if rng.random() < 0.5 else index)


def _shake(rng: np.random.Generator, is_tiny: bool) -> Reel:
    world = _staying(rng, is_tiny)
    steps = rng.normal(size=(world.frames, 2)) * rng.uniform(0.5, 2.0)
    shift = np.zeros_like(steps)
    for k in range(1, len(steps)):
        shift[k] = 0.8 * shift[k - 1] + steps[k]
    return Reel(world, np.arange(world.frames), shift_N2=shift)


def _still(rng: np.random.Generator, is_tiny: bool) -> Reel:
    world = _staying(rng, is_tiny)
    return Reel(world, np.arange(world.frames))


def _flicker(rng: np.random.Generator, is_tiny: bool) -> Reel:
    """Light that jumps or swings."""
    world = _staying(rng, is_tiny) if rng.random() < 0.5 else _restless(rng, is_tiny)
    reel = Reel(world, np.arange(world.frames))
    at = np.arange(world.frames) / RATE
    swing = 1 + rng.uniform(0.1, 0.3) * np.sin(at * rng.uniform(1.0, 12.0))
    jumps = np.ones(world.frames)
    for _ in range(int(rng.integers(1, 4))):
        begin = int(rng.integers(RATE, world.frames))
        jumps[begin : begin + _seconds(rng, 0.2, 3)] *= rng.uniform(0.6, 1.35)
    reel.exposure_N = swing if rng.random() < 0.5 else jumps
    return reel


MAKERS: dict[str, Callable[[np.random.Generator, bool], Reel]] = {
    "flashback": _flashback, "loop": _loop, "freeze": _freeze, "return": _return, "cut": _cut,
    "zoom": _zoom, "shake": _shake, "still": _still, "flicker": _flicker,
}  # fmt: skip


# From numbers to pictures.


def _develop(reel: Reel, rng: np.random.Generator) -> video.Frames:
    frames = reel.world.take(reel.index_N).astype(np.float32)
    for first, end, other in reel.others:
        take = np.minimum(np.arange(first, end), other.frames - 1)
        frames[first:end] = other.take(take)
    for first, end in reel.touched:
        frames[first:end] = _worse(frames[first:end], rng)
    for at, width in reel.blend.items():
        _dissolve(frames, at, width)
    if reel.shift_N2 is not None:
        frames = np.stack([_moved(f, s) for f, s in zip(frames, reel.shift_N2, strict=True)])
    if reel.exposure_N is not None:
        frames = frames * reel.exposure_N[:, None, None, None].astype(np.float32)
    frames += _grain(rng, frames.shape)
    for first, end in reel.frozen:
        frames[first:end] = frames[first]
    return frames.clip(0, 255).astype(np.uint8)


def _grain(rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """Noise of a camera, correlated over a pixel or two so that an encoder keeps it."""
    sigma = rng.uniform(2.0, 4.0)
    fine = rng.standard_normal((shape[0], shape[1], shape[2], 1), np.float32)
    coarse = rng.standard_normal((shape[0], HEIGHT // 4, WIDTH // 4), np.float32)
    large = np.stack([cv2.resize(one, (shape[2], shape[1])) for one in coarse])
    return (sigma * (0.5 * fine + 0.7 * large[..., None])).astype(np.float32)


def _worse(frames: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """An opening as a model would show it again: a little off in place, light and colour."""
    shift = rng.uniform(-2, 2, 2)
    moved = np.stack([_moved(frame, shift) for frame in frames])
    gain = rng.uniform(0.9, 1.1) * rng.uniform(0.96, 1.04, 3)
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), float(rng.uniform(0.3, 0.8))) for f in moved])
    return (blurred * gain.astype(np.float32) + rng.uniform(-6, 6)).astype(np.float32)


def _moved(frame: NDArray[np.float32], shift: Floats) -> NDArray[np.float32]:
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    size = (frame.shape[1], frame.shape[0])
    return np.asarray(
        cv2.warpAffine(frame, matrix, size, borderMode=cv2.BORDER_REFLECT), np.float32
    )


def _dissolve(frames: NDArray[np.float32], at: int, width: int) -> None:
    """Mix the last frame before a cut into the ``width`` frames after it."""
    old = frames[at - 1].copy()
    for k in range(min(width, len(frames) - at)):
        share = (k + 1) / (width + 1)
        frames[at + k] = share * frames[at + k] + (1 - share) * old
