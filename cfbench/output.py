"""What a verb says on stdout: JSON, or a line a field."""

import json
import sys
from typing import Any


def say(result: dict[str, Any], as_json: bool) -> None:
    """Write a result: one JSON object, or one line a field for people.

    Lists become their lengths for people, as they hold files and failures.
    """
    if as_json:
        sys.stdout.write(json.dumps(result, sort_keys=True) + "\n")
        return
    for name, value in result.items():
        sys.stdout.write(f"{name}: {brief(value)}\n")


def brief(value: Any) -> str:
    """A value on one line.

    Example:
        >>> brief({"made": 2, "failed": [], "null": {"no-cdmd": "not trained"}})
        'made 2, failed 0, null (no-cdmd: not trained)'
    """
    if isinstance(value, dict):
        parts = [
            f"{name} ({_pairs(item)})"
            if isinstance(item, dict) and item
            else f"{name} {brief(item)}"
            for name, item in value.items()
        ]
        return ", ".join(parts) or "none"
    return str(len(value) if isinstance(value, list | tuple) else value)


def _pairs(tree: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {brief(item)}" for name, item in tree.items())
