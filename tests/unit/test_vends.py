"""Vend requests: their form, their digest, what is refused, and the token that is minted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import BadAmount
from billing.prepayment import builtin_rules_text, parse_rules
from billing.supply import Mode
from vending.sts.errors import MalformedToken
from vending.vends import (
    Declined,
    DeclineReason,
    DrnCheckDigit,
    MalformedRequest,
    VendLimits,
    VendOrder,
    category_limits,
    judge_amount,
    judge_mode,
    judge_vendor,
    order_digest,
    read_digits,
    read_order,
    require_drn_check_digit,
)

LIMITS = VendLimits(min_minor=1_000, max_minor=5_000_000)


def request(**changes: str) -> VendOrder:
    """Read a good request with some fields changed."""
    return read_order(**{"message_id": "T17-1", "meter": "PB000123", "amount": "500.00", **changes})


def reason_of(answer: object) -> DeclineReason:
    """Return the reason of what must be a refusal."""
    assert isinstance(answer, Declined), answer
    return answer.reason


def test_read_order_keeps_fields_and_counts_minor_units() -> None:
    """A well-formed request is read as it stands."""
    assert request() == VendOrder(message_id="T17-1", meter="PB000123", amount_minor=50_000)


@pytest.mark.parametrize(
    "amount",
    ["", " 5.00", "5.0", "5.000", "-5.00", "+5.00", "5,00", "1e3", "five", "0x10", "5.00\n", "\u0665.\u0660\u0660"],
)
def test_read_order_with_another_form_of_amount_is_refused(amount: str) -> None:
    """Only digits with none or two decimals are an amount."""
    with pytest.raises(BadAmount):
        request(amount=amount)


@pytest.mark.parametrize("message_id", ["", ".a", "a b", "a/b", "a\n", "x" * 65, "\u0a05", "a\x00"])
def test_read_order_with_another_form_of_message_id_is_refused(message_id: str) -> None:
    """A message id is safe in a path and a log."""
    with pytest.raises(MalformedRequest):
        request(message_id=message_id)


@pytest.mark.parametrize("meter", ["", "PB 1", "x" * 33, "PB\n", "\u0967\u0968"])
def test_read_order_with_another_form_of_meter_is_refused(meter: str) -> None:
    """A meter is named by what its table may hold."""
    with pytest.raises(MalformedRequest):
        request(meter=meter)


def test_digest_of_the_same_amount_written_otherwise_is_equal() -> None:
    """`500` and `500.00` are one request."""
    assert order_digest(request(amount="500")) == order_digest(request(amount="500.00"))


@given(st.integers(0, 10**14), st.integers(0, 10**14), st.sampled_from("AB"), st.sampled_from("AB"))
def test_digests_are_equal_exactly_for_the_same_meter_and_amount(one: int, other: int, a: str, b: str) -> None:
    """Nothing but meter and amount tells two requests of one id apart."""
    first = order_digest(VendOrder(message_id="1", meter=a, amount_minor=one))
    second = order_digest(VendOrder(message_id="2", meter=b, amount_minor=other))
    assert (first == second) == ((a, one) == (b, other))


@pytest.mark.parametrize(
    ("amount_minor", "reason"),
    [
        (0, DeclineReason.AMOUNT_BELOW_MINIMUM),
        (999, DeclineReason.AMOUNT_BELOW_MINIMUM),
        (1_000, None),
        (5_000_000, None),
        (5_000_001, DeclineReason.AMOUNT_ABOVE_MAXIMUM),
    ],
)
def test_amount_is_held_against_both_limits(amount_minor: int, reason: DeclineReason | None) -> None:
    """Both limits themselves are sold; beyond them the limit is named."""
    declined = judge_amount(amount_minor, LIMITS)
    assert (declined.reason if declined else None) is reason
    if declined:
        assert declined.limit_minor in (LIMITS.min_minor, LIMITS.max_minor)


def test_postpaid_account_and_stopped_vendor_are_refused() -> None:
    """One pays by bill, the other may not sell."""
    assert judge_mode(Mode.PREPAID, "1") is None
    assert reason_of(judge_mode(Mode.POSTPAID, "1")) is DeclineReason.POSTPAID_ACCOUNT
    assert judge_vendor(name="S", active=True) is None
    assert reason_of(judge_vendor(name="S", active=False)) is DeclineReason.VENDOR_INACTIVE


def test_drn_check_digit_is_asked_of_digits_of_its_length_only() -> None:
    """A serial of another form is just unknown."""
    for unknown in ("PB000123", "1234", "00000000000", "0000000000000"):
        require_drn_check_digit(unknown)
    for mistyped in ("00000000001", "0000000000001"):
        with pytest.raises(DrnCheckDigit):
            require_drn_check_digit(mistyped)


def test_token_is_read_with_or_without_groups() -> None:
    """Spaces and dashes are how people copy a token; 9, 12 and 15 digits are those of devices."""
    assert read_digits("1234-5678 9012 3456 7890") == "12345678901234567890"
    assert [read_digits(text) for text in ("123 456 789", "1" * 12, "2" * 15)] == ["123456789", "1" * 12, "2" * 15]


@pytest.mark.parametrize("text", ["1" * 19, "1" * 21, "", "1234567890123456789x", "\u0661" * 20, "9" * 20])
def test_other_than_twenty_digits_is_no_token(text: str) -> None:
    """Nineteen digits, twenty-one, letters, other scripts, and a number above 66 bits."""
    with pytest.raises(MalformedToken) as caught:
        read_digits(text)
    assert text == "" or text not in str(caught.value)


@pytest.mark.parametrize(
    ("recharge", "limits"),
    [
        # Inside, wider than, below and above the installation's bounds of 1,000 to 5,000,000.
        ((20_000, 60_000), (20_000, 60_000)),
        ((1, 9_000_000), (1_000, 5_000_000)),
        ((1, 500), (1_000, 1_000)),
        ((6_000_000, 9_000_000), (5_000_000, 5_000_000)),
    ],
)
def test_category_limits_stay_inside_the_installations(recharge: tuple[int, int], limits: tuple[int, int]) -> None:
    """A category narrows what the installation allows and never widens it."""
    least_minor, most_minor = recharge
    rules = replace(
        parse_rules(builtin_rules_text()).default, recharge_min_minor=least_minor, recharge_max_minor=most_minor
    )
    assert category_limits(LIMITS, rules) == VendLimits(min_minor=limits[0], max_minor=limits[1])
