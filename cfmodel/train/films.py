"""Films that a student makes of itself, ready to be scored: rolled out afresh, or as a stream.

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
from cfmodel.nn.transformer import TextKV
from cfmodel.train.data import CONTEXT, LOCAL, SINK, SLOW, TARGET
from cfmodel.train.replay import Replay
from cfmodel.train.roller import Roller
from cfmodel.train.texts import Texts

Context = Literal["none", "contiguous", "memory"]
Kind = Literal["history", "opening", "whole"]
"""Of films in work: begun with rendered latents, ending with their opening, or neither."""
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
        _enough(texts, rollout.longest)
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
        return _drawn(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        _redraw(self, state)


def _enough(texts: Texts, latents: int) -> None:
    if texts.chunks * 3 < latents:
        raise ValueError(
            f"texts of {texts.chunks} chunks for films of {latents} latents; embed longer scripts"
        )


class _Drawing(Protocol):
    roller: Roller
    latents: int
    choice: torch.Generator


def _drawn(films: _Drawing) -> dict[str, Any]:
    return {
        "latents": films.latents,
        "choice": films.choice.get_state(),
        "draws": films.roller.draws.state_dict(),
    }


def _redraw(films: _Drawing, state: Mapping[str, Any]) -> None:
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
                target = _as_opening(film, start, reencode)
            return Film(target, text[:, start // 3 : total // 3])
        case "contiguous":
            window = film[:, start - CONTEXT :]
            if start > CONTEXT:
                window = _as_opening(film, start - CONTEXT, reencode)
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


def _as_opening(film: Tensor, start: int, reencode: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The film from ``start`` on, its first latent as if the film began there."""
    if reencode is None:
        raise RuntimeError("a window in mid-film needs a codec to re-encode its first frame")
    first = reencode(film[:, max(0, start - SINK) : start + 1].detach())
    return torch.cat([first, film[:, start + 1 :]], 1)


class _InWork:
    """Films that go on from call to call: their memory, texts, and latents made so far or last.

    Args:
        roller: makes chunks.
        texts: captions.
        rollout: how long films become, and what the teacher sees.
        reencode: as for ``FreshFilms``.
        seed: of texts and steps.
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
        _enough(texts, rollout.stream)
        self.roller, self.texts, self.rollout, self.reencode = roller, texts, rollout, reencode
        self.latents = 0
        self.choice = torch.Generator().manual_seed(seed_for("films", seed))
        self._memory: SlotMemory | None = None
        self._text: Tensor | None = None
        self._made: Tensor | None = None

    def _begin(self) -> None:
        """New films, of which nothing is made yet."""
        self._memory, self._made = self.roller.memory(), None
        self._text = self.texts.draw(self.roller.batch, self.rollout.stream // 3, self.choice)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: random numbers, and the films in work."""
        memory = None if self._memory is None else self._memory.state_dict()
        return {**_drawn(self), "memory": memory, "text": self._text, "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        _redraw(self, state)
        device = self.roller.draws.device
        self._memory = None
        if state["memory"] is not None:
            self._memory = self.roller.memory()
            self._memory.load_state_dict(state["memory"])
        self._text, self._made = (
            None if value is None else value.to(device) for value in (state["text"], state["made"])
        )


class Histories(Protocol):
    """Beginnings of films that were not made by the student."""

    def fill(self) -> None:
        """Makes the first ones."""
        ...

    def refill(self) -> None:
        """Makes some more."""
        ...

    def read(self, batch: int) -> Mapping[str, Tensor]:
        """``x0`` (B, F, C, X, Y) and ``text`` (B, G, S, E) of films from their beginning."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        ...


class ContextStream(_InWork):
    """Films that go on from call to call, 21 latents at a time, judged with what came before.

    A target is made on a copy of the memory, stopped at a random step; then the films go on by as
    many latents made in all steps, so that memory and context only ever hold finished ones. A
    target costs the same wherever in a film it lies, and lies everywhere alike. With the context
    ``memory`` a film's beginning is one too, with nothing before it, which the tiny world's
    teacher knows; ``contiguous`` needs 21 latents first. A share of the targets may lie in
    films that begin with ``histories``; these end sooner, and no target lies in what was given.

    Source: arXiv:2602.06028 section 7, with the films in work of LongLive's streaming long tuning
    in place of films of 84 to 105 latents made anew.
    """

    def __init__(
        self,
        roller: Roller,
        texts: Texts,
        rollout: Rollout,
        *,
        reencode: Callable[[Tensor], Tensor] | None = None,
        histories: Histories | None = None,
        seed: int = 0,
    ) -> None:
        if rollout.history and histories is None:
            raise ValueError("films are to begin with histories, but none are given")
        if rollout.context == "none":
            raise ValueError("the teacher has to see something: context memory or contiguous")
        self.before = 0 if rollout.context == "memory" else CONTEXT
        if rollout.history + rollout.opening > 1:
            raise ValueError(
                f"shares of targets history={rollout.history} and opening={rollout.opening} are "
                "more than all of them"
            )
        if rollout.opening and self.before:
            raise ValueError("a film's opening is no target where 21 latents must come before one")
        if rollout.stream < self.before + TARGET:
            raise ValueError(
                f"films of {rollout.stream} latents leave no room for {self.before} before a "
                f"target of {TARGET}; use longer ones"
            )
        super().__init__(roller, texts, rollout, reencode=reencode, seed=seed)
        self.histories, self._end = histories, rollout.stream

    def make(self, net: Any, progress: float, *, grad: bool) -> Film:
        """The next stretch of the films in work, or the first one of new ones."""
        roller, plan = self.roller, self.rollout
        if self._memory is None:
            self._start(net)
        memory, text = self._memory, self._text
        assert memory is not None, "begun"
        assert text is not None, "drawn with the memory"
        held = slow_frames(memory, roller.batch)
        exit_step = int(torch.randint(len(roller.flow.sigmas), (), generator=self.choice))
        mine = text[:, memory.frames // 3 :][:, : TARGET // 3]
        words = self._words(net, TARGET)
        bright = net.text_kv(mine) if grad and not plan.replay else None
        replay = Replay(net, copy.deepcopy(memory), mine) if grad and plan.replay else None
        tried = copy.deepcopy(memory)
        parts = [
            roller.chunk(
                net, tried, words.select(k), exit_step=exit_step,
                with_grad=bright.select(k) if bright else None,
                commit=k + 1 < TARGET // 3, replay=replay,
            )
            for k in range(TARGET // 3)
        ]  # fmt: skip
        film = torch.cat([*([] if self._made is None else [self._made]), *parts], 1)
        found = scored(film, text, held, plan.context, self.reencode)
        self.latents += roller.batch * TARGET
        if memory.frames + 2 * TARGET <= self._end:
            self._go_on(net, words)
        else:
            self._memory = None  # no room for another target: new films next time
        return found if replay is None else found._replace(terms=replay.terms)

    def _start(self, net: Any) -> None:
        """New films, with what comes before their first target."""
        plan, kinds = self.rollout, self.kinds()
        kind: Kind = "whole"  # without a draw where there is one kind alone
        if plan.history or plan.opening:
            often = torch.tensor(list(kinds.values()))
            kind = list(kinds)[int(torch.multinomial(often, 1, generator=self.choice))]
        if kind == "history" and self.histories is not None:
            self._take_up(net, self.histories)
            return
        self._begin()
        self._end = TARGET if kind == "opening" else plan.stream
        if self.before:
            self._go_on(net, self._words(net, self.before))

    def kinds(self) -> dict[Kind, float]:
        """How often films begin with histories, end with their opening, or are neither.

        In proportion; by the shares of targets wanted of them.
        """
        plan = self.rollout
        whole = (1 - plan.history - plan.opening) / ((plan.stream - self.before) // TARGET)
        given = plan.history / (plan.after // TARGET)
        return {"history": given, "opening": plan.opening, "whole": whole}

    def _take_up(self, net: Any, histories: Histories) -> None:
        """New films that begin with histories."""
        histories.fill()
        histories.refill()
        units, roller = histories.read(self.roller.batch), self.roller
        self._memory, self._text, self._made = roller.memory(), units["text"], units["x0"]
        count = self._made.shape[1]
        self._end = count + self.rollout.after
        words = self._words(net, count)
        for k, chunk in enumerate(self._made.split(3, 1)):
            roller.commit(net, self._memory, chunk, words.select(k))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: random numbers, the films in work, and histories."""
        given = None if self.histories is None else self.histories.state_dict()
        return {**super().state_dict(), "end": self._end, "histories": given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        super().load_state_dict(state)
        self._end = state["end"]
        if self.histories is not None:
            self.histories.load_state_dict(state["histories"])

    def _words(self, net: Any, count: int) -> TextKV:
        """Texts of the next ``count`` latents, without gradient."""
        assert self._memory is not None, "begun"
        assert self._text is not None, "drawn with the memory"
        first = self._memory.frames // 3
        with torch.no_grad():
            return net.text_kv(self._text[:, first : first + count // 3])

    def _go_on(self, net: Any, words: TextKV) -> None:
        """The films by the chunks of ``words``, finished, without gradient."""
        roller, memory = self.roller, self._memory
        assert memory is not None, "begun"
        last, before = len(roller.flow.sigmas) - 1, memory.frames
        made = [] if self._made is None else [self._made]
        for k in range(words.groups):
            made.append(roller.chunk(net, memory, words.select(k), exit_step=last))
        self.latents += roller.batch * (memory.frames - before)
        self._made = torch.cat(made, 1)


class StreamingFilms(_InWork):
    """Films that go on from call to call, 18 latents at a time, judged by what is new alone.

    The scored window is the last 21 latents, of which the first three were made by the call
    before, under the weights of that time.

    Source: streaming long tuning of LongLive (windows of 21 latents, at least 18 of them new, up
    to 240 latents), the short teacher of stage 1 as judge.
    """

    NEW = 18

    def make(self, net: Any, progress: float, *, grad: bool) -> Film:
        """The next stretch of the films in work, or the beginning of new ones."""
        roller = self.roller
        if self._memory is None or self._memory.frames + self.NEW > self.rollout.stream:
            self._begin()
        memory, text, tail = self._memory, self._text, self._made
        assert memory is not None, "begun"
        assert text is not None, "drawn with the memory"
        first = memory.frames // 3
        count = (self.NEW if tail is not None else TARGET) // 3
        exit_step = int(torch.randint(len(roller.flow.sigmas), (), generator=self.choice))
        mine = text[:, first : first + count]
        with torch.no_grad():
            words = net.text_kv(mine)
        again = Replay(net, copy.deepcopy(memory), mine) if grad and self.rollout.replay else None
        bright = net.text_kv(mine) if grad and again is None else None
        parts = [
            roller.chunk(
                net, memory, words.select(k), exit_step=exit_step,
                with_grad=bright.select(k) if bright else None, replay=again,
            )
            for k in range(count)
        ]  # fmt: skip
        self.latents += roller.batch * count * 3
        film = torch.cat(parts, 1)
        window = text[:, first + count - TARGET // 3 : first + count]
        target = film
        if tail is not None:
            # The tail is four latents: one to decode from, then the window's first three.
            target = _as_opening(torch.cat([tail, film], 1), 1, self.reencode)
        self._made = film[:, -4:].detach()
        return Film(target, window, terms=None if again is None else again.terms)
