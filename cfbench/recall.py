"""The recall probe: does a system still know what it saw once and left?

A rendered film is committed to a system's memory; the system goes on while the camera turns back,
and what no caption names is read. Answers go to ``recall.jsonl``, one line each; a second call
makes only what is missing.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cfbench import systems
from cfbench.progress import Reporter
from cfbench.stats import mean_interval, paired
from cfbench.video import Frames

FILE = "recall.jsonl"
TRUTH = "rendered-truth"
OVERALL = "mean"


class Continues(Protocol):
    """A system that can go on from a film."""

    def continued(
        self, prompt_id: str, segments: tuple[tuple[str, float], ...], seed: int,
        history: Frames, chunks: int,
    ) -> Frames:  # fmt: skip
        """Frames (R, Y, X, 3) that follow the history."""
        ...


class Answer(NamedTuple):
    """What one system answered to one probe: share of frames right, by attribute."""

    system: str
    number: int
    gap_s: float
    seed: int
    shares: dict[str, float]

    @property
    def key(self) -> tuple[str, int, float, int]:
        """What a second call need not ask again."""
        return self.system, self.number, self.gap_s, self.seed


def answers(folder: Path) -> list[Answer]:
    """The answers stored in a folder; a line cut short by a crash is left out."""
    path = folder / FILE
    found: list[Answer] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Answer(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return found


def ask(
    addresses: Sequence[str],
    gaps_s: Sequence[float],
    count: int,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    attention: str = "auto",
    reporter: Reporter,
) -> list[Answer]:
    """Asks every system every probe that is not answered yet.

    Args:
        addresses: systems, or ``rendered-truth`` for what the reader reads of the truth itself.
        gaps_s: seconds of the quiet hold, about.
        count: probes a gap.
        folder: of the answers, made when it does not exist.
        seed: of the systems' noise.
        device: where systems run.
        attention: backend, or auto.
        reporter: shows how far it is.

    Raises:
        CfError: unknown system, or one that is not trained.
    """
    from cfbench.scorers.tiny.recall import probe, read
    from cfbench.scorers.tiny.weights import load

    nets, known = load(), answers(folder)
    done = {answer.key for answer in known}
    folder.mkdir(parents=True, exist_ok=True)
    total = len(addresses) * len(gaps_s) * count
    asked = 0
    reporter.phase("recall", total)
    with (folder / FILE).open("a", encoding="utf-8") as sink:
        if sink.tell() and not (folder / FILE).read_bytes().endswith(b"\n"):
            sink.write("\n")
        for address in addresses:
            go_on = _continuation(address, device, attention)
            for gap_s in gaps_s:
                for number in range(count):
                    key = (address, number, gap_s, seed)
                    if key not in done:
                        question = probe(number, gap_s)
                        shares = read(question, go_on(question, seed), nets)
                        answer = Answer(*key, shares)
                        known.append(answer)
                        sink.write(json.dumps(answer._asdict(), sort_keys=True) + "\n")
                        sink.flush()
                    asked += 1
                    reporter.update(asked)
    return known


def _continuation(address: str, device: str, attention: str) -> Callable[[Any, int], Frames]:
    if address.rpartition("/")[2] == TRUTH:
        return lambda question, seed: question.truth
    system: Any = systems.load(address, device, attention)

    def go_on(question: Any, seed: int) -> Frames:
        return system.continued(
            question.id, question.segments, seed, question.history, question.chunks
        )

    return go_on


def summary(found: Sequence[Answer], *, ours: str | None = None) -> dict[str, Any]:
    """Shares by system and gap with intervals over probes, chance, and differences from ours.

    ``mean`` is the mean over attributes. Intervals are null below 5 probes.
    """
    from cfbench.scorers.tiny.recall import CHANCE

    names = (*CHANCE, OVERALL)
    table: dict[str, dict[str, Any]] = {}
    groups = sorted({(a.system, a.gap_s) for a in found})
    for system, gap_s in groups:
        rows = [a for a in found if (a.system, a.gap_s) == (system, gap_s)]
        cell = {
            name: mean_interval(
                np.array([value(a, name) for a in rows]), [a.number for a in rows]
            )._asdict()
            for name in names
        }
        table.setdefault(system, {})[f"{gap_s:g}"] = cell
    differences: dict[str, dict[str, Any]] = {}
    for system, gap_s in groups:
        if ours is not None and system != ours and f"{gap_s:g}" in table.get(ours, {}):
            mine, theirs = (
                {(str(a.number), a.seed): value(a, OVERALL) for a in found
                 if (a.system, a.gap_s) == (who, gap_s)}
                for who in (ours, system)
            )  # fmt: skip
            result = paired(mine, theirs)
            differences.setdefault(system, {})[f"{gap_s:g}"] = {
                **result.mean._asdict(), "probes": result.scored,
            }  # fmt: skip
    chance = {**CHANCE, OVERALL: float(np.mean(list(CHANCE.values())))}
    return {"chance": chance, "systems": table, "ours_minus": differences}


def value(answer: Answer, name: str) -> float:
    """Share of an attribute, or the mean over all."""
    return float(np.mean(list(answer.shares.values()))) if name == OVERALL else answer.shares[name]
