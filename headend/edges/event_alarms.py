"""Alarms of events: rung inside the transaction that stores the event, ended by the event that ends it.

Stage: inside an ingest batch, after its events were stored; beside it, `end_old_flags` for what readings no longer
repeat. What is the same and what rings is decided by `headend.event_alarms`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.event_alarms import (
    RingRow,
    end_alarms,
    end_flags,
    moves_without_order,
    ring_alarms,
    save_flags,
    standing_flags,
)
from db.event_notices import StoredEvent
from headend.event_alarms import (
    FLAG_APART_MS,
    ORDER_SLACK_MS,
    SAME_WITHIN_MS,
    Flag,
    may_end,
    moved_alone,
    moves_of,
    new_flags,
    rings_of,
)
from headend.events import SWITCH_OPEN
from headend.validate import FUTURE_SLACK_MS, LATE_WINDOW_MS

# Flags that readings no longer repeat, ended in a transaction of some 10 ms.
FLAGS_A_PAGE = 1_000


async def take_flags(conn: AsyncConnection, flags: Collection[StoredEvent]) -> set[StoredEvent]:
    """Return those flags of readings that are events of their own; keep how they stand."""
    rows = await standing_flags(conn, {meter_id for meter_id, _, _ in flags})
    standing = {
        (meter_id, code): Flag(meter_id=meter_id, code=code, since_ms=since_ms, last_ms=last_ms)
        for meter_id, code, since_ms, last_ms in rows
    }
    fresh, changed = new_flags(flags, standing)
    if changed:
        await save_flags(conn, [(flag.meter_id, flag.code, flag.since_ms, flag.last_ms) for flag in changed])
    return fresh


async def raise_alarms(conn: AsyncConnection, new: Sequence[StoredEvent], *, now_ms: int) -> None:
    """Ring and end alarms for events that were stored for the first time; what is long ago rings nobody."""
    events = [event for event in new if -FUTURE_SLACK_MS <= now_ms - event[1] <= LATE_WINDOW_MS]
    moves = moves_of(events)
    if moves:
        alone = await moves_without_order(conn, moves, opened=SWITCH_OPEN, slack_ms=ORDER_SLACK_MS)
        events = [*events, *moved_alone(alone)]
    rings = [
        RingRow(
            meter_id=ring.meter_id,
            code=ring.code,
            severity=ring.severity.value,
            first_ms=ring.first_ms,
            last_ms=ring.last_ms,
            times=ring.times,
        )
        for ring in rings_of(events)
    ]
    if rings:
        await ring_alarms(conn, rings, within_ms=SAME_WITHIN_MS)
    ended = may_end(events)
    if ended:
        await end_alarms(conn, ended)


async def end_old_flags(conn: AsyncConnection, *, now_ms: int) -> int:
    """End what readings no longer repeat, page by page; return how many flags."""
    ended = gone = await end_flags(conn, before=from_ms(now_ms - FLAG_APART_MS), most=FLAGS_A_PAGE)
    while gone == FLAGS_A_PAGE:
        gone = await end_flags(conn, before=from_ms(now_ms - FLAG_APART_MS), most=FLAGS_A_PAGE)
        ended += gone
    return ended
