"""What became of the supply orders of a run, and how long each took on its way.

Stage: after a run of `bench supply`. Reads the orders with the instant at which the transaction that wrote each was
committed; makes counts and percentiles. The commit of an order is found by the change feed: the transaction that wrote
the order also told the feed, under the account's lock, so it is the first of the account's to commit after the order
was written. The instant is that at which the commit began, before its sync to disk (`track_commit_timestamp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import from_ms

# Microseconds since 1970 hold every instant exactly in 64 bits.
_ORDERS: Final = b"""
select o.id, o.meter_id as number, o.relay, o.state, o.attempts,
       (extract(epoch from o.created_at) * 1000000)::bigint as created_us,
       (extract(epoch from c.at) * 1000000)::bigint as committed_us,
       (extract(epoch from o.published_at) * 1000000)::bigint as published_us
from supply_orders o
cross join lateral (
    select min(t.at) as at from change_feed f
    cross join lateral (select pg_xact_commit_timestamp(xid(f.xid)) as at) t
    where f.shard = o.shard and f.account_id = o.account_id and t.at >= o.created_at
) c
where o.kind = 'supply' and o.id > %(after)s
order by o.id
"""
_LAST: Final = b"select coalesce(max(id), 0) from supply_orders"
_OPEN: Final = b"""
select (select count(*) from supply_orders where state in ('pending', 'held', 'sent')) + (select count(*) from rechecks)
"""
_OTHERS: Final = b"""
select count(*), count(*) filter (where state = 'confirmed')
from supply_orders where kind <> 'supply' and id > %(after)s
"""
_ALARMS: Final = b"select count(*) from supply_alarms"
_DEADLOCKS: Final = b"select coalesce(deadlocks, 0) from pg_stat_database where datname = current_database()"
_STORED: Final = b"""
select floor(extract(epoch from committed_at - %(began_at)s::timestamptz) / %(slot_s)s)::integer, sum(stored)::bigint
from batches where committed_at >= %(began_at)s group by 1 order by 1
"""
_PERCENTS: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A supply order of the run. Units: microseconds since 1970; `number` is the meter's."""

    id: int
    number: int
    relay: str
    state: str
    attempts: int
    created_us: int
    committed_us: int | None
    published_us: int | None


async def last_order(conn: AsyncConnection) -> int:
    """Return the highest order id so far."""
    return await _count(conn, _LAST)


async def open_orders(conn: AsyncConnection) -> int:
    """Count the orders that no meter has confirmed, and the accounts that wait to be looked at."""
    return await _count(conn, _OPEN)


async def areas_limited(conn: AsyncConnection) -> int:
    """Count how often an area's cut-offs were held back."""
    return await _count(conn, _ALARMS)


async def stored_by_slot(conn: AsyncConnection, began_ns: int, slot_s: int) -> list[int]:
    """Return readings stored per second in each slot of time from an instant on, to the last in which any was."""
    parameters = {"began_at": from_ms(began_ns // 1_000_000), "slot_s": slot_s}
    found: dict[int, int] = dict(await (await conn.execute(_STORED, parameters)).fetchall())
    return [found.get(slot, 0) // slot_s for slot in range(max(found, default=-1) + 1)]


async def deadlocks(conn: AsyncConnection) -> int:
    """Count the deadlocks that the server has ended in this database."""
    return await _count(conn, _DEADLOCKS)


async def read_orders(conn: AsyncConnection, after: int) -> list[Order]:
    """Read the supply orders above an id."""
    async with conn.cursor(row_factory=class_row(Order)) as rows:
        return await (await rows.execute(_ORDERS, {"after": after})).fetchall()


async def count_messages(conn: AsyncConnection, after: int) -> tuple[int, int]:
    """Count the alarms and thresholds told to meters above an id, and those that were confirmed."""
    row = await (await conn.execute(_OTHERS, {"after": after})).fetchone()
    assert row is not None, "a count returns one row"
    return row[0], row[1]


def order_counts(orders: Sequence[Order]) -> dict[str, int]:
    """Count orders by what became of them."""
    return {
        "written": len(orders),
        "published": sum(order.published_us is not None for order in orders),
        "unpublished": sum(order.published_us is None for order in orders),
        "confirmed": sum(order.state == "confirmed" for order in orders),
        "unconfirmed": sum(order.state in ("pending", "held", "sent") for order in orders),
        "superseded": sum(order.state == "superseded" for order in orders),
        "sent_more_than_once": sum(order.attempts > 1 for order in orders),
    }


def to_published(order: Order) -> int | None:
    """Return the microseconds from the commit that wrote an order to the dispatcher's note that it left."""
    if order.published_us is None or order.committed_us is None:
        return None
    return order.published_us - order.committed_us


def percentiles_ms(orders: Iterable[Order], took_us: Callable[[Order], int | None]) -> dict[str, float | int]:
    """Return how long orders took, by nearest rank, in milliseconds; those that never came count in none.

    A percentile is the smallest duration that at least so many percent of all do not exceed.
    """
    rising = sorted(us for order in orders if (us := took_us(order)) is not None)
    if not rising:
        return {"of": 0}
    found = {f"p{percent}": rising[-(-len(rising) * percent // 100) - 1] for percent in _PERCENTS}
    return {"of": len(rising), **{name: round(us / 1_000, 1) for name, us in (found | {"max": rising[-1]}).items()}}


async def _count(conn: AsyncConnection, query: bytes) -> int:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None, "a count returns one row"
    return int(row[0])
