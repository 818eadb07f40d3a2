"""The verb ``live``: an experiment loaded once, its page served until it is stopped."""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from cfmodel.config import Experiment
from cfmodel.live import routes
from cfmodel.live.film import film_of, limit
from cfmodel.live.fragments import KINDS, FragmentWriter, Kind
from cfmodel.live.session import Session
from cfmodel.live.sessions import Sessions

if TYPE_CHECKING:
    from uvicorn import Server

    from cfmodel.pipeline import Pipeline

log = logging.getLogger(__name__)

AHEAD_CHUNKS = 2
"""Chunks by which generation may run ahead of playback."""
GRACE_S = 6
"""For requests that wait for a chunk when the server is stopped."""
SCENE = "A red cube hops on grass under a clear sky."
EVENTS = (
    "The camera holds still.",
    "The camera pans away to the left.",
    "The camera pans back to the right.",
    "The cube leaves to the right.",
    "The cube comes back from the right.",
)
"""What the tiny model was trained to follow in mid-film, about the same scene."""


def stage_of(pipeline: "Pipeline", *, seed: int, most: int = 1) -> routes.Stage:
    """What a loaded experiment's server shows to ``most`` sessions at a time."""
    experiment = pipeline.experiment
    geometry, turn = experiment.geometry, threading.Lock()
    ahead_s = AHEAD_CHUNKS * geometry.chunk_seconds

    def writer(kind: Kind) -> FragmentWriter:
        return FragmentWriter(kind, fps=geometry.fps, height=geometry.height, width=geometry.width)

    def make(text: str, kind: Kind) -> Session:
        film = film_of(pipeline, text, seed)
        return Session(film, text, writer(kind), fps=geometry.fps, ahead_s=ahead_s, turn=turn)

    about = {
        "preset": f"{experiment.family}/{experiment.name}",
        "key": experiment.key(),
        "experiment": experiment.to_json(),
        "limit": limit(experiment).why,
        "examples": [f"{SCENE} {event}" for event in EVENTS] if experiment.family == "tiny" else [],
        "device": pipeline.device,
        "seed": seed,
        "ahead_s": ahead_s,
        "kinds": [{"kind": kind, "mime": writer(kind).mime} for kind in KINDS],
    }
    return routes.Stage(Sessions(make, most), lambda text: check(text, experiment), about)


def check(text: str, experiment: Experiment) -> list[str]:
    """Warnings about a prompt.

    Raises:
        ValueError: it is empty, too long, or holds what is no text.
    """
    from cfmodel.sample import check_scripts, script_of

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start + 1} of the prompt is half of one; type it again"
        ) from error
    return check_scripts([script_of(text, 1.0)], experiment)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens, at any free port if ``port`` is 0.

    Connections that come before the server accepts them wait in it.

    Raises:
        ValueError: no such address, or a port that is taken.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error


def serve(load: Callable[[], "Pipeline"], *, host: str, port: int, seed: int, most: int) -> None:
    """Serve the page until the process is interrupted; load when the address is known to be free.

    Raises:
        ValueError: the address cannot be listened on.
    """
    with bound(host, port) as listening:
        stage = stage_of(load(), seed=seed, most=most)
        where, there = listening.getsockname()[:2]
        log.info("live page at http://%s:%d; %s", where, there, stage.about["limit"])
        # The server ends by itself at an interrupt, and raises it again when it has.
        with contextlib.suppress(KeyboardInterrupt):
            _server(stage).run([listening])
    stage.sessions.stop("the server was stopped")
    log.info("stopped")


@contextlib.contextmanager
def served(pipeline: "Pipeline", *, seed: int = 0) -> Generator[str]:
    """The address of a server in a thread of this process, for trials and tests."""
    stage = stage_of(pipeline, seed=seed)
    server = _server(stage)
    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stage.sessions.stop("the server was stopped")
            server.should_exit = True
            thread.join()


def _server(stage: routes.Stage) -> "Server":
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            routes.make_app(stage), log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )  # fmt: skip
