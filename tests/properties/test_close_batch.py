"""Closing an exact day of many accounts at once is closing it one by one."""

from datetime import date, timedelta
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar
from billing.close_batch import ExactDay, close_batch
from billing.journals import batched_day_legs, day_journal, usage_batch_journal
from billing.rate_table import RateTable
from billing.rating import total
from billing.rating_batch import line_sums
from billing.running import Checkpoint, DayUsage, EdgeQuality, Point, close_days, opening
from billing.tariff_document import builtin_tariff, parse_tariff
from billing.terms import ONE_DAY, Assignment, Terms
from tests.properties.tariff_strategies import loads_w, tariff_texts

BOUNDED = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
CALENDARS = [LocalCalendar(ZoneInfo(zone)) for zone in ("Asia/Kolkata", "Europe/London", "America/Havana")]
BUILT_IN = [builtin_tariff(name) for name in ("punjab-ds-2026-27", "punjab-ds-2026-27-subsidy", "punjab-nrs-2026-27")]
FIRST = date(2026, 6, 24)


@st.composite
def accounts(
    draw: st.DrawFn, calendar: LocalCalendar, day: date, number: int
) -> tuple[ExactDay, DayUsage, Checkpoint, frozenset[str]]:
    """Draw an account whose days before `day` are closed and whose end of `day` was read; close it one by one."""
    opened_on = day - timedelta(days=draw(st.integers(0, 40)))
    days = st.dates(opened_on, day + timedelta(days=9))
    drawn = parse_tariff(draw(tariff_texts(days=days, tariff_id=f"drawn{number}", zoned=False)))
    from_days = [opened_on, *sorted(draw(st.sets(days, max_size=2)) - {opened_on})]
    terms = Terms(
        opened_on=opened_on,
        assignments=tuple(
            Assignment(from_day=from_day, tariff=draw(st.sampled_from([drawn, *BUILT_IN])), load_w=draw(loads_w))
            for from_day in from_days
        ),
    )
    at = Point(at_ms=calendar.midnight_ms(opened_on), energy_wh=draw(st.integers(0, 10**8)))
    points, energy_wh = [at], at.energy_wh
    for each in range((day - opened_on).days + 1):
        energy_wh += draw(st.one_of(st.integers(0, 30_000), st.integers(0, 2_000_000)))
        # Some days before the last end unread: what was closed is estimated or flat.
        if opened_on + timedelta(days=each) == day or draw(st.booleans()):
            edge_ms = calendar.midnight_ms(opened_on + timedelta(days=each + 1))
            points.append(Point(at_ms=edge_ms, energy_wh=energy_wh))
    before = opening(terms, posted_minor=draw(st.integers(-(10**6), 10**9)), at=at)
    closed = list(close_days(before, terms, points, until=day, calendar=calendar))
    before = closed[-2][1] if len(closed) > 1 else before
    usage, after = closed[-1]
    part = terms.part_at(day)
    exact = ExactDay(
        account_id=number,
        part=part,
        next_fresh=terms.next_part(part).fresh,
        posted_minor=before.posted_minor,
        charged_minor=before.charged_minor,
        before_wh=before.before_wh,
        part_start_wh=before.part_start_wh,
        closed_wh=before.closed_wh,
        to_wh=usage.to_wh,
    )
    return exact, usage, after, part.tariff.levies


@BOUNDED
@given(st.data(), st.sampled_from(CALENDARS), st.integers(0, 9))
def test_exact_days_of_a_batch_are_closed_as_one_by_one(
    data: st.DataObject, calendar: LocalCalendar, after: int
) -> None:
    """Lines, charge, posted state, ends of parts, carried slabs and the ledgers' sums are those of the plain form."""
    day = FIRST + after * ONE_DAY
    found = [data.draw(accounts(calendar, day, number)) for number in range(data.draw(st.integers(1, 4)))]
    batch = close_batch(day, [exact for exact, *_ in found], RateTable())
    for place, (exact, usage, checkpoint, _) in enumerate(found):
        assert usage.quality is EdgeQuality.READ
        assert (usage.day, usage.period, usage.from_wh) == (day, exact.part.first, exact.closed_wh)
        plain = {name: amount for name, amount in usage.lines.items() if amount}
        assert list(batch.lines[place].items()) == list(plain.items())
        assert batch.charge_minor[place] == total(usage.lines)
        known = (batch.posted_minor, batch.charged_minor, batch.before_wh, batch.part_start_wh)
        assert [int(column[place]) for column in known] == [
            checkpoint.posted_minor,
            checkpoint.charged_minor,
            checkpoint.before_wh,
            checkpoint.part_start_wh,
        ]
        assert (checkpoint.closed_wh, checkpoint.through) == (exact.to_wh, day + ONE_DAY)
    sums: dict[tuple[str, str], int] = {}
    for _, usage, _, levies in found:
        for leg in day_journal(usage, levies).legs:
            sums[leg.ledger, leg.line] = sums.get((leg.ledger, leg.line), 0) + leg.amount_minor
    batched: dict[tuple[str, str], int] = {}
    counter = usage_batch_journal(line_sums(batch.groups)).legs
    for leg in (*counter, *(leg for lines in batch.lines for leg in batched_day_legs(lines))):
        batched[leg.ledger, leg.line] = batched.get((leg.ledger, leg.line), 0) + leg.amount_minor
    assert {key: amount for key, amount in batched.items() if amount} == {
        key: amount for key, amount in sums.items() if amount
    }
