"""Decoder key derivation against published keys, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

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

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CASES = [case for case in map(json.loads, VECTORS.read_text().splitlines()) if "vk" in case["inputs"]]

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


@pytest.mark.parametrize("dkga", [KeyDerivation.LEGACY, KeyDerivation.DES, KeyDerivation.TRIPLE_DES])
def test_derivation_other_than_dkga04_is_refused_by_type(dkga: KeyDerivation) -> None:
    """A meter of another derivation gets a typed refusal, never a wrong key."""
    with pytest.raises(UnsupportedKeyDerivation, match=f"DKGA{dkga}"):
        derive_decoder_key(VENDING_KEY, replace(METER, dkga=dkga))


@pytest.mark.parametrize("kt", [KeyType.INITIALISATION, KeyType.COMMON])
def test_dkga04_under_unconfirmed_key_type_is_refused(kt: KeyType) -> None:
    """What no vector confirms is refused: a wrong key makes tokens that never work."""
    with pytest.raises(UnsupportedKeyDerivation, match="key type"):
        derive_decoder_key(VENDING_KEY, replace(METER, kt=kt))


def test_vending_key_of_wrong_length_is_refused_without_showing_it() -> None:
    """The message names SGC and KRN and the length."""
    with pytest.raises(InvalidKey, match="SGC 201457 KRN 1: expected 20 bytes, got 8") as refusal:
        derive_decoder_key(VENDING_KEY[:8], METER)
    assert "abab" not in str(refusal.value)


def test_decoder_key_repr_hides_the_key() -> None:
    """A decoder key in a log line gives nothing away."""
    assert "929b" not in repr(derive_decoder_key(VENDING_KEY, METER))


def test_decoder_key_of_ea07_has_no_cipher_here() -> None:
    """EA07 is a typed refusal."""
    with pytest.raises(UnsupportedCipher, match="EA07"):
        DecoderKey(ea=EncryptionAlgorithm.STA, key=bytes(8)).cipher()
    with pytest.raises(InvalidKey):
        DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes(8))
