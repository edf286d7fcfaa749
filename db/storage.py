"""Where readings lie: partitions with their sizes, what is hot and what is packed, and who needs which of them.

Stage: beside the hot path, for engineers and the daily drop. `ReadingStore` is what plain PostgreSQL and a time-series
extension have in common; `store_of` asks the database which of them it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol

from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable

from billing.calendar import LocalCalendar
from db.named import sql
from db.readings import PARTITION_DAYS_BACK

_NAME = re.compile(r"(?P<table>readings|rollup_hours|rollup_days)_(?P<year>\d{4})(?P<month>\d{2})?(?P<day>\d{2})?")
_COUNTS: Final = {
    "readings": "count_readings_of",
    "rollup_hours": "count_rollup_hours",
    "rollup_days": "count_rollup_days",
}
# Whoever comes after a statement that waits for a whole table waits behind it: 500 ms a try (`drop_wait`).
TRIES: Final = 3
# Late readings reach back 35 days: what is older is written no more.
PACK_AFTER: Final = timedelta(days=PARTITION_DAYS_BACK + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A span of a table: rows from `first_at` and before `last_at`; `packed` is written in the order of its key.

    Invariants: `rows` is what the database last counted, or counted now where it never has.
    """

    table: str
    name: str
    first_at: datetime
    last_at: datetime
    rows: int
    table_bytes: int
    index_bytes: int
    packed: bool

    @property
    def total_bytes(self) -> int:
        """Table and indexes."""
        return self.table_bytes + self.index_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What packing a partition did; None where it was not let in and has to be tried again."""

    name: str
    bytes_before: int | None = None
    bytes_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """From when on somebody needs readings, and who; None: nobody does."""

    from_at: datetime | None
    by: str


class ReadingStore(Protocol):
    """Where readings and their rollups lie."""

    name: str

    async def partitions(self, conn: AsyncConnection) -> list[Partition]:
        """Return all partitions of readings and rollups, by table and time."""
        ...

    async def drop(self, conn: AsyncConnection, partition: Partition) -> None:
        """Drop a partition that is noted as dropped, within that transaction.

        Raises: LockNotAvailable when somebody reads it.
        """
        ...

    async def pack(self, conn: AsyncConnection, partition: Partition) -> Packed:
        """Make a partition that nobody writes any more small and quick to read."""
        ...


class PlainStore:
    """Declarative partitions of PostgreSQL itself."""

    name = "postgresql"

    async def partitions(self, conn: AsyncConnection) -> list[Partition]:
        """Return all partitions of readings and rollups, by table and time."""
        cursor = await conn.execute(sql("storage_partitions"))
        found = []
        for table, name, rows, table_bytes, index_bytes, packed in await cursor.fetchall():
            span = _span(name)
            if span is None:
                continue
            partition = Partition(
                table=table,
                name=name,
                first_at=span[0],
                last_at=span[1],
                rows=rows if rows >= 0 else await _count(conn, table, span),
                table_bytes=table_bytes,
                index_bytes=index_bytes,
                packed=packed,
            )
            found.append(partition)
        return found

    async def drop(self, conn: AsyncConnection, partition: Partition) -> None:
        """Drop a partition that is noted as dropped, within that transaction.

        Raises: LockNotAvailable when somebody reads it.
        """
        await conn.execute(sql("drop_partition"), {"name": partition.name})

    async def pack(self, conn: AsyncConnection, partition: Partition) -> Packed:
        """Write a partition anew in the order of its key; nobody reads it meanwhile.

        Plain PostgreSQL does not compress: what is won is the index's room, and a meter's day in two pages, not in one
        for each batch.
        """
        for _ in range(TRIES):
            try:
                async with conn.transaction():
                    await conn.execute(sql("drop_wait"))
                    cursor = await conn.execute(sql("pack_partition"), {"name": partition.name})
                    row = await cursor.fetchone()
            except LockNotAvailable:
                continue
            assert row is not None, "pack_partition returns one row"
            return Packed(name=partition.name, bytes_before=row[0], bytes_after=row[1])
        return Packed(name=partition.name)


async def store_of(conn: AsyncConnection) -> ReadingStore:
    """Return the store that the database has."""
    return PlainStore()


async def count_rows(conn: AsyncConnection, partition: Partition) -> int:
    """Count a partition's rows."""
    return await _count(conn, partition.table, (partition.first_at, partition.last_at))


async def read_needs(conn: AsyncConnection, calendar: LocalCalendar) -> Needs:
    """Return from when on readings may not be dropped.

    Open days of accounts with what late data may move, corrections that are not ended, and what is not rolled up yet.
    Holds are looked at for each partition (`is_held`).
    """
    cursor = await conn.execute(sql("storage_needs"), {"zone": calendar.zone.key})
    needs = [Needs(by=by, from_at=from_at) for by, from_at in await cursor.fetchall() if from_at is not None]
    return min(needs, key=lambda each: each.from_at or _BEGINNING, default=Needs(by="nobody", from_at=None))


async def is_held(conn: AsyncConnection, partition: Partition) -> bool:
    """Tell whether a hold that is not released keeps a partition of readings."""
    cursor = await conn.execute(sql("storage_holds_on"), {"first": partition.first_at, "last": partition.last_at})
    row = await cursor.fetchone()
    return bool(row and row[0])


async def place_hold(
    conn: AsyncConnection,
    *,
    from_at: datetime,
    to_at: datetime | None,
    reason: str,
    by: str,
    meter_id: int | None = None,
) -> int:
    """Keep readings of a span, as for a dispute, until the hold is released; return its number."""
    parameters = {"meter_id": meter_id, "from_at": from_at, "to_at": to_at, "reason": reason, "by": by}
    cursor = await conn.execute(sql("place_storage_hold"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "place_storage_hold returns one row"
    return int(row[0])


async def release_hold(conn: AsyncConnection, hold_id: int, *, by: str) -> None:
    """Let what a hold kept be dropped; harmless twice."""
    await conn.execute(sql("release_storage_hold"), {"id": hold_id, "by": by})


async def read_sizes(conn: AsyncConnection) -> dict[str, tuple[int, int]]:
    """Return rows and bytes of the tables without partitions, by name."""
    cursor = await conn.execute(sql("storage_sizes"))
    return {table: (rows, size) for table, rows, size in await cursor.fetchall()}


def to_pack(partitions: Sequence[Partition], now: datetime) -> list[Partition]:
    """Return the partitions of readings that nobody writes any more and that are not packed."""
    return [
        each
        for each in partitions
        if each.table == "readings" and each.rows and not each.packed and each.last_at <= now - PACK_AFTER
    ]


_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


async def _count(conn: AsyncConnection, table: str, span: tuple[datetime, datetime]) -> int:
    cursor = await conn.execute(sql(_COUNTS[table]), {"first": span[0], "last": span[1]})
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


def _span(name: str) -> tuple[datetime, datetime] | None:
    """Return the span that a partition's name says; None for another's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    first = date(int(found["year"]), int(found["month"] or 1), int(found["day"] or 1))
    if found["day"]:
        after = first + timedelta(days=1)
    elif found["month"]:
        after = (first + timedelta(days=31)).replace(day=1)
    else:
        after = date(first.year + 1, 1, 1)
    return _midnight(first), _midnight(after)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
