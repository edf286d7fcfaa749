"""Which flags are events of their own, what rings, what may have ended, when a day's completeness is due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from headend.completeness import TAKEN_WITHIN_MS, due_marks, mark_ms
from headend.event_alarms import FLAG_APART_MS, Event, Flag, Ring, may_end, new_flags, rings_of
from headend.events import COMMUNICATION_LOST, EVENTS, OWN_CODES, POWER_BACK, POWER_FAILED, Severity, ended_codes

T = 1_000_000_000_000
MAGNET, MAGNET_OVER, COVER, CLOCK_SET = 201, 202, 251, 151


def standing(*flags: Flag) -> dict[tuple[int, int], Flag]:
    """Return flags by meter and code."""
    return {(flag.meter_id, flag.code): flag for flag in flags}


def flag(since_ms: int, last_ms: int) -> Flag:
    """Return a flag of meter 1's magnet."""
    return Flag(meter_id=1, code=MAGNET, since_ms=T + since_ms, last_ms=T + last_ms)


@pytest.mark.parametrize(
    ("known", "at_ms", "is_new", "after"),
    [
        (None, 0, True, flag(0, 0)),
        (flag(0, 10), FLAG_APART_MS + 10, False, flag(0, FLAG_APART_MS + 10)),
        (flag(0, 10), FLAG_APART_MS + 11, True, flag(FLAG_APART_MS + 11, FLAG_APART_MS + 11)),
        (flag(0, 10), 5, False, flag(0, 10)),
        (flag(0, 10), -FLAG_APART_MS, False, flag(-FLAG_APART_MS, 10)),
        # Of long before, and told late: an event of its own, after which the later one stands on.
        (flag(0, 10), -FLAG_APART_MS - 1, True, flag(0, 10)),
    ],
)
def test_flag_is_an_event_of_its_own_when_it_was_not_there_before(
    known: Flag | None, at_ms: int, is_new: bool, after: Flag
) -> None:
    """What readings repeat within two hours of the last is one event, whatever order they come in."""
    event: Event = (1, T + at_ms, MAGNET)
    fresh, changed = new_flags([event], standing(known) if known else {})
    assert fresh == ({event} if is_new else set())
    assert (changed or [known]) == [after]


def test_flags_of_one_batch_are_one_event_by_meter_and_code() -> None:
    """A day of half-hours that all say the same is one event; another code or meter is another."""
    flags = [(1, T + number * 1_800_000, MAGNET) for number in range(48)]
    fresh, changed = new_flags([*reversed(flags), (2, T, MAGNET), (1, T + 9, COVER)], {})
    assert fresh == {(1, T, MAGNET), (2, T, MAGNET), (1, T + 9, COVER)}
    assert len(changed) == 3


def test_rings_are_put_together_and_information_rings_nobody() -> None:
    """The same code of a meter is one ring with its count."""
    events = [(1, T + 5, MAGNET), (1, T, MAGNET), (1, T, CLOCK_SET), (2, T, 99_999), (1, T, POWER_BACK)]
    assert rings_of(events) == [
        Ring(meter_id=1, code=MAGNET, severity=Severity.ALARM, first_ms=T, last_ms=T + 5, times=2)
    ]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([MAGNET], {(1, MAGNET, MAGNET_OVER)}),
        ([MAGNET_OVER], {(1, MAGNET, MAGNET_OVER)}),
        ([POWER_FAILED, POWER_BACK], {(1, POWER_FAILED, POWER_BACK)}),
        ([COVER, CLOCK_SET, 99_999], set()),
    ],
)
def test_what_may_have_ended_is_looked_at_from_both_sides(
    codes: Sequence[int], expected: set[tuple[int, int, int]]
) -> None:
    """An end may be stored before what it ends."""
    assert may_end((1, T, code) for code in codes) == expected


def test_every_end_names_what_it_ends_and_own_codes_are_beyond_every_meter() -> None:
    """Pairs are whole, an end is never grave, and no meter can send what the head-end finds out."""
    for code, meaning in EVENTS.items():
        if meaning.ends is not None:
            assert (meaning.ends in EVENTS, meaning.ends, meaning.severity) == (True, code - 1, Severity.INFO)
    assert OWN_CODES > 65_535
    assert {COMMUNICATION_LOST, MAGNET, POWER_FAILED} <= ended_codes()
    assert COVER not in ended_codes()


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Europe/Berlin", "America/St_Johns"])
def test_completeness_is_due_at_local_hours_after_the_days_end(zone: str) -> None:
    """Hours after a day's end are clock times of the next days, over clock changes too; an hour late is too late."""
    calendar = LocalCalendar(ZoneInfo(zone))
    for day in (date(2026, 3, 27), date(2026, 3, 28), date(2026, 10, 24), date(2026, 6, 1)):
        for hour in (8, 12, 24):
            at_ms = mark_ms(day, hour, calendar)
            assert due_marks(at_ms, calendar) == [(day, hour)]
            assert due_marks(at_ms + TAKEN_WITHIN_MS - 1, calendar) == [(day, hour)]
            assert (day, hour) not in due_marks(at_ms - 1, calendar)
            assert (day, hour) not in due_marks(at_ms + TAKEN_WITHIN_MS, calendar)
    assert mark_ms(date(2026, 3, 28), 8, calendar) == calendar.instant_ms(date(2026, 3, 29), 480)
    assert mark_ms(date(2026, 3, 28), 24, calendar) == calendar.midnight_ms(date(2026, 3, 30))
