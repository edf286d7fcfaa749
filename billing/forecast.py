"""What an account's use says of the days to come: present daily use, the day credit ends, the balance to warn at.

Stage: after balances, for what a consumer is told. Takes closed days, a balance and its instant; returns figures. Never
a clock, and never a debit: a forecast books nothing.

The rule. A complete day is a closed local day after whose end the meter was heard. Present use is the mean of the last
7 complete days, so that each weekday counts once, or of the last 3 to 6 while there are no more; of fewer, nothing is
known. Each coming day costs that mean. Of today the fixed charge is in the balance already, so what is left of today
costs the rest of the mean in proportion to time. Steps of the tariff, seasons and days without supply are not foreseen.
Every rounding makes the credit end earlier, never later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import assert_never

from billing.calendar import LocalCalendar
from billing.money import MINOR_PER_MAJOR, BillingError
from billing.rating import total
from billing.running import Walk
from billing.terms import ONE_DAY, part_lines

# A week, so that every kind of day counts once.
USE_DAYS = 7
# Two days are no habit: a feast and the day after it would say that credit ends this week.
USE_DAYS_MIN = 3
# Days among which the latest complete ones are looked for: older ones are of another season.
RECENT_DAYS = 30
# A year ahead, tariff and season are others: no day is named.
AHEAD_DAYS_MAX = 366
PERCENT_MAX = 100
# A warning a quarter ahead is the longest that anybody recharges for.
WARN_DAYS_MAX = 90
# Who is warned five times on the way down has been warned.
THRESHOLDS_MAX = 5


class BadThreshold(BillingError):
    """No balance, days or percentage to be warned at, or no list of such."""

    code = "bad_threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedDay:
    """One complete day: what it used and what it was charged."""

    day: date
    energy_wh: int
    charge_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentUse:
    """The sums of the days that present use is the mean of.

    Invariants: `days` is at least 1.
    """

    days: int
    energy_wh: int
    charge_minor: int

    @property
    def day_energy_wh(self) -> int:
        """Mean energy of a day. Rounds: down."""
        return self.energy_wh // self.days

    @property
    def day_charge_minor(self) -> int:
        """Mean charge of a day. Rounds: up, so that a number of days is never promised more than its credit."""
        return -(-self.charge_minor // self.days)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How long credit lasts at present use.

    Invariants: `days_left` whole days from the balance's instant on; `ends_on` is the local day on which the balance
    comes down to the cut-off level, None where that is more than `AHEAD_DAYS_MAX` days ahead.
    """

    days_left: int
    ends_on: date | None


class ThresholdKind(StrEnum):
    """What a consumer may name to be warned by."""

    AMOUNT = "amount"
    DAYS = "days"
    PERCENT = "percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """When a consumer wants to be warned.

    Units: `value` is minor units of balance, days left at present use, or percent of the last recharge.
    """

    kind: ThresholdKind
    value: int


def make_threshold(kind: ThresholdKind, value: int) -> Threshold:
    """Check a threshold that somebody asks for.

    Raises: BadThreshold below 0 minor units, outside 1 to 90 days, outside 1 to 100 percent.
    """
    match kind:
        case ThresholdKind.AMOUNT:
            good, expected = value >= 0, "0 or more"
        case ThresholdKind.DAYS:
            good, expected = 1 <= value <= WARN_DAYS_MAX, f"1 to {WARN_DAYS_MAX} days"
        case ThresholdKind.PERCENT:
            good, expected = 1 <= value <= PERCENT_MAX, f"1 to {PERCENT_MAX} percent"
        case _:
            assert_never(kind)
    if not good:
        raise BadThreshold(f"threshold by {kind.value}: expected {expected}, got {value}")
    return Threshold(kind=kind, value=value)


def make_thresholds(wanted: Sequence[Threshold]) -> tuple[Threshold, ...]:
    """Check all thresholds that somebody asks for together.

    Raises: BadThreshold for more than THRESHOLDS_MAX, or two that are equal.
    """
    if len(wanted) > THRESHOLDS_MAX:
        raise BadThreshold(f"thresholds: expected at most {THRESHOLDS_MAX}, got {len(wanted)}")
    for place, each in enumerate(wanted):
        if each in wanted[:place]:
            raise BadThreshold(f"thresholds: expected no two equal, got {each.value} by {each.kind.value} twice")
    return tuple(wanted)


def present_use(days: Iterable[UsedDay], *, most: int = USE_DAYS) -> PresentUse | None:
    """Sum up the latest complete days, at most so many; None while there are fewer than three."""
    latest = sorted(days, key=lambda used: used.day)[-most:]
    if len(latest) < USE_DAYS_MIN:
        return None
    return PresentUse(
        days=len(latest),
        energy_wh=sum(used.energy_wh for used in latest),
        charge_minor=sum(used.charge_minor for used in latest),
    )


def idle_day_minor(walk: Walk) -> int:
    """Return what a day without any energy costs in the bill part of a walk: the daily fixed charge with its levies.

    Rounds: down.
    """
    part = walk.part
    idle = part_lines(
        part,
        before_wh=walk.before_wh,
        energy_wh=0,
        zone_wh=(0,) * part.zone_count,
        through_day=part.last,
        demand_w=walk.demand_w,
    )
    return max(0, total(idle)) // (part.end - part.first).days


def forecast(
    use: PresentUse | None,
    *,
    balance_minor: int,
    cut_at_minor: int,
    fixed_minor: int,
    at_ms: int,
    calendar: LocalCalendar,
) -> Forecast | None:
    """Tell how long the balance of an instant lasts; None where that is not knowable.

    Not knowable: fewer than three complete days, or use that costs nothing. `fixed_minor` is the part of a day's charge
    that accrues whole at its midnight.
    Rounds: days down, the day credit ends to the earlier one.
    """
    if use is None or use.charge_minor <= 0:
        return None
    today = calendar.day_of(at_ms)
    # Everything times `use.days`, so that the mean needs no rounding.
    credit, a_day = max(0, balance_minor - cut_at_minor) * use.days, use.charge_minor
    after_today = credit - _rest_of_today(use, fixed_minor, at_ms, today, calendar)
    ahead = 0 if after_today <= 0 else 1 + (after_today - 1) // a_day
    ends_on = today + timedelta(days=ahead) if ahead <= AHEAD_DAYS_MAX else None
    return Forecast(days_left=credit // a_day, ends_on=ends_on)


def level_minor(threshold: Threshold, *, use: PresentUse | None, last_recharge_minor: int | None) -> int | None:
    """Return the balance, in minor units, at which a threshold warns; None where it does not apply (yet).

    Days are counted down to a balance of zero, whatever emergency credit there is: nobody is warned later because they
    may owe.
    Rounds: days of present charge up to a whole unit of currency, percent of the last recharge down.
    """
    match threshold.kind:
        case ThresholdKind.AMOUNT:
            return threshold.value
        case ThresholdKind.DAYS:
            if use is None or use.charge_minor <= 0:
                return None
            return -(-threshold.value * use.charge_minor // (use.days * MINOR_PER_MAJOR)) * MINOR_PER_MAJOR
        case ThresholdKind.PERCENT:
            return None if last_recharge_minor is None else last_recharge_minor * threshold.value // PERCENT_MAX
        case _:
            assert_never(threshold.kind)


def _rest_of_today(use: PresentUse, fixed_minor: int, at_ms: int, today: date, calendar: LocalCalendar) -> int:
    """Return what the rest of today still costs, times `use.days`. Rounds: up."""
    begin_ms, end_ms = calendar.midnight_ms(today), calendar.midnight_ms(today + ONE_DAY)
    by_energy = max(0, use.charge_minor - max(0, fixed_minor) * use.days)
    return -(-by_energy * (end_ms - at_ms) // (end_ms - begin_ms))
