"""The durable stream between meters and ingest, against a real broker."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import aiomqtt
import pytest
from nats.aio.client import Client

from headend.edges.stream import (
    StreamError,
    StreamMessage,
    StreamReader,
    StreamUnavailable,
    parse_reply,
    place_of,
    prepare_stream,
)
from prepaid.embedded import EmbeddedNats
from protocols.topics import SHARDS, shard_of

pytestmark = pytest.mark.broker

ACK_WAIT_S = 2.0
ALL = set(range(SHARDS))
SHARD_OF_M1 = 11


async def _prepare(nats: EmbeddedNats) -> None:
    await prepare_stream(nats.nats_url, nats.mqtt_host, nats.mqtt_port, ack_wait_s=ACK_WAIT_S)


async def _publish(nats: EmbeddedNats, messages: Iterable[tuple[str, bytes]]) -> None:
    async with aiomqtt.Client(nats.mqtt_host, nats.mqtt_port, identifier="meter") as meter:
        for topic, payload in messages:
            await meter.publish(topic, payload, qos=1)


async def _take(reader: StreamReader, count: int, *, within_s: float = 10.0) -> list[StreamMessage]:
    taken: list[StreamMessage] = []
    deadline_s = time.monotonic() + within_s
    while len(taken) < count and time.monotonic() < deadline_s:
        taken += await reader.take(messages_max=count - len(taken), bytes_max=10_000_000, wait_s=0.5)
    return taken


async def _buffered(reader: StreamReader, count: int) -> None:
    """Wait until so many messages have come to the reader and were not taken."""
    for _ in range(1_000):
        if sum(len(lane.buffer) for lane in reader._lanes.values()) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"fewer than {count} messages came within 10 s")


def test_every_topic_arrives_in_its_shard_or_in_leftovers(nats: EmbeddedNats) -> None:
    """No publish is dropped: readings and events go to the shard, whatever else to the leftovers, as published."""
    foreign = [
        "amr/M1/zz",
        # The broker takes a vertical tab; a client that ends the subject there reconnects for ever.
        "amr/M1/a\x0bb",
        "amr/M1/a\x1c\u00a0b",
        "amr/M1/" + "z" * 60_000,
        "amr/5/M1/rd",
        "amr/11/M1/rd/-/-/-/-",
        "amr/3/11/M1/rd/-/-/-",
        "amr/x/5/M1/rd",
        "foo/bar",
        "single",
        "/amr/M1/rd",
        "amr/M1/rd/",
        "a/b/c/d",
        "a/b/c/d/e",
        "a/b/c/d/e/f",
        "a/b/c/d/e/f/g",
        "1/2/3/4/5/6/7/8",
        "1/2/3/4/5/6/7/8/9",
        "1/2/3/4/5/6/7/8/9/10/11/12",
        "a.b/c//d",
    ]
    own = ["amr/M1/rd", "amr/M1/ev"]

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [(topic, topic.encode()) for topic in [*own, *foreign]])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own(ALL, leftovers=True)
            taken = await _take(reader, len(own) + len(foreign))
            await reader.acknowledge(taken)
            assert await reader.take(messages_max=10, bytes_max=1_000, wait_s=0.3) == []
        return taken

    taken = asyncio.run(story())
    assert [message.topic for message in taken if message.shard == SHARD_OF_M1] == own
    assert sorted(message.topic for message in taken if message.shard is None) == sorted(foreign)
    assert all(message.topic == message.payload.decode() for message in taken)


def test_partition_of_the_broker_equals_shard_of_the_serial(nats: EmbeddedNats) -> None:
    """The broker and the meter register must place a serial in the same shard."""
    serials = [f"SER_{number}-x" for number in range(200)]

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [(f"amr/{serial}/rd", serial.encode()) for serial in serials])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own(ALL, leftovers=True)
            return await _take(reader, len(serials))

    taken = asyncio.run(story())
    assert len(taken) == len(serials)
    assert {message.payload.decode(): message.shard for message in taken} == {
        serial: shard_of(serial) for serial in serials
    }
    assert len({message.shard for message in taken}) > SHARDS // 2


def test_copy_of_own_command_is_not_a_leftover(nats: EmbeddedNats) -> None:
    """A command published to a meter leaves nothing behind in the stream and nothing for quarantine."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/cmd", b"open"), ("foo/bar", b"x")])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own(set(), leftovers=True)
            return await _take(reader, 2, within_s=1.0)

    assert [message.topic for message in asyncio.run(story())] == ["foo/bar"]


def test_take_stays_below_its_caps_in_stream_order(nats: EmbeddedNats) -> None:
    """A batch never holds more messages or bytes than asked for, and a shard's order is the stream's."""

    async def story() -> list[list[StreamMessage]]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"%04d" % number) for number in range(50)])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            batches = [await reader.take(messages_max=7, bytes_max=10_000, wait_s=5)]
            await _buffered(reader, 50 - len(batches[0]))
            batches.append(await reader.take(messages_max=7, bytes_max=10_000, wait_s=5))
            batches.append(await reader.take(messages_max=100, bytes_max=12, wait_s=5))
            batches.append(await reader.take(messages_max=100, bytes_max=1, wait_s=5))
            return [*batches, await reader.take(messages_max=100, bytes_max=10_000, wait_s=5)]

    batches = asyncio.run(story())
    assert 1 <= len(batches[0]) <= 7
    assert [len(batch) for batch in batches[1:4]] == [7, 3, 1]
    everything = [message.payload for batch in batches for message in batch]
    assert everything == [b"%04d" % number for number in range(50)]


def test_unacknowledged_message_comes_again_and_acknowledged_does_not(nats: EmbeddedNats) -> None:
    """A message stays in the broker until it is acknowledged, each for itself."""

    async def story() -> tuple[list[StreamMessage], list[StreamMessage], int]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"first"), ("amr/M1/rd", b"second"), ("amr/M1/rd", b"third")])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            first = await _take(reader, 3)
            await reader.acknowledge(first[1:2])
            again = await _take(reader, 2)
            await reader.acknowledge(again)
            return first, again, await reader.pending_elsewhere(SHARD_OF_M1)

    first, again, pending = asyncio.run(story())
    assert [message.redelivered for message in first] == [False, False, False]
    assert [(message.payload, message.redelivered) for message in again] == [(b"first", True), (b"third", True)]
    assert [message.stream_seq for message in again] == [first[0].stream_seq, first[2].stream_seq]
    assert pending == 0


def test_message_in_progress_is_not_delivered_again(nats: EmbeddedNats) -> None:
    """A slow batch keeps its messages for as long as it says that it is at work."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"slow")])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            slow = await _take(reader, 1)
            again: list[StreamMessage] = []
            for _ in range(6):
                again += await reader.take(messages_max=9, bytes_max=1_000, wait_s=ACK_WAIT_S / 4)
                await reader.in_progress(slow)
            await reader.acknowledge(slow)
            return again

    assert asyncio.run(story()) == []


def test_message_buffered_behind_one_in_progress_is_not_delivered_again(nats: EmbeddedNats) -> None:
    """What is here and not yet taken stays ours for as long as the batch before it says that it is at work."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"slow"), ("amr/M1/rd", b"next")])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            slow = await _take(reader, 1)
            await _buffered(reader, 1)
            for _ in range(6):
                # Time has to pass at the broker: longer than it waits for an acknowledgement.
                await asyncio.sleep(ACK_WAIT_S / 4)
                await reader.in_progress(slow)
            after = await reader.take(messages_max=9, bytes_max=1_000, wait_s=ACK_WAIT_S / 4)
            await reader.acknowledge([*slow, *after])
            return after

    assert [(message.payload, message.redelivered) for message in asyncio.run(story())] == [(b"next", False)]


def test_released_shard_goes_to_its_new_owner_before_anything_newer(nats: EmbeddedNats) -> None:
    """What an owner had read ahead when it gave a shard up reaches the next owner before anything newer.

    Among themselves refused messages may change places by the broker's timers: ingest takes them as late readings.
    """

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"%03d" % number) for number in range(20)])
        async with (
            StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as old,
            StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as new,
        ):
            await old.own({SHARD_OF_M1}, leftovers=False)
            await old.acknowledge(await _take(old, 5))
            await old.own(set(), leftovers=False)
            await _publish(nats, [("amr/M1/rd", b"new")])
            await new.await_redelivery({SHARD_OF_M1})
            await new.own({SHARD_OF_M1}, leftovers=False)
            return await _take(new, 16)

    payloads = [message.payload for message in asyncio.run(story())]
    assert sorted(payloads[:-1]) == [b"%03d" % number for number in range(5, 20)]
    assert payloads[-1] == b"new"


READER = """
import asyncio, sys
from headend.edges.stream import StreamReader

async def hold():
    async with StreamReader.connect(sys.argv[1], ack_wait_s=float(sys.argv[2])) as reader:
        await reader.own({int(sys.argv[3])}, leftovers=False)
        taken = []
        while len(taken) < 10:
            taken += await reader.take(messages_max=10, bytes_max=100_000, wait_s=1)
        print("holding", flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
"""


def test_new_owner_after_a_kill_gets_the_old_messages_first(nats: EmbeddedNats) -> None:
    """Readings of a shard come in stream order across the death of its owner."""

    async def before() -> None:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"old %02d" % number) for number in range(10)])

    async def after() -> tuple[int, list[StreamMessage]]:
        await _publish(nats, [("amr/M1/rd", b"new %02d" % number) for number in range(10)])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            pending = await reader.pending_elsewhere(SHARD_OF_M1)
            await reader.await_redelivery({SHARD_OF_M1})
            await reader.own({SHARD_OF_M1}, leftovers=False)
            taken = await _take(reader, 20)
            await reader.acknowledge(taken)
            return pending, taken

    asyncio.run(before())
    with subprocess.Popen(
        [sys.executable, "-c", READER, nats.nats_url, str(ACK_WAIT_S), str(SHARD_OF_M1)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        owner.kill()
    pending, taken = asyncio.run(after())
    assert pending == 10
    assert [message.payload for message in taken] == [b"old %02d" % n for n in range(10)] + [
        b"new %02d" % n for n in range(10)
    ]


def test_broker_kill_and_restart_loses_nothing_and_reader_goes_on(nats: EmbeddedNats) -> None:
    """A reader outlives its broker: every message that was acknowledged to a meter is read in the end."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"%03d" % number) for number in range(40)])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            before = await _take(reader, 10)
            await reader.acknowledge(before)
            nats.kill()
            assert len(await reader.take(messages_max=5, bytes_max=1_000, wait_s=0.2)) == 5
            await asyncio.to_thread(nats.start)
            await _publish(nats, [("amr/M1/rd", b"%03d" % number) for number in range(40, 60)])
            seen = {message.payload for message in before}
            taken: list[StreamMessage] = []
            deadline_s = time.monotonic() + 20
            while len(seen) < 60 and time.monotonic() < deadline_s:
                batch = await reader.take(messages_max=100, bytes_max=100_000, wait_s=0.5)
                await reader.acknowledge(batch)
                taken += batch
                seen |= {message.payload for message in batch}
            return [*before, *taken]

    taken = asyncio.run(story())
    assert {message.payload for message in taken} == {b"%03d" % number for number in range(60)}
    first_time = list(dict.fromkeys(message.payload for message in taken))
    late = [payload for payload in first_time if b"010" <= payload < b"015"]
    assert [payload for payload in first_time if payload not in late] == [
        b"%03d" % number for number in range(60) if not 10 <= number < 15
    ]


def test_prepare_twice_keeps_what_is_stored(nats: EmbeddedNats) -> None:
    """Preparing again, as every start does, changes nothing that is waiting."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"kept")])
        await _prepare(nats)
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            return await _take(reader, 1)

    assert [message.payload for message in asyncio.run(story())] == [b"kept"]


def test_stored_time_is_the_brokers_clock_at_publish(nats: EmbeddedNats) -> None:
    """The time a message was stored bounds what a meter may claim about the future."""

    async def story() -> list[StreamMessage]:
        await _prepare(nats)
        await _publish(nats, [("amr/M1/rd", b"x")])
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            await reader.own({SHARD_OF_M1}, leftovers=False)
            return await _take(reader, 1)

    before_ms = time.time_ns() // 1_000_000
    (message,) = asyncio.run(story())
    assert before_ms <= message.stored_at_ms <= time.time_ns() // 1_000_000


def test_absent_broker_is_reported_as_unavailable(nats: EmbeddedNats) -> None:
    """Who asks a reader without a broker is told to try again, not left waiting."""

    async def story() -> None:
        await _prepare(nats)
        async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as reader:
            nats.kill()
            with pytest.raises(StreamUnavailable):
                await reader.pending_elsewhere(0)

    asyncio.run(story())


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.$MQTT_msgs.lane-7.3.41.7.1795293406372230490.12",
        "$JS.ACK._.Q4xJ.$MQTT_msgs.lane-7.3.41.7.1795293406372230490.12",
        "$JS.ACK.hub.Q4xJ.$MQTT_msgs.lane-7.3.41.7.1795293406372230490.12.r4nd0m",
    ],
)
def test_reply_subject_is_read_in_both_layouts(reply: str) -> None:
    """Old servers write nine levels, later ones put domain and account before the stream."""
    delivery = parse_reply(reply)
    assert (delivery.consumer, delivery.deliveries, delivery.stream_seq) == ("lane-7", 3, 41)
    assert delivery.stored_at_ns == 1795293406372230490


@pytest.mark.parametrize("reply", ["", "_INBOX.a.b", "$JS.ACK.too.short", "$JS.API.a.b.c.d.1.2.3"])
def test_foreign_reply_subject_is_refused(reply: str) -> None:
    """Anything but an acknowledgement subject is not from a consumer."""
    with pytest.raises(StreamError):
        parse_reply(reply)


@pytest.mark.parametrize(
    ("subject", "shard", "topic"),
    [
        ("$MQTT.msgs.amr.3.11.M1.rd.-.-.-", 11, "amr/M1/rd"),
        ("$MQTT.msgs.amr.M1.zz", None, "amr/M1/zz"),
        ("$MQTT.msgs.a.b.c.d.e.f.x/x", None, "a/b/c/d/e/f"),
        ("$MQTT.msgs./.amr.M1.rd", None, "/amr/M1/rd"),
        ("$MQTT.msgs.amr.M1.rd./", None, "amr/M1/rd/"),
        ("$MQTT.msgs.a//b./.c", None, "a.b//c"),
    ],
)
def test_topic_is_given_back_as_published(subject: str, shard: int | None, topic: str) -> None:
    """The mapped form of a subject is ours alone; the rest of the system sees the meter's topic."""
    assert place_of(subject) == (shard, topic)


def test_consumer_settings_are_explicit_and_bounded(nats: EmbeddedNats) -> None:
    """Acknowledging one message never acknowledges another, and no message is ever given up."""

    async def story() -> dict[str, object]:
        await _prepare(nats)
        client = Client()
        await client.connect(nats.nats_url)
        try:
            answer = await client.request("$JS.API.CONSUMER.INFO.lane-0.lane-0")
        finally:
            await client.close()
        config = json.loads(answer.data)["config"]
        assert isinstance(config, dict)
        return config

    config = asyncio.run(story())
    assert config["ack_policy"] == "explicit"
    assert config["max_deliver"] == -1
    assert config["ack_wait"] == int(ACK_WAIT_S * 1e9)
    assert config["max_ack_pending"] == 50_000
