"""The sessions of a server: a bounded number at a time, each known by a secret name."""

import secrets
import threading
from collections.abc import Callable

from cfmodel.live.fragments import Kind
from cfmodel.live.session import Session

LEAVING_S = 2.0
"""How long a new viewer waits for one who has left and whose last chunk is being made."""


class BusyError(RuntimeError):
    """As many sessions as there may be."""


class Sessions:
    """Begins sessions and finds them again, until another begins after their end.

    Args:
        make: begins a session of a first prompt and a kind of codec.
        most: sessions at a time.
    """

    def __init__(self, make: Callable[[str, Kind], Session], most: int) -> None:
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._by_name: dict[str, Session] = {}

    def begin(self, text: str, kind: Kind) -> str:
        """Begin a session. Returns its name.

        Raises:
            BusyError: as many as there may be go on.
        """
        with self._lock:
            for session in self._by_name.values():
                if session.ended is not None:
                    session.thread.join(LEAVING_S)
            alive = {name: one for name, one in self._by_name.items() if one.thread.is_alive()}
            if len(alive) >= self._most:
                raise BusyError(
                    f"busy: {self._most} of {self._most} sessions have a viewer; try again when "
                    "one has left"
                )
            self._by_name = alive
            name = secrets.token_hex(16)
            self._by_name[name] = self._make(text, kind)
            return name

    def find(self, name: str) -> Session | None:
        """The session of a name; None if there is none."""
        return self._by_name.get(name)

    def stop(self, reason: str) -> None:
        """Stop all sessions."""
        for session in list(self._by_name.values()):
            session.stop(reason)
