"""Gaps in readings, as rows: noted by a batch, looked at a page at a time, ordered to be read again, listed.

Stage: `note_gaps` and `touch_gaps` inside a batch's transaction, one statement each and only where there is something;
the rest in the dispatcher's own. Rows that somebody holds are never waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import from_ms
from db.named import sql

# Closed gaps are kept for a quarter of a year, the time in which a bill is disputed.
KEEP_DAYS = 92
TRIM_MAX = 1_000


# A span between two readings that may lack others: meter, from, to (ms), intervals missing.
Span = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGap:
    """How a gap stands after a look. Units: milliseconds from now; `ask_in_ms` None leaves it as it is."""

    id: int
    from_ms: int
    to_ms: int
    missing: int
    state: str
    answers: int
    keeps_order: bool
    look_in_ms: int
    ask_in_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGap:
    """A gap as an operator sees it."""

    id: int
    serial: str
    area: str
    from_at: datetime
    to_at: datetime
    interval_s: int | None
    missing: int
    state: str
    asks: int
    answers: int
    noted_at: datetime
    closed_at: datetime | None


async def note_gaps(conn: AsyncConnection, spans: Sequence[Span]) -> dict[int, int]:
    """Note spans, but for those that are within their meter's interval; return the intervals that are known, in s."""
    meter_ids, froms, tos, missings = (list(column) for column in zip(*spans, strict=True))
    parameters = {
        "meter_ids": meter_ids,
        "froms": [from_ms(at_ms) for at_ms in froms],
        "tos": [from_ms(at_ms) for at_ms in tos],
        "missings": missings,
    }
    cursor = await conn.execute(sql("note_gaps"), parameters)
    return dict(await cursor.fetchall())


async def touch_gaps(conn: AsyncConnection, meter_ids: Iterable[int]) -> None:
    """Have the gaps of meters looked at soon, since late readings of theirs were stored."""
    await conn.execute(sql("touch_gaps"), {"meter_ids": sorted(set(meter_ids))})


async def due_gaps(conn: AsyncConnection, shards: Sequence[int], most: int) -> list[dict[str, Any]]:
    """Lock and read gaps of some shards whose look is due. Columns as in the query: typed by the migration."""
    async with conn.cursor(row_factory=dict_row) as rows:
        await rows.execute(sql("due_gaps"), {"shards": list(shards), "most": most})
        return await rows.fetchall()


async def save_gaps(conn: AsyncConnection, gaps: Sequence[SavedGap]) -> None:
    """Write how gaps stand after their look."""
    if not gaps:
        return
    await conn.execute(
        sql("save_gaps"),
        {
            "ids": [gap.id for gap in gaps],
            "froms": [from_ms(gap.from_ms) for gap in gaps],
            "tos": [from_ms(gap.to_ms) for gap in gaps],
            "missings": [gap.missing for gap in gaps],
            "states": [gap.state for gap in gaps],
            "answers": [gap.answers for gap in gaps],
            "keep_orders": [gap.keeps_order for gap in gaps],
            "looks_in_ms": [gap.look_in_ms for gap in gaps],
            "asks_in_ms": [gap.ask_in_ms for gap in gaps],
        },
    )


async def drop_gaps(conn: AsyncConnection, ids: Sequence[int]) -> None:
    """Forget spans in which nothing was missing."""
    if ids:
        await conn.execute(sql("drop_gaps"), {"ids": list(ids)})


async def learn_intervals(conn: AsyncConnection, intervals_s: Mapping[int, int]) -> None:
    """Keep the intervals of meters that had none."""
    if intervals_s:
        parameters = {"meter_ids": list(intervals_s), "intervals_s": list(intervals_s.values())}
        await conn.execute(sql("learn_intervals"), parameters)


async def open_reads(conn: AsyncConnection) -> dict[str, int]:
    """Count the orders to read that are not answered yet, by area."""
    return dict(await (await conn.execute(sql("open_reads"))).fetchall())


async def order_reads(conn: AsyncConnection, spans: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Order meters to send stored readings of a span (ms, ends included) again; return the orders' ids by meter.

    Left out are meters that have such an order open, whose row is held by somebody, or that stand nowhere.
    """
    cursor = await conn.execute(sql("free_readers"), {"meter_ids": sorted(spans)})
    free = [row[0] for row in await cursor.fetchall()]
    if not free:
        return {}
    parameters = {
        "meter_ids": free,
        "froms": [from_ms(spans[meter_id][0]) for meter_id in free],
        "tos": [from_ms(spans[meter_id][1]) for meter_id in free],
    }
    return dict(await (await conn.execute(sql("order_reads"), parameters)).fetchall())


async def mark_asked(conn: AsyncConnection, orders: Mapping[int, int], look_in_ms: int) -> None:
    """Note which order asks for which gap."""
    if orders:
        parameters = {"ids": list(orders), "order_ids": list(orders.values()), "look_in_ms": look_in_ms}
        await conn.execute(sql("mark_asked"), parameters)


async def end_reads(conn: AsyncConnection, order_ids: Iterable[int]) -> None:
    """End open orders to read that no gap waits for any more."""
    ids = sorted(set(order_ids))
    if ids:
        await conn.execute(sql("end_reads"), {"order_ids": ids})


async def trim_gaps(conn: AsyncConnection) -> None:
    """Forget gaps that were closed long ago."""
    await conn.execute(sql("trim_gaps"), {"days": KEEP_DAYS, "most": TRIM_MAX})


async def gap_counts(conn: AsyncConnection) -> dict[str, tuple[int, int]]:
    """Count gaps, and the intervals they lack, by state."""
    cursor = await conn.execute(sql("gap_counts"))
    return {state: (number, missing) for state, number, missing in await cursor.fetchall()}


async def list_gaps(
    conn: AsyncConnection, states: Sequence[str], *, serial: str | None, after: int, most: int
) -> list[ListedGap]:
    """List gaps in some states, the first noted first, from after an id on."""
    parameters = {"states": list(states), "serial": serial, "after": after, "most": most}
    async with conn.cursor(row_factory=dict_row) as rows:
        await rows.execute(sql("list_gaps"), parameters)
        return [ListedGap(**row) for row in await rows.fetchall()]
