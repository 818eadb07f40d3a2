"""The records of a store in one Parquet file, and back: what a report without films is made from.

One row a film: its run, its scores as float32, and those windows that tables and curves read. A
store of ten thousand films of a minute has 300 MB of lines; its packed file has 3.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cfbench.claims import ATTRIBUTES
from cfbench.curves import CURVES
from cfbench.errors import CfError
from cfbench.frame import current_runs, newest_versions, one_protocol
from cfbench.records import run_from, score_from
from cfbench.store import LocalStore, open_store, write_atomic
from cfbench.types import RunRecord, Score, Tier, WindowScore, to_json

ABOUT = b"cfbench"
SCHEMA = 1
OWN = ("id", "prompt_id", "prompt_sha", "stratum", "seed", "started", "seconds", "fps_generated",
       "peak_gib", "batch")  # fmt: skip
"""Fields of a run that are its own; films of one key share the others."""
CLIP = ("sha256", "bytes")
VALUE, WINDOWS = "value:", "windows:"
"""Columns of a dimension: its score, and start, end and value of one window after the other."""


def kept_windows(score: Score) -> tuple[WindowScore, ...]:
    """The windows of a score that a table or curve reads: all, the first and the last, or none."""
    if score.dimension in CURVES:
        return score.windows
    if score.dimension in ATTRIBUTES:
        return (*score.windows[:1], *score.windows[1:][-1:])
    return ()


def pack(store: LocalStore, path: Path, tier: Tier, systems: Collection[str] = ()) -> int:
    """Write a store's films, of each system's newest key, and return how many there are.

    Equal records give equal files. Of a dimension's versions the newest counts, as in every table.
    What no table or curve reads is left out: most windows, and details of scores that are not null.

    Args:
        store: the records.
        path: the file to write.
        tier: whose scores.
        systems: those to take; all if none is named.

    Raises:
        CfError: the disk is full or refuses.
        ValueError: no films of a system, films of several protocols, or scores of one dimension
            that differ in what they are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = current_runs(store.runs())
    runs = [run for run in every if not systems or run.system in systems]
    if absent := set(systems) - {run.system for run in every}:
        raise ValueError(f"no films of {', '.join(sorted(absent))}; leave them out")
    one_protocol(runs)
    scores: dict[str, dict[str, Score]] = {run.clip.sha256: {} for run in runs}
    mine = [s for s in store.scores() if s.tier == tier and s.clip_sha in scores]
    versions = newest_versions(mine)
    for score in mine:
        if score.version == versions[score.dimension]:
            scores[score.clip_sha][score.dimension] = score
    rest = [_rest(run) for run in runs]
    tags = [hashlib.sha256(json.dumps(x, sort_keys=True).encode()).hexdigest() for x in rest]
    shared = dict(zip(tags, rest, strict=True))
    names = sorted({name for found in scores.values() for name in found})
    about: dict[str, dict[str, Any]] = {}
    columns: dict[str, Any] = {"key": tags}
    columns |= {name: [getattr(run, name) for run in runs] for name in OWN}
    columns |= {name: [getattr(run.clip, name) for run in runs] for name in CLIP}
    for name in names:
        rows = [scores[run.clip.sha256].get(name) for run in runs]
        known = [row for row in rows if row is not None]
        about[name] = _alike(
            {"version": row.version, "tier": row.tier, "schema": row.schema} for row in known
        )
        columns[VALUE + name] = pa.array([row and row.value for row in rows], pa.float32())
        windows = [() if row is None else kept_windows(row) for row in rows]
        if any(windows):
            flat = [[x for w in row for x in (w.start_s, w.end_s, w.value)] for row in windows]
            columns[WINDOWS + name] = pa.array(flat, pa.list_(pa.float32()))
    columns["nulls"] = [_nulls(scores[run.clip.sha256].values()) for run in runs]
    tree = {"schema": SCHEMA, "runs": shared, "scores": about}
    table = pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(tree, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=19)
    write_atomic(path, buffer.getvalue())
    return len(runs)


def unpack(path: Path, root: Path) -> LocalStore:
    """A new store with the records of a packed file, and without films.

    Raises:
        ValueError: no such file, something else in it, or records in the folder already.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (root / "records").exists():
        raise ValueError(f"{root} has records, of which packed ones would hide parts; use another")
    try:
        table = pq.read_table(path)
        tree = json.loads(table.schema.metadata[ABOUT])
        rows: list[dict[str, Any]] = table.to_pylist()
        if tree["schema"] != SCHEMA:
            raise ValueError(f"schema {tree['schema']}, this version reads {SCHEMA}")
        runs = [_run(row, tree["runs"][row["key"]]) for row in rows]
        scores = [score for row in rows for score in _scores(row, tree)]
    except (OSError, ValueError, KeyError, TypeError, CfError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}; restore it, or make it again") from error
    with open_store(root, exists=False) as store:
        store.append("runs", *runs)
        store.append("scores", *scores)
    return open_store(root)


def _alike(items: Iterable[Any]) -> Any:
    """The one value that all of them have.

    Raises:
        ValueError: they differ.
    """
    different = list(dict.fromkeys(json.dumps(item) for item in items))
    if len(different) > 1:
        raise ValueError(
            f"films that differ cannot be packed together: {different[0]} and {different[1]}"
        )
    return json.loads(different[0])


def _rest(run: RunRecord) -> dict[str, Any]:
    """All of a run but its own fields."""
    tree = to_json(run)
    clip = {name: value for name, value in tree["clip"].items() if name not in CLIP}
    return {**{name: value for name, value in tree.items() if name not in OWN}, "clip": clip}


def _nulls(scores: Iterable[Score]) -> str:
    """Why scores are null, and what is said of them, as JSON; empty if none is."""
    told = {
        score.dimension: [score.reason, score.details] for score in scores if score.value is None
    }
    return json.dumps(told, sort_keys=True) if told else ""


def _run(row: Mapping[str, Any], shared: Mapping[str, Any]) -> RunRecord:
    clip = {**shared["clip"], **{name: row[name] for name in CLIP}}
    return run_from({**shared, **{name: row[name] for name in OWN}, "clip": clip})


def _scores(row: Mapping[str, Any], tree: Mapping[str, Any]) -> list[Score]:
    nulls = json.loads(row["nulls"]) if row["nulls"] else {}
    found: list[Score] = []
    for name, about in tree["scores"].items():
        value = row[VALUE + name]
        if value is None and name not in nulls:
            continue  # never scored
        flat = row.get(WINDOWS + name) or []
        windows = [
            {"start_s": start, "end_s": end, "value": each}
            for start, end, each in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        reason, details = nulls.get(name, ("", {}))
        line = {
            "clip_sha": row["sha256"], "dimension": name, **about, "value": value,
            "windows": windows, "reason": reason, "details": details,
        }  # fmt: skip
        found.append(score_from(line))
    return found
