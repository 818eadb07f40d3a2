"""The one exception that a verb turns into an exit code."""

import errno
from pathlib import Path

USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130

UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
)


class CfError(Exception):
    """Stops a verb with a one-line message and an exit code (2 usage, 3 incomplete)."""

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type["CfError"], tuple[str, int]]:
        """Pickle with the exit code: the error crosses from a worker process."""
        return CfError, (str(self), self.exit_code)


class DiskError(CfError):
    """The output disk of this host is full or refuses; another host's may not."""

    def __reduce__(self) -> tuple[type[CfError], tuple[str, int]]:
        """Pickle with the exit code, as its base does."""
        return DiskError, (str(self), self.exit_code)


def unwritable(path: Path, error: OSError) -> DiskError:
    """The error for an output disk that refuses to take a file."""
    reason = error.strerror or str(error)
    return DiskError(f"cannot write {path}: {reason}; free the disk or choose another --out")
