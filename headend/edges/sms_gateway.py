"""Notices as SMS: signed JSON to an HTTP gateway.

Stage: behind the notifier. The idempotency key is the same on every try, so that a gateway that took a message whose
answer was lost sends it once. docs/notices.md describes the request; billing.notices.signing its signature. Never
follows a redirect.

Standard: RFC 9110 (status codes, Retry-After), RFC 6585 (429).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from billing.notices.signing import sign
from headend.edges.notice_port import Answer, NotNow, Outgoing, Refused, Taken, detail_of

# A gateway that lets us in answers these to a request that may succeed later; 401, 403 and 407 are about us, not about
# the message, so that a wrong secret kills none.
_LATER = frozenset({401, 403, 407, 408, 409, 425, 429})
_PERMANENT = 4
_MS = 1_000
_WAIT_DIGITS_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Where SMS go. `secret` signs requests; `sender` is the name that phones show, if the gateway lets us choose."""

    url: str
    secret: bytes = field(repr=False)
    sender: str | None
    timeout_s: float
    parallel: int


class GatewayPort:
    """SMS as a channel."""

    def __init__(self, settings: GatewaySettings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        parts = urlsplit(settings.url)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        limits = httpx.Limits(max_connections=settings.parallel, max_keepalive_connections=settings.parallel)
        self._http = httpx.AsyncClient(timeout=settings.timeout_s, limits=limits, follow_redirects=False)

    @property
    def parallel(self) -> int:
        """How many messages may be on their way at once."""
        return self._settings.parallel

    @property
    def send_s_max(self) -> float:
        """How long one message takes at most: for the connection, for writing, for the answer."""
        return 3 * self._settings.timeout_s

    async def send(self, message: Outgoing) -> Answer:
        """Hand one message over."""
        body = request_body(message, sender=self._settings.sender)
        headers = sign(
            secret=self._settings.secret,
            method="POST",
            path=self._path,
            body=body,
            at_s=int(self._clock()),
            nonce=secrets.token_hex(16),
        )
        headers |= {"Content-Type": "application/json", "Idempotency-Key": message.message_id}
        try:
            answered = await self._http.post(self._settings.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return NotNow(detail=detail_of(f"{type(error).__name__}: {error}"))
        return self._judged(answered)

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    def _judged(self, answered: httpx.Response) -> Answer:
        if answered.is_success:
            return Taken()
        detail = detail_of(f"{answered.status_code} {answered.text}")
        if answered.status_code // 100 == _PERMANENT and answered.status_code not in _LATER:
            return Refused(detail=detail)
        return NotNow(detail=detail, wait_ms=_wait_ms(answered.headers.get("Retry-After"), self._clock()))


def request_body(message: Outgoing, *, sender: str | None) -> bytes:
    """Return the body of a request; the same one on every try.

    `template` names the text by kind and language, as operators have to register it (TRAI, template ids of DLT).
    """
    fields = {
        "id": message.message_id,
        "to": message.address,
        "text": message.body,
        "language": message.language,
        "template": f"{message.kind}.{message.language}",
    }
    if sender is not None:
        fields["sender"] = sender
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _wait_ms(retry_after: str | None, now_s: float) -> int:
    """Read a Retry-After of seconds or a date; 0 for none, and for one that cannot be read."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit() and len(text) <= _WAIT_DIGITS_MAX:
        return int(text) * _MS
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0, int((at - datetime.fromtimestamp(now_s, UTC)).total_seconds() * _MS))
