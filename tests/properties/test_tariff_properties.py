"""Any tariff document is read, cut into bill parts, clocked and rated as its words say."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import from_ms
from billing.rating import Lines, added, charge_to_date, difference, total
from billing.tariff_document import parse_tariff
from billing.zones import zone_clock
from tests.properties import oracle
from tests.properties.books import BOUNDED, CALENDARS, ONE_DAY, ZONES, as_bill, histories, opening_days
from tests.properties.tariff_strategies import AREAS, DAYS, loads_w, quantities, tariff_texts

MANY = settings(BOUNDED, max_examples=4 * BOUNDED.max_examples)
CLOCK_CHANGES = st.sampled_from([date(2026, 3, 29), date(2026, 10, 25), date(2028, 2, 29), date(2026, 12, 31)])


@MANY
@given(text=tariff_texts(), data=st.data())
def test_charge_to_date_of_any_document_and_quantities_equals_the_oracle(text: str, data: st.DataObject) -> None:
    """Every line of a part so far is the bill's, for any load, area, day, energy, zones, demand and number of days."""
    held = oracle.Assigned(
        from_day=date(2020, 1, 1),
        text=text,
        load_w=data.draw(loads_w),
        area=data.draw(st.sampled_from(AREAS)),
        meter_rent=data.draw(st.booleans()),
    )
    day = data.draw(DAYS)
    rates = parse_tariff(text).rates(load_w=held.load_w, area=held.area, meter_rent=held.meter_rent, day=day)
    for _ in range(3):
        so_far = data.draw(quantities(rates))
        used = oracle.Used(
            before_wh=so_far.before_wh,
            energy_wh=so_far.energy_wh,
            zone_wh=dict(zip(rates.zone_names, so_far.zone_wh, strict=True)),
            days=so_far.days,
            month_days=so_far.period_days,
            limits_share=Fraction(so_far.slab_days, so_far.period_days),
            demand_w=so_far.demand_w,
        )
        lines = charge_to_date(rates, so_far)
        assert as_bill(0, lines).lines == oracle.rate(held, day, used)


@BOUNDED
@given(opened_on=opening_days, data=st.data())
def test_parts_of_any_history_are_the_runs_of_days_in_which_nothing_changes(
    opened_on: date, data: st.DataObject
) -> None:
    """Bill parts follow each other without gap, each begins where the oracle's does, and holds its own days."""
    terms, assigned = data.draw(histories(opened_on))
    last_day = opened_on + timedelta(days=80)
    opened = (from_ms(CALENDARS["UTC"].midnight_ms(opened_on)), 0)
    wanted = list(oracle.bill(opened, [], assigned=assigned, zone_name="UTC", accrued_to=last_day))
    part = terms.part_at(opened_on)
    assert part.fresh
    found = [part.first]
    while part.end <= last_day:
        for day in (part.first, part.last):
            held = terms.part_at(day)
            assert (held.first, held.end, held.tariff, held.rates) == (part.first, part.end, part.tariff, part.rates)
            fresh = terms.fresh_part_at(day)
            assert fresh.fresh
            assert max(part.period, opened_on) <= fresh.first <= part.first
        part = terms.next_part(part)
        found.append(part.first)
    assert found == wanted


@MANY
@given(text=tariff_texts(zoned=True), zone=st.sampled_from(ZONES), day=st.one_of(CLOCK_CHANGES, DAYS))
def test_zone_clock_on_any_day_shows_the_zones_of_the_document(text: str, zone: str, day: date) -> None:
    """Each zone of a day begins where the oracle's clock says, also where clocks skip or repeat an hour."""
    zones = parse_tariff(text).zones
    assert zones is not None
    calendar = CALENDARS[zone]
    clock = zone_clock(zones, calendar)
    wanted = oracle.day_zones(text, zone, day)
    end_ms = calendar.midnight_ms(day + ONE_DAY)
    start_ms = calendar.midnight_ms(day)
    edges_ms = clock.edges_between(start_ms, end_ms)
    assert edges_ms == sorted(set(edges_ms))
    found: list[tuple[int, str]] = []
    for at_ms in (start_ms, *edges_ms):
        number, until_ms = clock.zone_at(at_ms)
        assert clock.zone_at(until_ms - 1) == (number, until_ms)
        # A zone that clocks skip may leave its two neighbours the same one.
        if not found or found[-1][1] != zones.names[number]:
            found.append((at_ms, zones.names[number]))
    shown = [(from_ms(at_ms), name) for at_ms, name in found]
    first_of_each = [edge for number, edge in enumerate(wanted) if number == 0 or wanted[number - 1][1] != edge[1]]
    assert shown == first_of_each


lines_of_a_bill = st.dictionaries(st.sampled_from(["energy_1", "energy_2", "fixed", "rebate", "duty"]), st.integers())


@BOUNDED
@given(charged=lines_of_a_bill, to_date=lines_of_a_bill)
def test_difference_added_to_what_was_charged_gives_the_lines_to_date(charged: Lines, to_date: Lines) -> None:
    """Posting the difference brings every line to date and leaves no empty line behind."""
    change = difference(to_date, charged)
    assert all(change.values())
    booked = added(charged, change)
    assert difference(booked, to_date) == {}
    assert total(booked) == total(to_date)
