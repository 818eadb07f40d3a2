"""What stands before every route: paths that exist, sizes, rates, security headers (plain ASGI)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 16 << 10
"""Of a body; the largest that a page sends is a remark of 2000 characters."""
MOST_HEADER_BYTES = 8 << 10
BODY_S = 10.0
"""For a body to arrive, so that nobody holds a connection open with half a request."""
OPEN = ("/api/", "/m/", "/study/", "/assets/", "/static/", "/gradio_api/heartbeat/")
OPEN_EXACT = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events")
)
"""Everything that the page asks for. All else of the framework (uploads, files, queue, monitoring,
API pages, run history) is no path of this server."""
BURST, A_SECOND = 2000.0, 400.0
"""Of one address, behind which a whole institute may sit."""
MOST_ADDRESSES = 10_000
BEGIN = "/api/session"
BEGIN_BURST, BEGIN_A_SECOND = 300.0, 0.5
"""Of one address; whoever began sessions without end would use up the study's places."""

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
        b"media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; "
        b"form-action 'self'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Rates:
    """Token buckets by name, in memory alone: no address is ever stored.

    Args:
        burst: requests at once.
        a_second: requests a second in the long run.
        clock: seconds, monotonic.
    """

    def __init__(
        self, burst: float, a_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._a_second, self._clock = burst, a_second, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, name: str) -> bool:
        """Take one request from a bucket; False when it is empty."""
        now = self._clock()
        left, at = self._buckets.pop(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._a_second)
        if len(self._buckets) >= MOST_ADDRESSES:
            # The one used longest ago: new names must not give everybody a full bucket.
            del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class Guard:
    """An ASGI application around another one.

    Args:
        app: what is guarded.
        rates: by address.
        begins: by address, of new sessions alone.
    """

    def __init__(self, app: App, rates: Rates | None = None, begins: Rates | None = None) -> None:
        self._app = app
        self._rates = rates or Rates(BURST, A_SECOND)
        self._begins = begins or Rates(BEGIN_BURST, BEGIN_A_SECOND)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._serve(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        path: str = scope["path"]
        address = (scope.get("client") or ("", 0))[0]
        if not self._rates.allows(address):
            return 429, "too many requests; please wait a moment"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return 431, "the request's headers are too large"
        if not (path.startswith(OPEN) or path in OPEN_EXACT) or ".." in path:
            return 404, "not found"
        if path == BEGIN and not self._begins.allows(address):
            return 429, "too many raters began here; please come back in a few minutes"
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope)
        if refused is not None:
            await answer(send, *refused)
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await read(receive, scope)
        except TimeoutError:
            await answer(send, 408, "the request did not arrive")
            return
        if body is None:
            await answer(send, 413, "the request is too large")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return waiting.pop() if waiting else await receive()

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() != b"server"]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self._app(scope, replay, guarded)


async def read(receive: Receive, scope: Scope) -> bytes | None:
    """A request's whole body; None when it is larger than allowed."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > MOST_BYTES):
            return None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        part = message.get("body", b"")
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


async def answer(send: Send, status: int, text: str) -> None:
    """A refusal as JSON."""
    body = f'{{"error": "{text}"}}'.encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
