"""What an ingest process holds of the 32 shards: taken by lease up to its share, given back above it.

Stage: beside ingest, between batches. Counts the processes, takes what is free, waits until what a last owner left
is due again, and says which shards are to leave; ingest stops reading those, and only then they are given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set
from typing import Final

import structlog
from psycopg import AsyncConnection

from db.leases import Lease, Owner, fence, give_back, release_leases, take_leases
from db.workers import beat, retire
from headend.edges.stream import StreamReader
from headend.shares import Census, surplus
from protocols.topics import LANES, SHARDS

_log = structlog.get_logger("ingest")

# A word a second, five within a lease that is shorter than 5 s: whoever lives is heard of at least twice within the
# half lease after which it does not count. Each word is one statement of a fraction of a millisecond.
LOOK_EVERY_S: Final = 1.0
_WORDS_IN_A_LEASE: Final = 5


class Holding:
    """The shards of one ingest process.

    Invariants: `leases` are those we took and have not given back or lost; `reading` and `leaving` are some of them,
    `leaving` some of `reading`; while shards are leaving none is taken.
    """

    def __init__(self, owner: Owner) -> None:
        self.leases: dict[int, Lease] = {}
        self.reading: set[int] = set()
        self.leaving: frozenset[int] = frozenset()
        self._owner = owner
        self._census: Census | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._awaited: frozenset[int] = frozenset()
        self._every_s = min(LOOK_EVERY_S, owner.lease_s / _WORDS_IN_A_LEASE)
        self._look_at_s = 0.0
        self._renew_at_s = 0.0

    async def begin(self, conn: AsyncConnection) -> None:
        """Begin on a new session: what we hold is renewed first, what we hold no more is for others."""
        # At once: a taker ends the session that is noted with a lease that ran out, and that is this one now.
        self._renew_at_s = self._look_at_s = 0.0
        if not self.leases:
            await release_leases(conn, self._owner)

    async def look(self, conn: AsyncConnection, *, lag_ms: int | None) -> bool:
        """Say that we live, renew, take or choose what leaves, if it is time; return whether leases were renewed.

        Raises: LeaseLost.
        """
        now_s = time.monotonic()
        if now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + self._every_s
        processes = await beat(conn, self._owner, lag_ms=lag_ms)
        self._census = self._census.then(processes) if self._census else Census(last=processes, before=processes)
        renews = bool(self.leases) and now_s >= self._renew_at_s
        if renews:
            await fence(conn, self._owner, self.leases.values())
            self._renew_at_s = now_s + self._owner.lease_s / _WORDS_IN_A_LEASE
        await self._balance(conn, self._census)
        return renews

    async def _balance(self, conn: AsyncConnection, census: Census) -> None:
        """Take free shards up to our share, or choose which are above it."""
        if self.leaving:
            return
        room = census.most_taken - len(self.leases)
        if room > 0:
            taken = await take_leases(
                conn, self._owner, set(range(SHARDS)) - self.leases.keys(), most=room, lanes=LANES
            )
            if taken:
                self.leases.update({lease.shard: lease for lease in taken})
                _log.info("leases_taken", owner=self._owner.name, shards=len(taken), held=len(self.leases))
        elif self.reading == self.leases.keys():
            # What is taken over just now is read first: else nobody knows who waits for what.
            self.leaving = surplus(self.reading, census.most_kept)

    def leave_all(self) -> None:
        """Let all shards that we read leave, to end."""
        self.leaving = frozenset(self.reading)

    async def arrived(self, reader: StreamReader, *, wait_s: float) -> list[Lease]:
        """Return leases that are new to us and may be read: what their last owner left comes again first, in order.

        Others are read meanwhile; only who reads none waits here. Raises: StreamUnavailable.
        """
        if self._waiting is None:
            self._awaited = frozenset(self.leases.keys() - self.reading)
            if not self._awaited:
                return []
            self._waiting = asyncio.create_task(reader.await_redelivery(sorted(self._awaited)))
        if not self.reading:
            await asyncio.wait({self._waiting}, timeout=wait_s)
        if not self._waiting.done():
            return []
        waiting, self._waiting = self._waiting, None
        waiting.result()
        return [self.leases[shard] for shard in sorted(self._awaited)]

    async def part_with(self, conn: AsyncConnection, shards: Set[int]) -> None:
        """Give shards back, of which nothing is on its way or in our hands."""
        self.reading -= shards
        self.leaving -= shards
        for shard in shards:
            del self.leases[shard]
        await give_back(conn, self._owner, shards)
        _log.info("leases_given_back", owner=self._owner.name, shards=len(shards), held=len(self.leases))

    async def end(self, conn: AsyncConnection) -> None:
        """Give all back and say that we stop."""
        await release_leases(conn, self._owner)
        await retire(conn, self._owner)
        self.forget()

    def forget(self) -> None:
        """Hold nothing: another owner has a shard of ours."""
        self.stop_waiting()
        self.leases.clear()
        self.reading.clear()
        self.leaving = frozenset()

    def stop_waiting(self) -> None:
        """End what runs beside."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
