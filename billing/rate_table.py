"""The rates of many bill parts as numpy columns: what vectorised rating gathers from.

Stage: between tariffs and `billing.rating_batch`. Takes bill parts; hands out row numbers, the same one for all parts
that are rated alike (thousands of accounts that opened on different days share a row). Rows of one shape, the same
lines taken of the same lines, stand together, so that a batch is rated by a few straight runs and without masks.
Rows are never changed or dropped: a row number stays good as long as its table. One thread at a time.

All figures are proven to fit 64 bits when a row is taken in: rates within the limits of `billing.tariff`, and shares
of shares of at most 2^62 minor units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from billing.money import round_half_up
from billing.rating import MICRO, SUBSIDY_LINE
from billing.tariff import (
    BASIS_POINTS,
    ENERGY_WH_MAX,
    LOAD_W_MAX,
    MONTH_RATE_MILLI_MAX,
    RATE_MILLI_MAX,
    Beyond,
    Rates,
    Share,
    ShareKind,
    TariffError,
)
from billing.terms import BillPart

Int64 = npt.NDArray[np.int64]

# Days so far of a bill part, 0 to 31: amounts by day are kept ready for each.
DAY_COUNTS = 32
MONTH_DAYS_MIN = 28
# A meter may read more than the greatest load that is sanctioned.
DEMAND_W_MAX = 2 * LOAD_W_MAX
# Shapes are sorted by as 16-bit numbers, which numpy does by radix; a country's tariffs have some hundreds.
SHAPES_MAX = 32_767
# Above this many minor units a share's base times 10,000 leaves 63 bits.
SHARE_BASE_MAX = (2**63 - 1) // BASIS_POINTS - 1
LINE_MINOR_MAX = 2**62
_ROWS_AT_FIRST = 64
# Parts whose row is remembered: as many as `billing.terms` keeps alive.
_PARTS_MAX = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which lines rates have and what each is taken of: all that is the same for the rows of one straight run.

    Invariants: shares have neither areas nor days left; `minimum_of` is None where there is no minimum;
    `wide` says that a share's base may pass `SHARE_BASE_MAX`.
    """

    slab_count: int
    whole_quantity: bool
    zone_names: tuple[str, ...]
    has_fppca: bool
    has_demand: bool
    minimum_of: tuple[str, ...] | None
    shares: tuple[Share, ...]
    covers: tuple[str, ...] | None
    beyond: Beyond | None
    wide: bool

    @property
    def line_names(self) -> tuple[str, ...]:
        """Names of the bill lines, in the order of the plain form."""
        energy = tuple(f"energy_{number}" for number in range(1, self.slab_count + 1))
        zones = tuple(f"zone_{name}" for name in self.zone_names)
        return (*energy, *zones, *self.single_names)

    @property
    def single_names(self) -> tuple[str, ...]:
        """Names of the lines that are a group of their own."""
        there = {
            "fppca": self.has_fppca,
            "fixed": True,
            "meter_rent": True,
            "demand": self.has_demand,
            "minimum": self.minimum_of is not None,
        }
        subsidy = () if self.covers is None else (SUBSIDY_LINE,)
        return (*(name for name, is_there in there.items() if is_there), *(each.name for each in self.shares), *subsidy)

    @property
    def levies(self) -> frozenset[str]:
        """Names of the lines that are collected for others."""
        return frozenset(share.name for share in self.shares if share.kind is ShareKind.LEVY)


class RateColumns:
    """The figures of all rows of one shape: a line of the array per figure, a column per row.

    Invariants: slab limits are multiplied out to the part's share of the month; the `*_by_day` figures are the rounded
    minor units after 0 to 31 days, so that no charge by days is divided again.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.line_names = shape.line_names
        self.single_names = shape.single_names
        self.levies = shape.levies
        slabs, zones = shape.slab_count, len(shape.zone_names)
        self.limits_wh = slice(0, slabs - 1)
        self.rates_milli = slice(slabs - 1, 2 * slabs - 1)
        self.zones_milli = slice(2 * slabs - 1, 2 * slabs - 1 + zones)
        first = self.zones_milli.stop
        self.fppca_milli, self.demand_milli, self.load_w, self.period_days, self.subsidy_wh = range(first, first + 5)
        by_day = first + 5
        lines = by_day + 3 * DAY_COUNTS
        self.fixed_by_day, self.rent_by_day, self.floor_by_day = range(by_day, lines, DAY_COUNTS)
        self._values: Int64 = np.zeros((lines, _ROWS_AT_FIRST), dtype=np.int64)
        self._count = 0

    def add(self, rates: Rates, period_days: int, slab_days: int) -> int:
        """Take in a row; return its column."""
        column = self._count
        if column == self._values.shape[1]:
            self._values = np.concatenate([self._values, np.zeros_like(self._values)], axis=1)
        limits_wh = [(slab.to_wh or 0) * slab_days // period_days for slab in rates.slabs[:-1]]
        subsidy_wh = 0 if rates.subsidy is None else rates.subsidy.to_wh * slab_days // period_days
        self._values[:, column] = [
            *limits_wh,
            *(slab.rate_milli_per_kwh for slab in rates.slabs),
            *rates.zone_milli,
            rates.fppca_milli or 0,
            rates.demand_milli_per_kw,
            rates.load_w,
            period_days,
            subsidy_wh,
            *_by_day(rates.fixed_micro, period_days),
            *_by_day(rates.meter_rent_micro, period_days),
            *_by_day(rates.minimum_micro, period_days),
        ]
        self._count += 1
        return column

    def figures(self, lines: slice, columns: Int64) -> Int64:
        """Return some lines of the columns.

        Shape: lines by columns.
        """
        figures: Int64 = self._values[lines].take(columns, axis=1)
        return figures

    def figure(self, line: int, columns: Int64) -> Int64:
        """Return one line of the columns."""
        figures: Int64 = self._values[line].take(columns)
        return figures

    def after_days(self, line: int, days: Int64, columns: Int64) -> Int64:
        """Return the amounts of a `*_by_day` figure after so many days, one number for each column."""
        width = self._values.shape[1]
        amounts: Int64 = self._values.ravel().take((days + line) * width + columns)
        return amounts


class RateTable:
    """All rates that a process has met, by row number."""

    def __init__(self) -> None:
        # A bill part is hashed by identity, its rates by their contents: that is done once for each part.
        self.row_of = lru_cache(maxsize=_PARTS_MAX)(self._row_of)
        self.shapes: list[RateColumns] = []
        self._shape_numbers: dict[Shape, int] = {}
        self._rows: dict[tuple[Rates, int, int], int] = {}
        self._shape_of: npt.NDArray[np.int16] = np.zeros(_ROWS_AT_FIRST, dtype=np.int16)
        self._column_of: Int64 = np.zeros(_ROWS_AT_FIRST, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, rates: Rates, period_days: int, slab_days: int) -> int:
        """Return the row number of rates in a part whose slab limits are shared by so many of the month's days.

        Raises: TariffError for rates beyond the limits of `billing.tariff`.
        """
        key = rates, period_days, slab_days
        row = self._rows.get(key)
        if row is None:
            row = len(self._rows)
            shape, column = self._place(rates, period_days, slab_days)
            if row == len(self._column_of):
                self._shape_of = np.concatenate([self._shape_of, np.zeros_like(self._shape_of)])
                self._column_of = np.concatenate([self._column_of, np.zeros_like(self._column_of)])
            self._shape_of[row], self._column_of[row] = shape, column
            self._rows[key] = row
        return row

    def shapes_of(self, rows: Int64) -> npt.NDArray[np.int16]:
        """Return the number in `shapes` of each row."""
        return self._shape_of.take(rows)

    def columns_of(self, rows: Int64) -> Int64:
        """Return the column of each row among those of its shape."""
        return self._column_of.take(rows)

    def _row_of(self, part: BillPart) -> int:
        """Return the row number of a bill part.

        Raises: TariffError for rates beyond the limits of `billing.tariff`.
        """
        return self.row(part.rates, part.period_days, part.slab_days)

    def _place(self, rates: Rates, period_days: int, slab_days: int) -> tuple[int, int]:
        _require_limits(rates, period_days, slab_days)
        shape = _shape(rates)
        number = self._shape_numbers.get(shape)
        if number is None:
            number = len(self.shapes)
            if number == SHAPES_MAX:
                raise TariffError(f"rates: expected at most {SHAPES_MAX} different sets of lines, got another")
            self._shape_numbers[shape] = number
            self.shapes.append(RateColumns(shape))
        return number, self.shapes[number].add(rates, period_days, slab_days)


def _shape(rates: Rates) -> Shape:
    return Shape(
        slab_count=len(rates.slabs),
        whole_quantity=rates.whole_quantity,
        zone_names=rates.zone_names,
        has_fppca=rates.fppca_milli is not None,
        has_demand=rates.demand_milli_per_kw > 0,
        minimum_of=rates.minimum_of if rates.minimum_micro else None,
        shares=tuple(replace(share, areas=frozenset(), since=None, until=None) for share in rates.shares),
        covers=None if rates.subsidy is None else rates.subsidy.covers,
        beyond=None if rates.subsidy is None else rates.subsidy.beyond,
        wide=_largest_base(rates) > SHARE_BASE_MAX,
    )


def _require_limits(rates: Rates, period_days: int, slab_days: int) -> None:
    """Refuse what 64 bits are not proven for.

    Raises: TariffError.
    """
    milli = (*(slab.rate_milli_per_kwh for slab in rates.slabs), *rates.zone_milli, rates.fppca_milli or 0)
    limits_wh = [slab.to_wh for slab in rates.slabs if slab.to_wh is not None]
    micro = (rates.fixed_micro, rates.meter_rent_micro, rates.minimum_micro)
    subsidy_wh = 0 if rates.subsidy is None else rates.subsidy.to_wh
    checked = (
        ("rate per kWh", max(map(abs, milli)), 0, RATE_MILLI_MAX),
        ("slab limit", max(limits_wh, default=0), 0, ENERGY_WH_MAX),
        ("monthly charge", max(micro), 0, MONTH_RATE_MILLI_MAX * LOAD_W_MAX),
        ("demand rate", rates.demand_milli_per_kw, 0, MONTH_RATE_MILLI_MAX),
        ("load", rates.load_w, 0, LOAD_W_MAX),
        ("subsidised energy", subsidy_wh, 0, ENERGY_WH_MAX),
        ("share", max((share.basis_points for share in rates.shares), default=0), 0, BASIS_POINTS),
        ("days of the month", period_days, MONTH_DAYS_MIN, DAY_COUNTS - 1),
        ("days that share slab limits", slab_days, 0, period_days),
        ("shares of shares, in minor units", _largest_base(rates), 0, LINE_MINOR_MAX),
    )
    for what, value, least, most in checked:
        if not least <= value <= most:
            raise TariffError(f"rates: {what}: expected {least} to {most}, got {value}")


def _largest_base(rates: Rates) -> int:
    """Return a bound, in minor units, on what all lines come to and so on what any share is taken of."""
    milli = 2 * max(slab.rate_milli_per_kwh for slab in rates.slabs)
    # A day's part of a month's charge is at most 31/28 of it, and each line is rounded up by less than 1.
    bounds = {
        "energy": ENERGY_WH_MAX * milli // MICRO + len(rates.slabs) + 1,
        "zone": ENERGY_WH_MAX * sum(map(abs, rates.zone_milli)) // MICRO + len(rates.zone_milli) + 1,
        "fppca": ENERGY_WH_MAX * abs(rates.fppca_milli or 0) // MICRO + 1,
        "fixed": 2 * rates.fixed_micro // MICRO + 1,
        "meter_rent": 2 * rates.meter_rent_micro // MICRO + 1,
        "demand": 2 * rates.demand_milli_per_kw * DEMAND_W_MAX // MICRO + 1,
    }
    bounds["minimum"] = 2 * rates.minimum_micro // MICRO + 1 + sum(bounds.values())
    for share in rates.shares:
        base = sum(bounds.get(name, 0) for name in share.of)
        bounds[share.name] = base * share.basis_points // BASIS_POINTS + 1
    return 2 * sum(bounds.values())


def _by_day(micro: int, period_days: int) -> list[int]:
    return [round_half_up(micro * days, MICRO * period_days) for days in range(DAY_COUNTS)]
