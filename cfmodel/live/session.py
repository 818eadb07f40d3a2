"""One viewer's film: what is asked for, what is made, what is told, and when it ends.

A chunk is made when the viewer asks for it, and never further than ``ahead_s`` ahead of a playback
that began with the first one: neither who left nor who asks for all at once makes generation run.

Dims: R pixel frames, Y rows, X columns.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cfmodel.memory.base import FrameSlot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cfmodel.live.fragments import FragmentWriter

log = logging.getLogger(__name__)

GONE_S = 10.0
"""Seconds after which a viewer who asked for nothing has left; a page that plays asks sooner."""
RATE_CHUNKS = 8
"""Chunks over which the rate of generation is told."""


class Shot(NamedTuple):
    """A chunk of film, decoded, and what the memory holds behind it."""

    frames_RYXC: "NDArray[np.uint8]"
    slots: tuple[FrameSlot, ...]


Film = Callable[[Callable[[int], str]], Iterator[Shot]]
"""From the text of the chunk with an index, asked for when it is begun, to the film's chunks."""


class Made(NamedTuple):
    """What a page is told of a chunk.

    Args:
        chunk: its index.
        start_s: seconds of film before it.
        frames: its pixel frames.
        made_s: seconds from its first step until it was encoded.
        fps: pixel frames made a second, over the last chunks.
        prompt: number of its prompt, the first being 1.
        slots: latent frames, and roles, that the memory's first layer holds behind it.
    """

    chunk: int
    start_s: float
    frames: int
    made_s: float
    fps: float
    prompt: int
    slots: tuple[tuple[int, str], ...]


class Fragment(NamedTuple):
    """Bytes of a chunk, and what is told of it; None of the bytes that end the film."""

    data: bytes
    made: Made | None


class Session:
    """A film being made for one viewer, in a thread of its own that begins at once.

    Args:
        film: what is shown.
        text: the first prompt.
        writer: makes bytes of pixel frames.
        fps: of playback.
        ahead_s: by how much generation may run ahead of playback.
        turn: held while a chunk is made, so that several sessions take turns.
        gone_s: see ``GONE_S``.
        clock: seconds, monotonic.

    Attributes:
        ended: why nothing more is made; None while the session goes on.
        thread: alive until the last chunk is done.
    """

    def __init__(
        self,
        film: Film,
        text: str,
        writer: "FragmentWriter",
        *,
        fps: int,
        ahead_s: float,
        turn: threading.Lock,
        gone_s: float = GONE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._film, self._writer, self._turn, self._clock = film, writer, turn, clock
        self._fps, self._ahead_s, self._gone_s = fps, ahead_s, gone_s
        self._news = threading.Condition()
        self._text, self._prompts = text, 1
        self._prompt_of: dict[int, int] = {}
        self._asked, self._next, self._frames = -1, 0, 0
        self._ready: dict[int, Fragment] = {}
        self._heard, self._first = clock(), None
        self._rates = deque[tuple[int, float]](maxlen=RATE_CHUNKS)
        self.ended: str | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def change(self, text: str) -> int:
        """Give the next chunk that is begun another text. Returns the new prompt's number."""
        with self._news:
            self._text, self._prompts = text, self._prompts + 1
            return self._prompts

    def take(self, chunk: int, wait_s: float) -> Fragment | None:
        """Ask for a chunk and get it; what is before it cannot be asked for again.

        Args:
            chunk: the one asked for last, or the one behind it.
            wait_s: seconds to wait for it.

        Returns:
            None if it is not made yet or, where ``ended`` says so, never will be.

        Raises:
            ValueError: another chunk, or the next one before the last one was made.
        """
        with self._news:
            self._heard = self._clock()
            last = max(self._asked, 0)
            if chunk != last and (chunk != last + 1 or last not in self._ready):
                raise ValueError(f"chunk {chunk} is out of turn; {last} was asked for last")
            self._ready.pop(chunk - 1, None)
            self._asked = chunk
            self._news.notify_all()
            self._news.wait_for(lambda: chunk in self._ready or self.ended is not None, wait_s)
            return self._ready.get(chunk)

    def stop(self, reason: str) -> None:
        """Make nothing more. The first reason is the one that is told."""
        with self._news:
            self.ended = self.ended or reason
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
                if self.ended is not None:
                    return  # the viewer left while others had their turn
                shot = next(shots, None)
            data = self._writer.close() if shot is None else self._writer.push(shot.frames_RYXC)
            with self._news:
                made = None if shot is None else self._told(shot, self._clock() - began)
                self._ready[self._next] = Fragment(data, made)
                self._next += 1
                self._first = self._clock() if self._first is None else self._first
                self._news.notify_all()
            if shot is None:
                self.stop("it has reached its longest length")

    def _is_wanted(self) -> bool:
        """Waits until the next chunk is asked for and may be made; False if it never will be."""
        with self._news:
            while self.ended is None:
                now = self._clock()
                left_s = self._gone_s - (now - self._heard)
                if left_s <= 0:
                    self.stop(f"the viewer was not heard of for {self._gone_s:g} s")
                    break
                played_s = 0.0 if self._first is None else now - self._first
                early_s = self._frames / self._fps - played_s - self._ahead_s
                if self._next <= self._asked and early_s <= 0:
                    return True
                self._news.wait(min(left_s, early_s) if early_s > 0 else left_s)
        return False

    def _ask(self, chunk: int) -> str:
        with self._news:
            self._prompt_of[chunk] = self._prompts
            return self._text

    def _told(self, shot: Shot, made_s: float) -> Made:
        frames = len(shot.frames_RYXC)
        self._rates.append((frames, made_s))
        fps = sum(n for n, _ in self._rates) / max(sum(s for _, s in self._rates), 1e-9)
        slots = tuple((slot.frame, slot.role) for slot in shot.slots)
        prompt, start_s = self._prompt_of.pop(self._next), self._frames / self._fps
        made = Made(self._next, start_s, frames, made_s, fps, prompt, slots)
        self._frames += frames
        return made
