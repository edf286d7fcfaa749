"""OpenPAYGO behind the security-module port: device keys sealed, open for one call, never in a message."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.key_custody import open_device_key, seal_device_key, seal_vending_key
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.errors import PaygoCountRefused
from vending.openpaygo.tokens import PaygoKind, PaygoToken
from vending.security import SealBroken, SecurityModule, TokenRefused
from vending.soft_module import SoftSecurityModule
from vending.sts.errors import InvalidKey

MASTER = bytes(range(32))
# Origin: EnAccess/OpenPAYGO-python test/test_tokens.jsonl, a published test device.
KEY = bytes.fromhex("bc41ec9530f6dac86b1a29ab82edc5fb")
DEVICE = PaygoDevice(serial="TEST220000001", starting_code=516959010)
SEALED = seal_device_key(MASTER, DEVICE.serial, KEY)
MODULE: SecurityModule = SoftSecurityModule(MASTER, [], rnd_nibble=lambda: 0)


def mint(count: int, *, device: PaygoDevice = DEVICE, sealed_key: bytes = SEALED) -> PaygoToken:
    return asyncio.run(MODULE.mint_paygo(device, sealed_key=sealed_key, kind=PaygoKind.ADD_TIME, value=1, count=count))


def test_module_mints_the_published_token_however_often_it_is_asked() -> None:
    """A lost answer is asked for again with the same count and is the same token."""
    assert [mint(2).digits for _ in range(2)] == ["588224011"] * 2


def test_module_reads_used_and_coming_tokens_and_refuses_the_others() -> None:
    """A token typed at a counter is named, whether it was used or is still to come within the device's reach."""

    def read(digits: str, last_count: int) -> PaygoToken | TokenRefused:
        return asyncio.run(MODULE.verify_paygo(DEVICE, sealed_key=SEALED, digits=digits, last_count=last_count))

    token = mint(34)
    assert [read(token.digits, last) for last in (4, 33, 34, 60)] == [token] * 4
    refusals = [read(token.digits, 3), read("123456789", 40), read("12345678", 40)]
    assert [each.code for each in refusals if isinstance(each, TokenRefused)] == [
        "paygo_token_mismatch",
        "paygo_token_mismatch",
        "malformed_paygo_token",
    ]


def test_module_refuses_what_the_engine_refuses() -> None:
    """A count of the wrong parity is a fault of the caller, told as such."""
    with pytest.raises(PaygoCountRefused):
        mint(3)


@given(key=st.binary(min_size=16, max_size=16), at=st.integers(0, 44), bit=st.integers(0, 7))
def test_device_key_opens_only_as_it_was_sealed(key: bytes, at: int, bit: int) -> None:
    """Another master key, another serial, a flipped bit, a cut end, a vending key in its place: none opens."""
    sealed = seal_device_key(MASTER, "D1", key)
    assert open_device_key(MASTER, "D1", sealed) == key
    assert key not in sealed
    flipped = bytearray(sealed)
    flipped[at] ^= 1 << bit
    vending_key = seal_vending_key(MASTER, "123456", 1, key)
    for master, serial, wrong in (
        (MASTER[::-1], "D1", sealed),
        (MASTER, "D2", sealed),
        (MASTER, "D1", bytes(flipped)),
        (MASTER, "D1", sealed[:-1]),
        (MASTER, "D1", vending_key),
    ):
        with pytest.raises(SealBroken) as broken:
            open_device_key(master, serial, wrong)
        assert key.hex() not in str(broken.value)


def test_device_key_of_another_length_is_not_sealed() -> None:
    """Half a key in a list is found when it is read."""
    with pytest.raises(InvalidKey, match="expected 16 bytes, got 8"):
        seal_device_key(MASTER, "D1", KEY[:8])


def test_device_row_moved_to_another_device_makes_no_token() -> None:
    """Who swaps two rows of a database gets no token of the one for the other."""
    with pytest.raises(SealBroken):
        mint(2, device=replace(DEVICE, serial="TEST240000002"))
