"""`close-day`: the paced, resumable sweep that posts usage per account and local day.

Stage: hours after midnight, in account ranges. The balance does not depend on when a day is posted: an account
knows which days are closed, so a sweep that was stopped goes on where it stood, and one that runs twice does nothing.
The daily chores ride along: partitions ahead, change-feed rows that every owner has seen, batches of last week by hour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial

from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected

from billing.terms import ONE_DAY
from db.accounts import look
from db.conversions import apply_category_credit, end_absences, pay_instalments
from db.counting import roll_up_batches
from db.daily_notices import tell_daily
from db.named import sql
from db.orders import PostingRules
from db.posting import lock, post_days
from db.readings import ensure_partitions, partition_span
from db.sweeps import DaySweep
from db.thresholds import accounts_by_days, move_day_levels

# A transaction of 2,000 accounts with an exact day each takes some 0.1 s, for which a vend on one of them would wait;
# ingest waits for none. It takes every eighth account of its range: a page of the table is then rewritten an eighth at
# a time, into the room that the eighth before has left, and does not grow (100 % heap-only; in id order 45 to 69 %,
# and the table doubled within two days; 1 M accounts, 2026-11-22).
ACCOUNTS_PER_TRANSACTION = 2_000
STRIDES = 8
ACCOUNTS_PER_RANGE = STRIDES * ACCOUNTS_PER_TRANSACTION
ACCOUNT_ID_MAX = 2**63 - 1
# What has no exact end is closed one by one: 100 accounts with a day each are some 800 short statements, 0.1 s.
ACCOUNTS_ONE_BY_ONE = 100
# A batch that stores relay reports of the same meters can stand across a range; five times in a row it does not.
DEADLOCKS_MAX = 5
DEADLOCK_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedDays:
    """What a sweep did; `exact` of the days were closed in batches."""

    accounts: int
    days: int
    exact: int


async def close_day(
    conn: AsyncConnection,
    until: date,
    *,
    rules: PostingRules,
    pause_s: float = 0.0,
    progress: Callable[[int], None] | None = None,
    last: int = ACCOUNT_ID_MAX,
    beside: AsyncConnection | None = None,
) -> ClosedDays:
    """Close every account's days up to and including `until`, range by range, pausing between ranges.

    `last` ends the sweep at an account's id. On a second connection, `beside`, ranges are closed at the same time, so
    that the database works while this process does.
    """
    sweep = _Sweep(until=until, last=last, rules=rules, pause_s=pause_s, progress=progress)
    if beside is None:
        await sweep.run(conn)
    else:
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(sweep.run(conn))
            lanes.create_task(sweep.run(beside))
    await conn.execute(sql("trim_feed"))
    await roll_up_batches(conn, datetime.now(UTC))
    await ensure_partitions(conn, partition_span(datetime.now(UTC).date()))
    return ClosedDays(accounts=sweep.accounts, days=sweep.exact + sweep.others, exact=sweep.exact)


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """A sweep over all ranges, by one lane or more; ranges are handed out in id order, each once."""

    until: date
    last: int
    rules: PostingRules
    pause_s: float
    progress: Callable[[int], None] | None
    accounts: int = 0
    exact: int = 0
    others: int = 0
    _after: int = 0
    _handing_out: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, conn: AsyncConnection) -> None:
        """Close ranges until none is left."""
        days = DaySweep(self.rules.calendar)
        while found := await self._next(conn):
            exact = await _close_exact_days(conn, days, found, self.until)
            others = await _close_others(conn, sorted(found), self.until, self.rules)
            # Added after the waiting: both lanes add.
            self.exact += exact
            self.others += others
            self.accounts += len(found)
            if self.progress:
                self.progress(len(found))
            await asyncio.sleep(self.pause_s)

    async def _next(self, conn: AsyncConnection) -> dict[int, date]:
        async with self._handing_out:
            parameters = {"after": self._after, "last": self.last, "until": self.until, "most": ACCOUNTS_PER_RANGE}
            cursor = await conn.execute(sql("accounts_to_close"), parameters)
            found: dict[int, date] = dict(await cursor.fetchall())
            self._after = max(found, default=self._after)
        return found


async def settle_prepayment(conn: AsyncConnection, until: date, *, rules: PostingRules) -> None:
    """Do what falls due once a day's usage is posted; harmless twice.

    Absences that are over give their deposits back, instalments of security are paid, accounts get the emergency
    credit that their category has from the next day on, and who is warned some days ahead is so by present use.
    Consumers are told of credit that ends within days and of a month's statement.
    """
    today = until + ONE_DAY
    await end_absences(conn, today, rules=rules, clock=_now_ms)
    await pay_instalments(conn, until, rules=rules, clock=_now_ms)
    await apply_category_credit(conn, today, rules=rules, clock=_now_ms)
    after = 0
    while ids := await accounts_by_days(conn, after):
        await _again_on_deadlock(partial(move_day_levels, conn, ids, rules=rules))
        after = ids[-1]
    await tell_daily(conn, until, rules=rules)


async def _close_exact_days(conn: AsyncConnection, sweep: DaySweep, found: Mapping[int, date], until: date) -> int:
    """Close day after day of a range in batches; an account without an exact end stays where it is."""
    closed = 0
    day = min(found.values())
    while day <= until:
        for stride in range(STRIDES):
            ids = sorted(number for number, through in found.items() if through <= day and number % STRIDES == stride)
            if ids:
                closed += await _again_on_deadlock(partial(_close_exact_day, conn, sweep, ids, day))
        day += ONE_DAY
    return closed


async def _close_exact_day(conn: AsyncConnection, sweep: DaySweep, ids: Sequence[int], day: date) -> int:
    async with conn.transaction():
        await lock(conn, ids)
        return await sweep.close(conn, ids, day)


async def _close_others(conn: AsyncConnection, ids: Sequence[int], until: date, rules: PostingRules) -> int:
    """Close what is left of a range account by account; return how many days."""
    days = 0
    cursor = await conn.execute(sql("still_to_close"), {"ids": list(ids), "until": until})
    left = [row[0] for row in await cursor.fetchall()]
    for first in range(0, len(left), ACCOUNTS_ONE_BY_ONE):
        part = left[first : first + ACCOUNTS_ONE_BY_ONE]
        days += await _again_on_deadlock(partial(_close_one_by_one, conn, part, until, rules))
    return days


async def _close_one_by_one(conn: AsyncConnection, ids: Sequence[int], until: date, rules: PostingRules) -> int:
    days = 0
    async with conn.transaction():
        await lock(conn, ids)
        views = await look(conn, ids, rules.calendar, step="day")
        for _, view in sorted(views.items()):
            posted = await post_days(conn, view, until, rules=rules, now_ms=_now_ms())
            days += (until - view.checkpoint.through).days + 1 if posted else 0
    return days


async def _again_on_deadlock(close: Callable[[], Awaitable[int]]) -> int:
    """Close a range; once more when the database ended it to resolve a deadlock."""
    for _ in range(DEADLOCKS_MAX):
        try:
            return await close()
        except DeadlockDetected:
            await asyncio.sleep(DEADLOCK_WAIT_S)
    return await close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
