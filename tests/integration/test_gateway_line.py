"""Who is polled next on a line that meters share: those that answer first, whatever is dead beside them."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import time_ns

from db.gateways import PolledMeter
from headend.edges.gateway_line import PolledLine
from headend.edges.gateway_meter import Message, Polled, PolledUnit
from headend.edges.gateway_metrics import GatewayMetrics, Outcome
from headend.edges.gateway_relay import Answer, Ask
from headend.edges.modbus_line import LineAddress
from headend.polling import Schedule
from meter_sim.edges.fleet import ScaledClock
from meter_sim.edges.modbus_server import LOOPBACK, Line, ModbusServer
from meter_sim.modbus_load import steady_load
from meter_sim.modbus_meter import MeterPlate, ModbusMeter
from meter_sim.modbus_wire import Framing as Wire
from protocols.modbus.frames import Framing
from protocols.modbus.maps import builtin_maps
from protocols.native import Command

UNITS, DEAD = range(1, 21), frozenset(range(1, 21, 2))
POLLS = 3


def now_ms() -> int:
    return time_ns() // 1_000_000


class Sink:
    """Counts what polls gave, and notes which healthy meters were due when a time-out began."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[int, Outcome]] = Counter()
        self.units: list[PolledUnit] = []
        self.made_to_wait: list[tuple[int, list[int]]] = []
        self.enough = asyncio.Event()

    def begins(self, unit: int) -> None:
        now_s = asyncio.get_running_loop().time()
        due = [
            each.meter.unit
            for each in self.units
            if self.outcomes[each.meter.unit, Outcome.READ] and each.schedule.due_s <= now_s
        ]
        if unit in DEAD and due:
            self.made_to_wait.append((unit, due))

    def told(self, message: Message) -> None:
        pass

    def went(self, unit: PolledUnit, polled: Polled) -> None:
        self.outcomes[unit.meter.unit, polled.outcome] += 1
        read = min(self.outcomes[unit, Outcome.READ] for unit in UNITS if unit not in DEAD)
        tried = min(self.outcomes[unit, Outcome.SILENT] for unit in DEAD)
        if read >= POLLS and tried >= 2:
            self.enough.set()

    def answered(self, unit: PolledUnit, command: Command, answer: Answer) -> None:
        raise AssertionError("nothing is ordered here")

    def may_write(self) -> bool:
        return False


class WatchedUnit(PolledUnit):
    """A polled meter that tells when its poll begins."""

    sink: Sink

    async def poll(self, ask: Ask) -> Polled:
        self.sink.begins(self.meter.unit)
        return await super().poll(ask)


def watched(unit: int, sink: Sink) -> WatchedUnit:
    meter = PolledMeter(
        line_id=1, meter_id=unit, serial=f"M{unit}", unit=unit, model="sdm120", poll_s=1, word_order=None, base=None,
        confirmed=False, relay_model=None, relay_unit=None, relay_address=None, device_serial=None, rated_w=15_000,
    )  # fmt: skip
    steady_s = asyncio.get_running_loop().time()
    schedule = Schedule.starting(meter.serial, meter.poll_s, wall_s=now_ms() / 1000, steady_s=steady_s)
    made = WatchedUnit(meter, builtin_maps(), schedule, GatewayMetrics(), now_ms)
    made.sink = sink
    sink.units.append(made)
    return made


def test_ten_dead_of_twenty_units_on_a_serial_line_make_no_answering_meter_wait_for_a_row_of_time_outs() -> None:
    """No try at a meter that does not answer begins while one that answers is due, and the dead are tried all the same;
    the session, on which others answer, is kept."""

    async def story() -> None:
        sink = Sink()
        plate = MeterPlate(serial_number=1, map=builtin_maps()["sdm120"], load=steady_load(500), register_wh=5_000)
        standing = {unit: ModbusMeter(plate, now_ms=now_ms()) for unit in UNITS if unit not in DEAD}
        line = Line(framing=Wire.RTU, units=standing)
        async with ModbusServer([line], clock=ScaledClock(now_ms())):
            address = LineAddress(framing=Framing.RTU, timeout_s=0.1, host=LOOPBACK, port=line.port)
            polled = PolledLine("l", address, [watched(unit, sink) for unit in UNITS], sink, GatewayMetrics(), now_ms)
            task = asyncio.create_task(polled.run())
            try:
                await asyncio.wait_for(sink.enough.wait(), 40)
            finally:
                task.cancel()
        assert sink.made_to_wait == []
        assert sum(count for (_, outcome), count in sink.outcomes.items() if outcome is Outcome.LINE_LOST) == 0
        assert {outcome for _, outcome in sink.outcomes} == {Outcome.READ, Outcome.SILENT}

    asyncio.run(story())
