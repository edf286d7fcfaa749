"""A broker that has lost its store, or never had one: nothing is acknowledged and dropped unnoticed."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from nats.aio.client import Client

from headend.edges.metrics import IngestMetrics
from headend.edges.stream import stream_backlog
from headend.edges.stream_guard import GuardSettings, StreamGuard, open_guard
from headend.edges.stream_setup import LANE_CONSUMERS, stream_of
from prepaid.embedded import EmbeddedNats, preparing_stream
from prepaid.embedded.process import accepts
from tests.support import WAIT_S, child_processes, open_site

pytestmark = pytest.mark.broker

ACK_WAIT_S = 2.0
MESSAGES = 5


async def _publish(nats: EmbeddedNats) -> None:
    async with aiomqtt.Client(nats.mqtt_host, nats.mqtt_port, identifier="meter") as meter:
        for _ in range(MESSAGES):
            await meter.publish("amr/M1/rd", b"x", qos=1)


def _counted(metrics: IngestMetrics) -> tuple[float | None, float | None]:
    """Return how often the stream was lost, and how many messages at most."""
    value = metrics.registry.get_sample_value
    return value("prepaid_ingest_stream_lost_total"), value("prepaid_ingest_stream_dropped_at_most_total")


@asynccontextmanager
async def _guarding(nats: EmbeddedNats, metrics: IngestMetrics) -> AsyncIterator[StreamGuard]:
    settings = GuardSettings(
        nats_url=nats.nats_url, mqtt_host=nats.mqtt_host, mqtt_port=nats.mqtt_port, ack_wait_s=ACK_WAIT_S
    )
    async with open_guard(settings, metrics) as guard:
        keeping = asyncio.create_task(guard.keep())
        try:
            yield guard
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def _until_lost(metrics: IngestMetrics, times: int) -> None:
    for _ in range(int(WAIT_S / 0.02)):
        if _counted(metrics)[0] == times:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"lost {times} times: {_counted(metrics)}")


def test_store_that_was_lost_is_prepared_before_meters_reach_the_broker(tmp_path: Path) -> None:
    """At a start and after a death, consumers are made while the meters' port, which stays the same, is closed."""
    prepare = preparing_stream(ACK_WAIT_S)
    known: list[int] = []
    closed: list[bool] = []

    def prepare_and_look(nats_url: str, mqtt_host: str, mqtt_port: int) -> None:
        closed.append(not any(accepts(port) for port in known))
        prepare(nats_url, mqtt_host, mqtt_port)

    server = EmbeddedNats(tmp_path / "nats", prepare=prepare_and_look)
    with server:
        known += [server.mqtt_port, int(server.nats_url.rpartition(":")[2])]
        asyncio.run(_publish(server))
        assert asyncio.run(stream_backlog(server.nats_url)) == MESSAGES
        assert server._child is not None
        server._child.kill()
        server._child.wait()
        shutil.rmtree(tmp_path / "nats" / "store")
        server.revive()
        assert asyncio.run(stream_backlog(server.nats_url)) == 0, "the store is gone"
        assert [server.mqtt_port, int(server.nats_url.rpartition(":")[2])] == known
        asyncio.run(_publish(server))
        assert asyncio.run(stream_backlog(server.nats_url)) == MESSAGES
    with server:
        assert asyncio.run(stream_backlog(server.nats_url)) == MESSAGES, "a store that is there is kept"
    assert closed == [True, True, True]


def test_broker_without_consumers_is_made_whole_and_what_it_dropped_is_counted(nats: EmbeddedNats) -> None:
    """An outside broker that nobody has prepared drops what it acknowledges, until ingest starts and tells how much."""

    async def story() -> None:
        await _publish(nats)
        metrics = IngestMetrics()
        async with _guarding(nats, metrics):
            assert _counted(metrics) == (1, MESSAGES)
            await _publish(nats)
            assert await stream_backlog(nats.nats_url) == MESSAGES
        async with _guarding(nats, fresh := IngestMetrics()):
            assert _counted(fresh) == (0, 0), "all was there"

    asyncio.run(story())


def test_fresh_broker_is_prepared_without_an_error(nats: EmbeddedNats) -> None:
    """The first start of an installation has lost nothing."""

    async def story() -> None:
        async with _guarding(nats, metrics := IngestMetrics()):
            await _publish(nats)
            assert await stream_backlog(nats.nats_url) == MESSAGES
            assert _counted(metrics) == (0, 0)

    asyncio.run(story())


def test_store_or_consumer_lost_while_we_run_is_made_again_and_counted(nats: EmbeddedNats, tmp_path: Path) -> None:
    """Neither needs a restart of ours: the guard sees it at its next look or connection."""

    async def story() -> None:
        metrics = IngestMetrics()
        async with _guarding(nats, metrics) as guard:
            client = Client()
            await client.connect(nats.nats_url)
            lane = LANE_CONSUMERS[3]
            await client.jetstream().delete_consumer(stream_of(lane), lane)
            await client.close()
            guard.look_again.set()
            await _until_lost(metrics, 1)
            await asyncio.to_thread(nats.kill)
            shutil.rmtree(tmp_path / "nats" / "store")
            # In this thread, so that a killed test run takes the broker along.
            nats.start()
            await _until_lost(metrics, 2)
            await _publish(nats)
            assert await stream_backlog(nats.nats_url) == MESSAGES

    asyncio.run(story())


@pytest.mark.db
def test_ingest_alone_prepares_the_broker_it_is_given(
    database_url: str, nats: EmbeddedNats, tmp_path: Path, data_dir: Path
) -> None:
    """`prepaid ingest` on a broker whose store was replaced needs no other command before it."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            await asyncio.to_thread(nats.kill)
            shutil.rmtree(tmp_path / "nats" / "store")
            nats.start()
            with child_processes(site.parts, data_dir, ["ingest"]):

                async def owned() -> bool:
                    held = "select count(*) = 32 from shard_leases where role = 'ingest' and owner is not null"
                    return bool(await site.one(held))

                await site.until(owned, "ingest owns all shards")
                await site.send(("amr/M1/rd", b"not a reading"))
                assert await site.reasons() == ["malformed"]

    asyncio.run(story())
