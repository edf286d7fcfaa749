"""What slips say: every kind in every language, what is shown when, and nothing that a printer cannot print."""

from __future__ import annotations

from dataclasses import replace
from string import Formatter

import pytest

from billing.notices.kinds import Language
from billing.supply import Supply
from tests.slip_samples import (
    BATCH,
    CALENDAR,
    GOLDEN,
    KEY_CHANGE,
    MINUTE_MS,
    NOON_MS,
    ORIGINAL,
    RECEIPT,
    UTILITY,
    slips,
)
from vending.receipt import receipt_to_api
from vending.slips.blocks import Amount, Code, Digits, Fact, Notice, Sentence, Slip, Utility
from vending.slips.facts import Answer, SaleState, facts_of
from vending.slips.html import render_html
from vending.slips.sale import Print, sale_slip, token_code
from vending.slips.text import COLUMNS, cells, qr_matrix, render_text
from vending.slips.words import format_rate, words_of

KINDS = ("credit", "free_issue", "reversed", "held", "key_change", "engineering", "fault_report", "coupon", "batch")
ANSWER = receipt_to_api(RECEIPT)


def slip_of(
    answer: Answer = ANSWER,
    *,
    state: SaleState = SaleState.RELEASED,
    printed: Print = ORIGINAL,
    language: Language = Language.ENGLISH,
    utility: Utility = UTILITY,
) -> Slip:
    """Return the slip of a stored answer."""
    words = words_of(language)
    return sale_slip(facts_of(answer), state=state, printed=printed, words=words, utility=utility, calendar=CALENDAR)


def labels_of(slip: Slip) -> list[str]:
    """Return the labels of a slip's amounts."""
    return [block.label for block in slip.blocks if isinstance(block, Amount)]


@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("kind", KINDS)
def test_slip_of_each_kind_is_printed_as_it_was_read_and_kept(kind: str, language: Language) -> None:
    """The text of each kind in each language is its golden file, in which no line is wider than the printer."""
    text = render_text(slips(language)[kind], with_code=kind == "coupon")
    assert text == (GOLDEN / f"{kind}-{language.value}.txt").read_text()
    assert max(cells(line) for line in text.splitlines()) <= COLUMNS


def test_words_of_every_language_have_the_same_names_and_places() -> None:
    """Nothing is said in one language only, and each sentence has the same figures in it."""
    english = words_of(Language.ENGLISH)
    for language in Language:
        words = words_of(language)
        for group in ("titles", "says", "lines", "values"):
            texts, originals = getattr(words, group), getattr(english, group)
            assert set(texts) == set(originals), (language, group)
            for name, text in texts.items():
                assert places(text) == places(originals[name]), (language, group, name)


def places(text: str) -> set[str]:
    """Return the names in braces of a text."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_key_change_stands_before_the_token_with_its_tokens_in_order() -> None:
    """Who reads from the top enters older tokens, then the set, then the credit."""
    blocks = slip_of().blocks
    assert isinstance(blocks[0], Notice)
    assert "BEFORE" in blocks[0].text
    digits = [block for block in blocks if isinstance(block, Digits)]
    assert ["".join(each.groups) for each in digits] == [*RECEIPT.key_change_tokens, RECEIPT.token.digits]


def test_key_change_of_unknown_digits_sends_to_the_other_slip() -> None:
    """An answer of before the set was part of it still says that a set comes first."""
    answer = {name: value for name, value in ANSWER.items() if name != "key_change_tokens"}
    notice = slip_of(answer).blocks[0]
    assert isinstance(notice, Notice)
    assert "other slip" in notice.text


@pytest.mark.parametrize("state", [state for state in SaleState if not state.gives_token])
def test_sale_that_may_be_taken_back_shows_no_token_in_any_form(state: SaleState) -> None:
    """Held, under inquiry, reversed or cancelled: marked as such, without digits, groups or code."""
    slip = slip_of(state=state)
    assert isinstance(slip.blocks[0], Notice)
    assert not any(isinstance(block, Digits | Code) for block in slip.blocks)
    assert token_code(facts_of(ANSWER), state) is None
    for shown in (render_text(slip, with_code=True), render_html(slip)):
        for digits in (RECEIPT.token.digits, *RECEIPT.key_change_tokens):
            assert digits not in "".join(mark for mark in shown if mark.isdigit())


@pytest.mark.parametrize("state", [SaleState.REVERSED, SaleState.CANCELLED])
def test_sale_taken_back_says_nothing_about_balance_or_supply(state: SaleState) -> None:
    """What it did was undone: only what had been paid is told."""
    slip = slip_of(state=state)
    assert labels_of(slip) == [slip.words.says["recharge"]]


def test_duplicate_says_its_number_and_both_times() -> None:
    """The second print is duplicate 1; the original says nothing of the kind."""
    again = Print(number=2, first_ms=NOON_MS, at_ms=NOON_MS + MINUTE_MS)
    assert "DUPLICATE" not in render_text(slip_of())
    text = " ".join(render_text(slip_of(printed=again)).split())
    assert "DUPLICATE 1 Printed again on 21-11-2026 15:46, first on 21-11-2026 15:45." in text


def test_answer_of_before_the_steps_were_told_is_printed_without_them() -> None:
    """A reprint of an old sale prints what its answer has."""
    new = {"buys", "month", "key_change_tokens", "receipt_number", "terminal", "operator", "tender"}
    slip = slip_of({name: value for name, value in ANSWER.items() if name not in new})
    assert labels_of(slip)[-1] == slip.words.says["balance_after"]
    assert slip.reference == RECEIPT.message_id
    assert f"{RECEIPT.energy_wh // 1000}.{RECEIPT.energy_wh % 1000:03d} kWh" in render_text(slip)


def test_supply_that_stays_off_says_how_much_more_restores_it() -> None:
    """The missing amount is a row of its own; supply that is on without credit is not called off."""
    off = replace(
        RECEIPT, balance_before_minor=-60_000, balance_after_minor=-22_500, supply_after=Supply.OFF,
        restores_with_minor=30_000, buys=None, energy_wh=0,
    )  # fmt: skip
    for supply, says in ((Supply.OFF, "restores"), (Supply.LIMITED, "restores"), (Supply.ON, "restores_credit")):
        slip = slip_of(receipt_to_api(replace(off, supply_after=supply)))
        (needed,) = [each for each in slip.blocks if isinstance(each, Amount) and each.amount_minor == 30_000]
        assert needed.label == slip.words.says[says]
        assert not any(isinstance(each, Sentence) for each in slip.blocks)


def test_name_in_another_script_does_not_stop_an_ascii_printer() -> None:
    """English is ASCII whatever names hold; accents go, other letters become question marks, commands are blanks."""
    slip = slip_of({**ANSWER, "vendor": "Caf\u00e9 \u0a30\u0a40\x1b@\u00bd"}, utility=Utility(name="\u20b9 & <Sons>"))
    text = render_text(slip)
    assert text.isascii()
    assert "Cafe ?? @1?2" in text
    assert "\x1b" not in text
    page = render_html(slip)
    assert "\u20b9 &amp; &lt;Sons&gt;" in page
    assert "<Sons>" not in page


def test_batch_whose_total_is_not_the_sum_of_its_tenders_is_our_bug() -> None:
    """A slip of a till never says other than what was sold."""
    with pytest.raises(AssertionError, match="total differs"):
        replace(BATCH, total_minor=BATCH.total_minor + 1)


def test_repr_of_facts_and_blocks_shows_no_digits() -> None:
    """A slip that slips into a log gives no credit away."""
    for said in (repr(facts_of(ANSWER)), repr(facts_of(KEY_CHANGE)), repr(slip_of()), repr(slips(Language.ENGLISH))):
        assert "1234 5678" not in said
        assert RECEIPT.token.digits not in said
        assert "'1111'" not in said


def test_qr_code_holds_the_digits_of_the_token() -> None:
    """The code is the one of the digits, with a quiet zone of four modules, in every form."""
    payload = token_code(facts_of(ANSWER), SaleState.RELEASED)
    assert payload == RECEIPT.token.digits
    matrix = qr_matrix(payload)
    assert len(matrix) == len(matrix[0]) == 21 + 2 * 4
    assert not any(matrix[0] + matrix[3] + [row[3] for row in matrix])
    drawn = render_text(slip_of(), with_code=True).splitlines()[-15:]
    dark = sum(line.count("\u2580") + line.count("\u2584") + 2 * line.count("\u2588") for line in drawn)
    assert dark == sum(map(sum, matrix))


@pytest.mark.parametrize(
    ("milli", "text"), [(385_000, "3.85"), (385_750, "3.8575"), (500_000, "5.00"), (1, "0.00001"), (-7_000, "-0.07")]
)
def test_rate_is_printed_exactly(milli: int, text: str) -> None:
    """Thousandths of a paisa show where a tariff has them."""
    assert format_rate(milli) == text


def test_sale_in_another_currency_is_printed_with_its_code() -> None:
    """Only rupees have a sign and Indian groups."""
    slip = slip_of(receipt_to_api(replace(RECEIPT, currency="KES", earlier_arrears_left_minor=12_345_678)))
    assert "KES 123456.78" in render_text(slip)
    assert "Rs" not in render_text(slip)
    assert any(isinstance(block, Fact) and block.value == "KES 375.02624" for block in slip.blocks)
