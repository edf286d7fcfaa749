"""What a case asks a correction for: the fault, the span that the rules permit, and the way of assessment.

Stage: between a decided case and `billing.correction`, which rates it. Refuses a way that the rules of the case do not
name for the fault. Never rates anything itself.

Source: requirements R-20 and R-21 (Supply Code 2024 items 20 and 21).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from billing.calendar import days_in
from billing.correction import (
    Assessment,
    Connection,
    DayAverage,
    Fault,
    Overhaul,
    PercentError,
    SameDaysLastYear,
    StatedEnergy,
)
from billing.disputes.case import CaseKind, CaseRefused
from billing.disputes.rules import CaseRules, Way
from billing.terms import ONE_DAY

_FAULTS = {
    CaseKind.INACCURATE: Fault.INACCURATE,
    CaseKind.DEFECTIVE: Fault.DEFECTIVE,
    CaseKind.BURNT: Fault.BURNT,
    CaseKind.STOLEN: Fault.STOLEN,
    CaseKind.NET_METER: Fault.INACCURATE,
}
_CONNECTIONS = {CaseKind.NET_METER: Connection.NET, CaseKind.SEASONAL: Connection.SEASONAL}
_WAYS: dict[type[Assessment], Way] = {
    PercentError: Way.PERCENT_ERROR,
    SameDaysLastYear: Way.SAME_DAYS_LAST_YEAR,
    DayAverage: Way.DAY_AVERAGE,
    StatedEnergy: Way.STATED_ENERGY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an engineer says of an overhaul; what is None follows from the case and the rules.

    Invariants: `fault` is that of a seasonal connection's meter, and of no other case.
    """

    last: date
    first: date | None = None
    began_on: date | None = None
    fault: Fault | None = None
    assessment: Assessment | None = None


def overhaul_of(
    kind: CaseKind, rules: CaseRules, asked: Asked, *, opened_on: date, error_basis_points: int | None
) -> Overhaul:
    """Return the overhaul of a case: over all days that the rules permit, unless it says from when on.

    `error_basis_points` is the error that the latest test has found; an inaccurate meter is assessed by it.
    Raises: CaseRefused.
    """
    fault = asked.fault if kind is CaseKind.SEASONAL else _FAULTS.get(kind)
    if fault is None or (asked.fault is not None and kind is not CaseKind.SEASONAL):
        expected = "the fault of the meter" if kind is CaseKind.SEASONAL else "no fault besides the kind of the case"
        raise CaseRefused(f"overhaul: expected {expected}, got {asked.fault or 'none'}")
    rule = rules.overhauls[fault]
    assessment = asked.assessment
    if fault is Fault.INACCURATE:
        if assessment is not None:
            raise CaseRefused("overhaul: expected the error of the test alone, got another way of assessment")
        if error_basis_points is None:
            raise CaseRefused("overhaul: expected a test with an error, got none")
        assessment = PercentError(basis_points=error_basis_points)
    if assessment is None or _WAYS[type(assessment)] not in rule.ways:
        got = "none" if assessment is None else _WAYS[type(assessment)]
        raise CaseRefused(f"overhaul: expected one of {', '.join(rule.ways)} ({rule.source}), got {got}")
    earliest = max(months_before(asked.last + ONE_DAY, rule.months), opened_on, asked.began_on or date.min)
    first = earliest if asked.first is None else asked.first
    if not earliest <= first <= asked.last:
        raise CaseRefused(
            f"overhaul: expected a first day from {earliest} to {asked.last} ({rule.source}), got {first}"
        )
    return Overhaul(
        fault=fault,
        connection=_CONNECTIONS.get(kind, Connection.ORDINARY),
        first=first,
        last=asked.last,
        began_on=asked.began_on,
        assessment=assessment,
    )


def months_before(day: date, months: int) -> date:
    """Return the same day some months before, or the last of that month where it has no such day."""
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    return date(year, month + 1, min(day.day, days_in(date(year, month + 1, 1))))
