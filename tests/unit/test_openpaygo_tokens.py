"""OpenPAYGO tokens: the published ones, and every other to digits and back."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vending.openpaygo.devices import STARTING_CODE_MAX, TIME_DIVIDER_MAX, PaygoDevice
from vending.openpaygo.errors import (
    InvalidPaygoDevice,
    InvalidPaygoKey,
    MalformedPaygoToken,
    PaygoCountRefused,
    PaygoError,
    PaygoTokenMismatch,
    PaygoValueOutOfRange,
    ReservedPaygoValue,
)
from vending.openpaygo.tokens import (
    COUNT_MAX,
    PaygoKind,
    PaygoToken,
    decode_token,
    encode_token,
    next_count,
    value_max,
)

VECTORS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "vectors" / "openpaygo.jsonl").read_text().splitlines()
]
TOKENS = [vector for vector in VECTORS if vector["algorithm"] == "OpenPAYGO token"]
FOUR_KEYS = [vector for vector in VECTORS if vector["algorithm"] == "OpenPAYGO four keys"]
# Origin: EnAccess/OpenPAYGO-python test/test_tokens.jsonl, a published test device.
KEY = bytes.fromhex("bc41ec9530f6dac86b1a29ab82edc5fb")
DEVICE = PaygoDevice(serial="TEST220000001", starting_code=516959010)

keys = st.binary(min_size=16, max_size=16)
devices = st.builds(
    PaygoDevice,
    serial=st.just("D1"),
    starting_code=st.integers(0, STARTING_CODE_MAX),
    time_divider=st.integers(1, TIME_DIVIDER_MAX),
    restricted_digits=st.booleans(),
    extended=st.booleans(),
)
kinds = st.sampled_from(PaygoKind)
low_counts = st.integers(0, 120)


@st.composite
def contents(draw: st.DrawFn) -> tuple[PaygoDevice, PaygoKind, int | None, int]:
    device, kind = draw(devices), draw(kinds)
    value = draw(st.integers(0, value_max(device))) if kind.carries_time else None
    assume(value not in range(996, 1000))
    return device, kind, value, next_count(draw(low_counts), kind)


def vector_device(inputs: dict[str, Any]) -> PaygoDevice:
    return PaygoDevice(
        serial="V1",
        starting_code=inputs["starting_code"],
        restricted_digits=inputs["restricted_digits"],
        extended=inputs["extended"],
    )


@pytest.mark.parametrize("vector", TOKENS, ids=lambda each: each["expected"]["token"])
def test_token_of_published_contents_is_as_published(vector: dict[str, Any]) -> None:
    """Digits and count agree with the published ones, in all four forms and of all four kinds, and are read back."""
    inputs, expected = vector["inputs"], vector["expected"]
    device, key, kind = vector_device(inputs), bytes.fromhex(inputs["key"]), PaygoKind(inputs["kind"])
    count = next_count(inputs["last_count"], kind)
    token = encode_token(key, device, kind=kind, value=inputs["value"], count=count)
    assert (token.count, token.digits) == (expected["count"], expected["token"])
    assert decode_token(key, device, token.digits, counts=range(1, 31)) == token


def test_token_for_four_keys_is_the_plain_one_written_in_digits_one_to_four() -> None:
    """The specification's own example of a restricted digit set."""
    (vector,) = FOUR_KEYS
    key = bytes.fromhex(TOKENS[-1]["inputs"]["key"])
    digits = [
        encode_token(
            key,
            PaygoDevice(serial="V1", starting_code=123456789, restricted_digits=restricted),
            kind=PaygoKind.ADD_TIME,
            value=1,
            count=2,
        ).digits
        for restricted in (False, True)
    ]
    assert digits == [str(vector["inputs"]["number"]), vector["expected"]["token"]]


@given(key=keys, content=contents())
def test_token_is_read_back_at_its_own_count(
    key: bytes, content: tuple[PaygoDevice, PaygoKind, int | None, int]
) -> None:
    """Digits say kind, value and count to whoever has the key, and nothing that the record does not have."""
    device, kind, value, count = content
    token = encode_token(key, device, kind=kind, value=value, count=count)
    assert len(token.digits) == device.token_digits
    assert set(token.digits) <= set("1234" if device.restricted_digits else "0123456789")
    assert decode_token(key, device, token.digits, counts=range(count, count + 1)) == token


@given(last=st.integers(0, COUNT_MAX - 2), kind=kinds)
def test_next_count_is_the_first_above_of_its_parity(last: int, kind: PaygoKind) -> None:
    """Counts rise by one or two: even ones add time, odd ones do all else."""
    count = next_count(last, kind)
    assert 1 <= count - last <= 2
    assert (count % 2 == 0) == (kind is PaygoKind.ADD_TIME)


def test_next_count_after_the_last_one_is_refused() -> None:
    """A device whose counts are used up gets no token that costs ever more to make."""
    with pytest.raises(PaygoCountRefused):
        next_count(COUNT_MAX, PaygoKind.ADD_TIME)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (PaygoKind.ADD_TIME, 3),
        (PaygoKind.SET_TIME, 4),
        (PaygoKind.COUNTER_SYNC, 0),
        (PaygoKind.ADD_TIME, COUNT_MAX + 2),
    ],
)
def test_token_of_a_wrong_count_is_refused(kind: PaygoKind, count: int) -> None:
    """A count of the other parity would do another thing; count 0 would work for ever."""
    with pytest.raises(PaygoCountRefused):
        encode_token(KEY, DEVICE, kind=kind, value=1 if kind.carries_time else None, count=count)


@pytest.mark.parametrize(
    ("kind", "value", "extended"),
    [
        (PaygoKind.ADD_TIME, 996, False),
        (PaygoKind.ADD_TIME, -1, False),
        (PaygoKind.ADD_TIME, None, False),
        (PaygoKind.SET_TIME, 998, True),
        (PaygoKind.SET_TIME, 1_000_000, True),
        (PaygoKind.DISABLE_PAYG, 998, False),
        (PaygoKind.COUNTER_SYNC, 0, False),
    ],
)
def test_token_of_a_value_that_it_cannot_carry_is_refused(kind: PaygoKind, value: int | None, extended: bool) -> None:
    """996 to 999 are commands at any length, so no activation time may look like one."""
    device = PaygoDevice(serial="V1", starting_code=5, extended=extended)
    with pytest.raises(PaygoValueOutOfRange):
        encode_token(KEY, device, kind=kind, value=value, count=next_count(1, kind))


def test_token_of_a_reserved_value_is_refused_when_read() -> None:
    """Who makes 996 means something that is not defined yet."""
    # The code is hashed with the value in it, so such a token is one of a device whose starting code lies one higher.
    ahead = PaygoDevice(serial="V1", starting_code=516959011)
    token = encode_token(KEY, ahead, kind=PaygoKind.ADD_TIME, value=995, count=2)
    with pytest.raises(ReservedPaygoValue):
        decode_token(KEY, DEVICE, token.digits, counts=range(1, 31))


@pytest.mark.parametrize(
    ("restricted", "digits"),
    [
        (False, ""),
        (False, "58822401"),
        (False, "5882240111"),
        (False, "58822401a"),
        (False, "58822401٣"),
        (True, "314114432231135"),
        (True, "444444444444444"),
        (True, "588224011"),
    ],
)
def test_digits_of_another_form_are_refused(restricted: bool, digits: str) -> None:
    """Length, keys and size of the number are looked at before any hash."""
    device = PaygoDevice(serial="V1", starting_code=516959010, restricted_digits=restricted)
    with pytest.raises(MalformedPaygoToken):
        decode_token(KEY, device, digits, counts=range(1, 31))


@given(key=keys, device=devices, digits=st.text("0123456789", max_size=21))
def test_any_digits_are_a_token_or_are_refused(key: bytes, device: PaygoDevice, digits: str) -> None:
    """Whatever is typed, reading it ends in a token or in an error of ours."""
    with suppress(PaygoError):
        token = decode_token(key, device, digits, counts=range(1, 31))
        assert token.digits == digits


@given(key=keys, content=contents(), place=st.integers(0, 5), step=st.integers(1, 9))
def test_token_with_one_other_digit_before_its_value_is_refused(
    key: bytes, content: tuple[PaygoDevice, PaygoKind, int | None, int], place: int, step: int
) -> None:
    """The first six digits are the hash: at one count only one value of each fits."""
    device, kind, value, count = content
    device = replace(device, restricted_digits=False)
    digits = encode_token(key, device, kind=kind, value=value, count=count).digits
    typed = f"{digits[:place]}{(int(digits[place]) + step) % 10}{digits[place + 1 :]}"
    with pytest.raises(PaygoTokenMismatch):
        decode_token(key, device, typed, counts=range(count, count + 1))


def test_token_of_another_device_is_refused() -> None:
    """The key makes the token: a neighbour's does nothing."""
    token = encode_token(KEY, DEVICE, kind=PaygoKind.ADD_TIME, value=1, count=2)
    with pytest.raises(PaygoTokenMismatch, match=r"\.\.\.4011"):
        decode_token(KEY[::-1], DEVICE, token.digits, counts=range(1, 65))


@pytest.mark.parametrize(
    "fields",
    [
        {"serial": ""},
        {"serial": "D 1"},
        {"starting_code": -1},
        {"starting_code": 10**9},
        {"time_divider": 0},
        {"time_divider": 256},
    ],
)
def test_device_of_another_form_is_refused(fields: dict[str, Any]) -> None:
    """A device's record is checked before anything is made with it."""
    with pytest.raises(InvalidPaygoDevice):
        PaygoDevice(**({"serial": "D1", "starting_code": 1} | fields))


def test_token_under_a_key_of_another_length_is_refused() -> None:
    """Half a key makes no token."""
    with pytest.raises(InvalidPaygoKey):
        encode_token(KEY[:8], DEVICE, kind=PaygoKind.ADD_TIME, value=1, count=2)


def test_token_shows_its_last_four_digits_only() -> None:
    """What is logged cannot be typed; what is printed is in groups."""
    token = encode_token(KEY, DEVICE, kind=PaygoKind.ADD_TIME, value=1, count=2)
    assert "588224011" not in f"{token} {token!r} {DEVICE!r}"
    assert "516959010" not in repr(DEVICE)
    assert token.grouped == "588 224 011"
    twenty = PaygoToken(digits="14323213131442331314", kind=PaygoKind.ADD_TIME, value=1, count=2)
    assert twenty.grouped == "1432 3213 1314 4233 1314"
