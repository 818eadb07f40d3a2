"""Scenes of the tiny world: what stands where, and a script of camera and subject events.

A scene has two places at least 90 degrees apart as seen from the hub where the camera stands. The
main subject and the first landmark are at place 0; place 1 has the other landmark and perhaps a
subject. The script is a list of events, each a whole number of chunks long, so that the caption of
a chunk is the caption of its event.

Lengths are in units of about a metre, angles in radians, times in seconds unless a name says so.
"""

import math
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Shape = Literal["sphere", "box", "cylinder", "cone", "capsule", "ring", "animal", "vehicle"]
Color = Literal["red", "green", "blue", "yellow", "purple", "orange", "cyan", "white"]
Marking = Literal["none", "band", "dots", "cap"]
Ground = Literal["grass", "sand", "snow", "asphalt", "earth", "ice"]
Sky = Literal["clear", "sunset", "night", "overcast", "dawn"]
Landmark = Literal["tower", "arch", "tree", "rock", "house", "mast"]
Motion = Literal["still", "walk", "circle", "hop", "spin"]
EventKind = Literal[
    "hold", "orbit", "dolly", "pan-away", "away", "pan-back", "exit", "absent", "enter"
]
Stratum = Literal["stay", "short", "long", "mixed"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLORS: tuple[Color, ...] = get_args(Color)
MARKINGS: tuple[Marking, ...] = get_args(Marking)
GROUNDS: tuple[Ground, ...] = get_args(Ground)
SKIES: tuple[Sky, ...] = get_args(Sky)
LANDMARKS: tuple[Landmark, ...] = get_args(Landmark)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
EVENTS: tuple[EventKind, ...] = get_args(EventKind)

WORLD_VERSION = 1
FPS = 16
CHUNK_FRAMES = 12
FIRST_CHUNK_FRAMES = 9
PLACE_DISTANCE = 5.0
SUBJECTS = 3
PLACES = 2

# Spinning shows only on a shape or a marking that is not a surface of revolution.
_ROUND: tuple[Shape, ...] = ("sphere", "cylinder", "cone", "capsule")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject. ``lateral`` and ``depth`` are offsets from the centre of its place."""

    shape: Shape
    color: Color
    marking: Marking
    motion: Motion
    place: int
    size: float
    lateral: float
    depth: float
    heading: float
    phase: float


@dataclass(frozen=True, kw_only=True)
class Event:
    """A stretch of the script, ``chunks`` long; ``side`` is -1 for left and 1 for right."""

    kind: EventKind
    chunks: int
    side: int = 1
    amount: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A direction from the hub (``bearing``), and the landmark that stands behind its centre."""

    bearing: float
    landmark: Landmark
    lateral: float
    distance: float
    heading: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A world and its script. ``texture`` holds the phases and the turn of the ground's pattern."""

    seed: int
    ground: Ground
    sky: Sky
    subjects: tuple[Subject, ...]
    places: tuple[Place, ...]
    script: tuple[Event, ...]
    texture: tuple[float, float, float]
    stratum: Stratum = "mixed"
    version: int = WORLD_VERSION

    @property
    def chunks(self) -> int:
        """Length of the script in chunks."""
        return sum(event.chunks for event in self.script)

    def to_json(self) -> dict[str, Any]:
        """JSON tree, inverse of ``scene_from_json``."""
        return asdict(self)


def scene_from_json(tree: dict[str, Any]) -> Scene:
    """The scene of a prompt record.

    Raises:
        ValueError: made by another version of the world, or with missing or unknown fields.
    """
    if tree.get("version") != WORLD_VERSION:
        raise ValueError(
            f"scene of world version {tree.get('version')!r}; this one renders {WORLD_VERSION}"
        )
    try:
        parts: dict[str, Any] = {
            **tree,
            "subjects": tuple(Subject(**s) for s in tree["subjects"]),
            "places": tuple(Place(**p) for p in tree["places"]),
            "script": tuple(Event(**e) for e in tree["script"]),
            "texture": tuple(tree["texture"]),
        }
        return Scene(**parts)
    except (TypeError, KeyError) as error:
        raise ValueError(f"scene record does not fit: {error}; regenerate the prompt") from error


def chunk_start(chunk: int) -> int:
    """First pixel frame of a chunk: the first latent of a film holds one pixel frame.

    Example:
        >>> chunk_start(0), chunk_start(1), chunk_start(2)
        (0, 9, 21)
    """
    return 0 if chunk == 0 else FIRST_CHUNK_FRAMES + (chunk - 1) * CHUNK_FRAMES


def event_at(scene: Scene, chunk: int) -> Event:
    """The event that a chunk belongs to; the last event goes on for ever."""
    for event in scene.script:
        if chunk < event.chunks:
            return event
        chunk -= event.chunks
    return scene.script[-1]


def sample_scene(seed: int, *, stratum: Stratum = "mixed", chunks: int = 81) -> Scene:
    """A scene that depends on the arguments alone.

    ``stratum``: the subject stays in view; it returns within 3 s; it returns after 6-20 s; or
    (mixed, for training) any of these, with absences up to 40 s.
    """
    rng = random.Random(f"tinyworld-{WORLD_VERSION}-{stratum}-{seed}")
    return Scene(
        seed=seed,
        ground=rng.choice(GROUNDS),
        sky=rng.choice(SKIES),
        subjects=_subjects(rng),
        places=_places(rng),
        script=_script(rng, stratum, chunks),
        texture=(rng.uniform(0, math.tau), rng.uniform(0, math.tau), rng.uniform(0, math.tau)),
        stratum=stratum,
    )


def _subjects(rng: random.Random) -> tuple[Subject, ...]:
    count = rng.choices((1, 2, 3), (0.3, 0.45, 0.25))[0]
    at_main = [True, rng.random() < 0.65 or count == 3, False]
    shapes = rng.sample(SHAPES, count)
    colors = rng.sample(COLORS, count)
    main_size = rng.uniform(1.0, 1.45)
    subjects: list[Subject] = []
    for k in range(count):
        motion: Motion = (
            rng.choice(MOTIONS)
            if k == 0
            else rng.choices(("still", "hop", "spin"), (0.6, 0.2, 0.2))[0]
        )
        marking: Marking = rng.choices(MARKINGS, (0.4, 0.2, 0.2, 0.2))[0]
        if motion == "spin" and shapes[k] in _ROUND:
            marking = "dots"
        beside = k > 0 and at_main[k]
        subjects.append(
            Subject(
                shape=shapes[k],
                color=colors[k],
                marking=marking,
                motion=motion,
                place=0 if at_main[k] else 1,
                size=main_size * (1 if k == 0 else rng.uniform(0.7, 0.85)),
                lateral=rng.choice((-1, 1)) * rng.uniform(1.9, 2.4) if beside else 0.0,
                depth=rng.uniform(0.9, 1.5) if beside else 0.0,
                heading=rng.uniform(0, math.tau),
                phase=rng.uniform(0, math.tau),
            )
        )
    return tuple(subjects)


def _places(rng: random.Random) -> tuple[Place, ...]:
    kinds = rng.sample(LANDMARKS, PLACES)
    apart = rng.choice((-1, 1)) * math.radians(rng.uniform(96, 122))
    return tuple(
        Place(
            bearing=0.0 if k == 0 else apart,
            landmark=kinds[k],
            lateral=rng.choice((-1, 1)) * rng.uniform(2.2, 4.2),
            distance=rng.uniform(10.0, 12.5),
            heading=rng.uniform(-0.4, 0.4),
        )
        for k in range(PLACES)
    )


def _script(rng: random.Random, stratum: Stratum, chunks: int) -> tuple[Event, ...]:
    script: list[Event] = []
    while (done := sum(e.chunks for e in script)) < chunks:
        script += _presence(rng, quiet=stratum == "mixed" and done > 0)
        kind = rng.choice(("stay", "short", "long")) if stratum == "mixed" else stratum
        if kind != "stay":
            script += _absence(rng, kind == "long", widest=stratum == "mixed")
    return tuple(script)


def _presence(rng: random.Random, *, quiet: bool) -> list[Event]:
    kind: EventKind = rng.choices(("hold", "orbit", "dolly"), (0.5, 0.3, 0.2))[0]
    side = rng.choice((-1, 1))
    if kind == "orbit":
        return [
            Event(
                kind=kind,
                chunks=rng.choice((8, 10, 12)),
                side=side,
                amount=math.radians(rng.uniform(18, 28)),
            )
        ]
    if kind == "dolly":
        return [Event(kind=kind, chunks=rng.choice((6, 8, 10)), amount=rng.uniform(0.2, 0.3))]
    longest = 53 if quiet and rng.random() < 0.1 else 10
    return [Event(kind=kind, chunks=rng.randint(4, longest))]


def _absence(rng: random.Random, long: bool, *, widest: bool) -> list[Event]:
    """Departure, absence and return of the place (by the camera) or of the main subject."""
    hold = rng.randint(7, 47 if widest and rng.random() < 0.2 else 22) if long else 0
    if rng.random() < 0.7:
        chunks = rng.choice((3, 4)) if long else 3
        away = [Event(kind="away", chunks=hold)] if hold else []
        return [Event(kind="pan-away", chunks=chunks), *away, Event(kind="pan-back", chunks=chunks)]
    side = rng.choice((-1, 1))
    hold = hold or rng.randint(1, 2)
    back = rng.choice((-1, 1))
    return [
        Event(kind="exit", chunks=5, side=side),
        Event(kind="absent", chunks=hold, side=side),
        Event(kind="enter", chunks=5, side=back),
    ]
