"""The statement: rows that add up by hand, month-to-date energy, plain words, and its printed forms."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import period_of
from billing.journals import JournalKind
from billing.money import format_minor
from billing.rating import Lines, total
from billing.running import EdgeQuality
from billing.statement import (
    STATEMENT_DAYS_MAX,
    BadPeriod,
    Brought,
    Entry,
    PeriodTooLong,
    Statement,
    StatementHead,
    StatementRow,
    format_kwh,
    line_title,
    make_statement,
    statement_days,
)
from billing.statement_html import render_html
from billing.statement_text import TEXT_COLUMNS, render_csv, render_text

HEAD = StatementHead(
    account_number="100200300",
    consumer="Gurpreet Singh",
    meter_serial="PB000123",
    currency="INR",
    time_zone="Asia/Kolkata",
)
TITLES = {"energy_1": "Energy, units 0-300", "energy_2": "Energy, units above 300", "fixed": "Fixed charge"}
MAY, JUNE, JULY = date(2026, 5, 1), date(2026, 6, 1), date(2026, 7, 1)
ONE_DAY = timedelta(days=1)
LINES = ("energy_1", "energy_2", "zone_peak", "fppca", "fixed", "meter_rent", "rebate", "duty", "cow_cess", "subsidy")


def day_entry(day: date, energy_wh: int, lines: Lines, **more: object) -> Entry:
    """Make the entry of a closed day."""
    entry = Entry(
        kind=JournalKind.DAY,
        booked_on=day + ONE_DAY,
        amount_minor=-total(lines),
        local_day=day,
        period=period_of(day),
        energy_wh=energy_wh,
        quality=EdgeQuality.READ,
        lines=lines,
    )
    return replace(entry, **more)  # type: ignore[arg-type]  # Fields of the entry, as each test names them.


def money_entry(kind: JournalKind, booked_on: date, amount_minor: int, **more: object) -> Entry:
    """Make the entry of a money event."""
    return replace(
        Entry(kind=kind, booked_on=booked_on, amount_minor=amount_minor),
        **more,  # type: ignore[arg-type]  # Fields of the entry, as each test names them.
    )


def late_entry(booked_on: date, period: date, energy_wh: int, lines: Lines) -> Entry:
    """Make the entry of energy found later."""
    return Entry(
        kind=JournalKind.LATE_USAGE,
        booked_on=booked_on,
        amount_minor=-total(lines),
        period=period,
        energy_wh=energy_wh,
        lines=lines,
        reason="readings came after the days were closed",
    )


def story() -> list[Entry]:
    """Return the entries over a month end, in the order of booking."""
    may_31, june_2 = MAY.replace(day=31), JUNE + ONE_DAY
    return [
        money_entry(JournalKind.OPENING, MAY.replace(day=30), 50_000),
        day_entry(MAY.replace(day=30), 4_000, {"energy_1": 1_540, "fixed": 500, "rebate": -15, "duty": 304}),
        money_entry(JournalKind.VEND, may_31, 20_000, vendor="Station 17", token_tail="7890"),
        day_entry(may_31, 6_500, {"energy_1": 2_000, "energy_2": 1_000, "fixed": 500, "rebate": -30, "duty": 521}),
        day_entry(JUNE, 1_250, {"energy_1": 481, "fixed": 500, "rebate": -5, "duty": 146}),
        late_entry(june_2, MAY, 250, {"energy_2": 176, "rebate": -2, "duty": 27}),
        money_entry(JournalKind.REVERSAL, june_2, -20_000, reason="wrong meter", about_on=may_31),
        money_entry(JournalKind.ADJUSTMENT, june_2, 1_500, reason="goodwill"),
        day_entry(june_2, 2_000, {"energy_1": 770, "fixed": 500}, posted=False, quality=EdgeQuality.UNREAD),
    ]


def statement_of(
    entries: Sequence[Entry], first: date, last: date, *, brought: Brought | None = None, head: StatementHead = HEAD
) -> Statement:
    """Make a statement with the tests' head and titles."""
    return make_statement(head, entries, first=first, last=last, brought=brought or Brought(), line_titles=TITLES)


def test_statement_over_a_month_end_adds_up_by_hand() -> None:
    """Each figure below was added up on paper: opening - charged + credited = closing, and each column its total."""
    statement = statement_of(story(), MAY.replace(day=30), JUNE + ONE_DAY)
    assert statement.opening == Brought()
    assert [row.balance_minor for row in statement.rows] == [
        50_000, 47_671, 67_671, 63_680, 62_558, 62_357, 42_357, 43_857, 42_587,
    ]  # fmt: skip
    totals = statement.totals
    assert (totals.energy_wh, totals.charge_minor, totals.credit_minor) == (14_000, 8_913, 51_500)
    assert totals.lines == {
        "energy_1": 4_791, "energy_2": 1_176, "fixed": 2_000, "rebate": -52, "duty": 998,
    }  # fmt: skip
    assert statement.closing_minor == 42_587 == 0 - 8_913 + 51_500


def test_rows_stand_by_date_with_the_use_of_the_day_last() -> None:
    """Payments of a date come in the order of booking, before what the day's use cost."""
    statement = statement_of(list(reversed(story())), MAY.replace(day=30), JUNE + ONE_DAY)
    assert [row.day for row in statement.rows] == sorted(row.day for row in statement.rows)
    for day in {row.day for row in statement.rows}:
        kinds = [row.kind for row in statement.rows if row.day == day]
        assert kinds.count(JournalKind.DAY) == 1
        assert kinds[-1] is JournalKind.DAY


def test_month_to_date_energy_begins_anew_with_each_month() -> None:
    """The running energy is that of the row's month; energy of an earlier month shows that month instead."""
    statement = statement_of(story(), MAY.replace(day=30), JUNE + ONE_DAY)
    use = [(row.month_wh, row.month) for row in statement.rows if row.energy_wh is not None]
    assert use == [(4_000, None), (10_500, None), (1_250, None), (None, MAY), (3_250, None)]
    (late,) = [row for row in statement.rows if row.kind is JournalKind.LATE_USAGE]
    assert late.text == "Late usage of May 2026: readings came after the days were closed"


def test_late_usage_of_the_running_month_counts_in_it() -> None:
    """Energy found later for the same month raises its month-to-date figure."""
    entries = [day_entry(JUNE, 1_000, {"fixed": 1}), late_entry(JUNE + ONE_DAY, JUNE, 500, {"energy_1": 192})]
    assert [row.month_wh for row in statement_of(entries, JUNE, JULY).rows] == [1_000, 1_500]


def test_entries_before_the_first_day_become_the_opening_balance() -> None:
    """A statement that begins in mid month brings balance and the month's energy forward."""
    statement = statement_of(story(), JUNE + ONE_DAY, JUNE + ONE_DAY, brought=Brought(balance_minor=7, month_wh=0))
    assert statement.opening == Brought(balance_minor=62_565, month_wh=1_250)
    assert statement.rows[-1].month_wh == 3_250
    assert statement.closing_minor == 42_594


def test_statement_without_entries_closes_as_it_opens() -> None:
    """An account that nothing happened to shows its balance and no rows, in every form."""
    statement = statement_of([], JUNE, JUNE, brought=Brought(balance_minor=-250, month_wh=12))
    assert (statement.rows, statement.columns, statement.closing_minor) == ((), (), -250)
    assert "-2.50" in render_text(statement)
    assert "Closing balance" in render_html(statement)
    assert render_csv(statement).count("\r\n") == 4


def test_late_usage_does_not_let_lines_differ_from_its_amount() -> None:
    """An entry whose money is not the sum of its lines is our bug, and so is a money event with lines."""
    with pytest.raises(AssertionError, match="expected -100, got -99"):
        Entry(kind=JournalKind.LATE_USAGE, booked_on=JUNE, amount_minor=-99, period=MAY, lines={"fixed": 100})
    with pytest.raises(AssertionError, match="lines only for usage"):
        Entry(kind=JournalKind.VEND, booked_on=JUNE, amount_minor=100, lines={})


def test_every_money_event_is_said_in_plain_words() -> None:
    """Each kind has a sentence of its own with its reason; no code of ours shows."""
    usage = {JournalKind.DAY, JournalKind.LATE_USAGE, JournalKind.OVERHAUL, JournalKind.USAGE_BATCH}
    # No account's: a vendor's own money.
    usage |= {JournalKind.VENDOR_DEPOSIT, JournalKind.COUPON_SALE}
    said = set()
    for kind in [kind for kind in JournalKind if kind not in usage]:
        for amount_minor in (-100, 100):
            entry = money_entry(kind, JUNE, amount_minor, reason="because", noted_minor=500)
            (row,) = statement_of([entry], JUNE, JUNE).rows
            assert row.text.endswith(": because")
            assert "_" not in row.text
            said.add(row.text)
    assert len(said) >= len(JournalKind) - len(usage)
    overhaul = Entry(kind=JournalKind.OVERHAUL, booked_on=JULY, amount_minor=5, period=JUNE, lines={"fixed": -5})
    (row,) = statement_of([overhaul], JULY, JULY).rows
    assert (row.text, row.charge_minor) == ("Correction of June 2026", -5)


def test_recharge_shows_vendor_and_the_end_of_its_token_only() -> None:
    """A recharge names where it was bought and the last four digits."""
    recharge = money_entry(JournalKind.VEND, JUNE, 50_000, vendor="Station 17", token_tail="7890")
    (row,) = statement_of([recharge], JUNE, JUNE).rows
    assert row.text == "Recharge at Station 17, token ending 7890"


@pytest.mark.parametrize(
    ("quality", "posted", "text"),
    [
        (EdgeQuality.READ, True, "Use of the day"),
        (EdgeQuality.ESTIMATED, True, "Use of the day, day's end estimated"),
        (EdgeQuality.UNREAD, True, "Use of the day, meter not heard at day's end"),
        (EdgeQuality.READ, False, "Use of the day, not yet posted"),
        (EdgeQuality.UNREAD, False, "Use of the day so far, not yet posted"),
    ],
)
def test_use_of_a_day_says_how_its_end_is_known(quality: EdgeQuality, posted: bool, text: str) -> None:
    """Estimated and open days are marked as such."""
    (row,) = statement_of([day_entry(JUNE, 1, {"fixed": 1}, quality=quality, posted=posted)], JUNE, JUNE).rows
    assert row.text == text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("energy_1", "Energy, units 0-300"),
        ("energy_3", "Energy, step 3"),
        ("zone_night_off", "Time of day, night off"),
        ("fixed", "Fixed charge"),
        ("fppca", "Fuel and power adjustment"),
        ("cow_cess", "Cow cess"),
    ],
)
def test_bill_lines_have_titles_in_plain_english(name: str, title: str) -> None:
    """The caller's title, else one of the product's, else the name in words."""
    assert line_title(name, TITLES) == title


def test_columns_stand_in_the_order_of_a_bill() -> None:
    """Energy by step, then time of day, charges, rebate, duty, what is not known, subsidy among the known."""
    lines = dict.fromkeys(("subsidy", "duty", "cow_cess", "zone_b", "zone_a", "fixed", "energy_10", "energy_2"), 1)
    statement = statement_of([day_entry(JUNE, 1, lines)], JUNE, JUNE)
    assert [name for name, _ in statement.columns] == [
        "energy_2", "energy_10", "zone_a", "zone_b", "fixed", "duty", "subsidy", "cow_cess",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("energy_wh", "printed"),
    [(0, "0.000"), (1, "0.001"), (-1, "-0.001"), (999, "0.999"), (1_000, "1.000"), (-12_345_678, "-12345.678")],
)
def test_energy_prints_exactly(energy_wh: int, printed: str) -> None:
    """Three decimals from integer Wh, sign in front."""
    assert format_kwh(energy_wh) == printed


def test_days_asked_for_default_to_the_month_to_date() -> None:
    """Nothing given is the month so far; a last day alone is its month."""
    today = date(2026, 6, 20)
    assert statement_days(None, None, today=today) == (JUNE, None)
    assert statement_days(None, date(2026, 5, 7), today=today) == (MAY, date(2026, 5, 7))
    assert statement_days(date(2026, 6, 3), None, today=today) == (date(2026, 6, 3), None)
    longest = date(2026, 6, 3), date(2026, 6, 3) + (STATEMENT_DAYS_MAX - 1) * ONE_DAY
    assert statement_days(*longest, today=today) == longest


def test_days_the_wrong_way_round_or_too_many_are_refused() -> None:
    """One clear refusal each, with what was expected."""
    with pytest.raises(BadPeriod, match="got 2026-06-03 and 2026-06-02"):
        statement_days(date(2026, 6, 3), date(2026, 6, 2), today=JUNE)
    for first, last in ((date(1, 1, 1), date(1, 1, 2)), (date(9999, 1, 1), date(9999, 12, 31)), (JULY, None)):
        with pytest.raises(BadPeriod):
            statement_days(first, last, today=JUNE)
    with pytest.raises(PeriodTooLong, match="at most 400 days, got 401"):
        statement_days(JUNE, JUNE + STATEMENT_DAYS_MAX * ONE_DAY, today=JUNE)
    with pytest.raises(PeriodTooLong):
        statement_days(date(2000, 1, 1), None, today=JUNE)
    with pytest.raises(PeriodTooLong):
        statement_of([], date.min, date.max)


def test_csv_reads_back_and_every_column_adds_up() -> None:
    """A reader of RFC 4180 finds rows of one width whose columns sum to the row of totals."""
    statement = statement_of(story(), MAY.replace(day=30), JUNE + ONE_DAY)
    printed = render_csv(statement)
    assert all(line.endswith("\r\n") for line in printed.splitlines(keepends=True))
    titles, opening, *rows, totals, closing = csv.reader(io.StringIO(printed, newline=""), strict=True)
    assert {len(row) for row in (titles, opening, *rows, totals, closing)} == {len(titles)}
    assert titles[5] == "Energy, units 0-300"
    for number, title in enumerate(titles):
        if title in ("Date", "What", "Month to date kWh", "Of month", "Balance", "Posted"):
            continue
        summed = sum(cell_units(row[number]) for row in rows)
        assert summed == cell_units(totals[number]), title
    balance = titles.index("Balance")
    charged, credited = cell_units(totals[titles.index("Charged")]), cell_units(totals[titles.index("Credited")])
    assert cell_units(opening[balance]) - charged + credited == cell_units(closing[balance])


def cell_units(cell: str) -> int:
    """Read a printed number in units of its last decimal; an empty cell is 0."""
    return int(cell.replace(".", "")) if cell else 0


def test_csv_quotes_what_a_vendor_is_called() -> None:
    """Commas and quotes in a name stay inside their cell; a formula never begins one."""
    recharge = money_entry(JournalKind.VEND, JUNE, 100, vendor='=A1, "Shop"\r\n2', token_tail="0001")
    printed = render_csv(statement_of([recharge], JUNE, JUNE))
    assert '"Recharge at =A1, ""Shop"" 2, token ending 0001"' in printed


def test_text_fits_its_columns_and_aligns_numbers() -> None:
    """No line is longer than 100 characters, with every bill line there is and long names."""
    lines = {name: -12_345_678 if name == "rebate" else 12_345_678 for name in LINES}
    head = replace(HEAD, consumer="A very long name " * 12)
    entries = [
        day_entry(JUNE, 987_654_321, lines, quality=EdgeQuality.UNREAD),
        money_entry(JournalKind.VEND, JUNE, 999_999_999, vendor="Shop" * 30, token_tail="1234"),
    ]
    printed = render_text(statement_of(entries, JUNE, JUNE, head=head))
    assert max(map(len, printed.splitlines())) <= TEXT_COLUMNS
    assert not any(line.endswith(" ") for line in printed.splitlines())
    rules = [line for line in printed.splitlines() if set(line) == {"-", " "}]
    assert all(len(rule) <= TEXT_COLUMNS for rule in rules)


def test_text_shows_each_row_once_and_its_lines_under_the_same_number() -> None:
    """A reader finds the lines of a day by its number, and the sum in words."""
    statement = statement_of(story(), MAY.replace(day=30), JUNE + ONE_DAY)
    printed = render_text(statement)
    for number, row in enumerate(statement.rows, start=1):
        found = re.findall(rf"^ *{number}  {row.day}.*$", printed, re.MULTILINE)
        assert len(found) == (1 if row.charge_minor is None else 2), number
        assert format_minor(row.balance_minor) in found[0]
    assert "Opening balance 0.00 - charged 89.13 + credited 515.00 = closing balance 425.87" in printed


def test_html_escapes_everything_and_asks_for_nothing() -> None:
    """A page with names in it is text only: no script runs, nothing is loaded from elsewhere."""
    nasty = "<script>alert('1')</script>&\x1b[31m"
    recharge = money_entry(JournalKind.VEND, JUNE, 100, vendor=nasty, token_tail="<b>")
    page = render_html(statement_of([recharge], JUNE, JUNE, head=replace(HEAD, consumer=nasty, meter_serial=nasty)))
    for banned in ("<script", "<b>", "http:", "https:", "src=", "href=", "url("):
        assert banned not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page


class _Table(HTMLParser):
    """Reads rows of cells, and which of them are headers with a scope."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scopes: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
            self.scopes += [value or "" for name, value in attrs if name == "scope"]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def test_html_table_has_headers_and_the_figures_of_the_csv() -> None:
    """Every row is as wide as the head, headers have a scope, and both forms print the same figures."""
    statement = statement_of(story(), MAY.replace(day=30), JUNE + ONE_DAY)
    page = render_html(statement)
    table = _Table()
    table.feed(page)
    head, *rows = table.rows
    assert {len(row) for row in rows} == {len(head)}
    assert table.scopes == ["col"] * len(head) + ["row"] * len(rows)
    assert "<caption>" in page
    assert 'lang="en"' in page
    _, *printed = csv.reader(io.StringIO(render_csv(statement), newline=""))
    without_marks = [[cell for n, cell in enumerate(row) if n not in (4, len(row) - 1)] for row in printed]
    assert rows == without_marks


ENERGIES = st.integers(-5_000, 50_000)
AMOUNTS = st.integers(-100_000, 100_000)
DAYS = st.integers(0, 70).map(lambda number: MAY + number * ONE_DAY)
LINE_SETS = st.dictionaries(st.sampled_from(LINES), AMOUNTS, max_size=6)


@st.composite
def any_entries(draw: st.DrawFn) -> list[Entry]:
    """Draw closed days, late usage and payments in any order."""
    days = draw(st.lists(DAYS, unique=True, max_size=12))
    found = [day_entry(day, draw(ENERGIES), draw(LINE_SETS)) for day in days]
    for booked_on in draw(st.lists(DAYS, max_size=4)):
        # Energy is found later for a month that has begun.
        period = draw(st.sampled_from([month for month in (MAY, JUNE, JULY) if month <= booked_on]))
        found.append(late_entry(booked_on, period, draw(ENERGIES), draw(LINE_SETS)))
    for booked_on in draw(st.lists(DAYS, max_size=6)):
        found.append(
            money_entry(draw(st.sampled_from([JournalKind.VEND, JournalKind.ADJUSTMENT])), booked_on, draw(AMOUNTS))
        )
    return draw(st.permutations(found))


@settings(deadline=None)
@given(any_entries(), DAYS, DAYS)
def test_any_statement_adds_up_and_two_halves_are_the_whole(entries: list[Entry], day: date, other: date) -> None:
    """Each column sums to its total; a period cut in two closes and opens with the same balance and loses no row."""
    first, last = min(day, other), max(day, other)
    whole = statement_of(entries, first, last)
    assert_columns_sum(whole.rows, whole)
    assert whole.closing_minor == sum(entry.amount_minor for entry in entries if entry.day <= last)
    middle = first + (last - first) // 2
    left, right = (
        statement_of(entries, first, middle),
        statement_of(entries, middle + ONE_DAY, max(last, middle + ONE_DAY)),
    )
    assert left.closing_minor == right.opening.balance_minor
    if middle < last:
        assert [row.balance_minor for row in (*left.rows, *right.rows)] == [row.balance_minor for row in whole.rows]
        if period_of(middle + ONE_DAY) == period_of(first):
            assert (*left.rows, *right.rows) == whole.rows


def assert_columns_sum(rows: Sequence[StatementRow], statement: Statement) -> None:
    """Add up every column of a statement by hand."""
    totals = statement.totals
    assert sum(row.energy_wh or 0 for row in rows) == totals.energy_wh
    assert sum(row.charge_minor or 0 for row in rows) == totals.charge_minor
    assert sum(row.credit_minor or 0 for row in rows) == totals.credit_minor
    for name, _ in statement.columns:
        assert sum(row.lines.get(name, 0) for row in rows) == totals.lines[name]
    assert statement.opening.balance_minor - totals.charge_minor + totals.credit_minor == statement.closing_minor
