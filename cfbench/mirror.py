"""An object store behind a store of this host: what is written goes there first, and comes from it.

Every append is an object of its own that never changes, so two hosts can neither lose nor tear a
record of each other. The folder on this host is a cache: records in it are those that the object
store lists, films come when they are asked for.
"""

import hashlib
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfbench.errors import CfError, DiskError

log = logging.getLogger(__name__)

# A Path folds the two slashes of s3://bucket/runs into one.
_URL = re.compile(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)")


def url_of(root: Path) -> str:
    """The address that a path stands for, or nothing when it is a path of this host.

    Example:
        >>> url_of(Path("s3://bucket/runs")), url_of(Path("out/bench"))
        ('s3://bucket/runs', '')
    """
    found = _URL.fullmatch(root.as_posix())
    return f"{found[1]}://{found[2]}" if found else ""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Where a store's files lie for all hosts; picklable, it connects where it is used.

    Args:
        url: as fsspec takes it; end points and keys come from that protocol's own configuration.
        folder: of this host that holds copies; None is one of the host's temporary folders.
    """

    url: str
    folder: Path | None = None

    @property
    def cache(self) -> Path:
        """The folder of this host that holds copies."""
        if self.folder is not None:
            return self.folder
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"cfbench-{os.getuid()}-{name}"

    def push(self, name: str, content: bytes) -> None:
        """Write an object whole.

        Raises:
            DiskError: the object store refuses.
        """
        try:
            self._fs.pipe_file(self._at(name), content)
        except OSError as error:
            raise DiskError(f"cannot write {self.url}/{name}: {error}") from error

    def push_file(self, name: str, source: Path) -> None:
        """Copy a file of this host there.

        Raises:
            DiskError: the object store refuses.
        """
        try:
            self._fs.put_file(str(source), self._at(name))
        except OSError as error:
            raise DiskError(f"cannot write {self.url}/{name}: {error}") from error

    def pull(self, name: str) -> bool:
        """Bring an object's newest version into the cache; False when there is none."""
        target = self.cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{uuid.uuid4().hex}")
        try:
            self._fs.get_file(self._at(name), str(fresh))
        except FileNotFoundError:
            fresh.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            return False
        os.replace(fresh, target)
        return True

    def names(self, folder: str) -> set[str]:
        """Names of all objects below a folder, from the root."""
        fs = self._fs
        fs.invalidate_cache()
        base = len(str(fs._strip_protocol(self.url)).rstrip("/")) + 1
        return {path[base:] for path in self._below(fs, folder)}

    def _below(self, fs: Any, folder: str) -> Iterator[str]:
        try:
            yield from fs.find(self._at(folder))
        except FileNotFoundError:
            return

    def drop(self, name: str) -> None:
        """Remove an object, if it is there."""
        if self._fs.exists(self._at(name)):
            self._fs.rm_file(self._at(name))

    def sync(self, folder: str) -> None:
        """Make the cache's folder hold what the object store lists; objects never change."""
        wanted = self.names(folder)
        here = {
            path.relative_to(self.cache).as_posix()
            for path in (self.cache / folder).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        for name in sorted(wanted - here):
            self.pull(name)
        for name in here - wanted:
            (self.cache / name).unlink(missing_ok=True)

    @property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self.url.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise CfError(
                f"{self.url}: {error}; pip install 'contextforcing[cluster]' for s3"
            ) from error

    def _at(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"
