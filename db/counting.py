"""What came and what became of it: batches counted over a span, compared with what is there, kept by hour later.

Stage: after the fact, for engineers and the daily sweep. `received = stored + duplicate + quarantined + rejected` holds
in every row of batches and in every sum of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql
from db.readings import partition_days

# A week of single batches shows a fault to the second. 300 rows a second are 900 GB a year, an hour's sums 25 MB.
KEPT_DAYS: Final = 7
# An hour at full speed is a million rows, some seconds; then others have their turn.
ROLL_UP_PAUSE_S: Final = 0.05
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
END: Final = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCounts:
    """Readings of a shard by what became of them, over a span; `broken` rows of batches do not add up in themselves."""

    shard: int | None
    batches: int
    messages: int
    received: int
    stored: int
    duplicate: int
    rejected: int
    quarantined: int
    broken: int

    @property
    def adds_up(self) -> bool:
        """Tell whether everything received became something."""
        return not self.broken and self.received == self.stored + self.duplicate + self.rejected + self.quarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount:
    """What batches say was stored, held and refused since ever, beside what the tables hold and what was
    dropped of them since, as often as it came."""

    stored: int
    readings: int
    quarantined: int
    held: int
    rejected: int
    refused: int

    @property
    def adds_up(self) -> bool:
        """Tell whether batches and tables agree."""
        return (self.stored, self.quarantined, self.rejected) == (self.readings, self.held, self.refused)


async def read_counts(
    conn: AsyncConnection, *, since: datetime | None, until: datetime | None, shards: Collection[int] | None
) -> list[ShardCounts]:
    """Sum batches committed from `since` and before `until`, by shard; None leaves a condition out.

    Batches older than `KEPT_DAYS` are known by hour: an edge inside one of those counts it whole or not at all.
    """
    parameters = {
        "since": since or BEGINNING,
        "until": until or END,
        "shards": None if shards is None else sorted(shards),
    }
    async with conn.cursor(row_factory=class_row(ShardCounts)) as cursor:
        await cursor.execute(sql("counts_of_span"), parameters)
        return await cursor.fetchall()


def total_of(found: Sequence[ShardCounts]) -> ShardCounts:
    """Sum the counts of shards."""
    names = ("batches", "messages", "received", "stored", "duplicate", "rejected", "quarantined", "broken")
    return ShardCounts(shard=None, **{name: sum(getattr(each, name) for each in found) for name in names})


async def recount(conn: AsyncConnection) -> Recount:
    """Read everything that is stored and in quarantine again, in one snapshot, a day at a time.

    Reads the key of every reading there is.
    """
    async with conn.transaction():
        await conn.execute(sql("look_once"))
        counted = total_of(await read_counts(conn, since=None, until=None, shards=None))
        readings = 0
        for day in sorted(await partition_days(conn)):
            first = datetime(day.year, day.month, day.day, tzinfo=UTC)
            cursor = await conn.execute(sql("count_readings_of"), {"first": first, "last": first + _DAY})
            row = await cursor.fetchone()
            readings += row[0] if row else 0
        cursor = await conn.execute(sql("count_quarantined"))
        held = await cursor.fetchone()
        cursor = await conn.execute(sql("counts_dropped"))
        dropped = await cursor.fetchone()
    assert held is not None, "count_quarantined returns one row"
    assert dropped is not None, "counts_dropped returns one row"
    return Recount(
        stored=counted.stored,
        readings=readings + dropped[0],
        quarantined=counted.quarantined,
        held=held[0] + dropped[1],
        rejected=counted.rejected,
        refused=held[1] + dropped[2],
    )


async def roll_up_batches(conn: AsyncConnection, now: datetime, *, pause_s: float = ROLL_UP_PAUSE_S) -> int:
    """Keep batches older than `KEPT_DAYS` by hour and shard; return how many rows went.

    An hour is a transaction: it may be stopped anywhere and goes on there; sums do not change. Of two at once the
    second does nothing.
    """
    until = (now - timedelta(days=KEPT_DAYS)).replace(minute=0, second=0, microsecond=0)
    gone = 0
    while (went := await _roll_up_next(conn, until)) is not None:
        gone += went
        await asyncio.sleep(pause_s)
    return gone


async def _roll_up_next(conn: AsyncConnection, until: datetime) -> int | None:
    async with conn.transaction():
        cursor = await conn.execute(sql("rolled_up_to"))
        position = await cursor.fetchone()
        if position is None:
            return None
        cursor = await conn.execute(sql("next_batch_hour"), {"since": position[0], "until": until})
        found = await cursor.fetchone()
        if found is None:
            return None
        hour: datetime = found[0]
        cursor = await conn.execute(sql("roll_up_hour"), {"since": hour, "until": hour + _HOUR})
        row = await cursor.fetchone()
        await conn.execute(sql("save_rolled_up"), {"upto": hour + _HOUR})
    return int(row[0]) if row else 0
