"""What ingest knows of its meters as columns, so that a batch is validated and rated in one go.

Stage: between batches; the store behind the ingest cache. Each meter has a place. Its state as last read or planned
one by one (`MeterState`) is kept beside arrays of what the vectorised plan works with; a plan in columns moves only
marks, so the state at any time is the kept one carried to its mark. Pure: the edge loads, adopts and drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from billing.calendar import LocalCalendar
from billing.rate_table import RateTable
from billing.running import Point
from billing.supply import Supply, desired_supply
from billing.tariff import ENERGY_WH_MAX, LOAD_W_MAX, TariffError
from headend.state import MeterState

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

# A level that no balance reaches: no threshold, a postpaid account. Balances are sums of 64-bit minor units far inside.
NO_LEVEL: Final = -(2**62)
# Beyond this rating the energy limit of a gap of 130 years would leave 64 bits; such meters are planned one by one.
RATED_W_MAX: Final = 10**6
_FIRST_CAPACITY: Final = 1024


class ChargeTable(Mapping[str, MeterState]):
    """Meter states by serial, and the same as columns.

    Invariants: `place_of` names the place of every known serial; at a place all arrays tell of that meter, as of the
    latest committed batch. `plain` marks meters that only the plan one by one may take: with time-of-day zones, a
    closed edge that waits for a reading, a held order, or a rating beyond the arrays' range.
    """

    def __init__(self, calendar: LocalCalendar) -> None:
        self._calendar = calendar
        self.rates = RateTable()
        self.place_of: dict[str, int] = {}
        self._kept: list[MeterState | None] = []
        self._free: list[int] = []
        self._grow(_FIRST_CAPACITY)

    def __getitem__(self, serial: str) -> MeterState:
        place = self.place_of[serial]
        kept = self.kept(serial)
        mark_ms = int(self.mark_ms[place])
        if mark_ms == kept.mark_ms:
            return kept
        mark_wh = int(self.mark_wh[place])
        last = Point(at_ms=mark_ms, energy_wh=kept.energy_to_date(mark_ms, mark_wh))
        walk = replace(kept.account.walk, last=last)
        return replace(kept, mark_ms=mark_ms, mark_wh=mark_wh, account=replace(kept.account, walk=walk))

    def __iter__(self) -> Iterator[str]:
        return iter(self.place_of)

    def __len__(self) -> int:
        return len(self.place_of)

    def kept(self, serial: str) -> MeterState:
        """Return a meter's state but for its mark, which may be an earlier one: cheap, for what marks do not change."""
        kept = self._kept[self.place_of[serial]]
        assert kept is not None, f"meter {serial}: expected a state"
        return kept

    def put(self, state: MeterState) -> int:
        """Keep a state; return its place."""
        place = self.place_of.get(state.serial)
        if place is None:
            place = self._take_place()
            self.place_of[state.serial] = place
        self._kept[place] = state
        self._fill(place, state)
        return place

    def drop(self, serial: str) -> None:
        """Forget a meter."""
        place = self.place_of.pop(serial, None)
        if place is not None:
            self._kept[place] = None
            self._free.append(place)

    def move_marks(self, places: Places, mark_ms: Int64, mark_wh: Int64) -> None:
        """Take over where a committed plan in columns has left its meters."""
        self.mark_ms[places] = mark_ms
        self.mark_wh[places] = mark_wh

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._kept) == len(self.meter_id):
            self._grow(2 * len(self.meter_id))
        self._kept.append(None)
        return len(self._kept) - 1

    def _fill(self, place: int, state: MeterState) -> None:
        account, walk = state.account, state.account.walk
        levels = account.levels
        self.meter_id[place] = state.meter_id
        self.account_id[place] = account.id
        self.shard[place] = state.shard
        self.mark_ms[place] = state.mark_ms
        self.mark_wh[place] = state.mark_wh
        self.offset_wh[place] = state.segments[-1].offset_wh
        self.rated_w[place] = state.rated_w
        self.part_end_ms[place] = self._calendar.midnight_ms(walk.part.end)
        self.part_first[place] = walk.part.first.toordinal()
        self.through[place] = account.checkpoint.through.toordinal()
        self.start_wh[place] = walk.start_wh
        self.before_wh[place] = walk.before_wh
        self.demand_w[place] = walk.demand_w
        # What the balance would be without the open part's lines.
        self.settled_minor[place] = account.checkpoint.posted_minor - walk.done_minor
        low_minor = levels.threshold_minor
        self.low_at[place] = NO_LEVEL if low_minor is None or levels.low_raised else low_minor
        may_cut = desired_supply(levels, NO_LEVEL) is Supply.OFF
        self.cut_at[place] = levels.cut_at_minor if may_cut else NO_LEVEL
        self.exhausted_raised[place] = levels.exhausted_raised
        self.off[place] = levels.desired is Supply.OFF
        self.plain[place] = account.silent or account.held or not self._rated_in_columns(place, state)

    def _rated_in_columns(self, place: int, state: MeterState) -> bool:
        """Note the row of the open part's rates; tell whether the vectorised forms are proven for this meter."""
        walk = state.account.walk
        if walk.part.zone_count or state.rated_w > RATED_W_MAX:
            return False
        if walk.before_wh > ENERGY_WH_MAX or walk.demand_w > LOAD_W_MAX:
            return False
        try:
            self.rate_row[place] = self.rates.row_of(walk.part)
        except TariffError:
            return False
        return True

    def _grow(self, capacity: int) -> None:
        known = len(self._kept)

        def column(name: str, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
            grown = np.zeros(capacity, dtype=dtype)
            if known:
                grown[:known] = getattr(self, name)[:known]
            return grown

        for name in _INTEGERS:
            setattr(self, name, column(name, np.int64))
        for name in _FLAGS:
            setattr(self, name, column(name, np.bool_))

    meter_id: Int64
    account_id: Int64
    shard: Int64
    mark_ms: Int64
    mark_wh: Int64
    offset_wh: Int64
    rated_w: Int64
    part_end_ms: Int64
    part_first: Int64
    through: Int64
    start_wh: Int64
    before_wh: Int64
    demand_w: Int64
    rate_row: Int64
    settled_minor: Int64
    low_at: Int64
    cut_at: Int64
    exhausted_raised: Bool
    off: Bool
    plain: Bool


_FLAGS = ("exhausted_raised", "off", "plain")
_INTEGERS = tuple(name for name in ChargeTable.__annotations__ if name not in _FLAGS)
