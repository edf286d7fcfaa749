"""A Modbus line for tests: pymodbus's own server with words written by `struct`, and a gateway beside ingest."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerType
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from db.gateways import NewLine, NewPolledMeter, add_line, add_polled_meter
from headend.edges.gateway import Gateway, GatewaySettings
from headend.edges.gateway_metrics import GatewayMetrics
from prepaid.embedded.process import LOOPBACK
from prepaid.gateway_parts import known_maps, publishers
from tests.support import ACK_WAIT_S, LEASE_S, Site

RELAY_UNIT = 200
_WORDS = 0x60
# Wire addresses of an Eastron SDM120: float32, high word first.
_VOLTAGE, _CURRENT, _POWER, _PF, _FREQUENCY, _IMPORT, _EXPORT = 0, 6, 0x0C, 0x1E, 0x46, 0x48, 0x4A


@dataclass(slots=True)
class Meter:
    """What one unit shows; `absurd_once` are registers that the next reads show instead, one each."""

    import_kwh: float = 1.0
    low_word_first: bool = False
    refuses: bool = False
    absurd_once: list[float] = field(default_factory=list)
    reads: int = 0

    def registers(self) -> dict[int, int]:
        """Return the words by wire address."""
        energy = self.absurd_once.pop(0) if self.absurd_once else self.import_kwh
        shown = {
            _VOLTAGE: 231.5, _CURRENT: 2.0, _POWER: 460.0, _PF: 0.99, _FREQUENCY: 49.98, _IMPORT: energy, _EXPORT: 0.0,
        }  # fmt: skip
        words = {}
        for address, value in shown.items():
            high, low = struct.unpack(">HH", struct.pack(">f", value))
            words[address], words[address + 1] = (low, high) if self.low_word_first else (high, low)
        return words


@dataclass(slots=True)
class Line:
    """A server at the end of a line: meters by unit, and a module of relays at `RELAY_UNIT`.

    `coils` are the relays; `stuck` ones do not move though their write is echoed. Units in `silent` say nothing.
    """

    meters: dict[int, Meter]
    framer: FramerType = FramerType.SOCKET
    coils: list[bool] = field(default_factory=lambda: [True] * 8)
    stuck: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    writes: list[tuple[int, bool]] = field(default_factory=list)
    port: int = 0
    _server: ModbusTcpServer | None = None

    async def start(self) -> None:
        """Listen, at the same port as before."""
        devices = [self._meter_device(unit, meter) for unit, meter in self.meters.items()]
        self._server = ModbusTcpServer(
            [*devices, self._relay_device()],
            framer=self.framer,
            address=(LOOPBACK, self.port),
            trace_packet=self._unless_silent,
        )
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            await self._server.shutdown()
            self._server = None

    def _unless_silent(self, sending: bool, packet: bytes) -> bytes:
        unit = packet[6 if self.framer is FramerType.SOCKET else 0] if packet else 0
        return b"" if sending and unit in self.silent else packet

    def _meter_device(self, unit: int, meter: Meter) -> SimDevice:
        words = [SimData(0, values=[0] * _WORDS, datatype=DataType.REGISTERS)]
        other = [SimData(0, values=0, datatype=DataType.REGISTERS)]
        bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
        return SimDevice(unit, simdata=(bits, bits, other, words), action=partial(_show, meter))

    def _relay_device(self) -> SimDevice:
        bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
        other = [SimData(0, values=0, datatype=DataType.REGISTERS)]
        return SimDevice(RELAY_UNIT, simdata=(bits, bits, other, other), use_bit_addressing=True, action=self._switch)

    async def _switch(
        self, function: int, start: int, address: int, count: int, registers: list[int], values: Any
    ) -> ExcCodes | None:
        if values is not None:
            self.writes.append((address, bool(values[0])))
            if address not in self.stuck:
                self.coils[address] = bool(values[0])
            values[0] = self.coils[address]
        registers[0] = sum(on << place for place, on in enumerate(self.coils))
        return None


async def _show(
    meter: Meter, function: int, start: int, address: int, count: int, registers: list[int], values: Any
) -> ExcCodes | None:
    meter.reads += 1
    if meter.refuses:
        return ExcCodes.DEVICE_FAILURE
    for place, word in meter.registers().items():
        registers[place - start] = word
    return None


@asynccontextmanager
async def running_line(meters: dict[int, Meter], *, framer: FramerType = FramerType.SOCKET) -> AsyncIterator[Line]:
    """Serve a line until the context ends."""
    line = Line(meters=meters, framer=framer)
    await line.start()
    try:
        yield line
    finally:
        await line.stop()


async def enter(site: Site, line: Line, meters: Sequence[NewPolledMeter], *, name: str = "north") -> None:
    """Enter a line and the meters on it."""
    framing = "tcp" if line.framer is FramerType.SOCKET else "rtu"
    await add_line(site.conn, NewLine(name=name, framing=framing, host=LOOPBACK, port=line.port, timeout_ms=300))
    for meter in meters:
        await add_polled_meter(site.conn, meter)


@asynccontextmanager
async def running_gateway(site: Site, folder: Path, *, member: int = 1) -> AsyncIterator[GatewayMetrics]:
    """Run a gateway as a task of this process."""
    metrics, stop = GatewayMetrics(), asyncio.Event()
    nats = site.nats
    settings = GatewaySettings(
        database_url=site.database_url,
        nats_url=nats.nats_url,
        lease_s=LEASE_S,
        folder=folder / f"gateway-{member}",
        roster_every_s=0.2,
    )
    broker = publishers(nats.nats_url, nats.mqtt_host, nats.mqtt_port, ack_wait_s=ACK_WAIT_S)
    task = asyncio.create_task(Gateway(settings, known_maps(None), metrics, broker).run(stop))
    site.tasks.append(task)
    try:
        yield metrics
    finally:
        site.tasks.remove(task)
        stop.set()
        await asyncio.wait_for(task, 20)


def counted(metrics: GatewayMetrics, name: str, **labels: str) -> int:
    """Return a counter or gauge."""
    return int(metrics.registry.get_sample_value(f"prepaid_gateway_{name}", labels) or 0)
