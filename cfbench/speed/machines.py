"""A file of results of several machines, by their labels: what ``cfbench speed`` writes."""

import json
from pathlib import Path
from typing import Any

from cfbench.errors import CfError


def read(path: Path) -> dict[str, Any]:
    """The file's tree; one without machines if there is no file.

    Raises:
        CfError: it is damaged.
    """
    if not path.exists():
        return {"machines": {}}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CfError(f"{path} is damaged ({error}); restore or delete it") from error
