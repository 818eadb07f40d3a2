"""What a film was made with: code revision, versions, machine; no paths and no host names."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "av",
    "opencv-python-headless",
    "transformers",
    "diffusers",
    "safetensors",
)
GIT_TIMEOUT_S = 20
TOLD = "CFBENCH_COMMIT"
"""Variable that names the commit of a copy without its history, as in a container."""


def revision(tree: Path | None = None) -> dict[str, Any]:
    """Commit of the code, whether it was changed since, and a hash of the change.

    Args:
        tree: a folder of the checkout; default is this package's own.

    Returns:
        ``commit`` (outside a checkout what ``CFBENCH_COMMIT`` says, or empty), ``dirty``,
        ``diff`` (12 hex digits over the change to tracked files, empty when clean) and the package
        ``version``.
    """
    tree = tree or Path(__file__).resolve().parent
    version = _version("contextforcing")
    # An installed copy may lie inside someone else's checkout: only a tracked tree counts.
    if not _git(tree, "ls-files", "--", "."):
        told = os.environ.get(TOLD, "")
        return {"commit": told, "dirty": False, "diff": "", "version": version}
    commit = _git(tree, "rev-parse", "--verify", "-q", "HEAD") or b""
    change = _git(tree, "diff", "HEAD", "--binary") or b""
    digest = hashlib.sha256(change).hexdigest()[:12] if change else ""
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(change),
        "diff": digest,
        "version": version,
    }


def words() -> str:
    """The revision in words, as tables print it."""
    code = revision()
    name = code["commit"][:12] or f"version {code['version'] or 'unknown'}"
    return f"{name} with changes {code['diff']}" if code["dirty"] else name


def environment(facts: dict[str, str], threads: int) -> dict[str, Any]:
    """Versions and machine type, with what the system says of itself (device, dtype, attention).

    Args:
        facts: the system's own account.
        threads: CPU threads a worker computes with.
    """
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()}-{platform.machine()}",
        "packages": versions,
        "threads": threads,
        **facts,
    }


def process_peak_gib() -> float:
    """Most memory that this process has held."""
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def children_peak_gib() -> float:
    """Most memory that any ended child of this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git(tree: Path, *args: str) -> bytes | None:
    try:
        done = subprocess.run(
            # Or diff would renew the index, and leave its lock behind when killed.
            ["git", "-c", "diff.autoRefreshIndex=false", "-C", str(tree), *args],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
