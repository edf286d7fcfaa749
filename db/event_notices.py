"""Rows behind the notices of meter events: whose meter, which outage, what was told lately.

Stage: inside the transaction that stores an event, and of the watch for outages that last. Reads and notes; what is
told is decided by `headend.events`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.notices import Facts, read_facts
from db.named import sql

# An event of a meter: meter, instant in UTC milliseconds, code.
StoredEvent = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCodes:
    """The codes of power that fails and comes back."""

    failed: int
    back: int


async def accounts_at_meters(conn: AsyncConnection, meter_ids: Collection[int]) -> dict[int, int]:
    """Return the accounts that meters are installed for, by meter; a meter without one is left out."""
    cursor = await conn.execute(sql("accounts_at_meters"), {"meter_ids": sorted(meter_ids)})
    return dict(await cursor.fetchall())


async def power_events_beside(
    conn: AsyncConnection, events: Sequence[StoredEvent], codes: PowerCodes
) -> list[tuple[int, int, int, int | None, int | None]]:
    """Return power events with instant and code of the one after a failure, before a return; None without one.

    Units: instants are UTC milliseconds.
    """
    meter_ids, ats_ms, event_codes = (list(column) for column in zip(*events, strict=True))
    parameters = {
        "meter_ids": meter_ids,
        "ats": [from_ms(at_ms) for at_ms in ats_ms],
        "codes": event_codes,
        "failed": codes.failed,
        "back": codes.back,
    }
    cursor = await conn.execute(sql("power_events_beside"), parameters)
    return await cursor.fetchall()


async def note_outages(conn: AsyncConnection, outages: Sequence[tuple[int, int]]) -> None:
    """Note failures of power (meter, instant in milliseconds) that are to be told of if they last."""
    meter_ids = [meter_id for meter_id, _ in outages]
    sinces = [from_ms(since_ms) for _, since_ms in outages]
    await conn.execute(sql("note_outages"), {"meter_ids": meter_ids, "sinces": sinces})


async def take_outages(conn: AsyncConnection, *, until_ms: int, most: int) -> list[tuple[int, int]]:
    """Take failures of power (meter, instant in milliseconds) of up to an instant; nobody else gets them."""
    cursor = await conn.execute(sql("take_outages"), {"until": from_ms(until_ms), "most": most})
    return await cursor.fetchall()


async def events_told_lately(conn: AsyncConnection, account_ids: Collection[int]) -> dict[int, list[Facts]]:
    """Return what accounts were told of their meters' events within the last day."""
    cursor = await conn.execute(sql("events_told_lately"), {"account_ids": sorted(account_ids)})
    told: dict[int, list[Facts]] = defaultdict(list)
    for account_id, kind, facts in await cursor.fetchall():
        told[account_id].append(read_facts(kind, facts))
    return told
