"""How assignments and dates inside a tariff cut an account's months into bill parts."""

from __future__ import annotations

from datetime import date

from billing.tariff import Tariff
from billing.tariff_document import parse_tariff
from billing.terms import Assignment, BillPart, Terms, one_assignment, part_lines

BAND = """
[[band]]
to_load_w = 2_000
fixed_milli_per_kw_month = 3_000_000
energy = [{ to_kwh = 300, rate_milli_per_kwh = 100_000 }, { rate_milli_per_kwh = 200_000 }]
[[band]]
fixed_milli_per_kw_month = 6_000_000
energy = [{ rate_milli_per_kwh = 300_000 }]
"""
APRIL, MAY = date(2026, 4, 1), date(2026, 5, 1)


def tariff(tables: str = "") -> Tariff:
    return parse_tariff(f'id = "t"\neffective_from = 2026-01-01\n{tables}\n{BAND}')


WHOLE = tariff()
PRO_RATA = tariff('[slabs]\npart_months = "pro_rata"')


def changing(*assigned: tuple[date, Tariff, int]) -> Terms:
    """Return terms of assignments by (day, tariff, load)."""
    assignments = tuple(Assignment(from_day=day, tariff=held, load_w=load_w) for day, held, load_w in assigned)
    return Terms(opened_on=assigned[0][0], assignments=assignments)


def shape(part: BillPart) -> tuple[date, date, int, bool]:
    return part.first, part.last, part.slab_days, part.fresh


def test_part_of_a_month_without_a_change_is_the_whole_month() -> None:
    """From the first to the last, with all of the month's limits."""
    terms = one_assignment(WHOLE, load_w=2_000, opened_on=date(2026, 1, 5))
    assert shape(terms.part_at(date(2026, 4, 17))) == (APRIL, date(2026, 4, 30), 30, True)
    assert terms.next_part(terms.part_at(APRIL)).first == MAY
    assert terms.part_at(date(2028, 2, 10)).period_days == 29


def test_part_of_the_opening_month_begins_on_the_day_of_the_opening() -> None:
    """It has the whole month's limits, or under pro rata those of its 14 days; a day before belongs to it too."""
    opened_on = date(2026, 4, 17)
    whole, shared = (one_assignment(held, load_w=2_000, opened_on=opened_on) for held in (WHOLE, PRO_RATA))
    assert shape(whole.part_at(opened_on)) == (opened_on, date(2026, 4, 30), 30, True)
    assert shape(shared.part_at(opened_on)) == (opened_on, date(2026, 4, 30), 14, True)
    assert whole.part_at(date(2026, 4, 1)).first == opened_on
    assert whole.part_at(date(2026, 4, 1)).period == APRIL


def test_part_after_an_assignment_goes_on_where_the_month_stood() -> None:
    """With whole months the second part keeps the limits and is not fresh; it has the new load's band."""
    terms = changing((APRIL, WHOLE, 2_000), (date(2026, 4, 11), WHOLE, 2_001))
    first, second = terms.part_at(APRIL), terms.part_at(date(2026, 4, 30))
    assert shape(first) == (APRIL, date(2026, 4, 10), 30, True)
    assert shape(second) == (date(2026, 4, 11), date(2026, 4, 30), 30, False)
    assert (first.rates.fixed_micro, second.rates.fixed_micro) == (6_000_000_000, 12_006_000_000)
    assert terms.fresh_part_at(date(2026, 4, 30)).first == APRIL
    assert terms.fresh_part_at(date(2026, 5, 3)).first == MAY


def test_part_after_an_assignment_under_pro_rata_begins_anew_with_its_own_days() -> None:
    """10 and 20 of April's 30 days share the limits; each begins at 0."""
    terms = changing((APRIL, PRO_RATA, 2_000), (date(2026, 4, 11), PRO_RATA, 1_000))
    assert shape(terms.part_at(APRIL)) == (APRIL, date(2026, 4, 10), 10, True)
    assert shape(terms.part_at(date(2026, 4, 30))) == (date(2026, 4, 11), date(2026, 4, 30), 20, True)
    assert shape(terms.part_at(MAY)) == (MAY, date(2026, 5, 31), 31, True)


def test_part_under_pro_rata_cut_by_a_date_of_the_tariff_shares_the_days_of_its_assignment() -> None:
    """A share that begins on the 21st cuts the stretch of 20 days; its second part goes on in the same limits."""
    share = '[[share]]\nname = "cess"\nkind = "levy"\nof = ["energy"]\nbasis_points = 100\nsince = 2026-04-21\n'
    held = tariff('[slabs]\npart_months = "pro_rata"\n' + share)
    terms = changing((APRIL, PRO_RATA, 2_000), (date(2026, 4, 11), held, 2_000))
    assert shape(terms.part_at(date(2026, 4, 20))) == (date(2026, 4, 11), date(2026, 4, 20), 20, True)
    assert shape(terms.part_at(date(2026, 4, 21))) == (date(2026, 4, 21), date(2026, 4, 30), 20, False)
    assert terms.fresh_part_at(date(2026, 4, 21)).first == date(2026, 4, 11)


def test_parts_are_cut_where_a_share_or_adjustment_begins_and_after_it_ends() -> None:
    """`until` is its last day, so that the next one begins a part; the first of a month needs no cut of its own."""
    held = tariff(
        "[[fppca]]\nrate_milli_per_kwh = 10_000\nsince = 2026-04-10\nuntil = 2026-04-19\n"
        '[[share]]\nname = "cess"\nkind = "levy"\nof = ["energy"]\nbasis_points = 100\nsince = 2026-05-01\n'
    )
    terms = one_assignment(held, load_w=2_000, opened_on=APRIL)
    part = terms.part_at(APRIL)
    parts = [part, *(part := terms.next_part(part) for _ in range(3))]
    assert [each.first for each in parts] == [APRIL, date(2026, 4, 10), date(2026, 4, 20), MAY]
    assert [each.rates.fppca_milli for each in parts] == [None, 10_000, None, None]
    assert [len(each.rates.shares) for each in parts] == [0, 0, 0, 1]
    assert [each.fresh for each in parts] == [True, False, False, True]


def test_assignment_on_the_first_of_a_month_cuts_no_part() -> None:
    """The month begins there anyway, and begins fresh."""
    terms = changing((APRIL, WHOLE, 2_000), (MAY, WHOLE, 1_000))
    assert shape(terms.part_at(date(2026, 5, 9))) == (MAY, date(2026, 5, 31), 31, True)
    assert terms.part_at(date(2026, 4, 9)).rates.load_w == 2_000
    assert terms.part_at(date(2026, 5, 9)).rates.load_w == 1_000


def test_assignment_holds_from_its_day_until_the_next() -> None:
    """The day itself already has the new one; before the first there is the first."""
    terms = changing((APRIL, WHOLE, 2_000), (date(2026, 4, 11), WHOLE, 1_000))
    days = [date(2026, 3, 1), date(2026, 4, 10), date(2026, 4, 11), date(2027, 1, 1)]
    assert [terms.on(day).load_w for day in days] == [2_000, 2_000, 1_000, 1_000]
    assert terms.tariff is WHOLE


def test_part_lines_accrue_the_days_of_the_part_alone() -> None:
    """Rs 60 a month of 30 days: none before it begins, 2 on its first day, 40 for all 20, also later."""
    terms = changing((APRIL, WHOLE, 1_000), (date(2026, 4, 11), WHOLE, 2_000))
    part = terms.part_at(date(2026, 4, 11))
    fixed = [
        part_lines(part, before_wh=0, energy_wh=0, zone_wh=(), through_day=day)["fixed"]
        for day in (date(2026, 4, 10), date(2026, 4, 11), date(2026, 4, 30), date(2026, 6, 1))
    ]
    assert fixed == [0, 200, 4_000, 4_000]


def test_part_lines_of_parts_that_go_on_sum_to_the_slabs_of_the_month() -> None:
    """200 kWh and 200 more: the second part has 100 left at Re 1 and 100 at Rs 2."""
    terms = changing((APRIL, WHOLE, 1_000), (date(2026, 4, 11), WHOLE, 2_000))
    part = terms.part_at(date(2026, 4, 11))
    lines = part_lines(part, before_wh=200_000, energy_wh=200_000, zone_wh=(), through_day=part.last)
    assert (lines["energy_1"], lines["energy_2"]) == (10_000, 20_000)
