"""Films that go on from call to call of training: judged with their context, or by what is new.

Dims: B films, F latent frames, C, X, Y latent channels and sides, G chunks, S text tokens, E width.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from cfmodel.config import seed_for
from cfmodel.memory.slots import SlotMemory
from cfmodel.nn.transformer import TextKV
from cfmodel.train.data import CONTEXT, TARGET
from cfmodel.train.films import (
    Film,
    Rollout,
    as_opening,
    drawn,
    enough,
    redraw,
    scored,
    slow_frames,
)
from cfmodel.train.replay import Replay
from cfmodel.train.roller import Roller
from cfmodel.train.texts import Texts

Kind = Literal["history", "opening", "whole"]
"""Of films in work: begun with rendered latents, ending with their opening, or neither."""


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
        enough(texts, rollout.stream)
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
        return {**drawn(self), "memory": memory, "text": self._text, "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        redraw(self, state)
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
            target = as_opening(torch.cat([tail, film], 1), 1, self.reencode)
        self._made = film[:, -4:].detach()
        return Film(target, window, terms=None if again is None else again.terms)
