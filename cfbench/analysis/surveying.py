"""A run's films looked at, told in a table and drawn."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from cfbench import render, tables
from cfbench.analysis import survey_draw
from cfbench.analysis.survey import at_changes, behaviour_table, changes_of, films_of, survey
from cfbench.progress import Reporter
from cfbench.store import open_store, write_atomic

log = logging.getLogger(__name__)


def write_survey(
    root: Path, to: Path, *, features: str, workers: int, header: str
) -> dict[str, Any]:
    """Writes what the films of a run do: records of films, table and plots.

    Args:
        root: store of the run.
        to: folder to write.
        features: of the comparison from clip to clip, as for ``spaces.load``; empty is none.
        workers: processes.
        header: provenance, printed with the table.

    Returns:
        How many films and events of each kind there are, and how many flashbacks begin where the
        text changes, as a JSON tree.

    Raises:
        CfError: no store there, films that cannot be decoded or are too short, or the disk refuses.
    """
    store = open_store(root)
    with Reporter() as reporter:
        found = survey(store, to, features=features, workers=workers, reporter=reporter)
    runs = films_of(store)
    labels = {run.system: run.label for run in runs}
    table = behaviour_table(runs, found, labels=labels, header=header)
    for suffix, text in (
        ("csv", tables.to_csv(table)),
        ("md", render.markdown(table)),
        ("tex", render.latex(table)),
    ):
        write_atomic(to / f"{table.name}.{suffix}", text.encode())
    changes = changes_of(store, runs)
    survey_draw.event_lines(to / "events", runs, found, labels, changes)
    survey_draw.drift_by_system(to / "drift", runs, found, labels)
    shown = survey_draw.clearest(runs, found)
    if shown is None:
        log.info("no film of these flashes back to its opening; none is drawn")
    else:
        path = store.path(shown.run.clip.sha256, "mp4")
        survey_draw.flashback(to / "flashback", shown, path, labels[shown.run.system])
    events = [(run.prompt_id, event) for run in runs for event in found[run.clip.sha256].events]
    kinds = Counter(event.kind for _, event in events)
    asked = sum(
        event.kind == "flashback" and at_changes(event, changes.get(prompt, ()))
        for prompt, event in events
    )
    return {
        "films": len(runs),
        "events": dict(sorted(kinds.items())),
        "flashbacks_at_changes_of_text": asked,
        "table": str(to),
    }
