"""The ingest process: broker to database, one transaction a batch, acknowledged after its commit.

Stage: the edge of the READ story. Takes messages in stream order from the shards it owns, plans them with the pure
pipeline, writes readings, quarantine, alarms, orders and counts in one transaction under its leases, and only then
acknowledges. Whatever fails, the same messages are taken again and cost nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import partial

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout, UniqueViolation

from billing.calendar import LocalCalendar, from_ms
from db.errors import LeaseLost
from db.leases import Lease, Owner, fence, release_leases, take_leases
from db.named import sql
from db.orders import PostingRules, wall_ms
from db.pool import APPLICATION_ROLE, connect
from db.readings import ensure_partitions, partition_days
from headend.batch_plan import plan_batch
from headend.edges.cache import StateCache
from headend.edges.calendar_sweep import CalendarSweep
from headend.edges.commit import Batch, encode_plan, reconsider, settle_account, write_batch
from headend.edges.event_notices import OutageWatch
from headend.edges.metrics import IngestMetrics
from headend.edges.stream import StreamMessage, StreamReader, StreamUnavailable
from headend.pipeline import Plan, Received, receive, slices
from headend.validate import DAY_MS, in_late_window
from protocols.topics import SHARDS

_log = structlog.get_logger("ingest")

# While no batch comes, leases are renewed and the feed is read this often: 50 times within a 10 s lease.
IDLE_WAIT_S = 0.2
# 0.2 s doubling to 5 s: a database restart of 2 s is met within 3 s, an outage of an hour costs 720 tries.
RETRY_S_FIRST, RETRY_S_MAX = 0.2, 5.0
# A message is at most 64 kB and a block holds 96 readings: 2,000 messages are 128 MB and 192,000 readings at worst.
BATCH_MESSAGES_MAX = 2_000
BATCH_BYTES_MAX = 32_000_000
# Late readings cost ten times as much as others: 140,000 in one transaction took 14 s (2026-11-21), above a lease.
READINGS_PER_TRANSACTION_MAX = 50_000
# Accounts left over by batches that are settled in one go; more wait for the next round.
RECHECKS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """What an ingest process needs to know. Times in seconds."""

    database_url: str
    nats_url: str
    calendar: LocalCalendar
    lease_s: float
    ack_wait_s: float
    stale_reading_s: int | None
    shards: frozenset[int] = frozenset(range(SHARDS))
    takes_leftovers: bool = True
    clock: Callable[[], int] = wall_ms


class _Attempt(Enum):
    """How a batch is planned: by what is known; read again; read again, and with what is stored but void as known."""

    KNOWN = 1
    REREAD = 2
    AS_STORED = 3


@dataclass(slots=True, kw_only=True)
class _Load:
    """Messages in hand: decoded, cut into transactions, acknowledged when the last one is committed."""

    messages: Sequence[StreamMessage]
    parts: deque[Sequence[Received]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """What is written next, planned already; the meters it is about, by serial."""

    batch: Batch
    serials: set[str]


class Ingest:
    """One ingest process. While the database writes a transaction, the next is decoded and planned.

    Invariants: a message is acknowledged only after the commit of the batch that stored it; states in the cache are
    those of the database at the last commit or forgotten; nothing is written for a shard without its lease.
    """

    def __init__(self, settings: IngestSettings, metrics: IngestMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        name = f"ingest-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = Owner(role="ingest", name=name, lease_s=settings.lease_s)
        self._cache = StateCache(settings.calendar, settings.clock)
        stale_ms = None if settings.stale_reading_s is None else settings.stale_reading_s * 1000
        self._rules = PostingRules(calendar=settings.calendar, stale_ms=stale_ms, clock=settings.clock)
        self._sweep = CalendarSweep(self._rules)
        self._outages = OutageWatch(settings.clock)
        self._leases: dict[int, Lease] = {}
        self._reading: set[int] = set()
        self._load: _Load | None = None
        self._next: _Load | None = None
        self._ahead: _Ahead | None = None
        self._stop = asyncio.Event()
        self._days: set[date] = set()
        self._today: date | None = None
        self._renew_at_s = 0.0
        self._take_at_s = 0.0
        self._retry_s = RETRY_S_FIRST

    async def run(self, stop: asyncio.Event) -> None:
        """Ingest until `stop` is set; outages of database and broker are waited out."""
        self._stop = stop
        async with StreamReader.connect(self._settings.nats_url, ack_wait_s=self._settings.ack_wait_s) as reader:
            while not stop.is_set():
                try:
                    await self._session(reader, stop)
                except LeaseLost as lost:
                    _log.warning("lease_lost", owner=self._owner.name, detail=str(lost))
                    await self._forget(reader)
                except StreamUnavailable as error:
                    _log.warning("broker_away", detail=str(error)[:200], retry_s=self._retry_s)
                    await self._backoff(stop)
                except (OperationalError, InterfaceError, IdleInTransactionSessionTimeout) as error:
                    # The commit may have happened or not: forget what we know, take the same messages again. A
                    # session that was ended because we were paused inside its transaction is told so in its own way.
                    _log.warning("database_away", detail=str(error).strip()[:200], retry_s=self._retry_s)
                    self._know_nothing()
                    await self._backoff(stop)

    async def _session(self, reader: StreamReader, stop: asyncio.Event) -> None:
        """Work on one database connection until told to stop. A batch that failed is tried again first."""
        # Below the lease: a paused owner's transaction has ended before another takes its shards.
        below_lease_s = max(1, int(self._settings.lease_s / 2))
        async with await connect(
            self._settings.database_url,
            application=self._owner.name,
            idle_in_transaction_s=below_lease_s,
            lock_timeout_s=below_lease_s,
            role=APPLICATION_ROLE,
        ) as conn:
            self._days = await partition_days(conn)
            # At once: a taker ends the session that is noted with a lease that ran out, and that is this one now.
            self._renew_at_s = 0.0
            # What was taken ahead is stored before the end: else it would come to the next owner only after a wait.
            while not stop.is_set() or self._load is not None:
                await self._keep_leases(conn, reader)
                if self._load is None:
                    messages = await reader.take(
                        messages_max=BATCH_MESSAGES_MAX, bytes_max=BATCH_BYTES_MAX, wait_s=IDLE_WAIT_S
                    )
                    self._load = _decoded(messages) if messages else None
                if self._load is not None:
                    await self._store(conn, reader, self._load)
                    # Only after the commit: the broker resends on a crash and the key drops the copy.
                    await reader.acknowledge(self._load.messages)
                    self._load, self._next = self._next, None
                await self._follow_up(conn)
            await self._refresh(conn)
            await self._save_feed_position(conn)
            await release_leases(conn, self._owner)

    async def _keep_leases(self, conn: AsyncConnection, reader: StreamReader) -> None:
        """Renew our leases and take those that others have lost."""
        now_s = time.monotonic()
        if self._leases and now_s >= self._renew_at_s:
            await self._renew(conn)
            await self._save_feed_position(conn)
        missing = self._settings.shards - self._leases.keys()
        if missing and now_s >= self._take_at_s:
            self._take_at_s = now_s + 1.0
            taken = await take_leases(conn, self._owner, missing)
            if taken:
                self._leases.update({lease.shard: lease for lease in taken})
                _log.info("leases_taken", owner=self._owner.name, shards=len(taken), held=len(self._leases))
        # Not only what was taken now: a wait that database or broker interrupted has to be gone through again.
        if self._leases.keys() - self._reading:
            await self._begin_reading(conn, reader)

    async def _begin_reading(self, conn: AsyncConnection, reader: StreamReader) -> None:
        """Read the shards whose leases are new to us; what their last owner left comes again first, in order."""
        fresh = sorted(self._leases.keys() - self._reading)
        waiting = asyncio.create_task(reader.await_redelivery(fresh))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=self._settings.lease_s / 5)
                await self._renew(conn)
            waiting.result()
        finally:
            waiting.cancel()
        self._cache.own(self._leases[shard] for shard in fresh)
        self._sweep.begin_anew()
        await reader.own(set(self._leases), leftovers=self._settings.takes_leftovers and 0 in self._leases)
        self._reading = set(self._leases)

    async def _renew(self, conn: AsyncConnection) -> None:
        await fence(conn, self._owner, self._leases.values())
        self._renew_at_s = time.monotonic() + self._settings.lease_s / 5

    async def _forget(self, reader: StreamReader) -> None:
        """Give up everything: another owner has a shard of ours, and its messages come to that one."""
        self._leases.clear()
        self._reading.clear()
        self._cache = StateCache(self._settings.calendar, self._settings.clock)
        self._load = self._next = self._ahead = None
        await reader.own(set(), leftovers=False)

    def _know_nothing(self) -> None:
        """Forget all states, and what was planned by them."""
        self._cache.clear()
        self._ahead = None

    async def _store(self, conn: AsyncConnection, reader: StreamReader, load: _Load) -> None:
        """Write messages, in one transaction unless they hold very many readings."""
        several = len(load.parts) > 1 or len(load.messages) >= BATCH_MESSAGES_MAX
        while load.parts:
            if several:
                # Under a backlog a batch has waited behind another: it must not be sent again meanwhile.
                await reader.in_progress([*load.messages, *(self._next.messages if self._next else ())])
            await self._store_part(conn, reader, load)
            load.parts.popleft()

    async def _store_part(self, conn: AsyncConnection, reader: StreamReader, load: _Load) -> None:
        """Write the first part of some messages in one transaction, planned if it is not yet."""
        began_s = time.monotonic()
        await self._refresh(conn)
        received = load.parts[0]
        for attempt in _Attempt:
            batch = self._ahead.batch if self._ahead else await self._plan(conn, received, attempt)
            self._ahead = None
            meanwhile = partial(self._plan_ahead, reader, load, batch.made)
            try:
                await write_batch(
                    conn, batch, owner=self._owner, leases=self._leases, rules=self._rules, meanwhile=meanwhile
                )
                break
            except UniqueViolation:
                # A reading we thought new is there: what we knew was old, or the reading is void since.
                self._know_nothing()
                if attempt is _Attempt.AS_STORED:
                    raise
        self._learn(batch)
        took_s = time.monotonic() - began_s
        self._metrics.batch_stored(batch.made.counts, len(received), received[-1].stored_at_ms, took_s)

    async def _plan(
        self, conn: AsyncConnection, received: Sequence[Received], attempt: _Attempt = _Attempt.KNOWN
    ) -> Batch:
        """Plan messages with states read where they are not known, and make the partitions that are missing."""
        serials = _serials(received)
        await self._cache.load(conn, serials)
        if attempt is _Attempt.AS_STORED:
            await self._cache.raise_marks(conn, serials)
        made = plan_batch(received, self._cache.table, self._settings.calendar)
        if attempt is _Attempt.AS_STORED:
            # Marks of readings that are void are for this batch alone.
            made.stale_serials.update(serials & self._cache.table.place_of.keys())
        missing = _days(made) - self._days
        if missing:
            # Before the transaction, never inside it.
            await ensure_partitions(conn, missing)
            self._days |= missing
        return encode_plan(made)

    def _plan_ahead(self, reader: StreamReader, load: _Load, written: Plan) -> None:
        """Plan what comes after a batch as if it were committed; if it is not, all of this is forgotten.

        Only what needs nothing from the database: all meters known, all partitions there.
        """
        received = self._following(reader, load)
        serials = _serials(received)
        if not received or written.stale_serials or not serials <= self._cache.table.place_of.keys():
            return
        self._cache.adopt(written)
        made = plan_batch(received, self._cache.table, self._settings.calendar)
        if _days(made) <= self._days:
            self._ahead = _Ahead(batch=encode_plan(made), serials=serials)

    def _following(self, reader: StreamReader, load: _Load) -> Sequence[Received]:
        """Return what is stored after the part that is being written; nothing if nothing is here, or we are to end."""
        if len(load.parts) > 1:
            return load.parts[1]
        if self._next is None and not self._stop.is_set():
            messages = reader.take_here(messages_max=BATCH_MESSAGES_MAX, bytes_max=BATCH_BYTES_MAX)
            self._next = _decoded(messages) if messages else None
        return self._next.parts[0] if self._next else ()

    def _learn(self, batch: Batch) -> None:
        """Take over what a committed batch has left; what was planned meanwhile has done so with the most of it."""
        if self._ahead is None:
            self._cache.adopt(batch.made)
        else:
            reconsider(self._ahead.batch, batch.amended)
        self._cache.amend(batch.amended)

    async def _follow_up(self, conn: AsyncConnection) -> None:
        """After a batch or a pause: read the feed, settle what batches would not wait for."""
        await self._refresh(conn)
        cursor = await conn.execute(sql("take_rechecks"), {"shards": list(self._leases), "most": RECHECKS_MAX})
        for account_id, _ in await cursor.fetchall():
            await settle_account(conn, account_id, rules=self._rules)
        await self._outages.step(conn)
        today = self._settings.calendar.day_of(self._rules.clock())
        if today != self._today:
            self._today = today
            if self._cache.drop_assigned_from(today):
                self._ahead = None
        if await self._sweep.step(conn, self._leases):
            self._know_nothing()

    async def _refresh(self, conn: AsyncConnection) -> None:
        """Read the change feed, and look at every account in it: now, and again with what is planned already."""
        crossing = await self._cache.refresh(conn, self._leases)
        if self._ahead is not None:
            changed = self._cache.refreshed
            again = {account_id for serial, account_id in changed.items() if serial in self._ahead.serials}
            self._ahead.batch.made.candidates.update(again)
        for account_id in crossing:
            await settle_account(conn, account_id, rules=self._rules)

    async def _save_feed_position(self, conn: AsyncConnection) -> None:
        """Keep in the lease rows up to where the feed was read: a new owner goes on from there."""
        await conn.execute(
            sql("save_feed_position"),
            {"since": str(self._cache.feed_from), "shards": list(self._reading), "owner": self._owner.name},
        )

    async def _backoff(self, stop: asyncio.Event) -> None:
        """Wait, unless told to stop; each time longer, until a round has succeeded."""
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), retry_s)


def _decoded(messages: Sequence[StreamMessage]) -> _Load:
    received = [receive(m.shard, m.topic, m.payload, m.stored_at_ms) for m in messages]
    return _Load(messages=messages, parts=deque(slices(received, READINGS_PER_TRANSACTION_MAX)))


def _serials(received: Iterable[Received]) -> set[str]:
    return {message.uplink.serial for message in received if message.uplink is not None}


def _days(made: Plan) -> set[date]:
    """Return the days whose partitions a plan needs."""
    days = {row.read_at.date() for row in made.rows}
    if made.ordinary is not None:
        days |= {from_ms(day * DAY_MS).date() for day in set((made.ordinary.columns.at_ms // DAY_MS).tolist())}
    return days | {late.row.read_at.date() for late in made.late if in_late_window(late.meter, late.at_ms)}
