"""Event codes: what they are, what is told, and what is too old, too near or too short to be."""

import pytest

from billing.notices import Facts, Outage, RestoredPower, Tamper, TamperEvent
from headend.events import (
    APART_MS,
    EVENTS,
    OTHER,
    OUTAGE_MS_MIN,
    OWN_CODES,
    POWER_BACK,
    POWER_FAILED,
    TOLD_WITHIN_MS,
    EventSort,
    PowerEvent,
    Severity,
    apart,
    may_be_told,
    meaning_of,
    outage_of,
)
from headend.validate import FUTURE_SLACK_MS

NOW_MS = 1_795_000_000_000


def magnet(at_ms: int) -> Tamper:
    return Tamper(event=TamperEvent.MAGNET, at_ms=at_ms)


def power(code: int, at_ms: int, beside_code: int | None, beside_ms: int | None) -> PowerEvent:
    return PowerEvent(meter_id=1, at_ms=at_ms, code=code, beside_ms=beside_ms, beside_code=beside_code)


@pytest.mark.parametrize(
    ("code", "tamper"),
    [
        (51, TamperEvent.CURRENT_REVERSED),
        (53, TamperEvent.CURRENT_REVERSED),
        (55, TamperEvent.CURRENT_REVERSED),
        (201, TamperEvent.MAGNET),
        (203, TamperEvent.NEUTRAL_DISTURBED),
        (251, TamperEvent.COVER_OPEN),
    ],
)
def test_tamper_that_begins_is_told_and_grave(code: int, tamper: TamperEvent) -> None:
    """A consumer hears what their meter has noticed, when it begins."""
    meaning = meaning_of(code)
    assert (meaning.sort, meaning.severity, meaning.tamper) == (EventSort.TAMPER, Severity.ALARM, tamper)
    assert may_be_told(code, NOW_MS, NOW_MS)


def test_events_told_are_tamper_and_power_and_no_other() -> None:
    """Everything else is the utility's own business, and so is what a tamper ends with."""
    assert {code for code in EVENTS if may_be_told(code, NOW_MS, NOW_MS)} == {
        51, 53, 55, POWER_FAILED, POWER_BACK, 201, 203, 251,
    }  # fmt: skip
    assert all(not meaning_of(code).is_told for code in (52, 54, 56, 202, 204, 301, 302))


def test_codes_of_no_list_are_other_and_not_told() -> None:
    """A vendor's own code is stored, and means nothing here."""
    for code in (0, 250, 252, 303, 65_535):
        assert meaning_of(code) is OTHER
        assert not may_be_told(code, NOW_MS, NOW_MS)


def test_codes_from_one_to_three_hundred_and_two_carry_a_title() -> None:
    """Each code of the list is there once, ends named after what they end."""
    assert len({meaning.title for meaning in EVENTS.values()}) == len(EVENTS)
    assert min(EVENTS) == 1
    assert max(code for code in EVENTS if code < OWN_CODES) == 302
    assert meaning_of(202).title == "magnet: over"


@pytest.mark.parametrize(
    ("age_ms", "told"),
    [
        (0, True),
        (TOLD_WITHIN_MS, True),
        (TOLD_WITHIN_MS + 1, False),
        (-FUTURE_SLACK_MS, True),
        (-FUTURE_SLACK_MS - 1, False),
    ],
)
def test_event_of_yesterday_or_of_the_future_is_not_told(age_ms: int, told: bool) -> None:
    """A replay of old events tells nobody, and neither does a clock that runs far ahead."""
    assert may_be_told(201, NOW_MS - age_ms, NOW_MS) is told


@pytest.mark.parametrize(
    ("event", "since_ms"),
    [
        (power(POWER_BACK, NOW_MS, POWER_FAILED, NOW_MS - OUTAGE_MS_MIN), NOW_MS - OUTAGE_MS_MIN),
        (power(POWER_FAILED, NOW_MS - OUTAGE_MS_MIN, POWER_BACK, NOW_MS), NOW_MS - OUTAGE_MS_MIN),
        (power(POWER_BACK, NOW_MS, POWER_FAILED, NOW_MS - OUTAGE_MS_MIN + 1), None),
        (power(POWER_BACK, NOW_MS, POWER_BACK, NOW_MS - 9 * OUTAGE_MS_MIN), None),
        (power(POWER_FAILED, NOW_MS, POWER_FAILED, NOW_MS + 9 * OUTAGE_MS_MIN), None),
        (power(POWER_BACK, NOW_MS, None, None), None),
    ],
)
def test_outage_is_a_failure_and_the_return_right_after_it_minutes_later(
    event: PowerEvent, since_ms: int | None
) -> None:
    """Whichever of the two is known first; a flicker is none, and neither is a return without a failure."""
    expected = None if since_ms is None else RestoredPower(since_ms=since_ms, until_ms=NOW_MS)
    assert outage_of(event) == expected


def test_same_kind_within_a_quarter_of_an_hour_is_told_once() -> None:
    """The earliest stays, and what comes a quarter of an hour after it; other kinds are not touched."""
    cover = Tamper(event=TamperEvent.COVER_OPEN, at_ms=NOW_MS + 1)
    new: list[Facts] = [magnet(NOW_MS + APART_MS), magnet(NOW_MS + 1), cover, magnet(NOW_MS), Outage(since_ms=NOW_MS)]
    kept = apart([], new)
    assert kept == [magnet(NOW_MS), Outage(since_ms=NOW_MS), cover, magnet(NOW_MS + APART_MS)]
    assert apart(kept, new) == []
    assert apart([magnet(NOW_MS + 5)], [magnet(NOW_MS)]) == []
