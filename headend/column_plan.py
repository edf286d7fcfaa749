"""A batch of readings planned as columns: the vectorised form of `headend.pipeline.plan` for what is ordinary.

Stage: between decode and commit. Takes readings as columns with their meters' places in the charge table; returns
those whose whole meter is ordinary, validated and rated, with the accounts that may have crossed a level, and leaves
the others to the plan one by one. Ordinary is a meter all of whose readings in the batch come after its mark in time,
pass `validate_time` and `validate_register`, and end inside its open bill part. Pure; touches nothing it was given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from billing.calendar import LocalCalendar
from billing.rating_batch import charge_totals
from billing.running_batch import day_ordinals
from billing.tariff import ENERGY_WH_MAX
from headend.charge_table import (
    BEFORE_WH,
    CUT_AT,
    DEMAND_W,
    EXHAUSTED_RAISED,
    LOW_AT,
    MARK_MS,
    MARK_WH,
    OFF,
    PART_END_MS,
    PART_FIRST,
    PLAIN,
    RATE_ROW,
    RATED_W,
    SETTLED_MINOR,
    SHARD,
    THROUGH,
    WAITS,
    ZERO_WH,
    Bool,
    ChargeTable,
    Int64,
    Known,
    Places,
)
from headend.state import MeterState
from headend.validate import CLOCK_CEILING_MS, CLOCK_FLOOR_MS, FUTURE_SLACK_MS, JUMP_SLACK_WH
from protocols.columns import ReadingColumns

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """An account at the last reading of a batch: its meter's state but for the mark, and the balance in minor units."""

    meter: MeterState
    at_ms: int
    balance_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """What a batch in columns writes, and what is known after its commit.

    Shape: `columns` are the rows to store, by meter and instant; `places`, `mark_ms` and `mark_wh` one entry for each
    of their meters; `stored` their number by shard. `left` are the positions in the batch that are left to the plan one
    by one. `crossed` has the accounts that may have crossed a level, to be locked.
    """

    columns: ReadingColumns
    places: Places
    mark_ms: Int64
    mark_wh: Int64
    stored: Int64
    left: Places
    crossed: dict[int, Crossed]


def plan_columns(
    table: ChargeTable, columns: ReadingColumns, places: Places, stored_at_ms: Int64, calendar: LocalCalendar
) -> ColumnPlan:
    """Validate and rate what is ordinary of a batch.

    Units: `stored_at_ms` is when the broker stored each reading's message, UTC milliseconds.
    Shape: `places` and `stored_at_ms` have one entry for each reading.
    """
    if not len(columns):
        return _nothing(columns)
    order = np.arange(len(columns))
    if not columns.is_sorted_by_meter():
        # Stable: of two with the same instant the one that came first is first.
        order = np.lexsort((columns.at_ms, columns.meter_id))
        columns, places, stored_at_ms = columns.take(order), places[order], stored_at_ms[order]
    first = np.empty(len(order), dtype=np.bool_)
    first[0] = True
    np.not_equal(places[1:], places[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    numbers = np.diff(starts, append=len(order))
    ends = starts + numbers - 1
    meters = places[ends]
    known = table.known(meters)
    mark_ms, mark_wh = columns.at_ms[ends], columns.import_wh[ends]
    used_wh = mark_wh - known.column(ZERO_WH)
    ordinary = np.logical_and.reduceat(_good_readings(known, columns, first, numbers, stored_at_ms), starts)
    ordinary &= ~known.flagged(PLAIN) & (mark_ms < known.column(PART_END_MS))
    ordinary &= (used_wh >= 0) & (used_wh <= ENERGY_WH_MAX)
    left = np.empty(0, dtype=np.intp)
    if not bool(ordinary.all()):
        taken = np.repeat(ordinary, numbers)
        left = np.sort(order[~taken])
        columns, known, meters = columns.take(taken), known.those(ordinary), meters[ordinary]
        mark_ms, mark_wh, numbers = mark_ms[ordinary], mark_wh[ordinary], numbers[ordinary]
    return ColumnPlan(
        columns=columns,
        places=meters,
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        stored=np.bincount(np.repeat(known.column(SHARD), numbers)),
        left=left,
        crossed=_crossed(table, meters, known, mark_ms, mark_wh, calendar),
    )


def balances_minor(
    table: ChargeTable, known: Known, at_ms: Int64, register_wh: Int64, calendar: LocalCalendar
) -> Int64:
    """Return running balances at money time, of meters read inside their open bill part, in minor units."""
    day = np.maximum(day_ordinals(calendar, at_ms), known.column(THROUGH))
    charged = charge_totals(
        table.rates,
        known.column(RATE_ROW),
        known.column(BEFORE_WH),
        register_wh - known.column(ZERO_WH),
        np.maximum(day - known.column(PART_FIRST) + 1, 0),
        demand_w=known.column(DEMAND_W),
    )
    return known.column(SETTLED_MINOR) - charged


def _crossed(
    table: ChargeTable, places: Places, known: Known, at_ms: Int64, register_wh: Int64, calendar: LocalCalendar
) -> dict[int, Crossed]:
    """Find the accounts that have to be locked: the same test as `billing.supply.crosses`."""
    balance_minor = balances_minor(table, known, at_ms, register_wh, calendar)
    exhausted = balance_minor <= known.column(CUT_AT)
    looks = (
        (balance_minor <= known.column(LOW_AT))
        | (exhausted & ~known.flagged(EXHAUSTED_RAISED))
        | (exhausted & ~known.flagged(OFF | WAITS))
        | (~exhausted & known.flagged(OFF | WAITS))
    )
    found = np.flatnonzero(looks)
    listed = zip(places[found].tolist(), at_ms[found].tolist(), balance_minor[found].tolist(), strict=True)
    crossed = [Crossed(meter=table.at(place), at_ms=at, balance_minor=minor) for place, at, minor in listed]
    return {each.meter.account.id: each for each in crossed}


def _good_readings(known: Known, columns: ReadingColumns, first: Bool, numbers: Int64, stored_at_ms: Int64) -> Bool:
    """Tell which readings pass the rules of `headend.validate`, each against the one before it or the mark.

    Shape: `known` and `numbers` have one entry for each meter, of whose readings in a row `first` marks the first.
    """
    at_ms, register_wh = columns.at_ms, columns.import_wh
    before_ms, before_wh = np.empty_like(at_ms), np.empty_like(register_wh)
    before_ms[1:], before_wh[1:] = at_ms[:-1], register_wh[:-1]
    before_ms[first], before_wh[first] = known.column(MARK_MS), known.column(MARK_WH)
    elapsed_ms, consumed_wh = at_ms - before_ms, register_wh - before_wh
    limit_wh = np.repeat(known.column(RATED_W), numbers) * elapsed_ms // HOUR_MS + JUMP_SLACK_WH
    return (
        (elapsed_ms > 0)
        & (at_ms >= CLOCK_FLOOR_MS)
        & (at_ms < CLOCK_CEILING_MS)
        & (at_ms <= stored_at_ms + FUTURE_SLACK_MS)
        & (consumed_wh >= 0)
        & (consumed_wh <= limit_wh)
    )


def _nothing(columns: ReadingColumns) -> ColumnPlan:
    none = np.empty(0, dtype=np.int64)
    nowhere = none.astype(np.intp)
    return ColumnPlan(
        columns=columns, places=nowhere, mark_ms=none, mark_wh=none, stored=none, left=nowhere, crossed={}
    )
