"""The receipt says what the money bought."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.supply import Supply
from vending.engines.port import Carried, CarriedUnit, IssuedToken
from vending.engines.records import EngineName
from vending.receipt import Receipt, format_percent, receipt_lines, receipt_to_api

TOKEN = IssuedToken(
    engine=EngineName.STS,
    digits="12345678901234567890",
    grouped="1234 5678 9012 3456 7890",
    tid=6_779_175,
    token_class=0,
    subclass=4,
    carried=Carried(steps=50_002_624, steps_per_unit=100_000, unit=CarriedUnit.CURRENCY),
)
RECEIPT = Receipt(
    message_id="T17-1",
    vendor="Station 17",
    account_number="100200300",
    meter_serial="PB000123",
    drn="00000000000",
    currency="INR",
    amount_minor=50_000,
    balance_before_minor=-12_000,
    balance_after_minor=38_000,
    token=TOKEN,
    supply_before=Supply.OFF,
    supply_after=Supply.ON,
    restores_with_minor=0,
    rebate_basis_points=100,
    energy_wh=87_650,
    issued_ms=1_795_000_000_000,
)


def lines_of(receipt: Receipt) -> dict[str, str]:
    """Return the printed lines by code."""
    return {line.code: line.text for line in receipt_lines(receipt)}


def test_recharge_of_a_debt_shows_arrears_credit_and_restored_supply() -> None:
    """Each part of the money has its line, in the order it is printed."""
    assert [line.text for line in receipt_lines(RECEIPT)] == [
        "Recharge received: INR 500.00",
        "Arrears cleared: INR 120.00",
        "Credit on account: INR 380.00",
        "About 87.6 kWh at this month's rates, before fixed charges",
        "Supply restored: yes, it returns by itself",
        "Token: 1234 5678 9012 3456 7890",
        "The token carries: INR 500.02624",
        "1 % rebate on energy charges is given as the energy is used",
    ]


def test_recharge_of_a_credit_shows_no_arrears() -> None:
    """Without a debt there is nothing to clear and nothing to restore."""
    receipt = replace(
        RECEIPT, balance_before_minor=100, balance_after_minor=50_100, supply_before=Supply.ON, rebate_basis_points=0
    )
    lines = lines_of(receipt)
    assert list(lines) == ["recharge", "credit", "energy", "supply_on", "token", "token_amount"]
    assert lines["credit"] == "Credit on account: INR 501.00"


def test_recharge_that_earlier_arrears_share_says_what_they_took_and_what_is_left() -> None:
    """What is recovered comes before what the balance owed; the balance rises by the rest only."""
    receipt = replace(
        RECEIPT, balance_after_minor=25_500, earlier_arrears_paid_minor=12_500, earlier_arrears_left_minor=87_500
    )
    assert (receipt.kept_minor, receipt.arrears_cleared_minor) == (37_500, 12_000)
    lines = lines_of(receipt)
    assert list(lines)[:5] == ["recharge", "earlier_arrears_paid", "arrears", "credit", "earlier_arrears_left"]
    assert lines["earlier_arrears_paid"] == "Paid towards earlier arrears: INR 125.00"
    assert lines["credit"] == "Credit on account: INR 255.00"
    assert lines["earlier_arrears_left"] == "Earlier arrears left: INR 875.00"
    answer = receipt_to_api(receipt)
    assert (answer["earlier_arrears_paid"], answer["earlier_arrears_left_minor"]) == ("125.00", 87_500)


def test_receipt_whose_balance_ignores_the_recovery_is_our_bug() -> None:
    """The invariant ties the balances to what is kept."""
    with pytest.raises(AssertionError, match="balances differ"):
        replace(RECEIPT, earlier_arrears_paid_minor=1)


def test_recharge_that_leaves_a_debt_says_how_much_more_restores() -> None:
    """Supply stays off and the missing amount is named."""
    receipt = replace(
        RECEIPT,
        balance_before_minor=-60_000,
        balance_after_minor=-10_000,
        supply_after=Supply.OFF,
        restores_with_minor=10_001,
    )
    lines = lines_of(receipt)
    assert lines["arrears"] == "Arrears cleared: INR 500.00"
    assert lines["arrears_left"] == "Arrears left: INR 100.00"
    assert lines["supply_off"] == "Supply restored: no, INR 100.01 more restores it"
    assert "credit" not in lines


def test_recharge_that_lifts_a_load_limit_says_so() -> None:
    """Who was limited and has credit again gets the whole supply back."""
    lines = lines_of(replace(RECEIPT, supply_before=Supply.LIMITED))
    assert lines["supply_restored"] == "Supply restored: yes, its limit is lifted by itself"


@pytest.mark.parametrize(
    ("after", "code", "text"),
    [
        (
            Supply.LIMITED,
            "supply_limited",
            "Supply restored: no, it is limited to a small load, INR 100.01 more restores it",
        ),
        (Supply.ON, "supply_on", "Supply is on without credit, INR 100.01 more gives credit"),
    ],
)
def test_recharge_that_leaves_a_debt_tells_a_limited_and_a_protected_supply_from_one_that_is_off(
    after: Supply, code: str, text: str
) -> None:
    """Whatever the supply before: the missing amount is named, and what it is missing for."""
    for before in Supply:
        receipt = replace(
            RECEIPT,
            balance_before_minor=-60_000,
            balance_after_minor=-10_000,
            supply_before=before,
            supply_after=after,
            restores_with_minor=10_001,
        )
        assert lines_of(receipt)[code] == text
        (line,) = [line for line in receipt_lines(receipt) if line.code == code]
        assert line.amount_minor == 10_001


def test_receipt_whose_balances_do_not_add_up_is_our_bug() -> None:
    """A receipt never says other than what was posted."""
    with pytest.raises(AssertionError):
        replace(RECEIPT, balance_after_minor=38_001)
    with pytest.raises(AssertionError):
        replace(RECEIPT, restores_with_minor=1)
    with pytest.raises(AssertionError):
        replace(RECEIPT, supply_after=Supply.LIMITED)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), st.booleans())
def test_arrears_and_credit_account_for_the_whole_recharge(before: int, amount: int, was_off: bool) -> None:
    """Debt cleared plus growth of the credit is what was paid; no line takes anything for the supply."""
    after = before + amount
    off = after <= 0
    receipt = replace(
        RECEIPT,
        amount_minor=amount,
        balance_before_minor=before,
        balance_after_minor=after,
        supply_before=Supply.OFF if was_off else Supply.ON,
        supply_after=Supply.OFF if off else Supply.ON,
        restores_with_minor=1 - after if off else 0,
    )
    grown = max(0, after) - max(0, before)
    assert receipt.arrears_cleared_minor + grown == amount
    assert not any("fee" in line.text.lower() or "fee" in line.code for line in receipt_lines(receipt))


def test_answer_carries_every_amount_printed_and_in_minor_units() -> None:
    """A station needs no arithmetic, a program no parsing."""
    answer = receipt_to_api(RECEIPT)
    assert (answer["amount"], answer["amount_minor"]) == ("500.00", 50_000)
    assert (answer["balance_before"], answer["balance_after"]) == ("-120.00", "380.00")
    assert answer["token"] == {
        "digits": "12345678901234567890",
        "grouped": "1234 5678 9012 3456 7890",
        "engine": "sts",
        "class": 0,
        "subclass": 4,
        "amount": "500.02624",
        "unit": "currency",
    }
    assert answer["supply"] == {
        "state_before": "off",
        "state_after_desired": "on",
        "restores_with": "0.00",
        "restores_with_minor": 0,
    }


def test_repr_of_a_receipt_masks_the_token() -> None:
    """A receipt that slips into a log gives no credit away."""
    assert RECEIPT.token.digits not in repr(RECEIPT)


@pytest.mark.parametrize(
    ("steps", "steps_per_unit", "unit", "text"),
    [
        (0, 100_000, CarriedUnit.CURRENCY, "INR 0.00000"),
        (1, 100_000, CarriedUnit.CURRENCY, "INR 0.00001"),
        (-60_001, 100_000, CarriedUnit.CURRENCY, "INR -0.60001"),
        (877, 10, CarriedUnit.KWH, "87.7 kWh"),
        (30, 1, CarriedUnit.DAYS, "30 days"),
        (36, 24, CarriedUnit.DAYS, "1.50 days"),
    ],
)
def test_what_a_token_carries_is_printed_in_its_own_unit(
    steps: int, steps_per_unit: int, unit: CarriedUnit, text: str
) -> None:
    """Money with five decimals, energy with one, whole days as such."""
    carried = Carried(steps=steps, steps_per_unit=steps_per_unit, unit=unit)
    lines = lines_of(replace(RECEIPT, token=replace(TOKEN, carried=carried)))
    assert lines["token_amount"] == f"The token carries: {text}"


def test_receipt_under_a_pending_key_says_what_to_enter_first() -> None:
    """Under the key that is still on its way the meter takes the credit only after the set."""
    lines = [line.code for line in receipt_lines(replace(RECEIPT, key_change_first=4))]
    assert lines[0] == "key_change_first"
    assert lines_of(replace(RECEIPT, key_change_first=4))["key_change_first"].startswith("Enter the 4 key-change")


@pytest.mark.parametrize(("points", "text"), [(100, "1"), (150, "1.5"), (125, "1.25"), (5, "0.05"), (10_000, "100")])
def test_shares_are_printed_without_idle_decimals(points: int, text: str) -> None:
    """One per cent is `1`."""
    assert format_percent(points) == text
