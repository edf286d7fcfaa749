"""Tokens: contents to 20 digits and back, whatever the digits are."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.amounts import CurrencyField
from vending.sts.errors import (
    FieldOutOfRange,
    InvalidKey,
    MalformedToken,
    StsError,
    TokenCrcMismatch,
    UnsupportedToken,
)
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DecoderKey
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    Token,
    TokenNumber,
    UnitCredit,
    crc16,
    decode_token,
    display_test_control,
    encode_token,
    open_frame,
    seal_frame,
)

# Origin: STS 531 CTSA01 step 1, the decoder key of a published test meter.
KEY = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes.fromhex("f94b6ed353c3bfdb113e2d3a7ea3c41d"))

services = st.sampled_from(CreditService)
tids = st.integers(0, 0xFFFFFF)
words = st.integers(0, 0xFFFF)
nibbles = st.integers(0, 15)
decoder_keys = st.builds(DecoderKey, ea=st.just(EncryptionAlgorithm.MISTY1), key=st.binary(min_size=16, max_size=16))
unit_credits = st.builds(UnitCredit, service=services, rnd=nibbles, tid=tids, amount16=words)
currency_credits = st.builds(
    CurrencyCredit,
    service=services,
    tid=tids,
    amount=st.builds(CurrencyField, sign_exponent=nibbles, amount16=words),
)
display_tests = st.one_of(
    st.builds(
        DisplayTest,
        maker_digits=st.just(2),
        maker_code=st.integers(0, 0xFF),
        control=st.integers(0, 2**36 - 1),
    ),
    st.builds(
        DisplayTest,
        maker_digits=st.just(4),
        maker_code=words,
        control=st.integers(0, 2**28 - 1),
    ),
)
extended_reads = st.builds(ExtendedRead, index=st.integers(0, 63))
credit_tokens = unit_credits | currency_credits
all_tokens = credit_tokens | display_tests | extended_reads


@given(token=all_tokens, key=decoder_keys)
def test_token_of_any_contents_decodes_to_itself(token: Token, key: DecoderKey) -> None:
    """Every field comes back under the same key."""
    assert decode_token(encode_token(token, key), key) == token


@given(digits=st.text("0123456789", min_size=20, max_size=20))
def test_decode_of_any_20_digits_answers_or_refuses(digits: str) -> None:
    """No digits crash the decoder, and what it reads is written back as the same digits."""
    refusal = None
    try:
        number = TokenNumber(digits)
        token = decode_token(number, KEY)
    except StsError as error:
        refusal = error
    if refusal is None:
        assert encode_token(token, KEY) == number
    else:
        assert re.fullmatch("[a-z_]+", refusal.code)
        assert digits not in str(refusal)


@given(token_class=st.integers(0, 2), subclass=nibbles, field44=st.integers(0, 2**44 - 1))
def test_intact_frame_of_any_kind_is_read_or_refused_as_unsupported(
    token_class: int, subclass: int, field44: int
) -> None:
    """An agreeing CRC leaves two answers: typed contents, or a kind that is not offered."""
    number = seal_frame(token_class, subclass, field44, KEY)
    frame = open_frame(number, KEY)
    assert (frame.token_class, frame.subclass, frame.field44) == (token_class, subclass, field44)
    assert frame.crc_ok
    try:
        assert encode_token(decode_token(number, KEY), KEY) == number
    except UnsupportedToken:
        assert token_class == 2 or subclass > (7 if token_class == 0 else 1)


@given(token=credit_tokens)
def test_every_single_digit_slip_is_refused_as_often_as_the_crc_can(token: Token) -> None:
    """Of the 180 single-digit slips of a token the 16-bit CRC lets through one in 65,536.

    Three of 180 by chance has odds of 3 in 10^9, so more than two mean that something is not checked.
    """
    digits = encode_token(token, KEY).digits
    taken = 0
    for place in range(20):
        for other in set("0123456789") - {digits[place]}:
            try:
                decode_token(TokenNumber(digits[:place] + other + digits[place + 1 :]), KEY)
            except StsError:
                continue
            taken += 1
    assert taken <= 2


@given(token=credit_tokens, key=decoder_keys, bit=st.integers(0, 65))
def test_credit_with_one_bit_changed_never_reads_the_same(token: Token, key: DecoderKey, bit: int) -> None:
    """A flipped bit of the 66 is refused, or by the odds of the CRC reads as something else."""
    changed = int(encode_token(token, key).digits) ^ 1 << bit
    with suppress(StsError):
        assert decode_token(TokenNumber(f"{changed:020d}"), key) != token


def test_credit_under_another_meters_key_is_refused_by_crc() -> None:
    """The wrong key looks like a slip of the finger, and the message names all causes."""
    number = TokenNumber("59386323472137426967")
    other = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes(16))
    with pytest.raises(TokenCrcMismatch, match="meter, SGC, TI or KRN") as refusal:
        decode_token(number, other)
    assert "...6967" in str(refusal.value)


def test_published_credit_is_read_back() -> None:
    """The 0.1 kWh token of the compliance tests gives its fields."""
    # Origin: STS 531 CTSA01 step 1.
    assert decode_token(TokenNumber("59386323472137426967"), KEY) == UnitCredit(
        service=CreditService.ELECTRICITY, rnd=5, tid=5_871_660, amount16=1
    )


@pytest.mark.parametrize(
    ("test", "maker_digits", "digits"),
    [
        # Origin: generic test tokens printed in meter manuals; STS 531 CTSA02 and CTSA10.
        (0, 2, "56493153725450313471"),
        (0, 4, "02305843005052951967"),
        (4, 2, "18446744073843772416"),
        (18, 2, "00000002199157475960"),
    ],
)
def test_display_test_of_a_number_gives_its_printed_token(test: int, maker_digits: int, digits: str) -> None:
    """A test number sets its bit, and test 0 all of them."""
    control = display_test_control(test, maker_digits=maker_digits)
    token = DisplayTest(maker_digits=maker_digits, maker_code=0, control=control)
    assert encode_token(token, None).digits == digits
    assert decode_token(TokenNumber(digits), None) == token


def test_crc_of_the_standards_example_is_reproduced() -> None:
    """CRC-16 low byte first; the currency CRC of the same bits is another."""
    # Origin: NectarAPI/tokens-service CrcTest, a value quoted from the standard.
    assert crc16(0x000B19EB230100) == 0xC207
    assert crc16(0x000B19EB230100, currency=True) != 0xC207


@pytest.mark.parametrize("digits", ["", "1" * 19, "1" * 21, "1234567890123456789x", "१" * 20, "99999999999999999999"])
def test_number_that_cannot_be_a_token_is_refused(digits: str) -> None:
    """A token is 20 ASCII digits below 2^66, and a refusal does not repeat what was typed."""
    with pytest.raises(MalformedToken) as refusal:
        TokenNumber(digits)
    assert not digits or digits not in str(refusal.value)


def test_token_number_shows_its_last_four_digits_only() -> None:
    """Logs and traces get the mask; print gets the groups."""
    number = TokenNumber("59386323472137426967")
    assert "5938" not in f"{number} {number!r} {number.masked}"
    assert "6967" in repr(number)
    assert number.grouped == "5938 6323 4721 3742 6967"


@pytest.mark.parametrize(
    "token",
    [
        UnitCredit(service=CreditService.WATER, rnd=16, tid=0, amount16=0),
        UnitCredit(service=CreditService.WATER, rnd=0, tid=1 << 24, amount16=0),
        UnitCredit(service=CreditService.WATER, rnd=0, tid=0, amount16=1 << 16),
        UnitCredit(service=CreditService.WATER, rnd=-1, tid=0, amount16=0),
        DisplayTest(maker_digits=2, maker_code=256, control=0),
        DisplayTest(maker_digits=3, maker_code=0, control=0),
        DisplayTest(maker_digits=4, maker_code=0, control=1 << 28),
        ExtendedRead(index=64),
    ],
)
def test_field_wider_than_its_place_is_refused(token: Token) -> None:
    """A field never spills into its neighbour."""
    with pytest.raises(FieldOutOfRange):
        encode_token(token, KEY)


def test_credit_without_key_is_refused() -> None:
    """A class 0 token is encrypted or it is not made."""
    credit = UnitCredit(service=CreditService.ELECTRICITY, rnd=0, tid=1, amount16=1)
    with pytest.raises(InvalidKey):
        encode_token(credit, None)
    with pytest.raises(InvalidKey):
        decode_token(encode_token(credit, KEY), None)


def test_class_3_is_refused_as_reserved() -> None:
    """The reserved class has no meaning to read."""
    with pytest.raises(UnsupportedToken, match="class 3"):
        decode_token(TokenNumber(f"{3 << 27:020d}"), KEY)


@pytest.mark.parametrize("test", [-1, 19])
def test_display_test_number_beyond_the_list_is_refused(test: int) -> None:
    """Numbers from 19 on are reserved."""
    with pytest.raises(FieldOutOfRange):
        display_test_control(test, maker_digits=2)
