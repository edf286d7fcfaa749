"""Signed requests for httpx: what a vendor's system does, in twenty lines.

Stage: load generators and tests, at the other end of the line from the gate. Each request, and each try of it, is
signed anew.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator

import httpx

from vending.signatures import sign_request


class SignedAuth(httpx.Auth):
    """Signs requests with one key."""

    requires_request_body = True

    def __init__(self, api_key: str, *, now_s: Callable[[], int] = lambda: int(time.time())) -> None:
        """Take a key as it was printed, `<key id>.<secret>`, and the clock in seconds since 1970."""
        self._key_id, _, self._secret = api_key.partition(".")
        self._now_s = now_s

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign a request on its way."""
        request.headers.update(
            sign_request(
                key_id=self._key_id,
                secret=self._secret,
                method=request.method,
                path=request.url.raw_path.decode("ascii"),
                body=request.content,
                at_s=self._now_s(),
                nonce=secrets.token_hex(16),
            )
        )
        yield request
