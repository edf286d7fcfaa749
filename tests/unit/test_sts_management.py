"""Management tokens: published ones byte for byte, and every kind of token there and back under both ciphers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vending.sts.amounts import CurrencyField, encode_unit_amount
from vending.sts.errors import FieldOutOfRange, InvalidKey, StsError, TokenCrcMismatch, UnsupportedToken
from vending.sts.identity import EncryptionAlgorithm, KeyType
from vending.sts.key_change import (
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeThird,
    KeyChangeThirdSta,
)
from vending.sts.keys import DecoderKey
from vending.sts.management import (
    REGISTER_ALL,
    AnyToken,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
    decode_any_token,
    encode_any_token,
)
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    TokenNumber,
    UnitCredit,
    decode_token,
    open_frame,
    seal_frame,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CASES = [json.loads(line) for line in VECTORS.read_text().splitlines()]
MANAGEMENT = [case for case in CASES if re.match(r"class2/\d+ DKGA04", case["algorithm"])]
# Origin: STS 531 CTSA01 step 1 and CTSA24, the decoder keys of two published test meters.
MISTY1_KEY = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes.fromhex("f94b6ed353c3bfdb113e2d3a7ea3c41d"))
CTSA24_KEY = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes.fromhex("929bd3a415c9420a05ec5ee9f3ce91c3"))
STA_KEY = DecoderKey(ea=EncryptionAlgorithm.STA, key=bytes.fromhex("0abc12def3456789"), sta_tables=IEC_SAMPLE_TABLES)

nibbles, tids, words = st.integers(0, 15), st.integers(0, 0xFFFFFF), st.integers(0, 0xFFFF)
parts, twelve = st.integers(0, 2**32 - 1), st.integers(0, 0xFFF)
services = st.sampled_from(CreditService)
currency_fields = st.builds(CurrencyField, sign_exponent=nibbles, amount16=words)
timed_tokens = st.one_of(
    st.builds(UnitCredit, service=services, rnd=nibbles, tid=tids, amount16=words),
    st.builds(CurrencyCredit, service=services, tid=tids, amount=currency_fields),
    st.builds(Management, kind=st.sampled_from(ManagementKind), rnd=nibbles, tid=tids, value16=words),
    st.builds(ExtendedControl, rnd=nibbles, tid=tids, index=st.integers(0, 62), value=st.integers(0, 1023)),
    st.builds(ExtendedFlag, rnd=nibbles, tid=tids, flag=st.integers(0, 511), value=st.booleans()),
)
clear_tokens = st.one_of(
    st.builds(DisplayTest, maker_digits=st.just(2), maker_code=st.integers(0, 255), control=st.integers(0, 2**36 - 1)),
    st.builds(DisplayTest, maker_digits=st.just(4), maker_code=words, control=st.integers(0, 2**28 - 1)),
    st.builds(ExtendedRead, index=st.integers(0, 63)),
)
shared_sections = st.one_of(
    st.builds(
        KeyChangeFirst,
        ken_high=nibbles,
        krn=nibbles,
        roll_over=st.booleans(),
        third_section=st.booleans(),
        kt=st.sampled_from(KeyType),
        key_part=parts,
    ),
    st.builds(KeyChangeSecond, ken_low=nibbles, tariff_index=st.integers(0, 255), key_part=parts),
)
misty1_sections = st.builds(KeyChangeThird, sgc_low=twelve, key_part=parts) | st.builds(
    KeyChangeFourth, sgc_high=twelve, key_part=parts
)
sta_sections = st.builds(KeyChangeThirdSta, sgc=st.integers(0, 0xFFFFFF))
both_ciphers = st.sampled_from([MISTY1_KEY, STA_KEY])
keyed_tokens = st.one_of(
    st.tuples(timed_tokens | clear_tokens | shared_sections, both_ciphers),
    st.tuples(misty1_sections, st.just(MISTY1_KEY)),
    st.tuples(sta_sections, st.just(STA_KEY)),
)


@given(keyed=keyed_tokens)
def test_token_of_every_kind_decodes_to_itself_under_its_cipher(keyed: tuple[AnyToken, DecoderKey]) -> None:
    """Every field of every class comes back, under EA07 as under EA11."""
    token, key = keyed
    assert decode_any_token(encode_any_token(token, key), key) == token


@given(digits=st.text("0123456789", min_size=20, max_size=20), key=both_ciphers)
def test_decode_of_any_20_digits_under_either_cipher_answers_or_refuses(digits: str, key: DecoderKey) -> None:
    """No digits crash the decoder, and what it reads is written back as the same digits."""
    refusal = None
    try:
        number = TokenNumber(digits)
        token = decode_any_token(number, key)
    except StsError as error:
        refusal = error
    if refusal is None:
        assert encode_any_token(token, key) == number
    else:
        assert re.fullmatch("[a-z_]+", refusal.code)
        assert digits not in str(refusal)


@given(token_class=st.sampled_from([0, 1, 2]), subclass=nibbles, field44=st.integers(0, 2**44 - 1), key=both_ciphers)
def test_intact_frame_of_any_kind_is_read_or_refused_as_unsupported(
    token_class: int, subclass: int, field44: int, key: DecoderKey
) -> None:
    """An agreeing CRC leaves two answers: typed contents that give the same digits, or a kind not offered."""
    number = seal_frame(token_class, subclass, field44, key)
    assert open_frame(number, key).crc_ok
    try:
        assert encode_any_token(decode_any_token(number, key), key) == number
    except UnsupportedToken:
        assert token_class != 2 or subclass > 10 or (key is STA_KEY and subclass in (8, 9))


@settings(max_examples=20)
@given(keyed=keyed_tokens.filter(lambda keyed: not isinstance(keyed[0], DisplayTest | ExtendedRead)))
def test_every_single_digit_slip_is_refused_as_often_as_the_crc_can(keyed: tuple[AnyToken, DecoderKey]) -> None:
    """Of the 180 single-digit slips of a token the 16-bit CRC lets through one in 65,536.

    Three of 180 by chance has odds of 3 in 10^9, so more than two mean that something is not checked.
    """
    token, key = keyed
    digits = encode_any_token(token, key).digits
    taken = 0
    for place in range(20):
        for other in set("0123456789") - {digits[place]}:
            try:
                decode_any_token(TokenNumber(digits[:place] + other + digits[place + 1 :]), key)
            except StsError:
                continue
            taken += 1
    assert taken <= 2


@pytest.mark.parametrize("case", MANAGEMENT, ids=lambda case: case["algorithm"] + case["origin"][-12:])
def test_published_management_token_is_read_and_made_again(case: dict[str, Any]) -> None:
    """The digits of the compliance tests open under their key, carry RND 5 and come out again."""
    key = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes.fromhex(case["expected"]["decoder_key"]))
    number = TokenNumber(case["expected"]["token"])
    token = decode_any_token(number, key)
    assert isinstance(token, Management | ExtendedControl | ExtendedFlag)
    assert token.rnd == 5
    assert encode_any_token(token, key) == number


def test_published_management_tokens_carry_their_values() -> None:
    """Limit in watts, register, tamper, unbalance, and the extended set."""
    # Origin: STS 531 CTSA03 step 1, CTSA04 step 1, CTSA06 step 1, CTSA07 step 1.
    kinds = [
        ("26521936751055502278", ManagementKind.SET_POWER_LIMIT, 5_910_301, encode_unit_amount(1000)),
        ("59725289138639529749", ManagementKind.CLEAR_CREDIT, 5_910_315, REGISTER_ALL),
        ("02455019196514047304", ManagementKind.CLEAR_TAMPER, 5_910_360, 0),
        ("16135127146988830614", ManagementKind.SET_UNBALANCE_LIMIT, 5_910_380, encode_unit_amount(10)),
    ]
    for digits, kind, tid, value16 in kinds:
        read = decode_any_token(TokenNumber(digits), MISTY1_KEY)
        assert read == Management(kind=kind, rnd=5, tid=tid, value16=value16)
    # Origin: STS 531-1-11 Ed 2.2 CTSA24, 21 May 2029 from 09:00 on.
    flag = decode_any_token(TokenNumber("58125830645866531183"), CTSA24_KEY)
    assert flag == ExtendedFlag(rnd=5, tid=8_091_905, flag=0, value=True)
    control = decode_any_token(TokenNumber("27473808842619922147"), CTSA24_KEY)
    assert control == ExtendedControl(rnd=5, tid=8_091_915, index=0, value=123)


@pytest.mark.parametrize(
    "token",
    [
        Management(kind=ManagementKind.CLEAR_CREDIT, rnd=16, tid=0),
        Management(kind=ManagementKind.CLEAR_CREDIT, rnd=0, tid=1 << 24),
        Management(kind=ManagementKind.CLEAR_CREDIT, rnd=0, tid=0, value16=-1),
        ExtendedControl(rnd=0, tid=0, index=63, value=0),
        ExtendedControl(rnd=0, tid=0, index=0, value=1024),
        ExtendedFlag(rnd=0, tid=0, flag=512, value=True),
        KeyChangeSecond(ken_low=16, tariff_index=0, key_part=0),
        KeyChangeThirdSta(sgc=1 << 24),
        KeyChangeThird(sgc_low=0, key_part=1 << 32),
        KeyChangeFourth(sgc_high=4096, key_part=0),
    ],
)
def test_field_wider_than_its_place_is_refused(token: AnyToken) -> None:
    """A field never spills into its neighbour, and a control never becomes a flag."""
    with pytest.raises(FieldOutOfRange):
        encode_any_token(token, MISTY1_KEY)


def test_management_token_needs_its_key() -> None:
    """Class 2 is encrypted: no key, no token; another meter's key looks like a slip of the finger."""
    token = Management(kind=ManagementKind.CLEAR_TAMPER, rnd=0, tid=1)
    number = encode_any_token(token, MISTY1_KEY)
    for attempt in (lambda: encode_any_token(token, None), lambda: decode_any_token(number, None)):
        with pytest.raises(InvalidKey):
            attempt()
    with pytest.raises(TokenCrcMismatch, match=r"\.\.\.\d{4}"):
        decode_any_token(number, CTSA24_KEY)


def test_credit_reader_still_refuses_management_tokens() -> None:
    """Vending reads classes 0 and 1 only; class 2 has its own reader."""
    with pytest.raises(UnsupportedToken):
        decode_token(TokenNumber("26521936751055502278"), MISTY1_KEY)
