"""Plausibility: what betrays a wrong map, base or word order."""

from __future__ import annotations

from decimal import Decimal

import pytest

from protocols.modbus.blocks import decode_block, plan_reads
from protocols.modbus.maps import RegisterMap, builtin_maps
from protocols.modbus.plausible import Judgement, judge
from tests.modbus_bank import Bank, household

METERS = [meter for meter in builtin_maps().values() if not meter.is_relay_only]
HOME = {"volts": "231.7", "amperes": "4.32", "factor": "0.93", "import_kwh": "12345.67"}


def read(meter: RegisterMap, bank: Bank) -> dict[str, int | None]:
    values: dict[str, int | None] = {}
    for block in plan_reads(meter, gap_words_max=0):
        words = bank.read(block.function, block.address, block.count)
        if words is not None:
            values |= decode_block(meter, block, words)
    return values


def judged(meter: RegisterMap, bank: Bank) -> Judgement:
    return judge(meter, read(meter, bank))


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.model)
def test_home_read_with_the_right_map_is_plausible(meter: RegisterMap) -> None:
    """A loaded home raises no doubt, and something vouches for it."""
    bank = Bank()
    bank.put_values(meter, household(meter, **HOME))
    assert judged(meter, bank).doubts == ()
    assert judged(meter, bank).is_plausible


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.model)
def test_wrong_word_order_is_implausible_for_every_map(meter: RegisterMap) -> None:
    """Words the other way round never pass for a home."""
    bank = Bank()
    bank.put_values(meter, household(meter, **HOME))
    assert not judged(meter.variant(word_order=meter.word_order.other), bank).is_plausible


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.model)
@pytest.mark.parametrize("shift", [-1, 1])
def test_wrong_base_is_implausible_for_every_map(meter: RegisterMap, shift: int) -> None:
    """Addresses off by one never pass for a home, even where the meter answers zeros around its registers."""
    bank = Bank()
    bank.put_values(meter, household(meter, **HOME))
    for entry in meter.registers:
        bank.fill(entry.function, meter.wire_address(entry) - 2, meter.wire_address(entry) + entry.words + 2)
    assert not judged(meter.variant(base=meter.base + shift), bank).is_plausible


@pytest.mark.parametrize(
    ("wrong", "quantity"),
    [
        ({"voltage_mv": 0}, "voltage_mv"),
        ({"voltage_mv": None}, "voltage_mv"),
        ({"voltage_mv": 400_000}, "voltage_mv"),
        ({"freq_mhz": 0}, "freq_mhz"),
        ({"freq_mhz": 500_000}, "freq_mhz"),
        ({"pf_milli": 1200}, "pf_milli"),
        ({"power_w": 1_000_000}, "power_w"),
        ({"power_w": 0}, "power_w"),
        ({"current_ma": 500_000, "power_w": 100_000}, "current_ma"),
        ({"import_wh": None}, "import_wh"),
        ({"import_wh": -1}, "import_wh"),
        ({"import_wh": 10**13}, "import_wh"),
    ],
)
def test_each_absurd_value_is_named(wrong: dict[str, int | None], quantity: str) -> None:
    """A doubt names the quantity, what was expected and what came."""
    meter = builtin_maps()["sdm120"]
    right = {name: int(value) for name, value in household(meter, **HOME).items()}
    judgement = judge(meter, {**right, **wrong})
    assert judgement.doubts[0].quantity == quantity
    assert str(judgement.doubts[0]).startswith(f"{quantity}: expected ")


def test_power_in_the_wrong_unit_is_implausible() -> None:
    """A meter that sends kW where the map says W is found by voltage times current."""
    meter = builtin_maps()["ddsu666"]
    values = {name: int(value) for name, value in household(meter, **HOME).items()}
    assert not judge(meter, {**values, "power_w": values["power_w"] * 1000}).is_plausible
    assert not judge(meter, {**values, "power_w": values["power_w"] // 1000}).is_plausible


def test_missing_phase_idle_home_and_three_wires_are_plausible() -> None:
    """What happens in service raises no doubt: a dead phase, no load, a system without neutral."""
    meter = builtin_maps()["sdm630"]
    values = {name: int(value) for name, value in household(meter, **HOME).items()}
    dead = {name: 0 for name in values if "_l3_" in name}
    assert judge(meter, {**values, **dead, "current_ma": 8640, "power_w": 1860}).is_plausible
    idle = {name: 0 for name in values if name.split("_")[0] in ("current", "power", "apparent", "reactive", "pf")}
    assert judge(meter, {**values, **idle}).is_plausible
    wires = dict.fromkeys(("voltage_mv", "voltage_l1_mv", "voltage_l2_mv", "voltage_l3_mv"), 0)
    wires |= dict.fromkeys(("power_l1_w", "power_l2_w", "power_l3_w"), 0)
    assert judge(meter, {**values, **wires}).is_plausible


def test_zeros_alone_vouch_for_nothing() -> None:
    """A bank of zeros is no meter, though nothing in it is absurd but the voltage."""
    meter = builtin_maps()["sdm72"]
    zeros = Bank()
    zeros.put_values(meter, {entry.quantity: Decimal(0) for entry in meter.registers})
    judgement = judged(meter, zeros)
    assert (judgement.doubts, judgement.is_plausible) == ((), False)
