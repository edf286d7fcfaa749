"""What is kept long enough is dropped: partitions whole, other rows page by page, each noted in its transaction.

Stage: once a day after the rollups, or by command. What somebody still needs stays, whatever its age: readings of open
days with all that late data may move, of corrections that are not ended, under a hold, and not rolled up yet. Twice is
once; it may be stopped anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable

from billing.calendar import LocalCalendar
from db.named import sql
from db.storage import TRIES, Partition, ReadingStore, count_rows, is_held, read_needs, store_of
from db.storage_classes import DataClass, Retention

# A page goes in some 0.1 s; then others have their turn.
ROWS_A_PAGE: Final = 5_000
PAUSE_S: Final = 0.05
# Classes that lie in partitions, by the table of them; the others by the names of their queries.
_IN_PARTITIONS: Final = (DataClass.READINGS, DataClass.HOURS, DataClass.DAYS)
_BY_ROWS: Final = {
    DataClass.QUARANTINE: ("old_quarantine", "drop_old_quarantine"),
    DataClass.FLAGS: ("old_flags", "drop_old_flags"),
    DataClass.EVENTS: ("old_events", "drop_old_events"),
    DataClass.NOTICES: ("old_notices", "drop_old_notices"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A partition, or rows of a class without any, that went or would go."""

    kind: DataClass
    partition: str | None
    before_at: datetime
    rows: int
    freed_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stays:
    """A partition that is old enough and stays all the same, and why."""

    partition: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport:
    """What a run dropped, or would; and what it had to leave."""

    dropped: tuple[Dropped, ...]
    stays: tuple[Stays, ...]


async def retain(
    conn: AsyncConnection,
    retention: Retention,
    *,
    now: datetime,
    calendar: LocalCalendar,
    dry_run: bool = False,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> RetentionReport:
    """Drop what is older than its class is kept and needed by nobody; a dry run only says what would go.

    The connection has to be in autocommit mode.
    """
    store = await store_of(conn)
    dropped: list[Dropped] = []
    stays: list[Stays] = []
    for partition in await store.partitions(conn):
        kind = DataClass(partition.table)
        # A rollup's local day may begin or end in its neighbour by UTC; a day more is kept for it.
        if kind not in _IN_PARTITIONS or partition.last_at > now - retention.age(kind):
            continue
        why = await _needed(conn, partition, calendar) if kind is DataClass.READINGS else None
        gone = None if why else await _drop(conn, store, kind, partition, dry_run=dry_run)
        if gone is None:
            stays.append(Stays(partition=partition.name, why=why or "in use: tried again tomorrow"))
        else:
            dropped.append(gone)
    for kind in _BY_ROWS:
        before_at = now - retention.age(kind)
        rows = await _drop_rows(conn, kind, before_at, dry_run=dry_run, pause=pause)
        if rows:
            dropped.append(Dropped(kind=kind, partition=None, before_at=before_at, rows=rows, freed_bytes=None))
    return RetentionReport(dropped=tuple(dropped), stays=tuple(stays))


async def _needed(conn: AsyncConnection, partition: Partition, calendar: LocalCalendar) -> str | None:
    """Return who needs readings of a partition."""
    needs = await read_needs(conn, calendar)
    if needs.from_at is not None and partition.last_at > needs.from_at:
        return f"{needs.by}: needs readings from {needs.from_at:%F} on"
    return "held for a case" if await is_held(conn, partition) else None


async def _drop(
    conn: AsyncConnection, store: ReadingStore, kind: DataClass, partition: Partition, *, dry_run: bool
) -> Dropped | None:
    """Drop a partition, noted in the same transaction; None when it is in use."""
    if dry_run:
        return _dropped(kind, partition, partition.rows)
    rows = await count_rows(conn, partition)
    for _ in range(TRIES):
        try:
            async with conn.transaction():
                await conn.execute(sql("drop_wait"))
                await _note(conn, kind, partition.name, partition.last_at, (rows, 0, 0), partition.total_bytes)
                await store.drop(conn, partition)
        except LockNotAvailable:
            continue
        return _dropped(kind, partition, rows)
    return None


def _dropped(kind: DataClass, partition: Partition, rows: int) -> Dropped:
    return Dropped(
        kind=kind,
        partition=partition.name,
        before_at=partition.last_at,
        rows=rows,
        freed_bytes=partition.total_bytes,
    )


async def _drop_rows(
    conn: AsyncConnection,
    kind: DataClass,
    before_at: datetime,
    *,
    dry_run: bool,
    pause: Callable[[float], Awaitable[None]],
) -> int:
    look, drop = _BY_ROWS[kind]
    if dry_run:
        cursor = await conn.execute(sql(look), {"before": before_at})
        row = await cursor.fetchone()
        return int(row[0]) if row else 0
    total = 0
    while True:
        async with conn.transaction():
            cursor = await conn.execute(sql(drop), {"before": before_at, "most": ROWS_A_PAGE})
            gone = await cursor.fetchone()
            assert gone is not None, f"{drop} returns one row"
            if gone[0]:
                await _note(conn, kind, None, before_at, gone, None)
        total += int(gone[0])
        if gone[0] < ROWS_A_PAGE:
            return total
        await pause(PAUSE_S)


async def _note(
    conn: AsyncConnection,
    kind: DataClass,
    partition: str | None,
    before_at: datetime,
    gone: tuple[int, int, int],
    freed_bytes: int | None,
) -> None:
    rows, times, refused = gone
    parameters = {
        "class": kind.value,
        "partition": partition,
        "before_at": before_at,
        "rows": rows,
        "bytes": freed_bytes,
        "times": times,
        "refused": refused,
    }
    await conn.execute(sql("note_drop"), parameters)
