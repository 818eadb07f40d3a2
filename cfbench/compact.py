"""The records of a store as one Parquet table in long form."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfbench.errors import CfError
from cfbench.store import Store, write_atomic
from cfbench.types import Score

COLUMNS = (
    "key",
    "system",
    "label",
    "prompt_id",
    "stratum",
    "seed",
    "dimension",
    "version",
    "tier",
    "window_start_s",
    "window_end_s",
    "value",
    "reason",
)
PARTITIONS = ("system", "dimension", "tier", "stratum")
"""Columns with few values, which are ids."""
PART = "scores.parquet"


def compact(store: Store, out: Path, by: Sequence[str] = ()) -> int:
    """Write the table and return its number of rows.

    A row is one window of one dimension of one film; the film as a whole has no window (null). A
    film without any score has no row.

    Args:
        store: where the records are.
        out: the Parquet file; with ``by`` a folder, ``out/system=ours/.../scores.parquet``.
        by: columns that divide the table, outermost first.

    Raises:
        CfError: the disk is full or refuses, and an older table stays; or no such column.
    """
    import pyarrow as pa

    if unknown := [name for name in by if name not in PARTITIONS]:
        raise CfError(f"--by {','.join(unknown)}: expected some of {', '.join(PARTITIONS)}")
    scores: dict[str, list[Score]] = {}
    for score in store.scores():
        scores.setdefault(score.clip_sha, []).append(score)
    rows: list[tuple[object, ...]] = []
    for run in store.runs():
        film = (run.key, run.system, run.label, run.prompt_id, run.stratum, run.seed)
        for score in scores.get(run.clip.sha256, []):
            what = (score.dimension, score.version, score.tier)
            rows.append((*film, *what, None, None, score.value, score.reason))
            rows += [(*film, *what, w.start_s, w.end_s, w.value, "") for w in score.windows]
    rows.sort(key=lambda row: (row[1], row[0], *row[3:9], -1.0 if row[9] is None else row[9]))
    text, number = pa.string(), pa.float64()
    types = [text] * 5 + [pa.int64()] + [text] * 3 + [number] * 3 + [text]
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]
    table = pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)],
        schema=schema,
    )
    if by:
        _write_parts(table, out, list(by))
    else:
        _write(table, out)
    return len(rows)


def _write(table: Any, out: Path) -> None:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(out, buffer.getvalue())


def _write_parts(table: Any, out: Path, by: list[str]) -> None:
    """One file a combination of values; files of combinations that are gone are removed."""
    import pyarrow.compute as pc

    old = set(out.rglob(PART))
    for values in table.select(by).group_by(by).aggregate([]).to_pylist():
        same = [pc.equal(table[name], value) for name, value in values.items()]  # pyright: ignore[reportAttributeAccessIssue]
        keep = functools.reduce(pc.and_, same)  # pyright: ignore[reportAttributeAccessIssue]
        path = out.joinpath(*(f"{name}={values[name]}" for name in by), PART)
        _write(table.filter(keep).drop_columns(by), path)
        old.discard(path)
    for path in old:
        path.unlink()
