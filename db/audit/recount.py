"""The bill parts of an account rated from its readings alone, beside what journals have booked for them.

Stage: pure, between what was read and what is judged or shown. Uses the plain rating, never the vectorised one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from billing.calendar import LocalCalendar
from billing.rating import Lines, difference
from billing.running import EdgeQuality, Point, energy_at, with_assessed, zones_of
from billing.terms import BillPart, part_lines
from db.accounts import AccountView
from db.posting import parts_between


@dataclass(slots=True, kw_only=True)
class Booked:
    """What journals have booked under one bill part's first day."""

    energy_wh: int = 0
    demand_w: int = 0
    assessed_wh: int = 0
    lines: Lines = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Tell whether everything booked has been taken back."""
        return not (self.energy_wh or self.assessed_wh or any(self.lines.values()))


# By the first day of the part.
Periods = dict[date, Booked]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount:
    """A closed bill part: booked, and rated again from readings. `edge_wh` is the energy to date at its end."""

    part: BillPart
    booked: Booked
    energy_wh: int
    edge_wh: int
    lines: Lines

    @property
    def short_wh(self) -> int:
        """Energy that journals are short of."""
        return self.energy_wh - self.booked.energy_wh

    @property
    def short(self) -> Lines:
        """Lines that journals are short of."""
        return difference(self.lines, self.booked.lines)


def parts_of(view: AccountView) -> list[BillPart]:
    """Return an account's bill parts from its opening to the open one."""
    return parts_between(view.terms, view.terms.opened_on, view.checkpoint.through)


def recounted(
    parts: Sequence[BillPart], periods: Mapping[date, Booked], curve: Sequence[Point], calendar: LocalCalendar
) -> Iterator[Recount]:
    """Rate each closed part again; end before one whose end has not been read.

    `parts` go from the opening to the open one; `curve` rises from the installation, with the points around all edges.
    """
    instants = [point.at_ms for point in curve]
    edge_wh = curve[0].energy_wh
    before_wh = 0
    for part in parts[:-1]:
        start_ms, end_ms = calendar.midnight_ms(part.first), calendar.midnight_ms(part.end)
        # Points beyond the nearest ones on both sides cannot matter to the part.
        around = curve[max(0, bisect_right(instants, start_ms) - 1) : bisect_left(instants, end_ms) + 1]
        end_wh, quality = energy_at(around, end_ms)
        if quality is EdgeQuality.UNREAD:
            return
        energy_wh, edge_wh = end_wh - edge_wh, end_wh
        before_wh = 0 if part.fresh else before_wh
        booked = _booked_in(part, periods)
        billed_wh = energy_wh + booked.assessed_wh
        lines = part_lines(
            part,
            before_wh=before_wh,
            energy_wh=billed_wh,
            zone_wh=with_assessed(zones_of(part, around, end_ms, calendar), billed_wh),
            through_day=part.last,
            demand_w=booked.demand_w,
        )
        before_wh += billed_wh
        yield Recount(part=part, booked=booked, energy_wh=energy_wh, edge_wh=edge_wh, lines=lines)


def strays(parts: Sequence[BillPart], periods: Mapping[date, Booked]) -> list[date]:
    """Return the first days under which journals have booked something though no bill part begins there."""
    firsts = {part.first for part in parts}
    return [period for period, booked in sorted(periods.items()) if period not in firsts and not booked.empty]


def _booked_in(part: BillPart, periods: Mapping[date, Booked]) -> Booked:
    """Return what is booked under a part's first day, with the greatest demand of all its days."""
    booked = periods.get(part.first) or Booked()
    demand_w = max((each.demand_w for first, each in periods.items() if part.first <= first < part.end), default=0)
    return Booked(energy_wh=booked.energy_wh, demand_w=demand_w, assessed_wh=booked.assessed_wh, lines=booked.lines)
