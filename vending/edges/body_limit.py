"""A bound on request bodies, in bytes and in time, before anything parses them.

Stage: ASGI, outside the application. A body is taken whole up to the limit, declared or not, and only then handed
on; one above it is refused by name. Never: more than the limit held in memory for one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A vend is some 150 bytes; 64 kB leaves room for every field at its longest many times over.
BODY_BYTES_MAX = 64 * 1024
# A sender that is refused while it still sends often loses the answer to a connection reset, so some of the rest is
# read and dropped first: 4 MiB is a moment on any line, and costs no memory.
DRAIN_BYTES_MAX = 4 * 1024 * 1024
# 64 kB in 10 s is 52 kbit/s, a poor mobile line; a point of sale does not wait longer either.
BODY_TIMEOUT_S = 10.0
# An exabyte is written with 19 digits.
_LENGTH_DIGITS_MAX = 18

Refuse = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyLimit:
    """Middleware that takes a request's body before the application sees the request.

    Invariants: the application sees a body of at most `BODY_BYTES_MAX` in one piece, or is not called.
    """

    def __init__(self, app: ASGIApp, *, too_large: Refuse, too_slow: Refuse) -> None:
        self._app = app
        self._too_large = too_large
        self._too_slow = too_slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _is_hopeless(scope):
            await self._too_large(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _take_body(receive)
        except TimeoutError:
            await self._too_slow(scope, receive, send)
            return
        if body is None:
            await self._too_large(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)


def _is_hopeless(scope: Scope) -> bool:
    """Tell whether a body is declared too large and not even worth draining, or waits for leave to be sent."""
    headers = Headers(scope=scope)
    declared = headers.get("content-length", "")
    if not declared.isdecimal():
        return False
    waits = headers.get("expect", "").lower() == "100-continue"
    return len(declared) > _LENGTH_DIGITS_MAX or int(declared) > (BODY_BYTES_MAX if waits else DRAIN_BYTES_MAX)


async def _take_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None for one above the limit."""
    chunks: list[bytes] = []
    taken = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            # The caller went away; nobody reads the answer.
            return b"".join(chunks)
        chunk: bytes = message.get("body", b"")
        taken += len(chunk)
        if taken > BODY_BYTES_MAX:
            chunks.clear()
        else:
            chunks.append(chunk)
        if not message.get("more_body", False) or taken > DRAIN_BYTES_MAX:
            return None if taken > BODY_BYTES_MAX else b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
