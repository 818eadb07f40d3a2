"""The records of a store as one Parquet table in long form."""

import io
from pathlib import Path

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


def compact(store: Store, out: Path) -> int:
    """Write the table and return its number of rows.

    A row is one window of one dimension of one film; the film as a whole has no window (null). A
    film without any score has no row.

    Args:
        store: where the records are.
        out: the Parquet file.

    Raises:
        CfError: the disk is full or refuses; an older table stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(out, buffer.getvalue())
    return len(rows)
