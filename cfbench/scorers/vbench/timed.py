"""Times our own pass over films: ``python -m cfbench.scorers.vbench.timed JOB.json TOLD.json``.

A job: ``dimensions``, ``device``, ``threads``, ``weights``, ``films``, and ``networks``: ``real``;
``stub``, which cost nothing; ``sparse``, real once in a while, so that a long film has the memory
of real ones without their time. Told as by ``cfbench/data/upstream_speed.py``, by its clock.
"""

import importlib.util
import json
import runpy
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfbench import video
from cfbench.scorers.vbench import process
from cfbench.scorers.vbench.files import Folder
from cfbench.scorers.vbench.suite import NEEDS, measured
from cfbench.scorers.vbench.toolbox import Toolbox
from cfbench.scorers.vbench.watch import Nets, watch

FIELDS = {
    "dino": "dino", "clip-b32": "clip_b", "clip-l14": "clip_l", "aesthetic": "aesthetic",
    "musiq": "musiq", "amt": "amt", "raft": "raft",
}  # fmt: skip
SPARSE = 160
"""Calls of a network of which one is real."""


class _Free(nn.Module):
    """In a network's place: an answer of the right form that costs nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(self, *given: Tensor) -> Tensor:
        """Of one batch, or of the two ends of pairs."""
        x = given[0]
        if self._name == "amt":
            return x
        if self._name == "musiq":
            return x[:, 0, 0, 0]
        return x[:, :1] if self._name == "aesthetic" else x[:, :, 0, :4].flatten(1)

    def features(self, images: Tensor) -> Tensor:
        """RAFT's."""
        return images[:, :1, :1, :1]

    def flow(self, images: Tensor, *_: Tensor) -> Tensor:
        """RAFT's."""
        return images[:, :2]


class _Sparse(nn.Module):
    """A network that is asked once in a while; its last answer stands for the others."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self._net: Any = net
        self._calls, self._known = 0, dict[Any, Tensor]()

    def _asked(self, work: Callable[..., Tensor], *given: Tensor) -> Tensor:
        key = (work.__name__, *(tuple(x.shape) for x in given))
        if key not in self._known or self._calls % SPARSE == 0:
            self._known[key] = work(*given)
        self._calls += 1
        return self._known[key]

    def forward(self, *given: Tensor) -> Tensor:
        """As the network's."""
        return self._asked(self._net.forward, *given)

    def features(self, images: Tensor) -> Tensor:
        """RAFT's."""
        return self._asked(self._net.features, images)

    def flow(self, *given: Tensor) -> Tensor:
        """RAFT's."""
        return self._asked(self._net.flow, *given)


def networks(job: dict[str, Any], device: torch.device) -> Nets:
    """What looks at the films of a job."""
    names = dict.fromkeys(file for dimension in job["dimensions"] for file in NEEDS[dimension])
    if job["networks"] == "stub":
        return Nets(**{FIELDS[name]: _Free(name) for name in names})
    tools = Toolbox(Folder(Path(job["weights"])), device)
    nets = {FIELDS[name]: tools.net(name) for name in names}
    if job["networks"] == "sparse":
        nets = {field: _Sparse(net) for field, net in nets.items()}
    return Nets(**nets)


def reader() -> Callable[[Path], video.Clip]:
    """What opens films here; either gives the same frames."""
    if importlib.util.find_spec("av") is not None:
        return video.stored
    from cfbench.video_opencv import stored

    return stored


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Time, memory and values of a job."""
    torch.set_num_threads(job["threads"])
    process.settle()
    device, opened = torch.device(job["device"]), reader()
    script = str(resources.files("cfbench") / "data" / "upstream_speed.py")
    timed = runpy.run_path(script)["timed"]
    begin = time.perf_counter()
    nets = networks(job, device)
    loading = time.perf_counter() - begin

    def work() -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = {}
        for path in map(Path, job["films"]):
            clip = opened(path)
            whole = range(clip.frames)
            values = measured(watch(clip.as_others(), clip.rate, (whole,), nets, device), whole)
            found[path.stem] = {name: values[name] for name in job["dimensions"]}
        return found

    found, took = timed(job["device"], work)
    values = {name: {film: row[name] for film, row in found.items()} for name in job["dimensions"]}
    told = {**took, "load_s": loading, "values": values, "torch": torch.__version__}
    return {**told, "reader": opened.__module__}


def main() -> None:
    """Runs a job and writes what it took."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
