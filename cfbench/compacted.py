"""A store's scores as partitioned Parquet: what was appended until then, read many times as fast.

Layout under the store's root::

    compacted/<id>/tier=<tier>/dimension=<name>/scores.parquet    the last score of each key
    compacted/<id>.json        which bytes of which files of lines are in it; written last

Lines stay where they are and nothing is ever taken out of them: a reader takes the table for the
bytes that it names, and the lines behind those. A table that is torn, or names lines that are no
longer there, is not read.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfbench.types import Score, WindowScore

log = logging.getLogger(__name__)

FOLDER, PART = "compacted", "scores.parquet"
PARTITIONS = ("tier", "dimension")
COLUMNS = ("at", "clip_sha", "version", "value", "windows", "reason", "details", "schema")
SCHEMA = 1
ROWS = 1 << 16
"""Rows that become objects at a time."""

Key = tuple[str, str, str]


class Kept(NamedTuple):
    """A score, and when it was appended, in nanoseconds since 1970 (UTC)."""

    at: int
    score: Score


def key_of(score: Score) -> Key:
    """Of scores of one key the last counts."""
    return score.clip_sha, score.dimension, score.version


def packed(scores: Sequence[Kept]) -> dict[str, bytes]:
    """Parquet files by their path below the table's folder."""
    parts: dict[tuple[str, str], list[Kept]] = {}
    for one in scores:
        parts.setdefault((one.score.tier, one.score.dimension), []).append(one)
    return {
        f"{PARTITIONS[0]}={tier}/{PARTITIONS[1]}={dimension}/{PART}": _file(part)
        for (tier, dimension), part in parts.items()
    }


def _file(part: Sequence[Kept]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    window = pa.struct(
        [("start_s", pa.float64()), ("end_s", pa.float64()), ("value", pa.float64())]
    )
    types = {
        "at": pa.int64(), "clip_sha": pa.string(), "version": pa.string(), "value": pa.float64(),
        "windows": pa.list_(window), "reason": pa.string(), "details": pa.string(),
        "schema": pa.int64(),
    }  # fmt: skip
    columns: dict[str, list[Any]] = {
        "at": [one.at for one in part],
        "windows": [
            [{"start_s": w.start_s, "end_s": w.end_s, "value": w.value} for w in one.score.windows]
            for one in part
        ],
        "details": [json.dumps(one.score.details, sort_keys=True) for one in part],
    }
    for name in ("clip_sha", "version", "value", "reason", "schema"):
        columns[name] = [getattr(one.score, name) for one in part]
    table = pa.table([pa.array(columns[n], types[n]) for n in COLUMNS], names=list(COLUMNS))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A compacted table, and the lines that are in it.

    Args:
        root: of the store.
        name: its id.
        taken: bytes by file of lines, from the store's root.
        parts: its files, from its own folder.
    """

    root: Path
    name: str
    taken: Mapping[str, int]
    parts: tuple[str, ...]

    def manifest(self) -> bytes:
        """What makes it readable, once it is written."""
        tree = {"schema": SCHEMA, "taken": dict(self.taken), "parts": list(self.parts)}
        return (json.dumps(tree, sort_keys=True) + "\n").encode()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files from the store's root."""
        return tuple(f"{FOLDER}/{self.name}/{part}" for part in self.parts)

    def read(self) -> Iterator[Kept]:
        """The last score of each key, partition by partition.

        Raises:
            OSError, ValueError: a file is gone or damaged.
        """
        for part, file in zip(self.parts, self.files, strict=True):
            tier, dimension = (piece.partition("=")[2] for piece in part.split("/")[:2])
            yield from _rows(self.root / file, tier, dimension)

    def keys(self) -> Iterator[Key]:
        """Keys of its scores, without the scores.

        Raises:
            OSError, ValueError: as ``read``.
        """
        import pyarrow.parquet as pq

        for part, file in zip(self.parts, self.files, strict=True):
            dimension = part.split("/")[1].partition("=")[2]
            table = pq.ParquetFile(self.root / file).read(["clip_sha", "version"])
            rows = (table[name].to_pylist() for name in ("clip_sha", "version"))
            yield from ((sha, dimension, version) for sha, version in zip(*rows, strict=True))


def _rows(file: Path, tier: Any, dimension: str) -> Iterator[Kept]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(file).iter_batches(ROWS):
        table = batch.to_pydict()
        details: dict[str, dict[str, Any]] = {}
        for at, sha, version, value, windows, reason, told, schema in zip(
            *(table[name] for name in COLUMNS), strict=True
        ):
            if told not in details:
                details[told] = json.loads(told)
            score = Score(
                clip_sha=sha, dimension=dimension, version=version, tier=tier, value=value,
                windows=tuple(WindowScore(**window) for window in windows), reason=reason,
                details=dict(details[told]), schema=schema,
            )  # fmt: skip
            yield Kept(at, score)


def found(root: Path, names: Sequence[str]) -> Table | None:
    """The table that has taken most in, of those whose lines and files are all there.

    Args:
        root: of the store.
        names: ids of tables.
    """
    best: Table | None = None
    for name in names:
        table = _opened(root, name)
        if table is None:
            log.info("compacted table %s is torn or of other lines; it is not read", name)
        elif best is None or sum(table.taken.values()) > sum(best.taken.values()):
            best = table
    return best


def _opened(root: Path, name: str) -> Table | None:
    try:
        tree = json.loads((root / FOLDER / f"{name}.json").read_bytes())
        if tree["schema"] != SCHEMA:
            return None
        table = Table(root=root, name=name, taken=tree["taken"], parts=tuple(tree["parts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = ((root / file, size) for file, size in table.taken.items())
    whole = all(path.is_file() and path.stat().st_size >= size for path, size in sizes)
    return table if whole and all((root / file).is_file() for file in table.files) else None
