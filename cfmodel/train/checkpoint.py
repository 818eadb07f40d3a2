"""Checkpoints of a run: all that a stage needs to go on as if it had never stopped.

A checkpoint is a folder ``<stage>-checkpoint/step-<n>``: the networks as torch's distributed
checkpoint, each process's own state (random numbers, pools, places in streams) in a file of its
own, and ``run.json``. It appears under its name when it is whole.
"""

import json
import os
import shutil
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from cfmodel.devices import barrier, world
from cfmodel.io.weights import write_atomic
from cfmodel.train.state import Trainable

KEPT = 2
"""Newest checkpoints that stay; the one before the last was surely written in good health."""
RUN, NETWORKS, PART = "run.json", "networks", ".part"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is.

    Args:
        step: steps done.
        seconds: of the budget spent, over all parts of the run.
        best: least absolute loss seen, against which an explosion is judged.
        metrics: bytes of the metrics file.
        resumed: how often the run was taken up again.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    metrics: int = 0
    resumed: int = 0


def folder_of(out: Path, stage: str) -> Path:
    """Where a stage's checkpoints are."""
    return out / f"{stage}-checkpoint"


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder."""
    whole = [path.parent for path in folder.glob(f"step-*/{RUN}")]
    return max((path for path in whole if path.suffix != PART), default=None)


def save(
    folder: Path,
    position: Position,
    trainables: Mapping[str, Trainable],
    own: Mapping[str, Any],
    *,
    identity: Mapping[str, Any],
) -> Path:
    """Writes a checkpoint, and removes all but the newest ``KEPT``. Every process must call it.

    Args:
        folder: see ``folder_of``.
        position: where the run is.
        trainables: networks by name.
        own: this process's state: tensors, numbers, texts, lists and dictionaries of these.
        identity: what a run that goes on from here must have in common with this one.
    """
    path = folder / f"step-{position.step:08d}"
    part = path.with_suffix(PART)
    here = world()
    if here.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    networks = {name: trainable.state_dict() for name, trainable in trainables.items()}
    with _quiet():
        dcp.save(networks, checkpoint_id=part / NETWORKS, no_dist=here.size == 1)
    with (part / _own_name(here.rank)).open("wb") as file:
        torch.save(dict(own), file)
        file.flush()
        os.fsync(file.fileno())
    barrier()
    if here.rank == 0:
        told = {"position": asdict(position), "identity": dict(identity), "processes": here.size}
        write_atomic(part / RUN, json.dumps(told, sort_keys=True, indent=1).encode())
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    barrier()
    return path


@contextmanager
def _quiet() -> Generator[None]:
    """Without torch's remark that one process works alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _own_name(rank: int) -> str:
    return f"process-{rank}.pt"


def restore(
    path: Path, trainables: Mapping[str, Trainable], *, identity: Mapping[str, Any]
) -> tuple[Position, dict[str, Any]]:
    """Restores the networks from a checkpoint; returns where it was, and this process's state.

    Raises:
        ValueError: it is the checkpoint of another run, or of another number of processes.
    """
    told = json.loads((path / RUN).read_text(encoding="utf-8"))
    here = world()
    wanted = {**identity, "processes": here.size}
    held = {**told["identity"], "processes": told["processes"]}
    for name in sorted(wanted.keys() | held.keys()):
        if wanted.get(name) != held.get(name):
            raise ValueError(
                f"{path} is of a run with {name}={held.get(name)!r}, not {wanted.get(name)!r}; "
                "run with what it had, choose another --out, or begin anew with --fresh"
            )
    networks = {name: trainable.state_dict() for name, trainable in trainables.items()}
    # Reads into the very tensors that it is given.
    with _quiet():
        dcp.load(networks, checkpoint_id=path / NETWORKS, no_dist=here.size == 1)
    for name, trainable in trainables.items():
        trainable.load_state_dict(networks[name])
    own = torch.load(path / _own_name(here.rank), map_location="cpu", weights_only=True)
    return Position(**told["position"]), own


def remove(folder: Path) -> None:
    """Removes a stage's checkpoints, if there are any."""
    shutil.rmtree(folder, ignore_errors=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The ambient generators' states: of the CPU, and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restores what ``random_state`` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
