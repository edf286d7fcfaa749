"""A line of simulated Modbus meters to try the gateway on, without any meter.

Stage: the outermost edge, beside `prepaid.gateway_commands`. Listens on loopback until stopped; stores nothing.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

import typer

from meter_sim.edges.fleet import ScaledClock
from meter_sim.edges.modbus_server import LOOPBACK, Line, ModbusServer
from meter_sim.modbus_load import steady_load
from meter_sim.modbus_meter import MeterPlate, ModbusMeter, RelayModule
from meter_sim.modbus_wire import Framing
from protocols.modbus.maps import RegisterMap

RELAY_UNIT: Final = 200
RELAY_MODEL: Final = "relay-coil"
# Meters have the units below the module's.
METERS_MAX: Final = RELAY_UNIT - 1
_SERIAL_FIRST: Final = 70_000


def run_simulated_line(
    models: Sequence[str], maps: Mapping[str, RegisterMap], *, port: int, rtu: bool, load_w: int, register_wh: int
) -> None:
    """Let meters of some models stand on a line, unit 1 first, with a relay each, until SIGINT or SIGTERM."""
    now_ms = time.time_ns() // 1_000_000
    meters = {
        unit: ModbusMeter(
            MeterPlate(
                serial_number=_SERIAL_FIRST + unit,
                map=maps[model],
                load=steady_load(load_w),
                register_wh=register_wh,
            ),
            now_ms=now_ms,
        )
        for unit, model in enumerate(models, start=1)
    }
    relay = maps[RELAY_MODEL].relay
    assert relay is not None, f"map {RELAY_MODEL} has a relay"
    module = RelayModule(relay, {unit - 1: meter for unit, meter in meters.items()})
    framing = Framing.RTU if rtu else Framing.TCP
    line = Line(framing=framing, units={**meters, RELAY_UNIT: module}, port=port)

    async def stand() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with ModbusServer([line], clock=ScaledClock(now_ms)):
            _tell(line, meters)
            await stop.wait()

    asyncio.run(stand())


def _tell(line: Line, meters: Mapping[int, ModbusMeter]) -> None:
    way = "--rtu-tcp" if line.framing is Framing.RTU else "--tcp"
    typer.echo(f"prepaid gateway lines add NAME {way} {LOOPBACK}:{line.port}")
    for unit, meter in meters.items():
        assert isinstance(meter.plate.map, RegisterMap), "a simulated line has mapped meters"
        typer.echo(
            f"prepaid gateway meters add SERIAL --line NAME --unit {unit} --model {meter.plate.map.model}"
            f" --relay-model {RELAY_MODEL} --relay-unit {RELAY_UNIT} --relay-address {unit - 1}"
            f"{' --confirmed' if meter.plate.map.doubts else ''}"
        )
    typer.echo("Ctrl-C ends it")
