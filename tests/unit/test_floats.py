"""A vendor's float on paper: totals, ends of days, statements as CSV."""

from __future__ import annotations

import csv
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import parse_amount
from vending.floats import (
    EntryKind,
    FloatStatement,
    Moved,
    StatementEntry,
    csv_head,
    csv_lines,
    csv_tail,
    day_of,
    totals_of,
)

KOLKATA = ZoneInfo("Asia/Kolkata")
DAY = date(2026, 11, 21)
SIGN = {EntryKind.VEND: -1, EntryKind.REVERSAL: 1, EntryKind.DEPOSIT: 1, EntryKind.COUPONS: -1}

moved = st.builds(
    lambda terminal, kind, tender, amount_minor: Moved(
        terminal=terminal, kind=kind, tender=tender, amount_minor=SIGN[kind] * amount_minor
    ),
    st.sampled_from(["", "T1", "T2"]),
    st.sampled_from(list(EntryKind)),
    st.sampled_from(["cash", "upi", "cheque", "other"]),
    st.integers(1, 10**9),
)


@given(st.lists(moved))
def test_totals_of_entries_equal_those_of_their_sums(entries: list[Moved]) -> None:
    """Entries one by one, or summed up by terminal, kind and tender as the database does, come to the same totals."""
    summed: dict[tuple[str, EntryKind, str], tuple[int, int]] = {}
    for each in entries:
        key = each.terminal, each.kind, each.tender
        count, amount_minor = summed.get(key, (0, 0))
        summed[key] = count + 1, amount_minor + each.amount_minor
    together = [
        Moved(terminal=terminal, kind=kind, tender=tender, count=count, amount_minor=amount_minor)
        for (terminal, kind, tender), (count, amount_minor) in summed.items()
    ]
    assert totals_of(together) == totals_of(entries)
    sold = sum(-each.amount_minor for each in entries if each.kind in (EntryKind.VEND, EntryKind.REVERSAL))
    assert totals_of(entries).net_minor == sold


@given(st.lists(moved), st.integers(-(10**9), 10**9))
def test_end_of_day_adds_up_over_terminals(entries: list[Moved], opening_minor: int) -> None:
    """The float at the end follows from that at the start; the terminals' totals are the day's."""
    closing_minor = opening_minor + sum(each.amount_minor for each in entries)
    day = day_of(DAY, entries, is_over=True, opening_minor=opening_minor, closing_minor=closing_minor)
    assert sum(totals.sold_minor for _, totals in day.terminals) == day.totals.sold_minor
    assert day.totals.to_bank_minor == sum(
        -each.amount_minor
        for each in entries
        if each.kind in (EntryKind.VEND, EntryKind.REVERSAL) and each.tender in ("cash", "cheque")
    )
    with pytest.raises(AssertionError):
        day_of(DAY, entries, is_over=True, opening_minor=opening_minor, closing_minor=closing_minor + 1)


def entry(n: int, amount_minor: int, balance_minor: int, reference: str = "m-1") -> StatementEntry:
    """Return an entry at a noon."""
    return StatementEntry(
        n=n,
        booked_at=datetime(2026, 11, 21, 6, 30, tzinfo=UTC) + timedelta(minutes=n),
        kind=EntryKind.VEND,
        amount_minor=amount_minor,
        balance_minor=balance_minor,
        reference=reference,
    )


def test_statement_that_does_not_add_up_is_never_made() -> None:
    """Each entry's balance follows from the one before, and the last one is the closing."""
    entries = [entry(1, -500, -500), entry(2, 200, -300)]
    days = {"vendor": "S", "first": DAY, "last": DAY}
    FloatStatement(**days, opening_minor=0, entries=entries, closing_minor=-300)
    for wrong in (
        {"opening_minor": 1, "entries": entries, "closing_minor": -300},
        {"opening_minor": 0, "entries": entries[::-1], "closing_minor": -300},
        {"opening_minor": 0, "entries": entries, "closing_minor": -299},
    ):
        with pytest.raises(AssertionError):
            FloatStatement(**days, **wrong)


def test_csv_holds_every_amount_and_no_formula() -> None:
    """Amounts read back to the paisa; words that a spreadsheet would run are quoted; instants are local."""
    entries = [entry(1, -50_001, -50_001, "=HYPERLINK(1)"), entry(2, 100_000, 49_999, "plain, with a comma")]
    text = csv_head("-Station", DAY, DAY, 0) + csv_lines(entries, KOLKATA) + csv_tail(DAY, 49_999)
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["kind"] for row in rows] == ["opening", "vend", "vend", "closing"]
    assert [parse_amount(row["balance"].lstrip("-")) for row in rows] == [0, 50_001, 49_999, 49_999]
    assert [row["reference"] for row in rows] == ["'-Station", "'=HYPERLINK(1)", "plain, with a comma", ""]
    assert (rows[1]["amount"], rows[1]["booked_at"]) == ("-500.01", "2026-11-21T12:01:00.000+05:30")
