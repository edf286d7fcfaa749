"""Register values: exact integers out of words of any order."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest

from protocols.errors import Malformed
from protocols.modbus.quantities import QUANTITIES, native_channels, units_of
from protocols.modbus.values import Form, RegisterType, WordOrder, ordered, text_of, value_of

ONE = Fraction(1)


@pytest.mark.parametrize(
    ("order", "laid"),
    [
        ("abcd", "0102030405060708"),
        ("cdab", "0708050603040102"),
        ("badc", "0201040306050807"),
        ("dcba", "0807060504030201"),
    ],
)
def test_word_orders_lay_eight_bytes_as_they_are_named(order: str, laid: str) -> None:
    """Each order of words and bytes leads back to the highest byte first, also for values of one and two words."""
    assert ordered(bytes.fromhex(laid), WordOrder(order)).hex() == "0102030405060708"
    short = {"abcd": "01020304", "cdab": "03040102", "badc": "02010403", "dcba": "04030201"}[order]
    assert ordered(bytes.fromhex(short), WordOrder(order)).hex() == "01020304"
    word = "0201" if order in ("badc", "dcba") else "0102"
    assert ordered(bytes.fromhex(word), WordOrder(order)).hex() == "0102"


def test_energy_of_float32_is_its_own_digits_not_a_floats() -> None:
    """16,777.217 kWh is not among the numbers of 32 bits; its neighbour, 8589935/512, becomes the nearest Wh."""
    words = bytes.fromhex("4683126f")
    assert value_of(words, RegisterType.F32, WordOrder.ABCD, Fraction(1000)) == 16_777_217


def test_halves_round_to_the_even_integer() -> None:
    """0.5, 1.5 and 2.5 of the stored unit are 0, 2 and 2; below zero likewise."""
    rounded = [
        value_of(raw.to_bytes(2, "big", signed=True), RegisterType.I16, WordOrder.ABCD, Fraction(1, 10))
        for raw in (5, 15, 25, -5, -15, -25)
    ]
    assert rounded == [0, 2, 2, 0, -2, -2]


def test_register_of_64_bits_is_exact_to_its_last_digit() -> None:
    """No register loses a Wh to a float on the way."""
    raw = 9_007_199_254_740_993
    assert value_of(raw.to_bytes(8, "big"), RegisterType.I64, WordOrder.ABCD, ONE) == raw


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e-10, -4e-41])
def test_number_that_no_meter_measures_is_none(number: float) -> None:
    """NaN, infinity and the near-zeros of words in the wrong order are no values."""
    assert value_of(struct.pack(">f", number), RegisterType.F32, WordOrder.ABCD, Fraction(1000)) is None


def test_invalid_pattern_is_none_in_the_meters_word_order() -> None:
    """7FFFFFFF means missing after the words are put in order, not as they lie."""
    invalid = frozenset({0x7FFFFFFF})
    assert value_of(bytes.fromhex("ffff7fff"), RegisterType.I32, WordOrder.CDAB, ONE, invalid=invalid) is None
    assert value_of(bytes.fromhex("7fffffff"), RegisterType.I32, WordOrder.CDAB, ONE, invalid=invalid) == -32769


@pytest.mark.parametrize(
    ("said", "true"), [(0.95, 950), (1.05, 950), (-0.9, -900), (-1.1, -900), (2.0, 0), (1.0, 1000)]
)
def test_four_quadrant_power_factor_is_folded_back(said: float, true: int) -> None:
    """A factor beyond 1 says leading: the true one is 2 less its size, with its sign."""
    words = struct.pack(">d", said)
    got = value_of(words, RegisterType.F64, WordOrder.ABCD, Fraction(1000), form=Form.FOUR_QUADRANT)
    assert got == true


@pytest.mark.parametrize("kind", [kind for kind in RegisterType if kind is not RegisterType.TEXT])
def test_value_of_wrong_length_is_malformed(kind: RegisterType) -> None:
    """Too few or too many bytes are the named error."""
    for length in (0, 1, 3, 10):
        with pytest.raises(Malformed, match="expected"):
            value_of(bytes(length), kind, WordOrder.ABCD, ONE)


def test_text_ends_at_its_first_zero_and_is_none_when_unreadable() -> None:
    """Serial numbers are padded with zeros or blanks; noise is no text."""
    assert text_of(b"B23 \0\0x", WordOrder.ABCD) == "B23"
    assert text_of(bytes.fromhex("50534d45"), WordOrder.BADC) == "SPEM"
    assert text_of(b"\xff\xfe\x00", WordOrder.ABCD) is None
    assert text_of(b"\x01\x02", WordOrder.ABCD) is None
    assert text_of(b"", WordOrder.ABCD) is None


def test_every_quantity_has_units_that_lead_to_its_own() -> None:
    """Each quantity's name ends with a unit that its values may come in."""
    for quantity in QUANTITIES:
        assert Fraction(1) in units_of(quantity).values() or quantity.endswith("_milli"), quantity


def test_channels_that_are_not_named_are_made_of_their_phases() -> None:
    """Voltage is the mean of the live phases, current and power the sums; a phase that is missing leaves none."""
    values: dict[str, int | None] = {
        "import_wh": 5,
        "voltage_l1_mv": 230_000,
        "voltage_l2_mv": 232_000,
        "voltage_l3_mv": 0,
        "current_l1_ma": 1,
        "current_l2_ma": 2,
        "current_l3_ma": 3,
        "power_l1_w": 10,
        "power_l2_w": None,
    }
    channels = native_channels(values)
    assert (channels["voltage_mv"], channels["current_ma"], channels["power_w"]) == (231_000, 6, None)


def test_channel_beyond_what_a_reading_stores_is_none() -> None:
    """A register below 0 and a power beyond 32 bits never reach a reading."""
    channels = native_channels({"import_wh": -1, "export_wh": 2**63, "power_w": 2**31})
    assert set(channels.values()) == {None}
