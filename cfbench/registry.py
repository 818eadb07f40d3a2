"""Lazy tables ``name -> "module:attribute"``: nothing is imported before it is asked for."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cfbench.errors import CfError

EXTRAS = {
    "gradio": "study",
    "ray": "cluster",
    "flash_attn": "flash",
}


@dataclass(frozen=True)
class Table:
    """One kind of plug-in: built-in entries, and those of an entry-point group."""

    kind: str
    entries: Mapping[str, str]
    group: str

    def targets(self) -> dict[str, str]:
        """All entries by name, installed plug-ins included.

        Raises:
            CfError: a plug-in takes the name of a built-in or of another plug-in.
        """
        from importlib.metadata import entry_points

        merged = dict(self.entries)
        for point in entry_points(group=self.group):
            if point.name in merged:
                raise CfError(
                    f"{self.kind} {point.name!r} is provided twice ({merged[point.name]} and "
                    f"{point.value}); uninstall one"
                )
            merged[point.name] = point.value
        return merged

    def get(self, name: str) -> Any:
        """The object behind ``name``, imported now.

        Raises:
            CfError: unknown name (close ones are listed), or a module that is not installed.
        """
        targets = self.targets()
        if name not in targets:
            raise unknown(self.kind, name, targets)
        module, _, attribute = targets[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = (error.name or module).partition(".")[0]
            extra = EXTRAS.get(missing)
            remedy = f"pip install 'contextforcing[{extra}]'" if extra else f"install {missing}"
            raise CfError(f"{self.kind} {name!r} needs {error.name}; {remedy}") from error


def unknown(kind: str, name: str, known: Iterable[str]) -> CfError:
    """The error for a name outside a table, with the names that are close to it."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=4) or known
    return CfError(f"unknown {kind} {name!r}; try one of {', '.join(near)}")
