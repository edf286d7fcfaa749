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
from headend.charge_table import Bool, ChargeTable, Int64, Places
from headend.validate import CLOCK_CEILING_MS, CLOCK_FLOOR_MS, FUTURE_SLACK_MS, JUMP_SLACK_WH
from protocols.columns import ReadingColumns

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """What a batch in columns writes, and what is known after its commit.

    Shape: `columns` are the rows to store, by meter and instant; `places`, `mark_ms` and `mark_wh` one entry for each
    of their meters. `left` are the positions in the batch that are left to the plan one by one. `candidates` are
    accounts to be looked at under their lock.
    """

    columns: ReadingColumns
    places: Places
    mark_ms: Int64
    mark_wh: Int64
    left: Places
    candidates: Int64


def plan_columns(
    table: ChargeTable, columns: ReadingColumns, places: Places, stored_at_ms: Int64, calendar: LocalCalendar
) -> ColumnPlan:
    """Validate and rate what is ordinary of a batch.

    Units: `stored_at_ms` is when the broker stored each reading's message, UTC milliseconds.
    Shape: `places` and `stored_at_ms` have one entry for each reading.
    """
    # Stable: of two with the same instant the one that came first is first.
    order = np.lexsort((columns.at_ms, columns.meter_id))
    at_ms, register_wh, place = columns.at_ms[order], columns.import_wh[order], places[order]
    if not len(order):
        return _nothing(columns)
    first = np.empty(len(order), dtype=np.bool_)
    first[0] = True
    np.not_equal(place[1:], place[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(order)) - 1
    good = _good_readings(table, at_ms, register_wh, place, first, stored_at_ms[order])
    meters = place[ends]
    used_wh = register_wh[ends] + table.offset_wh[meters] - table.start_wh[meters]
    ordinary = np.logical_and.reduceat(good, starts)
    ordinary &= ~table.plain[meters] & (at_ms[ends] < table.part_end_ms[meters])
    ordinary &= (used_wh >= 0) & (used_wh <= ENERGY_WH_MAX)
    taken = np.repeat(ordinary, ends - starts + 1)
    every = bool(ordinary.all())
    places_taken = meters if every else meters[ordinary]
    mark_ms, mark_wh = at_ms[ends], register_wh[ends]
    if not every:
        mark_ms, mark_wh = mark_ms[ordinary], mark_wh[ordinary]
    crossed = crossing(table, places_taken, mark_ms, mark_wh, calendar)
    return ColumnPlan(
        columns=columns.take(order if every else order[taken]),
        places=places_taken,
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        left=np.sort(order[~taken]),
        candidates=table.account_id[places_taken[crossed]],
    )


def balances_minor(
    table: ChargeTable, places: Places, at_ms: Int64, register_wh: Int64, calendar: LocalCalendar
) -> Int64:
    """Return running balances at money time, of meters read inside their open bill part, in minor units."""
    first = table.part_first[places]
    day = np.maximum(day_ordinals(calendar, at_ms), table.through[places])
    charged = charge_totals(
        table.rates,
        table.rate_row[places],
        table.before_wh[places],
        register_wh + table.offset_wh[places] - table.start_wh[places],
        np.maximum(day - first + 1, 0),
        demand_w=table.demand_w[places],
    )
    return table.settled_minor[places] - charged


def crossing(table: ChargeTable, places: Places, at_ms: Int64, register_wh: Int64, calendar: LocalCalendar) -> Bool:
    """Tell of which meters the account has to be looked at: the same test as `billing.supply.crosses`."""
    balance_minor = balances_minor(table, places, at_ms, register_wh, calendar)
    exhausted = balance_minor <= table.cut_at[places]
    crossed: Bool = (
        (balance_minor <= table.low_at[places])
        | (exhausted & ~table.exhausted_raised[places])
        | (exhausted != table.off[places])
    )
    return crossed


def _good_readings(
    table: ChargeTable, at_ms: Int64, register_wh: Int64, place: Places, first: Bool, stored_at_ms: Int64
) -> Bool:
    """Tell which readings pass the rules of `headend.validate`, each against the one before it or the mark."""
    before_ms, before_wh = np.empty_like(at_ms), np.empty_like(register_wh)
    before_ms[1:], before_wh[1:] = at_ms[:-1], register_wh[:-1]
    before_ms[first], before_wh[first] = table.mark_ms[place[first]], table.mark_wh[place[first]]
    elapsed_ms, consumed_wh = at_ms - before_ms, register_wh - before_wh
    limit_wh = table.rated_w[place] * elapsed_ms // HOUR_MS + JUMP_SLACK_WH
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
    return ColumnPlan(
        columns=columns,
        places=none.astype(np.intp),
        mark_ms=none,
        mark_wh=none,
        left=none.astype(np.intp),
        candidates=none,
    )
