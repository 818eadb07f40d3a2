"""Everything that is found in a set of votes, and in a study with and without excluded raters."""

from collections.abc import Sequence
from dataclasses import dataclass

from cfbench.study.answers import Answers, Exclusions, exclusions, kept, main_votes, outcome
from cfbench.study.preference import (
    Consistency,
    Pilot,
    Planned,
    Preference,
    SideBias,
    pilot,
    pooled,
    power_table,
    preferences,
    self_consistency,
    side_bias,
)
from cfbench.study.tables import Design, Vote
from cfbench.study.ties import Agreement, Match, Strengths, davidson, krippendorff


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a set of votes says.

    Attributes:
        raters: with at least one main vote.
        votes: main votes, "cannot judge" included.
        preferences: by comparison and question, in the design's order.
        pooled: by comparison, over all questions.
        strengths: Bradley-Terry with ties by question.
        nominal: Krippendorff's alpha by question, answers being equal or not.
        interval: the same, a tie lying half way.
        sides: side bias by question.
        consistency: of repeated pairs.
        pilot: what planning needs.
        planned: votes that true preferences need.
    """

    raters: int
    votes: int
    preferences: tuple[Preference, ...]
    pooled: tuple[Preference, ...]
    strengths: dict[str, Strengths]
    nominal: dict[str, Agreement]
    interval: dict[str, Agreement]
    sides: dict[str, SideBias]
    consistency: Consistency
    pilot: Pilot
    planned: tuple[Planned, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study analysed: by the design's rules, and with every vote that there is."""

    answers: Answers
    exclusions: Exclusions
    kept: Findings
    everyone: Findings


def analyse(answers: Answers) -> Study:
    """The whole analysis that a design announces."""
    found = exclusions(answers)
    return Study(
        answers=answers,
        exclusions=found,
        kept=find(answers.design, kept(answers, found)),
        everyone=find(answers.design, answers.votes),
    )


def find(design: Design, votes: Sequence[Vote]) -> Findings:
    """What these votes say; whatever cannot be told has a reason instead of a number."""
    plan = design.analysis
    main = main_votes(votes)
    by_question = {
        question.id: [vote for vote in main if vote.question == question.id]
        for question in design.questions
    }
    rows = preferences(design, votes)
    measured = pilot(rows)
    return Findings(
        raters=len({vote.session for vote in main}),
        votes=len(main),
        preferences=tuple(rows),
        pooled=tuple(pooled(design, votes)),
        strengths={
            name: davidson(matches(design, chosen), plan) for name, chosen in by_question.items()
        },
        nominal={
            name: agreement(design, chosen, "nominal") for name, chosen in by_question.items()
        },
        interval={
            name: agreement(design, chosen, "interval") for name, chosen in by_question.items()
        },
        sides={name: side_bias(chosen, plan) for name, chosen in by_question.items()},
        consistency=self_consistency(votes),
        pilot=measured,
        planned=tuple(power_table(measured, len(rows), plan)),
    )


def matches(design: Design, votes: Sequence[Vote]) -> list[Match]:
    """Judged votes as matches between the systems of the design."""
    systems = {item.name: item for item in design.comparisons}
    return [
        Match(
            systems[vote.comparison].ours,
            systems[vote.comparison].baseline,
            value,
            vote.session,
            vote.prompt,
        )
        for vote in votes
        if (value := outcome(vote)) is not None
    ]


def agreement(design: Design, votes: Sequence[Vote], metric: str) -> Agreement:
    """Agreement on which system is preferred, pair by pair."""
    judged = [(vote, value) for vote in votes if (value := outcome(vote)) is not None]
    return krippendorff(
        [value for _, value in judged],
        [vote.pair for vote, _ in judged],
        [vote.prompt for vote, _ in judged],
        design.analysis,
        metric=metric,
    )
