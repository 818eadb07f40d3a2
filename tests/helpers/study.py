"""Studies of stripes for tests, a server of one in a process of its own, and a browser."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

from cfbench.study import toy
from cfbench.study.design import Spec
from cfbench.study.simulated import vote
from tests.helpers.bench import ROOT

SPEC = Spec(block_pairs=4)
WATCHED = vote(0, "aesthetics", "left")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def study_folder(folder: Path, *, prompts: int = 2, seconds: int = 1, spec: Spec = SPEC) -> Path:
    """A fresh study."""
    toy.make(folder, prompts=prompts, seconds=seconds, spec=spec)
    return folder / "study"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Server:
    """A study served by ``cfbench study serve``, which can be killed and started again."""

    def __init__(self, study: Path) -> None:
        self.study, self.port = study, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "cfbench", "study", "serve", "--study", str(self.study),
            "--port", str(self.port),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, cwd=ROOT)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.address}/api/alive", timeout=5).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the server ended with {self._process.wait(0.2)}")
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def served(study: Path) -> Generator[Server, None, None]:
    server = Server(study)
    try:
        server.start()
        yield server
    finally:
        server.kill()
