"""The bridge: meters of any make on other MQTT brokers, handed over to our own as native messages.

Stage: before ingest. Takes messages of the configured sources, turns them into native ones by `protocols.makes`,
publishes those at QoS 1 to our own broker, and acknowledges to the other broker only after ours has them on disk.
After a crash in between the message comes again, and the key of its reading drops the copy. What cannot be decoded
goes on with its bytes, so that it lies in quarantine. Nothing here knows the database.

A source is subscribed to at QoS 1 and no higher: of a message at QoS 2 the other broker forgets the bytes as soon as
it is told that they came, which the library tells before it hands them over.
Source: paho-mqtt 2.2.0, client.py, `_handle_publish`: with manual acknowledgement PUBACK waits, PUBREC does not.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import quote

import aiomqtt
import structlog
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from headend.edges.bridge_metrics import BridgeMetrics, Outcome
from protocols.makes.facts import Arrival, Make, Memory, Message, Translation
from protocols.native import PAYLOAD_BYTES_MAX
from protocols.topics import reading_topic

_log = structlog.get_logger("bridge")

# Handed over at once. Brokers give 10 to 32 messages before the first is acknowledged, MQTT 5 ones what we ask for.
BATCH_MESSAGES_MAX = 500
# Messages at QoS 0 know no acknowledgement and may flood: so many are held, of 64 kB at most 640 MB, of the usual
# 300 bytes 3 MB; further ones are dropped. Those at QoS 1 always fit: the broker stops when its window is full.
INBOX_MESSAGES_MAX = 10_000
# Each device holds some 1 kB: 100 MB. Beyond that the one that was heard first is forgotten, and begins anew.
DEVICES_MAX = 100_000
# 0.5 s doubling to 30 s: a restart is met within a second, a broker away for an hour is asked 120 times.
RETRY_S_FIRST, RETRY_S_MAX = 0.5, 30.0
TIMEOUT_S = 10.0
# A payload without a clock counts at its arrival, so that it must not wait long: its register comes again anyway.
UNTIMED_SESSION_S = 60
# What may wait as long as the broker keeps it. Source: MQTT 5.0, 3.1.2.11.2: this value never expires.
ENDLESS_SESSION_S = 0xFFFFFFFF
_REFUSED_FROM = 128
# Ours takes a topic of 4 kB and no blank in it; a quoted character is three.
_RAW_TOPIC_LENGTH_MAX = 1_000


class BridgeError(Exception):
    """Base of what goes wrong at the bridge; `code` is stable."""

    code: ClassVar[str] = "bridge_error"


class SubscriptionRefused(BridgeError):
    """The other broker does not give us a topic."""

    code: ClassVar[str] = "subscription_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One other broker, or some topics of it, with the make of meter that publishes there.

    Invariants: `name` is unique; with `share` the topics are shared by all bridges of that group.
    """

    name: str
    host: str
    port: int
    make: Make
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    version: aiomqtt.ProtocolVersion = aiomqtt.ProtocolVersion.V5
    share: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """What a bridge process needs to know. `member` tells it apart from others that share its sources."""

    sources: Sequence[Source]
    mqtt_host: str
    mqtt_port: int
    member: int


def wall_ms() -> int:
    """Tell the UTC time in milliseconds."""
    return time.time_ns() // 1_000_000


class _Inbox(asyncio.Queue[aiomqtt.Message]):
    """What has come and is not yet in hand.

    Invariants: nothing at QoS 1 is dropped, since it would hold its place in the broker's window for ever.
    """

    def put_nowait(self, item: aiomqtt.Message) -> None:
        """Add a message. Raises: asyncio.QueueFull, which aiomqtt logs, for one at QoS 0 beyond the limit."""
        if item.qos == 0 and self.qsize() >= INBOX_MESSAGES_MAX:
            raise asyncio.QueueFull
        super().put_nowait(item)


class Bridge:
    """One bridge process: a session for each source, renewed for ever."""

    def __init__(
        self, settings: BridgeSettings, metrics: BridgeMetrics, *, clock_ms: Callable[[], int] = wall_ms
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock_ms = clock_ms

    async def run(self, stop: asyncio.Event) -> None:
        """Hand over until `stop` is set; outages of either broker are waited out."""
        async with asyncio.TaskGroup() as group:
            for source in self._settings.sources:
                self._metrics.know(source.name)
                group.create_task(self._serve(source, stop), name=f"bridge-{source.name}")

    async def _serve(self, source: Source, stop: asyncio.Event) -> None:
        memories: dict[str, Memory] = {}
        retry_s = RETRY_S_FIRST
        while not stop.is_set():
            lane = _Lane(source, self._metrics, memories, self._clock_ms)
            try:
                await self._session(source, lane, stop)
                self._metrics.connected(source.name, False)
            except (aiomqtt.MqttError, BridgeError, OSError) as error:
                self._metrics.connected(source.name, False)
                retry_s = RETRY_S_FIRST if lane.handed_over else retry_s
                _log.warning("source_away", source=source.name, detail=str(error)[:200], retry_s=retry_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def _session(self, source: Source, lane: _Lane, stop: asyncio.Event) -> None:
        """Work on one pair of connections. Our own comes first, so that nothing is taken that cannot be handed over."""
        own = aiomqtt.Client(
            self._settings.mqtt_host,
            self._settings.mqtt_port,
            identifier=f"bridge-{uuid.uuid4().hex}",
            timeout=TIMEOUT_S,
            max_inflight_messages=BATCH_MESSAGES_MAX,
        )
        own.pending_calls_threshold = 2 * BATCH_MESSAGES_MAX
        foreign = _client(source, self._settings.member)
        async with own, foreign:
            await _subscribe(foreign, source)
            self._metrics.connected(source.name, True)
            _log.info("source_joined", source=source.name)
            stopping = asyncio.create_task(stop.wait())
            arriving = asyncio.create_task(foreign.messages.__anext__())
            # Ours sends nothing that was not asked for: this only ends with the connection, by its error.
            losing = asyncio.create_task(own.messages.__anext__())
            try:
                while not stop.is_set():
                    await asyncio.wait({stopping, arriving, losing}, return_when=asyncio.FIRST_COMPLETED)
                    if losing.done():
                        losing.result()
                    if arriving.done():
                        messages = [arriving.result()]
                        while len(messages) < BATCH_MESSAGES_MAX and len(foreign.messages):
                            messages.append(await foreign.messages.__anext__())
                        await lane.hand_over(messages, own, foreign)
                        arriving = asyncio.create_task(foreign.messages.__anext__())
            finally:
                for task in (stopping, arriving, losing):
                    task.cancel()
                await asyncio.gather(stopping, arriving, losing, return_exceptions=True)


class _Lane:
    """What one session of a source does with messages.

    Invariants: nothing is remembered or acknowledged of a message before our broker has confirmed what came of it.
    """

    def __init__(
        self, source: Source, metrics: BridgeMetrics, memories: dict[str, Memory], clock_ms: Callable[[], int]
    ) -> None:
        self._source = source
        self._metrics = metrics
        self._memories = memories
        self._clock_ms = clock_ms
        self.handed_over = False

    async def hand_over(
        self, messages: Sequence[aiomqtt.Message], own: aiomqtt.Client, foreign: aiomqtt.Client
    ) -> None:
        """Translate messages, publish what comes of them, and acknowledge when our broker has it.

        Raises: aiomqtt.MqttError when either broker is away; what was not acknowledged comes again.
        """
        self._metrics.received(self._source.name, len(messages))
        changed: dict[str, Memory] = {}
        known = ChainMap(changed, self._memories)
        outcomes: list[Outcome] = []
        leaving: list[Message] = []
        for message in messages:
            if message.retain:
                outcomes.append(Outcome.IGNORED_RETAINED)
                continue
            arrival = Arrival(topic=str(message.topic), payload=message.payload, received_ms=self._clock_ms())
            made = _translate(self._source.make, arrival, known)
            changed.update(made.memories)
            leaving += [*made.messages, *_raw(self._source.name, arrival, made)]
            outcomes.append(_outcome(made))
            if made.fault is not None:
                _log.info("message_malformed", source=self._source.name, topic=arrival.topic[:80], detail=made.fault)
        # Published in this order, one after the other; only the waiting for confirmation is at once.
        await asyncio.gather(*(own.publish(topic, payload, qos=1) for topic, payload in leaving))
        self._remember(changed)
        acknowledge(foreign, messages)
        self.handed_over = True
        for outcome in outcomes:
            self._metrics.settled(self._source.name, outcome)

    def _remember(self, changed: Mapping[str, Memory]) -> None:
        self._memories.update(changed)
        while len(self._memories) > DEVICES_MAX:
            del self._memories[next(iter(self._memories))]


def acknowledge(foreign: aiomqtt.Client, messages: Sequence[aiomqtt.Message]) -> None:
    """Tell the other broker to forget messages, in the order they came, as MQTT wants it."""
    for message in messages:
        if message.qos:
            foreign._client.ack(message.mid, message.qos)


def _client(source: Source, member: int) -> aiomqtt.Client:
    """Make a client whose session the other broker keeps, and which acknowledges nothing by itself.

    A source without a clock keeps its session for a minute where the protocol can say so (MQTT 5), and not at all where
    it cannot: stamped with the time of arrival, what has waited for hours would be charged to the wrong hours.
    """
    version5 = source.version is aiomqtt.ProtocolVersion.V5
    properties = None
    if version5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it so.
        properties.SessionExpiryInterval = ENDLESS_SESSION_S if source.make.timed else UNTIMED_SESSION_S
        properties.ReceiveMaximum = BATCH_MESSAGES_MAX
    client = aiomqtt.Client(
        source.host,
        source.port,
        identifier=f"prepaid-bridge-{source.name}-{member}",
        username=source.username,
        password=source.password,
        tls_context=source.tls,
        protocol=source.version,
        clean_session=None if version5 else not source.make.timed,
        clean_start=False if version5 else MQTT_CLEAN_START_FIRST_ONLY,
        properties=properties,
        timeout=TIMEOUT_S,
        queue_type=_Inbox,
    )
    # aiomqtt has no word for this; paho acknowledges before the message is read otherwise.
    client._client.manual_ack_set(True)
    return client


async def _subscribe(client: aiomqtt.Client, source: Source) -> None:
    """Ask for the source's topics.

    Raises: SubscriptionRefused; aiomqtt.MqttError.
    """
    for name in source.make.filters:
        topic = f"$share/{source.share}/{name}" if source.share else name
        if source.version is aiomqtt.ProtocolVersion.V5:
            fresh_only = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            granted = await client.subscribe(topic, options=fresh_only)
        else:
            granted = await client.subscribe(topic, qos=1)
        codes = [code if isinstance(code, int) else code.value for code in granted]
        if any(code >= _REFUSED_FROM for code in codes):
            raise SubscriptionRefused(f"topic {topic}: expected a subscription, got code {codes}")


def _translate(make: Make, arrival: Arrival, memories: Mapping[str, Memory]) -> Translation:
    try:
        return make.translate(arrival, memories)
    except Exception as error:  # noqa: BLE001  # One poison message must not end the bridge, again at each redelivery.
        return Translation(fault=f"translating: expected no failure, got {error!r}")


def _outcome(made: Translation) -> Outcome:
    if made.fault is not None:
        return Outcome.MALFORMED
    return Outcome.FORWARDED if made.messages else Outcome.WITHOUT_READING


def _raw(source: str, arrival: Arrival, made: Translation) -> list[Message]:
    """Return a faulty message for quarantine: under its meter, or else under a topic that is no meter's."""
    if made.fault is None:
        return []
    # Cut, where our broker would rather end the connection than take it: it is no reading either way.
    payload = arrival.payload[:PAYLOAD_BYTES_MAX]
    if made.serial is not None:
        return [(reading_topic(made.serial), payload)]
    # Quoted, since ours takes no blanks and no control characters where others do.
    return [(f"foreign/{source}/{quote(arrival.topic, safe='/')}"[:_RAW_TOPIC_LENGTH_MAX], payload)]
