"""What ingest knows of its meters as columns, so that a batch is validated and rated in one go.

Stage: between batches; the store behind the ingest cache. Each meter has a place. Its state as last read or planned
one by one (`MeterState`) is kept beside arrays of what the vectorised plan works with; a plan in columns moves only
marks, so the state at any time is the kept one carried to its mark. Pure: the edge loads, adopts and drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from billing.calendar import LocalCalendar
from billing.rate_table import RateTable
from billing.running import Point
from billing.supply import Supply
from billing.tariff import ENERGY_WH_MAX, LOAD_W_MAX, TariffError
from headend.rules import RuleSet
from headend.state import AccountState, MeterState

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

# A level that no balance reaches: no threshold, a postpaid account. Balances are sums of 64-bit minor units far inside.
NO_LEVEL: Final = -(2**62)
# Beyond this rating the energy limit of a gap of 130 years would leave 64 bits; such meters are planned one by one.
RATED_W_MAX: Final = 10**6
_FIRST_CAPACITY: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the table holds of some meters: a column for each figure.

    Units: `zero_wh` is the register at which the bill part began; `part_first` and `through` count days as
    `date.toordinal`; `settled_minor` is what the balance would be without the open part's lines; at or below `low_at`
    and `cut_at` a level is crossed, `NO_LEVEL` where none can be. `still_ms` is how long the register has stood still
    at the mark, `UNREAD` before the first reading. What is above the flags is the row of the meter's rules.
    """

    values: Int64

    def column(self, number: int) -> Int64:
        """Return one column by its number."""
        return self.values[:, number]

    def flagged(self, flag: int) -> Bool:
        """Tell which meters have a flag."""
        found: Bool = (self.values[:, FLAGS] & flag) != 0
        return found

    def rules(self) -> Places:
        """Return the rows of the meters' rules in `ChargeTable.limits`."""
        found: Places = self.values[:, FLAGS] >> RULES_FROM_BIT
        return found

    def those(self, places: Bool) -> Known:
        """Return the same of some of the meters."""
        return Known(self.values[places])


# Columns of `Known`.
(
    SHARD,
    MARK_MS,
    MARK_WH,
    STILL_MS,
    ZERO_WH,
    RATED_W,
    PART_END_MS,
    PART_FIRST,
    THROUGH,
    BEFORE_WH,
    DEMAND_W,
    RATE_ROW,
    SETTLED_MINOR,
    LOW_AT,
    CUT_AT,
    FLAGS,
) = range(16)
# Flags of a meter: the alarm of exhausted credit has rung; supply is to be off or limited; credit is exhausted and
# supply still on; only the plan one by one may take it; export is permitted, or nobody wants to know of it.
EXHAUSTED_RAISED, OFF, WAITS, PLAIN, EXPORTS = 1, 2, 4, 8, 16
RULES_FROM_BIT: Final = 8
# No register has stood still for less than no time.
UNREAD: Final = -1
# Columns of `ChargeTable.limits`.
GAP_MS, LOAD_W, STILL_WITH_LOAD_MS, STILL_WITHOUT_LOAD_MS = range(4)


class ChargeTable(Mapping[str, MeterState]):
    """Meter states by serial, and the same as columns.

    Invariants: `place_of` names the place of every known serial; the figures at a place tell of that meter, as of the
    latest committed batch. They stand side by side, not in arrays of their own: a batch meets its meters in no order,
    and the figures of one, 128 bytes, are two cache misses instead of sixteen. `limits` has a row for each set of
    rules. `PLAIN` marks meters that only the plan
    one by one may take: with time-of-day zones, a closed edge that waits for a reading, a held order, or a rating
    beyond the range of 64 bits.
    """

    def __init__(self, calendar: LocalCalendar) -> None:
        self._calendar = calendar
        self.rates = RateTable()
        self.place_of: dict[str, int] = {}
        self._kept: list[MeterState | None] = []
        self._free: list[int] = []
        self._values: Int64 = np.zeros((_FIRST_CAPACITY, FLAGS + 1), dtype=np.int64)
        self.limits: Int64 = np.empty((0, STILL_WITHOUT_LOAD_MS + 1), dtype=np.int64)
        self._limits_of: dict[RuleSet, int] = {}
        # Registered meters that stand nowhere, of those looked for last.
        self.uninstalled: frozenset[str] = frozenset()

    def __getitem__(self, serial: str) -> MeterState:
        place = self.place_of[serial]
        kept = self.kept(serial)
        mark_ms, mark_wh, still_ms = self._values[place, MARK_MS : STILL_MS + 1].tolist()
        if mark_ms == kept.mark_ms:
            return kept
        last = Point(at_ms=mark_ms, energy_wh=kept.energy_to_date(mark_ms, mark_wh))
        walk = replace(kept.account.walk, last=last)
        account = replace(kept.account, walk=walk)
        return replace(kept, mark_ms=mark_ms, mark_wh=mark_wh, still_ms=max(0, still_ms), account=account)

    def __iter__(self) -> Iterator[str]:
        return iter(self.place_of)

    def __len__(self) -> int:
        return len(self.place_of)

    def kept(self, serial: str) -> MeterState:
        """Return a meter's state but for its mark, which may be an earlier one: cheap, for what marks do not change."""
        return self.at(self.place_of[serial])

    def at(self, place: int) -> MeterState:
        """Return the state of the meter at a place but for its mark, as `kept` does."""
        kept = self._kept[place]
        assert kept is not None, f"place {place}: expected a state"
        return kept

    def put(self, state: MeterState) -> int:
        """Keep a state; return its place."""
        place = self.place_of.get(state.serial)
        if place is None:
            place = self._take_place()
            self.place_of[state.serial] = place
        self._kept[place] = state
        self._values[place] = self._figures(state)
        return place

    def amend(self, serial: str, account: AccountState) -> None:
        """Take over what has changed of an account whose meter's state is kept; the mark stays where it is."""
        place = self.place_of[serial]
        mark = self._values[place, MARK_MS : STILL_MS + 1].copy()
        self.put(replace(self.at(place), account=account))
        self._values[place, MARK_MS : STILL_MS + 1] = mark

    def drop(self, serial: str) -> None:
        """Forget a meter."""
        place = self.place_of.pop(serial, None)
        if place is not None:
            self._kept[place] = None
            self._free.append(place)

    def known(self, places: Places) -> Known:
        """Return what is held of the meters at some places."""
        return Known(self._values.take(places, axis=0))

    def move_marks(self, places: Places, mark_ms: Int64, mark_wh: Int64, still_ms: Int64) -> None:
        """Take over where a committed plan in columns has left its meters."""
        self._values[places, MARK_MS] = mark_ms
        self._values[places, MARK_WH] = mark_wh
        self._values[places, STILL_MS] = still_ms

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._kept) == len(self._values):
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
        self._kept.append(None)
        return len(self._kept) - 1

    def _figures(self, state: MeterState) -> tuple[int, ...]:
        """Return a meter's figures in the order of the columns."""
        account, walk = state.account, state.account.walk
        levels = account.levels
        rate_row = None if account.silent or account.held else self._rate_row(state)
        low_minor = levels.warn_at_minor
        return (
            state.shard,
            state.mark_ms,
            state.mark_wh,
            state.still_ms if state.mark_ms > state.installed_ms else UNREAD,
            walk.start_wh - state.segments[-1].offset_wh,
            state.rated_w,
            self._calendar.midnight_ms(walk.part.end),
            walk.part.first.toordinal(),
            account.checkpoint.through.toordinal(),
            # What the plan one by one takes may be beyond 64 bits.
            0 if rate_row is None else walk.before_wh,
            0 if rate_row is None else walk.demand_w,
            rate_row or 0,
            account.checkpoint.posted_minor - walk.done_minor,
            NO_LEVEL if low_minor is None else low_minor,
            levels.cut_at_minor if levels.can_exhaust else NO_LEVEL,
            levels.exhausted_raised * EXHAUSTED_RAISED
            + (levels.desired is not Supply.ON) * OFF
            + account.waits * WAITS
            + (rate_row is None) * PLAIN
            + (state.may_export or not state.rules.notes_export) * EXPORTS
            + (self._limits_row(state.rules) << RULES_FROM_BIT),
        )

    def _limits_row(self, rules: RuleSet) -> int:
        """Return the row of a set of rules in `limits`: a document has a handful of models."""
        row = self._limits_of.setdefault(rules, len(self._limits_of))
        if row == len(self.limits):
            limits = (rules.gap_ms, rules.load_w, rules.still_with_load_ms, rules.still_without_load_ms)
            self.limits = np.vstack([self.limits, np.array([limits], dtype=np.int64)])
        return row

    def _rate_row(self, state: MeterState) -> int | None:
        """Return the row of the open part's rates; None where the vectorised forms are not proven for a meter."""
        walk = state.account.walk
        if walk.part.zone_count or state.rated_w > RATED_W_MAX:
            return None
        if walk.before_wh > ENERGY_WH_MAX or walk.demand_w > LOAD_W_MAX:
            return None
        try:
            return self.rates.row_of(walk.part)
        except TariffError:
            return None
