"""Dated changes of what an account is charged by: whether one may stand, and what it does to the posted state.

Stage: before an assignment is written. Takes what is asked, the account's assignments and its checkpoint; returns the
assignment to add, the checkpoint of the bill part that it opens, and from when closed days are to be looked at again.
Only days that are not closed can be given other terms; what was closed is put right by a correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from billing.money import BillingError
from billing.running import Checkpoint
from billing.tariff import Tariff
from billing.terms import ONE_DAY, Assignment, Terms


class AssignmentRefused(BillingError):
    """A change of terms that cannot stand; `column` is the field of the request that does not fit."""

    code = "assignment_refused"

    def __init__(self, column: str, expected: str, got: str) -> None:
        super().__init__(f"{column}: expected {expected}, got {got}")
        self.column = column
        self.expected = expected
        self.got = got


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRequest:
    """What is to hold for an account from a local day on; None is as before."""

    from_day: date
    tariff: Tariff | None = None
    category: str | None = None
    load_w: int | None = None
    area: str | None = None
    meter_rent: bool | None = None


def assignment_of(
    request: AssignmentRequest, assignments: Sequence[Assignment], *, first_open_day: date
) -> Assignment | None:
    """Return the assignment to add to an account's; None when it is charged so already.

    Raises: AssignmentRefused.
    """
    day, last = request.from_day, assignments[-1]
    before = [each for each in assignments if each.from_day < day]
    if not before:
        raise AssignmentRefused("from_day", f"a day after the opening on {assignments[0].from_day}", str(day))
    wanted = _filled(request, before[-1])
    holds = next((each for each in assignments if each.from_day == day), replace(before[-1], from_day=day))
    if wanted == holds:
        return None
    if day < first_open_day:
        expected = f"{first_open_day}, the first day that is not closed, or later; earlier days take a correction"
        raise AssignmentRefused("from_day", expected, str(day))
    if day <= last.from_day:
        expected = f"a day after the last assignment of {last.from_day}; to change that one takes a correction"
        raise AssignmentRefused("from_day", expected, str(day))
    _require_fit(wanted, before[-1])
    return wanted


def require_area(tariff: Tariff, area: str) -> None:
    """Refuse a type of area that a tariff with levies by area does not name: no levy would be taken there.

    Raises: AssignmentRefused.
    """
    areas = {area for share in tariff.shares for area in share.areas}
    if areas and area not in areas:
        raise AssignmentRefused("area_type", f"one of {', '.join(sorted(areas))} as in {tariff.id}", repr(area))


def entered(checkpoint: Checkpoint, terms: Terms) -> Checkpoint:
    """Return a checkpoint whose first open day begins a bill part under new terms.

    What was charged before belongs to the part that ends there.
    """
    part = terms.part_at(checkpoint.through)
    assert part.first == checkpoint.through, f"a part that begins on {checkpoint.through}, got {part.first}"
    zones = (0,) * part.zone_count
    taken_wh = checkpoint.before_wh + checkpoint.closed_wh - checkpoint.part_start_wh
    return replace(
        checkpoint,
        charged_minor=0,
        before_wh=0 if part.fresh else taken_wh,
        part_start_wh=checkpoint.closed_wh,
        closed_zones=zones,
        demand_w=0,
        anchor_zones=zones,
    )


def reopened_from(before: Terms, after: Terms, *, first_open_day: date) -> date | None:
    """Return the day from which closed days are charged otherwise under new terms of later days; None if none are.

    A bill part that now ends with the last closed day has its end where readings say; a part that shares its month's
    slab limits by days has less of them when it is cut short.
    """
    if first_open_day <= before.opened_on:
        return None
    last_closed = first_open_day - ONE_DAY
    old, new = before.part_at(last_closed), after.part_at(last_closed)
    new_edge = new.end == first_open_day != old.end
    if not new_edge and new.slab_days == old.slab_days:
        return None
    return before.fresh_part_at(last_closed).first


def _filled(request: AssignmentRequest, before: Assignment) -> Assignment:
    return Assignment(
        from_day=request.from_day,
        tariff=before.tariff if request.tariff is None else request.tariff,
        category=before.category if request.category is None else request.category,
        load_w=before.load_w if request.load_w is None else request.load_w,
        area=before.area if request.area is None else request.area,
        meter_rent=before.meter_rent if request.meter_rent is None else request.meter_rent,
    )


def _require_fit(wanted: Assignment, before: Assignment) -> None:
    tariff = wanted.tariff
    if tariff is not before.tariff:
        if tariff.currency != before.tariff.currency:
            got = f"{tariff.id} in {tariff.currency}"
            raise AssignmentRefused("tariff_id", f"a tariff in {before.tariff.currency}, as the account's money", got)
        if wanted.from_day < tariff.effective_from:
            got = f"{tariff.id}, which begins on {tariff.effective_from}"
            raise AssignmentRefused("tariff_id", f"one in force on {wanted.from_day}", got)
    require_area(tariff, wanted.area)
