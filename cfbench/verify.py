"""Check a store: hashes of films, what is missing, lines that cannot be read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cfbench.store import LocalStore, sha256_of
from cfbench.types import Score


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found. ``problems`` are one line each; ``notes`` need no action."""

    films: int
    scores: dict[str, str]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def verify(store: LocalStore) -> Report:
    """Read everything in a store and compare it with the records.

    Problems: films or prompts that are missing or have another hash than their name, planned films
    and scores that are not made, damaged lines, open failures. Notes, which need no action: torn
    last lines and objects without a record (a writer was killed; the job is made again), nulls,
    films that were scored as made and not stored.
    """
    problems: list[str] = []
    notes: list[str] = []
    for damage in store.damage():
        if damage.torn:
            notes.append(f"{damage.where}: torn last line, ignored")
        else:
            problems.append(f"{damage.where}: not a record; restore the file or delete the line")
    if problems:
        # The other checks would stop at the same line.
        return Report(films=0, scores={}, problems=tuple(problems), notes=tuple(notes))
    runs = store.runs()
    stored = {run.clip.sha256 for run in runs if run.clip.is_stored}
    films = {run.clip.sha256 for run in runs}
    make, judge = ("generate", "score") if stored == films else ("measure", "measure")
    if unstored := len(films - stored):
        notes.append(f"{unstored} films were scored as made and are not stored")
    wanted = {(sha, "mp4") for sha in stored} | {(run.prompt_sha, "json") for run in runs}
    problems += [f"{problem}; run cfbench {make} again" for problem in _bad_objects(store, wanted)]
    notes += _orphans(store, wanted)
    planned = set(store.plan()["jobs"])
    if unmade := planned - store.done_ids():
        problems.append(
            f"{len(unmade)} of {len(planned)} planned films are missing; run cfbench {make} again"
        )
    coverage: dict[str, str] = {}
    for name, version, number, null in _coverage(store.scores(), films):
        coverage[f"{name}@{version}"] = f"{number}/{len(films)}"
        if number < len(films):
            problems.append(f"{name}: {number} of {len(films)} films scored; run cfbench {judge}")
        if null:
            notes.append(f"{name}: {null} null")
    for failure in store.failures():
        problems.append(
            f"{failure.stage} {failure.system} {failure.prompt_id} seed {failure.seed}: "
            f"{failure.reason}"
        )
    return Report(films=len(films), scores=coverage, problems=tuple(problems), notes=tuple(notes))


def _bad_objects(store: LocalStore, wanted: set[tuple[str, str]]) -> Iterator[str]:
    for sha, ext in sorted(wanted):
        path = store.path(sha, ext)
        if not path.exists():
            yield f"{_short(path)}: missing"
        elif sha256_of(path) != sha:
            yield f"{_short(path)}: content does not match its name; delete it"


def _orphans(store: LocalStore, wanted: set[tuple[str, str]]) -> Iterator[str]:
    for path in sorted((store.root / "objects").glob("*/*")):
        if (path.stem, path.suffix.removeprefix(".")) not in wanted:
            yield f"{_short(path)}: no record names it; its writer was killed in between"


def _coverage(scores: list[Score], films: set[str]) -> list[tuple[str, str, int, int]]:
    """Dimension, its version that covers most films, films scored, and nulls among them."""
    count: Counter[tuple[str, str, str]] = Counter()
    null: Counter[tuple[str, str, str]] = Counter()
    for score in scores:
        if score.clip_sha in films:
            name = (score.dimension, score.tier, score.version)
            count[name] += 1
            null[name] += score.value is None
    best: dict[tuple[str, str], tuple[str, str, str]] = {}
    for name in sorted(count, key=lambda name: (count[name], name)):
        best[name[:2]] = name
    return [(name[0], name[2], count[name], null[name]) for name in sorted(best.values())]


def _short(path: Path) -> str:
    return f"objects/{path.parent.name}/{path.name}"
