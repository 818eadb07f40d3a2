"""How far films of our presets are from the authors' (JSON): ``python -m tests.parity.compare``."""

import json
import sys

from tests.helpers.golden import CASES, film, read


def difference(name: str) -> float:
    """Largest absolute difference of a latent to the golden film's."""
    golden, ours = read(name).latents, film(CASES[name])
    if ours.shape != golden.shape:
        raise ValueError(f"{name}: {tuple(ours.shape)} latents for {tuple(golden.shape)}")
    return float((ours - golden).abs().max())


def main() -> None:
    found = {name: difference(name) for name in CASES}
    sys.stdout.write(f"{json.dumps({**found, 'largest': max(found.values())})}\n")


if __name__ == "__main__":
    main()
