"""Random receipts: nothing wider than the printer, no token broken, every amount as the answer has it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.estimate import energy_bought_wh, purchase_of
from billing.money import parse_amount
from billing.notices.kinds import Language
from billing.supply import Supply
from billing.terms import part_lines
from tests.slip_samples import CALENDAR, NOON_MS, NOVEMBER, PART, RECEIPT, UTILITY
from vending.receipt import MonthSoFar, Receipt, receipt_to_api
from vending.slips.blocks import Amount, Digits
from vending.slips.facts import SaleState, facts_of
from vending.slips.html import render_html
from vending.slips.sale import Print, sale_slip
from vending.slips.text import COLUMNS, cells, render_text
from vending.slips.words import words_of

# Two decimals after a sign of the currency; what a token carries has five, and another sign.
MONEY = re.compile(r"(-?)(?:Rs |₹)([\d,]+\.\d{2})(?!\d)")
# Without digits, so that no name looks like an amount; of every script, width and kind.
NAMES = st.text(st.characters(exclude_categories=("Cs", "Nd")), min_size=1, max_size=70)
MINOR = st.integers(0, 10**10)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    """Draw a receipt that a sale could have: its sums agree, names and figures are of any size."""
    amount_minor, used_wh = draw(MINOR), draw(st.integers(0, 10**9))
    recovered_minor = draw(st.integers(0, amount_minor))
    before_minor = draw(st.integers(-(10**10), 10**10))
    after_minor = before_minor + amount_minor - recovered_minor
    energy_wh = energy_bought_wh(PART, used_wh=used_wh, credit_minor=after_minor)
    return replace(
        RECEIPT,
        vendor=draw(NAMES),
        operator=draw(st.none() | NAMES),
        terminal=draw(st.none() | NAMES),
        tender=draw(st.sampled_from([None, "cash", "upi", "barter"])),
        amount_minor=amount_minor,
        earlier_arrears_paid_minor=recovered_minor,
        earlier_arrears_left_minor=draw(MINOR),
        balance_before_minor=before_minor,
        balance_after_minor=after_minor,
        restores_with_minor=0 if after_minor > 0 else draw(st.integers(1, 10**10)),
        supply_after=Supply.ON if after_minor > 0 else draw(st.sampled_from(Supply)),
        supply_before=draw(st.sampled_from(Supply)),
        energy_wh=energy_wh,
        buys=purchase_of(PART, used_wh=used_wh, energy_wh=energy_wh),
        month=MonthSoFar(
            first=NOVEMBER,
            energy_wh=used_wh,
            lines=part_lines(PART, before_wh=0, energy_wh=used_wh, zone_wh=(), through_day=PART.last),
        ),
        key_change_tokens=draw(st.sampled_from([(), RECEIPT.key_change_tokens])),
    )


class Amounts(HTMLParser):
    """Collects what stands in the value cells of rows of money."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._row = self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a row of money and its value begin."""
        if tag == "div":
            self._row = (dict(attrs).get("class") or "").startswith("amount")
        self._cell = tag == "dd" and self._row

    def handle_data(self, data: str) -> None:
        """Keep a value of money."""
        if self._cell:
            self.found.append(data)
            self._cell = False


def minor_of(sign: str, digits: str) -> int:
    """Read a printed amount back."""
    return parse_amount(digits.replace(",", "")) * (-1 if sign else 1)


def minors_in(value: Any) -> set[int]:  # JSON of any shape.
    """Return every amount of an answer, in minor units."""
    if isinstance(value, dict):
        own = {each for name, each in value.items() if name.endswith("_minor")}
        return own.union(*(minors_in(each) for each in value.values()))
    return set().union(*(minors_in(each) for each in value)) if isinstance(value, list) else set()


@settings(max_examples=120, deadline=None)
@given(receipt=receipts(), language=st.sampled_from(Language), number=st.integers(1, 3))
def test_receipt_of_anything_fits_the_printer_and_says_the_answer_s_amounts(
    receipt: Receipt, language: Language, number: int
) -> None:
    """In text and page, in any language: the same amounts in the same order, all of them the answer's; tokens whole."""
    answer = receipt_to_api(receipt)
    printed = Print(number=number, first_ms=NOON_MS, at_ms=NOON_MS)
    facts, words = facts_of(answer), words_of(language)
    slip = sale_slip(facts, state=SaleState.RELEASED, printed=printed, words=words, utility=UTILITY, calendar=CALENDAR)
    text, page = render_text(slip), render_html(slip)
    assert max(cells(line) for line in text.splitlines()) <= COLUMNS
    assert language is not Language.ENGLISH or text.isascii()
    amounts = [block.amount_minor for block in slip.blocks if isinstance(block, Amount)]
    assert [minor_of(*found) for found in MONEY.findall(text)] == amounts
    parser = Amounts()
    parser.feed(page)
    shown = [MONEY.fullmatch(found) for found in parser.found]
    assert [minor_of(*found.groups()) for found in shown if found] == amounts
    assert set(amounts) <= minors_in(answer)
    for block in slip.blocks:
        if isinstance(block, Digits):
            assert "  ".join(block.groups) in text
            assert " ".join(f"<span>{group}</span>" for group in block.groups) in page


@settings(max_examples=120, deadline=None)
@given(used_wh=st.integers(0, 10**8), credit_minor=st.integers(0, 10**8))
def test_steps_and_lines_of_a_purchase_add_up_to_no_more_than_the_credit(used_wh: int, credit_minor: int) -> None:
    """What is printed as bought is all of the energy, at the steps' rates, and costs at most the credit."""
    energy_wh = energy_bought_wh(PART, used_wh=used_wh, credit_minor=credit_minor)
    buys = purchase_of(PART, used_wh=used_wh, energy_wh=energy_wh)
    assert sum(step.energy_wh for step in buys.steps) == buys.energy_wh == energy_wh
    assert buys.cost_minor <= credit_minor
    for step in buys.steps:
        rounded_minor = (2 * step.energy_wh * step.rate_milli_per_kwh + 1_000_000) // 2_000_000
        assert abs(step.amount_minor - rounded_minor) <= 1
