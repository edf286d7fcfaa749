"""Gaps are looked at, narrowed, asked for and given up: a page now and then, beside the dispatcher's rounds.

Stage: inside the dispatcher, under its leases. What becomes of a gap is `headend.gaps.decide`; orders to read leave by
the lane of their own that the dispatcher has for them, behind all others. An outage of a whole area leaves a gap for
each of its meters: places by area and in all, and a small page, make a queue of them, never a storm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
from psycopg import AsyncConnection

from db.gaps import (
    SavedGap,
    drop_gaps,
    due_gaps,
    end_reads,
    learn_intervals,
    mark_asked,
    open_reads,
    order_reads,
    save_gaps,
    trim_gaps,
)
from headend.gaps import LOOK_AGAIN_MS, STORE_MS, Gap, GapState, Looked, decide

_log = structlog.get_logger("gaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class GapLimits:
    """How much a dispatcher does about gaps at a step, of which there are 12 a minute.

    A look reads up to 1,680 instants, 35 days of half hours: 200 looks take some 0.1 s at worst. 20 orders a step are
    240 a minute; each brings a day or so, 48 late readings: 190 a second, a fiftieth of what ingest takes late.
    """

    looks: int = 200
    orders: int = 20
    open_by_area: int = 100
    open_in_all: int = 1_000


GAP_LIMITS = GapLimits()


async def look_at_gaps(conn: AsyncConnection, shards: Sequence[int], now_ms: int, limits: GapLimits) -> int:
    """Look at gaps that are due, in a transaction of its own; return how many there were."""
    async with conn.transaction():
        rows = await due_gaps(conn, shards, limits.looks)
        if not rows:
            return 0
        orders = {row["id"]: row.pop("order_id") for row in rows}
        looked = [decide(Gap(**row | {"state": GapState(row["state"])}), now_ms) for row in rows]
        none = [each for each in looked if each.is_none]
        kept = [each for each in looked if not each.is_none]
        await drop_gaps(conn, [each.gap.id for each in none])
        await learn_intervals(conn, {each.gap.meter_id: each.learnt_s for each in looked if each.learnt_s})
        await save_gaps(conn, [_saved(each) for each in kept])
        ended = [orders[each.gap.id] for each in kept if each.state is not GapState.ASKED]
        await end_reads(conn, [order_id for order_id in ended if order_id is not None])
        asked = await _ask(conn, [each for each in kept if each.wants_order], limits)
    if asked:
        _log.info("read_again_ordered", gaps=asked)
    return len(rows)


async def forget_old_gaps(conn: AsyncConnection) -> None:
    """Drop gaps that were closed long ago."""
    await trim_gaps(conn)


async def _ask(conn: AsyncConnection, wanting: Sequence[Looked], limits: GapLimits) -> int:
    """Order what fits the places: of each meter one order for all its gaps here; return how many gaps are asked for."""
    if not wanting:
        return 0
    taken = defaultdict(int, await open_reads(conn))
    places = min(limits.orders, limits.open_in_all - sum(taken.values()))
    by_meter: dict[int, list[Looked]] = defaultdict(list)
    for each in wanting:
        meter_id, area = each.gap.meter_id, each.gap.area
        if meter_id not in by_meter:
            if len(by_meter) >= places or taken[area] >= limits.open_by_area:
                continue
            taken[area] += 1
        by_meter[meter_id].append(each)
    if not by_meter:
        return 0
    ordered = await order_reads(conn, {meter_id: _span(gaps) for meter_id, gaps in by_meter.items()})
    orders = {each.gap.id: ordered[meter_id] for meter_id in ordered for each in by_meter[meter_id]}
    await mark_asked(conn, orders, LOOK_AGAIN_MS)
    return len(orders)


def _span(gaps: Iterable[Looked]) -> tuple[int, int]:
    """Return from when to when readings are missing, between the readings that are there, no further than a store."""
    ends_ms = max(each.to_ms for each in gaps) - 1
    begins_ms = min(each.from_ms for each in gaps) + 1
    return max(begins_ms, ends_ms - STORE_MS), ends_ms


def _saved(looked: Looked) -> SavedGap:
    return SavedGap(
        id=looked.gap.id,
        from_ms=looked.from_ms,
        to_ms=looked.to_ms,
        missing=looked.missing,
        state=looked.state.value,
        answers=looked.answers,
        keeps_order=looked.state is GapState.ASKED,
        look_in_ms=looked.look_in_ms,
        ask_in_ms=looked.ask_in_ms,
    )
