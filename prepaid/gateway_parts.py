"""What a gateway process is given from outside the head-end: its maps, and the publisher that the import has, too; and
what an operator may enter for it.

Stage: the outermost edge, beside `prepaid.processes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from db.gateways import NewLine, NewPolledMeter
from headend.edges.gateway import BrokerAway, Publisher, Publishers
from headend.edges.stream import StreamError, prepare_stream
from meter_sim.edges.bulk import BulkPublisher, FleetError
from protocols.modbus.maps import MapError, RegisterMap, builtin_maps, load_map
from protocols.modbus.sunspec import SUNSPEC

# As IANA has it.
MODBUS_PORT: Final = 502
_PORT_MAX: Final = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFault:
    """What does not fit of a meter that is to be polled."""

    field: str
    expected: str
    got: str


def known_maps(folder: Path | None) -> dict[str, RegisterMap]:
    """Return the shipped maps and those of a folder; one of the folder replaces a shipped one of its model.

    Raises: MapError; FileNotFoundError.
    """
    maps = dict(builtin_maps())
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if path.suffix == ".toml":
            made = read_map(path)
            maps[made.model] = made
    return maps


def read_map(path: Path) -> RegisterMap:
    """Read a map file.

    Raises: MapError; FileNotFoundError.
    """
    try:
        return load_map(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise MapError(f"{path.name}: expected UTF-8 text, got another byte at {error.start}") from None


def placed_at(way: str, text: str, baud: int, parity: str) -> NewLine | None:
    """Return a line without its name, by the way to it (`tcp`, `rtu_tcp`, `port`) and where; None for no such place."""
    if way == "port":
        if not text.startswith("/dev/"):
            return None
        return NewLine(name="", framing="rtu", device=text, baud=baud, parity=parity)
    host, _, port = text.rpartition(":")
    if not host or host.endswith(":"):
        host, port = text, str(MODBUS_PORT)
    if not port.isascii() or not port.isdecimal() or len(port) > len(str(_PORT_MAX)) or not 0 < int(port) <= _PORT_MAX:
        return None
    host = host.strip("[]")
    if not host or not host.isprintable() or " " in host:
        return None
    return NewLine(name="", framing="tcp" if way == "tcp" else "rtu", host=host, port=int(port))


def fault_of(meter: NewPolledMeter, maps: Mapping[str, RegisterMap]) -> PlaceFault | None:
    """Return the first thing for which a meter could not be polled as it is given; None if nothing is wrong."""
    made = maps.get(meter.model)
    meters = ", ".join(sorted(model for model, each in maps.items() if not each.is_relay_only))
    if (made is None and not meter.model.startswith(SUNSPEC)) or (made is not None and made.is_relay_only):
        return PlaceFault(field="model", expected=f"one of {meters}, {SUNSPEC}", got=meter.model)
    if made is not None and made.doubts and not meter.confirmed:
        expected = f"{', '.join(made.doubts)} of a {meter.model} confirmed by a probe"
        return PlaceFault(field="confirmed", expected=expected, got="no")
    if made is not None and made.serial is None and meter.device_serial is not None:
        expected = f"none, since a {meter.model} does not tell its own by Modbus"
        return PlaceFault(field="device_serial", expected=expected, got=meter.device_serial)
    return _relay_fault(meter, maps)


def _relay_fault(meter: NewPolledMeter, maps: Mapping[str, RegisterMap]) -> PlaceFault | None:
    if meter.relay_model is None:
        lone = meter.relay_unit if meter.relay_unit is not None else meter.relay_address
        return None if lone is None else PlaceFault(field="relay_model", expected="one beside the relay", got="none")
    if meter.relay_unit is None:
        return PlaceFault(field="relay_unit", expected="one beside relay_model", got="none")
    module = maps.get(meter.relay_model)
    if module is None or module.relay is None:
        relays = ", ".join(sorted(model for model, each in maps.items() if each.relay is not None))
        return PlaceFault(field="relay_model", expected=f"one of {relays}", got=meter.relay_model)
    return None


def publishers(nats_url: str, host: str, port: int, *, ack_wait_s: float) -> Publishers:
    """Return what opens connections to our broker, its streams prepared: it confirms and drops what nobody asks for."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Publisher]:
        try:
            await prepare_stream(nats_url, host, port, ack_wait_s=ack_wait_s)
            async with BulkPublisher(host, port, connections=1) as publisher:
                yield _Naming(publisher)
        except (StreamError, FleetError, OSError) as error:
            raise BrokerAway(str(error)) from error

    return opened


class _Naming:
    """A publisher whose failures have the gateway's name."""

    def __init__(self, publisher: BulkPublisher) -> None:
        self._publisher = publisher

    async def publish(self, topic: str, payload: bytes) -> None:
        """Hand a message over.

        Raises: BrokerAway.
        """
        try:
            await self._publisher.publish(topic, payload)
        except FleetError as error:
            raise BrokerAway(str(error)) from error

    async def drain(self) -> int:
        """Wait until the broker has all.

        Raises: BrokerAway.
        """
        try:
            return await self._publisher.drain()
        except FleetError as error:
            raise BrokerAway(str(error)) from error
