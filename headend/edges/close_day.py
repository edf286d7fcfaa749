"""`close-day`: the paced, resumable sweep that posts usage per account and local day.

Stage: hours after midnight, in account ranges. The balance does not depend on when a day is posted: an account
knows which days are closed, so a sweep that was stopped goes on where it stood, and one that runs twice does nothing.
The daily chores ride along: partitions ahead, change-feed rows that every owner has seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected

from db.accounts import look
from db.named import sql
from db.orders import PostingRules
from db.posting import lock, post_days
from db.readings import ensure_partitions, partition_span

# A range is one transaction: 100 accounts with a day each are some 800 short statements, 0.1 s, for which a vend on
# one of them would wait.
ACCOUNTS_PER_RANGE = 100
# A batch that stores relay reports of the same meters can stand across a range; five times in a row it does not.
DEADLOCKS_MAX = 5
DEADLOCK_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedDays:
    """What a sweep did."""

    accounts: int
    days: int


async def close_day(
    conn: AsyncConnection,
    until: date,
    *,
    rules: PostingRules,
    pause_s: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> ClosedDays:
    """Close every account's days up to and including `until`, range by range, pausing between ranges."""
    accounts = days = after = 0
    while True:
        cursor = await conn.execute(
            sql("accounts_to_close"), {"after": after, "until": until, "most": ACCOUNTS_PER_RANGE}
        )
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            break
        days += await _close_range_again(conn, ids, until, rules)
        accounts += len(ids)
        after = ids[-1]
        if progress:
            progress(len(ids))
        await asyncio.sleep(pause_s)
    await conn.execute(sql("trim_feed"))
    await ensure_partitions(conn, partition_span(datetime.now(UTC).date()))
    return ClosedDays(accounts=accounts, days=days)


async def _close_range_again(conn: AsyncConnection, ids: list[int], until: date, rules: PostingRules) -> int:
    """Close a range; once more when the database ended it to resolve a deadlock."""
    for _ in range(DEADLOCKS_MAX):
        try:
            return await _close_range(conn, ids, until, rules)
        except DeadlockDetected:
            await asyncio.sleep(DEADLOCK_WAIT_S)
    return await _close_range(conn, ids, until, rules)


async def _close_range(conn: AsyncConnection, ids: list[int], until: date, rules: PostingRules) -> int:
    days = 0
    async with conn.transaction():
        await lock(conn, ids)
        views = await look(conn, ids, rules.calendar, step="day")
        for _, view in sorted(views.items()):
            posted = await post_days(conn, view, until, rules=rules, now_ms=time.time_ns() // 1_000_000)
            days += (until - view.checkpoint.through).days + 1 if posted else 0
    return days
