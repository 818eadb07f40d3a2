"""The forgetting curve of systems: asked, summed up, drawn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfbench import systems
from cfbench.curves import recent_past_s
from cfbench.progress import Reporter
from cfbench.recall import REFERENCES, Answer, ask, plan, row, summary
from cfbench.recall_plot import forgetting
from cfbench.store import write_atomic
from cfbench.tables import OURS

ALWAYS = ("codec-truth", "another-scene")
PLOT, RESULT = "forgetting", "forgetting.json"


def forget(
    addresses: Sequence[str],
    gaps_s: Sequence[float],
    count: int,
    folder: Path,
    *,
    free_s: Sequence[float] = (),
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    attention: str = "auto",
) -> dict[str, Any]:
    """The forgetting curve, also written to a folder with its plot.

    Args:
        addresses: systems, ours first; truth through the codec and chance are added.
        gaps_s: seconds of the quiet hold, about.
        count: probes a gap.
        folder: of answers, result and plot.
        free_s: gaps at which films without a forced history are asked for too.
        seed: of the systems' noise.
        workers: processes.
        device: where systems run.
        attention: backend, or auto.

    Raises:
        CfError: unknown system, or one that is not trained.
    """
    everyone = list(dict.fromkeys([*addresses, *ALWAYS]))
    tasks = plan(everyone, gaps_s, count, free_s=free_s, seed=seed)
    with Reporter() as reporter:
        found = ask(
            tasks, folder, device=device, attention=attention, workers=workers, reporter=reporter
        )
    tree = tree_of(found)
    write_atomic(folder / RESULT, (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode())
    forgetting(folder / PLOT, tree, tree["labels"])
    return tree


def tree_of(found: Sequence[Answer]) -> dict[str, Any]:
    """The summary of answers, with labels and recent past of their systems; the first is ours."""
    addresses = dict.fromkeys(answer.task.system for answer in found)
    asked = [address for address in addresses if row(address) not in REFERENCES]
    specs = {spec.address: spec for spec in systems.describe(asked)}
    ours = next((name for name in asked if row(name) == OURS), next(iter(addresses)))
    tree = summary(found, ours=ours)
    tree["recent_past_s"] = {name: recent_past_s(spec.experiment) for name, spec in specs.items()}
    tree["labels"] = {name: spec.label for name, spec in specs.items()}
    return tree
