"""The relay of a Modbus meter: the one thing that a gateway ever writes.

Stage: between a native command and a coil or register. Says what a meter of our own would say (`meter_sim.meter` does
as much): epochs and expiry first, then the write, then a read of the same relay, and only what was read is answered.
A write whose outcome nobody knows is not answered at all: the order stays open and is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headend.edges.modbus_line import NoAnswer, Read
from protocols.errors import FrameError
from protocols.modbus.frames import (
    answer_bytes,
    registers_of,
    require_echo,
    write_coil_pdu,
    write_register_pdu,
)
from protocols.modbus.maps import RelayKind, RelayMap
from protocols.native import Command, OrderKind, Relay, ReplyResult

# A contactor takes 20 to 100 ms to move; some modules report its auxiliary contact. Three looks within 0.6 s.
READ_BACKS_MAX: Final = 3
READ_BACK_WAIT_S: Final = 0.2

# Sends a request to a unit and returns the PDU of its answer.
Ask = Callable[[int, Read], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPort:
    """Where a meter's relay is: at which unit, and how it is switched and read."""

    unit: int
    map: RelayMap

    async def read(self, ask: Ask) -> Relay | None:
        """Read the position; None where the relay says neither.

        Raises: LineError; FrameError.
        """
        data = registers_of(await ask(self.unit, Read.of(self.map.read_function, self.map.address, 1)))
        value = data[0] & 1 if self.map.read_function in (1, 2) else int.from_bytes(data[:2], "big")
        if value == self.map.on:
            return Relay.ON
        return Relay.OFF if value == self.map.off else None

    async def write(self, relay: Relay, ask: Ask) -> None:
        """Write a position; the answer says only that the request was understood.

        Raises: LineError; FrameError.
        """
        value = self.map.on if relay is Relay.ON else self.map.off
        if self.map.kind is RelayKind.COIL:
            pdu = write_coil_pdu(self.map.address, bool(value))
        else:
            pdu = write_register_pdu(self.map.address, value)
        require_echo(pdu, await ask(self.unit, Read(pdu=pdu, answer_bytes=answer_bytes(pdu[0], 1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a meter answers to a command; `moved` tells that the write changed the relay."""

    result: ReplyResult
    relay: Relay | None
    moved: bool = False


@dataclass(slots=True, kw_only=True)
class RelayDesk:
    """What one meter has obeyed, and how it obeys.

    Invariants: a supply order is executed once, in the order of epochs; nothing but the relay of this meter is written.
    `relay` is the last position that was read.
    """

    port: RelayPort | None
    epoch: int = 0
    order_id: int | None = None
    relay: Relay | None = None

    async def obey(self, command: Command, ask: Ask, *, now_ms: Callable[[], int]) -> Answer | None:
        """Execute or refuse a command; None where nobody knows what became of it.

        Raises: LineError when the relay cannot be reached.
        """
        refused = self._refused(command, now_ms())
        if refused is not None:
            return refused
        assert self.port is not None, "a command that is not refused has a port"
        assert command.relay is not None, "a supply command has a relay position"
        before = await self._looked(self.port, ask)
        if command.epoch == self.epoch and command.order_id == self.order_id:
            # Delivered again: confirmed again by what the relay says now, and nothing is moved.
            return None if before is None else Answer(result=ReplyResult.DONE, relay=before)
        # Answered or not, what is read says whether it was done.
        with suppress(NoAnswer, FrameError):
            await self.port.write(command.relay, ask)
        found = await self._read_back(self.port, command.relay, ask)
        if found is None:
            return None
        if found is not command.relay:
            return Answer(result=ReplyResult.REFUSED, relay=found)
        self.epoch, self.order_id = command.epoch, command.order_id
        return Answer(result=ReplyResult.DONE, relay=found, moved=before is not None and before is not found)

    def _refused(self, command: Command, now_ms: int) -> Answer | None:
        """Return the answer to a command that is not to be executed."""
        if command.kind is not OrderKind.SUPPLY or self.port is None or command.relay is Relay.LIMITED:
            return Answer(result=ReplyResult.IMPOSSIBLE, relay=self.relay)
        again = command.epoch == self.epoch and command.order_id == self.order_id
        if command.epoch <= self.epoch and not again:
            return Answer(result=ReplyResult.STALE, relay=self.relay)
        if now_ms > command.expires_at_ms:
            return Answer(result=ReplyResult.EXPIRED, relay=self.relay)
        return None

    async def _read_back(self, port: RelayPort, wanted: Relay, ask: Ask) -> Relay | None:
        found = None
        for look in range(READ_BACKS_MAX):
            if look:
                await asyncio.sleep(READ_BACK_WAIT_S)
            found = await self._looked(port, ask)
            if found is wanted:
                break
        return found

    async def _looked(self, port: RelayPort, ask: Ask) -> Relay | None:
        """Read the relay; None where it answers with an exception, with noise or not at all."""
        try:
            found = await port.read(ask)
        except (NoAnswer, FrameError):
            return None
        self.relay = found or self.relay
        return found
