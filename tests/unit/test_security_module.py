"""The security module: what it mints, what it refuses, and how its keys lie at rest."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.security import (
    CreditKeyTypeRefused,
    SealBroken,
    SealedVendingKey,
    SecurityModule,
    SoftSecurityModule,
    TokenRefused,
    VendingKeyConflict,
    VendingKeyExpired,
    VendingKeyUnknown,
    key_check_value,
    open_vending_key,
    seal_vending_key,
)
from vending.sts.amounts import CurrencyField
from vending.sts.errors import InvalidIdentity, InvalidKey, StsError, TidOutOfRange, UnsupportedKeyDerivation
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.tokens import CreditService, CurrencyCredit, TokenNumber, UnitCredit

MASTER = bytes(range(32))
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
SEALED = SealedVendingKey(sgc="201457", krn=1, sealed=seal_vending_key(MASTER, "201457", 1, VENDING_KEY))

keys = st.binary(min_size=20, max_size=20)
masters = st.binary(min_size=32, max_size=32)
sgcs = st.from_regex("[0-9]{6}", fullmatch=True)
krns = st.integers(1, 9)


def module_with(*sealed: SealedVendingKey) -> SecurityModule:
    """Build a module whose RND is always 5, as in the published tests."""
    return SoftSecurityModule(MASTER, sealed, rnd_nibble=lambda: 5)


def test_module_mints_the_published_unit_token() -> None:
    """The digits of the compliance test come out of record, amount field, TID and RND 5."""
    # Origin: STS 531-1-07 Ed 2.2 CTSA10.36 (time credit, largest amount).
    number = module_with(SEALED).mint_unit_credit(METER, service=CreditService.TIME, amount16=0xFFFF, tid=6_586_794)
    assert number.digits == "16426719047193188319"


def test_module_mints_the_published_currency_token() -> None:
    """A currency token has no RND, so its digits follow from amount and TID alone."""
    # Origin: STS 531-1-07 Ed 2.2 CTSA20.6.
    amount = CurrencyField.encode(18_202_624 * 100_000)
    number = module_with(SEALED).mint_currency_credit(
        METER, service=CreditService.ELECTRICITY, amount=amount, tid=7_171_926
    )
    assert number.digits == "24959219471966036989"


def test_module_verifies_what_it_minted_and_refuses_what_it_did_not() -> None:
    """Verification reads the token as the meter would, and answers a stranger with a code."""
    module = module_with(SEALED)
    number = module.mint_unit_credit(METER, service=CreditService.GAS, amount16=77, tid=1_000)
    assert module.verify(METER, number) == UnitCredit(service=CreditService.GAS, rnd=5, tid=1_000, amount16=77)
    refused = module.verify(replace(METER, tariff_index=2), number)
    assert isinstance(refused, TokenRefused)
    assert refused.code == "token_crc_mismatch"
    assert number.digits not in refused.reason


@pytest.mark.parametrize("tid", [86 << 16, 0xFFFFFF])
def test_module_under_expired_key_refuses_credit(tid: int) -> None:
    """Beyond the key's expiry number no credit is made, of either kind; reading still works."""
    module, meter = module_with(SEALED), replace(METER, ken=85)
    with pytest.raises(VendingKeyExpired, match="KEN 85") as refusal:
        module.mint_unit_credit(meter, service=CreditService.ELECTRICITY, amount16=1, tid=tid)
    assert refusal.value.code == "vending_key_expired"
    with pytest.raises(VendingKeyExpired):
        module.mint_currency_credit(meter, service=CreditService.ELECTRICITY, amount=CurrencyField.encode(1), tid=tid)
    last = module.mint_unit_credit(meter, service=CreditService.ELECTRICITY, amount16=1, tid=(85 << 16) + 0xFFFF)
    assert isinstance(module.verify(replace(meter, ken=0), last), UnitCredit)


@pytest.mark.parametrize("kt", [KeyType.INITIALISATION, KeyType.DEFAULT])
def test_module_for_meter_under_default_key_refuses_credit(kt: KeyType) -> None:
    """A meter not yet coded takes no credit, so none is sold to it."""
    with pytest.raises(CreditKeyTypeRefused):
        module_with(SEALED).mint_unit_credit(
            replace(METER, kt=kt), service=CreditService.ELECTRICITY, amount16=1, tid=1
        )


def test_module_without_the_key_says_which_one_is_missing() -> None:
    """The missing key is named by SGC and KRN."""
    with pytest.raises(VendingKeyUnknown, match="SGC 201457 KRN 2"):
        module_with(SEALED).verify(replace(METER, krn=2), TokenNumber("0" * 20))
    with pytest.raises(VendingKeyUnknown):
        module_with().key_check_value(sgc="201457", krn=1)


def test_module_refuses_what_the_engine_refuses() -> None:
    """An impossible TID or derivation is a typed error, not a token."""
    module = module_with(SEALED)
    with pytest.raises(TidOutOfRange):
        module.mint_unit_credit(METER, service=CreditService.ELECTRICITY, amount16=1, tid=1 << 24)
    with pytest.raises(UnsupportedKeyDerivation):
        module.verify(replace(METER, dkga=KeyDerivation.DES), TokenNumber("0" * 20))


def test_module_with_wrong_master_key_does_not_start() -> None:
    """A wrong master key shows at the start, not at the first sale."""
    with pytest.raises(SealBroken):
        SoftSecurityModule(bytes(32), [SEALED], rnd_nibble=lambda: 0)


def test_module_with_two_keys_of_one_name_does_not_start() -> None:
    """The same sealed key twice is one key; another under its name is a conflict."""
    assert module_with(SEALED, SEALED).key_check_value(sgc="201457", krn=1) == key_check_value(VENDING_KEY)
    other = replace(SEALED, sealed=seal_vending_key(MASTER, "201457", 1, bytes(20)))
    with pytest.raises(VendingKeyConflict, match="SGC 201457 KRN 1"):
        module_with(SEALED, other)


def test_module_shows_no_key_in_any_text() -> None:
    """Representations give counts and names only."""
    shown = f"{module_with(SEALED)!r} {SEALED!r}"
    for secret in (VENDING_KEY, MASTER, SEALED.sealed):
        assert secret.hex()[:8] not in shown
        assert repr(secret)[2:10] not in shown


def test_key_check_value_tells_keys_apart_in_six_digits() -> None:
    """Two people can compare a key aloud without seeing it."""
    values = {key_check_value(VENDING_KEY), key_check_value(bytes(20)), key_check_value(VENDING_KEY[::-1])}
    assert len(values) == 3
    assert all(len(value) == 6 and int(value, 16) >= 0 for value in values)


@given(master=masters, sgc=sgcs, krn=krns, key=keys)
def test_seal_opens_to_the_same_key_and_repeats(master: bytes, sgc: str, krn: int, key: bytes) -> None:
    """Sealing is undone by opening, and sealing again changes nothing."""
    sealed = seal_vending_key(master, sgc, krn, key)
    assert open_vending_key(master, sgc, krn, sealed) == key
    assert seal_vending_key(master, sgc, krn, key) == sealed
    assert key not in sealed


@given(key=keys, other=keys)
def test_seal_of_two_keys_never_shares_a_nonce(key: bytes, other: bytes) -> None:
    """A nonce used for two keys would give both away."""
    nonces = {seal_vending_key(MASTER, "201457", 1, each)[1:13] for each in (key, other)}
    nonces.add(seal_vending_key(MASTER, "201457", 2, key)[1:13])
    assert len(nonces) == (2 if key == other else 3)


def test_seal_with_any_bit_changed_does_not_open() -> None:
    """Every bit of version, nonce, key and tag is covered."""
    for bit in range(8 * len(SEALED.sealed)):
        altered = bytearray(SEALED.sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken) as refusal:
            open_vending_key(MASTER, "201457", 1, bytes(altered))
        assert refusal.value.__cause__ is None


def test_seal_cut_short_does_not_open() -> None:
    """No prefix of a sealed key opens."""
    for length in range(len(SEALED.sealed)):
        with pytest.raises(SealBroken):
            open_vending_key(MASTER, "201457", 1, SEALED.sealed[:length])


@pytest.mark.parametrize(
    ("master", "sgc", "krn"), [(bytes(32), "201457", 1), (MASTER, "201458", 1), (MASTER, "201457", 2)]
)
def test_seal_under_another_name_or_master_does_not_open(master: bytes, sgc: str, krn: int) -> None:
    """A sealed key moved to another row of the key table is worthless there."""
    with pytest.raises(SealBroken, match=f"SGC {sgc} KRN {krn}"):
        open_vending_key(master, sgc, krn, SEALED.sealed)


@pytest.mark.parametrize(
    ("master", "sgc", "krn", "key", "refusal"),
    [
        (bytes(16), "201457", 1, VENDING_KEY, InvalidKey),
        (MASTER, "201457", 1, VENDING_KEY[:8], InvalidKey),
        (MASTER, "20145", 1, VENDING_KEY, InvalidIdentity),
        (MASTER, "201457", 0, VENDING_KEY, InvalidIdentity),
    ],
)
def test_seal_of_something_else_is_refused(
    master: bytes, sgc: str, krn: int, key: bytes, refusal: type[StsError]
) -> None:
    """Lengths and names are checked before anything is sealed, and the message shows no key."""
    with pytest.raises(refusal) as raised:
        seal_vending_key(master, sgc, krn, key)
    assert "abab" not in str(raised.value)


def test_currency_token_of_the_module_reads_back_as_encoded() -> None:
    """What is to be billed and printed is the encoded amount, never less than asked for."""
    module = module_with(SEALED)
    amount = CurrencyField.encode(123_456_789)
    number = module.mint_currency_credit(METER, service=CreditService.ELECTRICITY, amount=amount, tid=9)
    read = module.verify(METER, number)
    assert isinstance(read, CurrencyCredit)
    assert read.amount.amount_e5 >= 123_456_789
