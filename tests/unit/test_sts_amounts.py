"""The amount fields: published codes, rounding towards the customer, and ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.amounts import (
    CURRENCY_STEPS_PER_UNIT,
    UNIT_TENTHS_MAX,
    CurrencyField,
    decode_unit_amount,
    encode_unit_amount,
)
from vending.sts.errors import AmountOutOfRange

fields = st.builds(CurrencyField, sign_exponent=st.integers(0, 15), amount16=st.integers(0, 0xFFFF))


@pytest.mark.parametrize(
    ("tenths", "amount16"),
    # Origin: STS 531 CTSA10 steps; 180215 from the gap rule of IEC 62055-41 as read in the same tests.
    [
        (1, 0x0001),
        (256, 0x0100),
        (16_383, 0x3FFF),
        (16_384, 0x4000),
        (20_000, 0x416A),
        (180_215, 0x8000),
        (180_223, 0x8000),
        (180_224, 0x8000),
        (1_818_623, 0xC000),
        (1_818_624, 0xC000),
        (18_201_624, 0xFFFF),
    ],
)
def test_unit_amount_published_value_gives_published_field(tenths: int, amount16: int) -> None:
    """The steps and the gaps between exponents are those of the compliance tests."""
    assert encode_unit_amount(tenths) == amount16


@given(amount16=st.integers(0, 0xFFFF))
def test_unit_amount_every_field_survives_decoding(amount16: int) -> None:
    """Each of the 65,536 codes means one amount, and that amount is coded by it."""
    assert encode_unit_amount(decode_unit_amount(amount16)) == amount16


@given(tenths=st.integers(0, UNIT_TENTHS_MAX))
def test_unit_amount_rounds_up_by_less_than_a_step(tenths: int) -> None:
    """The customer gets at least what was paid for, and less than one step of 0.1 % more."""
    carried = decode_unit_amount(encode_unit_amount(tenths))
    assert 0 <= carried - tenths < max(1, tenths // 1_600)


@pytest.mark.parametrize("tenths", [-1, UNIT_TENTHS_MAX + 1, 10**30])
def test_unit_amount_out_of_range_is_refused(tenths: int) -> None:
    """Nothing negative and nothing above the largest code."""
    with pytest.raises(AmountOutOfRange):
        encode_unit_amount(tenths)


@pytest.mark.parametrize(
    ("amount_e5", "sign_exponent", "amount16"),
    [
        # Origin: STS 531 CTSA20 (1.00, -1.00, then steps 5, 6 and 15).
        (100_000, 0, 0x60AA),
        (-100_000, 8, 0x60A9),
        (1_818_624 * CURRENCY_STEPS_PER_UNIT, 1, 0xFFEE),
        (18_202_624 * CURRENCY_STEPS_PER_UNIT, 2, 0x3FFF),
        (-182_044_444_442_624 * CURRENCY_STEPS_PER_UNIT, 11, 0xFFFF),
        (0, 0, 0),
    ],
)
def test_currency_amount_published_value_gives_published_field(
    amount_e5: int, sign_exponent: int, amount16: int
) -> None:
    """A credit rounds up, a debit towards zero, also in the gap below an exponent's start."""
    assert CurrencyField.encode(amount_e5) == CurrencyField(sign_exponent=sign_exponent, amount16=amount16)


@given(field=fields)
def test_currency_amount_every_field_survives_decoding(field: CurrencyField) -> None:
    """Each code means one amount, but for minus nothing, which is nothing."""
    again = CurrencyField.encode(field.amount_e5)
    assert again == field or (field.amount_e5 == 0 and again == CurrencyField(sign_exponent=0, amount16=0))


@given(amount_e5=st.integers(-(10**34), 10**34))
def test_currency_amount_rounds_towards_the_customer(amount_e5: int) -> None:
    """A credit never shrinks, a debit never grows, and neither moves by more than 0.1 %."""
    carried = CurrencyField.encode(amount_e5).amount_e5
    assert 0 <= carried - amount_e5 < max(1, abs(amount_e5) // 1_600)


@pytest.mark.parametrize("amount_e5", [10**36, -(10**36)])
def test_currency_amount_beyond_the_last_exponent_is_refused(amount_e5: int) -> None:
    """The series ends at exponent 31, for either sign."""
    with pytest.raises(AmountOutOfRange):
        CurrencyField.encode(amount_e5)


def test_field_wider_than_its_place_is_refused() -> None:
    """A field value from outside is held to its width."""
    with pytest.raises(AmountOutOfRange):
        decode_unit_amount(0x10000)
    with pytest.raises(AmountOutOfRange):
        CurrencyField(sign_exponent=16, amount16=0)
    with pytest.raises(AmountOutOfRange):
        CurrencyField(sign_exponent=0, amount16=-1)
