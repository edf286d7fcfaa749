"""What an account is charged by, and how that cuts its months into bill parts.

Stage: between the registry and rating. Tariff, category, load and area change only at a local midnight, by dated
assignments. A bill part is a run of days of one month in which nothing changes that the bill depends on; a month
without a change is one part. Lines are rounded per part, and a month's bill is the sum of its parts.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

from billing.calendar import days_in, next_period, period_of
from billing.rating import Lines, Quantities, charge_to_date
from billing.tariff import PartMonths, Rates, Tariff

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What holds for an account from a local day until the next assignment."""

    from_day: date
    tariff: Tariff
    category: str = ""
    load_w: int
    area: str = "urban"
    meter_rent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BillPart:
    """A run of days [first, end) of one month under one set of rates.

    Invariants: `fresh` says that slabs start at 0; else they go on where the part before ended. `slab_days` of the
    month's `period_days` share the slab limits.
    """

    first: date
    end: date
    period: date
    period_days: int
    slab_days: int
    fresh: bool
    tariff: Tariff
    rates: Rates

    @property
    def last(self) -> date:
        """The part's last day."""
        return self.end - ONE_DAY

    @property
    def zone_count(self) -> int:
        """How many time-of-day zones energy is split into; 0 without."""
        return len(self.rates.zone_names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """An account's assignments since it opened.

    Invariants: assignments rise by day; the first holds on the day the account opened.
    """

    opened_on: date
    assignments: tuple[Assignment, ...]

    @property
    def tariff(self) -> Tariff:
        """The tariff assigned last: what names the currency."""
        return self.assignments[-1].tariff

    def on(self, day: date) -> Assignment:
        """Return what holds on a day; before the first assignment, that one."""
        number = bisect_right(self.assignments, day, key=_from_day)
        return self.assignments[max(0, number - 1)]

    def part_at(self, day: date) -> BillPart:
        """Return the bill part that holds a day; a day before the opening belongs to the first part."""
        return _part_at(self.opened_on, self.assignments, max(day, self.opened_on))

    def next_part(self, part: BillPart) -> BillPart:
        """Return the bill part after one."""
        return self.part_at(part.end)

    def fresh_part_at(self, day: date) -> BillPart:
        """Return the latest part at or before a day's whose slabs start at 0."""
        part = self.part_at(day)
        while not part.fresh:
            part = self.part_at(part.first - ONE_DAY)
        return part


def one_assignment(
    tariff: Tariff, *, load_w: int, opened_on: date, area: str = "urban", meter_rent: bool = True
) -> Terms:
    """Return the terms of an account that never changed."""
    assignment = Assignment(from_day=opened_on, tariff=tariff, load_w=load_w, area=area, meter_rent=meter_rent)
    return Terms(opened_on=opened_on, assignments=(assignment,))


def part_lines(
    part: BillPart, *, before_wh: int, energy_wh: int, zone_wh: tuple[int, ...], through_day: date, demand_w: int = 0
) -> Lines:
    """Return the lines of one part's bill up to and including a local day; a day's fixed charge accrues whole."""
    return charge_to_date(
        part.rates,
        Quantities(
            before_wh=before_wh,
            energy_wh=energy_wh,
            zone_wh=zone_wh,
            days=max(0, (min(through_day, part.last) - part.first).days + 1),
            period_days=part.period_days,
            slab_days=part.slab_days,
            demand_w=demand_w,
        ),
    )


def _from_day(assignment: Assignment) -> date:
    return assignment.from_day


# A hundred thousand accounts of one shard set look at two months each.
@lru_cache(maxsize=262_144)
def _part_at(opened_on: date, assignments: tuple[Assignment, ...], day: date) -> BillPart:
    number = max(0, bisect_right(assignments, day, key=_from_day) - 1)
    assignment = assignments[number]
    period, following = period_of(day), next_period(period_of(day))
    # The stretch of the month under this assignment; change days of the tariff cut it further.
    first = max(period, opened_on, assignment.from_day if number else opened_on)
    end = min(following, assignments[number + 1].from_day) if number + 1 < len(assignments) else following
    cuts = [cut for cut in assignment.tariff.change_days if first < cut < end]
    part_first = max([first, *(cut for cut in cuts if cut <= day)])
    part_end = min([end, *(cut for cut in cuts if cut > day)])
    pro_rata = assignment.tariff.part_months is PartMonths.PRO_RATA
    return BillPart(
        first=part_first,
        end=part_end,
        period=period,
        period_days=days_in(period),
        slab_days=(end - first).days if pro_rata else days_in(period),
        fresh=part_first == (first if pro_rata else max(period, opened_on)),
        tariff=assignment.tariff,
        rates=assignment.tariff.rates(
            load_w=assignment.load_w, area=assignment.area, meter_rent=assignment.meter_rent, day=part_first
        ),
    )
