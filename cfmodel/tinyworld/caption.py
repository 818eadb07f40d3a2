"""The caption grammar: what a scene's text says, and what a text says of a scene.

A caption has two sentences: one about the scene, the same attributes in every segment of a film,
and one about the segment's event. A film names only some of its attributes (``Mentions``); what no
caption names can be kept by memory alone.
"""

import random
import re
from dataclasses import dataclass, field, fields
from typing import NamedTuple, TypeVar

from cfmodel.tinyworld.scene import (
    Color,
    Event,
    EventKind,
    Ground,
    Landmark,
    Marking,
    Motion,
    Scene,
    Shape,
    Sky,
    Subject,
    chunk_start,
)

Value = TypeVar("Value", bound=str)

MAX_BYTES = 256

SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    "sphere": ("sphere", "ball", "orb"),
    "box": ("cube", "box", "block"),
    "cylinder": ("cylinder", "drum", "barrel"),
    "cone": ("cone", "spike"),
    "capsule": ("capsule", "pill"),
    "ring": ("ring", "hoop", "torus"),
    "animal": ("animal", "dog", "hound"),
    "vehicle": ("vehicle", "car", "truck"),
}
COLOR_WORDS: dict[Color, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "tangerine"),
    "cyan": ("cyan", "turquoise"),
    "white": ("white", "ivory"),
}
MARKING_WORDS: dict[Marking, tuple[str, ...]] = {
    "none": ("plain", "unmarked"),
    "band": ("banded", "belted"),
    "dots": ("dotted", "spotted"),
    "cap": ("capped", "two-toned"),
}
GROUND_WORDS: dict[Ground, tuple[str, ...]] = {
    "grass": ("on grass", "in a meadow", "on a lawn"),
    "sand": ("on sand", "in a desert", "on a beach"),
    "snow": ("on snow", "in a snowy field", "in a winter field"),
    "asphalt": ("on asphalt", "on pavement", "on a road"),
    "earth": ("on bare earth", "on soil", "on clay"),
    "ice": ("on ice", "on a frozen lake", "on a frozen sea"),
}
SKY_WORDS: dict[Sky, tuple[str, ...]] = {
    "clear": ("under a clear sky", "on a sunny day", "in bright daylight"),
    "sunset": ("at sunset", "in the evening glow", "at dusk"),
    "night": ("at night", "under a night sky", "in the dark"),
    "overcast": ("under an overcast sky", "on a cloudy day", "in dull weather"),
    "dawn": ("at dawn", "in the early morning", "at first light"),
}
LANDMARK_WORDS: dict[Landmark, tuple[str, ...]] = {
    "tower": ("tower", "turret"),
    "arch": ("arch", "gateway"),
    "tree": ("tree", "oak"),
    "rock": ("rock", "boulder"),
    "house": ("house", "cottage"),
    "mast": ("mast", "flagpole"),
}
MOTION_WORDS: dict[Motion, tuple[str, ...]] = {
    "still": ("stands still", "rests", "does not move"),
    "walk": ("walks to and fro", "moves back and forth", "paces"),
    "circle": ("goes round in circles", "circles", "runs in a loop"),
    "hop": ("hops", "jumps up and down", "bounces"),
    "spin": ("spins", "turns on the spot", "rotates"),
}
EVENT_WORDS: dict[EventKind, tuple[str, ...]] = {
    "hold": ("The camera holds still.", "A fixed shot.", "The view stays put."),
    "orbit": ("The camera swings around {it}.", "An orbiting shot.", "The view arcs around {it}."),
    "dolly": ("The camera moves in and out.", "A dolly shot.", "The view pushes in, then back."),
    "pan-away": (
        "The camera pans away to the {away}.",
        "The view turns {away}, away from {it}.",
        "A pan to the {away}, leaving {it}.",
    ),
    "away": (
        "The camera stays turned away.",
        "{It} is behind the camera.",
        "The view lingers on the other place.",
    ),
    "pan-back": (
        "The camera pans back to the {back}.",
        "The view turns {back}, back to {it}.",
        "A pan to the {back}, returning to {it}.",
    ),
    "exit": (
        "{It} leaves to the {side}.",
        "{It} goes out of view, heading {side}.",
        "{It} departs to the {side}.",
    ),
    "absent": ("{It} is out of view.", "{It} is gone for now.", "The place is left empty."),
    "enter": (
        "{It} comes back from the {side}.",
        "{It} returns from the {side}.",
        "{It} re-enters from the {side}.",
    ),
}
_SIDES = {-1: "left", 1: "right"}


@dataclass(frozen=True, kw_only=True)
class Mentions:
    """Which attributes a film's captions name. Main shape and motion are always named."""

    color: bool = True
    marking: bool = False
    ground: bool = True
    sky: bool = True
    second: bool = True
    second_color: bool = False
    landmark: bool = False


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a text says: None where it is silent. ``side`` is the second subject's side of the main.

    ``recognised`` says that the text names a subject of the tiny world at all.
    """

    shape: Shape | None = None
    color: Color | None = None
    marking: Marking | None = None
    motion: Motion | None = None
    second_shape: Shape | None = None
    second_color: Color | None = None
    side: int | None = None
    ground: Ground | None = None
    sky: Sky | None = None
    landmark: Landmark | None = None
    event: EventKind | None = None
    recognised: bool = field(default=False)

    def labels(self) -> dict[str, object]:
        """The named attributes alone, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "recognised" and getattr(self, f.name) is not None
        }


@dataclass(frozen=True, kw_only=True)
class Line:
    """The caption of one event of a script, and how long it lasts."""

    text: str
    seconds: float
    chunks: int


def sample_mentions(rng: random.Random, *, main: bool = False) -> Mentions:
    """About half of the attributes; with ``main`` colour, ground and sky are always named."""
    return Mentions(
        color=main or rng.random() < 0.75,
        marking=rng.random() < 0.25,
        ground=main or rng.random() < 0.7,
        sky=main or rng.random() < 0.7,
        second=rng.random() < 0.6,
        second_color=rng.random() < 0.5,
        landmark=rng.random() < 0.35,
    )


def script_captions(scene: Scene, *, main: bool = False, seed: int = 0) -> tuple[Line, ...]:
    """The captions of a scene's events, in order; they depend on scene and seed alone."""
    rng = random.Random(f"caption-{scene.version}-{scene.seed}-{scene.stratum}-{seed}")
    mentions = sample_mentions(rng, main=main)
    lines, chunk = [], 0
    for event in scene.script:
        frames = chunk_start(chunk + event.chunks) - chunk_start(chunk)
        chunk += event.chunks
        text = caption(scene, event, mentions, rng)
        lines.append(Line(text=text, seconds=frames / 16, chunks=event.chunks))
    return tuple(lines)


def caption(
    scene: Scene,
    event: Event,
    mentions: Mentions,
    rng: random.Random,
    *,
    held_out: bool = False,
) -> str:
    """One caption: a sentence of the scene and one of the event.

    ``held_out`` uses the sentence forms that training never shows.
    """
    main = scene.subjects[0]
    noun = _noun_phrase(main, mentions.color, mentions.marking, rng)
    motion = rng.choice(MOTION_WORDS[main.motion])
    beside = _beside(scene, mentions, rng)
    where = [rng.choice(GROUND_WORDS[scene.ground])] if mentions.ground else []
    light = [rng.choice(SKY_WORDS[scene.sky])] if mentions.sky else []
    near = []
    if mentions.landmark:
        near = [f"near {_a(rng.choice(LANDMARK_WORDS[scene.places[0].landmark]))}"]
    pieces = _Pieces(noun, motion, beside, where, near, light)
    first = _held_out_form(pieces) if held_out else rng.choice(_FORMS)(pieces, rng)
    first = first[0].upper() + first[1:] + "."
    second = _event_sentence(scene, event, rng)
    return f"{second} {first}" if held_out or rng.random() < 0.3 else f"{first} {second}"


class _Pieces(NamedTuple):
    """Parts of a scene's sentence; the lists are empty where a film is silent."""

    noun: str
    motion: str
    beside: str
    where: list[str]
    near: list[str]
    light: list[str]

    def tail(self, rng: random.Random) -> str:
        """Place, landmark and light in some order."""
        parts = [*self.where, *self.near, *self.light]
        rng.shuffle(parts)
        return " ".join(parts)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _noun_first(p: _Pieces, rng: random.Random) -> str:
    return _join(p.noun, p.motion, p.beside, p.tail(rng))


def _tail_first(p: _Pieces, rng: random.Random) -> str:
    tail = p.tail(rng)
    return _join(f"{tail}," if tail else "", p.noun, p.motion, p.beside)


def _there_is(p: _Pieces, rng: random.Random) -> str:
    beside = f", and there is {p.beside[5:]}" if p.beside else ""
    return _join("there is", p.noun, "that", p.motion + beside, p.tail(rng))


def _which(p: _Pieces, rng: random.Random) -> str:
    tail = p.tail(rng)
    return _join(
        f"{tail}," if tail else "", f"{p.noun},", "which", p.motion + ",", p.beside
    ).rstrip(",")


def _a_scene(p: _Pieces, rng: random.Random) -> str:
    beside = f", and {p.beside[5:]}" if p.beside else ""
    return _join("a scene", p.tail(rng), "with", p.noun, "that", p.motion + beside)


def _beside_first(p: _Pieces, rng: random.Random) -> str:
    beside = f"{p.beside}," if p.beside else ""
    return _join(p.noun, beside, p.motion, p.tail(rng))


def _held_out_form(p: _Pieces) -> str:
    """The sentence form that training never shows."""
    lead = " ".join([*p.light, *p.where, *p.near])
    beside = f", and {p.beside[5:]}" if p.beside else ""
    return _join(f"{lead}," if lead else "", "we see", p.noun, "that", p.motion + beside)


_FORMS = (_noun_first, _tail_first, _there_is, _which, _a_scene, _beside_first)


def _noun_phrase(subject: Subject, color: bool, marking: bool, rng: random.Random) -> str:
    words = []
    if marking:
        words.append(rng.choice(MARKING_WORDS[subject.marking]))
    if color:
        words.append(rng.choice(COLOR_WORDS[subject.color]))
    words.append(rng.choice(SHAPE_WORDS[subject.shape]))
    return _a(" ".join(words))


def _beside(scene: Scene, mentions: Mentions, rng: random.Random) -> str:
    """The second subject, if it stands at the main place and is named."""
    others = [s for s in scene.subjects[1:] if s.place == 0]
    if not mentions.second or not others:
        return ""
    noun = _noun_phrase(others[0], mentions.second_color, False, rng)
    side = _SIDES[1 if others[0].lateral > 0 else -1]
    return rng.choice((f"with {noun} on the {side}", f"with {noun} to its {side}"))


def _event_sentence(scene: Scene, event: Event, rng: random.Random) -> str:
    noun = "the " + rng.choice(SHAPE_WORDS[scene.subjects[0].shape])
    away = 1 if scene.places[1].bearing > 0 else -1
    return rng.choice(EVENT_WORDS[event.kind]).format(
        it=noun,
        It=noun[0].upper() + noun[1:],
        away=_SIDES[away],
        back=_SIDES[-away],
        side=_SIDES[event.side],
    )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _find(text: str, table: dict[Value, tuple[str, ...]]) -> Value | None:
    for value, words in table.items():
        if any(re.search(rf"\b{re.escape(w)}\b", text) for w in words):
            return value
    return None


_ADJECTIVES = "|".join(
    re.escape(w) for table in (COLOR_WORDS, MARKING_WORDS) for ws in table.values() for w in ws
)
_NOUNS = "|".join(re.escape(w) for ws in SHAPE_WORDS.values() for w in ws)
_SUBJECT = re.compile(rf"\b(?:a|an)\s+((?:(?:{_ADJECTIVES})\s+)*)({_NOUNS})\b")


def parse(text: str) -> Named:
    """What a text says in the grammar's words; the inverse of ``caption`` on what it names.

    Example:
        >>> parse("A red cube hops on snow at night. A fixed shot.").color
        'red'
    """
    low = text.lower()
    found = [(m.group(1), m.group(2)) for m in _SUBJECT.finditer(low)]
    main = found[0] if found else ("", "")
    second = found[1] if len(found) > 1 else ("", "")
    side = re.search(r"\b(?:on the|to its) (left|right)\b", low) if second[1] else None
    return Named(
        shape=_find(main[1], SHAPE_WORDS),
        color=_find(main[0], COLOR_WORDS),
        marking=_find(main[0], MARKING_WORDS),
        motion=_find(low, MOTION_WORDS),
        second_shape=_find(second[1], SHAPE_WORDS),
        second_color=_find(second[0], COLOR_WORDS),
        side={"left": -1, "right": 1}[side.group(1)] if side else None,
        ground=_find(low, GROUND_WORDS),
        sky=_find(low, SKY_WORDS),
        landmark=_find(low, LANDMARK_WORDS),
        event=_event(low),
        recognised=bool(found),
    )


def _event(text: str) -> EventKind | None:
    for kind, forms in EVENT_WORDS.items():
        for form in forms:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?:the )?\\w+", re.escape(form.lower()))
            if re.search(pattern, text):
                return kind
    return None
