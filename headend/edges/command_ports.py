"""How commands leave for meters: one port for each transport, and the one over the broker.

Stage: the last step of the dispatcher. Takes payloads of `protocols.native`; a port of another transport turns them
into its own words. A port may lose a command: the order behind it is tried again until its meter confirms it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from nats.aio.client import Client

from protocols.topics import command_topic

# The transport of meters that hold their own session with the broker.
MQTT = "mqtt"
# Meters that a gateway polls: it takes their commands off the broker in their place.
MODBUS = "modbus"
FLUSH_TIMEOUT_S = 5


class TransportDown(Exception):
    """A transport cannot take commands just now; its orders are tried again, the other transports go on."""

    code: ClassVar[str] = "transport_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A command about to leave."""

    order_id: int
    serial: str
    payload: bytes


class CommandPort(Protocol):
    """How commands leave for the meters of one transport."""

    async def send(self, commands: Sequence[Outgoing]) -> None:
        """Hand commands over; return when they have left this process.

        Raises: TransportDown; nats.errors.Error, TimeoutError when the broker is away.
        """


# Ports by the name that `meters.transport` has.
Transports = Mapping[str, CommandPort]


class NatsCommands:
    """Commands over the broker's own protocol: a NATS publish reaches MQTT subscribers at QoS 0."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def send(self, commands: Sequence[Outgoing]) -> None:
        """Publish to the meters' command topics; wait for the broker to have read everything."""
        for command in commands:
            await self._client.publish(command_topic(command.serial).replace("/", "."), command.payload)
        await self._client.flush(timeout=FLUSH_TIMEOUT_S)
