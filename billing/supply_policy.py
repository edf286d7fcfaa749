"""Supply policy: when a scheme permits a cut-off, and the state that supply of an account should have.

Stage: after `billing.supply` has found credit exhausted or not, before an order is written, and again just before it is
sent. Takes how an account stands, its category's scheme (billing.supply_rule_document), an instant and the calendar;
returns a verdict with its reason. Never: a balance, an order, a meter, the day's date.

The policy; the first row that holds decides:

| row | how the account stands                                      | supply              | reason                    |
|-----|-------------------------------------------------------------|---------------------|---------------------------|
| 1   | postpaid                                                    | on                  | postpaid                  |
| 2   | on the exempt list, or its scheme is exempt                 | on                  | exempt_account or _scheme |
| 3   | absent with a deposit (R-23)                                | on                  | absent                    |
| 4   | a manual hold keeps supply on                               | on                  | held                      |
| 5   | credit is not exhausted                                     | on                  | credit                    |
| 6   | off or limited already, credit still exhausted              | as it is            | still_off, still_limited  |
| 7   | emergency days of the scheme are running                    | on, until they end  | emergency_days            |
| 8   | outside the scheme's windows, or on a day it protects       | on, until they open | protected                 |
| 9   | within a window, the scheme limits and the meter is able to | limited             | limited                   |
| 10  | within a window                                             | off                 | cut                       |

A window that closes restores nothing (row 6): protection is from being cut, not from having been cut. An account that
is limited under a scheme that no longer limits is decided as one that is on.

Source: PSERC Supply Code 2024 items 17 and 23 (R-17iii, R-23); the schemes name their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache

from billing.calendar import LocalCalendar, from_ms, to_ms

# How far ahead a cut-off is looked for. A document whose scheme has no day to cut for so long is refused.
HORIZON_DAYS = 60
MINUTE_MS = 60_000
DAY_MINUTES = 1_440
_ONE_DAY = timedelta(days=1)
_MILLISECOND = timedelta(milliseconds=1)
_DAYS_A_WEEK = 7
_SATURDAY = 5

# Minutes of a local day, the second not included: 10:00 to 13:00 is (600, 780).
Window = tuple[int, int]
# UTC milliseconds, the second not included.
_Span = tuple[int, int]

ANY_TIME: tuple[tuple[Window, ...], ...] = (((0, DAY_MINUTES),),) * _DAYS_A_WEEK


class Mode(StrEnum):
    """How an account pays; postpaid is an approved exception."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"


class Supply(StrEnum):
    """The state of supply, as wanted or as reported; limited is on up to a small load."""

    ON = "on"
    LIMITED = "limited"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """When supply of one kind of consumer may be cut for lack of credit.

    Units: windows in minutes of a local day, from Monday; W; whole local days; Saturdays of a month from 1.
    Invariants: windows of a weekday rise and do not overlap; holidays are empty where the scheme cuts on them; unless
    exempt, there is a day to cut in any HORIZON_DAYS from the first day of its document on. `limit_w` None cuts.
    """

    name: str
    title: str
    source: str
    exempt: bool = False
    windows: tuple[tuple[Window, ...], ...] = ANY_TIME
    holidays: frozenset[date] = frozenset()
    # Month and day.
    yearly_holidays: frozenset[tuple[int, int]] = frozenset()
    not_on_saturdays: tuple[int, ...] = ()
    emergency_days: int = 0
    limit_w: int | None = None

    def windows_on(self, day: date) -> tuple[Window, ...]:
        """Return the windows of a local day; none on a day that is protected as a whole."""
        if self.exempt or day in self.holidays or (day.month, day.day) in self.yearly_holidays:
            return ()
        weekday = day.weekday()
        if weekday == _SATURDAY and (day.day - 1) // _DAYS_A_WEEK + 1 in self.not_on_saturdays:
            return ()
        return self.windows[weekday]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holiday:
    """A day of the calendar: one date, or the same month and day each year."""

    name: str
    day: date | None
    month_day: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyRules:
    """A utility's schemes and which category has which, from one local midnight on."""

    id: str
    title: str
    source: str
    effective_from: date
    default: Scheme
    schemes: tuple[Scheme, ...]
    categories: Mapping[str, Scheme]
    holidays: tuple[Holiday, ...]

    def of(self, category: str) -> Scheme:
        """Return the scheme of a category; the default for one the document does not name."""
        return self.categories.get(category, self.default)

    @property
    def last_holiday(self) -> date | None:
        """The last dated holiday: after it, only those of each year protect."""
        return max((holiday.day for holiday in self.holidays if holiday.day is not None), default=None)


class Reason(StrEnum):
    """Why supply should be as it should be; each has a sentence for the operator and one for the family."""

    POSTPAID = "postpaid"
    EXEMPT_ACCOUNT = "exempt_account"
    EXEMPT_SCHEME = "exempt_scheme"
    ABSENT = "absent"
    HELD = "held"
    CREDIT = "credit"
    STILL_OFF = "still_off"
    STILL_LIMITED = "still_limited"
    EMERGENCY_DAYS = "emergency_days"
    PROTECTED = "protected"
    LIMITED = "limited"
    CUT = "cut"

    @property
    def for_operator(self) -> str:
        """The reason as the utility's staff read it."""
        return _SENTENCES[self][0]

    @property
    def for_family(self) -> str:
        """The reason as the people at the meter read it."""
        return _SENTENCES[self][1]


_SENTENCES = {
    Reason.POSTPAID: (
        "The account is postpaid: supply does not depend on credit.",
        "You pay after use, so supply is not cut for lack of credit.",
    ),
    Reason.EXEMPT_ACCOUNT: (
        "The account is on the exempt list: it is not cut for lack of credit.",
        "Your connection is exempt: supply is not cut for lack of credit. What you use is charged as before.",
    ),
    Reason.EXEMPT_SCHEME: (
        "The scheme of the account's category is exempt: it is not cut for lack of credit.",
        "Connections of your kind are not cut for lack of credit. What you use is charged as before.",
    ),
    Reason.ABSENT: (
        "The consumer is absent with a deposit (R-23): supply is not cut until the absence ends.",
        "Your fixed charges are deposited while you are away: supply is not cut until your absence ends.",
    ),
    Reason.HELD: (
        "A manual hold, approved by a second person, keeps supply on.",
        "The supply office keeps your supply on for the time being.",
    ),
    Reason.CREDIT: (
        "There is credit.",
        "You have credit.",
    ),
    Reason.STILL_OFF: (
        "Credit is still exhausted: supply stays off until a recharge lifts the balance above exhaustion.",
        "Your credit is used up: supply is off. It comes back by itself, without a fee, when you recharge enough.",
    ),
    Reason.STILL_LIMITED: (
        "Credit is still exhausted: supply stays limited until a recharge lifts the balance above exhaustion.",
        "Your credit is used up and supply is limited to a small load until you recharge enough.",
    ),
    Reason.EMERGENCY_DAYS: (
        "Credit is exhausted, and the emergency days of the scheme are running.",
        "Your credit is used up. Supply stays on for the emergency days: please recharge before they end.",
    ),
    Reason.PROTECTED: (
        "Credit is exhausted, and the scheme permits no cut-off at this hour or on this day.",
        "Your credit is used up. Supply is not cut at this hour or on this day: please recharge before that ends.",
    ),
    Reason.LIMITED: (
        "Credit is exhausted and the scheme permits a cut-off now: the meter limits the load instead.",
        "Your credit is used up. Supply is limited to a small load until you recharge enough.",
    ),
    Reason.CUT: (
        "Credit is exhausted and the scheme permits a cut-off now.",
        "Your credit is used up: supply is cut off. It comes back by itself, without a fee, when you recharge enough.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an account stands, as far as supply depends on it.

    Invariants: `exhausted_at_ms` is when credit ran out, None for not known: then emergency days count from the instant
    of the question. `hold` is one that is approved, not released and not past its end. `now` is the supply desired so
    far, not the one reported.
    """

    mode: Mode
    exhausted: bool
    exhausted_at_ms: int | None
    absent: bool
    hold: bool
    exempt: bool
    can_limit: bool
    now: Supply


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The state supply should have, and why.

    Invariants: with the same standing the verdict is the same at every instant before `until_ms`; None means that time
    alone does not change it.
    """

    supply: Supply
    reason: Reason
    until_ms: int | None = None


def may_cut(scheme: Scheme, at_ms: int, calendar: LocalCalendar) -> bool:
    """Tell whether a scheme permits a cut-off at an instant: what the local clock shows then decides.

    Emergency days are those of an account: `desired_supply` knows them.
    """
    return any(from_at <= at_ms < to_at for from_at, to_at in _spans(scheme, calendar.day_of(at_ms), calendar))


def next_cut_ms(scheme: Scheme, at_ms: int, calendar: LocalCalendar) -> int | None:
    """Return the first instant, `at_ms` or later, at which a cut-off is permitted.

    None for an exempt scheme, and for one that has none in HORIZON_DAYS, which no document can contain.
    """
    if scheme.exempt:
        return None
    day = calendar.day_of(at_ms)
    for _ in range(HORIZON_DAYS + 1):
        for from_at, to_at in _spans(scheme, day, calendar):
            if at_ms < to_at:
                return max(at_ms, from_at)
        day += _ONE_DAY
    return None


def window_closes_ms(scheme: Scheme, at_ms: int, calendar: LocalCalendar) -> int | None:
    """Return the first instant, `at_ms` or later, at which a cut-off is not permitted: `at_ms` itself outside windows.

    None when the window stays open for HORIZON_DAYS.
    """
    closes_ms, day = at_ms, calendar.day_of(at_ms)
    for _ in range(HORIZON_DAYS + 1):
        for from_at, to_at in _spans(scheme, day, calendar):
            if from_at <= closes_ms < to_at:
                closes_ms = to_at
        day += _ONE_DAY
        if closes_ms < calendar.midnight_ms(day):
            return closes_ms
    return None


def emergency_ends_ms(scheme: Scheme, exhausted_at_ms: int, calendar: LocalCalendar) -> int:
    """Return the local midnight that ends the scheme's whole emergency days after exhaustion.

    The rest of the day on which credit ran out comes on top; without emergency days, the instant itself.
    """
    if not scheme.emergency_days:
        return exhausted_at_ms
    first_day = calendar.day_of(exhausted_at_ms - 1) + _ONE_DAY
    return calendar.midnight_ms(first_day + timedelta(days=scheme.emergency_days))


def earliest_cut_ms(scheme: Scheme, exhausted_at_ms: int, at_ms: int, calendar: LocalCalendar) -> int | None:
    """Return the first instant, `at_ms` or later, at which an exhausted account may be cut: after its emergency days
    and within a window. None as for `next_cut_ms`.
    """
    return next_cut_ms(scheme, max(at_ms, emergency_ends_ms(scheme, exhausted_at_ms, calendar)), calendar)


def desired_supply(standing: Standing, *, scheme: Scheme, at_ms: int, calendar: LocalCalendar) -> Verdict:
    """Return the state supply should have, by the table at the head of this module."""
    kept = _kept_on(standing, scheme)
    if kept is not None:
        return Verdict(supply=Supply.ON, reason=kept)
    limits = scheme.limit_w is not None and standing.can_limit
    if standing.now is Supply.OFF:
        return Verdict(supply=Supply.OFF, reason=Reason.STILL_OFF)
    if standing.now is Supply.LIMITED and limits:
        return Verdict(supply=Supply.LIMITED, reason=Reason.STILL_LIMITED)
    exhausted_at_ms = at_ms if standing.exhausted_at_ms is None else standing.exhausted_at_ms
    emergency_ms = emergency_ends_ms(scheme, exhausted_at_ms, calendar)
    if at_ms < emergency_ms:
        return Verdict(supply=Supply.ON, reason=Reason.EMERGENCY_DAYS, until_ms=emergency_ms)
    opens_ms = next_cut_ms(scheme, at_ms, calendar)
    if opens_ms != at_ms:
        return Verdict(supply=Supply.ON, reason=Reason.PROTECTED, until_ms=opens_ms)
    if limits:
        return Verdict(supply=Supply.LIMITED, reason=Reason.LIMITED)
    return Verdict(supply=Supply.OFF, reason=Reason.CUT)


def _kept_on(standing: Standing, scheme: Scheme) -> Reason | None:
    """Return why supply is on whatever the hour, rows 1 to 5; None for an account to cut."""
    rows = (
        (standing.mode is Mode.POSTPAID, Reason.POSTPAID),
        (standing.exempt, Reason.EXEMPT_ACCOUNT),
        (scheme.exempt, Reason.EXEMPT_SCHEME),
        (standing.absent, Reason.ABSENT),
        (standing.hold, Reason.HELD),
        (not standing.exhausted, Reason.CREDIT),
    )
    return next((reason for holds, reason in rows if holds), None)


# A city has a handful of schemes, each asked about the coming days.
@lru_cache(maxsize=8192)
def _spans(scheme: Scheme, day: date, calendar: LocalCalendar) -> tuple[_Span, ...]:
    """Return when a scheme permits cut-offs within a local day, rising; neighbours may touch."""
    spans = [
        (max(from_at, zero_ms + first * MINUTE_MS), min(to_at, zero_ms + last * MINUTE_MS))
        for from_at, to_at, zero_ms in _stretches(day, calendar)
        for first, last in scheme.windows_on(day)
    ]
    return tuple(span for span in spans if span[0] < span[1])


@lru_cache(maxsize=4096)
def _stretches(day: date, calendar: LocalCalendar) -> tuple[tuple[int, int, int], ...]:
    """Return the stretches of a local day between which its clock is changed: from, to, and where it would show 00:00.

    One for most days, two for one on which the clock changes; no zone changes it twice a day.
    """
    begins_ms, ends_ms = calendar.midnight_ms(day), calendar.midnight_ms(day + _ONE_DAY)
    shown_ms = to_ms(datetime.combine(day, time(), tzinfo=UTC))
    before_ms, after_ms = _offset_ms(begins_ms, calendar), _offset_ms(ends_ms - 1, calendar)
    if before_ms == after_ms:
        return ((begins_ms, ends_ms, shown_ms - before_ms),)
    unchanged_ms, changed_ms = begins_ms, ends_ms - 1
    while changed_ms - unchanged_ms > 1:
        middle_ms = (unchanged_ms + changed_ms) // 2
        if _offset_ms(middle_ms, calendar) == before_ms:
            unchanged_ms = middle_ms
        else:
            changed_ms = middle_ms
    return ((begins_ms, changed_ms, shown_ms - before_ms), (changed_ms, ends_ms, shown_ms - after_ms))


def _offset_ms(at_ms: int, calendar: LocalCalendar) -> int:
    """Return by how much the local clock is ahead of UTC."""
    offset = from_ms(at_ms).astimezone(calendar.zone).utcoffset()
    assert offset is not None, "a zone has an offset"
    return offset // _MILLISECOND
