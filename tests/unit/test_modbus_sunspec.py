"""SunSpec: a device that tells its own registers is found and read, and a broken one ends the walk."""

from __future__ import annotations

import struct

import pytest

from protocols.modbus.blocks import decode_block, plan_reads, polled_quantities
from protocols.modbus.plausible import judge
from protocols.modbus.sunspec import Discovered, discover
from tests.modbus_bank import Bank

NOT_IMPLEMENTED = 0x8000


def model(number: int, words: list[int]) -> list[int]:
    return [number, len(words), *words]


def text(value: str) -> list[int]:
    return list(struct.unpack(">16H", value.encode().ljust(32, b"\0")))


def common() -> list[int]:
    return model(1, [*text("Maker"), *text("M3"), *[0] * 8, *[0] * 8, *text("SN0042"), 1, NOT_IMPLEMENTED])


def wye(*, scale: int = -2) -> list[int]:
    """Return model 203 with 231.7 V, 3 x 4.32 A, and 12,345.67 kWh; reactive power and average L-L are not there."""
    words = [NOT_IMPLEMENTED] * 105
    sf = {6: scale, 15: -1, 17: -2, 22: 0, 27: 0, 37: -1, 54: 1}
    values = {2: 1296, 3: 432, 4: 432, 5: 432, 7: 2317, 8: 2317, 9: 2317, 10: 2317, 16: 4998}
    values |= {18: 2793, 19: 931, 20: 931, 21: 931, 23: 3003, 33: 930}
    energy = {38: 500, 46: 1_234_567, 48: 411_522, 50: 411_522, 52: 411_523}
    for place, value in {**values, **{place: power & 0xFFFF for place, power in sf.items()}}.items():
        words[place - 2] = value
    for place, value in energy.items():
        words[place - 2 : place] = [value >> 16, value & 0xFFFF]
    return model(203, words)


def floating() -> list[int]:
    """Return model 211 of one phase in floating point."""
    numbers = [float("nan")] * 62
    for place, value in {
        2: 4.32,
        4: 4.32,
        10: 231.7,
        12: 231.7,
        26: 49.98,
        28: 931.0,
        52: 0.93,
        68: 12_345_670.0,
    }.items():
        numbers[(place - 2) // 2] = value
    words = struct.unpack(">124H", struct.pack(">62f", *numbers))
    return model(211, list(words))


def device(base: int, *models: list[int]) -> Bank:
    bank = Bank()
    words = [0x5375, 0x6E53, *(word for each in models for word in each), 0xFFFF, 0]
    bank.put(3, base, struct.pack(f">{len(words)}H", *words))
    return bank


def discovered(bank: Bank) -> Discovered | None:
    discovery = discover()
    words = None
    while True:
        try:
            ask = discovery.send(words)
        except StopIteration as end:
            found: Discovered | None = end.value
            return found
        words = bank.read(ask.function, ask.address, ask.count)


@pytest.mark.parametrize("base", [40_000, 50_000, 0])
def test_meter_is_found_at_each_place_and_read_in_one_block(base: int) -> None:
    """The walk passes other models, and the meter's values come scaled by its own scale registers."""
    bank = device(base, common(), model(120, [7] * 26), wye())
    found = discovered(bank)
    assert found is not None
    assert (found.maker, found.device, found.serial) == ("Maker", "M3", "SN0042")
    assert [each.id for each in found.models] == [1, 120, 203]
    (meter,) = found.meters
    (block,) = plan_reads(meter)
    values = decode_block(meter, block, bank.read(block.function, block.address, block.count) or b"")
    assert (values["import_wh"], values["export_wh"], values["import_l3_wh"]) == (12_345_670, 5_000, 4_115_230)
    assert (values["voltage_l2_mv"], values["current_ma"], values["freq_mhz"]) == (231_700, 12_960, 49_980)
    assert (values["power_w"], values["pf_milli"]) == (2793, 930)
    assert (values["reactive_var"], values["voltage_ll_mv"]) == (None, None)
    assert judge(meter, values).is_plausible


def test_scale_that_changes_is_followed_at_the_next_read() -> None:
    """A scale is read with its values, never remembered."""
    bank = device(40_000, common(), wye(scale=-1))
    found = discovered(bank)
    assert found is not None
    (meter,) = found.meters
    (block,) = plan_reads(meter, polled_quantities(meter))
    words = bank.read(block.function, block.address, block.count) or b""
    assert decode_block(meter, block, words)["current_ma"] == 129_600


def test_floating_point_meter_of_one_phase_has_no_others() -> None:
    """Models 211 to 214 need no scales; of one phase the others are not asked for."""
    bank = device(0, common(), floating())
    found = discovered(bank)
    assert found is not None
    (meter,) = found.meters
    assert not [entry.quantity for entry in meter.registers if "_l2_" in entry.quantity]
    (block,) = plan_reads(meter)
    values = decode_block(meter, block, bank.read(block.function, block.address, block.count) or b"")
    assert (values["import_wh"], values["voltage_mv"], values["pf_milli"]) == (12_345_670, 231_700, 930)
    assert judge(meter, values).is_plausible


def test_device_without_signature_or_with_a_broken_chain_ends_the_walk() -> None:
    """Silence, other words, a model of no length and one too short for a meter are no meters, and no endless walk."""
    assert discovered(Bank()) is None
    zeros = Bank()
    zeros.fill(3, 40_000, 40_010)
    assert discovered(zeros) is None
    broken = device(40_000, common(), [203, 0])
    short = device(40_000, model(203, [0] * 20))
    endless = device(40_000, *[model(99, [0])] * 200)
    for bank in (broken, short, endless):
        found = discovered(bank)
        assert found is not None
        assert found.meters == ()
    assert len(endless.reads) < 80
