"""How the films of a run behave: events, motion and drift, looked at once and told by system.

What is found is kept film by film, so that a second call looks at new films only, and table and
plots follow from it without the films.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfbench import prompts as prompt_sets
from cfbench import video
from cfbench.analysis.drift import Drift, Series, Settings, drift, pixel_series
from cfbench.analysis.events import Event, detect
from cfbench.analysis.features import trace
from cfbench.analysis.motion import motion
from cfbench.analysis.watch import look
from cfbench.frame import Estimate, current_runs
from cfbench.progress import Reporter
from cfbench.stats import mean_interval
from cfbench.store import LocalStore, write_atomic
from cfbench.tables import REFERENCES, Row, Table, system_order
from cfbench.types import Prompt, RunRecord

FILE = "survey.json"
RULES = 2
"""Changes with any rule of events, motion or drift: films are then looked at anew."""

DIGITS = 5
CLIPS = "dino_clips"
"""Measure of ``consistency_of`` that compares clips."""
CHANGE_S = 0.25
COLUMNS: Mapping[str, str] = {
    "Flashback": "films with a flashback to their opening",
    "Looped": "time in loops",
    "Frozen": "time in freezes",
    "Dynamic": "films that VBench's rule calls dynamic",
    "Own motion": "the same with the camera's motion taken out",
    "Drifted": "films whose exposure, saturation or sharpness left the band around their opening",
    "Clip to clip": "consistency of the first frames of clips of 2 s, no share of films",
}


class Task(NamedTuple):
    """A film to look at; ``features`` as for ``spaces.load``, or nothing."""

    sha: str
    path: Path
    features: str = ""

    def __str__(self) -> str:
        return self.path.name


class Behaviour(NamedTuple):
    """What one film does.

    Attributes:
        seconds: its length.
        events: in order of time.
        dynamic: VBench's rule.
        own: the same without the camera's motion; None where that cannot be judged.
        reason: why ``own`` is None.
        series: exposure, saturation and sharpness by window.
        clips: consistency from clip to clip; None where no features were asked for.
    """

    seconds: float
    events: tuple[Event, ...]
    dynamic: bool
    own: bool | None
    reason: str
    series: tuple[Series, ...]
    clips: float | None = None

    def drifts(self) -> list[Drift]:
        """Drift of each measure."""
        return [drift(one, Settings()) for one in self.series]

    def tree(self) -> dict[str, Any]:
        """As a JSON tree, inverse of ``from_tree``."""
        found = self._asdict()
        found["events"] = [event._asdict() for event in self.events]
        found["series"] = {one.name: np.round(one.values_W, DIGITS).tolist() for one in self.series}
        found["starts_s"] = self.series[0].starts_s.tolist()
        return found


def from_tree(tree: Mapping[str, Any]) -> Behaviour:
    """What one film does."""
    rest = {name: tree[name] for name in ("seconds", "dynamic", "own", "reason", "clips")}
    starts = np.array(tree["starts_s"])
    series = [Series(name, starts, np.array(row)) for name, row in tree["series"].items()]
    events = tuple(Event(**event) for event in tree["events"])
    return Behaviour(events=events, series=tuple(series), **rest)


def behaviour(task: Task) -> Behaviour:
    """What the film in a file does.

    Raises:
        DecodeError: the film cannot be decoded.
        ValueError: it is too short.
    """
    clip = video.stored(task.path)
    found = motion(clip)
    return Behaviour(
        seconds=round(clip.frames / clip.rate, DIGITS),
        events=tuple(detect(trace(clip))),
        dynamic=found.dynamic,
        own=found.own,
        reason=found.reason,
        series=tuple(pixel_series(clip, Settings())),
        clips=_clips(task),
    )


def _clips(task: Task) -> float | None:
    if not task.features:
        return None
    from cfbench.analysis.consistency import FilmTask, consistency_of

    known = consistency_of(FilmTask(task.path, "", "", (), task.features)).clips
    return known.get(CLIPS)


def read(out: Path, features: str) -> dict[str, Behaviour]:
    """What films do, by hash; none where nobody looked by the present rules and these features."""
    path = out / FILE
    if not path.is_file():
        return {}
    tree = json.loads(path.read_text(encoding="utf-8"))
    films = tree["films"] if tree.get("rules") == [RULES, features] else {}
    return {sha: from_tree(one) for sha, one in films.items()}


def written(out: Path, found: Mapping[str, Behaviour], features: str) -> None:
    """Puts into a folder what ``read`` reads."""
    films = {sha: one.tree() for sha, one in found.items()}
    tree = {"rules": [RULES, features], "films": films}
    write_atomic(out / FILE, (json.dumps(tree, sort_keys=True) + "\n").encode())


def films_of(store: LocalStore) -> list[RunRecord]:
    """The runs of a store that count and whose film is a file."""
    return [run for run in current_runs(store.runs()) if run.clip.is_stored]


def survey(
    store: LocalStore, out: Path, *, features: str, workers: int, reporter: Reporter
) -> dict[str, Behaviour]:
    """Looks at the stored films of a run that nobody looked at yet, and keeps what they do.

    Args:
        store: of the films.
        out: folder of what is found.
        features: of the comparison from clip to clip, as for ``spaces.load``; empty is none.
        workers: processes.
        reporter: shows how far it is.

    Raises:
        CfError: films that cannot be decoded or are too short, or the disk refuses.
    """
    shas = list(dict.fromkeys(run.clip.sha256 for run in films_of(store)))
    known = read(out, features)
    tasks = [Task(sha, store.path(sha, "mp4"), features) for sha in shas if sha not in known]
    if tasks:
        results = look(tasks, behaviour, workers=workers, reporter=reporter)
        known |= {task.sha: result for task, result in zip(tasks, results, strict=True)}
    kept = {sha: known[sha] for sha in shas}
    written(out, kept, features)
    return read(out, features)  # rounded, so that a report made again says the same


def changes_s(prompt: Prompt) -> tuple[float, ...]:
    """When a prompt's text changes, in seconds.

    Example:
        >>> from cfbench.types import Segment
        >>> parts = (Segment(text="a", seconds=4.5), Segment(text="b", seconds=9.0))
        >>> changes_s(Prompt(id="p", segments=parts))
        (4.5,)
    """
    return tuple(accumulate(segment.seconds for segment in prompt.segments[:-1]))


def changes_of(store: LocalStore, runs: Sequence[RunRecord]) -> dict[str, tuple[float, ...]]:
    """When the text changes, by prompt, of the films whose prompts are stored."""
    prompts = prompt_sets.stored(runs, lambda sha: store.path(sha, "json"))
    return {name: changes_s(prompt) for name, prompt in prompts.items()}


def at_changes(event: Event, times_s: Sequence[float]) -> bool:
    """Whether an event begins where the text changes: the text may ask for what is shown."""
    return any(abs(event.start_s - time) <= CHANGE_S for time in times_s)


def share_in(events: Iterable[Event], kind: str, seconds: float) -> float:
    """Share of a film that events of a kind fill; they do not overlap."""
    return sum(event.end_s - event.start_s for event in events if event.kind == kind) / seconds


def values_of(film: Behaviour) -> tuple[float, ...]:
    """A film's value in each of ``COLUMNS``; NaN where it has none."""
    return (
        float(any(event.kind == "flashback" for event in film.events)),
        share_in(film.events, "loop", film.seconds),
        share_in(film.events, "freeze", film.seconds),
        float(film.dynamic),
        np.nan if film.own is None else float(film.own),
        float(any(one.fails_s is not None for one in film.drifts())),
        np.nan if film.clips is None else film.clips,
    )


def behaviour_table(
    runs: Sequence[RunRecord],
    found: Mapping[str, Behaviour],
    *,
    labels: Mapping[str, str],
    header: str,
) -> Table:
    """What the films of every system do, as shares with intervals over prompts.

    Args:
        runs: films; those that nobody looked at count as expected and not as scored.
        found: what films do, by hash.
        labels: of systems.
        header: provenance.
    """
    rows: list[Row] = []
    systems = dict.fromkeys(run.system for run in runs)
    for system, label in system_order(systems).items():
        mine = [run for run in runs if run.system == system]
        if not mine:
            continue
        nothing = (np.nan,) * len(COLUMNS)
        values = np.array([
            values_of(found[run.clip.sha256]) if run.clip.sha256 in found else nothing
            for run in mine
        ], np.float64)  # fmt: skip
        prompts = [run.prompt_id for run in mine]
        rows.append(
            Row(
                system=system,
                label=labels.get(system, label),
                is_reference=system in REFERENCES,
                cells=tuple(_cell(column, prompts) for column in values.T),
            )
        )
    meanings = "; ".join(f"{name}: {text}" for name, text in COLUMNS.items())
    return Table(
        name="behaviour",
        title="What films do",
        columns=tuple(COLUMNS),
        paper_columns=(),
        rows=tuple(rows),
        notes=(
            f"Shares, x100. {meanings}. Brackets: 95 % interval, resampling prompts (from 5 on). "
            "Nothing is bold: a rendered film rests and drifts too, and its row says how much.",
        ),
        header=header,
        bold=False,
    )


def _cell(values_N: np.ndarray, prompts: Sequence[str]) -> Estimate:
    scored = int(np.count_nonzero(~np.isnan(values_N)))
    return Estimate(
        mean=mean_interval(values_N, prompts),
        scored=scored,
        expected=len(values_N),
        reason="" if scored else "no film could be judged",
    )
