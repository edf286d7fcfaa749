"""Register maps: what the shipped documents say, and what a wrong document is told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from protocols.errors import Malformed
from protocols.modbus.map_checks import check_map
from protocols.modbus.maps import MapError, builtin_map_text, builtin_maps, coil_at, load_map
from protocols.modbus.quantities import IMPORT
from protocols.modbus.values import RegisterType, WordOrder
from tests.modbus_bank import of_unit, per_raw

# Model, quantity, function, wire address, type, what one count is: as the reference tables of the makes have them.
FACTS = [
    ("sdm120", "voltage_mv", 4, 0x0000, "f32", of_unit("1", "V")),
    ("sdm120", "import_wh", 4, 0x0048, "f32", of_unit("1", "kWh")),
    ("sdm230", "export_wh", 4, 0x004A, "f32", of_unit("1", "kWh")),
    ("sdm630", "power_w", 4, 0x0034, "f32", of_unit("1", "W")),
    ("sdm630", "current_ma", 4, 0x0030, "f32", of_unit("1", "A")),
    ("sdm72", "power_w", 4, 0x0034, "f32", of_unit("1", "W")),
    ("sdm72v2", "pf_milli", 4, 0x003E, "f32", of_unit("1", "1")),
    ("iem3155", "power_w", 3, 0x0BF3, "f32", of_unit("1", "kW")),
    ("iem3155", "import_wh", 3, 0x0C83, "i64", of_unit("1", "Wh")),
    ("em340", "import_wh", 4, 0x0034, "i32", of_unit("0.1", "kWh")),
    ("em340", "current_l1_ma", 4, 0x000C, "i32", of_unit("0.001", "A")),
    ("em24-ethernet", "freq_mhz", 4, 0x0033, "u16", of_unit("0.1", "Hz")),
    ("ddsu666", "power_w", 4, 0x2004, "f32", of_unit("1", "kW")),
    ("ddsu666", "import_wh", 4, 0x4000, "f32", of_unit("1", "kWh")),
    ("dtsu666", "voltage_l1_mv", 3, 0x2006, "f32", of_unit("0.1", "V")),
    ("dtsu666", "import_wh", 3, 0x101E, "f32", of_unit("1", "kWh")),
    ("abb-b21", "import_wh", 3, 0x5000, "u64", of_unit("0.01", "kWh")),
    ("abb-b23", "power_l3_w", 3, 0x5B1A, "i32", of_unit("0.01", "W")),
    ("em2m", "voltage_mv", 4, 0x15, "f32", of_unit("1", "V")),
    ("adw300", "import_wh", 3, 62, "i32", of_unit("0.01", "kWh")),
    ("we514", "import_wh", 3, 0xA000, "u32", of_unit("0.01", "kWh")),
    ("we514", "power_w", 3, 0x0140, "u32", of_unit("0.001", "kW")),
    ("pzem-014", "import_wh", 4, 5, "u32", of_unit("1", "Wh")),
    ("shelly-pro-3em", "import_wh", 4, 1162, "f32", of_unit("1", "Wh")),
]
LOW_WORD_FIRST = {"em340", "em24-ethernet", "pzem-014", "shelly-pro-3em"}
RELAYS = {"relay-coil", "relay-coil-inverted"}
MINIMAL = """
model = "mine"
make = "Maker"
title = "Mine"
source = "its manual"
function = 4
type = "f32"

[registers]
import_wh = { at = 72, unit = "kWh" }
"""


@pytest.mark.parametrize(("model", "quantity", "function", "address", "kind", "count"), FACTS)
def test_builtin_map_says_what_the_reference_says(
    model: str, quantity: str, function: int, address: int, kind: str, count: object
) -> None:
    """Function, wire address, type and scale of key registers are those of the makes' tables."""
    meter = builtin_maps()[model]
    entry = meter.register(quantity)
    assert entry is not None
    assert (entry.function, meter.wire_address(entry), entry.type.value) == (function, address, kind)
    assert per_raw(entry) == count


def test_builtin_maps_are_all_sound_and_say_their_source() -> None:
    """Every shipped document passes its checks, is named like its file, and meters charge by their import."""
    assert {model for model, *_ in FACTS} | RELAYS == set(builtin_maps())
    for name, meter in builtin_maps().items():
        assert check_map(builtin_map_text(name), name) == ()
        assert meter.model == name
        assert meter.source
        assert meter.is_relay_only == (name in RELAYS)
        assert meter.is_relay_only or meter.register(IMPORT) is not None
        assert (meter.word_order is WordOrder.CDAB) == (name in LOW_WORD_FIRST)


def test_doubtful_base_and_blind_word_order_have_to_be_confirmed_and_no_other_map_has_doubts() -> None:
    """Only what the reference marks doubtful asks for a probe, and what shows neither voltage nor frequency."""
    assert {name: meter.doubts for name, meter in builtin_maps().items() if meter.doubts} == {
        "em2m": ("base",),
        "sdm72": ("word_order",),
    }


def test_doubtful_import_makes_the_map_unfit_until_confirmed() -> None:
    """A charged register marked doubtful is a doubt; so is the order of words where nothing but energy is shown."""
    doubtful = MINIMAL.replace('unit = "kWh"', 'unit = "kWh", doubtful = true')
    assert load_map(doubtful, "mine.toml").doubts == ("word_order", IMPORT)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("import_wh", "energie", "mine.toml: line 10: registers.energie: expected a known quantity"),
        ('"kWh"', '"V"', "mine.toml: line 10: registers.import_wh: expected a unit of Wh, kWh, MWh, got 'V'"),
        ("at = 72", "at = 65535", "registers.import_wh: expected wire addresses of 0 to 65535, got 65535 to 65536"),
        ("at = 72", "at = -1", "expected wire addresses of 0 to 65535, got -1 to 0"),
        ('"kWh"', '"kWh", scale = "0"', "expected a scale above 0"),
        ('"kWh"', '"kWh", scale = "-0.1"', "expected a scale above 0"),
        ('"kWh"', '"kWh", type = "text"', "expected the type of a number, got text"),
        ('"kWh"', '"kWh", function = 6', "expected function 3 or 4, got 6"),
        ('"kWh"', '"kWh", invalid = ["FFFF"]', "expected an invalid pattern of 8 hexadecimal digits, got 'FFFF'"),
        ('"kWh"', '"kWh", form = "four_quadrant"', "expected form four_quadrant at a power factor alone"),
        ('"kWh" }', '"kWh" }\nexport_wh = { at = 73, unit = "kWh" }', "line 11: registers.export_wh: expected words"),
        ('"kWh" }', '"kWh" }\nvoltage_l2_mv = { at = 2, unit = "V" }', "expected quantities of one phase"),
        ("import_wh", "export_wh", "expected import_wh, got none"),
        ('type = "f32"\n', "", "expected the type of a number, got none"),
        ('type = "f32"', 'type = "f24"', "mine.toml: line 7: Invalid enum value 'f24'"),
        ("at = 72", 'at = "72"', "mine.toml: line 9: Expected `int`, got `str`"),
        ("function = 4", "function = 4\ncolour = 1", "unknown field `colour`"),
        ("function = 4", "words_max = 1", "expected a value of at most words_max = 1 words, got 2"),
        ("function = 4", 'confirm = ["colour"]', "expected facts of base, word_order, got 'colour'"),
        ("function = 4", "function = ", "line 6"),
        ('"mine"', '"Mine!"', "line 2: model: expected lower-case letters"),
        ("[registers]", '[relay]\nkind = "coil"\nat = 1\non = 1\noff = 1\n[registers]', "on and off to differ"),
        ("[registers]", '[identity]\nat = 1\ntype = "u16"\n[registers]', "identity.values: expected at least one"),
    ],
)  # fmt: skip
def test_wrong_map_is_told_file_line_entry_expected_and_got(old: str, new: str, complaint: str) -> None:
    """Each mistake is one line that says where it is and what was expected; the map is not loaded."""
    text = MINIMAL.replace(old, new)
    assert any(complaint in line for line in check_map(text, "mine.toml")), check_map(text, "mine.toml")
    with pytest.raises(MapError):
        load_map(text, "mine.toml")


def test_checks_name_every_mistake_at_once() -> None:
    """An author sees all that is wrong, not the first alone."""
    text = MINIMAL + 'colour = { at = 1, unit = "V" }\nfreq_mhz = { at = 90, unit = "V" }\n'
    assert len(check_map(text, "mine.toml")) == 2


def test_variant_of_a_map_shifts_addresses_and_turns_words() -> None:
    """What a probe found at one meter is the same map, counted from another number."""
    meter = builtin_maps()["em2m"].variant(base=1, word_order=WordOrder.CDAB)
    entry = meter.register("voltage_mv")
    assert entry is not None
    assert meter.wire_address(entry) == 0x14
    words = struct.pack(">f", 230.0)
    assert meter.value(entry, words[2:] + words[:2]) == 230_000


def test_identity_tells_the_models_of_a_make_apart() -> None:
    """A B21 is no B23; an EM24 says its number; a Shelly's text has its bytes swapped."""
    maps = builtin_maps()
    assert maps["abb-b21"].is_identified_by(b"B21 ")
    assert not maps["abb-b21"].is_identified_by(b"B23 ")
    assert maps["abb-b23"].is_identified_by(b"B24 ")
    assert maps["em24-ethernet"].is_identified_by((1650).to_bytes(2, "big"))
    assert not maps["em24-ethernet"].is_identified_by((340).to_bytes(2, "big"))
    shelly = b"SPEM-003CEBEU".ljust(20, b"\0")
    swapped = b"".join(shelly[at : at + 2][::-1] for at in range(0, 20, 2))
    assert maps["shelly-pro-3em"].is_identified_by(swapped)
    with pytest.raises(Malformed, match="identity"):
        maps["abb-b21"].is_identified_by(b"B2")


def test_missing_value_of_abb_is_none_not_a_number() -> None:
    """The patterns for what a meter of the series does not measure are no readings."""
    meter = builtin_maps()["abb-b23"]
    patterns = {RegisterType.U64: "ff" * 8, RegisterType.U32: "ff" * 4, RegisterType.I32: "7fffffff"}
    patterns |= {RegisterType.I16: "7fff", RegisterType.U16: "ffff"}
    for entry in meter.registers:
        assert meter.value(entry, bytes.fromhex(patterns[entry.type])) is None, entry.quantity


def test_relay_map_names_coil_and_what_lets_supply_flow() -> None:
    """A relay beside a meter is a map of its own; its coil is given per meter."""
    plain, inverted = builtin_maps()["relay-coil"].relay, builtin_maps()["relay-coil-inverted"].relay
    assert plain is not None
    assert inverted is not None
    assert (plain.on, plain.off, plain.read_function) == (1, 0, 1)
    assert (inverted.on, inverted.off) == (0, 1)
    assert coil_at(plain, 7).address == 7


def test_page_on_maps_shows_a_sound_map_and_names_every_shipped_one() -> None:
    """The example that authors copy passes the checks, and the table of makes is whole."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "modbus-maps.md").read_text()
    example = page.split("```toml\n", 1)[1].split("```", 1)[0]
    assert check_map(example, "own-meter.toml") == ()
    assert [model for model in builtin_maps() if f"`{model}`" not in page] == []
