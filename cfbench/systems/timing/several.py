"""Several GPUs: many prompts, one a process, and one film by all, beside one GPU alone.

``together`` starts as many processes as there are GPUs; each runs this module.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from cfbench.errors import CfError
from cfbench.systems.timing import ours
from cfbench.systems.timing.base import settle, tidy
from cfmodel import devices
from cfmodel.nn.spread import Spread

WARM = 6
PATIENCE_S = 420.0
"""After which processes that wait for each other are ended."""
NEEDS = "needs two GPUs"
SPREAD = ("auto", "joined+compiled+gelu")
"""What a film's processes do to be fast; the second is for where graphs cannot hold exchanges."""


def together(
    family: str, attention: str, device: torch.device, chunks: int, processes: int
) -> dict[str, Any]:
    """Milliseconds of chunks on one and on several, and how much more several make.

    Args:
        family: of presets.
        attention: backend.
        device: kind of device.
        chunks: timed of each.
        processes: how many; on CUDA each takes a GPU of its own.

    Raises:
        CfError: less than two processes, or they failed before films were timed.
    """
    if processes < 2:
        raise CfError(NEEDS)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), "-m", __name__, family, attention, device.type, str(chunks),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, errors = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        # The launcher ends its processes.
        child.terminate()
        said, errors = child.communicate()
    found: dict[str, float] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    films = [found[name] for name in SPREAD if name in found]
    if not films:
        raise CfError(f"{processes} processes: exit code {child.returncode}: {errors[-500:]}")
    return {
        "processes": processes,
        "ms": found,
        "prompts_times": found["one"] * processes / found["prompts"],
        "film_times": found["one"] / min(films),
    }


def main(family: str, attention: str, kind: str, chunks: int) -> None:
    """What each process does; the first says what was found, a line of JSON each."""
    backend = ours.backend_of(attention)
    with devices.joined(torch.device(kind)) as device:
        rank, size = devices.world()
        dtype = torch.bfloat16 if kind == "cuda" else torch.float32

        def built(words: str, spread: Spread | None) -> ours.Ours:
            fast = ours.choices(words if kind == "cuda" else "off")
            made = ours.Ours(
                ours.experiment_of(family, "ours"), fast,
                device=device, dtype=dtype, attention=backend, spread=spread,
            )  # fmt: skip
            for _ in range(WARM):
                made.step()
            settle(device)
            return made

        def tell(name: str, steps: Callable[[], None]) -> None:
            devices.barrier()
            began = time.perf_counter()
            steps()
            settle(device)
            devices.barrier()
            if rank == 0:
                ms = 1000 * (time.perf_counter() - began) / chunks
                sys.stdout.write(json.dumps({name: ms}) + "\n")
                sys.stdout.flush()

        made = built("auto", None)

        def steps() -> None:
            for _ in range(chunks):
                made.step()

        tell("one", steps if rank == 0 else lambda: None)
        tell("prompts", steps)
        # Exchanges that a graph cannot hold may end the process, so they come last.
        for words in reversed(SPREAD):
            del made
            tidy(device)
            made = built(words, Spread(rank, size))
            tell(words, steps)
        del made
        tidy(device)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
