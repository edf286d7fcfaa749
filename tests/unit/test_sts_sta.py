"""STA (EA07): the sample tables' regression value, and tables that prove themselves before they serve."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.errors import FieldOutOfRange, InvalidCipherTables, InvalidKey
from vending.sts.sta import IEC_SAMPLE_TABLES, Sta, StaTables
from vending.sts.sta_tables import OPERATOR_TABLES_NAME, parse_sta_tables
from vending.sts.tokens import join_class

KEY = bytes.fromhex("0abc12def3456789")
BLOCK = 0x0B19EB230100C207
# Own computation with the sample tables, not from the standard: class 0/0, RND 11, TID 1698595, 25.6 kWh.
TOKEN = "51043465443420856213"
SELF_TEST = {"decoder_key": KEY.hex(), "block": f"{BLOCK:016x}", "token": TOKEN}
SAMPLE: dict[str, Any] = {
    "s1": list(IEC_SAMPLE_TABLES.s1),
    "s2": list(IEC_SAMPLE_TABLES.s2),
    "p": list(IEC_SAMPLE_TABLES.p),
    "self_test": SELF_TEST,
}

blocks = st.integers(0, 2**64 - 1)
keys = st.binary(min_size=8, max_size=8)
tables = st.builds(
    lambda s1, s2, p: StaTables(name="drawn", s1=tuple(s1), s2=tuple(s2), p=tuple(p)),
    st.permutations(range(16)),
    st.permutations(range(16)),
    st.permutations(range(64)),
)


def encrypt_by_the_letter(block: int, key: bytes, with_tables: StaTables) -> int:
    """Encrypt bit by bit as the standard words it: the reference of the fast form."""
    bits = [~int.from_bytes(key, "big") >> place & 1 for place in range(64)]
    bits = [bits[(place + 12) % 64] for place in range(64)]
    for _ in range(16):
        permuted = 0
        for nibble in range(16):
            table = with_tables.s2 if bits[4 * nibble + 3] else with_tables.s1
            value = table[block >> 4 * nibble & 0xF]
            for bit in range(4):
                permuted |= (value >> bit & 1) << with_tables.p[4 * nibble + bit]
        block = permuted
        bits = bits[-1:] + bits[:-1]
    return block


def test_sample_tables_give_the_regression_token() -> None:
    """The value of the reference comes out, in both directions."""
    encrypted = Sta(KEY, IEC_SAMPLE_TABLES).encrypt(BLOCK)
    assert join_class(0, encrypted).digits == TOKEN
    assert Sta(KEY, IEC_SAMPLE_TABLES).decrypt(encrypted) == BLOCK


@given(block=blocks, key=keys, with_tables=tables)
def test_sta_equals_its_bitwise_reference_and_is_undone(block: int, key: bytes, with_tables: StaTables) -> None:
    """Any key, any block, any tables: the fast form is the worded one, and decryption undoes it."""
    cipher = Sta(key, with_tables)
    assert cipher.encrypt(block) == encrypt_by_the_letter(block, key, with_tables)
    assert cipher.decrypt(cipher.encrypt(block)) == block


def test_sta_refuses_what_is_not_64_bits_and_shows_no_key() -> None:
    """The length only stands in the message."""
    with pytest.raises(InvalidKey, match="expected 8 bytes, got 16"):
        Sta(bytes(16), IEC_SAMPLE_TABLES)
    for block in (-1, 1 << 64):
        with pytest.raises(FieldOutOfRange):
            Sta(KEY, IEC_SAMPLE_TABLES).encrypt(block)
    assert "0abc" not in repr(Sta(KEY, IEC_SAMPLE_TABLES))


def test_sample_tables_are_marked_wherever_they_come_from() -> None:
    """In an operator's file too they stay the samples that no field meter has."""
    assert "not for field meters" in IEC_SAMPLE_TABLES.name
    assert parse_sta_tables(json.dumps(SAMPLE)) is IEC_SAMPLE_TABLES


def test_operator_tables_that_pass_their_self_test_are_taken() -> None:
    """Other permutations with the right token are the operator's."""
    swapped = StaTables(name="other", s1=IEC_SAMPLE_TABLES.s2, s2=IEC_SAMPLE_TABLES.s1, p=IEC_SAMPLE_TABLES.p)
    token = join_class(2, Sta(KEY, swapped).encrypt(BLOCK)).digits
    text = json.dumps(SAMPLE | {"s1": SAMPLE["s2"], "s2": SAMPLE["s1"], "self_test": SELF_TEST | {"token": token}})
    parsed = parse_sta_tables(text)
    assert (parsed.s1, parsed.name, parsed.is_iec_sample) == (swapped.s1, OPERATOR_TABLES_NAME, False)


@pytest.mark.parametrize(
    "change",
    [
        {"s1": [0] * 16},
        {"s1": list(range(1, 17))},
        {"s2": list(range(15))},
        {"s2": [*range(15), 15.0]},
        {"s2": [*range(15), True]},
        {"p": list(range(16))},
        {"p": None},
        {"p": [63] * 64},
        {"s1": SAMPLE["s2"]},
        {"self_test": None},
        {"self_test": {}},
        {"self_test": SELF_TEST | {"token": "51043465443420856214"}},
        {"self_test": SELF_TEST | {"token": "9" * 20}},
        {"self_test": SELF_TEST | {"token": "56493153725450313471"}},
        {"self_test": SELF_TEST | {"block": "0b19eb230100c208"}},
        {"self_test": SELF_TEST | {"decoder_key": "00" * 8}},
        {"self_test": SELF_TEST | {"decoder_key": "00" * 16}},
        {"self_test": {"decoder_key": KEY.hex(), "block": f"{BLOCK:016x}"}},
    ],
    ids=lambda change: json.dumps(change)[:50],
)
def test_tables_that_do_not_prove_themselves_are_refused(change: dict[str, object]) -> None:
    """No permutation, no test or a test that fails: refused before any token is made, and no key is shown."""
    with pytest.raises(InvalidCipherTables) as refusal:
        parse_sta_tables(json.dumps(SAMPLE | change))
    assert KEY.hex() not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "[" * 10_000, '{"s1": 1, "s1": 2}', " " * 20_000])
def test_text_that_is_no_tables_object_is_refused(text: str) -> None:
    """Whatever the file holds, the answer is a typed refusal."""
    with pytest.raises(InvalidCipherTables):
        parse_sta_tables(text)
