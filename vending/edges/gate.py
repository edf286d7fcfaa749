"""The gate of the vending interface: from a request to its caller, or to the refusal that it gets.

Stage: a dependency of every route that needs a key. Looks for a signature, then for the header `X-Api-Key`, then for
the client certificate of the line; takes the number of a signed request, counts the request, begins its act. Never: a
secret in a log or an answer; a difference between a key that is unknown, taken back or wrong.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_address
from typing import cast

from fastapi import Request
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from db.api_access import CalledKey, take_nonce
from vending.edges.audit_trail import Act, begin_act
from vending.edges.auth import Caller, caller_of_key
from vending.edges.contact_errors import ERROR_OF_FAULT, SignatureMissing
from vending.edges.errors import ApiKeyWrong, NonceReused, NotAllowed, TooManyRequests
from vending.edges.key_ring import KeyRing
from vending.edges.keys import digest_secret, split_api_key
from vending.edges.limits import Limiter
from vending.key_custody import digest_key
from vending.roles import READING_ROLES, Role
from vending.signatures import KEY_HEADER, SignatureFault, digest_request, judge_request, signed_by
from vending.vends import VendingError

# A copy of a vend is answered as the vend was, for ever, by its message id: it needs no number beside that, and a
# station may send the very same bytes again after a broken line.
REPEATABLE = frozenset({"POST /v1/vends"})
# Where the digest of a client certificate stands in a request's scope.
CERTIFICATE_SCOPE = "prepaid.certificate_sha256"
# Whoever stands between a caller and us says so by one of these: the line is not the caller's own.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_READS = frozenset({"GET", "HEAD"})
# Checked where there is no such key, so that an unknown id takes as long as a wrong secret.
_NO_SECRET = bytes(32)
# A key that is refused again and again has one line a minute in the trail, not one a request.
_REFUSALS_EVERY_MS = 60_000
_REFUSALS_MAX = 10_000
_MS = 1_000


class PlainKeys(StrEnum):
    """Where the header `X-Api-Key` is enough; anywhere else a request must be signed or come with a certificate."""

    NEVER = "never"
    # From this machine, with nothing between.
    LOOPBACK = "loopback"
    # Likewise, and consumers' keys from everywhere.
    CONSUMERS = "consumers"
    EVERYWHERE = "everywhere"


class Gate:
    """Lets requests in."""

    def __init__(
        self,
        *,
        ring: KeyRing,
        limiter: Limiter,
        plain_keys: PlainKeys,
        master: bytes,
        clock: Callable[[], int],
    ) -> None:
        """Take the keys, the limits, where plain keys are enough, the master key, and the clock in UTC milliseconds."""
        self._ring = ring
        self._limiter = limiter
        self._plain_keys = plain_keys
        self._digest_key = digest_key(master)
        self._clock = clock
        self._refusals: dict[tuple[str, str], int] = {}

    async def admit(self, pool: AsyncConnectionPool[AsyncConnection], request: Request, api_key: str | None) -> Caller:
        """Return the caller of a request.

        Raises: ApiKeyWrong, the signature's errors, NonceReused, TooManyRequests, NotAllowed.
        """
        row = await self._proven(pool, request, api_key)
        act = await self._act(request, row)
        try:
            self._limiter.take(row)
        except TooManyRequests as error:
            self._note(request, act, error)
            raise
        begin_act(request.scope, act)
        caller = caller_of_key(row, act)
        if caller.role in READING_ROLES and request.method not in _READS:
            raise NotAllowed(f"key {caller.key_id}: expected a request that only reads, got {request.method}")
        return caller

    async def _proven(
        self, pool: AsyncConnectionPool[AsyncConnection], request: Request, api_key: str | None
    ) -> CalledKey:
        if KEY_HEADER in request.headers:
            return await self._signed(pool, request)
        if api_key is not None:
            return await self._plain(pool, request, api_key)
        certificate = request.scope.get("extensions", {}).get(CERTIFICATE_SCOPE)
        if certificate is not None:
            return await self._certified(pool, request, cast(bytes, certificate))
        raise ApiKeyWrong("key: expected a signed request or the header X-Api-Key, <key id>.<secret>, got neither")

    async def _signed(self, pool: AsyncConnectionPool[AsyncConnection], request: Request) -> CalledKey:
        by = signed_by(request.headers)
        if by is None:
            raise SignatureMissing(f"header {KEY_HEADER}: expected a key id, got none of that form")
        known = await self._ring.find(pool, by.key_id)
        now_ms = self._clock()
        fault = judge_request(
            request.headers,
            secret=_NO_SECRET if known is None or known.secret is None else known.secret,
            method=request.method,
            path=path_of(request),
            body=await request.body(),
            now_s=now_ms // _MS,
        )
        if known is None or known.secret is None or not known.is_in_force(now_ms):
            fault = SignatureFault.MISSING if fault is SignatureFault.MISSING else SignatureFault.WRONG
        if known is None or fault is not None:
            error = ERROR_OF_FAULT[fault or SignatureFault.WRONG](_TOLD[fault or SignatureFault.WRONG])
            raise await self._refused(request, None if known is None else known.row, error)
        if f"{request.method} {_route_of(request)}" not in REPEATABLE:
            async with pool.connection() as conn:
                is_new = await take_nonce(conn, by.key_id, by.nonce, now=from_ms(now_ms))
            if not is_new:
                told = "nonce: expected one that was never used, got a copy; sign each try anew"
                raise await self._refused(request, known.row, NonceReused(told))
        return known.row

    async def _plain(self, pool: AsyncConnectionPool[AsyncConnection], request: Request, api_key: str) -> CalledKey:
        parts = split_api_key(api_key)
        if parts is None:
            raise ApiKeyWrong("header X-Api-Key: expected <key id>.<secret>, got none of that form")
        key_id, secret = parts
        known = await self._ring.find(pool, key_id)
        stored = _NO_SECRET if known is None else bytes(known.row.sha256)
        is_right = hmac.compare_digest(stored, digest_secret(secret))
        if known is None or not is_right or not known.is_in_force(self._clock()):
            told = "header X-Api-Key: expected a key in force, got one that is unknown, wrong or taken back"
            raise await self._refused(request, None if known is None else known.row, ApiKeyWrong(told))
        if not self._may_be_plain(request, Role(known.row.role)):
            told = f"key {key_id}: expected a signed request from there, got the header X-Api-Key"
            raise await self._refused(request, known.row, SignatureMissing(told))
        return known.row

    async def _certified(
        self, pool: AsyncConnectionPool[AsyncConnection], request: Request, certificate: bytes
    ) -> CalledKey:
        known = await self._ring.find(pool, certificate)
        if known is None or known.row.certificate_sha256 != certificate or not known.is_in_force(self._clock()):
            raise ApiKeyWrong("client certificate: expected one that is bound to a key in force, got another")
        return known.row

    def _may_be_plain(self, request: Request, role: Role) -> bool:
        match self._plain_keys:
            case PlainKeys.EVERYWHERE:
                return True
            case PlainKeys.NEVER:
                return False
            case PlainKeys.CONSUMERS if role is Role.CONSUMER:
                return True
            case _:
                return is_from_here(request)

    async def _refused(self, request: Request, row: CalledKey | None, error: VendingError) -> VendingError:
        """Let a refusal of a key that is known into the trail, and return it."""
        if row is not None:
            self._note(request, await self._act(request, row), error)
        return error

    def _note(self, request: Request, act: Act, error: VendingError) -> None:
        now_ms, which = self._clock(), (act.key_id, error.code)
        if now_ms - self._refusals.get(which, -_REFUSALS_EVERY_MS) < _REFUSALS_EVERY_MS:
            return
        if len(self._refusals) >= _REFUSALS_MAX:
            self._refusals.clear()
        self._refusals[which] = now_ms
        act.at_gate = True
        begin_act(request.scope, act)

    async def _act(self, request: Request, row: CalledKey) -> Act:
        return Act(
            actor=row.vendor_name or "",
            role=Role(row.role),
            key_id=row.key_id,
            vendor_id=row.vendor_id,
            terminal=row.terminal,
            act=f"{request.method} {_route_of(request)}",
            request_digest=digest_request(
                self._digest_key, method=request.method, path=path_of(request), body=await request.body()
            ),
        )


_TOLD = {
    SignatureFault.MISSING: "signature: expected X-Prepaid-Timestamp, -Nonce and -Signature of the form, got less",
    SignatureFault.WRONG: "signature: expected one of these bytes under a key in force, got another",
    SignatureFault.EXPIRED: "signature: expected one of the last 5 minutes, got an older or a later one",
}


def path_of(request: Request) -> str:
    """Return a request's path with its query as they stand in the request line."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return (raw + (b"?" + query if query else b"")).decode("latin-1")


def is_from_here(request: Request) -> bool:
    """Tell whether a request comes from this machine, with nothing that says it stands between."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _route_of(request: Request) -> str:
    return getattr(request.scope.get("route"), "path", request.url.path)
