"""Completeness: how many of a local day's intervals are stored, live for any day and as it was at the hours that count.

Stage: after the fact; reads the keys of a day's readings once, in ranges of meters, so that a city's day is many short
statements and nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import LocalCalendar, from_ms
from billing.terms import ONE_DAY
from db.named import sql

# What most prepaid meters keep, for those whose interval is not known.
INTERVAL_S: Final = 1_800
# 20,000 meters have a million half-hours a day: under a second.
METERS_A_RANGE: Final = 20_000
PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaIntervals:
    """Intervals of an area's meters on a day: `expected`, of which `present` are stored; `whole` meters lack none."""

    area: str
    meters: int
    whole: int
    expected: int
    present: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenIntervals(AreaIntervals):
    """The same as it was so many hours after the day's end, taken at an instant."""

    hour: int
    taken_at: datetime


async def intervals_of_day(
    conn: AsyncConnection, day: date, calendar: LocalCalendar, *, pause_s: float = PAUSE_S
) -> list[AreaIntervals]:
    """Count a local day's intervals by area as they are now."""
    span = {
        "first": from_ms(calendar.midnight_ms(day)),
        "last": from_ms(calendar.midnight_ms(day + ONE_DAY)),
        "interval_s": INTERVAL_S,
    }
    found: dict[str, list[AreaIntervals]] = {}
    row = await (await conn.execute(sql("last_meter"))).fetchone()
    last_id = row[0] if row else 0
    for after in range(0, last_id, METERS_A_RANGE):
        async with conn.cursor(row_factory=class_row(AreaIntervals)) as cursor:
            await cursor.execute(sql("intervals_of_day"), {**span, "after": after, "upto": after + METERS_A_RANGE})
            for each in await cursor.fetchall():
                found.setdefault(each.area, []).append(each)
        await asyncio.sleep(pause_s)
    return [_sum(area, parts) for area, parts in sorted(found.items())]


async def take_intervals(
    conn: AsyncConnection, day: date, hour: int, calendar: LocalCalendar, *, now: datetime, pause_s: float = PAUSE_S
) -> bool:
    """Keep a local day's intervals as they are now, as those of an hour; False where they are taken or being taken."""
    if not await _one(conn, "lock_completeness"):
        return False
    try:
        if await _one(conn, "completeness_taken", day=day, hour=hour):
            return False
        areas = await intervals_of_day(conn, day, calendar, pause_s=pause_s)
        await conn.execute(
            sql("add_completeness"),
            {
                "day": day,
                "hour": hour,
                "taken_at": now,
                "areas": [each.area for each in areas],
                "meters": [each.meters for each in areas],
                "whole": [each.whole for each in areas],
                "expected": [each.expected for each in areas],
                "present": [each.present for each in areas],
            },
        )
    finally:
        await conn.execute(sql("unlock_completeness"))
    return True


async def taken_intervals(conn: AsyncConnection, day: date, area: str | None = None) -> list[TakenIntervals]:
    """Return what was taken of a day, by hour and area."""
    async with conn.cursor(row_factory=class_row(TakenIntervals)) as cursor:
        await cursor.execute(sql("completeness_of"), {"day": day, "area": area})
        return await cursor.fetchall()


def _sum(area: str, parts: Sequence[AreaIntervals]) -> AreaIntervals:
    return AreaIntervals(
        area=area,
        meters=sum(each.meters for each in parts),
        whole=sum(each.whole for each in parts),
        expected=sum(each.expected for each in parts),
        present=sum(each.present for each in parts),
    )


async def _one(conn: AsyncConnection, query: str, **parameters: object) -> bool:
    row = await (await conn.execute(sql(query), parameters)).fetchone()
    return bool(row and row[0])
