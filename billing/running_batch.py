"""Running balances of many accounts at once: the vectorised form of `billing.running.running_balance`.

Stage: between readings and bulk reports. Keeps checkpoints as columns; takes each account's latest point and returns
balances at money time. An account whose curve has to be cut at an edge (time-of-day zones, a last point at or after
the end of its checkpoint's bill part) or whose figures 64 bits are not proven for is left to the plain form. Never
reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from billing.calendar import EPOCH, LocalCalendar, from_ms
from billing.rate_table import DEMAND_W_MAX, Int64, RateTable
from billing.rating_batch import BeyondLimits, charge_totals
from billing.running import Checkpoint
from billing.tariff import ENERGY_WH_MAX, TariffError
from billing.terms import BillPart

Places = npt.NDArray[np.intp]

DAY_MS = 86_400_000
# A zone's offsets are looked up for blocks of 2^35 ms, 397 days; 64 of them are 69 years, found in a third of a second.
_BLOCK_BITS = 35
_BLOCKS_MAX = 64
# No zone has changed its clock twice within six hours since 1970 (tzdata 2026f).
_LOOK_MS = 21_600_000
_EPOCH_DAY = EPOCH.toordinal()
# The part end of an account that stays with the plain form: every point comes after it.
_ALWAYS = -(2**63)
_PLACES_AT_FIRST = 1024
# Lines of the columns, in the order of `_column`.
_POSTED, _CHARGED, _START, _THROUGH, _FIRST, _DAYS, _ROW, _BEFORE, _DEMAND, _END = range(10)


class RunningAccounts:
    """Posted states of accounts, each at a place.

    Invariants: places are numbered from 0 without gaps; rates are rows of `table`, which others may share.
    """

    def __init__(self, table: RateTable, calendar: LocalCalendar) -> None:
        self._table = table
        self._calendar = calendar
        self._values: Int64 = np.zeros((_END + 1, _PLACES_AT_FIRST), dtype=np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, place: int, checkpoint: Checkpoint, part: BillPart) -> None:
        """Keep an account's posted state at a place, a known one or the next; `part` holds the day `through`."""
        assert 0 <= place <= self._count, f"place: expected 0 to {self._count}, got {place}"
        if place == self._count:
            self._make_room(1)
            self._count += 1
        self._values[:, place] = self._column(checkpoint, part)

    def extend(self, accounts: Iterable[tuple[Checkpoint, BillPart]]) -> range:
        """Keep many accounts at the next places; return those."""
        columns = [self._column(checkpoint, part) for checkpoint, part in accounts]
        first = self._count
        if columns:
            self._make_room(len(columns))
            self._count += len(columns)
            self._values[:, first : self._count] = np.array(columns, dtype=np.int64).T
        return range(first, self._count)

    def balances(self, places: Places, last_ms: Int64, last_wh: Int64) -> tuple[Int64, Places]:
        """Return running balances at money time, and which entries of the batch are left to the plain form.

        Units: UTC milliseconds and Wh to date of the latest point; minor units. What is left has a balance of 0.
        Shape: one entry for each place asked for; the second array has positions in that order.
        """
        states = self._values.take(places, axis=1)
        used_wh = last_wh - states[_START]
        # Without a sign, energy that falls is the largest of all.
        ordinary = (last_ms < states[_END]) & (used_wh.view(np.uint64) <= ENERGY_WH_MAX)
        if bool(ordinary.all()):
            return self._owed(states, last_ms, used_wh), np.empty(0, dtype=np.intp)
        kept = np.flatnonzero(ordinary)
        balance_minor = np.zeros(len(places), dtype=np.int64)
        balance_minor[kept] = self._owed(states[:, kept], last_ms[kept], used_wh[kept])
        return balance_minor, np.flatnonzero(~ordinary)

    def _owed(self, states: Int64, last_ms: Int64, used_wh: Int64) -> Int64:
        """Return the balances of accounts whose last points lie inside their bill parts."""
        money_day = np.maximum(day_ordinals(self._calendar, last_ms), states[_THROUGH])
        days = np.clip(money_day - states[_FIRST] + 1, 0, states[_DAYS])
        to_date = charge_totals(self._table, states[_ROW], states[_BEFORE], used_wh, days, demand_w=states[_DEMAND])
        balance_minor: Int64 = states[_POSTED] - (to_date - states[_CHARGED])
        return balance_minor

    def _column(self, checkpoint: Checkpoint, part: BillPart) -> tuple[int, ...]:
        row = self._row(checkpoint, part)
        # What is left to the plain form is never rated from here, and may be beyond 64 bits.
        rated = (0, 0, 0, _ALWAYS)
        if row is not None:
            rated = (row, checkpoint.before_wh, checkpoint.demand_w, self._calendar.midnight_ms(part.end))
        return (
            checkpoint.posted_minor,
            checkpoint.charged_minor,
            checkpoint.part_start_wh,
            checkpoint.through.toordinal(),
            part.first.toordinal(),
            (part.end - part.first).days,
            *rated,
        )

    def _row(self, checkpoint: Checkpoint, part: BillPart) -> int | None:
        """Return the row of an account's rates, None if it stays with the plain form."""
        within = 0 <= checkpoint.before_wh <= ENERGY_WH_MAX and 0 <= checkpoint.demand_w <= DEMAND_W_MAX
        if part.zone_count or not within:
            return None
        try:
            return self._table.row_of(part)
        except TariffError:
            return None

    def _make_room(self, more: int) -> None:
        width = self._values.shape[1]
        if self._count + more > width:
            room = np.zeros((len(self._values), max(width, self._count + more - width)), dtype=np.int64)
            self._values = np.concatenate([self._values, room], axis=1)


def day_ordinals(calendar: LocalCalendar, at_ms: Int64) -> Int64:
    """Return the local days that hold some instants, as `date.toordinal` numbers them.

    Units: UTC milliseconds. Exact in every zone since 1970, also where a clock change repeats or skips midnight.
    Raises: BeyondLimits for instants more than 69 years apart.
    """
    if not len(at_ms):
        return np.empty(0, dtype=np.int64)
    first, last = int(at_ms.min()) >> _BLOCK_BITS, int(at_ms.max()) >> _BLOCK_BITS
    if last - first >= _BLOCKS_MAX:
        raise BeyondLimits(f"instants: expected at most 69 years of them, got {at_ms.min()} to {at_ms.max()} ms")
    starts_ms, days_ms = _offsets(calendar, first, last)
    shift_ms = days_ms[0] if len(starts_ms) == 1 else days_ms[np.searchsorted(starts_ms, at_ms, side="right") - 1]
    days: Int64 = (at_ms + shift_ms) // DAY_MS
    return days


@lru_cache(maxsize=256)
def _offsets(calendar: LocalCalendar, first: int, last: int) -> tuple[Int64, Int64]:
    """Return where each offset from UTC begins in a run of blocks, and what to add there to count from day 0."""
    steps = [step for block in range(first, last + 1) for step in _block_steps(calendar, block)]
    kept = [step for number, step in enumerate(steps) if not number or step[1] != steps[number - 1][1]]
    starts_ms = np.array([start_ms for start_ms, _ in kept], dtype=np.int64)
    return starts_ms, np.array([offset_ms for _, offset_ms in kept], dtype=np.int64) + _EPOCH_DAY * DAY_MS


@lru_cache(maxsize=1024)
def _block_steps(calendar: LocalCalendar, block: int) -> list[tuple[int, int]]:
    """Return (start, offset) of each run of one offset from UTC in a block, in milliseconds.

    A change at the block's very end is there too; it is the next block's start.
    """
    at_ms, end_ms = block << _BLOCK_BITS, (block + 1) << _BLOCK_BITS
    steps = [(at_ms, _offset_ms(calendar, at_ms))]
    while at_ms < end_ms:
        next_ms = min(at_ms + _LOOK_MS, end_ms)
        offset_ms = _offset_ms(calendar, next_ms)
        if offset_ms != steps[-1][1]:
            steps.append((_change_ms(calendar, at_ms, next_ms), offset_ms))
        at_ms = next_ms
    return steps


def _change_ms(calendar: LocalCalendar, before_ms: int, after_ms: int) -> int:
    """Return the first instant with the offset of `after_ms`, by halves."""
    offset_ms = _offset_ms(calendar, after_ms)
    while after_ms - before_ms > 1:
        middle_ms = (before_ms + after_ms) // 2
        if _offset_ms(calendar, middle_ms) == offset_ms:
            after_ms = middle_ms
        else:
            before_ms = middle_ms
    return after_ms


def _offset_ms(calendar: LocalCalendar, at_ms: int) -> int:
    offset = from_ms(at_ms).astimezone(calendar.zone).utcoffset()
    assert offset is not None, "a zone has an offset"
    return offset.days * DAY_MS + offset.seconds * 1000
