"""Meter events reach people: tamper, an outage that lasts, power that is back.

Stage: inside the transaction that stores an event for the first time, so that a repeated event or batch tells nobody
again; an outage is told by a watch beside ingest, since only time shows that it lasts. What is told is decided by
`headend.events`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.notices import Facts, Outage, Tamper
from db.batches import add_events
from db.event_notices import (
    PowerCodes,
    StoredEvent,
    accounts_at_meters,
    events_told_lately,
    note_outages,
    power_events_beside,
    take_outages,
)
from db.notices import write_notices
from headend.edges.event_alarms import raise_alarms, take_flags
from headend.events import (
    OUTAGE_MS_MIN,
    POWER_BACK,
    POWER_FAILED,
    PowerEvent,
    apart,
    may_be_told,
    meaning_of,
    outage_of,
)

_POWER = PowerCodes(failed=POWER_FAILED, back=POWER_BACK)
# Telling of 500 outages takes some 50 ms, for which readings wait.
OUTAGES_A_PAGE = 500
CHECK_MS = 10_000


async def store_events(
    conn: AsyncConnection,
    events: Sequence[StoredEvent],
    *,
    flags: Collection[StoredEvent] = frozenset(),
    now_ms: int,
) -> None:
    """Store events of meters, each once, and tell of those that are new, in the transaction of the caller.

    `flags` are those that came with readings, which repeat them. Consumers are told, operators see alarms.
    """
    if flags:
        fresh = await take_flags(conn, flags)
        events = [event for event in events if event not in flags or event in fresh]
    new = await add_events(conn, [(meter_id, from_ms(at_ms), code) for meter_id, at_ms, code in events])
    await raise_alarms(conn, new, now_ms=now_ms)
    told = [event for event in new if may_be_told(event[2], event[1], now_ms)]
    if not told:
        return
    accounts = await accounts_at_meters(conn, {meter_id for meter_id, _, _ in told})
    found: dict[int, list[Facts]] = defaultdict(list)
    power = []
    for meter_id, at_ms, code in told:
        tamper = meaning_of(code).tamper
        if meter_id not in accounts:
            continue
        if tamper is None:
            power.append((meter_id, at_ms, code))
        else:
            found[accounts[meter_id]].append(Tamper(event=tamper, at_ms=at_ms))
    if power:
        await _take_power(conn, power, accounts, found)
    await _tell(conn, found)


class OutageWatch:
    """Tells consumers of power that has been out for a while."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._checked_ms = 0

    async def step(self, conn: AsyncConnection) -> None:
        """Tell of outages that last, a page at most."""
        now_ms = self._clock()
        # A clock that was set back begins anew.
        if 0 <= now_ms - self._checked_ms < CHECK_MS:
            return
        if await tell_outages(conn, now_ms=now_ms) < OUTAGES_A_PAGE:
            self._checked_ms = now_ms


async def tell_outages(conn: AsyncConnection, *, now_ms: int) -> int:
    """Tell of up to `OUTAGES_A_PAGE` failures of power that have lasted, in a transaction; return how many were due.

    Several processes at once are safe.
    """
    async with conn.transaction():
        due = await take_outages(conn, until_ms=now_ms - OUTAGE_MS_MIN, most=OUTAGES_A_PAGE)
        lasting = [(meter_id, at_ms, POWER_FAILED) for meter_id, at_ms in due]
        lasting = [event for event in lasting if may_be_told(event[2], event[1], now_ms)]
        if not lasting:
            return len(due)
        accounts = await accounts_at_meters(conn, {meter_id for meter_id, _, _ in lasting})
        found: dict[int, list[Facts]] = defaultdict(list)
        for event in await _beside(conn, lasting):
            if event.beside_ms is None and event.meter_id in accounts:
                found[accounts[event.meter_id]].append(Outage(since_ms=event.at_ms))
        await _tell(conn, found)
    return len(due)


async def _take_power(
    conn: AsyncConnection, power: Sequence[StoredEvent], accounts: Mapping[int, int], found: dict[int, list[Facts]]
) -> None:
    """Find outages that are over; note failures of power that nothing has followed yet."""
    lasting = []
    for event in await _beside(conn, power):
        ended = outage_of(event)
        if ended is not None:
            found[accounts[event.meter_id]].append(ended)
        elif event.code == POWER_FAILED and event.beside_ms is None:
            lasting.append((event.meter_id, event.at_ms))
    if lasting:
        await note_outages(conn, lasting)


async def _beside(conn: AsyncConnection, power: Sequence[StoredEvent]) -> list[PowerEvent]:
    return [
        PowerEvent(meter_id=meter_id, at_ms=at_ms, code=code, beside_ms=beside_ms, beside_code=beside_code)
        for meter_id, at_ms, code, beside_ms, beside_code in await power_events_beside(conn, power, _POWER)
    ]


async def _tell(conn: AsyncConnection, found: Mapping[int, Sequence[Facts]]) -> None:
    """Write notices, but for what was told within minutes."""
    if not found:
        return
    told = await events_told_lately(conn, found)
    notices = [
        (account_id, facts)
        for account_id in sorted(found)
        for facts in apart(told.get(account_id, ()), found[account_id])
    ]
    if notices:
        await write_notices(conn, notices)
