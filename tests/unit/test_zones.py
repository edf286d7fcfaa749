"""Which time-of-day zone an instant falls into, by season, kind of day and local clock."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, to_ms
from billing.tariff_document import parse_tariff
from billing.zones import Season, ZoneClock, Zones, zone_clock

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
LONDON = LocalCalendar(ZoneInfo("Europe/London"))
HEAD = """
id = "tod"
effective_from = 2026-01-01
[[band]]
energy = [{ rate_milli_per_kwh = 500_000 }]
[zones]
weekend = ["sunday"]
holidays = [2026-08-15]
[[zones.zone]]
name = "day"
[[zones.zone]]
name = "peak"
surcharge_milli_per_kwh = 100_000
[[zones.zone]]
name = "night"
rebate_milli_per_kwh = 50_000
"""


def hours(*rows: tuple[str, str, str], days: str = "all", season: str = "") -> str:
    """Return [[zones.hours]] tables of (zone, from, to)."""
    more = f'\nseason = "{season}"' if season else ""
    return "".join(
        f'[[zones.hours]]\nzone = "{zone}"\nfrom = "{start}"\nto = "{end}"\ndays = "{days}"{more}\n'
        for zone, start, end in rows
    )


def zones(tables: str) -> Zones:
    found = parse_tariff(HEAD + tables).zones
    assert found is not None
    return found


PLAIN = zones(hours(("day", "06:00", "18:00"), ("peak", "18:00", "22:00"), ("night", "22:00", "06:00")))


def at_ms(calendar: LocalCalendar, *clock: int) -> int:
    """Return the instant of a local clock, its first showing."""
    year, month, day, hour, minute = clock
    return to_ms(datetime(year, month, day, hour, minute, tzinfo=calendar.zone))


def named(clock: ZoneClock, held: Zones, instant_ms: int) -> str:
    return held.names[clock.zone_at(instant_ms)[0]]


@pytest.mark.parametrize(
    ("hour", "minute", "name"),
    [(0, 0, "night"), (5, 59, "night"), (6, 0, "day"), (17, 59, "day"), (18, 0, "peak"), (22, 0, "night")],
)
def test_zone_of_an_instant_begins_at_its_minute(hour: int, minute: int, name: str) -> None:
    """The minute at which a zone begins is its own; night goes on over midnight."""
    assert named(zone_clock(PLAIN, KOLKATA), PLAIN, at_ms(KOLKATA, 2026, 4, 8, hour, minute)) == name


def test_zone_ends_where_the_next_begins_or_the_day_ends() -> None:
    """The millisecond before belongs to the zone; every day begins its own."""
    clock = zone_clock(PLAIN, KOLKATA)
    six_ms, night_ms = at_ms(KOLKATA, 2026, 4, 8, 18, 0), at_ms(KOLKATA, 2026, 4, 8, 22, 0)
    assert clock.zone_at(six_ms) == clock.zone_at(night_ms - 1) == (1, night_ms)
    assert clock.zone_at(night_ms) == (2, KOLKATA.midnight_ms(date(2026, 4, 9)))


def test_edges_between_two_instants_leave_both_out() -> None:
    """Midnight, 6, 18 and 22 o'clock are edges; the two ends are not."""
    clock = zone_clock(PLAIN, KOLKATA)
    from_ms, until_ms = at_ms(KOLKATA, 2026, 4, 8, 18, 0), at_ms(KOLKATA, 2026, 4, 9, 18, 0)
    wanted = [(8, 22), (9, 0), (9, 6)]
    assert clock.edges_between(from_ms, until_ms) == [at_ms(KOLKATA, 2026, 4, day, hour, 0) for day, hour in wanted]
    assert clock.edges_between(from_ms, from_ms + 1) == []


def test_weekends_and_holidays_have_hours_of_their_own() -> None:
    """Sunday the 9th and Saturday the 15th of August 2026 are off, Saturday the 8th is not."""
    held = zones(
        hours(("peak", "00:00", "12:00"), ("day", "12:00", "24:00"), days="working")
        + hours(("night", "00:00", "00:00"), days="holiday")
    )
    clock = zone_clock(held, KOLKATA)
    shown = [named(clock, held, at_ms(KOLKATA, 2026, 8, day, 9, 0)) for day in (8, 9, 10, 15)]
    assert shown == ["peak", "night", "peak", "night"]
    assert held.edge_minutes == (0, 720)


SEASONS = """
[[zones.season]]
name = "summer"
first = "04-01"
last = "09-30"
[[zones.season]]
name = "winter"
first = "10-01"
last = "03-31"
"""


def test_seasons_change_the_hours_at_midnight_and_run_over_the_new_year() -> None:
    """Winter is peak from October to March, leap day included."""
    held = zones(
        SEASONS + hours(("day", "00:00", "24:00"), season="summer") + hours(("peak", "00:00", "24:00"), season="winter")
    )
    clock = zone_clock(held, KOLKATA)
    days = [(2026, 3, 31), (2026, 4, 1), (2026, 9, 30), (2026, 10, 1), (2028, 1, 1), (2028, 2, 29)]
    shown = [named(clock, held, at_ms(KOLKATA, *day, 23, 59)) for day in days]
    assert shown == ["peak", "day", "day", "peak", "peak", "peak"]


def test_season_of_two_runs_of_days_has_its_hours_once() -> None:
    """Two seasons of one name share their hours, which may also be given for all seasons."""
    twice = (
        SEASONS.replace('"10-01"', '"10-02"') + '[[zones.season]]\nname = "summer"\nfirst = "10-01"\nlast = "10-01"\n'
    )
    held = zones(twice + hours(("day", "00:00", "24:00")))
    assert set(held.hours) == {("summer", False), ("summer", True), ("winter", False), ("winter", True)}


@pytest.mark.parametrize(
    ("first", "last", "day", "inside"),
    [
        ((4, 1), (9, 30), date(2026, 4, 1), True),
        ((4, 1), (9, 30), date(2026, 10, 1), False),
        ((11, 1), (2, 29), date(2026, 2, 28), True),
        ((11, 1), (2, 29), date(2028, 2, 29), True),
        ((11, 1), (2, 29), date(2028, 3, 1), False),
        ((11, 1), (2, 29), date(2027, 12, 31), True),
    ],
)
def test_season_holds_both_of_its_ends(first: tuple[int, int], last: tuple[int, int], day: date, inside: bool) -> None:
    """Also over the year's end and on a leap day."""
    assert Season(name="s", first=first, last=last).holds(day) is inside


def test_zone_due_in_a_repeated_hour_begins_at_its_second_showing() -> None:
    """London's clocks show 01:30 twice on 25 October 2026: the zone begins at 01:30 UTC."""
    held = zones(hours(("day", "00:00", "01:30"), ("peak", "01:30", "24:00")))
    clock = zone_clock(held, LONDON)
    _, edge_ms = clock.zone_at(LONDON.midnight_ms(date(2026, 10, 25)))
    assert edge_ms == to_ms(datetime(2026, 10, 25, 1, 30, tzinfo=UTC))


def test_zone_due_in_a_skipped_hour_is_counted_from_before_the_change() -> None:
    """London's clocks skip 01:30 on 29 March 2026: it is an hour and a half after midnight, 01:30 UTC."""
    held = zones(hours(("day", "00:00", "01:30"), ("peak", "01:30", "24:00")))
    clock = zone_clock(held, LONDON)
    _, edge_ms = clock.zone_at(LONDON.midnight_ms(date(2026, 3, 29)))
    assert edge_ms == to_ms(datetime(2026, 3, 29, 1, 30, tzinfo=UTC))


def test_zone_whose_whole_time_is_skipped_gets_none() -> None:
    """Due at 01:30 and over by 02:00, which clocks show right after 01:00: the next zone has begun by then."""
    held = zones(hours(("day", "00:00", "01:30"), ("peak", "01:30", "02:00"), ("night", "02:00", "24:00")))
    clock = zone_clock(held, LONDON)
    midnight_ms = LONDON.midnight_ms(date(2026, 3, 29))
    change_ms = to_ms(datetime(2026, 3, 29, 1, 0, tzinfo=UTC))
    assert clock.zone_at(midnight_ms) == (0, change_ms)
    assert clock.zone_at(change_ms) == (2, LONDON.midnight_ms(date(2026, 3, 30)))
    assert clock.edges_between(midnight_ms, LONDON.midnight_ms(date(2026, 3, 30))) == [change_ms]
