"""The durable stream between meters and ingest: prepared here, read here, acknowledged here.

Enters what meters published over MQTT and the broker stored in `$MQTT_msgs`; leaves `StreamMessage`s in stream
order per shard. A message is acknowledged only when the caller says so, after its commit; until then the
broker delivers it again every `ack_wait`. Nothing here decodes a payload or knows the database.

The stream has interest retention: what no durable consumer asks for is dropped although the meter was told
it is stored. So `prepare_stream` must have run before any meter may connect, and shards and leftovers
together ask for every subject there is.

Subjects. The broker maps `amr.<serial>.rd` to eight levels, `amr.<shard>.<serial>.rd.-.-.-.-`, and pushes any
other eight-level subject to nine. So the shards have a depth of their own that no client can publish to, and
the leftovers can ask for all other depths without overlap. A shorter form leaves a hole: with four levels,
`amr.<shard>.<serial>.rd`, a prefixed topic such as `/amr/M1/rd` is acknowledged to the meter and dropped, since a
filter cannot say "four levels, but not below amr". A mapping must keep the head of a subject: the broker applies
it again to `$MQTT.msgs.` + six levels on the way into the stream.
Source: experiments on NATS server 2.15.1, 2026-11-21; tests/integration/test_stream.py repeats them.
"""

import asyncio
import json
import math
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final

import aiomqtt
import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError
from nats.protocol import parser as nats_parser

from protocols.topics import SHARDS

STREAM: Final = "$MQTT_msgs"
LEFTOVERS: Final = "leftovers"
_SUBJECT_PREFIX: Final = "$MQTT.msgs."
_DEPTH: Final = 8  # Levels of a shard's subject.
_FILLER: Final = ".-" * (_DEPTH - 4)
# "/" inside a level cannot come from an MQTT topic: the broker turns it into ".", and "." into "//".
_PUSHED: Final = "x/x"

SUBJECT_MAPPINGS: Final[dict[str, str]] = {
    **{
        f"amr.*.{kind}": f"amr.{{{{partition({SHARDS},1)}}}}.{{{{wildcard(1)}}}}.{kind}{_FILLER}"
        for kind in ("rd", "ev")
    },
    ".".join("*" * _DEPTH): "".join(f"{{{{wildcard({level})}}}}." for level in range(1, _DEPTH + 1)) + _PUSHED,
}

# One shard may hold a whole backlog: two batches of 20,000 messages, one committing and one decoding, and what
# is buffered here (1,000) stay unacknowledged at once; 41,000 rounded up.
UNACKNOWLEDGED_MAX: Final = 50_000
# Buffered or on the way, shared by the consumers: as much again as a batch of 2,000. Both together are 96,000
# readings in daily blocks, which ingest stores in 3 s: well inside `ack_wait`, or the broker would send them twice.
_BUFFER_MESSAGES_MAX: Final = 2_000
# 33 x 3 MiB bound the worst case at 99 MiB; half of it still holds the largest message (1 MiB).
_BUFFER_BYTES_MAX: Final = 3 * 2**20
_PULL_EXPIRES_S: Final = 2.0  # A paused owner's request lapses well before a lease (10 s) does.
_PULL_LOST_S: Final = 0.5  # After that much more the broker's word of expiry is not coming.
_RENEW_EVERY_S: Final = 0.25  # Eight looks in the life of a request.
_CONNECT_TIMEOUT_S: Final = 15.0
_REQUEST_TIMEOUT_S: Final = 5
_RECONNECT_WAIT_S: Final = 1  # Constant: one attempt a second a process, for as long as it runs.
_PING_EVERY_S: Final = 2  # Twice unanswered: a frozen broker or a half-open connection is noticed in 6 s.
_WRITE_BUFFER_BYTES_MAX: Final = 16 * 2**20  # Acknowledgements of 100,000 messages while the broker is away.
# Redelivery follows a timer of the broker that may run late under load.
_REDELIVERY_MARGIN_S: Final = 0.5
_REDELIVERY_POLL_S: Final = 0.1
_PREPARE_TRIES_MAX: Final = 10  # At 0.5 s: a cluster elects a leader within 5 s.
_PREPARE_WAIT_S: Final = 0.5
_ACK: Final = b"+ACK"
_IN_PROGRESS: Final = b"+WPI"
_REFUSE: Final = b"-NAK"
# Not at once: our own last request may still be open and would be given the same message again and again.
_REFUSE_LATER: Final = b'-NAK {"delay": %d}' % int(_PULL_EXPIRES_S * 1e9)

# The broker takes a vertical tab in a topic; nats-py would end the subject there and drop the connection, again at
# every redelivery. Its patterns are asserted, so that a new version of it cannot undo this unseen.
for _name in ("MSG_RE", "HMSG_RE"):
    _subject_pattern = getattr(nats_parser, _name).pattern
    assert rb"[^\s]+" in _subject_pattern, f"nats-py {_name}: expected subjects as [^\\s]+, got {_subject_pattern!r}"
    setattr(nats_parser, _name, re.compile(_subject_pattern.replace(rb"[^\s]+", rb"[^ \t\r\n]+")))

_log = structlog.get_logger(__name__)


class StreamError(Exception):
    """Base of what goes wrong with the stream; `code` is stable."""

    code: ClassVar[str] = "stream_error"


class StreamUnavailable(StreamError):
    """The broker does not answer; try again. Nothing is lost: what is unacknowledged comes again."""

    code: ClassVar[str] = "stream_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMessage:
    """One publish of a meter, as stored.

    Invariants: `stream_seq` identifies it for ever; `shard` is None for leftovers; `topic` is as published.
    """

    shard: int | None
    topic: str
    payload: bytes
    stream_seq: int
    stored_at_ms: int
    redelivered: bool
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the broker writes into the reply subject of a delivered message."""

    consumer: str
    deliveries: int
    stream_seq: int
    stored_at_ns: int


@dataclass(slots=True)
class _Lane:
    """One consumer being read: what was asked for, and what came and was not yet taken or acknowledged."""

    name: str
    shard: int | None
    awaited: int = 0
    lapses_at_s: float = 0.0
    held_until_s: float = 0.0
    buffer: deque[StreamMessage] = field(default_factory=deque)
    buffer_bytes: int = 0
    unacknowledged: set[int] = field(default_factory=set)


class _Delivered(msgspec.Struct):
    last_active: datetime | None = None


class _ConsumerInfo(msgspec.Struct):
    """The part of the broker's answer that we use."""

    delivered: _Delivered
    num_ack_pending: int
    num_pending: int = 0
    ts: datetime | None = None


async def prepare_stream(nats_url: str, mqtt_host: str, mqtt_port: int, *, ack_wait_s: float) -> None:
    """Make the stream and its 33 durable consumers, or bring them up to date; keeps what is stored.

    `nats_url` may name several servers of one cluster, with commas.
    Raises: StreamUnavailable.
    """
    client = await _connect(nats_url)
    try:
        await _ensure_stream(client, mqtt_host, mqtt_port)
        context = client.jetstream(timeout=_REQUEST_TIMEOUT_S)
        for config in _consumers(ack_wait_s):
            await context.add_consumer(STREAM, config)
    except (nats.errors.Error, TimeoutError, aiomqtt.MqttError) as error:
        raise StreamUnavailable(f"cannot prepare {STREAM}: {error!r}") from error
    finally:
        await client.close()


class StreamReader:
    """Reads the consumers of the shards this process owns, through one connection.

    Invariants: order within a shard is stream order; a message leaves `take` at most once per delivery; at most
    `_BUFFER_MESSAGES_MAX` messages of a consumer are asked for and not taken; requests are only made while
    somebody takes; no message is acknowledged unless the caller says so, except copies of our own commands.
    """

    def __init__(self, client: Client, *, ack_wait_s: float) -> None:
        """Wrap a connected client; use `connect`."""
        self._client = client
        self._ack_wait_s = ack_wait_s
        self._lanes: dict[str, _Lane] = {}
        self._inbox = client.new_inbox()
        self._arrived = asyncio.Event()
        self._wanted_until_s = 0.0
        self._look_again = False
        self._turn = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, nats_url: str, *, ack_wait_s: float) -> AsyncIterator["StreamReader"]:
        """Read for as long as the context lasts; the connection is renewed for ever meanwhile.

        Raises: StreamUnavailable if the first connection fails.
        """
        client = Client()
        reader = cls(client, ack_wait_s=ack_wait_s)
        await _connect(nats_url, client=client, reconnected=reader._after_reconnect)
        try:
            inbox = await client.subscribe(f"{reader._inbox}.*", cb=reader._arrive)
            try:
                yield reader
            finally:
                with suppress(nats.errors.Error, TimeoutError):
                    await inbox.unsubscribe()
                    await reader._refuse(reader._lanes.values(), _REFUSE)
        finally:
            await client.close()

    async def own(self, shards: set[int], leftovers: bool) -> None:
        """Read these shards from now on; untaken messages of others go back to the broker.

        Taken ones stay the caller's to acknowledge. Call `await_redelivery` first for shards new to us.
        """
        wanted: dict[str, int | None] = {_shard_consumer(shard): shard for shard in sorted(shards)}
        if leftovers:
            wanted[LEFTOVERS] = None
        left = [self._lanes.pop(name) for name in list(self._lanes) if name not in wanted]
        for name, shard in wanted.items():
            self._lanes.setdefault(name, _Lane(name=name, shard=shard))
        await self._refuse(left, _REFUSE_LATER)

    async def take(self, *, messages_max: int, bytes_max: int, wait_s: float) -> list[StreamMessage]:
        """Wait up to `wait_s` for a first message, then give all that is here, up to the caps.

        A single message larger than `bytes_max` is given alone. Empty while the broker is away.
        """
        deadline_s = time.monotonic() + wait_s
        while True:
            self._wanted_until_s = time.monotonic() + _PULL_EXPIRES_S
            if self._look_again:
                await self._hold_back()
            self._arrived.clear()
            await self._renew(self._lanes.values())
            if any(lane.buffer for lane in self._lanes.values()):
                return self._drain(messages_max=messages_max, bytes_max=bytes_max)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), min(left_s, _RENEW_EVERY_S))

    def take_here(self, *, messages_max: int, bytes_max: int) -> list[StreamMessage]:
        """Give what is here, up to the caps, without waiting; nothing while the order has to be looked at first."""
        self._wanted_until_s = time.monotonic() + _PULL_EXPIRES_S
        if self._look_again or not any(lane.buffer for lane in self._lanes.values()):
            return []
        return self._drain(messages_max=messages_max, bytes_max=bytes_max)

    async def acknowledge(self, messages: Sequence[StreamMessage]) -> None:
        """Tell the broker to forget these; call after the commit that stored them.

        Never fails: an acknowledgement lost with the broker brings the message again, and storing it twice
        equals storing it once.
        """
        await self._answer(messages, _ACK)
        for message in messages:
            lane = self._lanes.get(_consumer_of(message.shard))
            if lane is not None:
                lane.unacknowledged.discard(message.stream_seq)

    async def in_progress(self, messages: Sequence[StreamMessage]) -> None:
        """Ask for another `ack_wait` for these, as a batch takes longer than that."""
        await self._answer(messages, _IN_PROGRESS)

    async def pending_elsewhere(self, shard: int) -> int:
        """Count messages of a shard that were delivered, not acknowledged, and are not in our hands.

        Raises: StreamUnavailable.
        """
        name = _shard_consumer(shard)
        info = await self._info(name)
        return max(0, info.num_ack_pending - self._in_hand(name))

    async def await_redelivery(self, shards: Iterable[int]) -> None:
        """Wait until what a previous owner of these shards left unacknowledged is due to come again.

        The broker gives due messages before new ones, so that a crash does not turn stream order around.
        Bounded by `ack_wait` and a margin, also if the previous owner lives on and keeps its messages.
        Raises: StreamUnavailable.
        """
        bound_s = time.monotonic() + self._ack_wait_s + _REDELIVERY_MARGIN_S
        names = [_shard_consumer(shard) for shard in shards]
        while names:
            due_in_s = max(await asyncio.gather(*(self._due_in_s(name) for name in names)))
            left_s = min(due_in_s, bound_s - time.monotonic())
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _REDELIVERY_POLL_S))

    async def _arrive(self, message: Msg) -> None:
        if not message.reply:
            self._end_request(message)
            return
        delivery = parse_reply(message.reply)
        lane = self._lanes.get(delivery.consumer)
        if lane is None:
            await self._client.publish(message.reply, _REFUSE_LATER)
            return
        lane.awaited -= 1
        topic = topic_of(message.subject)
        if lane.shard is None and _is_command(topic):
            # The broker keeps a copy of every command we publish; it is no news to ourselves.
            await self._client.publish(message.reply, _ACK)
        else:
            lane.buffer.append(
                StreamMessage(
                    shard=lane.shard,
                    topic=topic,
                    payload=message.data,
                    stream_seq=delivery.stream_seq,
                    stored_at_ms=delivery.stored_at_ns // 1_000_000,
                    redelivered=delivery.deliveries > 1,
                    reply=message.reply,
                )
            )
            lane.buffer_bytes += len(message.data)
            lane.unacknowledged.add(delivery.stream_seq)
            self._arrived.set()
        if lane.awaited <= 0:
            await self._renew((lane,))

    def _end_request(self, message: Msg) -> None:
        """A request came to its end: expired, over its bytes, refused; the next `take` makes a new one."""
        name = message.subject.rpartition(".")[2]
        status = (message.headers or {}).get("Status", "503")
        lane = self._lanes.get(name)
        if lane is not None and status != "100":
            lane.awaited = 0
        if status not in ("100", "404", "408", "409"):
            _log.warning("stream_request_refused", consumer=name, status=status)

    async def _renew(self, lanes: Iterable[_Lane]) -> None:
        """Ask again for what has room, where no request is open, if somebody has taken lately."""
        now_s = time.monotonic()
        if not self._client.is_connected or now_s > self._wanted_until_s:
            return
        share = max(1, _BUFFER_MESSAGES_MAX // max(1, len(self._lanes)))
        for lane in list(lanes):
            room = share - len(lane.buffer)
            room_bytes = _BUFFER_BYTES_MAX - lane.buffer_bytes
            asked = lane.awaited > 0 and now_s < lane.lapses_at_s
            if asked or now_s < lane.held_until_s:
                continue
            if room < (share + 1) // 2 or room_bytes < _BUFFER_BYTES_MAX // 2:
                continue
            lane.awaited = room
            lane.lapses_at_s = now_s + _PULL_EXPIRES_S + _PULL_LOST_S
            request = {"batch": room, "max_bytes": room_bytes, "expires": int(_PULL_EXPIRES_S * 1e9)}
            with suppress(nats.errors.Error):
                await self._client.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{lane.name}",
                    json.dumps(request).encode(),
                    reply=f"{self._inbox}.{lane.name}",
                )

    def _drain(self, *, messages_max: int, bytes_max: int) -> list[StreamMessage]:
        taken: list[StreamMessage] = []
        room_bytes = bytes_max
        lanes = list(self._lanes.values())
        self._turn = (self._turn + 1) % len(lanes)  # Another lane first each time, so that none starves.
        for lane in lanes[self._turn :] + lanes[: self._turn]:
            while lane.buffer:
                size = len(lane.buffer[0].payload)
                if taken and (len(taken) >= messages_max or size > room_bytes):
                    return taken
                taken.append(lane.buffer.popleft())
                lane.buffer_bytes -= size
                room_bytes -= size
        return taken

    async def _refuse(self, lanes: Iterable[_Lane], how: bytes) -> None:
        for lane in lanes:
            await self._answer(lane.buffer, how)
            lane.buffer.clear()

    async def _answer(self, messages: Iterable[StreamMessage], how: bytes) -> None:
        try:
            for message in messages:
                await self._client.publish(message.reply, how)
            if self._client.is_connected:
                await self._client.flush(timeout=_REQUEST_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            _log.warning("stream_answers_lost", answer=how.decode(), error=repr(error))

    async def _after_reconnect(self) -> None:
        """Forget the requests of the old connection and look what else was lost with it."""
        _log.info("stream_reconnected")
        self._look_again = True
        for lane in self._lanes.values():
            lane.awaited = 0
            lane.held_until_s = math.inf
        self._arrived.set()

    async def _hold_back(self) -> None:
        """Hold lanes whose messages were lost on the way to us until those are due, to keep the order."""
        lanes = list(self._lanes.values())
        try:
            due_in_s = await asyncio.gather(*(self._due_in_s(lane.name) for lane in lanes))
        except StreamUnavailable:
            return
        self._look_again = False
        now_s = time.monotonic()
        for lane, wait_s in zip(lanes, due_in_s, strict=True):
            lane.held_until_s = now_s + wait_s

    async def _due_in_s(self, name: str) -> float:
        """Seconds until every message of a consumer that is in other hands is due; 0 if there is none."""
        info = await self._info(name)
        if info.num_ack_pending <= self._in_hand(name):
            return 0.0
        whole_s = self._ack_wait_s + _REDELIVERY_MARGIN_S
        # Both times are the broker's, so that our clock does not matter; a restarted broker has forgotten one.
        if info.delivered.last_active is None or info.ts is None:
            return whole_s
        idle_s = (info.ts - info.delivered.last_active).total_seconds()
        return min(max(whole_s - idle_s, 0.0), whole_s)

    def _in_hand(self, name: str) -> int:
        lane = self._lanes.get(name)
        return len(lane.unacknowledged) if lane is not None else 0

    async def _info(self, name: str) -> _ConsumerInfo:
        try:
            answer = await self._client.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{name}", timeout=_REQUEST_TIMEOUT_S)
            return msgspec.json.decode(answer.data, type=_ConsumerInfo)
        except (nats.errors.Error, TimeoutError, OSError, msgspec.MsgspecError) as error:
            raise StreamUnavailable(f"no word on consumer {name}: {error!r}") from error


async def stream_backlog(nats_url: str) -> int:
    """Count messages that no consumer has acknowledged yet: waiting or in somebody's hands.

    Raises: StreamUnavailable.
    """
    client = await _connect(nats_url)
    try:
        reader = StreamReader(client, ack_wait_s=0)
        names = [LEFTOVERS, *(_shard_consumer(shard) for shard in range(SHARDS))]
        infos = await asyncio.gather(*(reader._info(name) for name in names))
        return sum(info.num_pending + info.num_ack_pending for info in infos)
    finally:
        await client.close()


def parse_reply(reply: str) -> Delivery:
    """Read an acknowledgement subject: the nine-level form, or the later one with domain and account.

    Raises: StreamError on any other form.
    Source: the metadata reader of nats-py 2.16 (nats/aio/msg.py), which takes the last level as optional.
    """
    levels = reply.split(".")
    first = 2 if len(levels) == 9 else 4
    if len(levels) not in (9, 11, 12) or levels[0] != "$JS" or levels[1] != "ACK":
        raise StreamError(f"reply subject: expected $JS.ACK with 9, 11 or 12 levels, got {len(levels)} levels")
    _stream, consumer, deliveries, stream_seq, _consumer_seq, stored_at_ns, _pending = levels[first : first + 7]
    return Delivery(
        consumer=consumer,
        deliveries=int(deliveries),
        stream_seq=int(stream_seq),
        stored_at_ns=int(stored_at_ns),
    )


def topic_of(subject: str) -> str:
    """Give back the MQTT topic that a meter published, from the subject its message is stored under."""
    levels = subject.removeprefix(_SUBJECT_PREFIX).split(".")
    if levels[-1] == _PUSHED:
        levels.pop()
    elif len(levels) == _DEPTH and levels[0] == "amr":
        levels = [levels[0], *levels[2:4]]
    if not any("/" in level for level in levels):
        return "/".join(levels)
    return "/".join("" if level == "/" else level.replace("//", ".") for level in levels)


async def _connect(
    nats_url: str, *, client: Client | None = None, reconnected: Callable[[], Awaitable[None]] | None = None
) -> Client:
    client = client or Client()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await client.connect(
                nats_url.split(","),
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,
                ping_interval=_PING_EVERY_S,
                max_outstanding_pings=2,
                pending_size=_WRITE_BUFFER_BYTES_MAX,
                error_cb=_note_error,
                disconnected_cb=_note_disconnect,
                reconnected_cb=reconnected,
            )
    except (nats.errors.Error, TimeoutError, OSError) as error:
        await client.close()
        raise StreamUnavailable(f"no NATS server answers: {error!r}") from error
    return client


async def _note_error(error: Exception) -> None:
    _log.warning("stream_error", error=repr(error))


async def _note_disconnect() -> None:
    _log.debug("stream_disconnected")


async def _ensure_stream(client: Client, mqtt_host: str, mqtt_port: int) -> None:
    """The server makes its MQTT streams when the first MQTT client connects, so be that client."""
    context = client.jetstream(timeout=_REQUEST_TIMEOUT_S)
    for tries in range(1, _PREPARE_TRIES_MAX + 1):
        try:
            await context.stream_info(STREAM)
            return
        except NotFoundError:
            async with aiomqtt.Client(
                mqtt_host, mqtt_port, identifier=f"prepare-{uuid.uuid4().hex}", timeout=_REQUEST_TIMEOUT_S
            ):
                pass
        except nats.errors.Error:
            if tries == _PREPARE_TRIES_MAX:
                raise
            await asyncio.sleep(_PREPARE_WAIT_S)
    raise StreamUnavailable(f"the server at {mqtt_host}:{mqtt_port} makes no stream {STREAM}")


def _consumers(ack_wait_s: float) -> list[ConsumerConfig]:
    shards = [(_shard_consumer(shard), [f"{_SUBJECT_PREFIX}amr.{shard}.*.*{_FILLER}"]) for shard in range(SHARDS)]
    other_depths = [_SUBJECT_PREFIX + ".".join("*" * depth) for depth in range(1, _DEPTH)]
    deeper = _SUBJECT_PREFIX + ".".join("*" * _DEPTH) + ".>"
    return [
        ConsumerConfig(
            durable_name=name,
            filter_subjects=subjects,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait_s,
            max_deliver=-1,
            max_ack_pending=UNACKNOWLEDGED_MAX,
        )
        for name, subjects in [*shards, (LEFTOVERS, [*other_depths, deeper])]
    ]


def _consumer_of(shard: int | None) -> str:
    return LEFTOVERS if shard is None else _shard_consumer(shard)


def _shard_consumer(shard: int) -> str:
    return f"shard-{shard:02d}"


def _is_command(topic: str) -> bool:
    levels = topic.split("/")
    return len(levels) == 3 and levels[0] == "amr" and levels[2] == "cmd"
