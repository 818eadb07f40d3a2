"""What the live page asks for: itself, small JSON bodies, and the film in fragments."""

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cfmodel.live.fragments import KINDS
from cfmodel.live.session import STOPPED, Made, Session
from cfmodel.live.sessions import BusyError, Sessions

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

MOST_BYTES = 16 << 10
"""Of a body; prompts are shorter than this in every family."""
WAIT_S = 5.0
"""For a chunk, in one request; the page asks again."""
TOLD = "x-live"
"""Header in which a chunk's bytes bring what is told of it, as JSON."""
STATIC = {"live.html": "text/html", "live.js": "text/javascript", "live.css": "text/css"}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

Check = Callable[[str], list[str]]
"""Warnings about a prompt. Raises ValueError for one that cannot be used."""


class RefusedError(Exception):
    """A request that is answered with a status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Stage(NamedTuple):
    """What a server shows: its sessions, what prompts must be like, what the page tells."""

    sessions: Sessions
    check: Check
    about: dict[str, Any]


Handler = Callable[[Stage, dict[str, Any]], "Response"]


def make_app(stage: Stage) -> "FastAPI":
    """The application: page, facts, and one route for each thing that a viewer does."""
    from fastapi import FastAPI, Request, Response

    app = FastAPI(title="live", docs_url=None, redoc_url=None, openapi_url=None)

    def static(name: str) -> Callable[[Request], Response]:
        text = (resources.files("cfmodel") / "static" / name).read_text(encoding="utf-8")
        return lambda _: Response(text, 200, HEADERS, STATIC[name])

    app.add_route("/", static("live.html"), ["GET"])
    for name in ("live.js", "live.css"):
        app.add_route(f"/{name}", static(name), ["GET"])
    app.add_route("/api/about", lambda _: _json(200, stage.about), ["GET"])
    handlers: dict[str, Handler] = {
        "start": _start, "chunk": _chunk, "prompt": _prompt, "alive": _alive, "stop": _stop,
    }  # fmt: skip
    for name, handler in handlers.items():
        app.add_route(f"/api/{name}", _post(stage, handler), ["POST"])
    return app


def _post(stage: Stage, handler: Handler) -> "Callable[[Request], Awaitable[Response]]":
    from fastapi import Request, Response
    from fastapi.concurrency import run_in_threadpool

    async def route(request: Request) -> Response:
        try:
            # A page of another site cannot send this type unless it is allowed to.
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                raise RefusedError(415, "expected application/json")
            tree = _parsed(await _body(request))
            return await run_in_threadpool(handler, stage, tree)
        except RefusedError as error:
            return _json(error.status, {"error": str(error)})

    return route


def _start(stage: Stage, tree: dict[str, Any]) -> "Response":
    text, kind = _text(tree, "prompt"), _text(tree, "kind")
    if kind not in KINDS:
        raise RefusedError(422, f"kind {kind[:20]!r}: expected one of {', '.join(KINDS)}")
    warnings = _checked(stage, text)
    try:
        name = stage.sessions.begin(text, kind)
    except BusyError as error:
        raise RefusedError(409, str(error)) from error
    return _json(200, {"session": name, "number": 1, "warnings": warnings})


def _chunk(stage: Stage, tree: dict[str, Any]) -> "Response":
    from fastapi import Response

    session, chunk = _session(stage, tree), tree.get("chunk")
    if not isinstance(chunk, int):
        raise RefusedError(422, "expected chunk, a whole number")
    try:
        fragment = session.take(chunk, WAIT_S)
    except ValueError as error:
        raise RefusedError(422, str(error)) from error
    if fragment is None:
        ended = session.ended
        return Response(None, 204, HEADERS) if ended is None else _json(410, {"ended": ended})
    told = {} if fragment.made is None else {TOLD: json.dumps(_told(fragment.made))}
    return Response(fragment.data, 200, {**HEADERS, **told}, "application/octet-stream")


def _prompt(stage: Stage, tree: dict[str, Any]) -> "Response":
    session, text = _session(stage, tree), _text(tree, "prompt")
    session.touch()
    warnings = _checked(stage, text)
    if session.ended is not None:
        return _json(410, {"ended": session.ended})
    return _json(200, {"number": session.change(text), "warnings": warnings})


def _alive(stage: Stage, tree: dict[str, Any]) -> "Response":
    session = _session(stage, tree)
    session.touch()
    return _json(200, {"ended": session.ended})


def _stop(stage: Stage, tree: dict[str, Any]) -> "Response":
    session = _session(stage, tree)
    session.stop(STOPPED)
    return _json(200, {"ended": session.ended})


def _told(made: Made) -> dict[str, Any]:
    slots = [{"frame": slot.frame, "role": slot.role} for slot in made.slots]
    return {
        "chunk": made.chunk, "start_s": made.start_s, "frames": made.frames,
        "made_s": round(made.made_s, 4), "fps": round(made.fps, 2), "prompt": made.prompt,
        "slots": slots, "promoted": list(made.promoted),
    }  # fmt: skip


def _session(stage: Stage, tree: dict[str, Any]) -> Session:
    session = stage.sessions.find(_text(tree, "session"))
    if session is None:
        raise RefusedError(404, "this session is over; start again")
    return session


def _checked(stage: Stage, text: str) -> list[str]:
    try:
        return stage.check(text)
    except ValueError as error:
        raise RefusedError(422, str(error)) from error


def _text(tree: dict[str, Any], name: str) -> str:
    value = tree.get(name)
    if not isinstance(value, str):
        raise RefusedError(422, f"expected {name}, a text")
    return value


async def _body(request: "Request") -> bytes:
    """A request's body.

    Raises:
        RefusedError: it is too large.
    """
    parts: list[bytes] = []
    async for part in request.stream():
        parts.append(part)
        if sum(map(len, parts)) > MOST_BYTES:
            raise RefusedError(413, f"the request is larger than {MOST_BYTES} bytes")
    return b"".join(parts)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, "the body is not JSON") from error
    if not isinstance(tree, dict):
        raise RefusedError(422, "expected a JSON object")
    return cast(dict[str, Any], tree)


def _json(status: int, tree: dict[str, Any]) -> "Response":
    from fastapi import Response

    return Response(json.dumps(tree), status, HEADERS, "application/json")
