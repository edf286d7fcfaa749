"""A lane is a stream of its own: what it keeps, what it drops, and how an earlier installation becomes one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig
from nats.js.client import JetStreamContext

from headend.edges import stream
from headend.edges.stream import StreamError, StreamReader, prepare_stream, stream_backlog
from headend.edges.stream_setup import LANE_CONSUMERS, LEFTOVERS, STREAM
from prepaid.embedded import EmbeddedNats
from protocols.topics import lane_of

pytestmark = pytest.mark.broker

ACK_WAIT_S = 2.0
SHARD_OF_M1 = 11
LANE_OF_M1 = LANE_CONSUMERS[lane_of(SHARD_OF_M1)]
POLL_S = 0.02
POLLS_MAX = 1_000


async def _prepare(nats: EmbeddedNats) -> None:
    await prepare_stream(nats.nats_url, nats.mqtt_host, nats.mqtt_port, ack_wait_s=ACK_WAIT_S)


async def _publish(nats: EmbeddedNats, count: int, *, timeout_s: float = 5.0) -> None:
    async with aiomqtt.Client(nats.mqtt_host, nats.mqtt_port, identifier="meter", timeout=timeout_s) as meter:
        for number in range(count):
            await meter.publish("amr/M1/rd", b"%d" % number, qos=1)


@asynccontextmanager
async def _control(nats: EmbeddedNats) -> AsyncIterator[JetStreamContext]:
    client = Client()
    await client.connect(nats.nats_url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def _until_first_kept(control: JetStreamContext, seq: int) -> None:
    for _ in range(POLLS_MAX):
        if (await control.stream_info(LANE_OF_M1)).state.first_seq == seq:
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"first kept: {(await control.stream_info(LANE_OF_M1)).state}")


def test_lane_keeps_everything_from_the_first_unacknowledged_message(
    nats: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker drops what is stored in the database, and never what comes after a message that is not."""
    monkeypatch.setattr(stream, "_FORGET_EVERY_S", POLL_S)

    async def story() -> None:
        await _prepare(nats)
        await _publish(nats, 10)
        async with StreamReader.connect(nats.nats_url, ack_wait_s=60) as reader, _control(nats) as control:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            taken = []
            while len(taken) < 10:
                taken += await reader.take(messages_max=10, bytes_max=1_000, wait_s=5)
            await reader.acknowledge([*taken[:4], *taken[5:]])
            await _until_first_kept(control, 5)
            assert await stream_backlog(nats.nats_url) == 1
            await reader.acknowledge(taken[4:5])
            await _until_first_kept(control, 11)

    asyncio.run(story())


def test_lane_without_its_consumer_keeps_what_it_acknowledges(nats: EmbeddedNats) -> None:
    """A consumer that is gone costs nothing: it is made again and reads from the oldest message kept."""

    async def story() -> None:
        await _prepare(nats)
        async with _control(nats) as control:
            await control.delete_consumer(LANE_OF_M1, LANE_OF_M1)
        await _publish(nats, 3)
        await _prepare(nats)
        assert await stream_backlog(nats.nats_url) == 3

    asyncio.run(story())


def test_message_of_a_lane_without_stream_is_not_acknowledged(nats: EmbeddedNats) -> None:
    """What the broker cannot keep it does not confirm, so that the meter sends it again."""

    async def story() -> None:
        await _prepare(nats)
        async with _control(nats) as control:
            await control.delete_stream(LANE_OF_M1)
        with pytest.raises(aiomqtt.MqttError):
            await _publish(nats, 1, timeout_s=1)
        await _prepare(nats)
        await _publish(nats, 1)
        assert await stream_backlog(nats.nats_url) == 1

    asyncio.run(story())


def test_installation_with_lanes_in_one_stream_is_brought_up_to_date_when_they_are_empty(nats: EmbeddedNats) -> None:
    """Messages of the former layout must be stored by the version that made it; then its consumers go."""

    async def story() -> None:
        await _prepare(nats)
        async with _control(nats) as control:
            for name in LANE_CONSUMERS:
                await control.delete_stream(name)
            await control.delete_consumer(STREAM, LEFTOVERS)
            config = (await control.stream_info(STREAM)).config
            config.subjects = ["$MQTT.msgs.>"]
            await control.update_stream(config)
            former = ConsumerConfig(durable_name=LANE_OF_M1, filter_subject="$MQTT.msgs.amr.3.*.*.*.-.-.-")
            await control.add_consumer(STREAM, former)
            await _publish(nats, 2)
            with pytest.raises(
                StreamError, match=f"consumer {LANE_OF_M1}: expected none of its messages to wait, got 2"
            ):
                await _prepare(nats)
            waiting = await control.pull_subscribe_bind(LANE_OF_M1, STREAM)
            for message in await waiting.fetch(2, timeout=5):
                await message.ack_sync()
            await _prepare(nats)
            assert [info.name for info in await control.consumers_info(STREAM)] == [LEFTOVERS]
        await _publish(nats, 3)
        assert await stream_backlog(nats.nats_url) == 3

    asyncio.run(story())
