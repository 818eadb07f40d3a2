"""Two systems of a run, film by film of equal prompt and seed. Numbers only; see ``compare_page``.

N films, T times.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cfbench.aggregate import DIMENSIONS, Normaliser
from cfbench.curves import CURVES, TIMES_S, Curve, time_curves, time_values
from cfbench.frame import FilmValues, Frame, paired_totals
from cfbench.stats import (
    RESAMPLES,
    Interval,
    Paired,
    Power,
    deltas,
    holm,
    paired,
    power_note,
    prompt_differences,
)

SHOWN = 10
TOTAL = "total"


class Row(NamedTuple):
    """One measure of A minus B.

    Attributes:
        name: ``total``, or one of the 16 aggregated dimensions.
        a: mean of A over the films that both have.
        b: mean of B over the same.
        paired: the difference.
        p_holm: of a dimension, adjusted over the dimensions; of the total, its own p.
        power: what this many prompts can show.
    """

    name: str
    a: float | None
    b: float | None
    paired: Paired
    p_holm: float | None
    power: Power | None


class Gap(NamedTuple):
    """A minus B against time, with intervals over prompts.

    Attributes:
        dimension: of ``CURVES``.
        times_s: of the windows' centres.
        means: of the difference.
    """

    dimension: str
    times_s: tuple[float, ...]
    means: tuple[Interval, ...]


class Case(NamedTuple):
    """A prompt, ranked by its mean difference of totals over seeds.

    Attributes:
        prompt: its id.
        difference: mean over seeds.
        seeds: that both systems have.
        seed: whose film is shown: the one whose difference is nearest to the mean.
        totals: of the film shown, A's and B's.
        films: hashes of the films shown, A's and B's.
    """

    prompt: str
    difference: float
    seeds: int
    seed: int
    totals: tuple[float, float]
    films: tuple[str, str]


class Comparison(NamedTuple):
    """Everything that a page about two systems shows."""

    systems: tuple[str, str]
    rows: tuple[Row, ...]
    curves: Mapping[str, list[Curve]]
    gaps: tuple[Gap, ...]
    best: tuple[Case, ...]
    worst: tuple[Case, ...]


def compare(
    frame: Frame,
    normaliser: Normaliser,
    systems: tuple[str, str],
    *,
    resamples: int = RESAMPLES,
    shown: int = SHOWN,
) -> Comparison:
    """A against B.

    Args:
        frame: of the run; other systems do not matter.
        normaliser: of the films' scores.
        systems: names of A and B.
        resamples: of the bootstrap over prompts.
        shown: how many of the best and of the worst prompts; never the same prompt in both.

    Raises:
        ValueError: equal names, a system without films, or no prompt and seed that both have.
    """
    first, second = systems
    if first == second:
        raise ValueError(f"compare {first} with itself; name two systems")
    for name in systems:
        if name not in frame.systems:
            has = ", ".join(frame.systems)
            raise ValueError(f"no films of {name!r}; the run has {has}")
    a, b = frame.where(system=first), frame.where(system=second)
    totals = paired_totals(a, b, normaliser)
    cases = _cases(a, b, totals)
    if not cases:
        raise ValueError(f"{first} and {second} share no scored prompt and seed; score them first")
    half = min(shown, len(cases) // 2 or 1)
    present = [name for name in CURVES if name in frame.dimensions]
    pair = frame.where_any(systems)
    return Comparison(
        systems=systems,
        rows=_rows(a, b, totals, normaliser, resamples),
        curves={name: time_curves(pair, name, resamples=resamples) for name in present},
        gaps=tuple(_gap(a, b, name, resamples) for name in present),
        best=tuple(cases[:half]),
        worst=tuple(reversed(cases[half:][-half:])),
    )


def _rows(
    a: Frame,
    b: Frame,
    totals: tuple[FilmValues, FilmValues],
    normaliser: Normaliser,
    resamples: int,
) -> tuple[Row, ...]:
    scaled = [(side, side.normalised(normaliser)) for side in (a, b)]
    values: dict[str, list[FilmValues]] = {TOTAL: list(totals)}
    for at, name in enumerate(DIMENSIONS):
        values[name] = [_by_film(side, table[:, at]) for side, table in scaled]
    found = {name: paired(*both, resamples=resamples) for name, both in values.items()}
    tested = [n for n, result in found.items() if n != TOTAL and result.p is not None]
    adjusted = dict(zip(tested, holm([found[n].p or 0.0 for n in tested]), strict=True))
    adjusted |= {TOTAL: found[TOTAL].p} if found[TOTAL].p is not None else {}
    return tuple(
        Row(
            name,
            *_means(*values[name]),
            result,
            adjusted.get(name),
            # Holm begins with the smallest of as many tests as there are dimensions.
            power_note(
                prompt_differences(*values[name]), tests=1 if name == TOTAL else max(1, len(tested))
            ),
        )
        for name, result in found.items()
    )


def _by_film(side: Frame, column_N: np.ndarray) -> FilmValues:
    return {
        (run.prompt_id, run.seed): None if np.isnan(value) else float(value)
        for run, value in zip(side.runs, column_N, strict=True)
    }


def _means(a: FilmValues, b: FilmValues) -> tuple[float | None, float | None]:
    keys = deltas(a, b)
    if not keys:
        return None, None
    sides = [float(np.mean([side[key] or 0.0 for key in keys])) for side in (a, b)]
    return sides[0], sides[1]


def _gap(a: Frame, b: Frame, dimension: str, resamples: int) -> Gap:
    tables = [time_values(side, dimension, TIMES_S) for side in (a, b)]
    means: list[Interval] = []
    for at in range(len(TIMES_S)):
        sides = [_by_film(side, t[:, at]) for side, t in zip((a, b), tables, strict=True)]
        means.append(paired(*sides, resamples=resamples).mean)
    return Gap(dimension, TIMES_S, tuple(means))


def _cases(a: Frame, b: Frame, totals: tuple[FilmValues, FilmValues]) -> list[Case]:
    """Prompts from A's best to A's worst."""
    films = [{(r.prompt_id, r.seed): r.clip.sha256 for r in side.runs} for side in (a, b)]
    by_prompt: dict[str, dict[int, float]] = {}
    for (prompt, seed), gap in deltas(*totals).items():
        by_prompt.setdefault(prompt, {})[seed] = gap
    cases: list[Case] = []
    for prompt, gaps in by_prompt.items():
        mean = float(np.mean(list(gaps.values())))
        seed = min(gaps, key=lambda seed: (abs(gaps[seed] - mean), seed))
        key = (prompt, seed)
        shown = (totals[0][key] or 0.0, totals[1][key] or 0.0)
        cases.append(Case(prompt, mean, len(gaps), seed, shown, (films[0][key], films[1][key])))
    return sorted(cases, key=lambda case: (-case.difference, case.prompt))


def hashes(cases: Sequence[Case]) -> list[str]:
    """Films shown, each once."""
    return list(dict.fromkeys(sha for case in cases for sha in case.films))
