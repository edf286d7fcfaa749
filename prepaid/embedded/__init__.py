"""The embedded parts: database and broker as child processes, for whoever gave no addresses of their own.

Enters `Settings`; leaves the addresses the processes of this start use. A part whose address is set is never
started. A second command on a data folder that a running one already serves joins its parts instead.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import structlog

from headend.edges.stream import prepare_stream
from prepaid.embedded.nats import EmbeddedNats, Prepare
from prepaid.embedded.postgres import EmbeddedPostgres
from prepaid.embedded.process import EmbeddedError, FolderInUse
from prepaid.settings import Settings

__all__ = [
    "EmbeddedError",
    "EmbeddedNats",
    "EmbeddedPostgres",
    "FolderInUse",
    "Parts",
    "embedded_parts",
    "mqtt_address",
    "preparing_stream",
]

_log = structlog.get_logger(__name__)
_MQTT_PORT: Final = 1883  # Source: IANA service names, mqtt.


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where database and broker are, whoever runs them.

    Invariants: complete addresses; those with a password do not show in `repr`.
    """

    database_url: str = field(repr=False)
    nats_url: str = field(repr=False)
    mqtt_host: str
    mqtt_port: int
    _servers: tuple[EmbeddedPostgres | EmbeddedNats, ...] = field(default=(), repr=False, compare=False)

    def revive(self) -> None:
        """Start again what died of the parts that we run ourselves.

        Raises: EmbeddedError, StreamError when one does not come back.
        """
        for server in self._servers:
            server.revive()


@contextmanager
def embedded_parts(settings: Settings) -> Iterator[Parts]:
    """Run the parts that the settings name no address for, and stop them at the end.

    Needs no event loop; start it in the main thread, so that the children end with a killed parent.
    Raises: EmbeddedError; StreamError when the broker's store cannot be prepared.
    """
    with ExitStack() as stack:
        servers: list[EmbeddedPostgres | EmbeddedNats] = []
        if settings.database_url is None:
            database = _postgres(settings, stack)
            servers.append(database)
            database_url = database.database_url
        else:
            database_url = settings.database_url
        if settings.nats_url is None:
            broker = _nats(settings, stack)
            servers.append(broker)
            nats_url, mqtt_host, mqtt_port = broker.nats_url, broker.mqtt_host, broker.mqtt_port
        else:
            nats_url = settings.nats_url
            mqtt_host, mqtt_port = mqtt_address(settings.mqtt_url, nats_url=nats_url)
        yield Parts(
            database_url=database_url,
            nats_url=nats_url,
            mqtt_host=mqtt_host,
            mqtt_port=mqtt_port,
            _servers=tuple(servers),
        )


def preparing_stream(ack_wait_s: float) -> Prepare:
    """Return what makes the stream and its consumers in a broker that no meter can reach yet."""

    def prepare(nats_url: str, mqtt_host: str, mqtt_port: int) -> None:
        # In a thread: a broker is brought back from inside event loops, too.
        with ThreadPoolExecutor(max_workers=1) as worker:
            work = prepare_stream(nats_url, mqtt_host, mqtt_port, ack_wait_s=ack_wait_s)
            worker.submit(asyncio.run, work).result()

    return prepare


def mqtt_address(mqtt_url: str | None, *, nats_url: str) -> tuple[str, int]:
    """Return host and port of the broker's MQTT listener; not named, it is that of the first NATS server."""
    if mqtt_url is None:
        return urlsplit(nats_url.split(",")[0]).hostname or "127.0.0.1", _MQTT_PORT
    parts = urlsplit(mqtt_url)
    return parts.hostname or "127.0.0.1", parts.port or _MQTT_PORT


def _postgres(settings: Settings, stack: ExitStack) -> EmbeddedPostgres:
    server = EmbeddedPostgres(settings.data_dir / "pg")
    try:
        stack.enter_context(server)
    except FolderInUse:
        _log.debug("embedded_postgres_joined", folder=str(settings.data_dir))
        server.await_running()
    return server


def _nats(settings: Settings, stack: ExitStack) -> EmbeddedNats:
    server = EmbeddedNats(settings.data_dir / "nats", prepare=preparing_stream(settings.ack_wait_s))
    try:
        stack.enter_context(server)
    except FolderInUse:
        _log.debug("embedded_nats_joined", folder=str(settings.data_dir))
        server.await_running()
    return server
