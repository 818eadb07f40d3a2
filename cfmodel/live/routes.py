"""What the live page asks for: itself, small JSON bodies, and the film in fragments."""

import contextlib
import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from cfmodel.live.fragments import KINDS
from cfmodel.live.session import Session
from cfmodel.live.sessions import BusyError, Sessions

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

MOST_BYTES = 16 << 10
"""Of a body; prompts are shorter in every family."""
WAIT_S = 5.0
"""For a chunk, in one request; the page asks again."""
TOLD = "x-live"
"""Header in which a chunk's bytes bring what is told of it, as JSON."""
STATIC = {"": "live.html", "live.js": "live.js", "live.css": "live.css"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
}


class RefusedError(Exception):
    """A request that is answered with a status and a line of text: its arguments."""


class Stage(NamedTuple):
    """What a server shows."""

    sessions: Sessions
    check: Callable[[str], list[str]]
    """Warnings about a prompt; ValueError for one that cannot be used."""
    about: dict[str, Any]
    """Facts for the page."""


def make_app(stage: Stage) -> "FastAPI":
    """The application: page, facts, and one route for each thing that a viewer does."""
    from fastapi import FastAPI, Request, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def static(name: str) -> Callable[[Request], Response]:
        text = (resources.files("cfmodel") / "static" / name).read_text(encoding="utf-8")
        return lambda _: Response(text, 200, HEADERS, TYPES[name.split(".")[-1]])

    for path, name in STATIC.items():
        app.add_route(f"/{path}", static(name), ["GET"])
    app.add_route("/api/about", lambda _: _json(200, stage.about), ["GET"])
    for handler in (_start, _chunk, _prompt, _stop):
        route = _post(stage, handler)
        app.add_route(f"/api/{handler.__name__[1:]}", route, ["POST"])
    return app


def _post(
    stage: Stage, handler: "Callable[[Stage, dict[str, Any]], Response]"
) -> "Callable[[Request], Awaitable[Response]]":
    from fastapi import Request, Response
    from fastapi.concurrency import run_in_threadpool

    async def route(request: Request) -> Response:
        try:
            return await run_in_threadpool(handler, stage, await _tree(request))
        except RefusedError as error:
            return _json(error.args[0], {"error": error.args[1]})

    return route


async def _tree(request: "Request") -> dict[str, Any]:
    # A page of another site cannot send this type unless it is allowed to.
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise RefusedError(415, "expected application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise RefusedError(413, f"the request is larger than {MOST_BYTES} bytes")
    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(body)
        if isinstance(tree, dict):
            return tree
    raise RefusedError(422, "expected a JSON object")


def _start(stage: Stage, tree: dict[str, Any]) -> "Response":
    text, kind, warnings = tree.get("prompt"), tree.get("kind"), _checked(stage, tree)
    if kind not in KINDS:
        raise RefusedError(422, f"expected kind, one of {', '.join(KINDS)}")
    try:
        name = stage.sessions.begin(str(text), kind)
    except BusyError as error:
        raise RefusedError(409, str(error)) from error
    return _json(200, {"session": name, "warnings": warnings})


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
    told = {} if fragment.made is None else {TOLD: json.dumps(fragment.made._asdict())}
    return Response(fragment.data, 200, {**HEADERS, **told}, "application/octet-stream")


def _prompt(stage: Stage, tree: dict[str, Any]) -> "Response":
    session = _session(stage, tree)
    warnings = _checked(stage, tree)
    if session.ended is not None:
        return _json(410, {"ended": session.ended})
    return _json(200, {"number": session.change(tree["prompt"]), "warnings": warnings})


def _stop(stage: Stage, tree: dict[str, Any]) -> "Response":
    session = _session(stage, tree)
    session.stop("stopped by the viewer")
    return _json(200, {"ended": session.ended})


def _session(stage: Stage, tree: dict[str, Any]) -> Session:
    session = stage.sessions.find(str(tree.get("session")))
    if session is None:
        raise RefusedError(404, "this session is over; start again")
    return session


def _checked(stage: Stage, tree: dict[str, Any]) -> list[str]:
    text = tree.get("prompt")
    if not isinstance(text, str):
        raise RefusedError(422, "expected prompt, a text")
    try:
        return stage.check(text)
    except ValueError as error:
        raise RefusedError(422, str(error)) from error


def _json(status: int, tree: dict[str, Any]) -> "Response":
    from fastapi.responses import JSONResponse

    return JSONResponse(tree, status, HEADERS)
