"""Workers for the fan-out that fail or die on demand; a file remembers across processes."""

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from cfbench.errors import CfError, unwritable
from cfbench.fanout import Emit


@dataclass
class Squares:
    """Squares a number; the other fields name tasks that go wrong, and how."""

    folder: Path
    die: tuple[int, ...] = ()
    fail: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    hang_once: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    memory_once: tuple[int, ...] = ()

    def __call__(self, task: int, emit: Emit) -> int:
        emit(0.5)
        first = self._first(task)
        if task in self.stop:
            raise CfError("the disk is full", 2)
        if task in self.full:
            raise unwritable(self.folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if first and task in self.hang_once:
            signal.pause()
        if task in self.die or (first and task in self.once):
            os.kill(os.getpid(), signal.SIGKILL)
        if task in self.memory or (first and task in self.memory_once):
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if task in self.fail:
            raise ValueError(f"task {task} is\nimpossible")
        return task * task

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}").touch()

    def _first(self, task: int) -> bool:
        mark = self.folder / f"tried-{task}"
        first = not mark.exists()
        mark.touch()
        return first
