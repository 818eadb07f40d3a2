"""Flashbacks, loops and freezes of a film, from embeddings of its frames.

T samples of a film, E width of an embedding.

A *flashback* is a sudden change after which the film looks like its opening although it did not
before. A return by a moving camera is none: it looks like the opening in the end but gets there
at the pace of what is around it. A *loop* is a stretch that is played again, in order and in full.
A *freeze* is a stretch of at least a second in which no part of the picture changes.

Sizes are distances between embeddings as of ``features.pixel_features``; another feature needs
thresholds of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfbench.analysis.features import Floats, Trace

Kind = Literal["flashback", "loop", "freeze"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When something counts; chosen on planted films of seeds 1 to 4, judged on others.

    Attributes:
        opening_s: length of the opening.
        level_s: stretch on each side of a change over which its level is taken.
        sudden_s: longest time that a sudden change takes.
        around_s: stretch on each side of a change that says what is usual there.
        away: least distance from the opening before a flashback.
        back: distance from the opening after it over that before it, at most.
        sudden: change over the usual change, times the fourth root of how far the way back was
            and how near it led, at least.
        period_s: shortest and longest period of a loop.
        varies: least distance between halves of a period.
        rounds: how often a loop's stretch is played, at least.
        seam: of a loop's jumps, change over the usual change, at least.
        seam_by_share: the same as a line over the share under ``repeats``, offset and slope: a
            stretch that comes back less exactly needs a clearer jump.
        repeats: distance between a period and the next over that between halves, at most.
        still: largest mean change of a frozen picture, in levels.
        still_spot: the same of its cell that changes most.
        freeze_s: shortest freeze.
    """

    opening_s: float = 0.75
    level_s: float = 0.25
    sudden_s: float = 0.3
    around_s: float = 1.0
    away: float = 0.3
    back: float = 0.5
    sudden: float = 2.15
    period_s: tuple[float, float] = (1.5, 30.0)
    varies: float = 0.2
    repeats: float = 0.235
    rounds: float = 2.9
    seam: float = 1.1
    seam_by_share: tuple[float, float] = (0.97, 1.6)
    still: float = 0.35
    still_spot: float = 1.5
    freeze_s: float = 1.0


class Event(NamedTuple):
    """Something that happened in a film.

    Attributes:
        kind: what.
        start_s: when it began; of a flashback the sudden change.
        end_s: when it ended; of a flashback when the film left its opening again, or ended.
        score: how clear it is, 0 at the threshold and 1 at best.
        period_s: of a loop; else None.
    """

    kind: Kind
    start_s: float
    end_s: float
    score: float
    period_s: float | None = None


def detect(trace: Trace, thresholds: Thresholds | None = None) -> list[Event]:
    """Events of a film in order of time.

    A jump at the seam of a loop is the loop's and no flashback, and so is one out of a freeze.
    """
    limits = thresholds or Thresholds()
    repeats, holds = loops(trace, limits), freezes(trace, limits)
    slack = 2 / trace.rate
    others = [(loop.start_s, loop.end_s) for loop in repeats]
    others += [(hold.end_s - slack, hold.end_s + slack) for hold in holds]
    jumps = [
        event
        for event in flashbacks(trace, limits)
        if not any(start <= event.start_s <= end for start, end in others)
    ]
    return sorted([*repeats, *jumps, *holds], key=lambda event: event.start_s)


def from_opening(vectors_TE: Floats, count: int) -> Floats:
    """Distance of each sample to the nearest of the first ``count``, (T,)."""
    # One after the other: all of them at once would need the film's vectors that many times.
    nearest = np.full(len(vectors_TE), np.inf)
    for opening in vectors_TE[:count]:
        np.minimum(nearest, np.linalg.norm(vectors_TE - opening, axis=1), out=nearest)
    return nearest


def lagged(vectors_TE: Floats, lag: int) -> Floats:
    """Distance of each sample to the one ``lag`` later, (T - lag,)."""
    return np.linalg.norm(vectors_TE[lag:] - vectors_TE[:-lag], axis=1)


def runs(flags_T: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and past-the-last index of every stretch of True.

    Example:
        >>> list(runs(np.array([False, True, True, False, True])))
        [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags_T.astype(np.int8), [0]])))
    return iter([(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)])


class Jump(NamedTuple):
    """A change around a sample: distances from the opening before and after it, and its pace."""

    before: float
    after: float
    suddenness: float


class Levels(NamedTuple):
    """A film in short means, whose grain is averaged away.

    Attributes:
        away_T: distance of the mean of ``level`` samples that begin at each to the nearest of the
            opening's.
        steps: by samples that a change takes in between, the distance of each sample to the one
            after the change.
        level: samples of a mean.
        around: samples on each side that say what is usual.
    """

    away_T: Floats
    steps: tuple[Floats, ...]
    level: int
    around: int

    @property
    def reach(self) -> int:
        """Samples of the longest sudden change."""
        return len(self.steps) - 1


USUAL = 0.75  # quantile of changes that is called usual: some of what is around moves faster
CAP = 8.0  # a return that is nearer than this says no more


def _levels(trace: Trace, limits: Thresholds) -> Levels:
    level, reach, around, opening = (
        max(2, round(seconds * trace.rate))
        for seconds in (limits.level_s, limits.sudden_s, limits.around_s, limits.opening_s)
    )
    means = _means(trace.vectors_TE, level)
    away = from_opening(means, max(1, opening - level)) if len(means) else np.zeros(0)
    steps = tuple(lagged(trace.vectors_TE, taken + 1) for taken in range(reach + 1))
    return Levels(away, steps, level, around)


def _means(vectors_TE: Floats, width: int) -> Floats:
    sums = np.cumsum(np.pad(vectors_TE, ((1, 0), (0, 0))), axis=0)
    return (sums[width:] - sums[:-width]) / width


def flashbacks(trace: Trace, limits: Thresholds) -> list[Event]:
    """Sudden changes back to the opening.

    Source: the reset that arXiv:2602.06028 shows in LongLive's films (Figure 8): a fall in
    frame-to-frame similarity, then high similarity to the opening.
    """
    levels = _levels(trace, limits)
    clear = {
        at: max(_clear(jump, limits) for jump in _jumps(levels, at))
        for at in range(2 * levels.level, len(levels.away_T) - levels.reach)
        if levels.away_T[at - levels.level] >= limits.away
    }
    found: list[Event] = []
    until = 0
    for at, score in clear.items():
        if at < until or score <= 0:
            continue
        near = range(at, at + levels.reach + levels.level)
        best = max(near, key=lambda k: clear.get(k, -1.0))
        jump = max(_jumps(levels, best), key=lambda jump: _clear(jump, limits))
        end = _leaves(levels, best + levels.reach, jump)
        span = trace.vectors_TE[best - 1 : best + levels.reach + 1]
        start = best + int(np.linalg.norm(np.diff(span, axis=0), axis=1).argmax())
        start_s, end_s = start / trace.rate, end / trace.rate
        found.append(Event("flashback", start_s, end_s, round(clear[best], 3)))
        until = max(end, near.stop)
    return found


def _jumps(levels: Levels, at: int) -> list[Jump]:
    """Levels before sample ``at`` and after changes that begin there, by how long they take."""
    before = float(levels.away_T[at - levels.level])
    return [
        Jump(before, float(levels.away_T[at + taken]), _suddenness(levels, at, taken))
        for taken in range(levels.reach + 1)
    ]


def _suddenness(levels: Levels, at: int, taken: int) -> float:
    """A change that begins at a sample and takes some, over what is usual on either side of it."""
    step, first = levels.steps[taken], at - 1
    if first >= len(step):
        return 0.0
    sides = (step[max(0, first - levels.around) : max(0, first - taken)],
             step[at + taken : at + taken + levels.around])  # fmt: skip
    usual = max(
        (float(np.quantile(side, USUAL)) for side in sides if len(side) > 1), default=np.inf
    )
    return float(step[first]) / max(usual, 1e-6)


def _clear(jump: Jump, limits: Thresholds) -> float:
    """How far a jump is above the threshold, from 0 on it to 1; below 0 when it is no flashback.

    A return that is nearer, and from further away, may be a little less sudden.
    """
    if jump.before < limits.away or jump.after > limits.back * jump.before:
        return -1.0
    nearer = min(jump.before / max(jump.after, 1e-6), CAP)
    clearness = jump.suddenness * (min(jump.before, 1.0) * nearer) ** 0.25
    return 1 - limits.sudden / max(clearness, 1e-6)


def _leaves(levels: Levels, start: int, jump: Jump) -> int:
    """First sample after ``start`` whose level is nearer to that before the jump."""
    middle = (jump.before + jump.after) / 2
    gone = np.flatnonzero(levels.away_T[start:] > middle)
    return start + int(gone[0]) if len(gone) else len(levels.away_T) + levels.level - 1


BLOCK = 512


def band(vectors_TE: Floats, longest: int) -> Floats:
    """Distance of each sample to the one ``lag`` later, by lag: (longest + 1, T), NaN past the end.

    Example:
        >>> band(np.array([[0.0], [1.0], [3.0]]), 1).tolist()
        [[0.0, 0.0, 0.0], [1.0, 2.0, nan]]
    """
    count = len(vectors_TE)
    found = np.full((longest + 1, count), np.nan)
    squares = (vectors_TE**2).sum(1)
    lag = np.arange(longest + 1)[:, None]
    for start in range(0, count, BLOCK):
        rows = vectors_TE[start : start + BLOCK]
        columns = vectors_TE[start : start + BLOCK + longest]
        gap = squares[start : start + len(rows), None] - 2 * rows @ columns.T
        gap += squares[start : start + len(columns)]
        row = np.arange(len(rows))[None, :]
        inside = row + lag < len(columns)
        values = gap[row, np.minimum(row + lag, len(columns) - 1)]
        found[:, start : start + len(rows)] = np.where(inside, np.sqrt(values.clip(0)), np.nan)
    found[0] = 0.0
    return found


def loops(trace: Trace, limits: Thresholds) -> list[Event]:
    """Stretches that are played again and again, with a jump at each seam.

    A lag is a period when a whole stretch of its length is near to the stretch that follows it,
    while the halves of that stretch differ. What comes round without a seam (a ball that bounces,
    a camera that swings) is motion and no loop.
    """
    shortest = max(2, round(limits.period_s[0] * trace.rate))
    longest = min(len(trace.vectors_TE) // 2, round(limits.period_s[1] * trace.rate))
    if longest < shortest:
        return []
    distance = band(trace.vectors_TE, longest)
    levels = _levels(trace, limits)
    found: list[Event] = []
    for lag in range(shortest, longest + 1):
        found += _loops_of(distance, lag, trace.rate, limits)
    return [loop for loop in _strongest(found) if _has_seam(levels, loop, trace.rate, limits)]


def _loops_of(distance: Floats, lag: int, rate: float, limits: Thresholds) -> list[Event]:
    length = distance.shape[1] - lag
    repeat = _moving_mean(distance[lag, :length], lag)
    varies = _moving_mean(distance[lag // 2, :length], lag)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(varies >= limits.varies, repeat / varies, np.inf)
    events: list[Event] = []
    for first, end in runs(share <= limits.repeats):
        last = end - 1 + 2 * lag
        if last - first < limits.rounds * lag:
            continue
        score = 1 - float(share[first:end].min()) / limits.repeats
        events.append(Event("loop", first / rate, last / rate, round(score, 3), lag / rate))
    return events


def _has_seam(levels: Levels, loop: Event, rate: float, limits: Thresholds) -> bool:
    share = (1 - loop.score) * limits.repeats
    offset, slope = limits.seam_by_share
    return _seam(levels, loop, rate) >= max(limits.seam, offset + slope * share)


def _seam(levels: Levels, loop: Event, rate: float) -> float:
    """Suddenness of the change that comes back with every period, that of its weakest return."""
    lag, start, end = (round(t * rate) for t in (loop.period_s or 0.0, loop.start_s, loop.end_s))
    inner = range(max(levels.level, start + lag // 2), end - lag // 2)
    sudden = np.array([_suddenest(levels, at) for at in inner])
    # Frames and periods need not fit: a seam may come a sample sooner or later.
    sudden = np.stack([np.roll(sudden, shift) for shift in (-1, 0, 1)]).max(0)
    return max(
        (float(sudden[phase::lag].min()) for phase in range(min(lag, len(sudden)))), default=0
    )


def _suddenest(levels: Levels, at: int) -> float:
    return max(_suddenness(levels, at, taken) for taken in range(levels.reach + 1))


def _moving_mean(values_T: Floats, width: int) -> Floats:
    """Mean of every stretch of ``width`` values, by where it begins."""
    sums = np.concatenate([[0.0], np.cumsum(values_T)])
    return (sums[width:] - sums[:-width]) / width


def _strongest(events: Sequence[Event]) -> list[Event]:
    """Loops that overlap no clearer one: other lags fire beside the period and its multiples."""
    kept: list[Event] = []
    for event in sorted(events, key=lambda event: (-event.score, event.period_s or 0.0)):
        if all(event.end_s <= old.start_s or event.start_s >= old.end_s for old in kept):
            kept.append(event)
    return kept


POPS = 2  # samples: an encoder's key frame may redraw a frozen picture


def freezes(trace: Trace, limits: Thresholds) -> list[Event]:
    """Stretches in which neither the picture as a whole nor any cell of it changes."""
    calm = (trace.change_T <= limits.still) & (trace.spot_T <= limits.still_spot)
    calm[0] = False
    for first, end in list(runs(~calm)):
        if end - first <= POPS and first > 0 and end < len(calm):
            calm[first:end] = True
    events: list[Event] = []
    for first, end in runs(calm):
        # A change belongs to the later of two samples: the frozen picture is one sample longer.
        length_s = (end - first + 1) / trace.rate
        if length_s >= limits.freeze_s:
            worst = float(np.median(trace.change_T[first:end])) / limits.still
            start_s, end_s = (first - 1) / trace.rate, end / trace.rate
            events.append(Event("freeze", start_s, end_s, round(1 - worst, 3)))
    return events
