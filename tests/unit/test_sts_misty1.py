"""MISTY1 against the RFC's vectors, and as a bijection under any key."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.errors import FieldOutOfRange, InvalidKey
from vending.sts.misty1 import Misty1

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CASES = [case for case in map(json.loads, VECTORS.read_text().splitlines()) if case["algorithm"] == "MISTY1 ECB"]

keys = st.binary(min_size=16, max_size=16)
blocks = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["inputs"]["plain"])
def test_misty1_published_block_gives_published_cipher(case: dict[str, dict[str, str]]) -> None:
    """Each vector of the RFC comes out both ways."""
    cipher = Misty1(bytes.fromhex(case["inputs"]["key"]))
    plain, sealed = int(case["inputs"]["plain"], 16), int(case["expected"]["cipher"], 16)
    assert cipher.encrypt(plain) == sealed
    assert cipher.decrypt(sealed) == plain


@given(key=keys, block=blocks)
def test_misty1_any_block_decrypts_to_itself(key: bytes, block: int) -> None:
    """Decryption undoes encryption and the other way round."""
    cipher = Misty1(key)
    assert cipher.decrypt(cipher.encrypt(block)) == block
    assert cipher.encrypt(cipher.decrypt(block)) == block


@given(key=keys, block=blocks, bit=st.integers(0, 127))
def test_misty1_every_key_bit_matters(key: bytes, block: int, bit: int) -> None:
    """A key that differs in one bit makes another cipher."""
    other = (int.from_bytes(key, "big") ^ 1 << bit).to_bytes(16, "big")
    blocks_tried = [block ^ n for n in range(4)]
    assert [Misty1(key).encrypt(b) for b in blocks_tried] != [Misty1(other).encrypt(b) for b in blocks_tried]


@pytest.mark.parametrize("length", [0, 8, 15, 17, 32])
def test_misty1_key_of_wrong_length_is_refused_by_length_only(length: int) -> None:
    """The error gives the length of the key and nothing of its content."""
    with pytest.raises(InvalidKey) as refusal:
        Misty1(b"\xa5" * length)
    assert str(length) in str(refusal.value)
    assert "a5" not in str(refusal.value).lower()


@pytest.mark.parametrize("block", [-1, 2**64])
def test_misty1_block_beyond_64_bits_is_refused(block: int) -> None:
    """A block is 64 bits, neither more nor negative."""
    cipher = Misty1(bytes(16))
    with pytest.raises(FieldOutOfRange):
        cipher.encrypt(block)
    with pytest.raises(FieldOutOfRange):
        cipher.decrypt(block)


def test_misty1_repr_hides_the_key() -> None:
    """A cipher in a log line gives its key away in no form."""
    assert "abab" not in repr(Misty1(b"\xab" * 16))
