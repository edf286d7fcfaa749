"""What the dispatcher reads and writes in one round: orders that are due, limits by area, claims.

Stage: inside the round's transaction, after its leases were fenced. Every statement is bounded, however many orders
wait: restores, cut-offs, load limits, messages and orders to read are found each in a lane of their own, cut-offs by
area. No row is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar
from db.accounts import look
from db.named import sql
from db.token_deliveries import digits_of_tokens
from headend.dispatch_plan import AreaCount, CutOffLimits, DueOrder, PutOff, SupplyAlarm

# Orders to read wait for everybody: so many a round leave room for the others in its write.
READS_MAX = 50
# 500 commands of 200 bytes are one write of 100 kB to the broker.
ORDERS_MAX = 500
# Of one shard, so that a round considers some thousands of rows at most; with a single shard a whole round's worth.
ORDERS_OF_SHARD_MIN = 64
# Of a thousand areas with cut-offs due a round counts in these, drawn by lot: 10 ms.
AREAS_MAX = 200
# Areas without a place are looked into, a few a round, for cut-offs that only wait for their hours.
FULL_AREAS_MAX = 50
# A meter answers within a second when it can be reached; then 2, 4, 8 s ... up to 5 minutes for one that is away. Who
# waits for light waits a minute at most: 100,000 restores to meters that are away are 1,700 commands a second.
BACKOFF_S_FIRST, BACKOFF_S_MAX, RESTORE_BACKOFF_S_MAX = 2, 300, 60
# Each try to cut takes one of its area's 600 places a minute: after a day of tries, 600 meters out of reach for good
# take 20 of them, not 120.
LONG_AWAY_ATTEMPTS, LONG_AWAY_BACKOFF_S = 300, 1_800
# Meters and accounts looked at by one sweep for contradictions: some 20 ms.
SWEEP_MAX = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What one round has to decide on.

    Invariants: `orders` are restores, then cut-offs, load limits, messages, orders to read; `areas` has each area of a
    cut-off among them, its row locked; `new_areas` have no row yet; `clock` is the database's; `more` tells that others
    may be due.
    """

    orders: Sequence[DueOrder]
    areas: Mapping[str, AreaCount]
    new_areas: Sequence[str]
    clock: datetime
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """An order claimed for one try."""

    id: int
    serial: str
    transport: str
    area: str
    kind: str
    is_first_try: bool
    epoch: int
    relay: str | None
    limit_w: int | None
    level: str | None
    balance_minor: int | None
    threshold_minor: int | None
    read_from: datetime | None
    read_to: datetime | None
    account_id: int
    token_id: int | None
    token: str | None = field(default=None, repr=False)


async def find_due(conn: AsyncConnection, shards: Sequence[int], limits: CutOffLimits, today: date) -> Due:
    """Find what is due of some shards, with the facts that decide whether it leaves."""
    of_shard = max(ORDERS_OF_SHARD_MIN, 2 * ORDERS_MAX // max(1, len(shards)))
    lane = {"shards": list(shards), "of_shard": of_shard, "most": ORDERS_MAX}
    async with conn.pipeline():
        clock = await conn.execute(sql("database_clock"))
        restores = await conn.execute(sql("due_restores"), lane)
        limits_due = await conn.execute(sql("due_load_limits"), lane)
        messages = await conn.execute(sql("due_messages"), lane)
        reads = await conn.execute(sql("due_reads"), lane | {"most": READS_MAX})
        waiting = await conn.execute(sql("waiting_areas"), {"shards": list(shards), "areas_most": AREAS_MAX})
    restore_ids, limit_ids, message_ids, read_ids = [
        [row[0] for row in await cursor.fetchall()] for cursor in (restores, limits_due, messages, reads)
    ]
    found = await waiting.fetchall()
    names = [name for name, known in found if known]
    areas = await _lock_and_count(conn, names, limits) if names else {}
    cut_off_ids = await _due_cut_offs(conn, shards, areas, limits) if areas else []
    ids = [*restore_ids, *cut_off_ids, *limit_ids, *message_ids, *read_ids][:ORDERS_MAX]
    now = await clock.fetchone()
    assert now is not None, "database_clock returns one row"
    return Due(
        orders=await _facts(conn, ids, today) if ids else [],
        areas=areas,
        new_areas=[name for name, known in found if not known],
        clock=now[0],
        more=max(map(len, (restore_ids, limit_ids, message_ids, cut_off_ids))) >= min(of_shard, ORDERS_MAX),
    )


async def know_areas(conn: AsyncConnection, names: Sequence[str]) -> None:
    """Give areas the row that they are counted under; outside of any transaction, so that nobody waits for us."""
    if names:
        await conn.execute(sql("know_areas"), {"areas": list(names)})


async def put_off(conn: AsyncConnection, orders: Sequence[PutOff]) -> None:
    """Look at orders again later, and keep why."""
    if orders:
        parameters = {
            "ids": [order.id for order in orders],
            "waits_ms": [order.wait_ms for order in orders],
            "whys": [order.why.value for order in orders],
        }
        await conn.execute(sql("put_off_orders"), parameters)


async def order_anew(conn: AsyncConnection, ids: Sequence[int]) -> int:
    """Replace contradicted orders by ones of their meters' next epochs; return how many."""
    if not ids:
        return 0
    cursor = await conn.execute(sql("free_contradicted"), {"ids": list(ids)})
    free = [row[0] for row in await cursor.fetchall()]
    if free:
        await conn.execute(sql("end_contradicted"), {"ids": free})
        await conn.execute(sql("order_again"), {"ids": free})
    return len(free)


async def claim(conn: AsyncConnection, ids: Sequence[int], limits: CutOffLimits) -> list[Claimed]:
    """Claim orders for one try, those that are still current and that nobody is changing; count the cut-offs."""
    if not ids:
        return []
    parameters = {
        "ids": list(ids),
        "backoff_s_first": BACKOFF_S_FIRST,
        "backoff_s_max": BACKOFF_S_MAX,
        "restore_backoff_s_max": RESTORE_BACKOFF_S_MAX,
        "long_away_attempts": LONG_AWAY_ATTEMPTS,
        "long_away_backoff_s": LONG_AWAY_BACKOFF_S,
    }
    async with conn.cursor(row_factory=dict_row) as rows:
        await rows.execute(sql("send_orders"), parameters)
        claimed = [Claimed(**row) for row in await rows.fetchall()]
    cut_offs = [order for order in claimed if order.kind == "supply" and order.relay == "off"]
    if cut_offs:
        numbers = Counter(order.area for order in cut_offs)
        first_tries = Counter(order.area for order in cut_offs if order.is_first_try)
        counted = {
            "areas": list(numbers),
            "numbers": list(numbers.values()),
            "first_tries": [first_tries[area] for area in numbers],
            "minute_s": limits.minute_s,
        }
        await conn.execute(sql("count_cut_offs"), counted)
    place = {order_id: number for number, order_id in enumerate(ids)}
    return sorted(claimed, key=lambda order: place[order.id])


async def refresh(conn: AsyncConnection, claimed: Sequence[Claimed], calendar: LocalCalendar) -> list[Claimed]:
    """Give orders what they have to carry now: tokens their digits, repeated ones the balance as it has become.

    A cut-off keeps its own: what it tells the meter is that there is no credit.
    """
    again = {
        order.account_id
        for order in claimed
        if not order.is_first_try and order.balance_minor is not None and order.relay != "off"
    }
    views = await look(conn, sorted(again), calendar) if again else {}
    balances = {account_id: view.balance_minor(calendar) for account_id, view in views.items()}
    digits = await digits_of_tokens(conn, {order.token_id for order in claimed if order.token_id is not None})
    return [
        replace(
            order,
            token=None if order.token_id is None else digits[order.token_id],
            balance_minor=order.balance_minor
            if order.is_first_try or order.relay == "off"
            else balances.get(order.account_id, order.balance_minor),
        )
        for order in claimed
    ]


async def raise_alarms(conn: AsyncConnection, alarms: Sequence[SupplyAlarm]) -> list[tuple[str, str]]:
    """Tell operators of areas whose cut-offs are held back; return area and kind of those not told before."""
    if not alarms:
        return []
    parameters = {
        "areas": [alarm.area for alarm in alarms],
        "kinds": [alarm.kind.value for alarm in alarms],
        "sents": [alarm.sent for alarm in alarms],
        "mosts": [alarm.most for alarm in alarms],
    }
    cursor = await conn.execute(sql("raise_supply_alarms"), parameters)
    return [(area, kind) for area, kind in await cursor.fetchall()]


async def ask_contradicting(
    conn: AsyncConnection, shards: Sequence[int], after_meter: int, after_account: int
) -> tuple[int, int, int]:
    """Ask for a look at accounts whose meter reports another supply than desired while nothing is ordered.

    Such accounts are ordered the difference by whoever sees the report; this finds what was missed. Looks at some
    meters and accounts after the given ids; returns where the next sweep goes on, and how many were asked for.
    """
    asked = 0
    nexts = []
    for query, after in (("ask_off_meters", after_meter), ("ask_off_accounts", after_account)):
        cursor = await conn.execute(sql(query), {"after": after, "most": SWEEP_MAX, "shards": list(shards)})
        row = await cursor.fetchone()
        assert row is not None, f"{query} returns one row"
        nexts.append(row[0] or 0)
        asked += row[1]
    return nexts[0], nexts[1], asked


async def _lock_and_count(conn: AsyncConnection, names: Sequence[str], limits: CutOffLimits) -> dict[str, AreaCount]:
    """Lock those areas that no other dispatcher counts in; return what left for them."""
    cursor = await conn.execute(sql("lock_areas"), {"areas": list(names)})
    locked = {row[0] for row in await cursor.fetchall()}
    ordered = [name for name in names if name in locked]
    parameters = {"areas": ordered, "minute_s": limits.minute_s, "hour_s": limits.hour_s}
    async with conn.pipeline():
        await conn.execute(sql("carry_counts"), parameters)
        counts = await conn.execute(sql("cut_off_places"), parameters)
    found = {
        area: AreaCount(minute_sent=minute_sent, hour_sent=hour_sent, held=held)
        for area, minute_sent, hour_sent, held in await counts.fetchall()
    }
    return {name: found[name] for name in ordered}


async def _due_cut_offs(
    conn: AsyncConnection, shards: Sequence[int], areas: Mapping[str, AreaCount], limits: CutOffLimits
) -> list[int]:
    """Find the cut-offs of each area that fit its places, and one more that tells whether others wait."""
    places = {name: min(area.places(limits), ORDERS_MAX) for name, area in areas.items()}
    full = [name for name, free in places.items() if not free][:FULL_AREAS_MAX]
    numbers = {name: free + 1 for name, free in places.items() if free} | dict.fromkeys(full, 1)
    parameters = {
        "areas": list(numbers),
        "numbers": list(numbers.values()),
        "shards": list(shards),
        "most": ORDERS_MAX + 1,
    }
    cursor = await conn.execute(sql("due_cut_offs"), parameters)
    return [row[0] for row in await cursor.fetchall()]


async def _facts(conn: AsyncConnection, ids: Sequence[int], today: date) -> list[DueOrder]:
    """Read what decides about orders, in the order of their ids given; those that are no longer open are left out."""
    async with conn.cursor(row_factory=dict_row) as rows:
        await rows.execute(sql("order_facts"), {"ids": list(ids), "today": today})
        # Rows of `order_facts`: typed by the migration.
        found: dict[int, dict[str, Any]] = {row["id"]: row for row in await rows.fetchall()}
    return [DueOrder(**found[order_id]) for order_id in ids if order_id in found]
