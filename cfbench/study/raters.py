"""What a rater can do: begin, go on, answer, comment. No web framework; see ``routes``.

Decisions are operations of the writer, made inside its transaction. What is kept in memory beside
the database never changes once it is there: who a token belongs to, and which film an id means.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cfbench.study import assign, database
from cfbench.study.assign import Item
from cfbench.study.design import MEDIA, load, load_secret
from cfbench.study.films import check_whole
from cfbench.study.tables import SIDES, Pair, Question
from cfbench.study.writer import DATABASE, Decision, Operation, RefusedError, Writer

VOTES = "votes"
GIVEN_UP = timedelta(hours=3)
"""After this time a rater who has not finished is counted out, and others get the pairs."""
MEDIUM_HEX = 40
CODE_LETTERS = 8
SLACK_S = 0.1


class Rater(NamedTuple):
    """A session: its anonymous id, the hash of its token, what it was given."""

    session: str
    token: str
    items: tuple[Item, ...]


class Film(NamedTuple):
    """A film as one rater may fetch it: of which token, from which file, with which last bytes."""

    token: str
    path: Path
    tag: bytes


class Study:
    """A study that is being served.

    Args:
        folder: of ``cfbench study build``.

    Raises:
        CfError: the design or a film has changed, or the votes cannot be written; see ``Writer``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.design, sealed = load(folder)
        check_whole(folder / MEDIA, self.design.media)
        self._secret = load_secret(folder)
        self._writer = Writer(folder / VOTES, sealed)
        self._reader = database.connect(folder / VOTES / DATABASE, read_only=True)
        self._raters: dict[str, Rater] = {}
        self._films: dict[str, Film] = {}
        for session, token in self._reader.execute("SELECT session, token FROM sessions"):
            self._admit(Rater(session, token, database.items_of(self._reader, session)))

    def close(self) -> None:
        """Store what waits and stop."""
        self._reader.close()
        self._writer.close()

    @property
    def duration_s(self) -> float:
        """Length of every film."""
        medium = next(iter(self.design.media.values()))
        return medium.frames / medium.fps

    def rater(self, token: str) -> Rater:
        """Whose token this is.

        Raises:
            RefusedError: nobody's (404).
        """
        found = self._raters.get(digest(token))
        if found is None:
            raise RefusedError("this link is not known; please check that it is complete", 404)
        return found

    def film(self, medium: str, token: str) -> Film:
        """The film that an id means to the rater of a token.

        Raises:
            RefusedError: it means none, or another rater's (404).
        """
        found = self._films.get(medium)
        if found is None or not hmac.compare_digest(found.token, digest(token)):
            raise RefusedError("no such film", 404)
        return found

    async def begin(self, participant: str) -> str:
        """Admit a rater and give out the first block; returns the token that goes on from here.

        A participant (an id of a panel, kept as a keyed hash) who began before is refused.

        Raises:
            RefusedError: the study is full (409), or the participant took part already (409).
        """
        token = secrets.token_urlsafe(24)
        session = secrets.token_hex(8)
        who = self._sign("participant", participant) if participant else ""
        result = await self._do(self._beginning(session, digest(token), who))
        self._admit(result)
        return token

    def _beginning(self, session: str, token: str, who: str) -> Operation:
        def decide(db: sqlite3.Connection) -> Decision:
            if who and db.execute("SELECT 1 FROM participants WHERE hash = ?", (who,)).fetchone():
                raise RefusedError("you took part already; use the link that you were given", 409)
            (sessions,) = db.execute("SELECT count(*) FROM sessions").fetchone()
            if sessions >= self.design.plan.max_sessions:
                raise RefusedError("the study is complete; thank you for your interest", 409)
            items = self._given(db, session, ())
            events = [
                database.event(
                    "session", session, token=token, code=digest(self._code(session)),
                    consent=digest(self.design.consent),
                ),
                database.event("block", session, items=database.item_tree(items)),
            ]  # fmt: skip
            if who:
                events.append(database.event("participant", session, hash=who))
            return Decision(tuple(events), Rater(session, token, items))

        return decide

    async def another_block(self, token: str) -> None:
        """Give a rater who has finished the block another one.

        Raises:
            RefusedError: answers are missing, or nothing is left to show (409).
        """
        rater = self.rater(token)

        def decide(db: sqlite3.Connection) -> Decision:
            items = database.items_of(db, rater.session)
            if self._missing(db, rater.session, items):
                raise RefusedError("please answer the pairs that you have first", 409)
            more = self._given(db, rater.session, items)
            if not more:
                raise RefusedError("you have seen everything; thank you", 409)
            block = database.event("block", rater.session, items=database.item_tree(more))
            return Decision((block,), Rater(rater.session, rater.token, (*items, *more)))

        self._admit(await self._do(decide))

    def _given(
        self, db: sqlite3.Connection, session: str, items: tuple[Item, ...]
    ) -> tuple[Item, ...]:
        since = (datetime.now(UTC) - GIVEN_UP).isoformat(timespec="milliseconds")
        return assign.next_block(
            self.design, database.counts(db, since), {item.pair for item in items},
            len(items), items[-1].block + 1 if items else 0, session,
        )  # fmt: skip

    async def vote(self, token: str, vote: Mapping[str, Any]) -> None:
        """Store an answer; returns once it is on disk. The same answer again stores nothing.

        Args:
            token: of the rater.
            vote: as ``schemas.VOTE`` has it.

        Raises:
            RefusedError: no such item or question (422), or the films were not watched (409).
        """
        rater = self.rater(token)
        item, question = self._place(rater, vote)
        answer, reason = vote["answer"], vote["reason"] if vote["answer"] == "cannot" else ""
        if answer == "cannot" and not reason:
            raise RefusedError("please say why you cannot judge", 422)
        least = self.design.exclusion.least_watched * self.duration_s - SLACK_S
        watched = min(vote["watched_left_s"], vote["watched_right_s"])
        if answer != "cannot" and watched < least:
            raise RefusedError("please watch both films first", 409)
        detail = database.detail({**vote, "reason": reason}, vote["client"])

        def decide(db: sqlite3.Connection) -> Decision:
            key = (rater.session, item.pair, question.id)
            if database.last_answer(db, *key) == (answer, reason):
                return Decision((), None)
            events = [
                database.event(
                    "vote", rater.session, pair=item.pair, question=question.id, answer=answer,
                    detail=detail,
                )
            ]  # fmt: skip
            if self._ends(db, rater, item.block, (item.pair, question.id)):
                events.append(database.event("finished", rater.session, block=item.block))
            return Decision(tuple(events), None)

        await self._do(decide)

    def _place(self, rater: Rater, vote: Mapping[str, Any]) -> tuple[Item, Question]:
        if vote["item"] >= len(rater.items):
            raise RefusedError("there is no such pair", 422)
        item = rater.items[vote["item"]]
        for question in self.questions(item):
            if question.id == vote["question"]:
                return item, question
        raise RefusedError("there is no such question", 422)

    def _ends(self, db: sqlite3.Connection, rater: Rater, block: int, new: tuple[str, str]) -> bool:
        done = (rater.session, block)
        if db.execute("SELECT 1 FROM finished WHERE session = ? AND block = ?", done).fetchone():
            return False
        items = tuple(item for item in rater.items if item.block == block)
        return self._missing(db, rater.session, items) == {new}

    def _missing(
        self, db: sqlite3.Connection, session: str, items: tuple[Item, ...]
    ) -> set[tuple[str, str]]:
        wanted = {(item.pair, question.id) for item in items for question in self.questions(item)}
        rows = db.execute("SELECT pair, question FROM votes WHERE session = ?", (session,))
        return wanted - set(rows.fetchall())

    def questions(self, item: Item) -> tuple[Question, ...]:
        """Questions about an item; an instruction is one question, which says what to answer."""
        pair = self.design.pair(item.pair)
        if pair.kind != "instruction":
            return self.design.questions
        return (Question(id=self.design.questions[0].id, text=pair.instruction),)

    async def comment(self, token: str, text: str) -> None:
        """Store a remark.

        Raises:
            RefusedError: nobody's token (404).
        """
        session = self.rater(token).session
        event = database.event("comment", session, text=text)
        await self._do(lambda _: Decision((event,), None))

    def state(self, token: str) -> dict[str, Any]:
        """Everything that a rater's page shows; nothing in it tells one system from another.

        Raises:
            RefusedError: nobody's token (404).
        """
        rater = self.rater(token)
        given = database.answers_of(self._reader, rater.session)
        items = [self._item(rater, item, given) for item in rater.items]
        left = self._missing(self._reader, rater.session, rater.items)
        mains = {
            (pair.comparison, pair.prompt) for pair in self.design.pairs if pair.kind == "main"
        }
        shown = {item.pair for item in rater.items}
        seen = {
            (pair.comparison, pair.prompt)
            for pair in self.design.pairs
            if pair.kind == "main" and pair.id in shown
        }
        return {
            "title": self.design.title,
            "duration_s": self.duration_s,
            "watch": self.design.exclusion.least_watched,
            "training": [
                {
                    **self._films_of(rater, pair, "left"),
                    "note": pair.instruction,
                    "expected": pair.expected,
                }
                for pair in self.design.training
            ],
            "items": items,
            "finished": not left,
            "more": not left and mains != seen,
            "code": "" if left else self._code(rater.session),
        }

    def _item(
        self, rater: Rater, item: Item, given: Mapping[tuple[str, str], tuple[str, str]]
    ) -> dict[str, Any]:
        questions = self.questions(item)
        return {
            **self._films_of(rater, self.design.pair(item.pair), item.side, item),
            "questions": [{"id": question.id, "text": question.text} for question in questions],
            "answers": {
                question.id: dict(zip(("answer", "reason"), given[key], strict=True))
                for question in questions
                if (key := (item.pair, question.id)) in given
            },
        }

    def _films_of(
        self, rater: Rater, pair: Pair, side: str, item: Item | None = None
    ) -> dict[str, str]:
        shown = self.design.pair(item.of) if item is not None and item.of else pair
        texts = {prompt.id: prompt.text for prompt in self.design.prompts}
        urls = {
            place: f"/m/{self._sign('medium', rater.session, pair.id, place)[:MEDIUM_HEX]}.mp4"
            for place in SIDES
        }
        return {**urls, "text": texts[shown.prompt]}

    def _admit(self, rater: Rater) -> None:
        self._raters[rater.token] = rater
        training = [Item(0, 0, pair.id, "", "left") for pair in self.design.training]
        for item in (*training, *rater.items):
            for place, name in zip(SIDES, assign.films(self.design, item), strict=True):
                signed = self._sign("medium", rater.session, item.pair, place)
                path = self.folder / MEDIA / self.design.media[name].file
                tag = hashlib.sha256(f"tag {signed}".encode()).digest()
                self._films[signed[:MEDIUM_HEX]] = Film(rater.token, path, tag)

    def _code(self, session: str) -> str:
        signed = bytes.fromhex(self._sign("code", session))
        return base64.b32encode(signed).decode()[:CODE_LETTERS]

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._secret, "\x1f".join(parts).encode(), "sha256").hexdigest()

    async def _do(self, operation: Operation) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, failed: Exception | None) -> None:
            if future.cancelled():
                return
            if failed is None:
                future.set_result(result)
            else:
                future.set_exception(failed)

        self._writer.submit(
            operation, lambda result, failed: loop.call_soon_threadsafe(settle, result, failed)
        )
        return await future


def digest(text: str) -> str:
    """Hash under which a token or a code is stored."""
    return hashlib.sha256(text.encode()).hexdigest()
