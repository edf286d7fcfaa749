"""Block reads of the shipped maps: how many requests a poll costs, and answers that do not fit."""

from __future__ import annotations

import pytest

from protocols.errors import Malformed
from protocols.modbus.blocks import decode_block, plan_reads, polled_quantities
from protocols.modbus.map_checks import check_map
from protocols.modbus.maps import builtin_map_text, builtin_maps, load_map


@pytest.mark.parametrize(
    ("model", "reads"),
    [("sdm120", 1), ("sdm630", 1), ("pzem-014", 1), ("em340", 3), ("adw300", 4), ("ddsu666", 5), ("iem3155", 6)],
)
def test_poll_of_a_shipped_map_costs_few_reads(model: str, reads: int) -> None:
    """Values that lie together come in one read; what a make may refuse is not read across."""
    meter = builtin_maps()[model]
    assert len(plan_reads(meter, polled_quantities(meter))) == reads


def test_replanned_without_gaps_asks_for_nothing_but_values() -> None:
    """For a meter that refuses words it does not know, the same values come in more reads."""
    meter = builtin_maps()["sdm120"]
    blocks = plan_reads(meter, polled_quantities(meter), gap_words_max=0)
    assert sum(block.count for block in blocks) == 2 * len(polled_quantities(meter))
    assert len(blocks) > 1


def test_doubtful_register_is_read_only_when_confirmed() -> None:
    """What the source marks doubtful is not polled before a probe has confirmed it."""
    text = builtin_map_text("sdm120").replace('0x004C, unit = "kvarh"', '0x004C, unit = "kvarh", doubtful = true')
    meter = load_map(text, "sdm120.toml")

    def quantities(confirmed: bool) -> set[str]:
        return {entry.quantity for block in plan_reads(meter, confirmed=confirmed) for entry in block.registers}

    assert quantities(True) - quantities(False) == {"import_varh"}


def test_answer_of_another_length_is_malformed() -> None:
    """Fewer or more words than were asked for are no values."""
    meter = builtin_maps()["sdm120"]
    (block,) = plan_reads(meter)
    for words in (block.count - 1, block.count + 1):
        with pytest.raises(Malformed, match="model sdm120"):
            decode_block(meter, block, bytes(2 * words))


def test_scale_register_is_read_with_its_value_and_applied_exactly() -> None:
    """A value and the word that holds its power of ten come in one read; a scale that is none leaves no value."""
    text = """
model = "scaled"
make = "Maker"
title = "Scaled"
source = "its manual"
function = 3
[registers]
import_wh = { at = 10, type = "u32", unit = "kWh", scale_at = 20 }
"""
    assert check_map(text, "scaled.toml") == ()
    meter = load_map(text, "scaled.toml")
    (block,) = plan_reads(meter, gap_words_max=0)
    assert (block.address, block.count) == (10, 11)

    def read(scale: int) -> int | None:
        words = (123_456).to_bytes(4, "big") + bytes(16) + scale.to_bytes(2, "big", signed=True)
        return decode_block(meter, block, words)["import_wh"]

    assert [read(scale) for scale in (0, -2, 2, -5, -(2**15))] == [123_456_000, 1_234_560, 12_345_600_000, 1235, None]
