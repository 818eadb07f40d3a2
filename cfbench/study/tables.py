"""What a study is and what it collects: the design, and the tables that an export holds.

``Design`` is the preregistration (``design.json``). ``Vote`` and ``SessionRow`` are the rows of the
exported tables ``votes.*`` and ``sessions.*``; ``Key`` is ``key.json``, without which an export
does not say which system stood on which side. Nothing but the standard library is imported here.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cfbench.errors import CfError

VERSION = 1
ANSWERS = ("left", "right", "tie", "cannot")
SIDES = ("left", "right")
KINDS = ("main", "instruction", "repeat", "obvious")
EXPORTS = ("csv", "parquet", "jsonl")

Answer = Literal["left", "right", "tie", "cannot"]
Side = Literal["left", "right"]
Kind = Literal["main", "instruction", "repeat", "obvious"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our system against one baseline; ``name`` is an id that says nothing of either."""

    name: str
    ours: str
    baseline: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a pair, each answer its own vote."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StudyPrompt:
    """A text that both films of a pair were made for; ``strata`` are labels such as motion."""

    id: str
    text: str
    strata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two films to be shown side by side.

    ``ours`` and ``other`` name films of ``Design.media``. What they are follows from ``kind``:

    - ``main``: our system's film and the baseline's; the only votes that preference is made of.
    - ``repeat``: a template whose films are those of a main pair that the rater saw before in the
      block, on swapped sides; ``ours`` and ``other`` are empty.
    - ``obvious``: a film and its degraded copy, ``ours`` being the whole one.
    - ``instruction``: films to which ``instruction`` says what to answer, which is ``expected``.
    """

    id: str
    comparison: str
    prompt: str
    kind: Kind
    ours: str
    other: str
    instruction: str = ""
    expected: str = ""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A film of the study: its file name under ``media/``, hash, bytes and shape."""

    file: str
    sha256: str
    bytes: int
    frames: int
    fps: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Thresholds past which analysis leaves a rater out; no vote is ever deleted for them.

    A rater who failed more than ``most_failed_instructions`` instructions is left out, and so is
    one who failed more than ``most_failed_obvious`` obvious pairs. ``fastest_s`` is the least
    median time to answer a pair, in seconds. ``least_watched`` is the share of both films that a
    vote needs. ``most_hidden`` is the largest share of a rater's time during which the page was
    out of sight. ``least_repeat`` is the least share of repeated questions answered alike.
    """

    most_failed_instructions: int = 1
    most_failed_obvious: int = 0
    fastest_s: float = 2.0
    least_watched: float = 0.95
    most_hidden: float = 0.5
    least_repeat: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The plan of analysis: level of intervals, resamples of the bootstrap, and its seed."""

    confidence: float = 0.95
    replicates: int = 10_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How votes are collected.

    ``block_pairs`` main pairs a session; ``target_votes`` votes a cell (prompt x comparison x
    question); ``max_sessions`` more raters are turned away; ``stop`` says in words when collecting
    ends, which never depends on results.
    """

    block_pairs: int
    target_votes: int
    max_sessions: int
    stop: str


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study, decided before its first vote. Stored as ``design.json``, sealed by its hash."""

    version: int
    seed: int
    title: str
    systems: dict[str, str]
    """Label of each system by its address; never shown to raters."""
    comparisons: tuple[Comparison, ...]
    questions: tuple[Question, ...]
    prompts: tuple[StudyPrompt, ...]
    pairs: tuple[Pair, ...]
    training: tuple[Pair, ...]
    """Worked examples of the training page; their votes are not stored."""
    media: dict[str, Medium]
    plan: Plan
    exclusion: Exclusion
    analysis: Analysis
    consent: str

    def tree(self) -> dict[str, Any]:
        """JSON tree of the design."""
        return asdict(self)

    def pair(self, pair_id: str) -> Pair:
        """The pair of this id, of the study or of its training page.

        Raises:
            CfError: there is none.
        """
        for pair in (*self.pairs, *self.training):
            if pair.id == pair_id:
                return pair
        raise CfError(f"the design has no pair {pair_id!r}")


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One effective vote: the last answer of a session to a question about a pair.

    ``pair`` is the pair of the design; of a repeated pair it is the repeat's own id and ``of`` the
    main pair that it repeats. ``side_of_ours`` is where our system's film stood (the whole film of
    an obvious pair), and is empty in an export without the key. ``watched_left_s`` and ``_right_s``
    are seconds of film seen at least once; ``hidden_s`` is the time out of sight, ``response_s``
    from the pair's first showing to this answer. ``block`` counts a session's blocks and ``order``
    its pairs, both from 0. ``at`` is the server's time in UTC.
    """

    session: str
    pair: str
    comparison: str
    prompt: str
    question: str
    kind: Kind
    answer: Answer
    side_of_ours: str
    expected: str
    of: str
    reason: str
    watched_left_s: float
    watched_right_s: float
    replays: int
    hidden_s: float
    response_s: float
    block: int
    order: int
    changes: int
    client: str
    at: str

    def row(self) -> dict[str, Any]:
        """Flat row of the exported table, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SessionRow:
    """One rater's session.

    ``session`` is the anonymous id that votes carry and ``code_hash`` the hash of the completion
    code; ``finished`` is empty while pairs are left. ``checks_passed`` and ``checks_failed`` count
    instruction and obvious pairs that were answered.
    """

    session: str
    code_hash: str
    started: str
    finished: str
    checks_passed: int
    checks_failed: int
    consent: str
    comment: str

    def row(self) -> dict[str, Any]:
        """Flat row of the exported table, in the order of the fields."""
        return asdict(self)


VOTE_COLUMNS = tuple(item.name for item in fields(Vote))
SESSION_COLUMNS = tuple(item.name for item in fields(SessionRow))


def design_of(tree: dict[str, Any]) -> Design:
    """The design of a JSON tree.

    Raises:
        CfError: another version, or keys are missing or unknown.
    """
    if tree.get("version") != VERSION:
        raise CfError(f"design version {tree.get('version')!r}: this version reads {VERSION}")
    try:
        made: dict[str, Any] = {
            **tree,
            "comparisons": tuple(Comparison(**item) for item in tree["comparisons"]),
            "questions": tuple(Question(**item) for item in tree["questions"]),
            "prompts": tuple(StudyPrompt(**item) for item in tree["prompts"]),
            "pairs": tuple(Pair(**item) for item in tree["pairs"]),
            "training": tuple(Pair(**item) for item in tree["training"]),
            "media": {name: Medium(**item) for name, item in tree["media"].items()},
            "plan": Plan(**tree["plan"]),
            "exclusion": Exclusion(**tree["exclusion"]),
            "analysis": Analysis(**tree["analysis"]),
        }
        return Design(**made)
    except (KeyError, TypeError, AttributeError) as error:
        raise CfError(f"a design has unknown or missing keys: {error}") from error
