"""VBench's aggregation rule over normalised dimensions: Quality, Semantic, Total.

The rule and the weights are VBench's; the dimensions may be another tier's. Numbers of the tiny
tier obey the rule but are not VBench scores, and no label calls them so.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

QUALITY: Mapping[str, float] = {
    "subject_consistency": 1.0,
    "background_consistency": 1.0,
    "temporal_flickering": 1.0,
    "motion_smoothness": 1.0,
    "dynamic_degree": 0.5,
    "aesthetic_quality": 1.0,
    "imaging_quality": 1.0,
}
SEMANTIC: Mapping[str, float] = {
    "object_class": 1.0,
    "multiple_objects": 1.0,
    "human_action": 1.0,
    "color": 1.0,
    "spatial_relationship": 1.0,
    "scene": 1.0,
    "appearance_style": 1.0,
    "temporal_style": 1.0,
    "overall_consistency": 1.0,
}
DIMENSIONS: tuple[str, ...] = (*QUALITY, *SEMANTIC)
GROUP_WEIGHTS: tuple[float, float] = (4.0, 1.0)  # quality, semantic
SCHEMA = 1
PINNED: Mapping[str, str] = {
    "tiny": "d991a1c70097802b5cfbff1147047bd68ce2e4d8ddbf259409f956cb0ee9758d",
    "vbench": "d62753949c9956e29f3d23ace2d181d139d5d236371981ba7da55d6a491f8bcb",
}
"""sha256 of the frozen normalisers by suite; a suite is added when its normaliser is frozen."""
OF_TIER = {"reference": "vbench"}
"""Tiers whose normaliser has another name: VBench's own constants."""

Floats = NDArray[np.float64]


class Range(NamedTuple):
    """Raw values that become 0 and 1."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """Ranges of every dimension, frozen: ``sha256`` is the hash of the file they were read from.

    ``clamp`` limits normalised values to [0, 1]; VBench itself does not (a motion smoothness above
    0.9975 counts as more than 1), the tiny tier does.
    """

    name: str
    clamp: bool
    ranges: Mapping[str, Range]
    sha256: str

    def apply(self, dimension: str, raw: Floats) -> Floats:
        """``(raw - min) / (max - min)`` of one dimension; NaN stays NaN.

        Raises:
            ValueError: the table has no such dimension.
        """
        if dimension not in self.ranges:
            raise ValueError(
                f"normaliser {self.name} has no dimension {dimension!r}; has {sorted(self.ranges)}"
            )
        low, high = self.ranges[dimension]
        scaled = (raw - low) / (high - low)
        return np.clip(scaled, 0.0, 1.0) if self.clamp else scaled


class Aggregate(NamedTuple):
    """Quality, Semantic and Total in [0, 1], or None; ``missing`` lists the dimensions absent."""

    total: float | None
    quality: float | None
    semantic: float | None
    missing: tuple[str, ...]


def parse_normaliser(raw: bytes, origin: str, *, pinned: str | None = None) -> Normaliser:
    """A normaliser from the bytes of its JSON file.

    Args:
        raw: ``{"schema": 1, "name": .., "clamp": .., "ranges": {dimension: [min, max]}}``.
        origin: where the bytes come from, for messages.
        pinned: the sha256 that the bytes must have; None accepts any.

    Raises:
        ValueError: another hash than the pinned one, not such a file, or an empty range.
    """
    found = hashlib.sha256(raw).hexdigest()
    if pinned is not None and found != pinned:
        raise ValueError(
            f"normaliser {origin}: sha256 {found[:12]}, expected {pinned[:12]}; a frozen "
            "normaliser must not change: restore the file, or pin the new one under a new name"
        )
    try:
        tree = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"normaliser {origin}: not JSON ({error}); restore the file") from error
    keys = {"schema", "name", "clamp", "ranges"}
    if not isinstance(tree, dict) or not keys <= set(cast("dict[str, object]", tree)):
        raise ValueError(f"normaliser {origin}: expected an object with {sorted(keys)}")
    if tree["schema"] != SCHEMA:
        raise ValueError(f"normaliser {origin}: schema {tree['schema']}, expected {SCHEMA}")
    ranges: dict[str, Range] = {}
    for name, pair in tree["ranges"].items():
        low, high = float(pair[0]), float(pair[1])
        if not (math.isfinite(low) and math.isfinite(high) and high > low):
            raise ValueError(
                f"normaliser {origin}: {name} has range [{low}, {high}]; expected min < max"
            )
        ranges[str(name)] = Range(low, high)
    return Normaliser(
        name=str(tree["name"]), clamp=bool(tree["clamp"]), ranges=ranges, sha256=found
    )


def load_normaliser(path: Path, *, pinned: str | None = None) -> Normaliser:
    """The normaliser stored at ``path``; see ``parse_normaliser``.

    Raises:
        ValueError: no such file, or a file that is not the pinned normaliser.
    """
    if not path.is_file():
        raise ValueError(
            f"normaliser {path}: no such file; fit one first or name one that ships with cfbench"
        )
    return parse_normaliser(path.read_bytes(), str(path), pinned=pinned)


def suite_normaliser(suite: str) -> Normaliser:
    """The normaliser that ships for a suite, checked against its pinned hash where it has one.

    Raises:
        ValueError: none ships for that suite, or the file was changed.
    """
    suite = OF_TIER.get(suite, suite)
    name = f"{suite}-normaliser.json"
    file = resources.files("cfbench") / "data" / name
    if not file.is_file():
        raise ValueError(
            f"suite {suite!r} has no {name} in cfbench/data; fit one first or name another suite"
        )
    return parse_normaliser(file.read_bytes(), name, pinned=PINNED.get(suite))


def normaliser_bytes(name: str, *, clamp: bool, ranges: Mapping[str, Range]) -> bytes:
    """The canonical file of a normaliser, whose sha256 is what gets pinned."""
    tree = {
        "schema": SCHEMA,
        "name": name,
        "clamp": clamp,
        "ranges": {key: list(pair) for key, pair in ranges.items()},
    }
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()


def _group(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    present = {name: values[name] for name in weights if values.get(name) is not None}
    if not present:
        return None
    mass = sum(weights[name] for name in present)
    return sum(weights[name] * value for name, value in present.items() if value is not None) / mass


def combine(quality: float, semantic: float) -> float:
    """Total of two group scores, ``(4 quality + semantic) / 5``; any common scale.

    Example:
        >>> combine(1.0, 0.0)
        0.8

    Source: VBench, scripts/cal_final_score.py.
    """
    a, b = GROUP_WEIGHTS
    return (a * quality + b * semantic) / (a + b)


def aggregate(normalised: Mapping[str, float | None]) -> Aggregate:
    """Quality, Semantic and Total of a system from its normalised dimensions.

    A group with a dimension missing is None, and so is Total; nothing counts as 0. (VBench's own
    script enters 0 for a missing dimension before normalising, which lowers the total unseen.)

    Args:
        normalised: dimension to value, 1 = best; None or absent = missing. Others are ignored.

    Source: VBench, scripts/constant.py and cal_final_score.py: weighted mean of 7 quality
    dimensions (dynamic degree 0.5), mean of 9 semantic ones, 4 : 1.
    """
    missing = tuple(name for name in DIMENSIONS if normalised.get(name) is None)
    quality, semantic = (
        None if any(name in weights for name in missing) else _group(normalised, weights)
        for weights in (QUALITY, SEMANTIC)
    )
    total = None if quality is None or semantic is None else combine(quality, semantic)
    return Aggregate(total, quality, semantic, missing)


CUSTOM = tuple(name for name in QUALITY if name != "temporal_flickering")
"""Dimensions that VBench scores any film in, without its prompts and without a static filter."""


class Partial(NamedTuple):
    """What can be told of a system when dimensions are missing; neither is Quality nor Semantic.

    Attributes:
        quality_custom: weighted mean of the six of ``CUSTOM``, weights adding up to 5.5; or None.
        semantic_partial: mean of the semantic dimensions that there are, or None.
        semantic_of: which these are.
    """

    quality_custom: float | None
    semantic_partial: float | None
    semantic_of: tuple[str, ...]


def partial(normalised: Mapping[str, float | None]) -> Partial:
    """What is told under names of its own when a total is null.

    Example:
        >>> partial({"scene": 0.5, "color": 1.0, "imaging_quality": 0.7})
        Partial(quality_custom=None, semantic_partial=0.75, semantic_of=('color', 'scene'))
    """
    custom = {name: QUALITY[name] for name in CUSTOM}
    whole = all(normalised.get(name) is not None for name in CUSTOM)
    present = tuple(name for name in SEMANTIC if normalised.get(name) is not None)
    return Partial(
        _group(normalised, custom) if whole else None, _group(normalised, SEMANTIC), present
    )


def film_total(normalised: Mapping[str, float | None]) -> Aggregate:
    """Quality, Semantic and Total of **one film**, over the dimensions that apply to it.

    Rule: within each group the weighted mean runs over the dimensions that have a value, with the
    same weights renormalised; a group with none is None, and so is Total. The number serves paired
    differences of films of one prompt, to which the same dimensions apply; it is not comparable
    between prompts and is never printed as a system's Total.
    """
    missing = tuple(name for name in DIMENSIONS if normalised.get(name) is None)
    quality, semantic = _group(normalised, QUALITY), _group(normalised, SEMANTIC)
    total = None if quality is None or semantic is None else combine(quality, semantic)
    return Aggregate(total, quality, semantic, missing)


def aggregate_rows(means_RD: Floats, dimensions: tuple[str, ...]) -> Floats:
    """Columns (total, quality, semantic) for many rows of normalised dimensions; NaN = missing.

    Args:
        means_RD: rows x dimensions.
        dimensions: names of the columns of ``means_RD``.
    """
    columns = {name: index for index, name in enumerate(dimensions)}
    groups: list[Floats] = []
    for weights in (QUALITY, SEMANTIC):
        score = np.zeros(len(means_RD))
        for name, weight in weights.items():
            score = score + weight * (means_RD[:, columns[name]] if name in columns else np.nan)
        groups.append(score / sum(weights.values()))
    a, b = GROUP_WEIGHTS
    return np.stack([(a * groups[0] + b * groups[1]) / (a + b), *groups], axis=1)
