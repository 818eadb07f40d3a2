"""The list of figures that are claimed anywhere: one JSON file, newest measurement of each name."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cfbench.store import write_atomic

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TARGET = re.compile(r"(<=|>=) \S+|\S+ to \S+")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number with where it came from.

    Args:
        name: lower case with underscores.
        value: finite.
        low: lower bound of its interval, or None.
        high: upper bound, or None.
        unit: of the value, bounds and target.
        target: ``<= 10``, ``>= 0.98`` or ``0.75 to 1.25``; empty when nothing was promised.
        command: that measures it again.
        commit: of the code that measured it.
        device: that it was measured on.
        at: ISO time with an offset.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    target: str = ""
    command: str
    commit: str
    device: str
    at: str

    def __post_init__(self) -> None:
        where = f"figure {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{where}: expected a name of a-z, 0-9 and _, as in cli_help_s")
        for key, number in (("value", self.value), ("low", self.low), ("high", self.high)):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{where}: {key}={number}; expected a finite number")
        if self.low is not None and self.low > self.value:
            raise ValueError(f"{where}: low={self.low} is above value={self.value}; swap them")
        if self.high is not None and self.high < self.value:
            raise ValueError(f"{where}: high={self.high} is below value={self.value}; swap them")
        for key, text in (("command", self.command), ("commit", self.commit), ("at", self.at)):
            if not text:
                raise ValueError(f"{where}: empty {key}; a figure must say how to repeat it")
        self._check_time()
        if self.target:
            self._limits()

    def _check_time(self) -> None:
        where = f"figure {self.name!r}"
        try:
            offset = datetime.fromisoformat(self.at).utcoffset()
        except ValueError as error:
            raise ValueError(f"{where}: at={self.at!r}; expected an ISO time") from error
        if offset is None:
            raise ValueError(f"{where}: at={self.at!r}; expected a time with its offset")

    def _limits(self) -> tuple[float, float]:
        """Least and greatest value that the target allows."""
        if not _TARGET.fullmatch(self.target):
            raise ValueError(
                f"figure {self.name!r}: target={self.target!r}; expected '<= 10' or '0.75 to 1.25'"
            )
        words = self.target.replace("<=", "-inf to").split(" to ")
        low, high = words if len(words) == 2 else (self.target[3:], "inf")
        try:
            return float(low), float(high)
        except ValueError as error:
            raise ValueError(
                f"figure {self.name!r}: target={self.target!r}; expected numbers in it"
            ) from error

    @property
    def is_met(self) -> bool | None:
        """Whether the value meets the target; None without one."""
        if not self.target:
            return None
        low, high = self._limits()
        return low <= self.value <= high


def load(path: Path) -> dict[str, Figure]:
    """Figures by name; none when the file does not exist.

    Raises:
        ValueError: the file is not a list of figures.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        figures = [Figure(**row) for row in rows]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a list of figures ({error}); restore the file") from error
    return {figure.name: figure for figure in figures}


def number_in(
    text: str, keys: Sequence[str], where: str
) -> tuple[float, float | None, float | None]:
    """A number of a command's JSON, with its interval if it stands there with one.

    Args:
        text: what was printed; the last line that is a JSON object counts, or all of it.
        keys: names on the way to the number, or to an object with ``value``, ``low``, ``high``.
        where: what the message calls it.

    Raises:
        ValueError: no JSON object, no such key, or no number there.

    Example:
        >>> number_in('{"a": {"value": 2, "low": 1, "high": 3}}', ["a"], "out")
        (2.0, 1.0, 3.0)
    """
    tree = _object_in(text)
    if tree is None:
        raise ValueError(f"{where} holds no JSON object; ask the command for one, as with --json")
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            has = f"; it has {', '.join(map(str, tree))}" if isinstance(tree, dict) else ""
            raise ValueError(f"{where} has nothing at {'/'.join(keys)}{has[:200]}")
        tree = tree[key]
    cell: dict[str, Any] = tree if isinstance(tree, dict) else {"value": tree}
    numbers = [cell.get(name) for name in ("value", "low", "high")]
    if not all(
        n is None or (isinstance(n, int | float) and not isinstance(n, bool)) for n in numbers
    ):
        raise ValueError(f"{where} has {tree!r} at {'/'.join(keys)}; expected a number")
    value, low, high = (None if n is None else float(n) for n in numbers)
    if value is None:
        raise ValueError(f"{where} has no value at {'/'.join(keys)}; there is nothing to record")
    return value, low, high


def _object_in(text: str) -> Any:
    for part in (*reversed(text.splitlines()), text):
        try:
            tree = json.loads(part)
        except json.JSONDecodeError:
            continue
        if isinstance(tree, dict):
            return tree
    return None


def record(path: Path, figure: Figure) -> bool:
    """Adds a figure to the file, atomically; the newest of each name stays.

    Returns:
        False when the file holds a newer measurement of that name, and was left alone.
    """
    figures = load(path)
    old = figures.get(figure.name)
    if old is not None and datetime.fromisoformat(old.at) > datetime.fromisoformat(figure.at):
        return False
    figures[figure.name] = figure
    rows = [asdict(figures[name]) for name in sorted(figures)]
    text = json.dumps(rows, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode())
    return True
