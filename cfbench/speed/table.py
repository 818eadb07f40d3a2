"""The table of ``results/speed/score.json``, as it stands in the documentation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfbench.readme import between
from cfbench.store import write_atomic

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
UNKNOWN = "\u2013"


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a table a machine, what was measured on it and what was not."""
    machines = results["machines"]
    return "\n\n".join(_machine(label, machines[label]) for label in sorted(machines))


def _machine(label: str, entry: Mapping[str, Any]) -> str:
    found = entry["summary"]
    lengths = f"{entry['films']} films of {entry['seconds']:g} s"
    head = (
        f"**{label}**: {lengths}, {entry['columns']}x{entry['rows']}, {entry['fps']} frames/s; "
        f"torch {_torch(entry)}, {entry['threads']} thread(s) a side."
    )
    rows = ["| | vbench, s | ours, s | times | scores apart |", "|:--|--:|--:|--:|--:|"]
    for name, row in found["dimensions"].items():
        rows.append(_row(name, row["theirs_s"], row["ours_s"], row["apart"]))
    whole, load = found["whole"], found["load"]
    if whole is not None:
        rows.append(_row("**all of these**", whole["theirs_s"], whole["ours_s"]))
        rows.append(_row("the same, processor time", whole["theirs_cpu_s"], whole["ours_cpu_s"]))
    if load is not None:
        film = f"{entry['long_seconds']:g} s film without networks"
        rows.append(_row(film, load["theirs_s"], load["ours_s"]))
        rows.append(_row("the same, processor time", load["theirs_cpu_s"], load["ours_cpu_s"]))
        rows.append(_row("the same, GiB", load["theirs_extra_gib"], load["ours_extra_gib"]))
    notes = [head, "\n".join(rows)]
    if found["extra_gib_long"] is not None:
        notes.append(
            f"Memory beyond the networks for a {entry['long_seconds']:g} s film: "
            f"{found['extra_gib_long']:.2f} GiB."
        )
    if found["lacking"]:
        notes.append(
            "Not measured: " + "; ".join(f"{k} ({v[-80:]})" for k, v in found["lacking"].items())
        )
    return "\n\n".join(notes)


def _torch(entry: Mapping[str, Any]) -> str:
    return ", ".join(sorted({row["torch"] for row in entry["pieces"].values() if "torch" in row}))


def _row(name: str, theirs: float | None, ours: float | None, apart: float | None = None) -> str:
    times = UNKNOWN if theirs is None or ours is None else f"{theirs / ours:.1f}"
    cells = [UNKNOWN if value is None else f"{value:.2f}" for value in (theirs, ours)]
    told = "" if apart is None else f"{apart:.0e}"
    return f"| {name} | {cells[0]} | {cells[1]} | {times} | {told} |"


def put(results: Path, document: Path) -> None:
    """Replaces the table between a document's markers.

    Raises:
        ValueError: no markers there.
    """
    text = table(json.loads(results.read_text(encoding="utf-8")))
    old = document.read_text(encoding="utf-8")
    write_atomic(document, between(old, BEGIN, END, text).encode())
