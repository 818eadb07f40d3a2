"""Score the films of a store; resumes by (film, dimension, version)."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cfbench import fanout, prompts, scorers, video
from cfbench.errors import CfError
from cfbench.progress import Fractions, Reporter
from cfbench.scorers import Suite
from cfbench.store import LocalStore, Store, open_store
from cfbench.types import DimensionSpec, Failure, Prompt, RunRecord, Score

log = logging.getLogger(__name__)

FEATURES = "features"  # folder in a store
UNREADABLE = "unreadable"  # key in the details of a null score: the film is to be tried again


class Film(NamedTuple):
    """A film to score, and which dimensions of it are missing."""

    sha: str
    prompt_sha: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the scorers did: films scored now, films scored before, and the failures."""

    scored: int
    present: int
    failed: tuple[Failure, ...]


@dataclass(kw_only=True)
class ScoreWorker:
    """Scores films in one process.

    Args:
        store: not written to yet.
        suite_name: which suite to load.
        kept: folder for measures of films, or None.
    """

    store: LocalStore
    suite_name: str
    kept: Path | None = None
    _suite: Suite | None = field(default=None, repr=False)

    def __call__(self, film: Film, emit: fanout.Emit) -> str:
        """Score a film; returns why it cannot be read, or nothing."""
        if self._suite is None:
            self._suite = scorers.load(self.suite_name, kept=self.kept)
        return score_film(film, self._suite, self.store)

    def close(self) -> None:
        """Close the worker's store."""
        self.store.close()


def score_film(film: Film, suite: Suite, store: Store) -> str:
    """Store the missing scores of a film; returns why it cannot be read, or nothing."""
    path, prompt_path = store.path(film.sha, "mp4"), store.path(film.prompt_sha, "json")
    specs = [spec for spec in suite.dimensions if spec.name in film.dimensions]
    try:
        if not path.exists():
            raise video.DecodeError("is not in the store")
        prompt = prompt_in(prompt_path)
        found = scores_of(replace(video.stored(path), sha256=film.sha), prompt, suite)
    except video.DecodeError as error:
        reason = f"the film {error}"
        for spec in specs:
            store.append("scores", _null(film.sha, spec, reason))
        return reason
    store.append("scores", *(score for score in found if score.dimension in film.dimensions))
    return ""


def prompt_in(path: Path) -> Prompt:
    """The prompt in a file; one that cannot be read costs its films their scores, not the run.

    Raises:
        DecodeError: no such file, or no prompt in it.
    """
    try:
        return prompts.parse(path.read_bytes(), path.name)
    except FileNotFoundError as error:
        raise video.DecodeError("has a prompt that is not in the store") from error
    except (CfError, UnicodeDecodeError) as error:
        raise video.DecodeError(f"has a prompt that cannot be read ({error})") from error


def scores_of(clip: video.Clip, prompt: Prompt, suite: Suite) -> list[Score]:
    """The scores of a film, one a dimension of the suite.

    Raises:
        DecodeError: the film cannot be decoded.
        RuntimeError: the suite left a dimension out.
    """
    found = {score.dimension: score for score in suite.score(clip, prompt)}
    names = [spec.name for spec in suite.dimensions]
    if absent := set(names) - set(found):
        raise RuntimeError(f"the suite gave no score for {', '.join(sorted(absent))}")
    return [found[name] for name in names]


def score(
    root: Path, suite_name: str, *, workers: int, reporter: Reporter, features: bool = True
) -> Outcome:
    """Score every film of a store that lacks a score of the suite.

    A film that cannot be read gets null scores with the reason, and is tried again next time.

    Args:
        root: the store.
        suite_name: as in ``cfbench.scorers``.
        workers: processes.
        reporter: shows how far it is.
        features: keep what networks saw of films in the store's folder ``features``.

    Raises:
        CfError: no store, unknown suite, films that are not stored, or the disk is full or
            refuses.
    """
    suite = scorers.load(suite_name)
    store = open_store(root)
    runs = store.runs()
    films = missing(runs, store.scores(), suite.dimensions)
    gone = {run.clip.sha256 for run in runs if not run.clip.is_stored}
    if lost := sum(film.sha in gone for film in films):
        raise CfError(
            f"{lost} films of {root} lack scores of suite {suite_name}, and their frames were not "
            f"kept; run cfbench measure --suite {suite_name} again"
        )
    by_sha = {run.clip.sha256: run for run in runs}
    failed: list[Failure] = []
    reporter.phase(f"scores ({suite_name})", len(films))
    fractions = Fractions(reporter)

    def on_event(event: fanout.Event) -> None:
        if not fractions.follow(event):
            return
        if event.value:
            run = by_sha[films[event.task].sha]
            failure = Failure(
                stage="score",
                id=run.clip.sha256,
                system=run.system,
                prompt_id=run.prompt_id,
                seed=run.seed,
                reason=event.value,
                attempts=event.attempts,
            )
            store.append("failures", failure)
            failed.append(failure)

    with store:
        store.check_writable()
        store.sweep()
        kept = root / FEATURES if features else None
        staff = [
            ScoreWorker(store=LocalStore(root), suite_name=suite_name, kept=kept)
            for _ in range(workers)
        ]
        if films:
            fanout.run(films, staff, group=lambda film: film.prompt_sha, on_event=on_event)
    return Outcome(
        scored=len(films) - len(failed), present=len(by_sha) - len(films), failed=tuple(failed)
    )


def missing(
    runs: Iterable[RunRecord], scores: Iterable[Score], dimensions: Iterable[DimensionSpec]
) -> list[Film]:
    """Films that lack a score of some dimension's present version, each film once."""
    done = {
        (score.clip_sha, score.dimension, score.version)
        for score in scores
        if not score.details.get(UNREADABLE)
    }
    specs = tuple(dimensions)
    films: dict[str, Film] = {}
    for run in runs:
        sha = run.clip.sha256
        lacking = tuple(s.name for s in specs if (sha, s.name, s.version) not in done)
        if lacking:
            films[sha] = Film(sha, run.prompt_sha, lacking)
    return [films[sha] for sha in sorted(films)]


def _null(sha: str, spec: DimensionSpec, reason: str) -> Score:
    return Score(
        clip_sha=sha,
        dimension=spec.name,
        version=spec.version,
        tier=spec.tier,
        value=None,
        reason=reason,
        details={UNREADABLE: True},
    )
