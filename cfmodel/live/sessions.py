"""The sessions of a server: a bounded number at a time, each known by a name that is a secret."""

import secrets
import threading
from collections.abc import Callable

from cfmodel.live.fragments import Kind
from cfmodel.live.session import Session

LEAVING_S = 2.0
"""How long a new viewer waits for one who has left and whose last chunk is still being made."""
KEPT = 8
"""Sessions that ended and whose last bytes may still be fetched."""


class BusyError(RuntimeError):
    """As many sessions as there may be."""


class Sessions:
    """Begins sessions and finds them again.

    Args:
        make: a session of a first prompt and a kind of codec, not started.
        most: sessions at a time.
    """

    def __init__(self, make: Callable[[str, Kind], Session], most: int = 1) -> None:
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def begin(self, text: str, kind: Kind) -> str:
        """Start a session. Returns its name.

        Raises:
            BusyError: as many as there may be go on.
        """
        with self._lock:
            for session in self._working():
                if session.ended is not None:
                    session.join(LEAVING_S)
            if len(self._working()) >= self._most:
                raise BusyError(
                    f"busy: {self._most} of {self._most} sessions have a viewer; try again when "
                    "one has left"
                )
            done = [name for name, session in self._sessions.items() if not session.is_working]
            for name in done[:-KEPT]:
                del self._sessions[name]
            session = self._make(text, kind)
            name = secrets.token_hex(16)
            self._sessions[name] = session
            session.start()
            return name

    def find(self, name: str) -> Session | None:
        """The session of a name; None if there is none."""
        return self._sessions.get(name)

    def stop(self, reason: str) -> None:
        """Stop all sessions."""
        for session in list(self._sessions.values()):
            session.stop(reason)

    def _working(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.is_working]
