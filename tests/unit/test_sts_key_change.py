"""Key change sets: published ones, what a meter makes of a set, and what is refused."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.errors import FieldOutOfRange, KeyChangeRefused, NewKeyExpired, UnsupportedToken
from vending.sts.identity import (
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    MeterPan,
)
from vending.sts.key_change import (
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeSection,
    KeyChangeThird,
    KeyChangeThirdSta,
    issue_key_change,
    join_key_parts,
    key_change_sections,
    pack_section,
    unpack_section,
)
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.management import decode_any_token
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import TokenFrame, TokenNumber, open_frame

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CASES = [case for case in map(json.loads, VECTORS.read_text().splitlines()) if "key change" in case["algorithm"]]
# Origin: STS 531 compliance tests, a published test key.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
METER = MeterKeyRecord(
    iin="600727",
    drn=Drn("00000000000"),
    ea=EncryptionAlgorithm.MISTY1,
    dkga=KeyDerivation.HMAC_SHA256,
    sgc="123457",
    kt=KeyType.UNIQUE,
    krn=1,
    tariff_index=1,
    ken=255,
    base_date=BaseDate.Y1993,
)
STA_METER = replace(METER, ea=EncryptionAlgorithm.STA)


def key_of(meter: MeterKeyRecord) -> DecoderKey:
    """Derive the key of a meter under the published vending key and the sample tables."""
    return derive_decoder_key(VENDING_KEY, meter, sta_tables=IEC_SAMPLE_TABLES)


def set_of(
    old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool = True, issued_at: datetime | None = None
) -> tuple[TokenNumber, ...]:
    """Make the set between two records of a meter."""
    keys = {"old_key": key_of(old), "new_key": key_of(new)}
    return issue_key_change(old=old, new=new, carry_sgc=carry_sgc, issued_at=issued_at, **keys)


def sections_of(tokens: tuple[TokenNumber, ...], key: DecoderKey) -> tuple[KeyChangeSection, ...]:
    """Read a set as the meter does that still holds the old key."""
    sections = []
    for each in tokens:
        section = decode_any_token(each, key)
        assert isinstance(
            section, KeyChangeFirst | KeyChangeSecond | KeyChangeThirdSta | KeyChangeThird | KeyChangeFourth
        )
        sections.append(section)
    return tuple(sections)


records = st.builds(
    replace,
    st.sampled_from([METER, STA_METER]),
    sgc=st.from_regex("[0-9]{6}", fullmatch=True),
    kt=st.sampled_from([KeyType.DEFAULT, KeyType.UNIQUE]),
    krn=st.integers(1, 9),
    tariff_index=st.integers(0, 99),
    ken=st.integers(0, 255),
    base_date=st.sampled_from(BaseDate),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["origin"][-24:])
def test_published_set_comes_out_with_its_roll_over_flag(case: dict[str, Any]) -> None:
    """The digits follow from the two records; the flag from their base dates."""
    meters = []
    for name in ("old", "new"):
        given_meter = case["inputs"][name]
        pan = MeterPan.parse(given_meter["pan"])
        meter = replace(METER, iin=pan.iin, drn=pan.drn, sgc=given_meter["sgc"], krn=given_meter["krn"])
        base_date = BaseDate(given_meter["bdt"])
        meters.append(replace(meter, tariff_index=int(given_meter["ti"]), base_date=base_date, ken=255))
    tokens = [each.digits for each in set_of(*meters)]
    published = list(case["expected"]["tokens"].values())
    assert tokens[: len(published)] == published


@given(new=records, carry_sgc=st.booleans())
def test_meter_puts_the_new_key_together_from_the_set(new: MeterKeyRecord, carry_sgc: bool) -> None:
    """Every attribute and the whole key arrive, in four tokens under EA11 and in two or three under EA07."""
    old = replace(new, sgc="000001", krn=1, tariff_index=0, kt=KeyType.UNIQUE, base_date=BaseDate.Y1993)
    tokens = set_of(old, new, carry_sgc=carry_sgc)
    assert set_of(old, new, carry_sgc=carry_sgc) == tokens
    sections = sections_of(tokens, key_of(old))
    assert join_key_parts(sections, new.ea) == key_of(new).key
    assert join_key_parts(sections[1:], new.ea) is None
    first, second = sections[:2]
    assert isinstance(first, KeyChangeFirst)
    assert isinstance(second, KeyChangeSecond)
    assert first.ken_high << 4 | second.ken_low == new.ken
    assert (first.krn, first.kt, second.tariff_index) == (new.krn, new.kt, new.tariff_index)
    assert first.roll_over is (new.base_date is not BaseDate.Y1993)
    match sections[2:]:
        case ():
            assert (new.ea, carry_sgc, first.third_section) == (EncryptionAlgorithm.STA, False, False)
        case (KeyChangeThirdSta(sgc=sgc),):
            assert (sgc, first.third_section) == (int(new.sgc), True)
        case KeyChangeThird(sgc_low=low), KeyChangeFourth(sgc_high=high):
            assert (high << 12 | low, first.third_section) == (int(new.sgc), False)
        case others:
            pytest.fail(f"a set of {len(others)} more sections")


def test_tariff_index_is_written_as_a_binary_number() -> None:
    """Index 99 is 63 hexadecimal in the 2nd token, though it is two decimal digits in the key's derivation."""
    second = key_change_sections(replace(METER, tariff_index=99), key_of(METER), roll_over=False, third_section=False)[
        1
    ]
    subclass, field44 = pack_section(second)
    assert (subclass, field44 >> 32 & 0xFF) == (4, 0x63)


def test_set_to_an_expired_key_is_refused_and_from_one_is_made() -> None:
    """CTSA16: the new key must be in force at issue; the old one need not be."""
    issued_at = datetime(2014, 3, 1, 9, 0, tzinfo=UTC)
    with pytest.raises(NewKeyExpired, match="KEN 85, got 169") as refusal:
        set_of(METER, replace(METER, krn=2, ken=85), issued_at=issued_at)
    assert refusal.value.code == "new_key_expired"
    assert len(set_of(replace(METER, ken=85), replace(METER, krn=2, ken=169), issued_at=issued_at)) == 4
    assert len(set_of(METER, replace(METER, krn=2, ken=85))) == 4


def test_set_to_an_era_that_is_over_is_refused_and_to_one_to_come_is_made() -> None:
    """KEN 255 never expires inside its era; before the era begins nothing has expired."""
    with pytest.raises(NewKeyExpired):
        set_of(METER, replace(METER, krn=2), issued_at=datetime(2026, 1, 1, tzinfo=UTC))
    new = replace(METER, krn=2, base_date=BaseDate.Y2035, ken=0)
    assert len(set_of(METER, new, issued_at=datetime(2034, 12, 31, tzinfo=UTC))) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (METER, replace(METER, drn=Drn("11111111115"))),
        (METER, STA_METER),
        (replace(METER, base_date=BaseDate.Y2014), METER),
    ],
)
def test_set_that_the_meter_would_not_survive_is_refused(old: MeterKeyRecord, new: MeterKeyRecord) -> None:
    """Another meter, another cipher, or an earlier base date."""
    with pytest.raises(KeyChangeRefused):
        set_of(old, new)


def test_set_back_to_an_initialisation_key_or_with_a_wrong_key_is_refused() -> None:
    """A meter never goes back to its first key, and each key must be for the meter's cipher."""
    new = replace(METER, kt=KeyType.INITIALISATION)
    with pytest.raises(KeyChangeRefused, match="key type"):
        issue_key_change(old=METER, new=new, old_key=key_of(METER), new_key=key_of(METER), carry_sgc=True)
    with pytest.raises(KeyChangeRefused):
        issue_key_change(old=METER, new=METER, old_key=key_of(METER), new_key=key_of(STA_METER), carry_sgc=True)
    with pytest.raises(KeyChangeRefused):
        key_change_sections(METER, key_of(METER), roll_over=False, third_section=True)


@pytest.mark.parametrize(
    ("subclass", "field44", "ea"),
    [
        (9, 0, EncryptionAlgorithm.STA),
        (8, 1, EncryptionAlgorithm.STA),
        (5, 0, EncryptionAlgorithm.MISTY1),
    ],
)
def test_section_that_its_cipher_does_not_have_is_refused(subclass: int, field44: int, ea: EncryptionAlgorithm) -> None:
    """A 4th section of EA07 and a 3rd one with bits set where zeros belong are no sections."""
    with pytest.raises(UnsupportedToken):
        unpack_section(TokenFrame(token_class=2, subclass=subclass, field44=field44, crc=0, crc_ok=True), ea)


def test_section_shows_no_part_of_the_key() -> None:
    """Neither in its text form nor in a refusal."""
    tokens = set_of(METER, replace(METER, tariff_index=2))
    shown = repr(sections_of(tokens, key_of(METER)))
    frames = [open_frame(each, key_of(METER)) for each in tokens]
    for frame in frames:
        assert str(frame.field44 & 0xFFFFFFFF) not in shown
    with pytest.raises(FieldOutOfRange) as refusal:
        pack_section(KeyChangeSecond(ken_low=0, tariff_index=0, key_part=123_456_789_012))
    assert "123456789012" not in str(refusal.value)
