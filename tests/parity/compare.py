"""How far films of our presets are from the authors': ``python -m tests.parity.compare [--to]``."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from cfbench.figures import Figure, record
from cfbench.provenance import revision
from tests.helpers.golden import CASES, film, read

NAME = "golden_latents_max_abs"


def difference(name: str) -> float:
    """Largest absolute difference of a latent to the golden film's."""
    golden, ours = read(name).latents, film(CASES[name])
    if ours.shape != golden.shape:
        raise ValueError(f"{name}: {tuple(ours.shape)} latents for {tuple(golden.shape)}")
    return float((ours - golden).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, help="list of figures to record the largest in")
    to = parser.parse_args().to
    found = {name: difference(name) for name in CASES}
    sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
    if to is not None:
        figure = Figure(
            name=NAME,
            value=max(found.values()),
            unit="latent",
            target="<= 1e-4",
            command="python -m tests.parity.compare --to results/figures.json",
            commit=revision()["commit"][:7],
            device=f"cpu, torch {torch.__version__.partition('+')[0]}",
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        record(to, figure)


if __name__ == "__main__":
    main()
