"""The recall probe: does a system still know what it saw once and left?

A rendered film is committed to a system's memory; the system goes on while the camera turns back,
and what no caption names is read. Answers go to ``recall.jsonl``, one line each; a second call
makes only what is missing. A *free* film has no forced history: it is held against what it showed
at first itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from cfbench import fanout, systems
from cfbench.errors import INCOMPLETE, CfError
from cfbench.progress import Fractions, Reporter
from cfbench.stats import mean_interval, paired
from cfbench.video import Frames

FILE = "recall.jsonl"
OVERALL = "mean"
Way = Literal["forced", "free"]
WAYS: tuple[Way, ...] = get_args(Way)
References = Literal["rendered-truth", "codec-truth", "another-scene"]
"""The truth itself, what the codec gives back of it, and the truth of other scenes: chance."""
REFERENCES: tuple[References, ...] = get_args(References)
Shares = Mapping[str, float | None]
"""Share of frames right by attribute; None where nothing was there to recall."""


class Continues(Protocol):
    """A system that can go on from a film."""

    def continued(
        self, prompt_id: str, segments: tuple[tuple[str, float], ...], seed: int,
        history: Frames | None, chunks: int, *, encoded: dict[str, Any] | None = None,
    ) -> Frames:  # fmt: skip
        """Frames (R, Y, X, 3) that follow the history, or a whole film."""
        ...


class Task(NamedTuple):
    """A system, or a reference, to ask a probe; ``made_by`` says which weights and readers."""

    system: str
    number: int
    gap_s: float
    seed: int
    way: Way
    made_by: str


class Answer(NamedTuple):
    """What one system answered to one probe.

    Attributes:
        task: who was asked what.
        unseen_s: seconds for which the thing was out of view when the system took over.
        shares: share of frames right by attribute; None where a free film showed nothing at first.
        looks: what a free film showed both times; empty for a forced history.
    """

    task: Task
    unseen_s: float
    shares: Shares
    looks: dict[str, Any]

    def line(self) -> str:
        """As a line of the file."""
        tree = {**self._asdict(), **self.task._asdict()}
        del tree["task"]
        return json.dumps(tree, sort_keys=True) + "\n"


def answers(folder: Path) -> list[Answer]:
    """The answers stored in a folder."""
    path = folder / FILE
    return parsed(path.read_text(encoding="utf-8")) if path.exists() else []


def parsed(text: str) -> list[Answer]:
    """The answers in lines of text in order of their questions, the last one to each.

    Lines that are cut short, or of another version, are left out.
    """
    found: dict[Task, Answer] = {}
    for line in text.splitlines():
        try:
            tree = json.loads(line)
            rest = [tree.pop(name) for name in ("unseen_s", "shares", "looks")]
            task = Task(**tree)
            found[task] = Answer(task, *rest)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError):
            continue
    return [found[task] for task in sorted(found)]


def row(address: str) -> str:
    """The row of a table that an address stands for.

    Example:
        >>> row("tiny/ours")
        'ours'
    """
    return address.rpartition("/")[2]


def made_by(address: str) -> str:
    """Hash of all that decides an answer: the experiment, unless it is a reference, and readers.

    Raises:
        CfError: unknown system, or one whose weights are not trained.
    """
    from cfbench.scorers.tiny.recall import RULES_VERSION
    from cfbench.scorers.tiny.weights import reader_digits

    readers = f"{RULES_VERSION}.{reader_digits()}"
    if row(address) in REFERENCES:
        return readers
    spec = systems.describe([address])[0]
    if spec.absent:
        raise CfError(f"{address}: {spec.absent}")
    return f"{spec.key}.{readers}"


@dataclass
class Asker:
    """A worker: asks systems, holding those that it has loaded and the last probe.

    Args:
        device: where systems run.
        attention: backend, or auto.
    """

    device: str
    attention: str
    _systems: dict[str, Continues] = field(default_factory=dict, repr=False)
    _probe: tuple[tuple[int, float], Any] | None = field(default=None, repr=False)
    _encoded: dict[str, Any] = field(default_factory=dict, repr=False)
    _nets: Any = field(default=None, repr=False)

    def __call__(self, task: Task, emit: fanout.Emit) -> Answer:
        """The answer to a task."""
        from cfbench.scorers.tiny import recall as probes
        from cfbench.scorers.tiny.weights import load, measuring_codec

        self._nets = self._nets or load()
        if self._probe is None or self._probe[0] != (task.number, task.gap_s):
            key = (task.number, task.gap_s)
            self._probe, self._encoded = (key, probes.probe(*key)), {}
        asked = self._probe[1]
        looks: dict[str, Any] = {}
        match row(task.system):
            case "another-scene":
                shares = probes.read_others(asked, task.number, self._nets)
            case "rendered-truth":
                shares = probes.read(asked, asked.truth, self._nets)
            case "codec-truth":
                frames = probes.round_trip(asked, measuring_codec())
                shares = probes.read(asked, frames, self._nets)
            case _ if task.way == "free":
                both = probes.looks_free(asked, self._frames(task, asked), self._nets)
                shares, looks = probes.shares(both[1], both[0]), probes.looks_to_json(*both)
            case _:
                shares = probes.read(asked, self._frames(task, asked), self._nets)
        return Answer(task, asked.asked.unseen_s, shares, looks)

    def _frames(self, task: Task, asked: Any) -> Frames:
        if task.system not in self._systems:
            loaded: Any = systems.load(task.system, self.device, self.attention)
            self._systems[task.system] = loaded
        free = task.way == "free"
        return self._systems[task.system].continued(
            asked.id, asked.segments, task.seed,
            None if free else asked.history, asked.total_chunks if free else asked.chunks,
            encoded=self._encoded,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the systems."""
        self._systems.clear()


def plan(
    addresses: Sequence[str],
    gaps_s: Sequence[float],
    count: int,
    *,
    free_s: Sequence[float] = (),
    seed: int = 0,
) -> list[Task]:
    """All questions, those to one probe side by side.

    Args:
        addresses: systems and references, as in ``tiny/ours`` and ``tiny/codec-truth``.
        gaps_s: seconds of the quiet hold, about.
        count: probes a gap.
        free_s: gaps at which films without a forced history are asked for too.
        seed: of the systems' noise.

    Raises:
        CfError: unknown system, or one that is not trained.
    """
    makers = {address: made_by(address) for address in addresses}
    ways: list[tuple[Way, float]] = [
        (way, gap_s) for way in WAYS for gap_s in (gaps_s if way == "forced" else free_s)
    ]
    return [
        Task(address, number, gap_s, seed, way, maker)
        for number in range(count)
        for way, gap_s in ways
        for address, maker in makers.items()
        if way == "forced" or row(address) not in REFERENCES
    ]


def ask(
    tasks: Sequence[Task],
    folder: Path,
    *,
    device: str = "cpu",
    attention: str = "auto",
    workers: int = 1,
    reporter: Reporter,
) -> list[Answer]:
    """The answers to all tasks; those that the folder lacks are asked for and appended.

    Args:
        tasks: see ``plan``.
        folder: of the answers, made when it does not exist.
        device: where systems run.
        attention: backend, or auto.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: a system that cannot be loaded, or questions that failed.
    """
    known = {answer.task: answer for answer in answers(folder)}
    missing = [task for task in tasks if task not in known]
    folder.mkdir(parents=True, exist_ok=True)
    path, reasons = folder / FILE, list[str]()
    reporter.phase("recall", len(missing))
    fractions = Fractions(reporter)
    with path.open("a", encoding="utf-8") as sink:
        if sink.tell() and not path.read_bytes().endswith(b"\n"):
            sink.write("\n")

        def on_event(event: fanout.Event) -> None:
            if not fractions.follow(event):
                return
            if event.kind == "failed":
                task = missing[event.task]
                reasons.append(f"{task.system} probe {task.number}: {event.value}")
                return
            known[event.value.task] = event.value
            sink.write(event.value.line())
            sink.flush()

        staff = [Asker(device, attention) for _ in range(workers)]
        fanout.run(missing, staff, group=lambda t: f"{t.number} {t.gap_s}", on_event=on_event)
    if reasons:
        raise CfError(f"{len(reasons)} questions failed: {'; '.join(reasons)}", INCOMPLETE)
    return [known[task] for task in tasks]


def value(shares: Shares, name: str) -> float:
    """Share of an attribute, or the mean over those that have one; NaN where none has."""
    if name != OVERALL:
        share = shares[name]
        return np.nan if share is None else share
    known = [share for share in shares.values() if share is not None]
    return float(np.mean(known)) if known else np.nan


def summary(found: Sequence[Answer], *, ours: str | None = None) -> dict[str, Any]:
    """Shares by way, system and gap with intervals over probes, and differences from ours.

    ``mean`` is the mean over attributes; ``uniform`` is what even guessing gives where there is
    such a thing, ``another-scene`` what the truth of other scenes gives. Cells of free films have
    their own ``chance``: a film's second look against the first looks of the system's other films.
    Intervals are null below 5 probes.
    """
    from cfbench.scorers.tiny.recall import ATTRIBUTES, UNIFORM

    names = (*ATTRIBUTES, OVERALL)
    tables: dict[str, Any] = {}
    for way in WAYS:
        mine = [answer for answer in found if answer.task.way == way]
        table: dict[str, Any] = {}
        for system, gap_s in sorted({(a.task.system, a.task.gap_s) for a in mine}):
            rows = [a for a in mine if (a.task.system, a.task.gap_s) == (system, gap_s)]
            cell = _cell(rows, names)
            if way == "free":
                cell["chance"] = _free_chance(rows, names)
            table.setdefault(system, {})[f"{gap_s:g}"] = cell
        tables[way] = table
    systems_of = tables["forced"]
    return {
        "uniform": dict(UNIFORM),
        "systems": systems_of,
        "free": tables["free"],
        "ours_minus": {} if ours is None else _differences(found, systems_of, ours),
    }


def _cell(rows: Sequence[Answer], names: Sequence[str]) -> dict[str, Any]:
    cell: dict[str, Any] = {}
    for name in names:
        values = np.array([value(a.shares, name) for a in rows], np.float64)
        mean = mean_interval(values, [a.task.number for a in rows])
        scored = int(np.count_nonzero(~np.isnan(values)))
        cell[name] = {**mean._asdict(), "scored": scored, "expected": len(rows)}
    cell["unseen_s"] = float(np.mean([a.unseen_s for a in rows]))
    return cell


def _free_chance(rows: Sequence[Answer], names: Sequence[str]) -> dict[str, float | None]:
    """Means over films of what their second looks share with the first looks of the others."""
    from cfbench.scorers.tiny import recall as probes

    both = [probes.looks_from_json(a.looks) for a in rows]
    crossed = [
        probes.shares(again, first)
        for j, (_, again) in enumerate(both)
        for i, (first, _) in enumerate(both)
        if i != j
    ]
    found: dict[str, float | None] = {}
    for name in names:
        values = np.array([value(shares, name) for shares in crossed], np.float64)
        found[name] = None if np.isnan(values).all() else float(np.nanmean(values))
    return found


def _differences(
    found: Sequence[Answer], table: Mapping[str, Mapping[str, Any]], ours: str
) -> dict[str, dict[str, Any]]:
    """Mean of ours minus that of every other system, probe by probe."""
    by_probe: dict[tuple[str, str], dict[tuple[str, int], float | None]] = {}
    for a in found:
        if a.task.way == "forced":
            side = by_probe.setdefault((a.task.system, f"{a.task.gap_s:g}"), {})
            side[str(a.task.number), a.task.seed] = value(a.shares, OVERALL)
    differences: dict[str, dict[str, Any]] = {}
    for system, gaps in table.items():
        for gap in gaps:
            if system != ours and gap in table.get(ours, {}):
                result = paired(by_probe[ours, gap], by_probe[system, gap])
                differences.setdefault(system, {})[gap] = {
                    **result.mean._asdict(), "p": result.p, "probes": result.scored,
                }  # fmt: skip
    return differences
