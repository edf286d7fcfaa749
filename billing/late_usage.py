"""What closed days are short of: bill parts rated again from the readings and terms as they are now.

Stage: beside `billing.running`, whenever a reading comes late, a silent meter is heard again or a correction changes
readings or terms. Takes what journals have booked by bill part, the checkpoint and points of the energy curve; returns
the differences to be booked and the checkpoint with them. The same call again finds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date

from billing.calendar import LocalCalendar
from billing.rating import Lines, difference, total
from billing.running import (
    Checkpoint,
    LateUsage,
    PeriodPosted,
    Point,
    charged_lines,
    energy_at,
    with_assessed,
    zones_of,
)
from billing.terms import BillPart, Terms, part_lines
from billing.zones import zone_clock


def late_usage(
    posted: Sequence[PeriodPosted],
    checkpoint: Checkpoint,
    terms: Terms,
    points: Sequence[Point],
    calendar: LocalCalendar,
    assessments_wh: Mapping[date, int] | None = None,
) -> tuple[list[LateUsage], Checkpoint]:
    """Rate booked parts again from the points and terms as they are now; return what the journals are short of.

    `posted` is what journals have booked from a fresh bill part on; what they booked under parts that the terms no
    longer have is taken back. `points` cover the time from before the second part begins and, where a tariff has
    zones, from before the first. `assessments_wh` is energy that a correction adds to closed parts by their first
    day. Also returns the checkpoint with those differences booked.
    """
    parts = [terms.part_at(posted[0].period)]
    while parts[-1].end <= checkpoint.through:
        parts.append(terms.next_part(parts[-1]))
    edges_wh = _edges(parts, posted, checkpoint, points, calendar)
    gone = {booked.period for booked in posted} - {part.first for part in parts}
    found = [_short(booked, 0, {}) for booked in posted if booked.period in gone]
    before_wh = 0
    for number, part in enumerate(parts[:-1]):
        before_wh = 0 if part.fresh else before_wh
        added_wh = (assessments_wh or {}).get(part.first, 0)
        booked = _booked_in(part, posted)
        energy_wh = edges_wh[number + 1] - edges_wh[number]
        billed_wh = energy_wh + booked.assessed_wh + added_wh
        metered = zones_of(part, points, calendar.midnight_ms(part.end), calendar)
        lines = part_lines(
            part,
            before_wh=before_wh,
            energy_wh=billed_wh,
            zone_wh=with_assessed(metered, billed_wh),
            through_day=part.last,
            demand_w=booked.demand_w,
        )
        found.append(replace(_short(booked, energy_wh, lines), assessed_wh=added_wh))
        before_wh += billed_wh
    part = parts[-1]
    known = replace(
        checkpoint,
        before_wh=0 if part.fresh else before_wh,
        part_start_wh=edges_wh[-1],
        demand_w=_booked_in(part, posted).demand_w,
        anchor=_anchor(part, checkpoint, edges_wh[-1], points, calendar),
    )
    known = replace(known, anchor_zones=zones_of(part, points, known.anchor.at_ms, calendar))
    change, known = _late_in_open_part(_booked_in(part, posted), known, terms, points, calendar)
    found = [each for each in (*found, change) if each.energy_wh or each.lines or each.assessed_wh]
    owed = sum(total(each.lines) for each in found)
    return found, replace(known, posted_minor=checkpoint.posted_minor - owed)


def _edges(
    parts: Sequence[BillPart],
    posted: Sequence[PeriodPosted],
    checkpoint: Checkpoint,
    points: Sequence[Point],
    calendar: LocalCalendar,
) -> list[int]:
    """Return the energy to date at the start of each bill part, as the points say it now."""
    before_wh = checkpoint.closed_wh - sum(booked.energy_wh for booked in posted)
    return [before_wh, *(energy_at(points, calendar.midnight_ms(part.first))[0] for part in parts[1:])]


def _booked_in(part: BillPart, posted: Sequence[PeriodPosted]) -> PeriodPosted:
    """Return what journals have booked under a part's first day, with demand and assessments of all its days."""
    inside = [booked for booked in posted if part.first <= booked.period < part.end]
    same = next((booked for booked in inside if booked.period == part.first), None)
    return PeriodPosted(
        period=part.first,
        energy_wh=same.energy_wh if same else 0,
        lines=same.lines if same else {},
        demand_w=max((booked.demand_w for booked in inside), default=0),
        assessed_wh=sum(booked.assessed_wh for booked in inside),
    )


def _anchor(
    part: BillPart, checkpoint: Checkpoint, start_wh: int, points: Sequence[Point], calendar: LocalCalendar
) -> Point:
    """Return where the curve goes on from: a point, or the part's first edge once it is known.

    An edge only stands in for the point before it while the point after it comes before the next edge: one further
    on is split between the two points around it, and whole Wh of the first edge would move it.
    """
    start_ms = calendar.midnight_ms(part.first)
    if part.zone_count:
        # The energy by zone is known at the points around `through`, and not at one that they left behind.
        # A meter may have taken over after `through`; readings of the one before it are not asked for again.
        until_ms = max(calendar.midnight_ms(checkpoint.through), checkpoint.anchor.at_ms)
        inside = [point for point in points if start_ms <= point.at_ms <= until_ms]
        if inside:
            return inside[-1]
    if not checkpoint.anchor.at_ms <= start_ms <= points[-1].at_ms:
        return checkpoint.anchor
    after = next(point for point in points if point.at_ms >= start_ms)
    if after.at_ms == start_ms or after.at_ms <= _next_edge_ms(part, start_ms, calendar):
        return Point(at_ms=start_ms, energy_wh=start_wh)
    return [point for point in points if point.at_ms < start_ms][-1]


def _next_edge_ms(part: BillPart, at_ms: int, calendar: LocalCalendar) -> int:
    """Return the instant after another of a part at which energy is split for money."""
    end_ms = calendar.midnight_ms(part.end)
    if part.tariff.zones is None:
        return end_ms
    return min(zone_clock(part.tariff.zones, calendar).zone_at(at_ms)[1], end_ms)


def _late_in_open_part(
    booked: PeriodPosted, known: Checkpoint, terms: Terms, points: Sequence[Point], calendar: LocalCalendar
) -> tuple[LateUsage, Checkpoint]:
    """Recompute what journals have booked for the part that is open."""
    part = terms.part_at(known.through)
    if known.through <= part.first:
        known = replace(known, charged_minor=0, closed_wh=known.part_start_wh, closed_zones=(0,) * part.zone_count)
        return _short(booked, 0, {}), known
    if part.zone_count:
        # Zone edges have moved with the points, so the last closed day's edge moves too.
        edge_ms = calendar.midnight_ms(known.through)
        closed_wh, _ = energy_at(points, edge_ms)
        known = replace(known, closed_wh=closed_wh, closed_zones=zones_of(part, points, edge_ms, calendar))
    else:
        # A silent meter's energy, found now, lies before the edge; energy already booked after it moves across.
        known = replace(known, closed_wh=max(known.closed_wh, known.part_start_wh), closed_zones=())
    lines = charged_lines(known, terms)
    change = _short(booked, known.closed_wh - known.part_start_wh, lines)
    return change, replace(known, charged_minor=total(lines))


def _short(booked: PeriodPosted, energy_wh: int, lines: Lines) -> LateUsage:
    return LateUsage(
        period=booked.period,
        energy_wh=energy_wh - booked.energy_wh,
        lines=difference(lines, booked.lines),
    )
