"""One polled meter against words written by hand: SunSpec devices found, dead relays left alone, doubts told."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace

import pytest

from db.gateways import PolledMeter
from headend.edges.gateway_meter import MeterUnusable, Polled, PolledUnit
from headend.edges.gateway_metrics import GatewayMetrics, Outcome
from headend.edges.modbus_line import NoAnswer, Read
from headend.polling import Schedule
from protocols.modbus.maps import builtin_maps
from protocols.native import Readings, decode_uplink

METER = PolledMeter(
    line_id=1, meter_id=1, serial="M1", unit=1, model="sunspec", poll_s=60, word_order=None, base=None, confirmed=False,
    relay_model=None, relay_unit=None, relay_address=None, device_serial=None, rated_w=15_000,
)  # fmt: skip
RELAY_UNIT = 200


class Device:
    """Holding and input words by wire address; asked for what it has not, it refuses. One unit never answers."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words
        self.asked: list[int] = []
        self.is_silent = False

    async def ask(self, unit: int, read: Read) -> bytes:
        self.asked.append(unit)
        if unit == RELAY_UNIT or self.is_silent:
            raise NoAnswer("unit 200: expected an answer, got none")
        function, address, count = struct.unpack(">BHH", read.pdu)
        span = range(address, address + count)
        if not all(place in self.words for place in span):
            return bytes((function | 0x80, 2))
        return struct.pack(f">BB{count}H", function, 2 * count, *(self.words[place] & 0xFFFF for place in span))


def polled_unit(meter: PolledMeter) -> PolledUnit:
    schedule = Schedule.starting(meter.serial, meter.poll_s, wall_s=0, steady_s=0)
    return PolledUnit(meter, builtin_maps(), schedule, GatewayMetrics(), lambda: 1_700_000_000_000)


def poll(unit: PolledUnit, device: Device) -> Polled:
    return asyncio.run(unit.poll(device.ask))


def sunspec(base: int = 40_000) -> dict[int, int]:
    """Write a device with a single-phase meter of model 201 behind its common block."""
    words = {base: 0x5375, base + 1: 0x6E53, base + 2: 1, base + 3: 66}
    words |= {base + 4 + place: 0 for place in range(66)}
    start = base + 4 + 66
    words |= {start + place: 0x8000 for place in range(107)} | {start: 201, start + 1: 105}
    # Amperes, volts between phase and neutral, hertz, watts, power factor, Wh; each with its power of ten.
    shown = {2: 20, 6: -1, 7: 2315, 15: -1, 16: 4998, 17: -2, 18: 460, 22: 0, 33: 99, 37: -2, 54: 0}
    words |= {start + place: value for place, value in shown.items()}
    words |= {start + 46: 0, start + 47: 4_321, start + 38: 0, start + 39: 0}
    words |= {start + 8: 2315, start + 3: 20, start + 19: 460, start + 34: 99}
    words |= {start + 107: 0xFFFF, start + 108: 0}
    return words


def test_sunspec_device_says_itself_where_its_meter_is() -> None:
    """Discovery finds the model, the readings follow, and the next poll discovers nothing again."""
    unit, device = polled_unit(METER), Device(sunspec())
    polled = poll(unit, device)
    assert polled.outcome is Outcome.READ, polled.detail
    assert polled.message is not None
    readings = decode_uplink(*polled.message)
    assert isinstance(readings, Readings)
    assert (readings.import_wh, readings.voltage_mv, readings.freq_mhz) == ([4_321], [231_500], [49_980])
    discovered = len(device.asked)
    assert poll(unit, device).outcome is Outcome.READ
    assert len(device.asked) - discovered < 4


def test_sunspec_device_without_a_meter_is_refused_by_name() -> None:
    """A device that is no meter is told as such and not published."""
    polled = poll(polled_unit(METER), Device({40_000: 0x5375, 40_001: 0x6E53, 40_002: 0xFFFF, 40_003: 0}))
    assert polled.outcome is Outcome.REFUSED
    assert polled.detail == "model sunspec: expected such a meter in a SunSpec device, got none"


def test_dead_relay_module_costs_one_time_out_and_no_reading() -> None:
    """A relay that does not answer is not asked again at once, and the meter's reading is told without it."""
    place = replace(METER, model="sdm120", relay_model="relay-coil", relay_unit=RELAY_UNIT, relay_address=0)
    words = dict.fromkeys(range(0x60), 0)
    for address, value in {0: 231.5, 6: 2.0, 0x0C: 460.0, 0x1E: 0.99, 0x46: 49.98, 0x48: 1.5}.items():
        words[address], words[address + 1] = struct.unpack(">HH", struct.pack(">f", value))
    unit, device = polled_unit(place), Device(words)
    for _ in range(3):
        assert poll(unit, device).outcome is Outcome.READ
    assert device.asked.count(RELAY_UNIT) == 1


def test_meter_that_refuses_words_between_its_registers_is_read_without_them() -> None:
    """A read across unknown words is refused with code 2; from the next poll on none is asked for."""
    words: dict[int, int] = {}
    for address, value in {0: 231.5, 6: 2.0, 0x0C: 460.0, 0x1E: 0.99, 0x46: 49.98, 0x48: 1.5, 0x4A: 0.0}.items():
        words[address], words[address + 1] = struct.unpack(">HH", struct.pack(">f", value))
    unit, device = polled_unit(replace(METER, model="sdm120")), Device(words)
    assert poll(unit, device).outcome is Outcome.REFUSED
    assert poll(unit, device).outcome is Outcome.READ


def test_meter_of_power_and_energy_alone_is_polled_only_once_confirmed_and_then_at_zero() -> None:
    """Words the other way round may look right where nothing vouches; who has looked lets even a new meter be told."""
    place = replace(METER, model="sdm72")
    with pytest.raises(MeterUnusable, match="word_order confirmed by a probe"):
        polled_unit(place)
    unit, device = polled_unit(replace(place, confirmed=True)), Device(dict.fromkeys(range(0x60), 0))
    polled = poll(unit, device)
    assert polled.outcome is Outcome.READ, polled.detail
    device.words[0x48], device.words[0x49] = 0, 0x7FC0
    assert poll(polled_unit(replace(place, confirmed=True)), device).outcome is Outcome.IMPLAUSIBLE


def eastron(serial: int) -> dict[int, int]:
    """Write an SDM120 in service; its serial stands among the holding registers, of which these are the same here."""
    words = dict.fromkeys(range(0x60), 0)
    for address, value in {0: 231.5, 6: 2.0, 0x0C: 460.0, 0x1E: 0.99, 0x46: 49.98, 0x48: 1.5}.items():
        words[address], words[address + 1] = struct.unpack(">HH", struct.pack(">f", value))
    return words | {0xFC00: serial >> 16, 0xFC01: serial & 0xFFFF}


def test_device_with_another_serial_is_not_published_until_the_registered_one_is_back() -> None:
    """The serial is asked at the first contact and again after silence; another one's values are not told."""
    unit, device = polled_unit(replace(METER, model="sdm120", device_serial="70001")), Device(eastron(70_001))
    assert poll(unit, device).outcome is Outcome.READ
    device.words |= eastron(70_002)
    assert poll(unit, device).outcome is Outcome.READ, "asked at contact, not at each poll"
    device.is_silent = True
    assert poll(unit, device).outcome is Outcome.SILENT
    device.is_silent = False
    for _ in range(2):
        other = poll(unit, device)
        assert (other.outcome, other.message) == (Outcome.OTHER_METER, None)
        assert other.detail == "serial of the device: expected 70001, got 70002"
    device.words |= eastron(70_001)
    assert poll(unit, device).outcome is Outcome.READ


def test_sunspec_device_with_another_serial_is_not_published() -> None:
    """A SunSpec device tells its serial with its models."""
    place = replace(METER, device_serial="A-1")
    polled = poll(polled_unit(place), Device(sunspec()))
    assert polled.outcome is Outcome.OTHER_METER
