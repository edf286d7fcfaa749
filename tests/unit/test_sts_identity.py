"""Meter numbers, check digits and the blocks of key derivation."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.errors import CheckDigitMismatch, InvalidIdentity
from vending.sts.identity import (
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    MeterPan,
    control_block,
    is_luhn_valid,
    luhn_check_digit,
    pan_block,
)

# Origin: CTSA test PANs (STS 531).
TEST_PANS = ["600727000000000009", "000001000000000082", "600727111111111153"]

RECORD = MeterKeyRecord(
    iin="600727",
    drn=Drn("00000000000"),
    ea=EncryptionAlgorithm.MISTY1,
    dkga=KeyDerivation.HMAC_SHA256,
    sgc="123457",
    kt=KeyType.UNIQUE,
    krn=1,
    tariff_index=1,
    ken=255,
    base_date=BaseDate.Y2014,
)


@pytest.mark.parametrize("digits", TEST_PANS)
def test_meter_pan_of_the_test_suite_survives_parsing(digits: str) -> None:
    """A valid PAN is read into its parts and written back unchanged."""
    pan = MeterPan.parse(digits)
    assert pan.digits == digits
    assert len(pan.iin) + len(pan.drn.digits) == 17


def test_drn_maker_code_is_what_stands_before_serial_and_check_digit() -> None:
    """An 11-digit DRN has a 2-digit maker code, a 13-digit one a 4-digit code."""
    assert Drn("11111111115").maker_code == "11"
    assert Drn("0100000000008").maker_code == "0100"


@given(digits=st.text("0123456789", min_size=1, max_size=20), place=st.integers(0, 19), by=st.integers(1, 9))
def test_luhn_every_single_digit_slip_is_caught(digits: str, place: int, by: int) -> None:
    """A number with one digit mistyped never keeps its check digit."""
    whole = digits + str(luhn_check_digit(digits))
    place %= len(whole)
    slipped = whole[:place] + str((int(whole[place]) + by) % 10) + whole[place + 1 :]
    assert is_luhn_valid(whole)
    assert not is_luhn_valid(slipped)


@pytest.mark.parametrize("digits", ["", "1", "12a4", "12 4", "1२34", "123४"])
def test_luhn_of_anything_but_ascii_digits_is_refused(digits: str) -> None:
    """Digits of another script are letters here."""
    with pytest.raises(InvalidIdentity):
        is_luhn_valid(digits)


@pytest.mark.parametrize("digits", ["", "0000000000", "000000000000", "0000000000x", "00000000000000"])
def test_drn_of_wrong_form_is_refused(digits: str) -> None:
    """A DRN is 11 or 13 digits."""
    with pytest.raises(InvalidIdentity) as refusal:
        Drn(digits)
    assert refusal.value.code == "invalid_identity"


def test_drn_with_wrong_check_digit_says_which_was_expected() -> None:
    """The message lets a vendor find the slip: expected, got, whose."""
    with pytest.raises(CheckDigitMismatch, match="DRN 11111111114: expected check digit 5, got 4"):
        Drn("11111111114")


@pytest.mark.parametrize(
    ("iin", "drn"),
    [
        ("0000", "00000000000"),
        ("600727", "0100000000008"),
        ("0001", "0100000000008"),
        ("000012", "00000000000"),
        ("60072x", "00000000000"),
    ],
)
def test_meter_pan_with_iin_that_does_not_fit_its_drn_is_refused(iin: str, drn: str) -> None:
    """The IIN is 0000 before a 13-digit DRN and 6 other digits before an 11-digit one."""
    with pytest.raises(InvalidIdentity):
        MeterPan(iin=iin, drn=Drn(drn))


def test_meter_pan_with_wrong_last_digit_is_refused() -> None:
    """The PAN's own Luhn digit is checked beside that of the DRN."""
    with pytest.raises(CheckDigitMismatch, match="MeterPAN"):
        MeterPan.parse("600727000000000008")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("sgc", "12345"),
        ("sgc", "12345x"),
        ("krn", 0),
        ("krn", 10),
        ("tariff_index", 100),
        ("tariff_index", -1),
        ("ken", 256),
        ("ken", -1),
        ("iin", "0000"),
    ],
)
def test_meter_key_record_field_out_of_range_names_the_meter(field: str, wrong: Any) -> None:
    """Each attribute of the key has its range, and the message says whose it is."""
    with pytest.raises(InvalidIdentity, match="00000000000"):
        replace(RECORD, **{field: wrong})


def test_blocks_of_the_published_example_are_reproduced() -> None:
    """PANBlock and CONTROLBlock of the example meter; the tariff index stands as decimal digits."""
    # Origin: NectarAPI/tokens-service PrimaryAccountNumberBlockTest and ControlBlockTest.
    assert pan_block("123456", "12345678102", KeyType.DEFAULT).hex() == "2345612345678102"
    assert pan_block("123456", "12345678102", KeyType.COMMON).hex() == "2345600000000000"
    block = control_block(kt=KeyType.DEFAULT, sgc="123456", tariff_index=1, krn=1)
    assert block.hex() == "1123456011ffffff"
    assert control_block(kt=KeyType.UNIQUE, sgc="123456", tariff_index=99, krn=9).hex() == "2123456999ffffff"
