"""Figures about what is stored: counts of batches, bills per account and month, keys that were lost.

Stage: after the fact, for replay, statements and the auditor. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from billing.rating import Lines
from billing.running import by_month, open_bills
from db.accounts import AccountView, look
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """Readings by what became of them: received = stored + duplicate + rejected + quarantined."""

    received: int
    stored: int
    duplicate: int
    rejected: int
    quarantined: int

    def since(self, before: BatchTotals) -> BatchTotals:
        """Return what was added since an earlier count."""
        return BatchTotals(
            received=self.received - before.received,
            stored=self.stored - before.stored,
            duplicate=self.duplicate - before.duplicate,
            rejected=self.rejected - before.rejected,
            quarantined=self.quarantined - before.quarantined,
        )


@dataclass(slots=True, kw_only=True)
class Bill:
    """One account's bill of one period so far: energy in Wh, lines in minor units."""

    energy_wh: int = 0
    lines: Lines = field(default_factory=dict)


async def batch_totals(conn: AsyncConnection) -> BatchTotals:
    """Count what batches have received and what became of it."""
    cursor = await conn.execute(sql("batch_outcomes"))
    row = await cursor.fetchone()
    assert row is not None, "batch_outcomes returns one row"
    return BatchTotals(received=row[0], stored=row[1], duplicate=row[2], rejected=row[3], quarantined=row[4])


async def bills(
    conn: AsyncConnection, views: Iterable[AccountView], calendar: LocalCalendar
) -> dict[int, dict[date, Bill]]:
    """Return every month's bill of some accounts: journals of closed bill parts, the running charge of open ones."""
    by_id = {view.id: view for view in views}
    parameters = {"ids": list(by_id)}
    parts: dict[int, dict[date, tuple[int, Lines]]] = {account_id: {} for account_id in by_id}
    cursor = await conn.execute(sql("account_energy"), parameters)
    for account_id, period, energy_wh in await cursor.fetchall():
        parts[account_id][period] = (energy_wh, {})
    cursor = await conn.execute(sql("account_bills"), parameters)
    for account_id, period, line, amount_minor in await cursor.fetchall():
        parts[account_id][period][1][line] = amount_minor
    for account_id, view in by_id.items():
        parts[account_id] |= open_bills(view.checkpoint, view.terms, view.points, calendar)
    return {
        account_id: {month: Bill(energy_wh=wh, lines=lines) for month, (wh, lines) in by_month(found).items()}
        for account_id, found in parts.items()
    }


async def look_all(conn: AsyncConnection, ids: Sequence[int], calendar: LocalCalendar) -> dict[int, AccountView]:
    """Look at many accounts, some hundreds at a time."""
    views: dict[int, AccountView] = {}
    for first in range(0, len(ids), 500):
        views |= await look(conn, ids[first : first + 500], calendar)
    return views


async def accounts_of_meters(conn: AsyncConnection, serials: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return meter id and account id by serial."""
    cursor = await conn.execute(sql("meter_ids"), {"serials": list(serials)})
    return {serial: (meter_id, account_id) for serial, meter_id, account_id in await cursor.fetchall()}


async def count_lost(conn: AsyncConnection, keys: Iterable[tuple[int, str, datetime]]) -> int:
    """Count keys (meter, serial, instant) that are neither stored nor in quarantine."""
    await conn.execute(sql("make_sent_keys"))
    async with conn.cursor() as cursor, cursor.copy(sql("copy_sent_keys")) as copy:
        copy.set_types(("int4", "text", "timestamptz"))
        for key in keys:
            await copy.write_row(key)
    await conn.execute(sql("analyze_sent_keys"))
    counted = await conn.execute(sql("count_lost"))
    row = await counted.fetchone()
    assert row is not None, "count_lost returns one row"
    return int(row[0])


async def count_events(conn: AsyncConnection, account_ids: Sequence[int]) -> tuple[int, int, int]:
    """Count alarms, cut-offs and restores of some accounts."""
    cursor = await conn.execute(sql("count_events"), {"ids": list(account_ids)})
    row = await cursor.fetchone()
    assert row is not None, "count_events returns one row"
    return row[0], row[1], row[2]


async def readings_there(conn: AsyncConnection, serials: Sequence[str], at: datetime) -> int:
    """Count how many of some meters have a reading at an instant."""
    return int(await _one(conn, "readings_there", serials=list(serials), at=at))


async def alarm_there(conn: AsyncConnection, account_id: int, level: str) -> bool:
    """Tell whether an account has had an alarm of a level."""
    return bool(await _one(conn, "alarm_there", account_id=account_id, level=level))


async def order_confirmed(conn: AsyncConnection, meter_id: int, relay: str) -> bool:
    """Tell whether a meter's latest supply order is this one and confirmed."""
    return bool(await _one(conn, "order_confirmed", meter_id=meter_id, relay=relay))


async def order_delays_s(conn: AsyncConnection, relay: str) -> list[float]:
    """Return, rising, the seconds from writing each supply order (inside its transaction) to its publication."""
    cursor = await conn.execute(sql("order_delays"), {"relay": relay})
    return [row[0] for row in await cursor.fetchall()]


async def _one(conn: AsyncConnection, query: str, **parameters: object) -> int | bool:
    cursor = await conn.execute(sql(query), parameters)
    row = await cursor.fetchone()
    assert row is not None, f"{query} returns one row"
    value: int | bool = row[0]
    return value
