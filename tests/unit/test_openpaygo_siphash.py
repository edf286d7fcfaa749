"""SipHash-2-4: the published outputs."""

import json
from pathlib import Path

import pytest

from vending.openpaygo.errors import InvalidPaygoKey
from vending.openpaygo.siphash import siphash24

VECTORS = [
    vector
    for line in (Path(__file__).parents[1] / "vectors" / "openpaygo.jsonl").read_text().splitlines()
    if (vector := json.loads(line))["algorithm"] == "SipHash-2-4"
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda each: f"{len(each['inputs']['message']) // 2} bytes")
def test_siphash_of_published_messages_is_as_published(vector: dict[str, dict[str, str]]) -> None:
    """The hash agrees with its authors' code for empty, short, whole-word and long messages."""
    key, message = bytes.fromhex(vector["inputs"]["key"]), bytes.fromhex(vector["inputs"]["message"])
    assert f"{siphash24(key, message):016x}" == vector["expected"]["hash"]


@pytest.mark.parametrize("length", [0, 15, 17])
def test_siphash_under_a_key_of_another_length_is_refused(length: int) -> None:
    """A device key is 16 bytes, and the refusal does not show it."""
    with pytest.raises(InvalidPaygoKey, match=f"expected 16 bytes, got {length}") as refused:
        siphash24(b"K" * length, b"")
    assert "KK" not in str(refused.value)
