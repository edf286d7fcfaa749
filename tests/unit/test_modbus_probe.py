"""The probe: which model, base and word order a meter is read with, and why others are refused."""

from __future__ import annotations

import asyncio
import struct

import pytest

from headend.edges.modbus_line import NoAnswer
from headend.edges.modbus_probe import Found, ProbeReport, probe
from protocols.modbus.frames import Framing
from protocols.modbus.maps import RegisterMap, builtin_maps
from protocols.modbus.values import WordOrder
from tests.modbus_bank import Bank, household
from tests.unit.test_modbus_sunspec import common, device, wye

HOME = {"volts": "231.7", "amperes": "4.32", "factor": "0.93", "import_kwh": "12345.67"}


class BankLine:
    """A line with one meter: `unit` answers from a bank, other units are silent, as is the other framing."""

    def __init__(self, bank: Bank, unit: int, framing: Framing) -> None:
        self.bank, self.unit, self.framing = bank, unit, framing
        self.opened = 0
        self.asked = 0
        self.functions: set[int] = set()
        self.now: Framing | None = None

    async def open(self, framing: Framing) -> BankLine:
        self.opened += 1
        self.now = framing
        return self

    async def ask(self, unit: int, pdu: bytes, length: int) -> bytes:
        assert self.now is not None, "asked on a closed line"
        self.asked += 1
        self.functions.add(pdu[0])
        if unit != self.unit or self.now is not self.framing:
            raise NoAnswer(f"unit {unit}: expected an answer, got none")
        answer = self.bank.answer(pdu)
        assert len(answer) in (2, length)
        return answer

    def close(self) -> None:
        self.now = None


def probed(
    bank: Bank, *, unit: int = 1, units: tuple[int, ...] = (1,), framing: Framing = Framing.TCP
) -> tuple[ProbeReport, BankLine]:
    line = BankLine(bank, unit, framing)
    return asyncio.run(probe(line.open, units=units, quiet_s=0)), line


def home_of(meter: RegisterMap) -> Bank:
    """Hold a home in a meter's registers, with zeros between them, its identity and a serial number."""
    bank = Bank()
    bank.put_values(meter, household(meter, **HOME))
    for function in {entry.function for entry in meter.registers}:
        places = [meter.wire_address(entry) for entry in meter.registers if entry.function == function]
        if meter.gap_words_max:
            bank.fill(function, min(places), max(places) + 4)
    if meter.identity is not None:
        entry, value = meter.identity.register, meter.identity.values[0]
        data = value.to_bytes(2, "big") if isinstance(value, int) else value.encode().ljust(2 * entry.words, b"\0")
        if entry.order is WordOrder.BADC:
            data = b"".join(data[at : at + 2][::-1] for at in range(0, len(data), 2))
        bank.put(entry.function, entry.address, data)
    return bank


def best(report: ProbeReport) -> Found:
    assert report.best is not None, report.refused
    return report.best


@pytest.mark.parametrize(
    "meter", [meter for meter in builtin_maps().values() if not meter.is_relay_only], ids=lambda meter: meter.model
)
def test_meter_of_every_map_is_found_among_the_best(meter: RegisterMap) -> None:
    """The model that stands is the meter's, or one with the same registers; base and order are as documented."""
    report, line = probed(home_of(meter))
    models = {best(report).map.model, *(rival.map.model for rival in report.rivals)}
    assert meter.model in models
    assert best(report).is_as_documented
    assert line.functions <= {3, 4}


def test_meters_with_the_same_registers_are_rivals_for_the_operator_to_choose() -> None:
    """An SDM120 and an SDM230 answer alike: the probe says so instead of guessing."""
    report, _ = probed(home_of(builtin_maps()["sdm120"]))
    assert {best(report).map.model, *(rival.map.model for rival in report.rivals)} == {"sdm120", "sdm230"}


def test_three_phase_meter_is_not_taken_for_its_single_phase_relative() -> None:
    """An SDM630 explains more of its registers than the SDM120's map does."""
    report, _ = probed(home_of(builtin_maps()["sdm630"]))
    assert best(report).map.model == "sdm630"
    assert report.rivals == ()


def test_meter_set_to_the_other_word_order_is_found_with_it() -> None:
    """A DDSU666 behind a converter that turns words is read with the order turned, and the documented one refused."""
    meter = builtin_maps()["ddsu666"].variant(word_order=WordOrder.CDAB)
    report, _ = probed(home_of(meter))
    assert (best(report).map.model, best(report).map.word_order) == ("ddsu666", WordOrder.CDAB)
    assert not best(report).is_as_documented
    (refusal,) = [
        each for each in report.refused if (each.model, each.word_order, each.base) == ("ddsu666", WordOrder.ABCD, 0)
    ]
    assert "expected" in refusal.reason


@pytest.mark.parametrize("base", [0, 1])
def test_doubtful_base_of_em2m_is_settled_by_asking_both(base: int) -> None:
    """Whichever number the addresses count from, the probe finds it, and only it stands."""
    report, _ = probed(home_of(builtin_maps()["em2m"].variant(base=base)))
    stands = [each.map.base for each in report.found if each.map.model == "em2m"]
    assert stands == [base]
    assert best(report).map.model == "em2m"


def test_identity_of_another_model_refuses_the_map_that_would_fit() -> None:
    """A B23's registers hold a B21's, but the meter says what it is."""
    report, _ = probed(home_of(builtin_maps()["abb-b23"]))
    assert (best(report).map.model, best(report).is_identified) == ("abb-b23", True)
    reasons = [each.reason for each in report.refused if each.model == "abb-b21"]
    assert "identity: expected B21, got B23" in reasons


def test_serial_number_is_read_where_the_map_knows_it() -> None:
    """An operator sees which meter answered."""
    bank = home_of(builtin_maps()["sdm120"])
    bank.put(3, 0xFC00, struct.pack(">I", 19_054_321))
    assert best(probed(bank)[0]).serial == "19054321"


def test_unit_and_framing_are_found_by_trying_and_silence_is_told() -> None:
    """Units that do not answer cost a bounded number of reads and are named; the other framing is tried next."""
    report, line = probed(home_of(builtin_maps()["ddsu666"]), unit=7, units=(3, 7), framing=Framing.RTU)
    assert (best(report).unit, best(report).framing) == (7, Framing.RTU)
    assert report.silent == ((Framing.TCP, 3), (Framing.TCP, 7), (Framing.RTU, 3))
    assert line.opened > 2
    assert line.asked < 200


def test_meter_that_refuses_reads_across_gaps_is_read_in_parts() -> None:
    """Where words between the values answer with an exception, the values are asked for one by one."""
    meter = builtin_maps()["sdm120"]
    bank = Bank()
    bank.put_values(meter, household(meter, **HOME))
    report, _ = probed(bank)
    assert best(report).map.model in ("sdm120", "sdm230")
    assert best(report).values["import_wh"] == 12_345_670


def test_sunspec_device_is_found_by_what_it_says() -> None:
    """Its own word stands above every map that happens to fit."""
    report, _ = probed(device(40_000, common(), wye()))
    assert (best(report).map.model, best(report).serial) == ("sunspec-203", "SN0042")
    assert best(report).is_identified


def test_bank_of_zeros_is_no_meter() -> None:
    """A device that answers zeros to everything makes no map stand; each refusal has its reason."""
    bank = Bank()
    for function in (3, 4):
        bank.fill(function, 0, 0xFFFF)
    report, _ = probed(bank)
    assert report.found == ()
    assert all(each.reason for each in report.refused)
