"""Films by dimensions: what every table and curve is made from. Lists of records in, arrays out.

N films, D dimensions.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cfbench.aggregate import DIMENSIONS, Floats, Normaliser, aggregate_rows, film_total
from cfbench.stats import RESAMPLES, Interval, percentile_interval, resampled_means
from cfbench.types import RunRecord, Score, Tier, WindowScore

logger = logging.getLogger(__name__)

NOT_APPLICABLE = "does not apply"
"""A Score's reason begins so when the film has nothing to score; other nulls are failures."""

CUSTOM = "custom-"
MIN_COVERAGE = 0.9
AGGREGATES = ("total", "quality", "semantic")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over films with its interval, counts, and the reason when it is None."""

    mean: Interval
    scored: int
    expected: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Films of some systems and their values in some dimensions (raw; NaN = null).

    ``applies_ND`` is False where a score says that the dimension does not apply to the film;
    ``windows`` and ``reasons`` of nulls are by film hash and dimension.
    """

    runs: tuple[RunRecord, ...]
    dimensions: tuple[str, ...]
    values_ND: Floats
    applies_ND: NDArray[np.bool_]
    windows: Mapping[tuple[str, str], tuple[WindowScore, ...]]
    reasons: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """Systems in order of first appearance."""
        return tuple(dict.fromkeys(run.system for run in self.runs))

    @cached_property
    def protocol(self) -> str:
        """How all of the films were scored, see ``ClipInfo``; empty without films."""
        return next((run.clip.codec for run in self.runs), "")

    @cached_property
    def stored(self) -> "Frame":
        """The films that are files."""
        return self._of([k for k, run in enumerate(self.runs) if run.clip.is_stored])

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Prompt of each film."""
        return tuple(run.prompt_id for run in self.runs)

    def where(self, *, system: str | None = None, stratum: str | None = None) -> "Frame":
        """The films of one system, of one stratum, or of both."""
        keep = [
            index
            for index, run in enumerate(self.runs)
            if system in (None, run.system) and stratum in (None, run.stratum)
        ]
        return self._of(keep)

    def where_any(self, systems: Sequence[str]) -> "Frame":
        """The films of several systems."""
        return self._of([k for k, run in enumerate(self.runs) if run.system in systems])

    def _of(self, keep: list[int]) -> "Frame":
        return Frame(
            runs=tuple(self.runs[index] for index in keep),
            dimensions=self.dimensions,
            values_ND=self.values_ND[keep],
            applies_ND=self.applies_ND[keep],
            windows=self.windows,
            reasons=self.reasons,
            versions=self.versions,
        )

    def normalised(self, normaliser: Normaliser) -> Floats:
        """Values of the 16 aggregated dimensions, each film normalised; N x 16, NaN = null."""
        columns = [
            normaliser.apply(name, self.values_ND[:, self.dimensions.index(name)])
            for name in DIMENSIONS
        ]
        return np.stack(columns, axis=1)


def _natural(version: str) -> list[tuple[int, int | str]]:
    parts = re.findall(r"\d+|\D+", version)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def current_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """One run for each (system, prompt, seed), of each system's newest key.

    A system's films must come from one experiment, so older keys are left out as a whole, and so
    are systems made with ``--set`` (named ``custom-...``).
    """
    newest: dict[str, RunRecord] = {}
    for run in runs:
        if run.system not in newest or run.started >= newest[run.system].started:
            newest[run.system] = run
    films: dict[tuple[str, str, int], RunRecord] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.system.startswith(CUSTOM) or run.key != newest[run.system].key:
            continue
        films[run.system, run.prompt_id, run.seed] = run
    dropped = len(runs) - len(films)
    if dropped:
        logger.info("%d of %d runs are custom, superseded or repeated", dropped, len(runs))
    return [films[name] for name in sorted(films)]


def one_protocol(runs: Sequence[RunRecord]) -> None:
    """Refuses films of several protocols.

    Raises:
        ValueError: there are several.
    """
    protocols = Counter(run.clip.codec for run in runs)
    if len(protocols) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in sorted(protocols.items()))
        raise ValueError(
            f"films of several protocols ({counts}): their scores cannot be compared; keep each "
            "protocol in a store of its own"
        )


def newest_versions(scores: Iterable[Score]) -> dict[str, str]:
    """The newest version of each dimension; digits are compared as numbers."""
    versions: dict[str, str] = {}
    for score in scores:
        version = versions.setdefault(score.dimension, score.version)
        if score.version != version and _natural(score.version) > _natural(version):
            versions[score.dimension] = score.version
    return versions


def build_frame(runs: Sequence[RunRecord], scores: Sequence[Score], tier: Tier) -> Frame:
    """The frame of one tier's scores.

    Of each dimension only the newest version counts (digits compared as numbers): a film scored by
    an older version alone is not scored.

    Args:
        runs: films; see ``current_runs`` for those that count.
        scores: of any film, dimension and tier.
        tier: whose scores to take.

    Raises:
        ValueError: films of several protocols, which no table may compare.
    """
    kept = current_runs(runs)
    one_protocol(kept)
    mine = [score for score in scores if score.tier == tier]
    versions = newest_versions(mine)
    extra = sorted(set(versions) - set(DIMENSIONS))
    dimensions = (*DIMENSIONS, *extra)
    column = {name: index for index, name in enumerate(dimensions)}
    films: dict[str, list[int]] = {}
    for index, run in enumerate(kept):
        films.setdefault(run.clip.sha256, []).append(index)
    values = np.full((len(kept), len(dimensions)), np.nan)
    applies = np.ones(values.shape, dtype=np.bool_)
    windows: dict[tuple[str, str], tuple[WindowScore, ...]] = {}
    reasons: dict[str, dict[str, str]] = {}
    for score in mine:
        if score.version != versions[score.dimension]:
            continue
        windows[score.clip_sha, score.dimension] = score.windows
        if score.value is None:
            reasons.setdefault(score.clip_sha, {})[score.dimension] = score.reason
        for index in films.get(score.clip_sha, ()):
            at = index, column[score.dimension]
            values[at] = np.nan if score.value is None else score.value
            applies[at] = score.value is not None or not score.reason.startswith(NOT_APPLICABLE)
    return Frame(
        runs=tuple(kept),
        dimensions=dimensions,
        values_ND=values,
        applies_ND=applies,
        windows=windows,
        reasons=reasons,
        versions=versions,
    )


def _estimate(
    column_N: Floats, applies_N: NDArray[np.bool_], draws_R: Floats, prompts: Sequence[str]
) -> Estimate:
    present = ~np.isnan(column_N)
    scored, expected = int(present.sum()), int(applies_N.sum())
    if not expected:
        return Estimate(
            mean=Interval(None, None, None), scored=0, expected=0, reason="applies to no film"
        )
    if scored < MIN_COVERAGE * expected:
        reason = f"scored {scored} of {expected} films"
        return Estimate(
            mean=Interval(None, None, None), scored=scored, expected=expected, reason=reason
        )
    clusters = len({name for name, keep in zip(prompts, present, strict=True) if keep})
    value = float(column_N[present].mean())
    return Estimate(
        mean=percentile_interval(value, draws_R, clusters), scored=scored, expected=expected
    )


def summarise(
    frame: Frame, normaliser: Normaliser, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Means of one system's films: the 16 dimensions normalised, the aggregates, and raw values.

    Each film is normalised, films are averaged over those to which a dimension applies, and the
    aggregation rule is applied to the averages; intervals come from resampling prompts, with the
    whole rule applied to every resample. A dimension scored on fewer than 90 % of the films that
    it applies to is None, and so are the aggregates that need it.

    Returns:
        Estimates by ``total``, ``quality``, ``semantic``, dimension, and ``raw:<dimension>`` (for
        every dimension of the frame, the 16 included). All on the scale of the raw values.
    """
    scaled = frame.normalised(normaliser)
    size = len(DIMENSIONS)
    columns = [frame.dimensions.index(name) for name in DIMENSIONS]
    values = np.concatenate([scaled, frame.values_ND], axis=1)
    applies = np.concatenate([frame.applies_ND[:, columns], frame.applies_ND], axis=1)
    names = [*DIMENSIONS, *(f"raw:{name}" for name in frame.dimensions)]
    draws = resampled_means(values, frame.prompts, resamples=resamples, seed=seed)
    result = {
        name: _estimate(values[:, at], applies[:, at], draws[:, at], frame.prompts)
        for at, name in enumerate(names)
    }
    point = np.array(
        [[np.nan if (v := result[name].mean.value) is None else v for name in DIMENSIONS]]
    )
    points = aggregate_rows(point, DIMENSIONS)[0]
    draws_RA = aggregate_rows(draws[:, :size], DIMENSIONS)
    clusters = len(set(frame.prompts))
    missing = [name for name in DIMENSIONS if result[name].mean.value is None]
    reason = f"missing {', '.join(missing)}" if missing else ""
    complete = int(np.sum(np.all(~np.isnan(scaled) | ~applies[:, :size], axis=1)))
    for at, name in enumerate(AGGREGATES):
        value = None if np.isnan(points[at]) else float(points[at])
        result[name] = Estimate(
            mean=percentile_interval(value, draws_RA[:, at], clusters),
            scored=complete,
            expected=len(frame.runs),
            reason="" if value is not None else reason,
        )
    return result


FilmValues = dict[tuple[str, int], float | None]


def paired_totals(a: Frame, b: Frame, normaliser: Normaliser) -> tuple[FilmValues, FilmValues]:
    """Film-level Totals of two systems by (prompt, seed), comparable pair by pair.

    Each pair is totalled by ``film_total`` over the dimensions that **both** of its films have, so
    a dimension that one film lacks cannot make the difference.
    """
    rows: list[dict[tuple[str, int], Floats]] = []
    for frame in (a, b):
        scaled = frame.normalised(normaliser)
        rows.append({(run.prompt_id, run.seed): scaled[i] for i, run in enumerate(frame.runs)})
    totals: tuple[FilmValues, FilmValues] = (dict.fromkeys(rows[0]), dict.fromkeys(rows[1]))
    for key in rows[0].keys() & rows[1].keys():
        both = ~np.isnan(rows[0][key]) & ~np.isnan(rows[1][key])
        for side in (0, 1):
            values = {
                name: float(rows[side][key][at]) if both[at] else None
                for at, name in enumerate(DIMENSIONS)
            }
            totals[side][key] = film_total(values).total
    return totals
