"""Every token of the standard is there, made and read: a list of all, with what the plain oracle makes of each."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests import sts_oracle as oracle
from vending.sts.amounts import CurrencyField, decode_unit_amount, encode_unit_amount
from vending.sts.errors import AmountOutOfRange, KeyChangeRefused, NewKeyExpired, UnsupportedToken
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.key_change import (
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeThird,
    KeyChangeThirdSta,
    issue_key_change,
)
from vending.sts.keys import DecoderKey, derive_decoder_key
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
from vending.sts.tid import TID_MAX, TidDeclined, is_key_expired, next_tid, special_tid_at, tid_at
from vending.sts.tokens import (
    DISPLAY_TESTS_MAX,
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    TokenNumber,
    UnitCredit,
    display_test_control,
    seal_frame,
)

TABLES: oracle.Tables = (IEC_SAMPLE_TABLES.s1, IEC_SAMPLE_TABLES.s2, IEC_SAMPLE_TABLES.p)
KEYS = {
    EncryptionAlgorithm.STA: DecoderKey(
        ea=EncryptionAlgorithm.STA, key=bytes.fromhex("0abc12def3456789"), sta_tables=IEC_SAMPLE_TABLES
    ),
    EncryptionAlgorithm.MISTY1: DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes(range(16))),
}
RND, TID, WORD = 5, 0x67711F, 0x1234ABCD
STA, MISTY1 = EncryptionAlgorithm
BOTH = (STA, MISTY1)


def managed(kind: ManagementKind, value16: int = 0) -> Management:
    """Return a management token."""
    return Management(kind=kind, rnd=RND, tid=TID, value16=value16)


def controls(maker_digits: int) -> list[tuple[AnyToken, str]]:
    """Return every display test in one maker length with its body."""
    width = 44 - 4 * maker_digits
    return [
        (
            DisplayTest(
                maker_digits=maker_digits, maker_code=7, control=display_test_control(n, maker_digits=maker_digits)
            ),
            oracle.bits((1 << width) - 1 if n == 0 else 1 << n - 1, width) + oracle.bits(7, 4 * maker_digits),
        )
        for n in range(19)
    ]


# By class and subclass: under which ciphers, and each token with the 44 bits between subclass and CRC.
STANDARD: dict[tuple[int, int], tuple[tuple[EncryptionAlgorithm, ...], list[tuple[AnyToken, str]]]] = {
    **{
        (0, service): (
            BOTH,
            [
                (
                    UnitCredit(service=service, rnd=RND, tid=TID, amount16=encode_unit_amount(tenths)),
                    oracle.with_tid(RND, TID, oracle.amount16(tenths)),
                )
                for tenths in (0, 1, 256, 16_383, 16_384, 180_215, 1_818_525, 18_201_624)
            ],
        )
        for service in CreditService
    },
    **{
        (0, 4 + service): (
            BOTH,
            [
                (
                    CurrencyCredit(service=service, tid=TID, amount=CurrencyField.encode(amount)),
                    oracle.with_tid(oracle.currency_code(amount)[0], TID, oracle.currency_code(amount)[1]),
                )
                for amount in (0, 1, 100_000, -100_000, 180_215, -180_223, 10**30)
            ],
        )
        for service in CreditService
    },
    (1, 0): (BOTH, controls(2)),
    (1, 1): (BOTH, controls(4)),
    (1, 2): (BOTH, [(ExtendedRead(index=n), oracle.bits(n, 6) + "0" * 38) for n in range(64)]),
    (2, 0): (BOTH, [(managed(ManagementKind.SET_POWER_LIMIT, 1000), oracle.with_tid(RND, TID, 1000))]),
    (2, 1): (
        BOTH,
        [
            (managed(ManagementKind.CLEAR_CREDIT, register), oracle.with_tid(RND, TID, register))
            for register in (*range(8), REGISTER_ALL)
        ],
    ),
    (2, 2): (BOTH, [(managed(ManagementKind.SET_TARIFF_RATE, 9), oracle.with_tid(RND, TID, 9))]),
    (2, 3): (
        BOTH,
        [
            (
                KeyChangeFirst(ken_high=15, krn=9, roll_over=ro, third_section=third, kt=kt, key_part=WORD),
                f"11111001{ro:d}{third:d}{kt:02b}" + oracle.bits(WORD, 32),
            )
            for ro in (False, True)
            for third in (False, True)
            for kt in KeyType
        ],
    ),
    (2, 4): (
        BOTH,
        [
            (
                KeyChangeSecond(ken_low=1, tariff_index=ti, key_part=WORD),
                "0001" + oracle.bits(ti, 8) + oracle.bits(WORD, 32),
            )
            for ti in (0, 1, 99)
        ],
    ),
    (2, 5): (BOTH, [(managed(ManagementKind.CLEAR_TAMPER), oracle.with_tid(RND, TID, 0))]),
    (2, 6): (BOTH, [(managed(ManagementKind.SET_UNBALANCE_LIMIT, 10), oracle.with_tid(RND, TID, 10))]),
    (2, 7): (BOTH, [(managed(ManagementKind.SET_WATER_FACTOR, 3), oracle.with_tid(RND, TID, 3))]),
    (2, 9): (
        (MISTY1,),
        [(KeyChangeFourth(sgc_high=0xABC, key_part=WORD), "101010111100" + oracle.bits(WORD, 32))],
    ),
    (2, 10): (
        BOTH,
        [
            (ExtendedControl(rnd=RND, tid=TID, index=62, value=1023), oracle.with_tid(RND, TID, 62 << 10 | 1023)),
            (ExtendedFlag(rnd=RND, tid=TID, flag=511, value=True), oracle.with_tid(RND, TID, 0xFFFF)),
            (ExtendedFlag(rnd=RND, tid=TID, flag=1, value=False), oracle.with_tid(RND, TID, 63 << 10 | 2)),
        ],
    ),
}
# Subclass 8 is another section under each cipher.
THIRDS: dict[EncryptionAlgorithm, tuple[AnyToken, str]] = {
    STA: (KeyChangeThirdSta(sgc=999_999), oracle.bits(999_999, 24) + "0" * 20),
    MISTY1: (KeyChangeThird(sgc_low=0xDEF, key_part=WORD), "110111101111" + oracle.bits(WORD, 32)),
}
RESERVED = {
    **{(0, subclass): "reserved" for subclass in range(8, 16)},
    **{(1, subclass): "reserved or a maker's own" for subclass in range(3, 16)},
    **{(2, subclass): "a maker's own" for subclass in range(11, 16)},
}


def test_engine_knows_every_token_class_and_subclass_of_the_standard() -> None:
    """The list has all sixteen subclasses of three classes, each once: what is made, or why it is not."""
    listed = [*STANDARD, (2, 8), *RESERVED]
    assert sorted(listed) == [(token_class, subclass) for token_class in range(3) for subclass in range(16)]
    assert DISPLAY_TESTS_MAX == 18
    assert {kind.value for kind in ManagementKind} | {3, 4, 8, 9, 10} == set(range(11))


@pytest.mark.parametrize("ea", BOTH)
@pytest.mark.parametrize("place", [*STANDARD, (2, 8)], ids=lambda place: f"class{place[0]}/{place[1]}")
def test_engine_makes_and_reads_each_token_as_the_oracle_does(place: tuple[int, int], ea: EncryptionAlgorithm) -> None:
    """Each kind comes out as the plain implementation writes it, and is read back as what it was."""
    ciphers, tokens = (BOTH, [THIRDS[ea]]) if place == (2, 8) else STANDARD[place]
    key = KEYS[ea]
    for token, body in tokens:
        digits = oracle.token(*place, body, key=key.key.hex(), tables=TABLES)
        if ea not in ciphers:
            with pytest.raises(UnsupportedToken):
                decode_any_token(TokenNumber(digits), key)
            continue
        assert encode_any_token(token, key).digits == digits
        assert decode_any_token(TokenNumber(digits), key) == token


@pytest.mark.parametrize("ea", BOTH)
def test_engine_refuses_an_intact_token_of_each_reserved_subclass(ea: EncryptionAlgorithm) -> None:
    """What the standard reserves or leaves to makers has a typed refusal, and class 3 too."""
    for token_class, subclass in RESERVED:
        number = seal_frame(token_class, subclass, 1 << 43, KEYS[ea])
        with pytest.raises(UnsupportedToken):
            decode_any_token(number, KEYS[ea])
    for number in (seal_frame(1, 2, 1, None), seal_frame(3, 0, 0, KEYS[ea])):
        with pytest.raises(UnsupportedToken):
            decode_any_token(number, KEYS[ea])
    with pytest.raises(UnsupportedToken):
        decode_any_token(seal_frame(2, 8, 1, KEYS[STA]), KEYS[STA])


def test_amounts_round_up_over_every_edge_of_the_code() -> None:
    """Around each edge the code is the least that is not below; beyond the last there is none."""
    edges = [16_383, 16_384, 180_214, 180_224, 1_818_524, 1_818_624, 18_201_624]
    for tenths in {edge + step for edge in edges for step in range(-25, 25) if edge + step <= edges[-1]}:
        code = encode_unit_amount(tenths)
        assert code == oracle.amount16(tenths)
        assert decode_unit_amount(code) >= tenths
        assert code == 0 or decode_unit_amount(code - 1) < tenths
    with pytest.raises(AmountOutOfRange):
        encode_unit_amount(edges[-1] + 1)


def test_currency_rounds_towards_the_customer_over_every_edge_of_the_code() -> None:
    """A credit grows and a debit shrinks, over all 32 exponents and the gap below each."""
    for exponent in range(32):
        start = (1 << 14) * (10**exponent - 1) // 9
        for amount in (start + step for step in (-11, -10, -9, -1, 0, 1, 9, 10)):
            for signed in (amount, -amount):
                field = CurrencyField.encode(signed)
                if signed:
                    assert (field.sign_exponent, field.amount16) == oracle.currency_code(signed)
                assert field.amount_e5 >= signed


def record(ea: EncryptionAlgorithm = MISTY1, **changes: object) -> MeterKeyRecord:
    """Return a meter's record."""
    told: dict[str, object] = {
        "iin": "600727",
        "drn": Drn(oracle.drn_of("07", 123)),
        "ea": ea,
        "dkga": KeyDerivation.HMAC_SHA256,
        "sgc": "123456",
        "kt": KeyType.UNIQUE,
        "krn": 1,
        "tariff_index": 7,
        "ken": 255,
        "base_date": BaseDate.Y2014,
    }
    return MeterKeyRecord(**(told | changes))  # type: ignore[arg-type]  # The fields are checked by the record.


@pytest.mark.parametrize("ea", BOTH)
@pytest.mark.parametrize("kt", [KeyType.DEFAULT, KeyType.UNIQUE])
@pytest.mark.parametrize("base_date", list(BaseDate))
def test_key_change_sets_of_every_size_are_those_of_the_oracle(
    ea: EncryptionAlgorithm, kt: KeyType, base_date: BaseDate
) -> None:
    """Two, three or four tokens with KEN, RO and SGC, to a default key too, from the first era to each."""
    vk = bytes(range(20))
    old = record(ea, base_date=BaseDate.Y1993, ken=3)
    new = record(ea, sgc="654321", kt=kt, krn=9, tariff_index=99, ken=0xA5, base_date=base_date)
    keys = [derive_decoder_key(vk, each, sta_tables=IEC_SAMPLE_TABLES) for each in (old, new)]
    for carry_sgc in (False, True):
        sections = oracle.key_change(
            ea=ea.value,
            new_key=oracle.decoder_key(
                dkga="04", vk=vk.hex(), pan=new.pan.digits, kt=kt, sgc="654321", ti=99, krn=9, bdt=base_date, ea=ea
            ),
            krn=9,
            kt=kt,
            ti=99,
            ken=0xA5,
            sgc="654321",
            ro=int(base_date is not BaseDate.Y1993),
            third=int(carry_sgc and ea is STA),
        )
        expected = [
            oracle.token(2, subclass, body, key=keys[0].key.hex(), tables=TABLES) for subclass, body in sections
        ]
        made = issue_key_change(
            old=old, new=new, old_key=keys[0], new_key=keys[1], carry_sgc=carry_sgc, issued_at=base_date.starts_at
        )
        assert [each.digits for each in made] == expected
        assert len(made) == (4 if ea is MISTY1 else 3 if carry_sgc else 2)


def test_key_change_to_an_expired_key_or_an_earlier_era_or_from_nowhere_is_refused() -> None:
    """The old key may be expired, the new one not; no way leads back in time or to an initialisation key."""
    key = KEYS[MISTY1]
    at = datetime(2026, 11, 22, tzinfo=UTC)
    expired, valid = record(ken=10), record(ken=200, krn=2)
    for old, new, refusal in (
        (valid, expired, NewKeyExpired),
        (record(), record(base_date=BaseDate.Y1993), KeyChangeRefused),
        (record(), record(kt=KeyType.INITIALISATION), KeyChangeRefused),
    ):
        with pytest.raises(refusal):
            issue_key_change(old=old, new=new, old_key=key, new_key=key, carry_sgc=True, issued_at=at)
    assert len(issue_key_change(old=expired, new=valid, old_key=key, new_key=key, carry_sgc=True, issued_at=at)) == 4


@pytest.mark.parametrize(
    ("base_date", "last_minute"),
    [
        (BaseDate.Y1993, datetime(2024, 11, 24, 20, 15, tzinfo=UTC)),
        (BaseDate.Y2014, datetime(2045, 11, 24, 20, 15, tzinfo=UTC)),
        (BaseDate.Y2035, datetime(2066, 11, 24, 20, 15, tzinfo=UTC)),
    ],
)
def test_tid_of_each_era_ends_where_the_standard_says(base_date: BaseDate, last_minute: datetime) -> None:
    """24 bits of minutes; the top byte against KEN says when a key ends, 255 never inside the era."""
    assert tid_at(last_minute, base_date) == TID_MAX
    assert not is_key_expired(TID_MAX, 255)
    assert is_key_expired(TID_MAX, 254)
    assert (is_key_expired(0x55FFFF, 0x55), is_key_expired(0x560000, 0x55)) == (False, True)


def test_tid_allocation_keeps_the_reserved_minute_and_bridges_a_clock_set_back() -> None:
    """A token of 00:01 counts as 00:02; the same minute gives the next; a clock set back counts on, then declines."""
    midnight = tid_at(datetime(2026, 11, 22, tzinfo=UTC), BaseDate.Y2014)
    reserved = datetime(2026, 11, 22, 0, 1, 59, tzinfo=UTC)
    assert tid_at(reserved, BaseDate.Y2014) == midnight + 2
    assert special_tid_at(reserved, BaseDate.Y2014) == midnight + 1
    taken: list[int] = []
    for _ in range(4):
        given_tid = next_tid(taken[-1] if taken else None, midnight)
        assert isinstance(given_tid, int)
        taken.append(given_tid)
    assert [each - midnight for each in taken] == [0, 2, 3, 4]
    assert next_tid(midnight + 4, midnight - 30) == midnight + 5
    assert isinstance(next_tid(midnight + 4, midnight - 3000), TidDeclined)
    assert isinstance(next_tid(TID_MAX, TID_MAX), TidDeclined)
