"""The same code against a cluster of three brokers: the stream's leader is killed, nothing acknowledged is lost."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from billing.calendar import to_ms
from db.audit import run_checks
from meter_sim.edges.bulk import encode_connect, encode_publish, take_packets
from tests.flow import add_homes
from tests.nats_cluster import SERVERS, NatsCluster
from tests.support import CALENDAR, MINUTE_MS, REGISTER_WH, T0, Home, Message, Site, open_site, reading, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker, pytest.mark.slow]

# A leader's election and the servers' own time-outs are seconds; messages of its followers come again after these.
LEASE_S, ACK_WAIT_S = 5.0, 3.0
WINDOW, ROUND_S, ANSWER_S = 100, 0.05, 10.0
PUBACK, CONNACK = 0x40, 0x20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three servers with replicated streams."""
    with NatsCluster(tmp_path / "cluster") as servers:
        yield servers


@dataclass(slots=True, kw_only=True)
class Meters:
    """Some meters on one MQTT connection; when its server is gone they go to another, with all that has no PUBACK.

    Invariants: `acknowledged` are readings whose PUBACK came, by serial and instant.
    """

    name: str
    homes: list[Home]
    cluster: NatsCluster
    server: int
    unacknowledged: dict[int, tuple[str, int, Message]] = field(default_factory=dict)
    acknowledged: set[tuple[str, int]] = field(default_factory=set)
    rounds: int = 0
    connections: int = 0
    packet_id: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Report until told to stop and all is acknowledged."""
        while not (stop.is_set() and not self.unacknowledged):
            ports = self.cluster.mqtt_ports
            port = ports[(self.server + self.connections) % len(ports)]
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(ANSWER_S):
                    reader, writer = await asyncio.open_connection(self.cluster.mqtt_host, port)
                self.connections += 1
                try:
                    await self._session(reader, writer, stop)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(ROUND_S)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
        writer.write(encode_connect(f"{self.name}-{self.connections}", None, None))
        buffer = bytearray()
        await self._read(reader, buffer, until=CONNACK)
        for packet_id, (_, _, message) in self.unacknowledged.items():
            writer.write(encode_publish(*message, packet_id))
        while not (stop.is_set() and not self.unacknowledged):
            if not stop.is_set() and len(self.unacknowledged) < WINDOW:
                self._report(writer)
            if self.unacknowledged:
                await self._read(reader, buffer, until=PUBACK)
            await asyncio.sleep(ROUND_S)

    def _report(self, writer: asyncio.StreamWriter) -> None:
        self.rounds += 1
        for home in self.homes:
            self.packet_id = self.packet_id % 65_535 + 1
            at_ms = T0 + self.rounds * MINUTE_MS
            message = reading(home.serial, at_ms, REGISTER_WH + self.rounds)
            self.unacknowledged[self.packet_id] = home.serial, at_ms, message
            writer.write(encode_publish(*message, self.packet_id))

    async def _read(self, reader: asyncio.StreamReader, buffer: bytearray, *, until: int) -> None:
        """Read packets until one of a kind has come."""
        while True:
            async with asyncio.timeout(ANSWER_S):
                data = await reader.read(65_536)
            if not data:
                raise ConnectionResetError("closed by the server")
            buffer += data
            packets = take_packets(buffer)
            for first, body in packets:
                if first & 0xF0 == PUBACK:
                    serial, at_ms, _ = self.unacknowledged.pop(body[0] << 8 | body[1])
                    self.acknowledged.add((serial, at_ms))
            if any(first & 0xF0 == until for first, _ in packets):
                return


def test_killed_leader_of_a_cluster_under_load_loses_nothing_acknowledged(
    database_url: str, cluster: NatsCluster
) -> None:
    """`kill -9` of the server that leads the stream: what has a PUBACK is stored once, and charged; two go on."""

    async def story() -> None:
        async with open_site(database_url, cluster, ack_wait_s=ACK_WAIT_S) as site:
            found = await cluster.stream_cluster()
            assert found["num_replicas"] == SERVERS
            assert len(found["replicas"]) == SERVERS - 1
            homes = await add_homes(site, 30)
            meters = [
                Meters(name=f"m{number}", homes=homes[number::SERVERS], cluster=cluster, server=number)
                for number in range(SERVERS)
            ]
            stop = asyncio.Event()
            async with running_ingest(site, lease_s=LEASE_S, ack_wait_s=ACK_WAIT_S):
                site.tasks += [asyncio.create_task(each.run(stop)) for each in meters]
                await _until_acknowledged(site, meters, 1_000)
                leader = await cluster.leader()
                async with cluster.elections(beside=leader) as elected:
                    cluster.kill(leader)
                    before = sum(len(each.acknowledged) for each in meters)
                    await _until_acknowledged(site, meters, before + 2_000)
                    # Where a follower dies, nobody is elected.
                    assert elected, f"the killed server {leader} was not the leader of the stream"
                    assert leader not in elected
                stop.set()
                await asyncio.wait_for(asyncio.gather(*site.tasks[-SERVERS:]), 60)
                await site.settled(within_s=60)
            await _assert_stored_once(site, meters)
            # Those of the killed server have gone to another; all meters reported to the end.
            assert sum(each.connections for each in meters) > SERVERS

    asyncio.run(story())


async def _until_acknowledged(site: Site, meters: list[Meters], count: int) -> None:
    async def so() -> bool:
        return sum(len(each.acknowledged) for each in meters) >= count

    await site.until(so, f"{count} readings are acknowledged", within_s=90)


async def _assert_stored_once(site: Site, meters: list[Meters]) -> None:
    acknowledged = set().union(*(each.acknowledged for each in meters))
    assert len(acknowledged) == sum(each.rounds * len(each.homes) for each in meters), "all was acknowledged in the end"
    rows = await site.rows("select m.serial, r.read_at from readings r join meters m on m.id = r.meter_id")
    stored = [(serial, to_ms(read_at)) for serial, read_at in rows]
    assert len(stored) == len(set(stored))
    assert set(stored) == acknowledged
    assert await site.reasons() == []
    report = await run_checks(site.conn, CALENDAR)
    assert report.clean, "\n".join(report.lines())
