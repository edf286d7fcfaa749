"""What a gateway process is given from outside the head-end: its maps, and the publisher that the import has, too.

Stage: the outermost edge, beside `prepaid.processes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from headend.edges.gateway import BrokerAway, Publisher, Publishers
from headend.edges.stream import StreamError, prepare_stream
from meter_sim.edges.bulk import BulkPublisher, FleetError
from protocols.modbus.maps import MapError, RegisterMap, builtin_maps, load_map


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
