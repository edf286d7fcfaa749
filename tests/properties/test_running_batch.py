"""The vectorised running balance is the plain one wherever it gives one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, to_ms
from billing.rate_table import RateTable
from billing.rating_batch import BeyondLimits
from billing.running import Checkpoint, Point, close_days, opening, running_balance
from billing.running_batch import RunningAccounts, day_ordinals
from billing.tariff import ENERGY_WH_MAX, RATE_MILLI_MAX
from billing.tariff_document import builtin_tariff, parse_tariff
from billing.terms import Assignment, Terms, one_assignment
from tests.properties.tariff_strategies import loads_w, tariff_texts

BOUNDED = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
DAY_MS = 86_400_000
# St. John's turned its clocks back from 00:01, Havana does from 01:00 and Beirut forward from 00:00; Apia has skipped
# a day; Lord Howe shifts by half an hour.
ZONES = (
    "Asia/Kolkata",
    "UTC",
    "Europe/London",
    "America/St_Johns",
    "America/Havana",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Pacific/Apia",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
)
CALENDARS = {zone: LocalCalendar(ZoneInfo(zone)) for zone in ZONES}
DS = builtin_tariff("punjab-ds-2026-27")
FIRST_MS, LAST_MS = to_ms(datetime(2000, 1, 1, tzinfo=UTC)), to_ms(datetime(2035, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An account with its posted state and the points that a plain balance needs."""

    terms: Terms
    checkpoint: Checkpoint
    points: Sequence[Point]


def batch_balances(accounts: Sequence[Known], calendar: LocalCalendar) -> tuple[list[int], list[int]]:
    kept = RunningAccounts(RateTable(), calendar)
    kept.extend((each.checkpoint, each.terms.part_at(each.checkpoint.through)) for each in accounts)
    balance_minor, left = kept.balances(
        np.arange(len(accounts)),
        np.array([each.points[-1].at_ms for each in accounts], dtype=np.int64),
        np.array([each.points[-1].energy_wh for each in accounts], dtype=np.int64),
    )
    return balance_minor.tolist(), left.tolist()


@st.composite
def known_accounts(draw: st.DrawFn, calendar: LocalCalendar, *, number: int) -> Known:
    """Draw an account whose days are closed up to some point of its curve."""
    opened_on = draw(st.dates(date(2024, 1, 1), date(2027, 12, 31)))
    days = st.dates(opened_on, opened_on + timedelta(days=70))
    tariffs = [
        parse_tariff(
            draw(tariff_texts(days=days, tariff_id=f"drawn{number}", zoned=draw(st.sampled_from([False] * 3 + [True]))))
        ),
        DS,
    ]
    from_days = [opened_on, *sorted(draw(st.sets(days, max_size=2)) - {opened_on})]
    terms = Terms(
        opened_on=opened_on,
        assignments=tuple(
            Assignment(from_day=day, tariff=draw(st.sampled_from(tariffs)), load_w=draw(loads_w)) for day in from_days
        ),
    )
    opened_ms = calendar.midnight_ms(opened_on)
    steps = st.tuples(
        st.one_of(st.sampled_from([1, DAY_MS // 48, DAY_MS]), st.integers(1, 12 * DAY_MS)),
        st.one_of(st.just(0), st.integers(0, 60_000), st.integers(0, 2_000_000)),
    )
    at = Point(at_ms=opened_ms + draw(st.integers(0, DAY_MS - 1)), energy_wh=draw(st.integers(0, 10**8)))
    points = [at]
    for step_ms, step_wh in draw(st.lists(steps, max_size=8)):
        points.append(Point(at_ms=points[-1].at_ms + step_ms, energy_wh=points[-1].energy_wh + step_wh))
    checkpoint = opening(terms, posted_minor=draw(st.integers(-(10**6), 10**9)), at=at)
    # Up to two days after the last point: a silent meter's days are closed too.
    until = calendar.day_of(draw(st.sampled_from(points)).at_ms) + timedelta(days=draw(st.integers(-1, 2)))
    demands_w = draw(st.dictionaries(days, st.integers(0, 10**8), max_size=3))
    closed = list(close_days(checkpoint, terms, points, until=until, calendar=calendar, demands_w=demands_w))
    checkpoint = closed[-1][1] if closed else checkpoint
    later = [point for point in points if point.at_ms > checkpoint.anchor.at_ms]
    return Known(terms=terms, checkpoint=checkpoint, points=[checkpoint.anchor, *later])


@BOUNDED
@given(st.data(), st.sampled_from(ZONES[:3]))
def test_balances_equal_the_plain_ones_or_are_left_to_them(data: st.DataObject, zone: str) -> None:
    """Whatever was closed before the last point, the balance is the plain one; left are zones and passed edges only."""
    calendar = CALENDARS[zone]
    accounts = [data.draw(known_accounts(calendar, number=number)) for number in range(data.draw(st.integers(1, 4)))]
    balance_minor, left = batch_balances(accounts, calendar)
    for place, known in enumerate(accounts):
        part = known.terms.part_at(known.checkpoint.through)
        passed = known.points[-1].at_ms >= calendar.midnight_ms(part.end)
        assert (place in left) == (passed or part.zone_count > 0)
        if place not in left:
            plain = running_balance(known.checkpoint, known.terms, known.points, calendar)
            assert balance_minor[place] == plain


def simple_account(load_w: int = 2_000, energy_wh: int = 5_000) -> Known:
    calendar = CALENDARS["Asia/Kolkata"]
    terms = one_assignment(DS, load_w=load_w, opened_on=date(2026, 6, 1))
    start = Point(at_ms=calendar.midnight_ms(terms.opened_on), energy_wh=1_000)
    last = Point(at_ms=start.at_ms + 5 * DAY_MS + 1, energy_wh=1_000 + energy_wh)
    return Known(terms=terms, checkpoint=opening(terms, posted_minor=50_000, at=start), points=[start, last])


def test_what_64_bits_are_not_proven_for_is_left_to_the_plain_form() -> None:
    """Energy that falls or is too much, and rates, loads and energy before beyond the limits, spoil no one's batch."""
    usual = simple_account()
    milli = DS.bands[0].slabs[-1]
    bands = (replace(DS.bands[-1], slabs=(replace(milli, rate_milli_per_kwh=RATE_MILLI_MAX + 1),)),)
    terms = one_assignment(replace(DS, bands=bands), load_w=2_000, opened_on=usual.terms.opened_on)
    accounts = [
        usual,
        simple_account(energy_wh=-1),
        simple_account(energy_wh=ENERGY_WH_MAX + 1),
        replace(usual, terms=terms),
        replace(usual, checkpoint=replace(usual.checkpoint, before_wh=2**63)),
        replace(usual, checkpoint=replace(usual.checkpoint, demand_w=2**63)),
        simple_account(energy_wh=ENERGY_WH_MAX),
    ]
    calendar = CALENDARS["Asia/Kolkata"]
    balance_minor, left = batch_balances(accounts, calendar)
    assert left == [1, 2, 3, 4, 5]
    for place in (0, 6):
        known = accounts[place]
        assert balance_minor[place] == running_balance(known.checkpoint, known.terms, known.points, calendar)


def test_places_are_kept_apart_and_replaced_one_by_one() -> None:
    """An account put again at its place has its new state, the others theirs; columns grow past their first room."""
    calendar = CALENDARS["Asia/Kolkata"]
    kept = RunningAccounts(RateTable(), calendar)
    usual, other = simple_account(), simple_account(load_w=30_000)
    part = usual.terms.part_at(usual.terms.opened_on)
    assert kept.extend([]) == range(0)
    assert kept.extend((replace(usual.checkpoint, posted_minor=n), part) for n in range(3_000)) == range(3_000)
    kept.put(3_000, replace(usual.checkpoint, posted_minor=3_000), part)
    kept.put(7, other.checkpoint, other.terms.part_at(other.terms.opened_on))
    assert len(kept) == 3_001
    last = usual.points[-1]
    places = np.array([2_999, 7, 3_000, 0])
    balance_minor, left = kept.balances(places, np.full(4, last.at_ms), np.full(4, last.energy_wh))
    charge_minor = usual.checkpoint.posted_minor - running_balance(
        usual.checkpoint, usual.terms, usual.points, calendar
    )
    plain_minor = running_balance(other.checkpoint, other.terms, other.points, calendar)
    assert balance_minor.tolist() == [2_999 - charge_minor, plain_minor, 3_000 - charge_minor, -charge_minor]
    assert not len(left)


@BOUNDED
@given(st.sampled_from(ZONES), st.lists(st.integers(FIRST_MS, LAST_MS), min_size=1, max_size=20))
def test_day_numbers_of_any_instants_equal_the_calendar(zone: str, at_ms: list[int]) -> None:
    """Every instant has the day that the calendar says, in any order and company."""
    calendar = CALENDARS[zone]
    found = day_ordinals(calendar, np.array(at_ms, dtype=np.int64)).tolist()
    assert found == [calendar.day_of(each).toordinal() for each in at_ms]


@pytest.mark.parametrize("zone", ZONES)
def test_day_numbers_around_every_midnight_and_clock_change_equal_the_calendar(zone: str) -> None:
    """The last millisecond before and the first of each midnight of 2005 to 2012 fall on the calendar's day."""
    calendar = CALENDARS[zone]
    midnights = [calendar.midnight_ms(date(2005, 1, 1) + timedelta(days=number)) for number in range(2_900)]
    minute_ms = 60_000
    around = [each + shift for each in midnights for shift in (-1, 0, 1, minute_ms, 61 * minute_ms, -59 * minute_ms)]
    found = day_ordinals(calendar, np.array(around, dtype=np.int64)).tolist()
    assert found == [calendar.day_of(each).toordinal() for each in around]


def test_day_numbers_of_no_instants_are_none_and_of_absurd_ones_refused() -> None:
    """An empty batch has no days; instants a century apart are no readings."""
    calendar = CALENDARS["UTC"]
    assert day_ordinals(calendar, np.array([], dtype=np.int64)).tolist() == []
    with pytest.raises(BeyondLimits, match="69 years"):
        day_ordinals(calendar, np.array([0, 100 * 365 * DAY_MS], dtype=np.int64))
