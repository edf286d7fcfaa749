"""Modbus lines of simulated meters: listening sockets on which units answer, over TCP or as a serial line behind one.

Stage: where the gateway, a probe or an outside client knocks. Bytes enter and leave on any number of connections; what
is answered is the units' own. Each line is a listening port with its framing and its units; a unit that a line does
not have is not answered, as on a serial line. Time comes from a clock, so that a home can live faster than its wall.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self, cast

import structlog

from meter_sim.edges.fleet import Clock
from meter_sim.modbus_faults import LineFault
from meter_sim.modbus_wire import Framing, Request, RequestStream, framed
from protocols.errors import Malformed

LOOPBACK: Final = "127.0.0.1"
# A gateway has one connection a line; another may come before the first is known to be dead.
CONNECTIONS_WAITING_MAX: Final = 64

_log = structlog.get_logger(__name__)


class Unit(Protocol):
    """Something on a line that answers requests."""

    @property
    def fault(self) -> LineFault | None:
        """What it suffers from."""

    def answer(self, pdu: bytes, now_ms: int) -> bytes:
        """Answer a request, by an exception if need be."""


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """One line with its units.

    Invariants: while `is_down` every connection is refused or cut. `requests` counts those that a unit of the line
    has heard; `port` is known once the server runs.
    """

    framing: Framing
    units: Mapping[int, Unit]
    port: int = 0
    is_down: bool = False
    requests: int = 0
    unanswered: int = 0
    connections: set[asyncio.Transport] = field(default_factory=set)


class ModbusServer:
    """All lines of a process.

    Invariants: entered, every line listens on its own port of the loopback address; left, all connections are closed.
    """

    def __init__(self, lines: Sequence[Line], *, clock: Clock, host: str = LOOPBACK) -> None:
        self.lines = lines
        self.host = host
        self._clock = clock
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for line in self.lines:
            server = await loop.create_server(
                lambda line=line: _Connection(line, self._clock),  # type: ignore[misc]  # A default binds the line.
                self.host,
                line.port,
                backlog=CONNECTIONS_WAITING_MAX,
            )
            self._servers.append(server)
            line.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        for line in self.lines:
            cut(line)
        for server in self._servers:
            await server.wait_closed()

    @property
    def requests(self) -> int:
        """Count the requests that units have heard."""
        return sum(line.requests for line in self.lines)


def take_down(line: Line) -> None:
    """Let a line fail: what is connected is cut, and whoever comes is cut at once."""
    line.is_down = True
    cut(line)


def bring_up(line: Line) -> None:
    """Let a line work again."""
    line.is_down = False


def cut(line: Line) -> None:
    """Cut all connections of a line; a new one is welcome."""
    for transport in tuple(line.connections):
        transport.abort()


class _Connection(asyncio.Protocol):
    """One master's connection to a line."""

    def __init__(self, line: Line, clock: Clock) -> None:
        self._line = line
        self._clock = clock
        self._stream = RequestStream(line.framing)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transport of TCP has no base of asyncio's.
        stream = cast(asyncio.Transport, transport)
        if self._line.is_down:
            stream.abort()
            return
        self._transport = stream
        self._line.connections.add(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._line.connections.discard(self._transport)
            self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            requests = self._stream.feed(data)
        except Malformed as error:
            _log.warning("modbus_request_malformed", reason=str(error), port=self._line.port)
            if self._transport is not None:
                self._transport.abort()
            return
        now_ms = self._clock.now_ms()
        for request in requests:
            self._answer(request, now_ms)

    def _answer(self, request: Request, now_ms: int) -> None:
        unit = self._line.units.get(request.unit)
        if unit is None:
            self._line.unanswered += 1
            return
        self._line.requests += 1
        pdu = unit.answer(request.pdu, now_ms)
        if unit.fault is None:
            self._write(framed(request, pdu))
            return
        for piece in unit.fault.spoil(request, pdu):
            if piece.delay_ms:
                asyncio.get_running_loop().call_later(piece.delay_ms / 1000, self._write, piece.data)
            else:
                self._write(piece.data)

    def _write(self, data: bytes) -> None:
        # A late answer may find the master gone.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
