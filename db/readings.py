"""Readings in and out of the database: partitions made ahead, COPY for the stream, staging for what comes late.

Stage: the hot statement of every ingest batch. Rows are columns of one meter and instant; they are never updated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from db.named import sql
from protocols.columns import ABSENT, NAMES, ReadingColumns
from protocols.rows import ReadingRow

_PARTITION = re.compile(r"readings_(\d{4})(\d{2})(\d{2})")
# Late readings reach back 35 days; two days ahead cover a day on which the daily sweep did not run.
PARTITION_DAYS_BACK = 36
PARTITION_DAYS_AHEAD = 2
_READING_TYPES = ("int4", "timestamptz", "int8", "int8", "int4", "int4", "int4", "int4", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What stands on both sides of an instant: (milliseconds, register) each, or None."""

    before: tuple[int, int] | None
    after: tuple[int, int] | None


async def partition_days(conn: AsyncConnection) -> set[date]:
    """Return the UTC days that have a partition."""
    cursor = await conn.execute(sql("partition_days"))
    found = (_PARTITION.fullmatch(row[0]) for row in await cursor.fetchall())
    return {date(int(m[1]), int(m[2]), int(m[3])) for m in found if m}


async def ensure_partitions(conn: AsyncConnection, days: Iterable[date]) -> int:
    """Make the partitions of some UTC days that are missing; return how many were made."""
    missing = sorted(set(days) - await partition_days(conn))
    made = 0
    for day in missing:
        async with conn.transaction():
            await conn.execute(sql("lock_partitions"))
            # Another process may have made it between our look and our turn.
            if day not in await partition_days(conn):
                await conn.execute(sql("make_partition"), {"day": day})
                made += 1
    return made


def partition_span(today: date) -> list[date]:
    """Return the UTC days that live readings may fall into about a day."""
    return [today + timedelta(days=number) for number in range(-PARTITION_DAYS_BACK, PARTITION_DAYS_AHEAD + 1)]


async def copy_readings(conn: AsyncConnection, rows: Sequence[ReadingRow]) -> None:
    """Append readings, sorted by meter and instant.

    Raises: psycopg.errors.UniqueViolation when one is there already.
    """
    async with conn.cursor() as cursor, cursor.copy(sql("copy_readings")) as copy:
        copy.set_types(_READING_TYPES)
        for row in rows:
            await copy.write_row(row)


async def copy_encoded(conn: AsyncConnection, encoded: memoryview, meanwhile: Callable[[], None] | None = None) -> None:
    """Append readings, sorted by meter and instant and encoded by `encode_readings`.

    `meanwhile` is called while the server writes what it was sent. Raises: psycopg.errors.UniqueViolation when a
    reading is there already.
    """
    async with conn.cursor() as cursor, cursor.copy(sql("copy_readings")) as copy:
        await copy.write(encoded)
        if meanwhile:
            meanwhile()


def columns_from_rows(rows: Sequence[ReadingRow]) -> ReadingColumns:
    """Put rows into columns, in their order."""
    meter_ids, instants, *channels = zip(*rows, strict=True) if rows else [()] * len(ReadingRow._fields)
    values = [[ABSENT if value is None else value for value in channel] for channel in channels]
    filled = [list(meter_ids), [to_ms(instant) for instant in instants], *values]
    return ReadingColumns(
        **{name: np.array(column, dtype=np.int64) for name, column in zip(NAMES, filled, strict=True)}
    )


def rows_from_columns(columns: ReadingColumns) -> list[ReadingRow]:
    """Take columns apart into rows, in their order."""
    lists = (column.tolist() for _, column in columns.named())
    return [
        ReadingRow(meter_id, from_ms(at_ms), import_wh, *(None if value == ABSENT else value for value in channels))
        for meter_id, at_ms, import_wh, *channels in zip(*lists, strict=True)
    ]


async def compare_readings(conn: AsyncConnection, rows: Sequence[ReadingRow]) -> dict[int, bool]:
    """Look up readings by key: position in `rows` to whether the stored one has the same content."""
    await conn.execute(sql("make_staging"))
    async with conn.cursor() as cursor, cursor.copy(sql("copy_staging")) as copy:
        copy.set_types(("int4", *_READING_TYPES))
        for number, row in enumerate(rows):
            await copy.write_row((number, *row))
    await conn.execute(sql("probe_by_key"))
    # The span lets the planner leave out partitions of other days.
    span = {"first": min(row.read_at for row in rows), "last": max(row.read_at for row in rows)}
    cursor = await conn.execute(sql("compare_staging"), span)
    return dict(await cursor.fetchall())


async def neighbours(conn: AsyncConnection, rows: Sequence[tuple[int, ReadingRow]]) -> dict[int, Neighbours]:
    """Read what stands on both sides of late readings, by their number."""
    cursor = await conn.execute(
        sql("neighbours"),
        {
            "ns": [number for number, _ in rows],
            "meter_ids": [row.meter_id for _, row in rows],
            "ats": [row.read_at for _, row in rows],
        },
    )
    return {
        number: Neighbours(
            before=None if before_at is None else (to_ms(before_at), before_wh),
            after=None if after_at is None else (to_ms(after_at), after_wh),
        )
        for number, before_at, before_wh, after_at, after_wh in await cursor.fetchall()
    }
