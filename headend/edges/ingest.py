"""The ingest process: broker to database, one transaction a batch, acknowledged after its commit.

Stage: the edge of the READ story. Takes messages in stream order from the shards it owns, plans them with the pure
pipeline, writes readings, quarantine, alarms, orders and counts in one transaction under its leases, and only then
acknowledges. Whatever fails, the same messages are taken again and cost nothing twice. Any number of these processes
share the shards (`headend.edges.holding`); one that leaves a shard has stored and acknowledged all it had of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import partial
from itertools import chain

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout, UniqueViolation

from billing.calendar import LocalCalendar, from_ms
from db.errors import LeaseLost
from db.leases import Lease, Owner
from db.named import sql
from db.orders import PostingRules, wall_ms
from db.pool import APPLICATION_ROLE, connect
from db.readings import ensure_partitions, partition_days
from headend.batch_plan import plan_batch
from headend.edges.batch_writer import BatchWriter
from headend.edges.cache import StateCache
from headend.edges.calendar_sweep import CalendarSweep
from headend.edges.commit import Batch, encode_plan, reconsider, settle_account
from headend.edges.event_notices import OutageWatch
from headend.edges.holding import Holding
from headend.edges.metrics import IngestMetrics
from headend.edges.release_desk import ReleaseDesk
from headend.edges.stream import StreamMessage, StreamReader, StreamUnavailable
from headend.gaps import Intervals
from headend.pipeline import Plan, Received, receive, slices
from headend.validate import DAY_MS, in_late_window

_log = structlog.get_logger("ingest")

# While no batch comes, leases are renewed and the feed is read this often: 50 times within a 10 s lease.
IDLE_WAIT_S = 0.2
# 0.2 s doubling to 5 s: a database restart of 2 s is met within 3 s, an outage of an hour costs 720 tries.
RETRY_S_FIRST, RETRY_S_MAX = 0.2, 5.0
# A batch is what has come while the one before was written: one message when idle, up to these limits under a backlog.
# A message is at most 64 kB and a block holds 96 readings: 2,000 messages are 128 MB and 192,000 readings at worst; the
# bytes keep it to 32 MB, which is 2,000 blocks of 16 kB. More a batch gains nothing: 0.8 of bare COPY at 1,000
# readings, 0.9 at 20,000.
BATCH_MESSAGES_MAX = 2_000
BATCH_BYTES_MAX = 32_000_000
# Late readings cost ten times as much as others: 140,000 in one transaction took 14 s (2026-11-21), above a lease.
READINGS_PER_TRANSACTION_MAX = 50_000
# For so long batch follows batch before the feed is read, leases are looked after and accounts are settled: as often as
# an idle process does so.
CHAIN_S = IDLE_WAIT_S
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
    clock: Callable[[], int] = wall_ms


class _Attempt(Enum):
    """How a batch is planned: by what is known; read again; read again, and with what is stored but void as known."""

    KNOWN = 1
    REREAD = 2
    AS_STORED = 3


@dataclass(slots=True, kw_only=True, eq=False)
class _Load:
    """Messages in hand, acknowledged when the last of their `parts` is committed."""

    messages: Sequence[StreamMessage]
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """Messages of one transaction, decoded."""

    load: _Load
    received: Sequence[Received]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """What is written next, planned already; the meters it is about, by serial."""

    batch: Batch
    serials: set[str]


class Ingest:
    """One ingest process. While the database writes a transaction, the next is decoded, planned and begun.

    Invariants: a message is acknowledged only after the commit of the batch that stored it; states in the cache are
    those of the database at the last commit or forgotten; nothing is written for a shard without its lease; a shard
    is given back only when nothing of it is in our hands.
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
        self._intervals = Intervals()
        self._outages = OutageWatch(settings.clock)
        self._released = ReleaseDesk(self._owner, self._rules)
        self._holding = Holding(self._owner)
        self._lag_ms: int | None = None
        # In the order of the stream; the first `_begun` of them are being written.
        self._parts: deque[_Part] = deque()
        self._begun = 0
        self._committed: list[_Load] = []
        self._telling: asyncio.Task[None] | None = None
        self._ahead: _Ahead | None = None
        self._stop = asyncio.Event()
        self._days: set[date] = set()
        self._today: date | None = None
        self._retry_s = RETRY_S_FIRST

    async def run(self, stop: asyncio.Event) -> None:
        """Ingest until `stop` is set; outages of database and broker are waited out."""
        self._stop = stop
        async with StreamReader.connect(self._settings.nats_url, ack_wait_s=self._settings.ack_wait_s) as reader:
            try:
                while not stop.is_set():
                    await self._try_session(reader, stop)
            finally:
                self._holding.stop_waiting()
        # Only now: what we had asked for would go on coming to us, and newer messages to the next owner.
        await self._release()

    async def _try_session(self, reader: StreamReader, stop: asyncio.Event) -> None:
        """Work until told to stop, or until something fails; wait then, if that is of use."""
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
        """Work on a pair of database connections until told to stop. A batch that failed is tried again first."""
        async with self._connected() as (conn, writer):
            self._days = await partition_days(conn)
            await self._follow_rules(conn)
            await self._holding.begin(conn)
            while not stop.is_set():
                await self._round(conn, reader, writer)
            # What was given to us is stored before the end: else it would come to the next owner only after a wait.
            await reader.ask_no_more()
            while await self._round(conn, reader, writer):
                pass
            await self._acknowledge(reader)
            await self._refresh(conn)
            await self._save_feed_position(conn)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[AsyncConnection, BatchWriter]]:
        """Connect; what is asked between batches goes to the first of the connections that batches are written on."""
        async with await self._connect() as conn, await self._connect() as second:
            writer = BatchWriter((conn, second), self._owner, self._rules)
            try:
                yield conn, writer
            finally:
                await writer.abandon()

    async def _round(self, conn: AsyncConnection, reader: StreamReader, writer: BatchWriter) -> bool:
        """Look after the leases, write what is in hand or comes within a moment; tell whether there was anything."""
        await self._keep_leases(conn, reader)
        if not self._parts:
            messages = await reader.take(
                messages_max=BATCH_MESSAGES_MAX,
                bytes_max=BATCH_BYTES_MAX,
                wait_s=0 if self._stop.is_set() else IDLE_WAIT_S,
            )
            self._parts.extend(_decoded(messages))
        found = bool(self._parts)
        if found:
            await self._store(conn, reader, writer)
        else:
            self._lag_ms = 0
        # Also what was committed before a round that failed.
        await self._acknowledge_behind(reader)
        await self._follow_up(conn)
        self._retry_s = RETRY_S_FIRST
        return found

    async def _keep_leases(self, conn: AsyncConnection, reader: StreamReader) -> None:
        """Renew our leases, take what is free up to our share, and let go what is above it."""
        holding = self._holding
        if await holding.look(conn, lag_ms=self._lag_ms):
            await self._save_feed_position(conn)
        if self._stop.is_set():
            holding.leave_all()
        fresh = await holding.arrived(reader, wait_s=IDLE_WAIT_S)
        if fresh:
            await self._begin_reading(reader, fresh)
        if holding.leaving and reader.let_go(holding.leaving) and not self._in_hand(holding.leaving):
            await self._end_reading(conn, reader, holding.leaving)
        self._metrics.shards_held(len(holding.leases))

    async def _begin_reading(self, reader: StreamReader, fresh: Sequence[Lease]) -> None:
        """Read shards whose leases are new to us."""
        shards = {lease.shard for lease in fresh}
        self._cache.own(fresh)
        if self._holding.reading:
            self._sweep.take_over(shards)
        else:
            self._sweep.begin_anew()
        self._holding.reading |= shards
        await self._read_those_held(reader)

    async def _end_reading(self, conn: AsyncConnection, reader: StreamReader, shards: frozenset[int]) -> None:
        """Give shards back: what is known of them is settled and kept for their next owner, then forgotten."""
        await self._refresh(conn)
        await self._save_feed_position(conn)
        await self._holding.part_with(conn, shards)
        await self._read_those_held(reader)
        self._cache.leave(shards)

    async def _read_those_held(self, reader: StreamReader) -> None:
        await reader.own(set(self._holding.reading), leftovers=0 in self._holding.reading)

    def _in_hand(self, shards: Set[int]) -> bool:
        """Tell whether a message of some shards was taken and is not acknowledged."""
        return any(message.shard in shards for message in self._messages_in_hand())

    def _messages_in_hand(self) -> Iterator[StreamMessage]:
        loads = dict.fromkeys([*self._committed, *(part.load for part in self._parts)])
        return chain.from_iterable(load.messages for load in loads)

    async def _forget(self, reader: StreamReader) -> None:
        """Give up everything: another owner has a shard of ours, and its messages come to that one."""
        self._holding.forget()
        self._cache = StateCache(self._settings.calendar, self._settings.clock)
        self._parts.clear()
        self._committed.clear()
        self._begun, self._ahead = 0, None
        await self._read_those_held(reader)

    async def _release(self) -> None:
        """Give our leases back at the end; where that cannot be, they run out."""
        try:
            async with await self._connect() as conn:
                await self._holding.end(conn)
        except (OperationalError, InterfaceError) as error:
            _log.warning("leases_left", owner=self._owner.name, detail=str(error).strip()[:200])

    async def _connect(self) -> AsyncConnection:
        # Below the lease: a paused owner's transaction has ended before another takes its shards.
        below_lease_s = max(1, int(self._settings.lease_s / 2))
        return await connect(
            self._settings.database_url,
            application=self._owner.name,
            idle_in_transaction_s=below_lease_s,
            lock_timeout_s=below_lease_s,
            role=APPLICATION_ROLE,
        )

    def _know_nothing(self) -> None:
        """Forget all states, and what was planned by them; nothing is being written."""
        self._cache.clear()
        self._begun, self._ahead = 0, None

    async def _store(self, conn: AsyncConnection, reader: StreamReader, writer: BatchWriter) -> None:
        """Write what is in hand, from the first part on."""
        for attempt in _Attempt:
            try:
                await self._write_on(conn, reader, writer, attempt)
                break
            except UniqueViolation:
                # A reading we thought new is there: what we knew was old, or the reading is void since.
                self._know_nothing()
                if attempt is _Attempt.AS_STORED:
                    raise

    async def _write_on(
        self, conn: AsyncConnection, reader: StreamReader, writer: BatchWriter, attempt: _Attempt
    ) -> None:
        """Write batch after batch while the next is planned meanwhile, for a time; all are committed in the end."""
        until_s = time.monotonic() + CHAIN_S
        await self._refresh(conn)
        while True:
            part, ahead = self._parts[self._begun], self._ahead
            batch = ahead.batch if ahead else await self._plan(conn, part.received, attempt)
            await self._keep_in_progress(reader, part)
            self._begun, self._ahead = self._begun + 1, None
            await writer.write(
                batch,
                self._holding.leases,
                meanwhile=partial(self._plan_ahead, reader, batch.made),
                committed=partial(self._commit_is_known, part, batch, time.monotonic()),
            )
            self._learn(batch)
            await self._acknowledge_behind(reader)
            if not self._is_planned() or time.monotonic() > until_s:
                break
        await writer.settle()

    def _is_planned(self) -> bool:
        return self._ahead is not None

    async def _keep_in_progress(self, reader: StreamReader, part: _Part) -> None:
        """Under a backlog a batch has waited behind another: it must not be sent again meanwhile."""
        if part.load.parts > 1 or len(part.load.messages) >= BATCH_MESSAGES_MAX:
            await reader.in_progress(list(self._messages_in_hand()))

    def _commit_is_known(self, part: _Part, batch: Batch, began_s: float) -> None:
        """Be done with the first part."""
        first = self._parts.popleft()
        assert first is part, "parts are committed in their order"
        self._begun -= 1
        part.load.parts -= 1
        if not part.load.parts:
            self._committed.append(part.load)
        last_ms = part.received[-1].stored_at_ms
        self._lag_ms = max(0, wall_ms() - last_ms)
        self._metrics.batch_stored(batch.made.counts, len(part.received), last_ms, time.monotonic() - began_s)
        self._metrics.noted(flag.reason.value for flag in batch.made.noted)

    async def _acknowledge(self, reader: StreamReader) -> None:
        """Let the broker forget what is committed, never before: it resends on a crash and the key drops the copy."""
        while self._committed:
            await self._acknowledge_behind(reader)
            assert self._telling is not None, "what is committed is being told"
            await self._telling

    async def _acknowledge_behind(self, reader: StreamReader) -> None:
        """Begin to tell the broker once it has read what it was told before: a busy one takes 50 ms for 2,000."""
        if self._telling is not None:
            await self._telling
        if self._committed:
            self._telling = asyncio.create_task(self._tell(reader, self._committed.copy()))

    async def _tell(self, reader: StreamReader, loads: Sequence[_Load]) -> None:
        for load in loads:
            await reader.acknowledge(load.messages)
        self._committed = [load for load in self._committed if load not in loads]

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
        return encode_plan(made, self._intervals)

    def _plan_ahead(self, reader: StreamReader, written: Plan) -> None:
        """Plan what comes after the last begun batch as if that were committed; if it is not, all is forgotten.

        Only what needs nothing from the database: all meters known, all partitions there.
        """
        received = self._following(reader)
        serials = _serials(received)
        if not received or written.stale_serials or not serials <= self._cache.table.place_of.keys():
            return
        self._cache.adopt(written)
        made = plan_batch(received, self._cache.table, self._settings.calendar)
        if _days(made) <= self._days:
            self._ahead = _Ahead(batch=encode_plan(made, self._intervals), serials=serials)

    def _following(self, reader: StreamReader) -> Sequence[Received]:
        """Return what is stored after the last begun part; nothing if nothing is here, or we are to end."""
        if len(self._parts) == self._begun and not self._stop.is_set():
            self._parts.extend(_decoded(reader.take_here(messages_max=BATCH_MESSAGES_MAX, bytes_max=BATCH_BYTES_MAX)))
        return self._parts[self._begun].received if len(self._parts) > self._begun else ()

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
        cursor = await conn.execute(sql("take_rechecks"), {"shards": list(self._holding.reading), "most": RECHECKS_MAX})
        for account_id, _ in await cursor.fetchall():
            await settle_account(conn, account_id, rules=self._rules)
        await self._outages.step(conn)
        await self._follow_rules(conn)
        held = self._holding
        if await self._released.step(conn, self._cache, {shard: held.leases[shard] for shard in held.reading}):
            self._ahead = None
        today = self._settings.calendar.day_of(self._rules.clock())
        if today != self._today:
            self._today = today
            if self._cache.drop_assigned_from(today):
                self._ahead = None
        if await self._sweep.step(conn, self._holding.reading):
            self._know_nothing()

    async def _follow_rules(self, conn: AsyncConnection) -> None:
        """Take over new validation rules; what was known and planned under others is forgotten."""
        if await self._cache.follow_rules(conn):
            self._ahead = None

    async def _refresh(self, conn: AsyncConnection) -> None:
        """Read the change feed, and look at every account in it: now, and again with what is planned already."""
        crossing = await self._cache.refresh(conn, self._holding.reading)
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
            {"since": str(self._cache.feed_from), "shards": list(self._holding.reading), "owner": self._owner.name},
        )

    async def _backoff(self, stop: asyncio.Event) -> None:
        """Wait, unless told to stop; each time longer, until a round has succeeded."""
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), retry_s)


def _decoded(messages: Sequence[StreamMessage]) -> list[_Part]:
    """Cut messages into transactions."""
    if not messages:
        return []
    received = [receive(m.shard, m.topic, m.payload, m.stored_at_ms) for m in messages]
    parts = list(slices(received, READINGS_PER_TRANSACTION_MAX))
    load = _Load(messages=messages, parts=len(parts))
    return [_Part(load=load, received=part) for part in parts]


def _serials(received: Iterable[Received]) -> set[str]:
    return {message.uplink.serial for message in received if message.uplink is not None}


def _days(made: Plan) -> set[date]:
    """Return the days whose partitions a plan needs."""
    days = {row.read_at.date() for row in made.rows}
    if made.ordinary is not None:
        days |= {from_ms(day * DAY_MS).date() for day in set((made.ordinary.columns.at_ms // DAY_MS).tolist())}
    return days | {late.row.read_at.date() for late in made.late if in_late_window(late.meter, late.at_ms)}
