"""Films that a student makes of itself, ready to be scored, and those rolled out afresh.

Dims: B films, F latent frames, G chunks, S text tokens, E text width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cfmodel.config import seed_for
from cfmodel.memory.slots import SlotMemory
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET
from cfmodel.train.replay import Replay
from cfmodel.train.roller import Roller
from cfmodel.train.texts import Texts

Context = Literal["none", "contiguous", "memory"]
BEFORE: Mapping[Context, int] = {"none": 0, "contiguous": CONTEXT, "memory": SINK + LOCAL}
"""Latents that come before a target at least."""


class Film(NamedTuple):
    """What of a film is scored.

    ``target`` (B, 21, C, X, Y) carries gradients where the student made it with them; ``context``
    (B, 21, C, X, Y), if any, comes before it. ``text`` has one entry a chunk (B, 7 or 14, S, E).
    Where the context is what the memory holds, ``valid`` (B, 42) says which latents there are, and
    ``text`` has one entry a latent (B, 42, S, E). ``opening`` says that the target is the films'
    beginning, so that the context is empty.

    Where films are replayed, ``target`` carries no gradients. Instead ``terms`` takes what the
    gradient of the target is to be (B, 21, C, X, Y) and gives, one after the other, losses whose
    gradients sum to it; each must be sent back before the next is asked for. It does so once.
    """

    target: Tensor
    text: Tensor
    context: Tensor | None = None
    valid: Tensor | None = None
    terms: Callable[[Tensor], Iterator[Tensor]] | None = None
    opening: bool = False


class Films(Protocol):
    """Where a student's films come from."""

    latents: int
    """Latents generated so far, over all films."""

    def make(self, net: Any, progress: float, *, grad: bool) -> Film:
        """The next batch of films; with ``grad`` they carry gradients to the student."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How long films are, and what of them is learnt from. All lengths in latents.

    Args:
        shortest: length at the beginning.
        longest: length that may be drawn at the end of the curriculum.
        curriculum: share of the run by which the longest is reached.
        free: the last latents, which carry gradients and stop at a random step; all before run
            every step, and so does the first chunk of these if ``first_clean``.
        first_clean: see there.
        context: what the teacher sees before the target.
        returning: share of films in whose target something comes back.
        midway: share of films whose texts begin anywhere in their script instead of at its
            beginning, where cameras mostly hold still; as the clips of ``base`` do.
        stream: films go on from call to call up to this length instead of being made anew for
            each; lengths, ``free``, ``returning`` and ``midway`` do not matter then.
        history: share of the targets that lie in films which begin with rendered latents instead
            of the student's own: of what its openings seldom show, memory has something to tell.
        after: latents that these films go on for, 21 or more; the first are told the most.
        opening: share of the targets that begin a film which ends with them, beside the beginnings
            of films that go on; for the context ``memory``.
        replay: make what carries gradients a second time, chunk by chunk, once the film is scored:
            two passes more a chunk for a fraction of the memory. See ``cfmodel.train.replay``.

    Source: arXiv:2602.06028 section 7 (84 to 105 latents, the last 18 free); section 6 (21).
    """

    shortest: int = TARGET
    longest: int = TARGET
    curriculum: float = 1.0
    free: int = TARGET
    first_clean: bool = False
    context: Context = "none"
    returning: float = 0.0
    midway: float = 0.0
    stream: int = 0
    history: float = 0.0
    after: int = TARGET
    opening: float = 0.0
    replay: bool = False

    def length(self, progress: float, u: float) -> int:
        """Latents of a film, a multiple of 3.

        Args:
            progress: of the run, in [0, 1].
            u: uniform draw in [0, 1).

        Example:
            >>> Rollout(shortest=84, longest=105).length(0.0, 0.99)
            84
            >>> Rollout(shortest=84, longest=105).length(1.0, 0.99)
            105
        """
        span = (self.longest - self.shortest) // 3
        reach = int(span * min(1.0, progress / self.curriculum))
        return self.shortest + 3 * int(u * (reach + 1))


class FreshFilms:
    """Films rolled out from their beginning; the last 21 latents are the target.

    Args:
        roller: makes chunks.
        texts: captions.
        rollout: how long, and what is learnt from.
        reencode: a latent of a film's first kind from the last latents before it; needed where a
            window does not begin with the film and the teacher expects one that does.
        seed: of lengths and texts.
    """

    def __init__(
        self,
        roller: Roller,
        texts: Texts,
        rollout: Rollout,
        *,
        reencode: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        enough(texts, rollout.longest)
        before = BEFORE[rollout.context]
        if rollout.replay and rollout.context == "none" and rollout.longest > TARGET:
            raise ValueError(
                "a replay cannot leave out the re-encoded first latent of a window in mid-film; "
                f"use films of {TARGET} latents, a context, or replay=False"
            )
        if rollout.shortest < TARGET + before:
            raise ValueError(
                f"films of {rollout.shortest} latents leave no room for the context "
                f"{rollout.context!r} before a target of {TARGET}; use longer ones"
            )
        self.roller, self.texts, self.rollout, self.reencode = roller, texts, rollout, reencode
        self.latents = 0
        self.choice = torch.Generator().manual_seed(seed_for("films", seed))

    def make(self, net: Any, progress: float, *, grad: bool) -> Film:
        """The next batch of films."""
        plan, roller = self.rollout, self.roller
        u = float(torch.rand((), generator=self.choice))
        chunks = plan.length(progress, u) // 3
        steps = len(roller.flow.sigmas)
        exit_step = int(torch.randint(steps, (), generator=self.choice))
        text = self.texts.draw(
            roller.batch, chunks, self.choice, returning=plan.returning, midway=plan.midway
        )
        with torch.no_grad():
            words = net.text_kv(text)
        first_free, window = chunks - plan.free // 3, chunks - TARGET // 3
        kept = grad and not plan.replay
        bright = net.text_kv(text[:, first_free:]) if kept else None
        memory, parts = roller.memory(), list[Tensor]()
        held: list[list[int]] = []
        replay: Replay | None = None
        for chunk in range(chunks):
            if chunk == window:
                held = slow_frames(memory, roller.batch)
            free = chunk >= first_free
            whole = not free or (plan.first_clean and chunk == first_free)
            if grad and plan.replay and chunk == first_free:
                replay = Replay(net, copy.deepcopy(memory), text[:, first_free:])
            parts.append(
                roller.chunk(
                    net, memory, words.select(chunk),
                    exit_step=steps - 1 if whole else exit_step,
                    with_grad=bright.select(chunk - first_free) if bright and free else None,
                    commit=chunk + 1 < chunks, replay=replay,
                )
            )  # fmt: skip
        self.latents += roller.batch * chunks * 3
        film = scored(torch.cat(parts, 1), text, held, plan.context, self.reencode)
        return film if replay is None else film._replace(terms=replay.terms)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: no film goes on, so random numbers alone."""
        return drawn(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        redraw(self, state)


def enough(texts: Texts, latents: int) -> None:
    """Raises a ``ValueError`` where texts end before a film of so many latents does."""
    if texts.chunks * 3 < latents:
        raise ValueError(
            f"texts of {texts.chunks} chunks for films of {latents} latents; embed longer scripts"
        )


class Drawing(Protocol):
    """Films that keep count, and draw random numbers."""

    roller: Roller
    latents: int
    choice: torch.Generator


def drawn(films: Drawing) -> dict[str, Any]:
    """Count and random numbers of films, as a resumed run needs them."""
    return {
        "latents": films.latents,
        "choice": films.choice.get_state(),
        "draws": films.roller.draws.state_dict(),
    }


def redraw(films: Drawing, state: Mapping[str, Any]) -> None:
    """Restores what ``drawn`` gave."""
    films.latents = state["latents"]
    films.choice.set_state(state["choice"])
    films.roller.draws.load_state_dict(state["draws"])


def slow_frames(memory: SlotMemory, batch: int) -> list[list[int]]:
    """Frames in the slow memory of each film, oldest first, as the first layer holds them."""
    return [
        [slot.frame for slot in memory.slots(0, k) if slot.role == "slow"] for k in range(batch)
    ]


def remembered(held: list[list[int]], start: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames (B, 21) of the context before ``start``, and which of them there are.

    Sink, then slow memory right-aligned, then the local context; what slow memory holds of the
    local context is left out, since it is there already. Absent slots name frame 0. Before a film's
    beginning there is nothing.
    """
    if not start:
        nothing = torch.zeros(len(held), CONTEXT, dtype=torch.int64, device=device)
        return nothing, nothing.bool()
    local = start - LOCAL
    rows, valid = list[list[int]](), list[list[bool]]()
    for frames in held:
        slow = [frame for frame in frames if SINK <= frame < local][-SLOW:]
        gap = SLOW - len(slow)
        rows.append([*range(SINK), *[0] * gap, *slow, *range(local, start)])
        valid.append([*[True] * SINK, *[False] * gap, *[True] * (len(slow) + LOCAL)])
    return torch.tensor(rows, device=device), torch.tensor(valid, device=device)


def scored(
    film: Tensor,
    text: Tensor,
    held: list[list[int]],
    context: Context,
    reencode: Callable[[Tensor], Tensor] | None,
) -> Film:
    """The last 21 latents of a film, with what a teacher sees before them.

    Args:
        film: (B, F, C, X, Y).
        text: (B, F / 3, S, E), or of a longer film.
        held: frames in slow memory when the target began, for the context ``memory``.
        context: what the teacher sees.
        reencode: as for ``FreshFilms``.
    """
    total = film.shape[1]
    start = total - TARGET
    match context:
        case "none":
            target = film[:, start:]
            if start:
                target = as_opening(film, start, reencode)
            return Film(target, text[:, start // 3 : total // 3])
        case "contiguous":
            window = film[:, start - CONTEXT :]
            if start > CONTEXT:
                window = as_opening(film, start - CONTEXT, reencode)
            # All latents are there, so nothing is masked: attention is much faster for it.
            chunks = slice((start - CONTEXT) // 3, total // 3)
            return Film(window[:, CONTEXT:], text[:, chunks], window[:, :CONTEXT].detach())
        case "memory":
            frames, valid = remembered(held, start, film.device)
            rows = torch.arange(len(film), device=film.device)[:, None]
            before = film.detach()[rows, frames] * valid[..., None, None, None]
            tail = torch.arange(start, total, device=film.device).expand(len(film), -1)
            every = torch.cat([frames, tail], 1)
            seen = torch.cat([valid, torch.ones_like(tail, dtype=torch.bool)], 1)
            return Film(film[:, start:], text[rows, every // 3], before, seen, opening=not start)


def as_opening(film: Tensor, start: int, reencode: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The film from ``start`` on, its first latent as if the film began there."""
    if reencode is None:
        raise RuntimeError("a window in mid-film needs a codec to re-encode its first frame")
    first = reencode(film[:, max(0, start - SINK) : start + 1].detach())
    return torch.cat([first, film[:, start + 1 :]], 1)
