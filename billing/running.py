"""The running balance: posted money less what the meter's readings say is owed since.

Stage: between readings and every balance that is shown, alarmed on or posted. One set of pure functions serves
ingest (step by step), the interfaces (one account) and the auditor (from the database). Takes a checkpoint and points
of the account's energy curve; returns the charge still to be posted. Never reads a clock: money time is the later
of the latest accepted reading and the end of the last closed day.

A point is (instant, energy to date): the register carried over roll-overs and meter swaps, so it only rises. Energy
between two points that straddle an edge (the end of a bill part, of a time-of-day zone, of a day) is split there in
proportion to time, the remainder on the later side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from itertools import pairwise

from billing.calendar import LocalCalendar
from billing.rating import Lines, added, difference, total
from billing.terms import ONE_DAY, BillPart, Terms, part_lines
from billing.zones import zone_clock

# Energy by time-of-day zone, in Wh; empty where the tariff has none.
ZoneWh = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """Energy to date at an instant, as the meter reported it."""

    at_ms: int
    energy_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An account's posted state.

    Invariants: days before `through` are closed; everything else is about the bill part of `through`: `charged_minor`
    is the sum of the lines posted for it, which `charged_lines` gives; `part_start_wh` is the energy to date at its
    first midnight (or at the opening) and `before_wh` what the month's earlier parts took of its slabs; `closed_wh`
    is the energy to date that journals have booked, `closed_zones` the part's share of it by zone; `demand_w` the
    greatest demand of its closed days; `anchor` the last point at or before `through`, `anchor_zones` the part's
    energy by zone until then.
    """

    posted_minor: int
    charged_minor: int
    through: date
    before_wh: int
    part_start_wh: int
    closed_wh: int
    closed_zones: ZoneWh
    demand_w: int
    anchor: Point
    anchor_zones: ZoneWh


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where a curve has been followed to from a checkpoint.

    Invariants: `done_minor` is the charge of bill parts completed since the checkpoint, less what was already
    charged to the checkpoint's own part; `last` is the latest point seen, `zone_wh` the part's energy until then.
    """

    part: BillPart
    before_wh: int
    start_wh: int
    zone_wh: ZoneWh
    demand_w: int
    done_minor: int
    last: Point

    def lines(self, through_day: date) -> Lines:
        """Return the lines of the part so far, up to and including a local day."""
        return part_lines(
            self.part,
            before_wh=self.before_wh,
            energy_wh=self.last.energy_wh - self.start_wh,
            zone_wh=self.zone_wh,
            through_day=through_day,
            demand_w=self.demand_w,
        )


class EdgeQuality(StrEnum):
    """How the energy at an edge in time is known."""

    READ = "read"
    ESTIMATED = "estimated"
    UNREAD = "unread"


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """One closed local day: what its journal books. `period` is the first day of its bill part."""

    day: date
    period: date
    from_wh: int
    to_wh: int
    quality: EdgeQuality
    demand_w: int | None
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodPosted:
    """What journals have booked for one bill part so far: metered energy, and what corrections have assessed."""

    period: date
    energy_wh: int
    lines: Lines
    demand_w: int = 0
    assessed_wh: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUsage:
    """The difference that late readings or a correction make to a bill part that journals have booked."""

    period: date
    energy_wh: int
    lines: Lines
    assessed_wh: int = 0


def opening(terms: Terms, *, posted_minor: int, at: Point) -> Checkpoint:
    """Return the posted state of an account on the day it opened."""
    zones = (0,) * terms.part_at(terms.opened_on).zone_count
    return Checkpoint(
        posted_minor=posted_minor,
        charged_minor=0,
        through=terms.opened_on,
        before_wh=0,
        part_start_wh=at.energy_wh,
        closed_wh=at.energy_wh,
        closed_zones=zones,
        demand_w=0,
        anchor=at,
        anchor_zones=zones,
    )


def charged_lines(checkpoint: Checkpoint, terms: Terms) -> Lines:
    """Return the lines posted for the checkpoint's bill part so far; none before its first closed day."""
    part = terms.part_at(checkpoint.through)
    if checkpoint.through <= part.first:
        return {}
    return part_lines(
        part,
        before_wh=checkpoint.before_wh,
        energy_wh=checkpoint.closed_wh - checkpoint.part_start_wh,
        zone_wh=checkpoint.closed_zones,
        through_day=checkpoint.through - ONE_DAY,
        demand_w=checkpoint.demand_w,
    )


def begin(checkpoint: Checkpoint, terms: Terms) -> Walk:
    """Start to follow a curve at the last point known at the checkpoint (or at the installation)."""
    return Walk(
        part=terms.part_at(checkpoint.through),
        before_wh=checkpoint.before_wh,
        start_wh=checkpoint.part_start_wh,
        zone_wh=checkpoint.anchor_zones,
        demand_w=checkpoint.demand_w,
        done_minor=-checkpoint.charged_minor,
        last=checkpoint.anchor,
    )


def advance(walk: Walk, terms: Terms, point: Point, calendar: LocalCalendar) -> Walk:
    """Follow the curve to a later point, completing each bill part whose end lies on the way."""
    while calendar.midnight_ms(walk.part.end) <= point.at_ms:
        _, walk = _complete(walk, terms, point, calendar)
    return Walk(
        part=walk.part,
        before_wh=walk.before_wh,
        start_wh=walk.start_wh,
        zone_wh=_zones_until(walk.part, walk.zone_wh, walk.last, point, point.at_ms, calendar),
        demand_w=walk.demand_w,
        done_minor=walk.done_minor,
        last=point,
    )


def follow(walk: Walk, terms: Terms, points: Sequence[Point], calendar: LocalCalendar) -> Walk:
    """Follow the curve through many later points that rise in time; the same as `advance` for each.

    Without zones only points on both sides of a part's end and the last one can matter.
    """
    edge_ms = calendar.midnight_ms(walk.part.end)
    for number, point in enumerate(points):
        if walk.part.zone_count:
            walk = advance(walk, terms, point, calendar)
        elif point.at_ms >= edge_ms:
            if number and points[number - 1].at_ms > walk.last.at_ms:
                walk = advance(walk, terms, points[number - 1], calendar)
            walk = advance(walk, terms, point, calendar)
        edge_ms = calendar.midnight_ms(walk.part.end)
    if points and points[-1].at_ms > walk.last.at_ms:
        walk = advance(walk, terms, points[-1], calendar)
    return walk


def owed_minor(walk: Walk, *, through: date, calendar: LocalCalendar) -> int:
    """Return the charge since the checkpoint at money time, in minor units.

    Money time is the later of the walk's last point and the midnight that opens `through`.
    """
    money_day = max(calendar.day_of(walk.last.at_ms), through)
    return walk.done_minor + total(walk.lines(money_day))


def running_balance(checkpoint: Checkpoint, terms: Terms, points: Sequence[Point], calendar: LocalCalendar) -> int:
    """Return the account's balance at money time, in minor units; below zero is a debt.

    `points` rise in time: the checkpoint's anchor, those on both sides of each later edge, and the latest. More
    points change nothing.
    """
    walk = follow(begin(checkpoint, terms), terms, points[1:], calendar)
    return checkpoint.posted_minor - owed_minor(walk, through=checkpoint.through, calendar=calendar)


def energy_between(earlier: Point, later: Point, at_ms: int) -> int:
    """Return energy to date at an instant between two points.

    Rounds: down, so that the remainder of the split falls on the later side.
    """
    if at_ms <= earlier.at_ms:
        return earlier.energy_wh
    span_ms = later.at_ms - earlier.at_ms
    return earlier.energy_wh + (later.energy_wh - earlier.energy_wh) * (at_ms - earlier.at_ms) // span_ms


def energy_at(points: Sequence[Point], at_ms: int) -> tuple[int, EdgeQuality]:
    """Return energy to date at an instant of a curve, and how it is known.

    After the last point nothing is known: the last register stands, marked unread.
    """
    earlier = points[0]
    for point in points:
        if point.at_ms == at_ms:
            return point.energy_wh, EdgeQuality.READ
        if point.at_ms > at_ms:
            return energy_between(earlier, point, at_ms), EdgeQuality.ESTIMATED
        earlier = point
    return earlier.energy_wh, EdgeQuality.UNREAD


def close_days(
    checkpoint: Checkpoint,
    terms: Terms,
    points: Sequence[Point],
    *,
    until: date,
    calendar: LocalCalendar,
    demands_w: Mapping[date, int] | None = None,
) -> Iterator[tuple[DayUsage, Checkpoint]]:
    """Close each day from the checkpoint up to and including `until`; yield its usage and the new checkpoint.

    `points` rise in time and reach from the checkpoint's anchor to the latest; `demands_w` has the greatest demand
    of days where the tariff asks for it.
    """
    place = 0
    while checkpoint.through <= until:
        day = checkpoint.through
        part = terms.part_at(day)
        edge_ms = calendar.midnight_ms(day + ONE_DAY)
        zones = checkpoint.anchor_zones
        # Points before the last one at or before the edge cannot matter to a later edge.
        while place + 1 < len(points) and points[place + 1].at_ms <= edge_ms:
            place += 1
            zones = _zones_until(part, zones, points[place - 1], points[place], points[place].at_ms, calendar)
        around = points[place : place + 2]
        to_wh, quality = energy_at(around, edge_ms)
        closed_zones = _zones_until(part, zones, around[0], around[-1], edge_ms, calendar) if around[1:] else zones
        demand_w = (demands_w or {}).get(day)
        known = replace(
            checkpoint,
            closed_wh=to_wh,
            closed_zones=closed_zones,
            demand_w=max(checkpoint.demand_w, demand_w or 0),
            anchor=around[0],
            anchor_zones=zones,
        )
        usage, checkpoint = _close_day(checkpoint, known, terms, part, quality, demand_w)
        yield usage, checkpoint


def with_assessed(zones: ZoneWh, billed_wh: int) -> ZoneWh:
    """Share a part's billed energy, metered and assessed, among its zones as the metered energy was.

    Rounds: down, the remainder in the zone with the most energy; all of it there when none was metered.
    """
    metered_wh = sum(zones)
    if not zones or metered_wh == billed_wh:
        return zones
    shares = [wh * billed_wh // metered_wh if metered_wh else 0 for wh in zones]
    shares[zones.index(max(zones))] += billed_wh - sum(shares)
    return tuple(shares)


def zones_of(part: BillPart, points: Sequence[Point], until_ms: int, calendar: LocalCalendar) -> ZoneWh:
    """Return a part's energy by zone up to an instant, from the points around all its edges."""
    zones = (0,) * part.zone_count
    if not part.zone_count:
        return zones
    for earlier, later in pairwise(points):
        zones = _zones_until(part, zones, earlier, later, min(later.at_ms, until_ms), calendar)
    return zones


def open_bills(
    checkpoint: Checkpoint,
    terms: Terms,
    points: Sequence[Point],
    calendar: LocalCalendar,
    *,
    last_day: date | None = None,
    demands_w: Mapping[date, int] | None = None,
) -> dict[date, tuple[int, Lines]]:
    """Return energy (Wh) and lines to date of the checkpoint's bill part and those after it, by their first day.

    Up to and including `last_day`, the last of a bill part where readings go on after it; without one, the day of
    money time.
    """
    bills: dict[date, tuple[int, Lines]] = {}
    if last_day is None:
        last_day = max(calendar.day_of(points[-1].at_ms), checkpoint.through)
    walk = _with_demand(begin(checkpoint, terms), demands_w)
    # The curve stays flat after its last point: parts that end there without a reading are billed to their end.
    flat = Point(at_ms=max(points[-1].at_ms, calendar.midnight_ms(last_day)), energy_wh=points[-1].energy_wh)
    for point in (*points[1:], flat):
        while calendar.midnight_ms(walk.part.end) <= point.at_ms:
            done, walk = _complete(walk, terms, point, calendar)
            if done.part.first <= last_day:
                bills[done.part.first] = done.last.energy_wh - done.start_wh, done.lines(done.part.last)
            walk = _with_demand(walk, demands_w)
        walk = advance(walk, terms, point, calendar)
    if walk.part.first <= last_day:
        bills[walk.part.first] = walk.last.energy_wh - walk.start_wh, walk.lines(last_day)
    return bills


def bill_by_month(
    terms: Terms,
    points: Iterable[Point],
    *,
    last_day: date,
    calendar: LocalCalendar,
    demands_w: Mapping[date, int] | None = None,
) -> dict[date, tuple[int, Lines]]:
    """Return energy (Wh) and lines of every month of a whole curve, from its first point to `last_day`."""
    curve = list(points)
    start = opening(terms, posted_minor=0, at=curve[0])
    return by_month(open_bills(start, terms, curve, calendar, last_day=last_day, demands_w=demands_w))


def by_month(bills: Mapping[date, tuple[int, Lines]]) -> dict[date, tuple[int, Lines]]:
    """Add up bill parts to calendar months."""
    months: dict[date, tuple[int, Lines]] = {}
    for first, (energy_wh, lines) in sorted(bills.items()):
        month = first.replace(day=1)
        before_wh, before = months.get(month, (0, {}))
        months[month] = before_wh + energy_wh, added(before, lines)
    return months


def _complete(walk: Walk, terms: Terms, point: Point, calendar: LocalCalendar) -> tuple[Walk, Walk]:
    """Return a walk at the end of its part, on the way to a later point, and the walk that enters the next part.

    The latter's last point stays the one before the edge: later edges before the same point are split from there.
    """
    end_ms = calendar.midnight_ms(walk.part.end)
    edge = Point(at_ms=end_ms, energy_wh=energy_between(walk.last, point, end_ms))
    done = replace(walk, zone_wh=_zones_until(walk.part, walk.zone_wh, walk.last, point, end_ms, calendar), last=edge)
    following = terms.next_part(walk.part)
    return done, Walk(
        part=following,
        before_wh=0 if following.fresh else walk.before_wh + edge.energy_wh - walk.start_wh,
        start_wh=edge.energy_wh,
        zone_wh=(0,) * following.zone_count,
        demand_w=0,
        done_minor=walk.done_minor + total(done.lines(walk.part.last)),
        last=walk.last,
    )


def _zones_until(
    part: BillPart, zones: ZoneWh, earlier: Point, later: Point, until_ms: int, calendar: LocalCalendar
) -> ZoneWh:
    """Add the energy between two points that falls into a part's zones before an instant."""
    if not part.zone_count:
        return zones
    assert part.tariff.zones is not None, "a part with zones has a tariff with zones"
    clock = zone_clock(part.tariff.zones, calendar)
    at_ms = max(earlier.at_ms, calendar.midnight_ms(part.first))
    end_ms = min(until_ms, calendar.midnight_ms(part.end))
    found = list(zones)
    at_wh = energy_between(earlier, later, at_ms)
    while at_ms < end_ms:
        zone, zone_end_ms = clock.zone_at(at_ms)
        at_ms = min(zone_end_ms, end_ms)
        to_wh = energy_between(earlier, later, at_ms)
        found[zone] += to_wh - at_wh
        at_wh = to_wh
    return tuple(found)


def _with_demand(walk: Walk, demands_w: Mapping[date, int] | None) -> Walk:
    if not demands_w:
        return walk
    part = walk.part
    inside = [demand_w for day, demand_w in demands_w.items() if part.first <= day < part.end]
    return replace(walk, demand_w=max([walk.demand_w, *inside]))


def _close_day(
    before: Checkpoint, known: Checkpoint, terms: Terms, part: BillPart, quality: EdgeQuality, demand_w: int | None
) -> tuple[DayUsage, Checkpoint]:
    """Book a day: `known` is the checkpoint before it with what is known at its end."""
    day, through = before.through, before.through + ONE_DAY
    closed = replace(known, through=through)
    to_date = part_lines(
        part,
        before_wh=known.before_wh,
        energy_wh=known.closed_wh - known.part_start_wh,
        zone_wh=known.closed_zones,
        through_day=day,
        demand_w=known.demand_w,
    )
    lines = difference(to_date, charged_lines(before, terms))
    usage = DayUsage(
        day=day,
        period=part.first,
        from_wh=before.closed_wh,
        to_wh=known.closed_wh,
        quality=quality,
        demand_w=demand_w,
        lines=lines,
    )
    closed = replace(
        closed, posted_minor=before.posted_minor - total(lines), charged_minor=before.charged_minor + total(lines)
    )
    return usage, closed if through < part.end else _enter(closed, part, terms)


def _enter(closed: Checkpoint, part: BillPart, terms: Terms) -> Checkpoint:
    """Open the bill part after a completed one."""
    following = terms.next_part(part)
    zones = (0,) * following.zone_count
    return replace(
        closed,
        charged_minor=0,
        before_wh=0 if following.fresh else closed.before_wh + closed.closed_wh - closed.part_start_wh,
        part_start_wh=closed.closed_wh,
        closed_zones=zones,
        demand_w=0,
        anchor_zones=zones,
    )
