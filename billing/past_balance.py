"""The charge of an account up to any instant, as it is known today.

Stage: after the fact, beside the running balance. Enters: an account's terms, what its journals have booked, and points
of its energy curve. Leaves: minor units. Never: a clock, a posting.

Definition: what a consumer owes for the time up to an instant is the bill of every bill part that ended by then, as
journals have booked it until today, and the bill so far of the part that holds the instant: the energy up to it, split
between the two readings around it in proportion to time, and the whole of each local day touched until then. A day's
greatest demand counts once the day has ended. At money time this is the running charge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from billing.calendar import LocalCalendar
from billing.rating import total
from billing.running import Checkpoint, Point, begin, energy_at, follow, owed_minor, zones_of
from billing.terms import BillPart, Terms, part_lines
from billing.zones import zone_clock


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedBefore:
    """What journals have booked of bill parts before one, and where that one begins.

    Units: `start_wh` is the energy to date at its first midnight; `before_wh` what the month's earlier parts took of
    its slabs; `demand_w` the greatest demand of its days that had ended.
    """

    charged_minor: int
    start_wh: int
    before_wh: int
    demand_w: int


def charge_in_closed_part(
    terms: Terms, booked: BookedBefore, points: Sequence[Point], *, at_ms: int, calendar: LocalCalendar
) -> int:
    """Return the charge from the opening up to an instant before the last closed day's end, in minor units.

    `points` rise in time and are those around the instant and around each edge of a zone before it in its part.
    """
    day = calendar.day_of(at_ms)
    if day < terms.opened_on:
        return 0
    part = terms.part_at(day)
    energy_wh, _ = energy_at(points, at_ms)
    lines = part_lines(
        part,
        before_wh=booked.before_wh,
        # What was booked for earlier parts may, until late readings are settled, reach beyond what was read by then.
        energy_wh=max(0, energy_wh - booked.start_wh),
        zone_wh=zones_of(part, points, at_ms, calendar),
        through_day=day,
        demand_w=booked.demand_w,
    )
    return booked.charged_minor + total(lines)


def owed_at(
    checkpoint: Checkpoint, terms: Terms, points: Sequence[Point], *, at_ms: int, calendar: LocalCalendar
) -> int:
    """Return the charge since the checkpoint up to an instant at or after it, in minor units.

    `points` rise in time: those of `running_balance`, and those around the instant. After the last nothing is known.
    """
    known = {point for point in points if checkpoint.anchor.at_ms < point.at_ms <= at_ms}
    if points[-1].at_ms > at_ms:
        # Edges between the last reading and the instant, too, are split as the readings around them say.
        last_ms = max([checkpoint.anchor, *known]).at_ms
        edges_ms = _edges_between(last_ms, at_ms, terms.part_at(checkpoint.through), terms, calendar)
        known |= {Point(at_ms=edge_ms, energy_wh=energy_at(points, edge_ms)[0]) for edge_ms in (*edges_ms, at_ms)}
    walk = follow(begin(checkpoint, terms), terms, sorted(known), calendar)
    return owed_minor(walk, through=checkpoint.through, calendar=calendar)


def _edges_between(from_ms: int, until_ms: int, part: BillPart, terms: Terms, calendar: LocalCalendar) -> Iterator[int]:
    """Yield the instants after one and before another at which a bill part, from a given one on, or a zone ends."""
    while True:
        begin_ms, end_ms = max(from_ms, calendar.midnight_ms(part.first)), calendar.midnight_ms(part.end)
        if part.tariff.zones is not None:
            yield from zone_clock(part.tariff.zones, calendar).edges_between(begin_ms, min(end_ms, until_ms))
        if end_ms >= until_ms:
            return
        if end_ms > from_ms:
            yield end_ms
        part = terms.next_part(part)
