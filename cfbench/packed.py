"""The records of a store in one file, and back: what a report without films is made from again."""

import gzip
import json
from pathlib import Path

from cfbench.store import LocalStore, open_store, run_from, score_from, write_atomic
from cfbench.types import to_json


def pack(store: LocalStore, path: Path) -> None:
    """Write runs and scores as compressed lines; equal records give equal lines, in order.

    Raises:
        CfError: the disk is full or refuses.
    """
    runs = sorted(store.runs(), key=lambda run: run.id)
    films = {run.clip.sha256 for run in runs}
    scores = [score for score in store.scores() if score.clip_sha in films]
    scores.sort(key=lambda score: (score.clip_sha, score.dimension, score.version, score.tier))
    lines = [json.dumps({"run": to_json(run)}, sort_keys=True) for run in runs]
    lines += [json.dumps({"score": to_json(score)}, sort_keys=True) for score in scores]
    write_atomic(path, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def unpack(path: Path, root: Path) -> LocalStore:
    """A new store with the records of a packed file, and without films.

    Raises:
        ValueError: no such file, or something else in it.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        trees = [json.loads(line) for line in lines]
        runs = [run_from(tree["run"]) for tree in trees if "run" in tree]
        scores = [score_from(tree["score"]) for tree in trees if "score" in tree]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}; restore it, or make the report again") from error
    with open_store(root, exists=False) as store:
        store.append("runs", *runs)
        store.append("scores", *scores)
    return open_store(root)
