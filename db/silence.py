"""Meters that are not heard of: looked up again only when that is long ago, listed for the engineer.

Stage: beside ingest, which writes nothing about who is heard of. A meter that reports costs one look in as many hours
as make it silent; a silent one a look each time. What a silent meter's alarm is: see `db.queries.event_alarms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentMeter:
    """A meter that is not heard of.

    `read_at` is its last reading, `heard_at` its last word of any kind, None for a meter that never said anything;
    `relay` what it last said of its supply, `desired` what it should have.
    """

    meter_id: int
    serial: str
    area: str
    account: str
    read_at: datetime | None
    heard_at: datetime | None
    installed_at: datetime
    relay: str | None
    desired: str

    @property
    def balance_unknown_since(self) -> datetime | None:
        """Tell since when energy may flow that nobody knows of; None where the meter had opened its relay."""
        return None if self.relay == "off" else self.read_at or self.installed_at


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentArea:
    """An area's silent meters, and when the first of them was last heard of."""

    area: str
    meters: int
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceAlarms:
    """When silence rings: the code it rings as, and what is one alarm of a whole area."""

    code: int
    area_meters_min: int
    area_within: timedelta


async def look_at_contacts(
    conn: AsyncConnection, *, now: datetime, cutoff: datetime, after: int, most: int
) -> tuple[int, int]:
    """Look again at meters not heard of since `cutoff`, `most` of them after a meter id.

    Returns how many were looked at and the last one's id.
    """
    parameters = {"now": now, "cutoff": cutoff, "after": after, "most": most}
    cursor = await conn.execute(sql("look_at_contacts"), parameters)
    row = await cursor.fetchone()
    return (row[0], row[1] or after) if row else (0, after)


async def ring_silence(conn: AsyncConnection, alarms: SilenceAlarms, *, now: datetime, cutoff: datetime) -> None:
    """Ring and end alarms of silence by what the last look has found: areas first, then meters, in one transaction."""
    parameters = {
        "code": alarms.code,
        "meters_min": alarms.area_meters_min,
        "recent": cutoff - alarms.area_within,
        "now": now,
    }
    async with conn.transaction():
        await conn.execute(sql("heard_again"), {"cutoff": cutoff})
        await conn.execute(sql("end_silence"), parameters)
        await conn.execute(sql("end_area_alarms"), parameters)
        await conn.execute(sql("raise_area_alarms"), parameters)
        await conn.execute(sql("raise_silence"), parameters)


async def list_silent(
    conn: AsyncConnection,
    *,
    now: datetime,
    cutoff: datetime,
    area: str | None = None,
    after: int = 0,
    most: int,
) -> list[SilentMeter]:
    """List meters not heard of since `cutoff`, by id, those after a meter id."""
    parameters = {
        "now": now,
        "cutoff": cutoff,
        "area": area,
        "after": after,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(SilentMeter)) as cursor:
        await cursor.execute(sql("list_silent"), parameters)
        return await cursor.fetchall()


async def silent_by_area(conn: AsyncConnection) -> list[SilentArea]:
    """Count silent meters by area, as the last look has found them."""
    async with conn.cursor(row_factory=class_row(SilentArea)) as cursor:
        await cursor.execute(sql("silent_by_area"))
        return await cursor.fetchall()
