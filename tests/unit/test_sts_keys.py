"""Decoder key derivation against published keys, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.des import dkga02_key, dkga03_key
from vending.sts.errors import InvalidKey, UnsupportedCipher, UnsupportedKeyDerivation
from vending.sts.identity import (
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    MeterPan,
)
from vending.sts.keys import DecoderKey, derive_decoder_key, dkga04_message
from vending.sts.sta import IEC_SAMPLE_TABLES

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CASES = [case for case in map(json.loads, VECTORS.read_text().splitlines()) if "DKGA04" in case["algorithm"]]
CASES = [case for case in CASES if "vk" in case["inputs"]]

# Origin: STS 531 compliance tests, a published test key.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
METER = MeterKeyRecord(
    iin="600727",
    drn=Drn("00000000000"),
    ea=EncryptionAlgorithm.MISTY1,
    dkga=KeyDerivation.HMAC_SHA256,
    sgc="201457",
    kt=KeyType.UNIQUE,
    krn=1,
    tariff_index=1,
    ken=255,
    base_date=BaseDate.Y2014,
)
DES_KEY = b"\xab" * 8
DES_METER = replace(METER, ea=EncryptionAlgorithm.STA, dkga=KeyDerivation.DES, sgc="123456")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["origin"][-24:])
def test_dkga04_published_meter_gets_published_key(case: dict[str, dict[str, str]]) -> None:
    """The derived key equals the published one for three base dates and both DRN lengths."""
    given = case["inputs"]
    pan = MeterPan.parse(given["pan"])
    meter = replace(
        METER,
        iin=pan.iin,
        drn=pan.drn,
        sgc=given["sgc"],
        krn=int(given["krn"]),
        tariff_index=int(given["ti"]),
        base_date=BaseDate(given["bdt"]),
    )
    derived = derive_decoder_key(bytes.fromhex(given["vk"]), meter)
    assert derived.key.hex() == case["expected"]["decoder_key"]


def test_dkga04_gives_the_published_key_of_both_ciphers() -> None:
    """The length asked for is part of the message, so the short key is no prefix of the long one."""
    # Origin: the same meter under EA07 and EA11 in the STS 531 compliance tests.
    assert derive_decoder_key(VENDING_KEY, METER).key.hex() == "929bd3a415c9420a05ec5ee9f3ce91c3"
    short = derive_decoder_key(VENDING_KEY, replace(METER, ea=EncryptionAlgorithm.STA))
    assert short.key.hex() == "87f3ecbb2e46b48f"


def test_dkga04_message_holds_every_attribute_of_the_key() -> None:
    """Each attribute changes the message, and so the key: a tariff move is a key change."""
    others = [
        replace(METER, sgc="201458"),
        replace(METER, kt=KeyType.DEFAULT),
        replace(METER, krn=2),
        replace(METER, tariff_index=2),
        replace(METER, base_date=BaseDate.Y1993),
        replace(METER, drn=Drn("11111111115")),
    ]
    messages = {dkga04_message(each) for each in [METER, *others]}
    assert len(messages) == 1 + len(others)
    assert dkga04_message(METER) == dkga04_message(replace(METER, ken=1))


def test_dkga02_gives_the_published_key() -> None:
    """Single DES of PANBlock and CONTROLBlock, with the block and the key added."""
    # Origin: STS 531 compliance tests, EA07; a vending key of eight equal bytes, so its byte order stays open.
    assert derive_decoder_key(DES_KEY, DES_METER).key.hex() == "e653341f9d5bf36f"


def test_dkga02_adds_the_block_and_the_key_to_single_des() -> None:
    """DES itself is that of FIPS 46: with block and key taken away its known answer stands."""
    # Origin: the worked example of DES known as 133457799BBCDFF1.
    key, plain = bytes.fromhex("133457799bbcdff1"), bytes.fromhex("0123456789abcdef")
    added = int.from_bytes(key, "big") ^ int.from_bytes(plain, "big")
    assert int.from_bytes(dkga02_key(key, plain), "big") ^ added == 0x85E813540F0AB405


@given(key=st.binary(min_size=8, max_size=8), block=st.binary(min_size=8, max_size=8))
def test_dkga03_with_equal_halves_is_dkga02_without_the_key(key: bytes, block: bytes) -> None:
    """Triple DES with two equal keys is single DES; DKGA03 adds the block only."""
    added = bytes(a ^ b for a, b in zip(dkga02_key(key, block), key, strict=True))
    assert dkga03_key(key * 2, block) == added


def test_dkga03_is_derived_only_for_who_allows_the_unconfirmed() -> None:
    """No vector confirms it, so nobody gets it by accident."""
    meter = replace(DES_METER, dkga=KeyDerivation.TRIPLE_DES)
    with pytest.raises(UnsupportedKeyDerivation, match="DKGA03"):
        derive_decoder_key(DES_KEY * 2, meter)
    assert len(derive_decoder_key(DES_KEY * 2, meter, allow_unconfirmed=True).key) == 8


@pytest.mark.parametrize("dkga", [KeyDerivation.LEGACY, KeyDerivation.DES, KeyDerivation.TRIPLE_DES])
def test_derivation_that_cannot_be_for_the_meter_is_refused_by_type(dkga: KeyDerivation) -> None:
    """DKGA01 is not offered, and the DES ones give no key for EA11: a typed refusal, never a wrong key."""
    with pytest.raises(UnsupportedKeyDerivation, match=f"DKGA{dkga}"):
        derive_decoder_key(VENDING_KEY, replace(METER, dkga=dkga), allow_unconfirmed=True)
    with pytest.raises(UnsupportedKeyDerivation):
        derive_decoder_key(DES_KEY, replace(DES_METER, dkga=KeyDerivation.LEGACY))


def test_dkga02_under_initialisation_key_is_refused() -> None:
    """What an initialisation key takes is not known here."""
    with pytest.raises(UnsupportedKeyDerivation, match="key type"):
        derive_decoder_key(DES_KEY, replace(DES_METER, kt=KeyType.INITIALISATION))


@pytest.mark.parametrize("kt", [KeyType.INITIALISATION, KeyType.COMMON])
def test_dkga04_under_unconfirmed_key_type_is_refused(kt: KeyType) -> None:
    """What no vector confirms is refused: a wrong key makes tokens that never work."""
    with pytest.raises(UnsupportedKeyDerivation, match="key type"):
        derive_decoder_key(VENDING_KEY, replace(METER, kt=kt))


def test_vending_key_of_wrong_length_is_refused_without_showing_it() -> None:
    """The message names SGC and KRN and the length."""
    with pytest.raises(InvalidKey, match="SGC 201457 KRN 1: expected 20 bytes, got 8") as refusal:
        derive_decoder_key(VENDING_KEY[:8], METER)
    with pytest.raises(InvalidKey, match="expected 8 bytes, got 20"):
        derive_decoder_key(VENDING_KEY, DES_METER)
    assert "abab" not in str(refusal.value)


def test_decoder_key_repr_hides_the_key() -> None:
    """A decoder key in a log line gives nothing away."""
    assert "929b" not in repr(derive_decoder_key(VENDING_KEY, METER))


def test_decoder_key_of_ea07_has_a_cipher_only_with_tables() -> None:
    """No table is assumed for a meter; EA11 takes none."""
    with pytest.raises(UnsupportedCipher, match="EA07"):
        DecoderKey(ea=EncryptionAlgorithm.STA, key=bytes(8)).cipher()
    with pytest.raises(UnsupportedCipher, match="EA07"):
        derive_decoder_key(DES_KEY, DES_METER).cipher()
    derived = derive_decoder_key(DES_KEY, DES_METER, sta_tables=IEC_SAMPLE_TABLES)
    assert derived.cipher().decrypt(derived.cipher().encrypt(1)) == 1
    assert derive_decoder_key(VENDING_KEY, METER, sta_tables=IEC_SAMPLE_TABLES).sta_tables is None
    with pytest.raises(InvalidKey):
        DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes(8))
