"""One viewer's film: what is asked for, what is made, what is told, and when it ends.

A session makes a chunk when the viewer asks for it and not before, and never further ahead of a
playback that began with the first chunk than ``ahead_s``. So neither a viewer who left nor one who
asks for everything at once makes it run.

Dims: R pixel frames, Y rows, X columns.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cfmodel.memory.base import FrameSlot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

GONE_S = 10.0
"""Seconds without a word from the viewer after which a session ends; the page speaks every 3."""
RATE_CHUNKS = 8
"""Chunks over which the rate of generation is told."""
STOPPED = "stopped by the viewer"


class Shot(NamedTuple):
    """A chunk of film, decoded, and what the memory holds behind it."""

    frames_RYXC: "NDArray[np.uint8]"
    slots: tuple[FrameSlot, ...]


Film = Callable[[Callable[[int], str]], Iterator[Shot]]
"""From the text of the chunk with an index, asked for when it is begun, to the film's chunks."""


class Writer(Protocol):
    """Pixel frames to bytes (see ``FragmentWriter``)."""

    def push(self, frames_RYXC: "NDArray[np.uint8]") -> bytes:
        """Bytes of the next frames."""
        ...

    def close(self) -> bytes:
        """The last bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a page is told of a chunk.

    Args:
        chunk: its index in the film.
        start_s: seconds of film before it.
        frames: its pixel frames.
        made_s: seconds from its first step until it was encoded.
        fps: pixel frames made a second, over the last chunks.
        prompt: number of the prompt that it was made with, the first being 1.
        slots: what the memory holds behind it (of the first layer).
        promoted: latent frames that have entered slow memory with it.
    """

    chunk: int
    start_s: float
    frames: int
    made_s: float
    fps: float
    prompt: int
    slots: tuple[FrameSlot, ...]
    promoted: tuple[int, ...]


class Fragment(NamedTuple):
    """Bytes of a chunk, and what is told of it; None of the bytes that end the film."""

    data: bytes
    made: Made | None


class Session:
    """A film being made for one viewer, in a thread of its own.

    Args:
        film: what is shown.
        text: the first prompt.
        writer: makes bytes of pixel frames.
        fps: pixel frames a second of playback.
        ahead_s: seconds by which generation may run ahead of playback.
        turn: held while a chunk is made, so that several sessions take turns.
        gone_s: see ``GONE_S``.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        film: Film,
        text: str,
        writer: Writer,
        *,
        fps: int,
        ahead_s: float,
        turn: threading.Lock,
        gone_s: float = GONE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._film, self._writer = film, writer
        self._fps, self._ahead_s, self._gone_s = fps, ahead_s, gone_s
        self._turn, self._clock = turn, clock
        self._news = threading.Condition()
        self._text, self._prompts = text, 1
        self._prompt_of: dict[int, int] = {}
        self._asked, self._next, self._frames = -1, 0, 0
        self._ready: dict[int, Fragment] = {}
        self._heard, self._first = clock(), None
        self._ended: str | None = None
        self._rates = deque[tuple[int, float]](maxlen=RATE_CHUNKS)
        self._slow: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        """Begin to listen for what is asked for."""
        self._thread.start()

    @property
    def ended(self) -> str | None:
        """Why nothing more is made; None while the session goes on."""
        return self._ended

    @property
    def is_working(self) -> bool:
        """Whether its thread runs, maybe to finish its last chunk."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until its thread has finished, for a while."""
        self._thread.join(timeout_s)

    def touch(self) -> None:
        """The viewer is still there."""
        with self._news:
            self._heard = self._clock()

    def change(self, text: str) -> int:
        """Give the next chunk that is begun another text.

        Returns:
            The new prompt's number.
        """
        with self._news:
            self._heard = self._clock()
            self._text = text
            self._prompts += 1
            return self._prompts

    def take(self, chunk: int, wait_s: float) -> Fragment | None:
        """Ask for a chunk, wait for it, and get it; what is before it is not asked for again.

        A chunk may be asked for again until the one behind it is.

        Args:
            chunk: the one taken last, or the one behind it.
            wait_s: seconds to wait at most.

        Returns:
            The chunk, or None if it is not made yet or, where ``ended`` says so, never will be.

        Raises:
            ValueError: a chunk that is gone, or one that is not next.
        """
        with self._news:
            self._heard = self._clock()
            if not max(self._asked, 0) <= chunk <= self._asked + 1:
                raise ValueError(
                    f"chunk {chunk} was asked for; expected {max(self._asked, 0)} or "
                    f"{self._asked + 1}"
                )
            if chunk > self._asked and self._asked >= 0 and self._asked not in self._ready:
                raise ValueError(f"chunk {chunk} was asked for before {self._asked} was made")
            self._ready.pop(chunk - 1, None)
            self._asked = chunk
            self._news.notify_all()
            self._news.wait_for(lambda: chunk in self._ready or self._ended is not None, wait_s)
            return self._ready.get(chunk)

    def stop(self, reason: str) -> None:
        """Make nothing more. The first reason is the one that is told."""
        with self._news:
            self._ended = self._ended or reason
            self._news.notify_all()

    def _run(self) -> None:
        try:
            self._make()
        except (RuntimeError, ValueError, OSError) as error:
            log.exception("a live film failed")
            self.stop(f"the film failed: {error}")
        finally:
            # Of an error that nobody foresaw the viewer is told too.
            self.stop("the film broke off; see the server's log")

    def _make(self) -> None:
        shots = self._film(self._ask)
        while self._is_wanted():
            began = self._clock()
            with self._turn:
                shot = next(shots, None)
            data = self._writer.close() if shot is None else self._writer.push(shot.frames_RYXC)
            with self._news:
                made = None if shot is None else self._told(shot, self._clock() - began)
                self._ready[self._next] = Fragment(data, made)
                self._next += 1
                if self._first is None:
                    self._first = self._clock()
                self._news.notify_all()
            if shot is None:
                self.stop("the film has reached its longest length")

    def _is_wanted(self) -> bool:
        """Waits until the next chunk is asked for and may be made; False if it never will be."""
        with self._news:
            while self._ended is None:
                now = self._clock()
                if now - self._heard >= self._gone_s:
                    self._ended = f"the viewer was not heard of for {self._gone_s:g} s"
                    self._news.notify_all()
                    break
                early_s = self._early_s(now)
                if self._next <= self._asked and early_s <= 0:
                    return True
                left_s = self._gone_s - (now - self._heard)
                self._news.wait(min(left_s, early_s) if early_s > 0 else left_s)
        return False

    def _early_s(self, now: float) -> float:
        """Seconds until the next chunk is no more than ``ahead_s`` ahead of playback."""
        played_s = 0.0 if self._first is None else now - self._first
        return self._frames / self._fps - played_s - self._ahead_s

    def _ask(self, chunk: int) -> str:
        with self._news:
            self._prompt_of[chunk] = self._prompts
            return self._text

    def _told(self, shot: Shot, made_s: float) -> Made:
        frames, slow = len(shot.frames_RYXC), _slow(shot)
        self._rates.append((frames, made_s))
        made = Made(
            chunk=self._next,
            start_s=self._frames / self._fps,
            frames=frames,
            made_s=made_s,
            fps=sum(n for n, _ in self._rates) / max(sum(s for _, s in self._rates), 1e-9),
            prompt=self._prompt_of.pop(self._next, self._prompts),
            slots=shot.slots,
            promoted=tuple(sorted(slow - self._slow)),
        )
        self._frames, self._slow = self._frames + frames, slow
        return made


def _slow(shot: Shot) -> frozenset[int]:
    return frozenset(slot.frame for slot in shot.slots if slot.role == "slow")
