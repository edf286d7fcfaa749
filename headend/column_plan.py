"""A batch of readings planned as columns: the vectorised form of `headend.pipeline.plan` for what is ordinary.

Stage: between decode and commit. Takes readings as columns with their meters' places in the charge table; returns
those whose whole meter is ordinary, validated and rated, with what is noted of them and the accounts that may have
crossed a level, and leaves the others to the plan one by one. Ordinary is a meter all of whose readings in the batch
come after its mark in time, pass `validate_time` and `validate_register`, and end inside its open bill part. Pure;
touches nothing it was given.
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
    EXPORTS,
    GAP_MS,
    LOAD_W,
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
    STILL_MS,
    STILL_WITH_LOAD_MS,
    STILL_WITHOUT_LOAD_MS,
    THROUGH,
    UNREAD,
    WAITS,
    ZERO_WH,
    Bool,
    ChargeTable,
    Int64,
    Known,
    Places,
)
from headend.reading_flags import Accepted, ReadingFlag, reading_flags
from headend.state import MeterState
from headend.validate import CLOCK_CEILING_MS, CLOCK_FLOOR_MS, FUTURE_SLACK_MS, JUMP_SLACK_WH
from protocols.columns import ABSENT, ReadingColumns

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

    Shape: `columns` are the rows to store, by meter and instant; `places`, `mark_ms`, `mark_wh` and `still_ms` have one
    entry for each of their meters, `since_ms` their marks before; `stored` their number by shard. `left` are the
    positions in the batch that are left to the plan one by one. `crossed` has the accounts that may have crossed a
    level, to be locked; `noted` what rules note of readings.
    """

    columns: ReadingColumns
    places: Places
    mark_ms: Int64
    mark_wh: Int64
    since_ms: Int64
    stored: Int64
    left: Places
    crossed: dict[int, Crossed]
    still_ms: Int64
    noted: list[ReadingFlag]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Each reading against the one before it, or its meter's mark.

    Shape: one entry for each reading, the meters' readings in a row; `first` marks the first of each.
    """

    first: Bool
    before_ms: Int64
    elapsed_ms: Int64
    consumed_wh: Int64

    def those(self, taken: Bool) -> _Steps:
        """Return the same of some of the readings, of whole meters."""
        return _Steps(
            first=self.first[taken],
            before_ms=self.before_ms[taken],
            elapsed_ms=self.elapsed_ms[taken],
            consumed_wh=self.consumed_wh[taken],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Still:
    """How long each meter's register had stood still at the reading before each one, and at that one."""

    before_ms: Int64
    ms: Int64


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
    steps = _steps(known, columns, first)
    ordinary = np.logical_and.reduceat(_good_readings(known, columns, steps, numbers, stored_at_ms), starts)
    ordinary &= ~known.flagged(PLAIN) & (mark_ms < known.column(PART_END_MS))
    ordinary &= (used_wh >= 0) & (used_wh <= ENERGY_WH_MAX)
    left = np.empty(0, dtype=np.intp)
    if not bool(ordinary.all()):
        taken = np.repeat(ordinary, numbers)
        left = np.sort(order[~taken])
        columns, known, meters = columns.take(taken), known.those(ordinary), meters[ordinary]
        steps = steps.those(taken)
        mark_ms, mark_wh, numbers = mark_ms[ordinary], mark_wh[ordinary], numbers[ordinary]
    still = _still(known, columns, steps)
    return ColumnPlan(
        columns=columns,
        places=meters,
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        since_ms=known.column(MARK_MS),
        stored=np.bincount(np.repeat(known.column(SHARD), numbers)),
        left=left,
        crossed=_crossed(table, meters, known, mark_ms, mark_wh, calendar),
        still_ms=still.ms[np.cumsum(numbers) - 1],
        noted=_noted(table, meters, known, columns, steps, still, numbers),
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


def _steps(known: Known, columns: ReadingColumns, first: Bool) -> _Steps:
    at_ms, register_wh = columns.at_ms, columns.import_wh
    before_ms, before_wh = np.empty_like(at_ms), np.empty_like(register_wh)
    before_ms[1:], before_wh[1:] = at_ms[:-1], register_wh[:-1]
    before_ms[first], before_wh[first] = known.column(MARK_MS), known.column(MARK_WH)
    return _Steps(first=first, before_ms=before_ms, elapsed_ms=at_ms - before_ms, consumed_wh=register_wh - before_wh)


def _good_readings(known: Known, columns: ReadingColumns, steps: _Steps, numbers: Int64, stored_at_ms: Int64) -> Bool:
    """Tell which readings pass the rules of `headend.validate`, each against the one before it or the mark.

    Shape: `known` and `numbers` have one entry for each meter.
    """
    at_ms, elapsed_ms, consumed_wh = columns.at_ms, steps.elapsed_ms, steps.consumed_wh
    limit_wh = np.repeat(known.column(RATED_W), numbers) * elapsed_ms // HOUR_MS + JUMP_SLACK_WH
    return (
        (elapsed_ms > 0)
        & (at_ms >= CLOCK_FLOOR_MS)
        & (at_ms < CLOCK_CEILING_MS)
        & (at_ms <= stored_at_ms + FUTURE_SLACK_MS)
        & (consumed_wh >= 0)
        & (consumed_wh <= limit_wh)
        # A register of 64 bits below 0 would be more than any difference can say.
        & (columns.import_wh >= 0)
    )


def _still(known: Known, columns: ReadingColumns, steps: _Steps) -> _Still:
    at_ms, first = columns.at_ms, steps.first
    before_ms = np.zeros_like(at_ms)
    before_ms[first] = np.maximum(known.column(STILL_MS), 0)
    stands = steps.consumed_wh == 0
    if not bool(stands.any()):
        return _Still(before_ms=before_ms, ms=np.zeros_like(at_ms))
    # When the register moved last, as of each reading: then, or before the mark, or at an earlier reading.
    moved_ms = np.where(stands, steps.before_ms - before_ms, at_ms)
    moved_at = np.maximum.accumulate(np.where(stands & ~first, 0, np.arange(len(stands))))
    still_ms = at_ms - moved_ms[moved_at]
    inner = np.flatnonzero(~first)
    before_ms[inner] = still_ms[inner - 1]
    return _Still(before_ms=before_ms, ms=still_ms)


def _noted(
    table: ChargeTable,
    places: Places,
    known: Known,
    columns: ReadingColumns,
    steps: _Steps,
    still: _Still,
    numbers: Int64,
) -> list[ReadingFlag]:
    """Return what rules note of readings: those that may be worth it are found in columns, and asked one by one.

    Shape: `places`, `known` and `numbers` have one entry for each meter.
    """
    # Nearly always all meters have the same rules.
    limits = table.limits[0]
    if len(table.limits) > 1:
        limits = np.repeat(table.limits.take(known.rules(), axis=0), numbers, axis=0)
    worth = steps.elapsed_ms > limits[..., GAP_MS]
    # Nothing is missing before a meter's first reading.
    worth[steps.first] &= known.column(STILL_MS) != UNREAD
    worth |= (columns.power_w >= limits[..., LOAD_W]) & (still.ms >= limits[..., STILL_WITH_LOAD_MS])
    without_load_ms = limits[..., STILL_WITHOUT_LOAD_MS]
    worth |= (still.ms >= without_load_ms) & (still.before_ms < without_load_ms)
    worth |= (columns.export_wh > 0) & np.repeat(~known.flagged(EXPORTS), numbers)
    found = np.flatnonzero(worth)
    if not len(found):
        return []
    channels = (steps.before_ms, columns.at_ms, still.before_ms, still.ms, columns.power_w, columns.export_wh)
    found_places = np.repeat(places, numbers)[found].tolist()
    listed = zip(found_places, *(channel[found].tolist() for channel in channels), strict=True)
    noted = []
    for place, before_ms, at_ms, still_before_ms, still_ms, power_w, export_wh in listed:
        accepted = Accepted(
            before_ms=before_ms,
            at_ms=at_ms,
            still_before_ms=still_before_ms,
            still_ms=still_ms,
            power_w=None if power_w == ABSENT else power_w,
            export_wh=None if export_wh == ABSENT else export_wh,
        )
        noted += reading_flags(table.at(place), accepted)
    return noted


def _nothing(columns: ReadingColumns) -> ColumnPlan:
    none = np.empty(0, dtype=np.int64)
    nowhere = none.astype(np.intp)
    return ColumnPlan(
        columns=columns,
        places=nowhere,
        mark_ms=none,
        mark_wh=none,
        since_ms=none,
        stored=none,
        left=nowhere,
        crossed={},
        still_ms=none,
        noted=[],
    )
