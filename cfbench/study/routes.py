"""The study's routes: small JSON bodies in, small JSON bodies out, films in pieces.

They stand beside Gradio and never pass through its queue: a vote is one parse, one check, one
place in the writer's next batch.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from cfbench.study import schemas
from cfbench.study.films import TAG_BYTES
from cfbench.study.guard import Rates
from cfbench.study.raters import Film, Study
from cfbench.study.writer import RefusedError

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

PIECE = 1 << 18
COOKIE = "study"
TOKEN = "x-study-token"
RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
STATIC = {"study.js": "text/javascript", "study.css": "text/css"}
SESSION_BURST, SESSION_A_SECOND = 60.0, 10.0
"""Of one rater; a page sends a request for each answer."""
NO_STORE = {"cache-control": "no-store"}

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


def add(app: "FastAPI", study: Study) -> None:
    """Add the study's routes to an application, votes first.

    They are plain routes, since they check their bodies by themselves: FastAPI's own machinery
    takes half of a vote's time. What they take is described by ``schemas.openapi``.
    """
    handlers: Mapping[str, Handler] = {
        "vote": lambda token, body: _vote(study, token, body),
        "session": lambda _, body: _begin(study, body),
        "resume": lambda _, body: _resume(study, body),
        "block": lambda token, _: _another(study, token),
        "comment": lambda token, body: _comment(study, token, body),
    }
    rates = Rates(SESSION_BURST, SESSION_A_SECOND)
    for name, handler in handlers.items():
        app.add_route(f"/api/{name}", _post(schemas.BODIES[name], handler, rates), ["POST"])
    _add_reads(app, study, rates)


def _add_reads(app: "FastAPI", study: Study, rates: Rates) -> None:
    from fastapi import Request, Response
    from fastapi.responses import StreamingResponse

    async def state(request: Request) -> Response:
        token = request.headers.get(TOKEN, "")
        try:
            _slow_down(rates, token)
            return _json(200, study.state(token))
        except RefusedError as error:
            return _json(error.status, {"error": str(error)})

    async def medium(request: Request) -> Response:
        name = request.path_params["name"].removesuffix(".mp4")
        try:
            film = study.film(name, request.cookies.get(COOKIE, ""))
            size = film.path.stat().st_size
            span = part(request.headers.get("range", ""), size)
        except RefusedError as error:
            return _json(error.status, {"error": str(error)})
        headers = {
            **NO_STORE, "accept-ranges": "bytes", "content-disposition": "inline",
            "content-length": str(span.stop - span.start),
        }  # fmt: skip
        whole = not request.headers.get("range", "")
        if not whole:
            headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        return StreamingResponse(
            pieces(film, span, size), 200 if whole else 206, headers, "video/mp4"
        )

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return _json(404, {"error": "not found"})
        headers = {"cache-control": "no-cache"}
        return Response(static_text(name), 200, headers, STATIC[name])

    async def alive(_: Request) -> Response:
        return _json(200, {"alive": True})

    app.add_route("/api/state", state, ["GET"])
    app.add_route("/api/alive", alive, ["GET"])
    app.add_route("/m/{name}", medium, ["GET"])
    app.add_route("/study/{name}", static, ["GET"])


def _post(body: schemas.Body, handler: Handler, rates: Rates) -> Any:
    from fastapi import Request, Response

    async def route(request: Request) -> Response:
        token = request.headers.get(TOKEN, "")
        try:
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                raise RefusedError("expected application/json", 415)
            if token:
                _slow_down(rates, token)
            tree = schemas.checked(_parsed(await request.body()), body)
            result = await handler(token, tree)
        except RefusedError as error:
            return _json(error.status, {"error": str(error)})
        response = _json(200, result)
        if "token" in result:
            response.set_cookie(
                COOKIE, result["token"], httponly=True, samesite="strict",
                secure=request.url.scheme == "https",
            )  # fmt: skip
        return response

    return route


async def _begin(study: Study, body: dict[str, Any]) -> dict[str, Any]:
    token = await study.begin(body["participant"])
    return {"token": token, "state": study.state(token)}


async def _resume(study: Study, body: dict[str, Any]) -> dict[str, Any]:
    return {"token": body["token"], "state": study.state(body["token"])}


async def _vote(study: Study, token: str, body: dict[str, Any]) -> dict[str, Any]:
    await study.vote(token, body)
    return {"stored": True}


async def _another(study: Study, token: str) -> dict[str, Any]:
    await study.another_block(token)
    return {"state": study.state(token)}


async def _comment(study: Study, token: str, body: dict[str, Any]) -> dict[str, Any]:
    await study.comment(token, body["text"])
    return {"stored": True}


def part(header: str, size: int) -> range:
    """Bytes that a Range header asks for; all without one.

    Example:
        >>> part("bytes=10-19", 100), part("bytes=-5", 100), part("", 100)
        (range(10, 20), range(95, 100), range(0, 100))

    Raises:
        RefusedError: several ranges, or none of the film's bytes (416).
    """
    if not header:
        return range(size)
    found = RANGE.fullmatch(header.strip())
    if found is None or found.group(1) == found.group(2) == "":
        raise RefusedError("expected one range of bytes", 416)
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise RefusedError("the film has no such bytes", 416)
    return range(start, stop)


async def pieces(film: Film, span: range, size: int) -> AsyncIterator[bytes]:
    """Bytes of a film, the tag of this rater's copy at its end."""
    handle = os.open(film.path, os.O_RDONLY)
    try:
        for start in range(span.start, span.stop, PIECE):
            stop = min(start + PIECE, span.stop)
            piece = await asyncio.to_thread(os.pread, handle, stop - start, start)
            tag_from = size - TAG_BYTES
            if stop > tag_from:
                tag = film.tag[max(0, start - tag_from) : stop - tag_from]
                piece = piece[: len(piece) - len(tag)] + tag
            yield piece
    finally:
        os.close(handle)


def static_text(name: str) -> str:
    """A script or style of the page."""
    return (resources.files("cfbench") / "static" / name).read_text(encoding="utf-8")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the body is not JSON", 422) from error


def _slow_down(rates: Rates, token: str) -> None:
    if not rates.allows(token):
        raise RefusedError("too many requests; please wait a moment", 429)


def _json(status: int, tree: dict[str, Any]) -> "Response":
    from fastapi import Response

    return Response(json.dumps(tree), status, NO_STORE, "application/json")
