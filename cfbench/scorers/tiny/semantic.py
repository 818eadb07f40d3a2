"""Semantic dimensions and attribute reads of the tiny tier: what is shown against what is named.

S sampled frames, K detections. Every function gives values (S,) that are NaN where nothing is
asked, or a ``Verdict`` without a value and the reason why nothing in the prompt asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfbench.scorers.tiny import formulas, watch
from cfbench.scorers.tiny.expect import EXPECTED, Expectation, Part, landmark_index
from cfbench.scorers.tiny.formulas import Flags, Floats
from cfbench.scorers.tiny.nets import CAMERAS, text_bytes
from cfbench.scorers.tiny.watch import Film
from cfbench.scorers.tiny.weights import Networks
from cfbench.types import WindowScore
from cfmodel.tinyworld.caption import Named
from cfmodel.tinyworld.scene import COLORS, GROUNDS, MOTIONS, SHAPES, SKIES, EventKind

CLEAR = 0.6
ENDS_S = 5.0
LONG, SHORT = 16, 12  # frames of a motion window at 8 a second

_CAMERA: dict[EventKind, str] = {
    "hold": "still", "away": "still", "exit": "still", "absent": "still", "enter": "still",
    "pan-away": "pan", "pan-back": "pan", "orbit": "orbit", "dolly": "dolly",
}  # fmt: skip
_OWN_MOTION: tuple[EventKind, ...] = ("hold", "orbit", "dolly")


@dataclass
class Verdict:
    """A dimension of a film: values (S,), or rows of windows; ``reason`` where neither applies."""

    values: Floats | None = None
    windows: tuple[WindowScore, ...] | None = None
    value: float | None = None
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    """A film, what is asked of it, and its detections as arrays (S, K)."""

    film: Film
    asked: Expectation
    nets: Networks
    score: Floats
    shape: NDArray[np.int64]
    color: NDArray[np.int64]
    centre: Floats
    share: Floats
    ground: NDArray[np.int64]
    sky: NDArray[np.int64]
    landmark: Floats

    @property
    def scored(self) -> Flags:
        """Sampled frames within the scored part of the film."""
        return self.film.sampled < self.film.frames

    def index(self, of: Callable[[Named], int | None]) -> NDArray[np.int64]:
        """A named attribute's index for every frame (S,), -1 where its text is silent."""
        told = [-1 if (k := of(p.named)) is None else k for p in self.asked.parts]
        return np.array(told)[self.asked.part]

    def has(self, shape_S: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which detections (S, K) are of each frame's class."""
        return (self.score > 0) & (self.shape == shape_S[:, None])


def case(film: Film, asked: Expectation, nets: Networks) -> Case:
    """A film with its readings as arrays."""
    r = film.readings

    def array(name: str) -> NDArray[Any]:
        return vars(r)[name].cpu().numpy()

    box = array("box")
    return Case(
        film, asked, nets, array("score"), array("shape"), array("color"),
        (box[..., 0] + box[..., 2]) / 2, array("share"), array("ground"), array("sky"),
        array("landmark"),
    )  # fmt: skip


def _position(values: tuple[str, ...], value: str | None) -> int | None:
    return None if value is None else values.index(value)


def main_shape(named: Named) -> int | None:
    """Index of the named class."""
    return _position(SHAPES, named.shape)


def main_color(named: Named) -> int | None:
    """Index of the named colour."""
    return _position(COLORS, named.color)


def second_shape(named: Named) -> int | None:
    """Index of the second subject's class."""
    return _position(SHAPES, named.second_shape)


def ground(named: Named) -> int | None:
    """Index of the named ground."""
    return _position(GROUNDS, named.ground)


def sky(named: Named) -> int | None:
    """Index of the named sky."""
    return _position(SKIES, named.sky)


def _verdict(right: Any, asked: Flags, c: Case, silent: str) -> Verdict:
    asked = asked & c.scored
    if not asked.any():
        return Verdict(reason=f"does not apply: {silent}")
    return Verdict(values=formulas.share(np.asarray(right, dtype=np.bool_), asked))


def object_class(c: Case) -> Verdict:
    """The named class is there where it should be, and not where it should be gone."""
    shape = c.index(main_shape)
    there = c.has(shape).any(1)
    shown, hidden = c.asked.shown & (shape >= 0), c.asked.hidden & (shape >= 0)
    return _verdict(np.where(hidden, ~there, there), shown | hidden, c, "no class is named")


def multiple_objects(c: Case) -> Verdict:
    """Both named classes are there."""
    first, second = c.index(main_shape), c.index(second_shape)
    right = c.has(first).any(1) & c.has(second).any(1)
    asked = c.asked.both & (first >= 0) & (second >= 0)
    return _verdict(right, asked, c, "no second subject is named that should be in view")


def color(c: Case) -> Verdict:
    """The named class has the named colour; a missing subject counts as wrong."""
    shape, wanted = c.index(main_shape), c.index(main_color)
    right = (c.has(shape) & (c.color == wanted[:, None])).any(1)
    return _verdict(right, c.asked.shown & (wanted >= 0) & (shape >= 0), c, "no colour is named")


def spatial_relationship(c: Case) -> Verdict:
    """The second subject is on the named side of the main one; a missing one counts as wrong."""
    first, second = c.index(main_shape), c.index(second_shape)
    side = np.array([p.named.side or 0 for p in c.asked.parts])[c.asked.part]
    a, b = c.has(first), c.has(second)
    gap = c.centre[:, None] - c.centre[:, :, None]
    fits = a[:, :, None] & b[:, None] & (gap * side[:, None, None] > 0)
    asked = c.asked.both & (side != 0) & (c.asked.side_x * side > 0)
    return _verdict(fits.any((1, 2)), asked, c, "no side is named that should be seen")


def scene(c: Case) -> Verdict:
    """The named ground, and the named landmark where it should be in view."""
    wanted, mark = c.index(ground), c.index(landmark_index)
    ground_right = (wanted < 0) | (c.ground == wanted)
    seen = np.take_along_axis(c.landmark, mark.clip(min=0)[:, None], 1)[:, 0] > 0.5
    due = (mark >= 0) & (c.asked.landmark >= EXPECTED)
    asked = c.asked.settled & ((wanted >= 0) | due)
    return _verdict(ground_right & (seen | ~due), asked, c, "neither ground nor landmark is named")


def appearance_style(c: Case) -> Verdict:
    """The named sky."""
    wanted = c.index(sky)
    return _verdict(c.sky == wanted, c.asked.settled & (wanted >= 0), c, "no sky is named")


def _starts(part: Part, c: Case, length: int) -> list[int]:
    """First frames of the windows of a segment, past its first 0.75 s unless the film begins."""
    fps = c.film.fps
    step = max(1, fps // watch.PAIRS_PER_S)
    span = (length - 1) * step + 1
    begin = round(part.start_s * fps) + (round(0.75 * fps) if part.start_s > 0 else 0)
    end = min(round(part.end_s * fps), c.film.frames)
    return list(range(begin, end - span + 1, length * step))


@dataclass(frozen=True)
class _Window:
    part: Part
    start: int
    length: int
    motion: int
    camera: int
    direction: int


def _windows(c: Case) -> list[_Window]:
    """All motion windows of the film: 2 s each, or 1.5 s in segments that hold no longer one."""
    found: list[_Window] = []
    plan: dict[int, list[tuple[Part, int]]] = {LONG: [], SHORT: []}
    for part in c.asked.parts:
        starts = _starts(part, c, LONG)
        length = LONG if starts else SHORT
        plan[length] += [(part, s) for s in starts or _starts(part, c, SHORT)]
    for length, rows in plan.items():
        said = watch.window_motion(c.film, [s for _, s in rows], length, c.nets)
        found += [_Window(p, s, length, *heads) for (p, s), heads in zip(rows, said, strict=True)]
    return sorted(found, key=lambda w: w.start)


def _rows(c: Case, judged: list[tuple[_Window, bool]]) -> tuple[WindowScore, ...]:
    step = max(1, c.film.fps // watch.PAIRS_PER_S) / c.film.fps
    return tuple(
        WindowScore(
            start_s=w.start / c.film.fps,
            end_s=w.start / c.film.fps + w.length * step,
            value=float(right),
        )
        for w, right in judged
    )


def motions(c: Case) -> tuple[Verdict, Verdict]:
    """``human_action``: the subject moves as named; ``temporal_style``: so does the camera.

    The first is the share of windows in which the script leaves the subject to itself and in view;
    the second the mean over segments of the share of their windows.
    """
    own: list[tuple[_Window, bool]] = []
    by_part: dict[float, list[bool]] = {}
    camera: list[tuple[_Window, bool]] = []
    for w in _windows(c):
        named = w.part.named
        if named.event is None:
            continue
        stop = w.start + w.length * max(1, c.film.fps // watch.PAIRS_PER_S)
        inside = (c.film.sampled >= w.start) & (c.film.sampled < stop)
        in_view = inside.any() and bool((c.asked.main[inside] >= EXPECTED).all())
        if named.motion is not None and named.event in _OWN_MOTION and in_view:
            own.append((w, MOTIONS[w.motion] == named.motion))
        kind = _CAMERA[named.event]
        right = CAMERAS[w.camera] == kind
        if kind == "pan" and w.part.direction is not None:
            right = right and w.direction == int(w.part.direction > 0)
        by_part.setdefault(w.part.start_s, []).append(right)
        camera.append((w, right))
    action = Verdict(reason="does not apply: no motion is named that should be seen")
    if own:
        rows = _rows(c, own)
        action = Verdict(windows=rows, value=float(np.mean([right for _, right in own])))
    style = Verdict(reason="does not apply: no camera motion is named")
    if camera:
        value = float(np.mean([np.mean(rights) for rights in by_part.values()]))
        style = Verdict(windows=_rows(c, camera), value=value)
    return action, style


def text_similarity(c: Case) -> Floats:
    """Cosine (S,) of every frame and its segment's caption."""
    import torch

    device = next(c.nets.dual.parameters()).device
    with torch.inference_mode():
        texts = c.nets.dual.texts(text_bytes([p.text for p in c.asked.parts]).to(device))
    vectors = texts.cpu().numpy().astype(np.float64)
    return (c.film.images * vectors[c.asked.part]).sum(1)


def attributes(c: Case) -> dict[str, Verdict]:
    """``attr_shape``, ``attr_color``, ``attr_ground``, ``attr_sky``.

    Over frames in which the script wants the subject in view and the reader sees at least 60 % of
    the tallest detection: the share where the named attribute is read right. A film that never
    shows its subject counts 0. The two windows are the first and the last 5 s.
    """
    clear = (c.score[:, 0] > 0) & (c.share[:, 0] >= CLEAR)
    reads = {
        "attr_shape": (c.shape[:, 0], main_shape),
        "attr_color": (c.color[:, 0], main_color),
        "attr_ground": (c.ground, ground),
        "attr_sky": (c.sky, sky),
    }
    found: dict[str, Verdict] = {}
    end = c.film.end_s
    spans = [(0.0, min(ENDS_S, end)), (max(0.0, end - ENDS_S), end)]
    for name, (read, of) in reads.items():
        wanted = c.index(of)
        due = c.asked.shown & (wanted >= 0) & c.scored
        values = formulas.share(read == wanted, due & clear)

        def over(
            start: float, stop: float, values: Floats = values, due: Flags = due
        ) -> float | None:
            inside = (c.film.at_s >= start) & (c.film.at_s < stop)
            if not due[inside].any():
                return None
            return formulas.mean_of(values, c.film.at_s, start, stop) or 0.0

        value = over(0.0, end)
        found[name] = Verdict(
            value=value,
            windows=tuple(WindowScore(start_s=a, end_s=b, value=over(a, b)) for a, b in spans),
            reason="" if value is not None else "does not apply: not named, or never to be in view",
            details={"frames": int((due & clear).sum()), "asked": int(due.sum())},
        )
    return found
