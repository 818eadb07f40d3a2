"""Figures of long rollouts, from the records that ``cfmodel rollout-speed`` writes."""

import json
from datetime import UTC, datetime
from pathlib import Path

from cfbench.errors import CfError
from cfbench.figures import Figure, record
from cfbench.provenance import revision

LONGEST = "600s"
FIGURES = {
    "rollout_10min_ms_ratio": ("ms_ratio", "1", "<= 1.02"),
    "rollout_10min_gpu_growth_gib": ("gpu_growth_gib", "GiB", "<= 0.1"),
    "rollout_10min_host_growth_gib": ("host_growth_gib", "GiB", "<= 0.2"),
}
"""What is claimed of ten minutes: where it stands in a record, its unit and its target."""


def figures(path: Path, *, command: str) -> list[Figure]:
    """The figures of the ten-minute film of a file of records; those not known are left out.

    Args:
        path: written by ``cfmodel rollout-speed``.
        command: that measures it again.

    Raises:
        CfError: no such file, or no film of ten minutes in it.
    """
    try:
        film = json.loads(path.read_text(encoding="utf-8"))[LONGEST]
        values, device = film["summary"], film["device"]
    except OSError as error:
        raise CfError(f"cannot read {path}: {error.strerror}; run cfmodel rollout-speed") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CfError(
            f"{path} holds no film of {LONGEST}; run cfmodel rollout-speed --seconds 600"
        ) from error
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    commit = str(revision()["commit"])[:7] or "none"
    return [
        Figure(
            name=name,
            value=values[key],
            unit=unit,
            target=target,
            command=command,
            commit=commit,
            device=device,
            at=now,
        )
        for name, (key, unit, target) in FIGURES.items()
        if values[key] is not None
    ]


def record_all(path: Path, to: Path, *, command: str) -> dict[str, float]:
    """Records the figures of a file of records in the list ``to``, and returns their values."""
    found = figures(path, command=command)
    for figure in found:
        record(to, figure)
    return {figure.name: figure.value for figure in found}
