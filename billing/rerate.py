"""What a correction changes in one account: other terms, other readings, assessed energy, rated from scratch.

Stage: between what is proposed and what is posted. Takes the posted state, what journals have booked and the energy
curve as the correction has it; returns the differences by bill part, the new checkpoint, and the balance before and
after. The dry run and the posting call the same function, so that they can only differ by what happened in between.

Invariant: the differences of all bill parts sum to the balance before less the balance after.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from itertools import pairwise

from billing.assigning import AssignmentRequest
from billing.calendar import LocalCalendar, period_of
from billing.late_usage import late_usage
from billing.money import BillingError
from billing.rating import Lines, added, difference, total
from billing.running import (
    Checkpoint,
    LateUsage,
    PeriodPosted,
    Point,
    charged_lines,
    energy_at,
    open_bills,
    running_balance,
    zones_of,
)
from billing.supply import Levels, is_exhausted
from billing.terms import ONE_DAY, Assignment, BillPart, Terms


class CorrectionRefused(BillingError):
    """A correction that an account does not allow; nothing was changed."""

    code = "correction_refused"


class Crossing(StrEnum):
    """What a change of balance does to alarm and supply."""

    NONE = "none"
    LOW = "low"
    EXHAUSTED = "exhausted"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsFilter:
    """Which assignments a change of terms is about; None is any."""

    category: str | None = None
    tariff_id: str | None = None

    def holds(self, assignment: Assignment) -> bool:
        """Tell whether an assignment is meant."""
        return self.category in (None, assignment.category) and self.tariff_id in (None, assignment.tariff.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsChange:
    """Other terms from a local day on, or up to and including another, wherever an assignment is meant."""

    request: AssignmentRequest
    until_day: date | None = None
    only: TermsFilter = TermsFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDifference:
    """What changes in one bill part: metered and assessed energy, and lines."""

    energy_wh: int
    assessed_wh: int
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """An account's money at one moment: posted state, terms, and the curve from the anchor to the latest reading."""

    checkpoint: Checkpoint
    terms: Terms
    points: tuple[Point, ...]

    def balance_minor(self, calendar: LocalCalendar) -> int:
        """Return the running balance."""
        return running_balance(self.checkpoint, self.terms, self.points, calendar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerated:
    """What a correction does to an account. `found` is what its journals book, `booked` what others have, by part.

    Invariants: `demands_w` is the greatest demand of each part in `found`, where a tariff asks for it.
    """

    state: State
    booked: Mapping[date, PeriodPosted]
    demands_w: Mapping[date, int] | None
    found: tuple[LateUsage, ...]
    differences: dict[date, PartDifference]
    before_minor: int
    after_minor: int


def changed_assignments(terms: Terms, change: TermsChange) -> tuple[Assignment, ...]:
    """Return an account's assignments under a change; the same ones where it changes nothing.

    Assignments inside the span keep what the change does not name; what held before comes back after its last day.
    """
    request, only = change.request, change.only
    first = max(request.from_day, terms.opened_on)
    end = None if change.until_day is None else change.until_day + ONE_DAY
    if end is not None and end <= first:
        return terms.assignments
    known = {assignment.from_day for assignment in terms.assignments}
    cuts = sorted(known | {first} | ({end} if end else set()))
    found: list[Assignment] = []
    for day in cuts:
        held = replace(terms.on(day), from_day=day)
        meant = day >= first and (end is None or day < end) and only.holds(held)
        wanted = _filled(request, held) if meant else held
        # A day that changes nothing would cut the bill part for nothing.
        if day in known or not found or replace(found[-1], from_day=day) != wanted:
            found.append(wanted)
    return tuple(found)


def rerate(
    before: State,
    terms: Terms,
    curve: Sequence[Point],
    posted: Mapping[date, PeriodPosted],
    *,
    since: date,
    calendar: LocalCalendar,
    assessments_wh: Mapping[date, int] | None = None,
    demands_w: Mapping[date, int] | None = None,
    readings_changed: bool = False,
) -> Rerated:
    """Rate an account's bill parts again from the one that begins a month (or the account) at or before a day.

    `curve` has the points around every edge of the new terms from `since` to the latest reading, and that one;
    `posted` is what journals have booked from that month on; `demands_w` the greatest demand of each day, where a
    tariff asks for it.
    Raises: CorrectionRefused.
    """
    start = max(period_of(since), terms.opened_on)
    through_ms = calendar.midnight_ms(before.checkpoint.through)
    _require_rising(curve)
    parts = [terms.part_at(start)]
    while parts[-1].end <= before.checkpoint.through:
        parts.append(terms.next_part(parts[-1]))
    booked = _with_demand(posted, parts, demands_w, before.checkpoint.through)
    _require_ratable(parts, booked, curve, assessments_wh or {}, calendar)
    # Where a meter took over in the open day, the curve goes on from there.
    known_ms = max(through_ms, before.checkpoint.anchor.at_ms)
    anchor = max((point for point in curve if point.at_ms <= known_ms), default=before.checkpoint.anchor)
    known = replace(before.checkpoint, anchor=anchor)
    found, checkpoint = late_usage(booked, known, terms, curve, calendar, assessments_wh)
    if readings_changed:
        found, checkpoint = _closed_again(found, checkpoint, terms, curve, calendar)
    first = terms.part_at(checkpoint.through).first
    if all(usage.period != first for usage in found):
        # A part that nothing is booked for keeps the demand that its journals state.
        checkpoint = replace(checkpoint, demand_w=posted[first].demand_w if first in posted else 0)
    points = (checkpoint.anchor, *(point for point in curve if point.at_ms > checkpoint.anchor.at_ms))
    after = State(checkpoint=checkpoint, terms=terms, points=points)
    differences = _differences(before, after, posted, found, calendar)
    before_minor, after_minor = before.balance_minor(calendar), after.balance_minor(calendar)
    changed_minor = sum(total(each.lines) for each in differences.values())
    if before_minor - after_minor != changed_minor:
        raise CorrectionRefused(
            f"expected journals and checkpoint that agree, got a balance that moves by {after_minor - before_minor}"
            f" and bill parts by {-changed_minor} minor; see the audit"
        )
    return Rerated(
        state=after,
        booked=posted,
        demands_w=None if demands_w is None else {each.period: each.demand_w for each in booked},
        found=tuple(found),
        differences=differences,
        before_minor=before_minor,
        after_minor=after_minor,
    )


def crossing_of(levels: Levels, before_minor: int, after_minor: int) -> Crossing:
    """Return what a change of balance would do to an account's supply, or else to its alarm."""
    was, will_be = is_exhausted(levels, before_minor), is_exhausted(levels, after_minor)
    if was is not will_be:
        return Crossing.EXHAUSTED if will_be else Crossing.RESTORED
    own = () if levels.threshold_minor is None else (levels.threshold_minor,)
    warn_at = (*own, *(each.level_minor for each in levels.thresholds))
    return Crossing.LOW if any(after_minor <= level < before_minor for level in warn_at) else Crossing.NONE


def levy_split(
    usage: LateUsage, booked: Lines, old: Collection[str], new: Collection[str]
) -> list[tuple[LateUsage, frozenset[str]]]:
    """Share a difference out so that each line goes back to the ledger that it was booked on.

    A line that is collected for others under one of two tariffs only is taken back whole under the old one's rule and
    booked whole under the new one's. `old` and `new` are the levies of each.
    """
    moved = {name: booked[name] for name in booked if (name in old) != (name in new) and booked[name]}
    if not moved:
        return [(usage, frozenset({*old, *new}))]
    back = replace(usage, energy_wh=0, assessed_wh=0, lines={name: -amount for name, amount in moved.items()})
    rest = replace(usage, lines=difference(added(usage.lines, moved), {}))
    return [(back, frozenset(old)), (rest, frozenset(new))]


def asks_demand(terms: Terms) -> bool:
    """Tell whether a tariff of the terms charges demand."""
    return any(band.demand_milli_per_kw for each in terms.assignments for band in each.tariff.bands)


def _filled(request: AssignmentRequest, held: Assignment) -> Assignment:
    named = {
        "tariff": request.tariff,
        "category": request.category,
        "load_w": request.load_w,
        "area": request.area,
        "meter_rent": request.meter_rent,
    }
    # The values fit their fields: both classes name them alike.
    return replace(held, **{name: value for name, value in named.items() if value is not None})  # type: ignore[arg-type]


def _require_rising(curve: Sequence[Point]) -> None:
    for earlier, later in pairwise(curve):
        if later.energy_wh < earlier.energy_wh:
            raise CorrectionRefused(
                f"expected energy to date that only rises, got {later.energy_wh} Wh at {later.at_ms} ms"
                f" after {earlier.energy_wh} Wh at {earlier.at_ms} ms"
            )


def _with_demand(
    posted: Mapping[date, PeriodPosted],
    parts: Sequence[BillPart],
    demands_w: Mapping[date, int] | None,
    through: date,
) -> list[PeriodPosted]:
    """Return what is booked, with an entry for each part, its demand by its own closed days where days are known."""
    empty = {part.first: PeriodPosted(period=part.first, energy_wh=0, lines={}) for part in parts}
    booked = {**empty, **posted}
    if demands_w is not None:
        booked = {period: replace(each, demand_w=0) for period, each in booked.items()}
        for part in parts:
            end = min(part.end, through)
            inside = [demand_w for day, demand_w in demands_w.items() if part.first <= day < end]
            booked[part.first] = replace(booked[part.first], demand_w=max(inside, default=0))
    return [booked[period] for period in sorted(booked)]


def _require_ratable(
    parts: Sequence[BillPart],
    booked: Sequence[PeriodPosted],
    curve: Sequence[Point],
    assessments_wh: Mapping[date, int],
    calendar: LocalCalendar,
) -> None:
    """Refuse assessed energy without its bill part or in one that is open, and more taken away than was metered."""
    assessed = {each.period: each.assessed_wh for each in booked if each.assessed_wh}
    homeless = sorted(assessed.keys() - {part.first for part in parts})
    if homeless:
        raise CorrectionRefused(
            f"assessed energy from {homeless[0]}: expected a bill part that begins on that day under the new terms;"
            " reverse that correction first"
        )
    for part in parts:
        assessed_wh = assessed.get(part.first, 0) + assessments_wh.get(part.first, 0)
        if assessed_wh and part is parts[-1]:
            raise CorrectionRefused(f"expected assessed energy in closed bill parts only, got it from {part.first}")
        if assessed_wh < 0:
            start_wh, _ = energy_at(curve, calendar.midnight_ms(part.first))
            end_wh, _ = energy_at(curve, calendar.midnight_ms(part.end))
            if end_wh - start_wh + assessed_wh < 0:
                raise CorrectionRefused(f"from {part.first}: expected no more assessed away than the meter counted")


def _closed_again(
    found: list[LateUsage], checkpoint: Checkpoint, terms: Terms, curve: Sequence[Point], calendar: LocalCalendar
) -> tuple[list[LateUsage], Checkpoint]:
    """Book the open part's closed days as the readings have them now: one that was wrong may have ended them."""
    part, through_ms = terms.part_at(checkpoint.through), calendar.midnight_ms(checkpoint.through)
    if checkpoint.through <= part.first:
        return found, checkpoint
    closed_wh = max(energy_at(curve, through_ms)[0], checkpoint.part_start_wh)
    zones = zones_of(part, curve, through_ms, calendar)
    known = replace(checkpoint, closed_wh=closed_wh, closed_zones=zones)
    lines = charged_lines(known, terms)
    short = difference(lines, charged_lines(checkpoint, terms))
    moved_wh = closed_wh - checkpoint.closed_wh
    if not short and not moved_wh:
        return found, known
    same = next((each for each in found if each.period == part.first), None)
    base = same or LateUsage(period=part.first, energy_wh=0, lines={})
    change = replace(base, energy_wh=base.energy_wh + moved_wh, lines=difference(added(base.lines, short), {}))
    known = replace(known, charged_minor=total(lines), posted_minor=checkpoint.posted_minor - total(short))
    rest = [each for each in found if each is not same]
    return [*rest, change] if change.energy_wh or change.lines or change.assessed_wh else rest, known


def _differences(
    before: State,
    after: State,
    posted: Mapping[date, PeriodPosted],
    found: Sequence[LateUsage],
    calendar: LocalCalendar,
) -> dict[date, PartDifference]:
    """Compare the bills of all parts, closed and open, before and after."""
    old = {period: (each.energy_wh, each.assessed_wh, each.lines) for period, each in posted.items()}
    new = dict(old)
    for each in found:
        energy_wh, assessed_wh, lines = new.get(each.period, (0, 0, {}))
        sums = energy_wh + each.energy_wh, assessed_wh + each.assessed_wh
        new[each.period] = (*sums, added(lines, each.lines))
    for state, bills in ((before, old), (after, new)):
        open_parts = open_bills(state.checkpoint, state.terms, state.points, calendar)
        bills |= {first: (energy_wh, 0, lines) for first, (energy_wh, lines) in open_parts.items()}
    nothing: tuple[int, int, Lines] = (0, 0, {})
    found_differences = {}
    for period in sorted({*old, *new}):
        (old_wh, old_assessed_wh, old_lines), (new_wh, new_assessed_wh, new_lines) = (
            bills.get(period, nothing) for bills in (old, new)
        )
        change = PartDifference(
            energy_wh=new_wh - old_wh,
            assessed_wh=new_assessed_wh - old_assessed_wh,
            lines=difference(new_lines, old_lines),
        )
        if change.energy_wh or change.assessed_wh or change.lines:
            found_differences[period] = change
    return found_differences
