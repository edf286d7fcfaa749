"""The interface keys that are called with, as this process knows them: at most a second old.

Stage: below the gate. The first call with a key reads its row. Twice a second one number is read that counts the
changes of keys, vendors and limits; when it has moved, the keys of the last minute are read again in one statement and
the others forgotten. So a request costs no look-up, however many vendors call, what is changed is seen within a second,
and while the database does not answer nobody is let in on what was known. Never: a secret in a log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from db.api_access import CalledKey, access_version, drop_nonces, read_called_keys
from vending.key_custody import open_api_secret
from vending.security import SealBroken
from vending.signatures import NONCE_KEPT_S
from vending.sts.errors import InvalidKey

# Changes are looked for so often; a request that finds the look under way does not wait for it,
LOOK_EVERY_MS = 400
# unless the last one is older than this: with the look itself still within the second.
AGE_MS_MAX = 900
# Keys that were called with so lately are read again after a change: a station that sells at all does so by the minute.
_CALLED_MS = 60_000
# A row is some 1 kB, so 20 MB; also what keys that do not exist can take.
_KNOWN_MAX = 20_000
# Numbers of signed requests are dropped in one statement that finds some thousands.
_DROP_EVERY_MS = 60_000

_log = structlog.get_logger(__name__)

# A key id, or the digest of a certificate.
_Name = str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """An interface key with its opened secret; None where it cannot sign."""

    row: CalledKey
    secret: bytes | None = field(repr=False)

    def is_in_force(self, now_ms: int) -> bool:
        """Tell whether the key is good at an instant: neither taken back nor replaced by then."""
        return self.row.active and (self.row.ends_at is None or from_ms(now_ms) < self.row.ends_at)


class KeyRing:
    """Finds interface keys.

    Invariants: an answer is at most `AGE_MS_MAX` older than the question, plus one look at the database; `_known` holds
    nothing older than `_version`.
    """

    def __init__(
        self,
        *,
        master: bytes,
        clock: Callable[[], int],
        steady_ms: Callable[[], int],
        look_every_ms: int = LOOK_EVERY_MS,
    ) -> None:
        """Take the master key, the wall clock in UTC milliseconds and a steady one."""
        self._master = master
        self._clock = clock
        self._steady_ms = steady_ms
        self._look_every_ms = look_every_ms
        self._lock = asyncio.Lock()
        self._looked_ms: int | None = None
        self._dropped_ms: int | None = None
        self._version: int | None = None
        # None stands for a key that is not there: an unknown one costs no look-up each time either.
        self._known: dict[_Name, KnownKey | None] = {}
        self._called_ms: dict[_Name, int] = {}

    async def find(self, pool: AsyncConnectionPool[AsyncConnection], name: _Name) -> KnownKey | None:
        """Return the key of an id or of a certificate's digest, whether it is in force or not; None for none.

        Raises: psycopg's OperationalError while the database does not answer.
        """
        await self._look_again(pool)
        if name not in self._known and len(self._known) >= _KNOWN_MAX:
            self._known, self._called_ms = {}, {}
        self._called_ms[name] = self._steady_ms()
        if name in self._known:
            return self._known[name]
        version = self._version
        async with pool.connection() as conn:
            found = await self._read(conn, [name])
        # A change that was seen meanwhile may be newer than what was read.
        if version == self._version:
            self._known |= found
        return found[name]

    async def _look_again(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        age_ms = self._age_ms()
        if age_ms < self._look_every_ms or (self._lock.locked() and age_ms < AGE_MS_MAX):
            return
        async with self._lock:
            if self._age_ms() < self._look_every_ms:
                return
            began_ms = self._steady_ms()
            async with pool.connection() as conn:
                # Before the keys: what is changed between the two is read twice rather than never.
                version = await access_version(conn)
                if version != self._version:
                    lately = [name for name, at_ms in self._called_ms.items() if began_ms - at_ms < _CALLED_MS]
                    self._known = await self._read(conn, lately) if lately else {}
                    self._called_ms = {name: self._called_ms[name] for name in lately if name in self._called_ms}
                    self._version = version
                await self._drop_nonces(conn, began_ms)
            # As of the beginning: what was changed meanwhile is seen the next time.
            self._looked_ms = began_ms

    def _age_ms(self) -> int:
        return AGE_MS_MAX if self._looked_ms is None else self._steady_ms() - self._looked_ms

    async def _read(self, conn: AsyncConnection, names: list[_Name]) -> dict[_Name, KnownKey | None]:
        key_ids = [name for name in names if isinstance(name, str)]
        certificates = [name for name in names if isinstance(name, bytes)]
        found: dict[_Name, KnownKey | None] = dict.fromkeys(names)
        for row in await read_called_keys(conn, key_ids=key_ids, certificates=certificates):
            known = self._opened(row)
            for name in (row.key_id, row.certificate_sha256):
                if name in found:
                    found[name] = known
        return found

    def _opened(self, row: CalledKey) -> KnownKey:
        before = self._known.get(row.key_id)
        if before is not None and before.row.sealed == row.sealed:
            return KnownKey(row=row, secret=before.secret)
        if row.sealed is None:
            return KnownKey(row=row, secret=None)
        try:
            return KnownKey(row=row, secret=open_api_secret(self._master, row.key_id, row.sealed))
        except (SealBroken, InvalidKey):
            _log.error("api_secret_unreadable", key_id=row.key_id)
            return KnownKey(row=row, secret=None)

    async def _drop_nonces(self, conn: AsyncConnection, now_ms: int) -> None:
        if self._dropped_ms is not None and now_ms - self._dropped_ms < _DROP_EVERY_MS:
            return
        await drop_nonces(conn, before=from_ms(self._clock()) - timedelta(seconds=NONCE_KEPT_S))
        self._dropped_ms = now_ms
