"""One writer of `bench charge`: the bare COPY and the charge transaction, as a process of its own.

Stage: inside a measured process. Takes orders from the parent over a pipe: make ready, go. What is made ready before
the word go is not timed: readings as columns for the charge, encoded rows for the reference. Nothing is printed.
"""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Self
from zoneinfo import ZoneInfo

import numpy as np
import uvloop
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from db.binary_copy import encode_readings
from db.leases import Lease, Owner, release_leases, take_leases
from db.named import sql
from db.orders import PostingRules
from db.pool import connect
from headend.batch_plan import take_columns
from headend.charge_table import MARK_MS, MARK_WH
from headend.column_plan import balances_minor
from headend.edges.batch_writer import BatchWriter
from headend.edges.cache import StateCache
from headend.edges.commit import Batch, encode_plan, reconsider, settle_account
from headend.pipeline import Plan
from loadtests.known_accounts import known_accounts
from loadtests.population import OPENED_ON, TARIFF, arrivals, homes, readings_at, serial_of, shards_of
from protocols.columns import Int64Column, ReadingColumns

# Nobody else wants the leases; a pause of the whole machine must not lose them.
_LEASE_S = 600.0
# A known account is 2 kB: 2 million are 4 GB.
KNOWN_MAX = 2_000_000


@cache
def _calendar(zone: str) -> LocalCalendar:
    return LocalCalendar(ZoneInfo(zone))


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSettings:
    """What a writer is: the shards it owns of accounts 1 to `accounts`."""

    database_url: str
    shards: tuple[int, ...]
    accounts: int
    zone: str

    @property
    def calendar(self) -> LocalCalendar:
        """The accounts' calendar; it does not travel between processes."""
        return _calendar(self.zone)

    @property
    def opened_ms(self) -> int:
        """When the accounts opened, UTC milliseconds."""
        return self.calendar.midnight_ms(OPENED_ON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Readings of accounts `first` to `last`, one each per step, in batches of at most so many.

    `charge` False writes them by bare COPY.
    """

    charge: bool
    batch: int
    steps: range
    first: int
    last: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a writer did: instants of the machine's monotonic clock, counts, what its accounts are charged to date."""

    began_s: float
    ended_s: float
    batches: int
    readings: int
    candidates: int
    charged_minor: int


class ChargeWriter:
    """The charge transaction as the owner of some shards runs it: arrays of readings in, commit out.

    Invariants: writes only under its leases; what it knows of its accounts is that of the last commit.
    """

    def __init__(self, conns: Sequence[AsyncConnection], settings: WriterSettings, owner: Owner) -> None:
        self._conn = conns[0]
        self._conns = conns
        self._settings = settings
        self._owner = owner
        self._writer = BatchWriter(conns, owner, PostingRules(calendar=settings.calendar))
        self._rules = PostingRules(calendar=settings.calendar)
        self._leases: dict[int, Lease] = {}
        self._cache = StateCache(settings.calendar)
        self._ahead: list[Batch] = []
        # By meter id; -1 is not known.
        self._place_of = np.full(settings.accounts + 1, -1, dtype=np.intp)

    @classmethod
    async def open(cls, settings: WriterSettings) -> Self:
        """Take the shards."""
        owner = Owner(role="ingest", name=f"bench-{secrets.token_hex(4)}", lease_s=_LEASE_S)
        conns = [await connect(settings.database_url, application=owner.name) for _ in range(2)]
        writer = cls(conns, settings, owner)
        taken = await take_leases(writer._conn, owner, settings.shards)
        assert len(taken) == len(settings.shards), f"leases: expected {settings.shards}, got {taken}"
        writer._leases = {lease.shard: lease for lease in taken}
        writer._cache.own(taken)
        return writer

    async def know(self, numbers: Int64Column) -> None:
        """Know some accounts as the database has them: as they opened, and what has changed since."""
        fresh = numbers[self._place_of[numbers] < 0]
        if not len(fresh):
            return
        table = self._cache.table
        if len(table) + len(fresh) > KNOWN_MAX:
            self._cache.clear()
            table, fresh = self._cache.table, numbers
            self._place_of[:] = -1
        # Millions of values that stay: collecting them again and again would take longer than making them.
        gc.disable()
        for state in known_accounts(fresh, tariff_id=TARIFF, opened_on=OPENED_ON, calendar=self._settings.calendar):
            self._cache.put(state)
        gc.freeze()
        gc.enable()
        self._place_of[fresh] = [table.place_of[serial_of(number)] for number in fresh.tolist()]
        await self.refresh()

    def charged_minor(self, numbers: Int64Column) -> int:
        """Return what some accounts have been charged since they opened, as the writer knows them."""
        table = self._cache.table
        known = table.known(self._place_of[numbers])
        balance_minor = balances_minor(
            table, known, known.column(MARK_MS), known.column(MARK_WH), self._settings.calendar
        )
        return int(homes(numbers).credit_minor.sum() - balance_minor.sum())

    async def charge(self, arriving: Sequence[ReadingColumns]) -> int:
        """Write batches, one transaction each, the next planned while the server writes and begun while it commits;
        return how many accounts were locked."""
        candidates = 0
        for number, columns in enumerate(arriving):
            batch = self._ahead.pop() if self._ahead else self._planned(columns)
            following = arriving[number + 1] if number + 1 < len(arriving) else None
            await self._writer.write(batch, self._leases, meanwhile=partial(self._plan_ahead, batch, following))
            if not self._ahead:
                self._cache.adopt(batch.made)
            for ahead in self._ahead:
                reconsider(ahead, batch.amended)
            self._cache.amend(batch.amended)
            candidates += len(batch.made.candidates)
        await self._writer.settle()
        return candidates

    def _plan_ahead(self, batch: Batch, following: ReadingColumns | None) -> None:
        """Plan what follows as if a batch were committed: an error would end the benchmark."""
        if following is not None:
            self._cache.adopt(batch.made)
            self._ahead.append(self._planned(following))

    def _planned(self, columns: ReadingColumns) -> Batch:
        """Plan and encode a batch as `headend.batch_plan.plan_batch` does with the readings of its messages."""
        made = Plan()
        places = self._place_of[columns.meter_id]
        # The broker has stored each when it was read.
        left = take_columns(made, self._cache.table, columns, places, columns.at_ms, self._settings.calendar)
        assert not len(left), f"batch: expected readings that are ordinary, got {len(left)} others"
        for counted in made.counts.values():
            counted["messages"] = counted["received"]
        return encode_plan(made)

    async def refresh(self) -> None:
        """Read again what crossings have changed, as ingest does between batches."""
        left = 1
        while left:
            for account_id in await self._cache.refresh(self._conn, self._leases):
                await settle_account(self._conn, account_id, rules=self._rules)
            left = self._cache.left

    async def copy_bare(self, encoded: memoryview) -> None:
        """Write rows by one binary COPY and its commit: the least that storing them can cost."""
        async with self._conn.cursor() as cursor, cursor.copy(sql("copy_readings")) as copy:
            await copy.write(encoded)

    async def flush_statistics(self) -> None:
        """Let the server's counters show what this session has done."""
        for conn in self._conns:
            await conn.execute("select pg_stat_force_next_flush()")

    async def close(self) -> None:
        """Give the shards back."""
        await release_leases(self._conn, self._owner)
        for conn in self._conns:
            await conn.close()


def write_until_closed(settings: WriterSettings, pipe: Connection) -> None:
    """Do the parent's tasks one after the other until it closes the pipe: the main function of a writer's process."""
    uvloop.run(_serve(settings, pipe))


async def _serve(settings: WriterSettings, pipe: Connection) -> None:
    # Waiting for the parent blocks the loop, on which nothing else runs.
    writer = await ChargeWriter.open(settings)
    pipe.send("open")
    while (task := pipe.recv()) is not None:
        batches = made_ready(settings, task)
        encoded = [] if task.charge else [encode_readings(columns) for columns in batches]
        numbers = _owned(settings, np.arange(task.first, task.last + 1, dtype=np.int64))
        if task.charge:
            await writer.know(numbers)
        pipe.send("ready")
        pipe.recv()
        began_s = time.monotonic()
        candidates = 0
        if task.charge:
            candidates = await writer.charge(batches)
        else:
            for rows in encoded:
                await writer.copy_bare(rows)
        ended_s = time.monotonic()
        if task.charge:
            await writer.refresh()
        await writer.flush_statistics()
        pipe.send(
            Done(
                began_s=began_s,
                ended_s=ended_s,
                batches=len(batches),
                readings=sum(len(columns) for columns in batches),
                candidates=candidates,
                charged_minor=writer.charged_minor(numbers) if task.charge else 0,
            )
        )
    await writer.close()
    pipe.send("closed")


def made_ready(settings: WriterSettings, task: Task) -> Sequence[ReadingColumns]:
    """Make a writer's batches of a task; the same for the bare COPY and the charge."""
    numbers = _owned(settings, np.arange(task.first, task.last + 1, dtype=np.int64))
    rng = np.random.default_rng(task.seed)
    return [
        readings_at(part, step, settings.opened_ms)
        for step in task.steps
        for part in arrivals(numbers, task.batch, rng)
    ]


def _owned(settings: WriterSettings, numbers: Int64Column) -> Int64Column:
    return numbers[np.isin(shards_of(numbers), list(settings.shards))]
