"""A running process sees which vending keys were loaded and retired since it started.

Stage: below the soft security module, which asks before it uses a key. The database is asked on a connection of its
own, every few seconds at most, and not at all while nothing is minted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from db.keys import last_key_event
from db.pool import APPLICATION_ROLE, connect
from vending.edges.keys import read_vending_keys
from vending.key_custody import SealedVendingKey

# A retired key is used for so long at most.
LOOK_EVERY_MS = 5_000


class KeyWatch:
    """Tells of changed keys; the first answer is everything there is."""

    def __init__(self, database_url: str, *, clock: Callable[[], int]) -> None:
        """Take the address of the database and a monotonic clock in milliseconds."""
        self._database_url = database_url
        self._clock = clock
        self._lock = asyncio.Lock()
        self._looked_ms: int | None = None
        self._seen: int | None = None

    async def __call__(self) -> list[SealedVendingKey] | None:
        """Return all keys when they have changed since the last answer; None when not, or when just looked."""
        async with self._lock:
            now_ms = self._clock()
            if self._looked_ms is not None and now_ms - self._looked_ms < LOOK_EVERY_MS:
                return None
            async with await connect(self._database_url, application="prepaid-keys", role=APPLICATION_ROLE) as conn:
                # Before the keys: one that comes between the two is read twice rather than never.
                latest = await last_key_event(conn)
                changed = None if latest == self._seen else await read_vending_keys(conn)
            self._looked_ms, self._seen = now_ms, latest
            return changed
