"""Preference rates with clustered intervals, and the tests and checks around them.

Pure: votes in, numbers out. N votes, A raters, P prompts, R resamples.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cfbench.stats import (
    LEVEL,
    MIN_CLUSTERS,
    Floats,
    Power,
    cluster_sums,
    holm,
    normal_quantile,
    power_note,
    sign_flip_p,
)
from cfbench.study.answers import TIE, main_votes, outcome, repeats
from cfbench.study.clustered import Clustered, clustered_mean
from cfbench.study.tables import Analysis, Design, Vote

ALL_QUESTIONS = "all"
POWER = 0.8
PLANNED_RATES = (0.55, 0.60, 0.65, 0.70, 0.75)


class Ballots(NamedTuple):
    """Judged votes of one comparison and question: outcome, rater and prompt of each."""

    values_N: Floats
    raters: tuple[str, ...]
    prompts: tuple[str, ...]


class SignTest(NamedTuple):
    """Prompts on which ours was preferred by most, and the other; p None without any."""

    ours: int
    baseline: int
    even: int
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One comparison, one question. ``p_holm`` is adjusted over all of a study's."""

    comparison: str
    question: str
    win: int
    tie: int
    loss: int
    cannot: int
    raters: int
    prompts: int
    rate: Clustered
    decisive: Clustered
    sign: SignTest
    p_holm: float | None
    power: Power | None

    @property
    def n(self) -> int:
        """Votes that were judged."""
        return self.win + self.tie + self.loss


class Planned(NamedTuple):
    """Votes a comparison that find a true preference; ``rate`` is among decisive votes.

    ``independent`` decisive votes if votes were independent; ``votes`` with the pilot's design
    effect, share of ties and "cannot judge"; ``adjusted`` at Holm's first step; None without a
    pilot that measures these.
    """

    rate: float
    independent: int
    votes: int | None
    adjusted: int | None


class Pilot(NamedTuple):
    """What planning needs to know of a study; None where it has too few clusters."""

    design_effect: float | None
    decisive_share: float | None


def ballots(votes: Iterable[Vote]) -> Ballots:
    """The judged main votes among ``votes``."""
    judged = [(vote, value) for vote in main_votes(votes) if (value := outcome(vote)) is not None]
    return Ballots(
        np.array([value for _, value in judged], dtype=np.float64),
        tuple(vote.session for vote, _ in judged),
        tuple(vote.prompt for vote, _ in judged),
    )


def prompt_means(found: Ballots) -> Floats:
    """Mean outcome of each prompt, in order of first appearance."""
    if not len(found.values_N):
        return np.zeros(0)
    sums, counts = cluster_sums(found.values_N[:, None], found.prompts)
    return (sums / counts)[:, 0]


def sign_test(found: Ballots) -> SignTest:
    """Exact two-sided sign test over prompts; prompts that are even do not count.

    Source: Dixon and Mood 1946.
    """
    margins = prompt_means(found) - TIE
    # Means of thirds and the like miss one half by rounding.
    signs = np.where(np.abs(margins) < 1e-12, 0.0, np.sign(margins))
    ours, baseline = int((signs > 0).sum()), int((signs < 0).sum())
    return SignTest(ours, baseline, len(signs) - ours - baseline, binomial_p(ours, ours + baseline))


def binomial_p(hits: int, count: int) -> float | None:
    """Exact two-sided p of "hits are as likely as misses"; None of no trial.

    Example:
        >>> binomial_p(5, 5)
        0.0625
    """
    if not count:
        return None
    tail = sum(math.comb(count, k) for k in range(min(hits, count - hits) + 1))
    return min(1.0, 2 * tail / 2**count)


def pooled(design: Design, votes: Sequence[Vote]) -> list[Preference]:
    """Every comparison over all questions together, as the paper reports its study.

    Not among the tests that are adjusted. Answers of a rater to several questions about a pair
    are one crossing of rater and prompt, so they do not pass for independent.
    """
    tests = len(design.comparisons) * len(design.questions)
    return [
        _preference(
            [vote for vote in main_votes(votes) if vote.comparison == comparison.name],
            comparison.name,
            ALL_QUESTIONS,
            design.analysis,
            tests,
        )
        for comparison in design.comparisons
    ]


def preferences(design: Design, votes: Sequence[Vote]) -> list[Preference]:
    """Every comparison and question of the design, in its order, p-values adjusted over all."""
    found: list[Preference] = []
    tests = len(design.comparisons) * len(design.questions)
    for comparison in design.comparisons:
        for question in design.questions:
            chosen = [
                vote
                for vote in main_votes(votes)
                if vote.comparison == comparison.name and vote.question == question.id
            ]
            found.append(_preference(chosen, comparison.name, question.id, design.analysis, tests))
    tested = {i: row.sign.p for i, row in enumerate(found) if row.sign.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [replace(row, p_holm=adjusted.get(index)) for index, row in enumerate(found)]


def _preference(
    votes: Sequence[Vote], comparison: str, question: str, plan: Analysis, tests: int
) -> Preference:
    found = ballots(votes)
    values = found.values_N
    return Preference(
        comparison=comparison,
        question=question,
        win=int((values == 1).sum()),
        tie=int((values == TIE).sum()),
        loss=int((values == 0).sum()),
        cannot=len(votes) - len(values),
        raters=len(set(found.raters)),
        prompts=len(set(found.prompts)),
        rate=clustered_mean(values, found.raters, found.prompts, plan),
        decisive=_decisive(found, plan),
        sign=sign_test(found),
        p_holm=None,
        power=power_note(prompt_means(found) - TIE, level=plan.confidence, tests=tests),
    )


def _decisive(found: Ballots, plan: Analysis) -> Clustered:
    keep = [index for index, value in enumerate(found.values_N) if value != TIE]
    return clustered_mean(
        found.values_N[keep],
        [found.raters[index] for index in keep],
        [found.prompts[index] for index in keep],
        plan,
    )


class SideBias(NamedTuple):
    """Share of decisive votes that went left; p of "sides are alike", raters being the units."""

    left: int
    right: int
    share: Clustered
    p: float | None


def side_bias(votes: Iterable[Vote], plan: Analysis) -> SideBias:
    """Whether raters answer by side. Main votes; ties and "cannot judge" do not count."""
    decisive = [vote for vote in main_votes(votes) if vote.answer in ("left", "right")]
    values = np.array([float(vote.answer == "left") for vote in decisive])
    raters = [vote.session for vote in decisive]
    share = clustered_mean(values, raters, [vote.prompt for vote in decisive], plan)
    left = int(values.sum())
    p = None
    if len(set(raters)) >= MIN_CLUSTERS:
        sums, _ = cluster_sums((2 * values - 1)[:, None], raters)
        p = sign_flip_p(sums[:, 0], seed=plan.seed)
    return SideBias(left, len(decisive) - left, share, p)


class Consistency(NamedTuple):
    """Repeated answers: given alike, turned around (win to loss), moved to or from a tie."""

    repeated: int
    alike: int
    turned: int
    moved: int


def self_consistency(votes: Iterable[Vote]) -> Consistency:
    """How often raters answered a repeated pair, sides swapped, as they did the first time."""
    found = repeats(votes)
    alike = sum(a == b for a, b in found)
    turned = sum({a, b} == {0.0, 1.0} for a, b in found)
    return Consistency(len(found), alike, turned, len(found) - alike - turned)


def independent_votes(rate: float, *, power: float = POWER, alpha: float = 1 - LEVEL) -> int:
    """Independent decisive votes that tell a true preference ``rate`` from one half.

    Example:
        >>> independent_votes(0.6)
        194

    Source: normal approximation of the one-sample test of a proportion, two-sided.
    """
    if not 0 < rate < 1 or rate == TIE:
        raise ValueError(f"rate {rate}: expected between 0 and 1, and not one half")
    reach = normal_quantile(1 - alpha / 2) * TIE
    reach += normal_quantile(power) * math.sqrt(rate * (1 - rate))
    return math.ceil((reach / (rate - TIE)) ** 2)


def pilot(rows: Iterable[Preference]) -> Pilot:
    """Design effect (mean over comparisons and questions, at least 1) and share of decisive votes.

    "Cannot judge" counts as not decisive: such a vote costs a rater's time too.
    """
    found = list(rows)
    effects = [
        row.decisive.design_effect for row in found if row.decisive.design_effect is not None
    ]
    asked = sum(row.n + row.cannot for row in found)
    decisive = sum(row.win + row.loss for row in found)
    return Pilot(
        max(1.0, statistics.fmean(effects)) if effects else None,
        decisive / asked if asked and decisive else None,
    )


def power_table(found: Pilot, tests: int, plan: Analysis) -> list[Planned]:
    """Votes a comparison and question that several true preferences need.

    Args:
        found: what a pilot measured.
        tests: comparisons times questions, which Holm's first step divides the level by.
        plan: whose level is used.
    """
    alpha = 1 - plan.confidence
    rows: list[Planned] = []
    for rate in PLANNED_RATES:
        single = independent_votes(rate, alpha=alpha)
        first = independent_votes(rate, alpha=alpha / tests)
        scale = None
        if found.design_effect is not None and found.decisive_share is not None:
            scale = found.design_effect / found.decisive_share
        rows.append(
            Planned(
                rate,
                single,
                None if scale is None else math.ceil(single * scale),
                None if scale is None else math.ceil(first * scale),
            )
        )
    return rows
