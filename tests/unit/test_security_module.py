"""The security module: what it mints, what it refuses, and how its keys lie at rest."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.key_custody import (
    SealedVendingKey,
    join_components,
    key_check_value,
    open_component,
    open_vending_key,
    read_component,
    seal_component,
    seal_vending_key,
    vending_key_check_value,
)
from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleUnavailable,
    SealBroken,
    SecurityModule,
    TokenRefused,
    VendingKeyConflict,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.soft_module import SoftSecurityModule
from vending.sts.amounts import CurrencyField
from vending.sts.errors import (
    FieldOutOfRange,
    InvalidIdentity,
    InvalidKey,
    KeyChangeRefused,
    NewKeyExpired,
    StsError,
    TidOutOfRange,
    UnsupportedCipher,
    UnsupportedKeyDerivation,
)
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.key_change import (
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeSection,
    KeyChangeThird,
    KeyChangeThirdSta,
    join_key_parts,
)
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.management import ExtendedControl, ExtendedFlag, Management, ManagementKind, decode_any_token
from vending.sts.sta import IEC_SAMPLE_TABLES
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

# Origin: sts.md, a published derivation by DKGA02: vending key AB..., this meter, decoder key e653341f9d5bf36f.
DES_KEY = bytes.fromhex("ab" * 8)
DES_METER = replace(METER, ea=EncryptionAlgorithm.STA, dkga=KeyDerivation.DES, sgc="123456")
DES_DECODER = DecoderKey(
    ea=EncryptionAlgorithm.STA, key=bytes.fromhex("e653341f9d5bf36f"), sta_tables=IEC_SAMPLE_TABLES
)
ISSUED_AT = datetime(2026, 11, 22, tzinfo=UTC)

keys = st.sampled_from([8, 16, 20]).flatmap(lambda length: st.binary(min_size=length, max_size=length))
masters = st.binary(min_size=32, max_size=32)
sgcs = st.from_regex("[0-9]{6}", fullmatch=True)
krns = st.integers(1, 9)


def module_with(*sealed: SealedVendingKey) -> SecurityModule:
    """Build a module whose RND is always 5, as in the published tests."""
    return SoftSecurityModule(MASTER, sealed, rnd_nibble=lambda: 5)


def test_module_mints_the_published_unit_token() -> None:
    """The digits of the compliance test come out of record, amount field, TID and RND 5."""
    # Origin: STS 531-1-07 Ed 2.2 CTSA10.36 (time credit, largest amount).
    number = asyncio.run(
        module_with(SEALED).mint_unit_credit(METER, service=CreditService.TIME, amount16=0xFFFF, tid=6_586_794)
    )
    assert number.digits == "16426719047193188319"


def test_module_mints_the_published_currency_token() -> None:
    """A currency token has no RND, so its digits follow from amount and TID alone."""
    # Origin: STS 531-1-07 Ed 2.2 CTSA20.6.
    amount = CurrencyField.encode(18_202_624 * 100_000)
    number = asyncio.run(
        module_with(SEALED).mint_currency_credit(METER, service=CreditService.ELECTRICITY, amount=amount, tid=7_171_926)
    )
    assert number.digits == "24959219471966036989"


def test_module_verifies_what_it_minted_and_refuses_what_it_did_not() -> None:
    """Verification reads the token as the meter would, and answers a stranger with a code."""
    module = module_with(SEALED)
    number = asyncio.run(module.mint_unit_credit(METER, service=CreditService.GAS, amount16=77, tid=1_000))
    assert asyncio.run(module.verify(METER, number)) == UnitCredit(
        service=CreditService.GAS, rnd=5, tid=1_000, amount16=77
    )
    refused = asyncio.run(module.verify(replace(METER, tariff_index=2), number))
    assert isinstance(refused, TokenRefused)
    assert refused.code == "token_crc_mismatch"
    assert number.digits not in refused.reason


@pytest.mark.parametrize("tid", [86 << 16, 0xFFFFFF])
def test_module_under_expired_key_refuses_credit(tid: int) -> None:
    """Beyond the key's expiry number no credit is made, of either kind; reading still works."""
    module, meter = module_with(SEALED), replace(METER, ken=85)
    with pytest.raises(VendingKeyExpired, match="KEN 85") as refusal:
        asyncio.run(module.mint_unit_credit(meter, service=CreditService.ELECTRICITY, amount16=1, tid=tid))
    assert refusal.value.code == "vending_key_expired"
    with pytest.raises(VendingKeyExpired):
        asyncio.run(
            module.mint_currency_credit(
                meter, service=CreditService.ELECTRICITY, amount=CurrencyField.encode(1), tid=tid
            )
        )
    last = asyncio.run(
        module.mint_unit_credit(meter, service=CreditService.ELECTRICITY, amount16=1, tid=(85 << 16) + 0xFFFF)
    )
    assert isinstance(asyncio.run(module.verify(replace(meter, ken=0), last)), UnitCredit)


@pytest.mark.parametrize("kt", [KeyType.INITIALISATION, KeyType.DEFAULT])
def test_module_for_meter_under_default_key_refuses_credit(kt: KeyType) -> None:
    """A meter not yet coded takes no credit, so none is sold to it."""
    with pytest.raises(CreditKeyTypeRefused):
        asyncio.run(
            module_with(SEALED).mint_unit_credit(
                replace(METER, kt=kt), service=CreditService.ELECTRICITY, amount16=1, tid=1
            )
        )


def test_module_without_the_key_says_which_one_is_missing() -> None:
    """The missing key is named by SGC and KRN."""
    with pytest.raises(VendingKeyUnknown, match="SGC 201457 KRN 2"):
        asyncio.run(module_with(SEALED).verify(replace(METER, krn=2), TokenNumber("0" * 20)))
    with pytest.raises(VendingKeyUnknown):
        asyncio.run(module_with().key_check_value(sgc="201457", krn=1))


def test_module_refuses_what_the_engine_refuses() -> None:
    """An impossible TID or derivation is a typed error, not a token."""
    module = module_with(SEALED)
    with pytest.raises(TidOutOfRange):
        asyncio.run(module.mint_unit_credit(METER, service=CreditService.ELECTRICITY, amount16=1, tid=1 << 24))
    with pytest.raises(UnsupportedKeyDerivation):
        asyncio.run(module.verify(replace(METER, dkga=KeyDerivation.DES), TokenNumber("0" * 20)))


def test_module_with_wrong_master_key_does_not_start() -> None:
    """A wrong master key shows at the start, not at the first sale."""
    with pytest.raises(SealBroken):
        SoftSecurityModule(bytes(32), [SEALED], rnd_nibble=lambda: 0)


def test_module_with_two_keys_of_one_name_does_not_start() -> None:
    """The same sealed key twice is one key; another under its name is a conflict."""
    assert asyncio.run(module_with(SEALED, SEALED).key_check_value(sgc="201457", krn=1)) == key_check_value(VENDING_KEY)
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
        (MASTER, "201457", 1, VENDING_KEY[:10], InvalidKey),
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
    number = asyncio.run(module.mint_currency_credit(METER, service=CreditService.ELECTRICITY, amount=amount, tid=9))
    read = asyncio.run(module.verify(METER, number))
    assert isinstance(read, CurrencyCredit)
    assert read.amount.amount_e5 >= 123_456_789


def sealed(sgc: str, krn: int, key: bytes) -> SealedVendingKey:
    """Seal a key under the master of these tests."""
    return SealedVendingKey(sgc=sgc, krn=krn, sealed=seal_vending_key(MASTER, sgc, krn, key))


def sta_module(*, allow_triple_des: bool = False) -> SecurityModule:
    """Build a module with the sample tables and a key of each length."""
    kept = [SEALED, sealed("123456", 1, DES_KEY), sealed("123456", 3, bytes(range(16)))]
    return SoftSecurityModule(
        MASTER, kept, rnd_nibble=lambda: 5, sta_tables=IEC_SAMPLE_TABLES, allow_triple_des=allow_triple_des
    )


@pytest.mark.parametrize("kind", list(ManagementKind))
def test_management_token_of_each_kind_reads_back(kind: ManagementKind) -> None:
    """Kind, value and TID are in the token; RND comes from the module."""
    module = module_with(SEALED)
    number = asyncio.run(module.mint_management(METER, kind=kind, value16=0x1234, tid=1_000))
    assert asyncio.run(module.verify(METER, number)) == Management(kind=kind, rnd=5, tid=1_000, value16=0x1234)


def test_extended_set_token_is_an_index_and_a_value_or_a_flag() -> None:
    """The same 16 bits of subclass 10 are a control, or with index 63 a flag; 17 bits are none."""
    module = module_with(SEALED)

    def read(value16: int) -> object:
        kind = ExtendedSet.EXTENDED_SET
        number = asyncio.run(module.mint_management(METER, kind=kind, value16=value16, tid=7))
        return asyncio.run(module.verify(METER, number))

    assert read(5 << 10 | 700) == ExtendedControl(rnd=5, tid=7, index=5, value=700)
    assert read(63 << 10 | 9 << 1 | 1) == ExtendedFlag(rnd=5, tid=7, flag=9, value=True)
    with pytest.raises(FieldOutOfRange):
        read(1 << 16)


def test_management_under_expired_key_is_refused_and_under_default_key_minted() -> None:
    """An expired key makes nothing that has a TID; only credit minds the type of the key."""
    module = module_with(SEALED)
    with pytest.raises(VendingKeyExpired):
        asyncio.run(
            module.mint_management(replace(METER, ken=85), kind=ManagementKind.CLEAR_TAMPER, value16=0, tid=86 << 16)
        )
    default = replace(METER, kt=KeyType.DEFAULT)
    number = asyncio.run(module.mint_management(default, kind=ManagementKind.CLEAR_TAMPER, value16=0, tid=1))
    assert isinstance(asyncio.run(module.verify(default, number)), Management)


def test_key_change_moves_a_meter_from_an_expired_key_to_one_in_force() -> None:
    """The set is read under the old key and carries the new one, which the module derives and never shows."""
    new_key = bytes(range(20))
    module = module_with(SEALED, sealed("201457", 2, new_key))
    old, new = replace(METER, ken=1), replace(METER, krn=2, ken=255, tariff_index=7)
    numbers = asyncio.run(module.mint_key_change(old, new, carry_sgc=True, issued_at=ISSUED_AT))
    assert len(numbers) == 4
    sections = tuple(_section(module.verify(old, number)) for number in numbers)
    assert join_key_parts(sections, new.ea) == derive_decoder_key(new_key, new).key
    assert numbers == asyncio.run(module.mint_key_change(old, new, carry_sgc=True, issued_at=ISSUED_AT))
    refusals: list[tuple[MeterKeyRecord, type[StsError]]] = [
        (replace(new, ken=1), NewKeyExpired),
        (replace(new, kt=KeyType.INITIALISATION), KeyChangeRefused),
        (replace(new, krn=3), VendingKeyUnknown),
    ]
    for refused, kind in refusals:
        with pytest.raises(kind):
            asyncio.run(module.mint_key_change(METER, refused, carry_sgc=True, issued_at=ISSUED_AT))


def _section(answer: Awaitable[object]) -> KeyChangeSection:
    read = asyncio.run(_answered(answer))
    assert isinstance(read, KeyChangeFirst | KeyChangeSecond | KeyChangeThirdSta | KeyChangeThird | KeyChangeFourth)
    return read


async def _answered(answer: Awaitable[object]) -> object:
    return await answer


def test_module_with_a_des_key_mints_under_the_published_decoder_key() -> None:
    """An 8-byte vending key makes EA07 tokens by DKGA02, where tables are given; without them it makes none."""
    number = asyncio.run(
        sta_module().mint_unit_credit(DES_METER, service=CreditService.ELECTRICITY, amount16=256, tid=1_698_595)
    )
    read = decode_any_token(number, DES_DECODER)
    assert read == UnitCredit(service=CreditService.ELECTRICITY, rnd=5, tid=1_698_595, amount16=256)
    bare = SoftSecurityModule(MASTER, [sealed("123456", 1, DES_KEY)], rnd_nibble=lambda: 5)
    with pytest.raises(UnsupportedCipher):
        asyncio.run(bare.mint_unit_credit(DES_METER, service=CreditService.ELECTRICITY, amount16=1, tid=1))


def test_sixteen_byte_key_is_used_only_where_it_is_allowed() -> None:
    """DKGA03 is withdrawn and confirmed by no vector."""
    meter = replace(DES_METER, dkga=KeyDerivation.TRIPLE_DES, krn=3)
    credit = {"service": CreditService.ELECTRICITY, "amount16": 1, "tid": 1}
    with pytest.raises(UnsupportedKeyDerivation):
        asyncio.run(sta_module().mint_unit_credit(meter, **credit))  # type: ignore[arg-type]  # As named above.
    allowed = sta_module(allow_triple_des=True)
    number = asyncio.run(allowed.mint_unit_credit(meter, **credit))  # type: ignore[arg-type]  # As named above.
    assert isinstance(asyncio.run(allowed.verify(meter, number)), UnitCredit)


def test_key_of_another_length_than_the_record_says_is_refused() -> None:
    """A record that names the wrong derivation gets no token under the right key."""
    with pytest.raises(InvalidKey):
        asyncio.run(sta_module().verify(replace(DES_METER, dkga=KeyDerivation.HMAC_SHA256), TokenNumber("0" * 20)))


def test_module_takes_changed_keys_and_stops_at_ones_that_do_not_open() -> None:
    """A key loaded later is used, a retired one no more; strange keys stop the module instead of being ignored."""
    answers: list[list[SealedVendingKey] | None] = [None, [sealed("201457", 2, VENDING_KEY)]]

    async def changed() -> list[SealedVendingKey] | None:
        return answers.pop(0) if answers else None

    module = SoftSecurityModule(MASTER, [SEALED], rnd_nibble=lambda: 5, changed_keys=changed)

    async def story() -> None:
        assert await module.key_check_value(sgc="201457", krn=1)
        assert await module.key_check_value(sgc="201457", krn=2)
        with pytest.raises(VendingKeyUnknown):
            await module.key_check_value(sgc="201457", krn=1)
        strange = seal_vending_key(bytes(32), "201457", 2, VENDING_KEY)
        answers.append([SealedVendingKey(sgc="201457", krn=2, sealed=strange)])
        with pytest.raises(ModuleUnavailable):
            await module.key_check_value(sgc="201457", krn=2)

    asyncio.run(story())


def test_components_join_to_the_key_in_either_order() -> None:
    """The key is the exclusive or; one component alone is as good as random."""
    first = read_component("00112233 44556677 8899aabb ccddeeff 01234567", "component")
    second = bytes(a ^ b for a, b in zip(first, VENDING_KEY, strict=True))
    assert join_components(first, second, "key") == join_components(second, first, "key") == VENDING_KEY


@pytest.mark.parametrize("text", ["", "00", "zz" * 20, "00" * 20, "ab" * 19, "ab" * 21, "a" * 39, "\u0661" * 40])
def test_component_of_another_form_is_refused_without_being_shown(text: str) -> None:
    """Only 16, 32 or 40 hexadecimal digits that are not all zero are a component."""
    with pytest.raises(InvalidKey) as refusal:
        read_component(text, "component")
    assert not text or text not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None


def test_components_that_are_equal_or_of_two_lengths_make_no_key() -> None:
    """Equal components would make a key of zeros."""
    for second in (VENDING_KEY, DES_KEY):
        with pytest.raises(InvalidKey) as refusal:
            join_components(VENDING_KEY, second, "key of SGC 201457 KRN 1")
        assert "abab" not in str(refusal.value)


def test_sealed_component_is_no_key_and_a_sealed_key_no_component() -> None:
    """What waits for its second half can not be put in the place of a key."""
    component = seal_component(MASTER, "201457", 1, VENDING_KEY)
    assert open_component(MASTER, "201457", 1, component) == VENDING_KEY
    with pytest.raises(SealBroken):
        open_vending_key(MASTER, "201457", 1, component)
    with pytest.raises(SealBroken):
        open_component(MASTER, "201457", 1, SEALED.sealed)


def test_sealed_key_of_one_kind_does_not_open_as_another() -> None:
    """The length of the sealed bytes says the kind, and the seal covers it."""
    for length in (8, 16, 20):
        whole = seal_vending_key(MASTER, "201457", 1, bytes(range(length)))
        assert len(whole) == 29 + length
        for other in {8, 16, 20} - {length}:
            cut = (whole + bytes(12))[: 29 + other]
            with pytest.raises(SealBroken):
                open_vending_key(MASTER, "201457", 1, cut)


def test_check_value_of_a_des_key_is_that_of_the_field() -> None:
    """Eight zero bytes enciphered: the value that comes with a DES key on paper."""
    # Origin: the DES known answer test of NIST SP 500-20, key of ones (0101010101010101), plain text 0.
    assert vending_key_check_value(bytes.fromhex("0101010101010101")) == "8CA64D"
    assert vending_key_check_value(bytes.fromhex("01" * 16)) == "8CA64D"
    assert vending_key_check_value(VENDING_KEY) == key_check_value(VENDING_KEY)
