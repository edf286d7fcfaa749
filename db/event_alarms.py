"""Alarms of events as rows: what rings, what has ended, what somebody has seen; meter events as an engineer lists them.

Stage: inside the transaction that stores an event, beside it where only time shows something, and behind what engineers
ask. What rings and what is the same is decided by `headend.event_alarms`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import from_ms
from db.errors import DatabaseError
from db.event_notices import StoredEvent
from db.named import sql


class UnknownAlarm(DatabaseError):
    """There is no such alarm, or none that nobody has seen."""

    code = "unknown_alarm"


class AlarmSeen(DatabaseError):
    """Somebody has acknowledged the alarm already."""

    code = "alarm_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRow:
    """An event that rings, so many times between two instants."""

    meter_id: int
    code: int
    severity: str
    first_ms: int
    last_ms: int
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One event of a meter."""

    serial: str
    at: datetime
    code: int
    received_at: datetime
    meter_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRow:
    """An alarm of one meter, or of an area: `of_area` is one alarm, or many alike, about `meters` of it."""

    id: int
    serial: str | None
    area: str
    code: int
    severity: str
    meters: int
    times: int
    first_at: datetime
    last_at: datetime
    ended_at: datetime | None
    acknowledged_by: str | None
    acknowledged_at: datetime | None
    note: str | None
    of_area: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsAsked:
    """Which events are listed; None leaves a condition out. `after` is the last one of the page before."""

    serial: str | None = None
    codes: Sequence[int] | None = None
    since: datetime
    until: datetime
    after: EventRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmsAsked:
    """Which alarms are listed; None leaves a condition out. Those of meters are put together from `group_from` on."""

    severity: str | None = None
    code: int | None = None
    serial: str | None = None
    area: str | None = None
    ended: bool = False
    since: datetime
    group_from: int


async def standing_flags(conn: AsyncConnection, meter_ids: Collection[int]) -> list[tuple[int, int, int, int]]:
    """Return what some meters' readings repeat: meter, code, since and last in milliseconds."""
    cursor = await conn.execute(sql("standing_flags_of"), {"meter_ids": sorted(meter_ids)})
    return await cursor.fetchall()


async def save_flags(conn: AsyncConnection, flags: Sequence[tuple[int, int, int, int]]) -> None:
    """Keep what readings repeat: meter, code, since and last in milliseconds."""
    meter_ids, codes, sinces, lasts = (list(column) for column in zip(*flags, strict=True))
    parameters = {
        "meter_ids": meter_ids,
        "codes": codes,
        "sinces": [from_ms(at_ms) for at_ms in sinces],
        "lasts": [from_ms(at_ms) for at_ms in lasts],
    }
    await conn.execute(sql("save_flags"), parameters)


async def end_flags(conn: AsyncConnection, *, before: datetime, most: int) -> int:
    """End what readings have not repeated since an instant, and its alarms; return how many, a page at most."""
    cursor = await conn.execute(sql("end_flags"), {"before": before, "most": most})
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def moves_without_order(
    conn: AsyncConnection, moves: Sequence[StoredEvent], *, opened: int, slack_ms: int
) -> list[StoredEvent]:
    """Return those of load switches' moves that no order of ours asked for; `opened` is the code of one that opens."""
    meter_ids, ats_ms, codes = (list(column) for column in zip(*moves, strict=True))
    parameters = {
        "meter_ids": meter_ids,
        "ats": [from_ms(at_ms) for at_ms in ats_ms],
        "codes": codes,
        "opened": opened,
        "slack_ms": slack_ms,
    }
    cursor = await conn.execute(sql("moves_without_order"), parameters)
    return await cursor.fetchall()


async def ring_alarms(conn: AsyncConnection, rings: Sequence[RingRow], *, within_ms: int) -> None:
    """Ring alarms: one that rings or has ended within so long rings again, else it is a new one."""
    parameters = {
        "meter_ids": [ring.meter_id for ring in rings],
        "codes": [ring.code for ring in rings],
        "severities": [ring.severity for ring in rings],
        "firsts": [from_ms(ring.first_ms) for ring in rings],
        "lasts": [from_ms(ring.last_ms) for ring in rings],
        "times": [ring.times for ring in rings],
        "within_ms": within_ms,
    }
    await conn.execute(sql("ring_alarms"), parameters)


async def end_alarms(conn: AsyncConnection, found: Collection[tuple[int, int, int]]) -> None:
    """End alarms (meter, code, code of its end) whose end is stored."""
    meter_ids, codes, ends = (list(column) for column in zip(*sorted(found), strict=True))
    await conn.execute(sql("end_alarms"), {"meter_ids": meter_ids, "codes": codes, "ends": ends})


async def list_events(conn: AsyncConnection, asked: EventsAsked, *, most: int) -> list[EventRow]:
    """List events of meters, those that came last first."""
    parameters = {
        "serial": asked.serial,
        "codes": None if asked.codes is None else list(asked.codes),
        "since": asked.since,
        "until": asked.until,
        "before_at": asked.after.received_at if asked.after else None,
        "before_meter": asked.after.meter_id if asked.after else None,
        "before_event": asked.after.at if asked.after else None,
        "before_code": asked.after.code if asked.after else None,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(EventRow)) as cursor:
        await cursor.execute(sql("list_events"), parameters)
        return await cursor.fetchall()


async def list_alarms(conn: AsyncConnection, asked: AlarmsAsked, *, skip: int, most: int) -> list[AlarmRow]:
    """List alarms, the gravest and latest first; many alike of an area in one line."""
    parameters = {
        "severity": asked.severity,
        "code": asked.code,
        "serial": asked.serial,
        "area": asked.area,
        "ended": asked.ended,
        "since": asked.since,
        "group_from": asked.group_from,
        "skip": skip,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(AlarmRow)) as cursor:
        await cursor.execute(sql("list_alarms"), parameters)
        return await cursor.fetchall()


async def acknowledge_alarm(
    conn: AsyncConnection, alarm_id: int, *, by: str, note: str | None, ending: Collection[int]
) -> None:
    """Note who has seen an alarm; one whose code is none of `ending` is over by it.

    Raises: UnknownAlarm; AlarmSeen.
    """
    async with conn.transaction():
        parameters = {"id": alarm_id, "by": by, "note": note, "ending": sorted(ending)}
        cursor = await conn.execute(sql("acknowledge_alarm"), parameters)
        if await cursor.fetchone() is not None:
            return
        seen = await (await conn.execute(sql("alarm_seen_by"), {"id": alarm_id})).fetchone()
    if seen is None:
        raise UnknownAlarm(f"alarm: expected a known number, got {alarm_id}")
    raise AlarmSeen(f"alarm {alarm_id}: expected one that nobody has acknowledged, got one that {seen[0]} has")


async def acknowledge_area(
    conn: AsyncConnection, area: str, code: int, *, by: str, note: str | None, ending: Collection[int]
) -> int:
    """Note who has seen all alarms of a code in an area; return how many there were.

    Raises: UnknownAlarm when there were none.
    """
    parameters = {"area": area, "code": code, "by": by, "note": note, "ending": sorted(ending)}
    cursor = await conn.execute(sql("acknowledge_area"), parameters)
    if not cursor.rowcount:
        raise UnknownAlarm(f"area {area!r}: expected alarms of code {code} that nobody has acknowledged, got none")
    return cursor.rowcount
