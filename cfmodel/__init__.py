"""Context Forcing: a causal few-step model of long films with sink, slow and fast memory.

Public names are loaded when they are first used, so that importing the package is quick:
``preset("tiny/no-slow")`` names an experiment, ``presets.presets("tiny")`` is the table of them,
and ``load`` makes a pipeline of one.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfmodel import presets
    from cfmodel.config import Experiment, Geometry
    from cfmodel.pipeline import load
    from cfmodel.presets import preset

__all__ = ["Experiment", "Geometry", "load", "preset", "presets"]

_HOMES = {
    "Experiment": "cfmodel.config",
    "Geometry": "cfmodel.config",
    "load": "cfmodel.pipeline",
    "preset": "cfmodel.presets",
}


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("cfmodel.presets")
    if name not in _HOMES:
        raise AttributeError(f"module 'cfmodel' has no attribute {name!r}; has {sorted(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
