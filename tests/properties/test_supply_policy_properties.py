"""Windows against an oracle that reads the local clock minute by minute; verdicts against the instants they name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, from_ms
from billing.supply import Mode, Supply
from billing.supply_policy import (
    ANY_TIME,
    HORIZON_DAYS,
    MINUTE_MS,
    Reason,
    Scheme,
    Standing,
    Window,
    desired_supply,
    earliest_cut_ms,
    emergency_ends_ms,
    may_cut,
    next_cut_ms,
    window_closes_ms,
)
from tests.properties.books import EXAMPLES_TIMES

BOUNDED = settings(deadline=None, max_examples=150 * EXAMPLES_TIMES)
# A walk of some days is thousands of instants.
WALKED = settings(deadline=None, max_examples=30 * EXAMPLES_TIMES)

ONE_DAY = timedelta(days=1)
DAY_MINUTES, HOUR_MS, DAY_MS = 1_440, 3_600_000, 86_400_000
# The eves of clock changes of 2026: by an hour in the night, at midnight (Havana, Beirut), by half an hour (Lord Howe).
# India has none: a new year, a leap day and an ordinary Wednesday.
EVES = {
    "Asia/Kolkata": (date(2026, 12, 31), date(2028, 2, 28), date(2026, 11, 11)),
    "Europe/Berlin": (date(2026, 3, 28), date(2026, 10, 24)),
    "America/Havana": (date(2026, 3, 7), date(2026, 10, 31)),
    "Asia/Beirut": (date(2026, 3, 28), date(2026, 10, 24)),
    "Australia/Lord_Howe": (date(2026, 4, 4), date(2026, 10, 3)),
}
CALENDARS = {zone: LocalCalendar(ZoneInfo(zone)) for zone in EVES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scheme in a zone, and an instant at or after the beginning of some days to walk."""

    zone: str
    scheme: Scheme
    first_day: date
    at_ms: int

    @property
    def calendar(self) -> LocalCalendar:
        return CALENDARS[self.zone]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, ...]:
    """Draw windows of a day, rising; they may touch, and mostly lie in the hours at which clocks change."""
    night = st.integers(0, 240)
    edges = sorted(draw(st.sets(st.one_of(night, night, st.integers(0, DAY_MINUTES)), min_size=2, max_size=6)))
    found = [(edges[n], edges[n + 1]) for n in range(0, len(edges) - 1, 2)]
    if found and draw(st.booleans()) and found[-1][1] < DAY_MINUTES:
        found.append((found[-1][1], DAY_MINUTES))
    return tuple(found)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Draw a scheme, and an instant that need not lie on a whole minute."""
    zone = draw(st.sampled_from(sorted(EVES)))
    first_day = draw(st.sampled_from(EVES[zone]))
    near = [first_day + timedelta(days=number) for number in range(8)]
    scheme = Scheme(
        name="drawn",
        title="drawn",
        source="drawn",
        exempt=draw(st.integers(0, 19)) == 0,
        windows=ANY_TIME if draw(st.integers(0, 9)) == 0 else draw(st.tuples(*[windows()] * 7)),
        holidays=frozenset(draw(st.sets(st.sampled_from(near), max_size=1))),
        yearly_holidays=frozenset((day.month, day.day) for day in draw(st.sets(st.sampled_from(near), max_size=1))),
        not_on_saturdays=tuple(draw(st.sets(st.integers(1, 5), max_size=1))),
        emergency_days=draw(st.integers(0, 3)),
        limit_w=draw(st.sampled_from([None, 500])),
    )
    # Half of them in the night that may change the clock.
    changes_ms = CALENDARS[zone].midnight_ms(first_day + ONE_DAY)
    at_ms = changes_ms + draw(st.one_of(st.integers(-DAY_MS, 2 * DAY_MS), st.integers(-2 * HOUR_MS, 5 * HOUR_MS)))
    return Scene(zone=zone, scheme=scheme, first_day=first_day, at_ms=at_ms)


def oracle_may_cut(scene: Scene, at_ms: int) -> bool:
    """Look at the clock on the wall: no instants of edges, no days' lengths."""
    shown = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(ZoneInfo(scene.zone))
    scheme, day = scene.scheme, shown.date()
    saturdays = [each for each in _month_of(day) if each.isoweekday() == 6]
    protected = (
        scheme.exempt
        or day in scheme.holidays
        or any((day.month, day.day) == each for each in scheme.yearly_holidays)
        or any(n <= len(saturdays) and saturdays[n - 1] == day for n in scheme.not_on_saturdays)
    )
    minute = shown.hour * 60 + shown.minute
    return not protected and any(minute in range(first, last) for first, last in scheme.windows[day.isoweekday() - 1])


def _month_of(day: date) -> list[date]:
    first = day.replace(day=1)
    return [each for n in range(31) if (each := first + timedelta(days=n)).month == day.month]


def walk(from_ms_: int, to_ms_: int) -> range:
    """Return the whole minutes from an instant on: every edge of a window and every clock change lies on one."""
    return range(-(-from_ms_ // MINUTE_MS) * MINUTE_MS, to_ms_, MINUTE_MS)


@WALKED
@given(scene=scenes())
def test_may_cut_agrees_with_the_clock_on_the_wall(scene: Scene) -> None:
    """Over two local days, minute by minute, whatever the zone does to its clock."""
    begins_ms = scene.calendar.midnight_ms(scene.first_day)
    for at_ms in range(begins_ms, scene.calendar.midnight_ms(scene.first_day + 2 * ONE_DAY), MINUTE_MS):
        for instant_ms in (at_ms, at_ms + MINUTE_MS - 1):
            allowed = may_cut(scene.scheme, instant_ms, scene.calendar)
            assert allowed is oracle_may_cut(scene, instant_ms), from_ms(instant_ms)


@WALKED
@given(scene=scenes())
def test_next_cut_is_allowed_and_nothing_before_it_is(scene: Scene) -> None:
    """The first minute that the oracle allows, or the instant itself; None only where a walk finds none either."""
    found_ms = next_cut_ms(scene.scheme, scene.at_ms, scene.calendar)
    end_ms = scene.at_ms + 8 * DAY_MS
    if found_ms is not None:
        assert found_ms >= scene.at_ms
        assert oracle_may_cut(scene, found_ms)
        end_ms = min(end_ms, found_ms)
    if found_ms != scene.at_ms:
        assert not oracle_may_cut(scene, scene.at_ms)
    assert not any(oracle_may_cut(scene, at_ms) for at_ms in walk(scene.at_ms, end_ms))


@WALKED
@given(scene=scenes())
def test_window_closes_where_cutting_is_not_allowed_and_was_until_then(scene: Scene) -> None:
    """Every minute before the closing is allowed, the closing itself is not; closed already, it is the instant."""
    closes_ms = window_closes_ms(scene.scheme, scene.at_ms, scene.calendar)
    end_ms = scene.at_ms + 8 * DAY_MS
    if closes_ms is not None:
        assert closes_ms >= scene.at_ms
        assert not oracle_may_cut(scene, closes_ms)
        end_ms = min(end_ms, closes_ms)
    if closes_ms != scene.at_ms:
        assert oracle_may_cut(scene, scene.at_ms)
    assert all(oracle_may_cut(scene, at_ms) for at_ms in walk(scene.at_ms, end_ms))


@BOUNDED
@given(scene=scenes())
def test_openings_and_closings_alternate_to_the_horizon(scene: Scene) -> None:
    """From an opening to its closing to the next opening time only rises; each is a fixed point of its own search."""
    at_ms, end_ms = scene.at_ms, scene.at_ms + HORIZON_DAYS * DAY_MS
    while at_ms < end_ms:
        opens_ms = next_cut_ms(scene.scheme, at_ms, scene.calendar)
        if opens_ms is None:
            return
        assert next_cut_ms(scene.scheme, opens_ms, scene.calendar) == opens_ms
        closes_ms = window_closes_ms(scene.scheme, opens_ms, scene.calendar)
        if closes_ms is None:
            return
        assert opens_ms < closes_ms
        assert window_closes_ms(scene.scheme, closes_ms, scene.calendar) == closes_ms
        at_ms = closes_ms


@BOUNDED
@given(scene=scenes())
def test_emergency_days_are_whole_days_of_the_zone(scene: Scene) -> None:
    """Between exhaustion and their end lie exactly so many whole local days, and the end is a midnight."""
    days, calendar = scene.scheme.emergency_days, scene.calendar
    ends_ms = emergency_ends_ms(scene.scheme, scene.at_ms, calendar)
    if not days:
        assert ends_ms == scene.at_ms
        return
    last_day = calendar.day_of(ends_ms)
    assert calendar.midnight_ms(last_day) == ends_ms
    assert calendar.midnight_ms(last_day - days * ONE_DAY) >= scene.at_ms
    assert calendar.midnight_ms(last_day - (days + 1) * ONE_DAY) < scene.at_ms


standings = st.builds(
    Standing,
    mode=st.sampled_from([Mode.PREPAID] * 5 + [Mode.POSTPAID]),
    exhausted=st.sampled_from([True] * 5 + [False]),
    exhausted_at_ms=st.none(),
    absent=st.sampled_from([False] * 5 + [True]),
    hold=st.sampled_from([False] * 5 + [True]),
    exempt=st.sampled_from([False] * 5 + [True]),
    can_limit=st.booleans(),
    now=st.sampled_from([Supply.ON, Supply.ON, Supply.LIMITED, Supply.OFF]),
)


@BOUNDED
@given(scene=scenes(), standing=standings, ago_ms=st.integers(0, 5 * DAY_MS), part=st.integers(0, 1000))
def test_verdict_holds_until_the_instant_that_it_names(
    scene: Scene, standing: Standing, ago_ms: int, part: int
) -> None:
    """Time alone changes a verdict at `until_ms` and not before; without one it stands."""
    standing = replace(standing, exhausted_at_ms=scene.at_ms - ago_ms)
    first = desired_supply(standing, scheme=scene.scheme, at_ms=scene.at_ms, calendar=scene.calendar)
    end_ms = first.until_ms
    assert end_ms is None or end_ms > scene.at_ms
    # A cut that may be done now need not be allowed later: it is done, and then row 6 keeps it.
    after = replace(standing, now=first.supply)
    span_ms = (5 * DAY_MS if end_ms is None else end_ms - scene.at_ms) - 1
    later = desired_supply(
        after, scheme=scene.scheme, at_ms=scene.at_ms + span_ms * part // 1000, calendar=scene.calendar
    )
    assert later.supply is first.supply
    if first.supply is Supply.ON:
        assert later == first
    if end_ms is not None:
        then = desired_supply(after, scheme=scene.scheme, at_ms=end_ms, calendar=scene.calendar)
        assert then.reason is not first.reason


@BOUNDED
@given(scene=scenes(), standing=standings, ago_ms=st.integers(0, 5 * DAY_MS))
def test_supply_is_cut_only_where_the_oracle_allows_and_never_restored_by_time(
    scene: Scene, standing: Standing, ago_ms: int
) -> None:
    """Off or limited anew: exhausted, prepaid, nothing that keeps it on, grace over, and the clock within a window.

    Limited under a scheme that no longer limits is as on.
    """
    standing = replace(standing, exhausted_at_ms=scene.at_ms - ago_ms)
    verdict = desired_supply(standing, scheme=scene.scheme, at_ms=scene.at_ms, calendar=scene.calendar)
    kept = standing.absent or standing.hold or standing.exempt or scene.scheme.exempt
    to_cut = standing.mode is Mode.PREPAID and standing.exhausted and not kept
    limits = scene.scheme.limit_w is not None and standing.can_limit
    if not to_cut:
        assert verdict.supply is Supply.ON
    elif standing.now is Supply.OFF or (standing.now is Supply.LIMITED and limits):
        assert verdict.supply is standing.now
    else:
        earliest_ms = earliest_cut_ms(scene.scheme, scene.at_ms - ago_ms, scene.at_ms, scene.calendar)
        cut = verdict.supply is not Supply.ON
        assert cut is (earliest_ms == scene.at_ms)
        assert not cut or oracle_may_cut(scene, scene.at_ms)
        assert (verdict.supply is Supply.LIMITED) is (cut and limits)
        assert cut is (verdict.reason in (Reason.CUT, Reason.LIMITED))
