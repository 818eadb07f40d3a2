"""Trials of the Ray engine on one host: killed nodes and drivers, and what the engine costs.

Ray's own multi-node test cluster gives every node a raylet of its own, so that one can be killed.
"""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

from cfbench.cluster import ray_module
from cfbench.errors import CfError
from cfbench.store import LocalStore, open_store, write_atomic
from cfbench.types import RunRecord

log = logging.getLogger(__name__)

NODES = 2
POLL_S = 0.05
ROUND_S = 900.0
"""A round that takes longer is an error of the engine."""
TRIES = 5
"""Attempts a film: a kill costs one, and none may be given up for it."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every run of a trial makes."""

    prompts: str
    systems: str
    seconds: float
    seeds: int

    def command(self, out: Path, *more: str) -> list[str]:
        """``cfbench generate`` of this work into ``out``."""
        return [
            sys.executable, "-m", "cfbench", "generate", "--prompts", self.prompts,
            "--systems", self.systems, "--seconds", str(self.seconds), "--seeds", str(self.seeds),
            "--device", "cpu", "--out", str(out), *more,
        ]  # fmt: skip


def untimed(run: RunRecord) -> RunRecord:
    """A record without what may differ between equal runs: times, and the tree's revision."""
    return replace(run, started="", seconds=0.0, peak_gib=0.0, fps_generated=0.0, code={})


class Compared(NamedTuple):
    """Films that a store lacks, has otherwise, and counts twice; records beyond one a film."""

    lost: int
    changed: int
    twice: int
    remade: int


def compared(wanted: Sequence[RunRecord], store: LocalStore) -> Compared:
    """How a store differs from the films that it should hold."""
    done = store.done_ids()
    runs = store.runs()
    found = {run.id: untimed(run) for run in runs}
    return Compared(
        lost=sum(run.id not in done for run in wanted),
        changed=sum(run.id in done and found[run.id] != untimed(run) for run in wanted),
        twice=len(runs) - len({(run.system, run.prompt_id, run.seed) for run in runs}),
        remade=sum(1 for _ in store.lines("runs")) - len(runs),
    )


def trial_faults(work: Work, folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill a node, then the driver, in turn, in mid-run; compare with the undisturbed local run.

    What a round found is kept in its own file: a trial that was stopped goes on where it was.

    Args:
        work: what to make; a few films that take seconds.
        folder: holds one store a round.
        rounds: how many kills, nodes and drivers in turn.
        seed: of when to kill.

    Raises:
        CfError: the folder holds a trial of other work, Ray is not installed, or a run does not
            end.
    """
    if rounds < 1:
        raise CfError(f"--rounds {rounds}: expected 1 or more")
    _claim(folder, {**asdict(work), "seed": seed})
    _run(work.command(folder / "local", "--workers", "1"))
    wanted = open_store(folder / "local").runs()
    todo = [number for number in range(rounds) if not _kept(folder, number).exists()]
    if todo:
        with _TestCluster() as cluster:
            for number in todo:
                found = _fresh_round(work, folder, number, cluster, wanted, seed)
                write_atomic(_kept(folder, number), json.dumps(found._asdict()).encode())
                log.info("round %d of %d: %s", number + 1, rounds, found)
    tallies = [Compared(**json.loads(_kept(folder, k).read_bytes())) for k in range(rounds)]
    lost, changed, twice, remade = (sum(column) for column in zip(*tallies, strict=True))
    return {
        "rounds": rounds,
        "node_kills": (rounds + 1) // 2,
        "driver_kills": rounds // 2,
        "clips": rounds * len(wanted),
        "clips_lost": lost,
        "clips_changed": changed,
        "clips_twice": twice,
        "clips_remade": remade,
    }


def _kept(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.json"


def _claim(folder: Path, what: dict[str, Any]) -> None:
    """Keep what a trial is of; refuse a folder that holds another."""
    path = folder / "trial.json"
    if not path.exists():
        write_atomic(path, json.dumps(what, sort_keys=True).encode())
    if json.loads(path.read_bytes()) != what:
        raise CfError(f"{folder} holds a trial of other work; name a new folder")


def _fresh_round(
    work: Work,
    folder: Path,
    number: int,
    cluster: "_TestCluster",
    wanted: Sequence[RunRecord],
    seed: int,
) -> Compared:
    store = LocalStore(folder / f"round-{number}")
    # A round that a stopped trial left half done is made whole anew.
    shutil.rmtree(store.root, ignore_errors=True)
    after = Random(f"{seed}-{number}").randrange(1, max(2, len(wanted) - NODES))
    _round(work, store, cluster.address, cluster.kill_node if number % 2 == 0 else None, after)
    return compared(wanted, store)


def _round(
    work: Work, store: LocalStore, address: str, kill_node: Callable[[], None] | None, after: int
) -> None:
    """One run with a kill after so many records; without ``kill_node`` the driver is killed."""
    command = work.command(
        store.root, "--engine", "ray", "--address", address, "--workers", str(NODES),
        "--attempts", str(TRIES),
    )  # fmt: skip
    driver = subprocess.Popen(command, stdout=sys.stderr)
    try:
        _wait_for_records(store, after, driver)
        if kill_node is not None:
            kill_node()
            driver.wait(ROUND_S)
    finally:
        driver.kill()
        driver.wait()
    if kill_node is None:
        _run(command)
    elif driver.returncode:
        raise CfError(f"a run whose node was killed ended with exit code {driver.returncode}")


def _wait_for_records(store: LocalStore, count: int, driver: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + ROUND_S
    while len(store.runs()) < count:
        if driver.poll() is not None:
            raise CfError(f"the driver ended with exit code {driver.returncode} before the kill")
        if time.monotonic() > end:
            raise CfError(f"no {count} films within {ROUND_S:.0f} s; look at the driver's messages")
        time.sleep(POLL_S)


def _run(command: Sequence[str]) -> None:
    code = subprocess.run(command, check=False, timeout=ROUND_S, stdout=sys.stderr).returncode
    if code:
        raise CfError(f"{' '.join(command[2:4])} ended with exit code {code}")


class _TestCluster:
    """Ray's multi-node test cluster: a head without CPUs and nodes of one CPU each."""

    def __enter__(self) -> "_TestCluster":
        ray_module("ray")
        make = ray_module("ray.cluster_utils").Cluster
        # Ray makes its workers nice, local ones are not: on a busy host that alone would tell.
        head = {"num_cpus": 0, "_system_config": {"worker_niceness": 0}}
        self._cluster = make(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(NODES)]
        self.address = str(self._cluster.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def kill_node(self) -> None:
        """SIGKILL all processes of the oldest node; another one joins."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1, wait=False))


def ray_overhead(work: Work, folder: Path, *, repeats: int) -> dict[str, Any]:
    """Wall time a film with one Ray worker beside one local worker, start-up left out.

    Both make the same films, in turn; the time a film is that between a run's first record and its
    last, by the films in between, and the overhead is the median over pairs of runs.

    Raises:
        CfError: the folder exists, or Ray is not installed.
    """
    if folder.exists():
        raise CfError(f"{folder} exists; name a new folder for the trial")
    pairs: list[dict[str, float]] = []
    with _TestCluster() as cluster:
        ways = {
            "local": ("--engine", "local"),
            "ray": ("--engine", "ray", "--address", cluster.address),
        }
        for number in range(repeats):
            pair: dict[str, float] = {}
            for name, options in ways.items():
                root = folder / f"{name}-{number}"
                _run(work.command(root, "--workers", "1", *options))
                pair[name] = _seconds_a_film(open_store(root))
            log.info("pair %d of %d: %s", number + 1, repeats, pair)
            pairs.append(pair)
    shares = [100 * (pair["ray"] / pair["local"] - 1) for pair in pairs]
    return {
        "pairs": pairs,
        "overhead_percent": {"value": median(shares), "low": min(shares), "high": max(shares)},
    }


def _seconds_a_film(store: LocalStore) -> float:
    times = sorted(line.at for line in store.lines("runs"))
    if len(times) < 2:
        raise CfError("a trial needs two films or more")
    return (times[-1] - times[0]) / 1e9 / (len(times) - 1)
