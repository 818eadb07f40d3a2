"""Figures that the project claims of its films, computed from a store's scores.

Attributes are read in the first and the last 5 s of a film, over frames in which the script wants
the main subject in view and the reader sees at least 60 % of it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cfbench.aggregate import Normaliser
from cfbench.frame import Frame
from cfbench.stats import Interval, mean_interval
from cfbench.tables import OURS, differences

ATTRIBUTES = ("attr_shape", "attr_color", "attr_ground", "attr_sky")
TRUTH = "rendered-truth"
FIRST, LAST = 0, -1
RATIOS: tuple[tuple[str, str, Callable[[Sequence[float]], Any], str], ...] = (
    ("tiny_ours_flow_ratio", "flow_median", np.median, "0.75 to 1.25"),
    ("tiny_ours_latent_std_ratio", "latent_std", np.mean, "0.9 to 1.1"),
    ("tiny_ours_sharpness_ratio", "sharpness", np.mean, ">= 0.85"),
)
"""Figure, dimension, middle over films and target of what is told as a ratio to rendered films."""


class Claim(NamedTuple):
    """A figure without its provenance."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    target: str


def window_means(frame: Frame, dimension: str, window: int) -> Interval:
    """Mean over films of one window of a dimension, clustered by prompt; nulls do not count."""
    values = np.full(len(frame.runs), np.nan)
    for k, run in enumerate(frame.runs):
        rows = frame.windows.get((run.clip.sha256, dimension), ())
        if rows and rows[window].value is not None:
            values[k] = rows[window].value
    return mean_interval(values, frame.prompts)


def worst_attribute(frame: Frame, window: int) -> Interval:
    """The lowest of the four attributes' means.

    Raises:
        ValueError: one of them was never read.
    """
    found = {name: window_means(frame, name, window) for name in ATTRIBUTES}
    unread = [name for name, interval in found.items() if interval.value is None]
    if unread:
        raise ValueError(f"{', '.join(unread)} has no value in any film; score with --suite tiny")
    return min(found.values(), key=lambda interval: interval.value or 0.0)


def against_truth(ours: Frame, truth: Frame, dimension: str) -> list[tuple[str, float, float]]:
    """Prompt, our value and the rendered film's, for every film of ours whose prompt has both."""
    column = ours.dimensions.index(dimension)
    of_truth = dict(zip(truth.prompts, truth.values_ND[:, column], strict=True))
    rows = [
        (prompt, float(value), float(of_truth[prompt]))
        for prompt, value in zip(ours.prompts, ours.values_ND[:, column], strict=True)
        if prompt in of_truth
    ]
    return [(prompt, a, b) for prompt, a, b in rows if np.isfinite(a) and np.isfinite(b)]


def claims(frame: Frame, normaliser: Normaliser) -> list[Claim]:
    """All figures that the store's films give; those without the films they need are left out.

    Raises:
        ValueError: no films of ours.
    """
    ours, truth = frame.where(system=OURS), frame.where(system=TRUTH)
    if not ours.runs:
        raise ValueError(f"no films of {OURS!r}; generate and score them first")
    first, last = worst_attribute(ours, FIRST), worst_attribute(ours, LAST)
    found = [
        _claim("tiny_attributes_first5s", first, "share", ">= 0.85"),
        _claim("tiny_ours_attributes_first5s", first, "share", ">= 0.95"),
        _claim("tiny_ours_attributes_last5s", last, "share", ">= 0.88"),
    ]
    for name, dimension, middle, target in RATIOS:
        pairs = against_truth(ours, truth, dimension) if truth.runs else []
        if pairs:
            ratio = float(middle([a for _, a, _ in pairs]) / middle([b for *_, b in pairs]))
            found.append(Claim(name, ratio, None, None, "ratio", target))
    visible = against_truth(ours, truth, "visible_share") if truth.runs else []
    if visible:
        gap = mean_interval(np.array([a - b for _, a, b in visible]), [p for p, *_ in visible])
        found.append(_claim("tiny_ours_visible_gap", gap, "share", "-0.1 to 0.1"))
    for row in differences(frame, normaliser, labels={}):
        if row.paired.mean.value is not None:
            name = f"tiny_diff_total_{_plain(row.system)}"
            found.append(_claim(name, row.paired.mean, "share of Total", ""))
    return found


def _plain(system: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", re.sub(r"-(?=\d)", "", system))


def _claim(name: str, interval: Interval, unit: str, target: str) -> Claim:
    assert interval.value is not None, "checked by the caller"
    return Claim(name, interval.value, interval.low, interval.high, unit, target)


def lines(found: Sequence[Claim]) -> list[str]:
    """Claims as text, one a line."""
    return [
        f"{claim.name} = {claim.value:.4f}"
        + (f" [{claim.low:.4f}, {claim.high:.4f}]" if claim.low is not None else "")
        + (f" (target {claim.target})" if claim.target else "")
        for claim in found
    ]
