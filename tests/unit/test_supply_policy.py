"""Supply policy: when a scheme permits a cut-off, and every row of the table with its sentence."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, to_ms
from billing.supply import Mode, Supply
from billing.supply_policy import (
    ANY_TIME,
    HORIZON_DAYS,
    Reason,
    Scheme,
    Standing,
    Verdict,
    desired_supply,
    earliest_cut_ms,
    emergency_ends_ms,
    may_cut,
    next_cut_ms,
    window_closes_ms,
)
from billing.supply_rule_document import builtin_supply_documents, parse_supply_rules

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
BERLIN = LocalCalendar(ZoneInfo("Europe/Berlin"))
PUNJAB = parse_supply_rules(builtin_supply_documents()["punjab"])
ANY = PUNJAB.of("DS")
OFFICE_HOURS = PUNJAB.of("GOVT")
ESSENTIAL = PUNJAB.of("HOSPITAL")
HAPPY_HOURS = parse_supply_rules(builtin_supply_documents()["bihar"]).default
EMERGENCY = parse_supply_rules(builtin_supply_documents()["uttar-pradesh"]).default
LIMITING = replace(ANY, limit_w=500)

# A Wednesday, a Saturday that is the month's second, and the Sunday after it.
WEDNESDAY, SECOND_SATURDAY, SUNDAY = date(2026, 11, 11), date(2026, 11, 14), date(2026, 11, 15)

EXHAUSTED = Standing(
    mode=Mode.PREPAID,
    exhausted=True,
    exhausted_at_ms=None,
    absent=False,
    hold=False,
    exempt=False,
    can_limit=False,
    now=Supply.ON,
)


def local(day: date, clock: str, calendar: LocalCalendar = KOLKATA, *, fold: int = 0) -> int:
    """Return the instant at which a local clock shows a time; with fold 1 its second showing."""
    shown = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=calendar.zone, fold=fold)
    return to_ms(shown)


def verdict(standing: Standing, scheme: Scheme, at_ms: int) -> Verdict:
    """Decide in Asia/Kolkata."""
    return desired_supply(standing, scheme=scheme, at_ms=at_ms, calendar=KOLKATA)


def weekly(**windows: tuple[int, int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return windows by weekday, those not named closed."""
    names = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    return tuple((windows[name],) if name in windows else () for name in names)


# Windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "allowed"),
    [("09:59:59.999", False), ("10:00", True), ("12:59:59.999", True), ("13:00", False), ("00:00", False)],
)
def test_window_holds_its_first_instant_and_not_its_last(clock: str, allowed: bool) -> None:
    """10:00 to 13:00 begins at 10:00 sharp and is over at 13:00 sharp."""
    assert may_cut(OFFICE_HOURS, local(WEDNESDAY, clock), KOLKATA) is allowed


def test_scheme_without_windows_permits_a_cut_at_any_time() -> None:
    """The Supply Code knows no protected hours: it opens now and never closes."""
    at_ms = local(SUNDAY, "03:00")
    assert may_cut(ANY, at_ms, KOLKATA)
    assert next_cut_ms(ANY, at_ms, KOLKATA) == at_ms
    assert window_closes_ms(ANY, at_ms, KOLKATA) is None


def test_exempt_scheme_never_permits_a_cut() -> None:
    """Hospitals, water works, street lights, jails and police: no window, none to come, closed now."""
    at_ms = local(WEDNESDAY, "11:00")
    assert not may_cut(ESSENTIAL, at_ms, KOLKATA)
    assert next_cut_ms(ESSENTIAL, at_ms, KOLKATA) is None
    assert window_closes_ms(ESSENTIAL, at_ms, KOLKATA) == at_ms


@pytest.mark.parametrize(
    ("scheme", "day", "clock", "opens", "opens_at"),
    [
        (OFFICE_HOURS, WEDNESDAY, "08:00", WEDNESDAY, "10:00"),
        (OFFICE_HOURS, WEDNESDAY, "11:11", WEDNESDAY, "11:11"),
        (OFFICE_HOURS, WEDNESDAY, "13:00", date(2026, 11, 12), "10:00"),
        # Friday after hours waits for Monday; Republic Day, a Monday in 2026, for Tuesday.
        (OFFICE_HOURS, date(2026, 11, 13), "13:00", date(2026, 11, 16), "10:00"),
        (OFFICE_HOURS, date(2026, 1, 23), "18:00", date(2026, 1, 27), "10:00"),
        (HAPPY_HOURS, WEDNESDAY, "17:30", date(2026, 11, 12), "11:00"),
        (HAPPY_HOURS, SECOND_SATURDAY, "10:00", SECOND_SATURDAY, "11:00"),
        (HAPPY_HOURS, SUNDAY, "12:00", date(2026, 11, 16), "11:00"),
        (EMERGENCY, date(2026, 11, 13), "20:00", date(2026, 11, 16), "08:00"),
        (EMERGENCY, date(2026, 11, 7), "09:00", date(2026, 11, 7), "09:00"),
        (EMERGENCY, date(2026, 11, 21), "07:00", date(2026, 11, 21), "08:00"),
    ],
)
def test_next_cut_is_the_coming_opening(scheme: Scheme, day: date, clock: str, opens: date, opens_at: str) -> None:
    """Nights, Sundays, holidays and second Saturdays are passed over; other Saturdays are not."""
    assert next_cut_ms(scheme, local(day, clock), KOLKATA) == local(opens, opens_at)


@pytest.mark.parametrize(
    ("saturday", "ordinal"),
    [
        (date(2026, 8, 1), 1),
        (date(2026, 11, 7), 1),
        (date(2026, 8, 8), 2),
        (date(2026, 11, 14), 2),
        (date(2026, 8, 15), 3),
        (date(2026, 8, 22), 4),
        (date(2026, 11, 28), 4),
        (date(2026, 8, 29), 5),
    ],
)
def test_saturday_of_a_month_is_counted_from_its_first(saturday: date, ordinal: int) -> None:
    """The second Saturday lies from the 8th to the 14th, whatever weekday the month begins on."""
    for each in range(1, 6):
        assert (replace(ANY, not_on_saturdays=(each,)).windows_on(saturday) == ()) is (each == ordinal)


def test_second_and_fourth_saturdays_may_both_be_protected() -> None:
    """As banks close; first, third and fifth Saturdays and every other weekday stay open."""
    scheme = replace(ANY, not_on_saturdays=(2, 4))
    closed = [n for n in range(1, 32) if not scheme.windows_on(date(2026, 8, n))]
    assert closed == [8, 22]


@pytest.mark.parametrize(
    ("scheme", "clock", "closes"),
    [(OFFICE_HOURS, "10:00", "13:00"), (HAPPY_HOURS, "12:34", "17:30"), (EMERGENCY, "17:59:59.999", "18:00")],
)
def test_window_closes_at_its_end(scheme: Scheme, clock: str, closes: str) -> None:
    """A command sent within a window expires with it."""
    assert window_closes_ms(scheme, local(WEDNESDAY, clock), KOLKATA) == local(WEDNESDAY, closes)


def test_window_that_meets_the_next_closes_with_that() -> None:
    """Midnight between two open days, and a shared edge of two windows, close nothing."""
    scheme = replace(ANY, windows=weekly(wednesday=(600, 1440), thursday=(0, 60)))
    scheme = replace(scheme, windows=(*scheme.windows[:4], ((60, 90),), *scheme.windows[5:]))
    assert window_closes_ms(scheme, local(WEDNESDAY, "23:00"), KOLKATA) == local(date(2026, 11, 12), "01:00")
    thursday = replace(ANY, windows=(*weekly()[:3], ((0, 60), (60, 90)), *weekly()[4:]))
    assert window_closes_ms(thursday, local(date(2026, 11, 12), "00:30"), KOLKATA) == local(date(2026, 11, 12), "01:30")


def test_window_of_any_time_closes_with_the_eve_of_a_holiday() -> None:
    """An open-ended window is bounded by the next protected day, and unbounded without one in sight."""
    scheme = replace(ANY, yearly_holidays=frozenset({(1, 26)}))
    assert window_closes_ms(scheme, local(date(2026, 1, 20), "12:00"), KOLKATA) == local(date(2026, 1, 26), "00:00")
    assert window_closes_ms(scheme, local(date(2026, 2, 1), "12:00"), KOLKATA) is None


def test_closed_scheme_closes_at_once() -> None:
    """Outside its windows a command would expire before it is sent."""
    at_ms = local(WEDNESDAY, "20:00")
    assert window_closes_ms(OFFICE_HOURS, at_ms, KOLKATA) == at_ms


def test_next_cut_looks_sixty_days_ahead_and_no_farther() -> None:
    """The horizon is a bound of the search; documents keep every scheme within it."""
    dark = [WEDNESDAY + timedelta(days=number) for number in range(HORIZON_DAYS + 1)]
    at_ms = local(WEDNESDAY, "12:00")
    just_in = replace(ANY, holidays=frozenset(dark[:-1]))
    assert next_cut_ms(just_in, at_ms, KOLKATA) == KOLKATA.midnight_ms(dark[-1])
    assert next_cut_ms(replace(ANY, holidays=frozenset(dark)), at_ms, KOLKATA) is None


def test_window_over_the_hour_that_a_clock_change_skips_opens_after_it() -> None:
    """In Berlin 02:30 to 03:30 of the short Sunday is only its second half: the clock goes from 02:00 to 03:00."""
    scheme = replace(ANY, windows=weekly(sunday=(150, 210)))
    short = date(2026, 3, 29)
    assert next_cut_ms(scheme, BERLIN.midnight_ms(short), BERLIN) == local(short, "03:00", BERLIN)
    assert window_closes_ms(scheme, local(short, "03:00", BERLIN), BERLIN) == local(short, "03:30", BERLIN)
    gone = replace(ANY, windows=weekly(sunday=(125, 175)))
    following = BERLIN.midnight_ms(date(2026, 4, 5))
    assert next_cut_ms(gone, BERLIN.midnight_ms(short), BERLIN) == following + 125 * 60_000


def test_window_into_the_hour_that_a_clock_change_repeats_opens_twice() -> None:
    """In Berlin 01:30 to 02:30 of the long Sunday closes at 02:30, and opens again when the clock is back at 02:00."""
    scheme = replace(ANY, windows=weekly(sunday=(90, 150)))
    long = date(2026, 10, 25)
    first_close, second_open = local(long, "02:30", BERLIN), local(long, "02:00", BERLIN, fold=1)
    assert window_closes_ms(scheme, local(long, "01:30", BERLIN), BERLIN) == first_close
    assert next_cut_ms(scheme, first_close, BERLIN) == second_open == first_close + 30 * 60_000
    assert window_closes_ms(scheme, second_open, BERLIN) == local(long, "02:30", BERLIN, fold=1)


# The table ---------------------------------------------------------------------------------------------------------


def test_row_1_postpaid_account_is_on() -> None:
    """One who pays later is not cut, even with a balance that would exhaust."""
    at_ms = local(WEDNESDAY, "11:00")
    decided = verdict(replace(EXHAUSTED, mode=Mode.POSTPAID, now=Supply.OFF), ANY, at_ms)
    assert decided == Verdict(supply=Supply.ON, reason=Reason.POSTPAID)


def test_row_2_exempt_account_or_scheme_is_on() -> None:
    """The account's own entry and its category's scheme have reasons of their own."""
    at_ms = local(WEDNESDAY, "11:00")
    decided = verdict(replace(EXHAUSTED, exempt=True, now=Supply.OFF), ANY, at_ms)
    assert decided == Verdict(supply=Supply.ON, reason=Reason.EXEMPT_ACCOUNT)
    decided = verdict(replace(EXHAUSTED, now=Supply.OFF), ESSENTIAL, at_ms)
    assert decided == Verdict(supply=Supply.ON, reason=Reason.EXEMPT_SCHEME)


def test_row_3_absent_account_is_on() -> None:
    """With the deposit of R-23 supply is not cut, and one that was cut comes back."""
    decided = verdict(replace(EXHAUSTED, absent=True, now=Supply.OFF), ANY, local(WEDNESDAY, "11:00"))
    assert decided == Verdict(supply=Supply.ON, reason=Reason.ABSENT)


def test_row_4_held_account_is_on() -> None:
    """A hold keeps supply on, and brings it back."""
    decided = verdict(replace(EXHAUSTED, hold=True, now=Supply.OFF), ANY, local(WEDNESDAY, "11:00"))
    assert decided == Verdict(supply=Supply.ON, reason=Reason.HELD)


@pytest.mark.parametrize("now", Supply)
def test_row_5_account_with_credit_is_on_at_once(now: Supply) -> None:
    """A recharge restores at any hour: windows are for cutting, never for restoring."""
    decided = verdict(replace(EXHAUSTED, exhausted=False, now=now), OFFICE_HOURS, local(SUNDAY, "02:00"))
    assert decided == Verdict(supply=Supply.ON, reason=Reason.CREDIT)


@pytest.mark.parametrize("clock", ["09:00", "11:00", "23:00"])
def test_row_6_account_that_is_cut_stays_so_until_credit(clock: str) -> None:
    """A window that closes restores nothing, in protected hours or out of them."""
    standing = replace(EXHAUSTED, now=Supply.OFF, exhausted_at_ms=local(WEDNESDAY, "08:00"))
    for scheme in (OFFICE_HOURS, EMERGENCY, LIMITING):
        decided = verdict(standing, scheme, local(WEDNESDAY, clock))
        assert decided == Verdict(supply=Supply.OFF, reason=Reason.STILL_OFF)
    limited = replace(standing, now=Supply.LIMITED, can_limit=True)
    decided = verdict(limited, LIMITING, local(WEDNESDAY, clock))
    assert decided == Verdict(supply=Supply.LIMITED, reason=Reason.STILL_LIMITED)


def test_row_6_limit_ends_with_the_scheme_that_had_it() -> None:
    """Under rules without a limit an account that is limited is decided as one that is on: cut in the window only."""
    limited = replace(EXHAUSTED, now=Supply.LIMITED, can_limit=True, exhausted_at_ms=local(WEDNESDAY, "08:00"))
    assert verdict(limited, OFFICE_HOURS, local(WEDNESDAY, "11:00")).supply is Supply.OFF
    assert verdict(limited, OFFICE_HOURS, local(WEDNESDAY, "23:00")).supply is Supply.ON


def test_row_7_emergency_days_keep_supply_on_until_they_end() -> None:
    """Exhausted on Wednesday afternoon: Thursday, Friday and Saturday are whole days of grace, to Sunday's midnight."""
    standing = replace(EXHAUSTED, exhausted_at_ms=local(WEDNESDAY, "15:00"))
    ends_ms = local(SUNDAY, "00:00")
    emergency = Verdict(supply=Supply.ON, reason=Reason.EMERGENCY_DAYS, until_ms=ends_ms)
    assert verdict(standing, EMERGENCY, local(WEDNESDAY, "15:00")) == emergency
    assert verdict(standing, EMERGENCY, ends_ms - 1) == emergency
    # Sunday is protected besides; Monday at 08:00 is the end.
    opens_ms = local(date(2026, 11, 16), "08:00")
    assert verdict(standing, EMERGENCY, ends_ms) == Verdict(
        supply=Supply.ON, reason=Reason.PROTECTED, until_ms=opens_ms
    )
    assert verdict(standing, EMERGENCY, opens_ms) == Verdict(supply=Supply.OFF, reason=Reason.CUT)
    assert earliest_cut_ms(EMERGENCY, local(WEDNESDAY, "15:00"), local(WEDNESDAY, "15:00"), KOLKATA) == opens_ms


def test_row_7_exhaustion_of_unknown_age_counts_from_now() -> None:
    """Where the instant is not known the consumer has the whole grace."""
    at_ms = local(WEDNESDAY, "15:00")
    assert verdict(EXHAUSTED, EMERGENCY, at_ms).until_ms == local(SUNDAY, "00:00")


@pytest.mark.parametrize(
    ("day", "clock", "opens", "opens_at"),
    [
        (WEDNESDAY, "18:00", date(2026, 11, 12), "10:00"),
        (SUNDAY, "11:00", date(2026, 11, 16), "10:00"),
        (date(2026, 1, 26), "11:00", date(2026, 1, 27), "10:00"),
    ],
)
def test_row_8_protected_hour_or_day_keeps_supply_on_until_it_opens(
    day: date, clock: str, opens: date, opens_at: str
) -> None:
    """Evenings, Sundays and holidays wait for the next window."""
    decided = verdict(EXHAUSTED, OFFICE_HOURS, local(day, clock))
    assert decided == Verdict(supply=Supply.ON, reason=Reason.PROTECTED, until_ms=local(opens, opens_at))


def test_row_9_scheme_with_a_limit_limits_where_the_meter_is_able_to() -> None:
    """Load limit instead of cut; the limit waits for the window like a cut."""
    standing = replace(EXHAUSTED, can_limit=True)
    assert verdict(standing, LIMITING, local(SUNDAY, "02:00")) == Verdict(supply=Supply.LIMITED, reason=Reason.LIMITED)
    protected = verdict(standing, replace(OFFICE_HOURS, limit_w=500), local(SUNDAY, "02:00"))
    assert (protected.supply, protected.reason) == (Supply.ON, Reason.PROTECTED)


@pytest.mark.parametrize(
    ("standing", "scheme"),
    [(EXHAUSTED, ANY), (EXHAUSTED, LIMITING), (replace(EXHAUSTED, can_limit=True), ANY), (EXHAUSTED, OFFICE_HOURS)],
)
def test_row_10_exhausted_account_within_a_window_is_off(standing: Standing, scheme: Scheme) -> None:
    """Without a limit, or without a meter that can limit, supply is cut."""
    assert verdict(standing, scheme, local(WEDNESDAY, "11:00")) == Verdict(supply=Supply.OFF, reason=Reason.CUT)


def test_rows_decide_in_their_order() -> None:
    """Taking the first row's condition away leaves the next one's reason."""
    standing = replace(
        EXHAUSTED, mode=Mode.POSTPAID, exempt=True, absent=True, hold=True, exhausted=False, now=Supply.OFF
    )
    order = [
        ({}, Reason.POSTPAID),
        ({"mode": Mode.PREPAID}, Reason.EXEMPT_ACCOUNT),
        ({"exempt": False}, Reason.ABSENT),
        ({"absent": False}, Reason.HELD),
        ({"hold": False}, Reason.CREDIT),
        ({"exhausted": True}, Reason.STILL_OFF),
        ({"now": Supply.ON}, Reason.EMERGENCY_DAYS),
    ]
    at_ms = local(WEDNESDAY, "20:00")
    for change, reason in order:
        standing = replace(standing, **change)  # type: ignore[arg-type]  # Each a field of its own type.
        assert verdict(standing, EMERGENCY, at_ms).reason is reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_plain_sentence_for_operator_and_family(reason: Reason) -> None:
    """Each is a sentence of its own that needs nothing beside it; no family reads the word disconnection or a fee."""
    for text in (reason.for_operator, reason.for_family):
        assert text[0].isupper()
        assert text.endswith(".")
        assert "disconnect" not in text.lower()
    assert reason.for_operator != reason.for_family
    assert [each for each in Reason if each.for_family == reason.for_family] == [reason]


# Emergency days ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "days", "ends"),
    [
        ("15:00", 3, date(2026, 11, 15)),
        ("23:59:59.999", 1, date(2026, 11, 13)),
        # Exhausted at midnight, the day that begins there is a whole one.
        ("00:00", 1, date(2026, 11, 12)),
        ("00:00:00.001", 1, date(2026, 11, 13)),
    ],
)
def test_emergency_days_are_whole_local_days(clock: str, days: int, ends: date) -> None:
    """They end at a local midnight, never before so many whole days have passed."""
    scheme = replace(ANY, emergency_days=days)
    assert emergency_ends_ms(scheme, local(WEDNESDAY, clock), KOLKATA) == KOLKATA.midnight_ms(ends)


def test_scheme_without_emergency_days_gives_none() -> None:
    """Exhausted is exhausted: the window decides from that instant on."""
    at_ms = local(WEDNESDAY, "15:00")
    assert emergency_ends_ms(ANY, at_ms, KOLKATA) == at_ms
    assert earliest_cut_ms(OFFICE_HOURS, at_ms, at_ms, KOLKATA) == local(date(2026, 11, 12), "10:00")
    assert earliest_cut_ms(ANY, at_ms - 10**9, at_ms, KOLKATA) == at_ms


def test_emergency_days_follow_the_clock_of_the_zone() -> None:
    """A long Sunday is one whole day of 25 hours."""
    scheme = replace(ANY, emergency_days=1)
    ends_ms = emergency_ends_ms(scheme, BERLIN.midnight_ms(date(2026, 10, 25)), BERLIN)
    assert ends_ms - BERLIN.midnight_ms(date(2026, 10, 25)) == 25 * 3_600_000


def test_schemes_and_verdicts_are_immutable() -> None:
    """What was read cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        ANY.emergency_days = 9  # type: ignore[misc]
    assert ANY.windows is ANY_TIME
    assert to_ms(datetime(2026, 11, 11, tzinfo=UTC)) == local(WEDNESDAY, "05:30")
