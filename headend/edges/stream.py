"""The durable stream between meters and ingest: read here, acknowledged here.

Enters what meters published over MQTT and the broker stored, a stream for each lane; leaves `StreamMessage`s in stream
order per shard. A message is acknowledged only when the caller says so, after its commit; until then the
broker delivers it again every `ack_wait`. Nothing here decodes a payload or knows the database. What the stream is
made of, and must be made before, stands in `headend.edges.stream_setup`.

The way of a message is short, since it is gone by every single reading: `headend.edges.nats_wire` delivers all that one
read of the socket has brought, they go into their lanes without a task or a wait, and a batch is acknowledged by one
write. The broker drops what is acknowledged not one by one but all at once, when we tell it to, every few seconds.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
import structlog

from headend.edges.nats_wire import NatsWire
from headend.edges.stream_setup import (
    DEPTH,
    LANE_CONSUMERS,
    LEFTOVERS,
    PUSHED,
    SUBJECT_MAPPINGS,
    SUBJECT_PREFIX,
    UNACKNOWLEDGED_MAX,
    StreamError,
    StreamUnavailable,
    consumer_of,
    prepare_stream,
    stream_of,
)
from headend.nats_frames import Delivered, status_of

__all__ = [
    "SUBJECT_MAPPINGS",
    "UNACKNOWLEDGED_MAX",
    "Delivery",
    "StreamError",
    "StreamMessage",
    "StreamReader",
    "StreamUnavailable",
    "parse_reply",
    "place_of",
    "prepare_stream",
    "stream_backlog",
]

# Buffered or on the way, shared by the consumers: two batches of 2,000, since a batch takes from some lanes more than
# from others; at 2,000 a lane was empty at times while the next batch was taken. With the batches being written and
# decoded that is 8,000 messages, or 384,000 readings in half-hourly blocks, which ingest stores in 4 s: inside
# `ack_wait`, and `in_progress` prolongs what takes longer, or the broker would send them twice.
_BUFFER_MESSAGES_MAX: Final = 4_000
# 9 x 3 MiB bound the worst case at 27 MiB; half of it still holds the largest message (1 MiB).
_BUFFER_BYTES_MAX: Final = 3 * 2**20
_PULL_EXPIRES_S: Final = 2.0  # A paused owner's request lapses well before a lease (10 s) does.
_PULL_LOST_S: Final = 0.5  # After that much more the broker's word of expiry is not coming.
_RENEW_EVERY_S: Final = 0.25  # Eight looks in the life of a request.
_NOBODY_WAIT_S: Final = 1.0  # A cluster without a leader is asked again once a second and consumer.
_REQUEST_TIMEOUT_S: Final = 5.0
_IN_PROGRESS_PARTS: Final = 4  # After a quarter of `ack_wait`: three more are left for the batch that is written.
# Redelivery follows a timer of the broker that may run late under load.
_REDELIVERY_MARGIN_S: Final = 0.5
_REDELIVERY_POLL_S: Final = 0.1
# What is acknowledged stays in the broker's file that long: 15,000 messages/s of 300 bytes are 9 MB.
_FORGET_EVERY_S: Final = 2.0
_ACK: Final = "+ACK"
_IN_PROGRESS: Final = "+WPI"
_REFUSE: Final = "-NAK"
# Not at once: our own last request may still be open and would be given the same message again and again.
_REFUSE_LATER: Final = f'-NAK {{"delay": {int(_PULL_EXPIRES_S * 1e9)}}}'

_log = structlog.get_logger(__name__)


class StreamMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One publish of a meter, as stored.

    Invariants: `stream_seq` identifies it within its lane; `shard` is None for leftovers; `topic` is as published;
    `arrived_s` is when it came here, by our steady clock.
    """

    shard: int | None
    topic: str
    payload: bytes
    stream_seq: int
    stored_at_ms: int
    redelivered: bool
    reply: str
    arrived_s: float


class Delivery(NamedTuple):
    """What the broker writes into the reply subject of a delivered message."""

    consumer: str
    deliveries: int
    stream_seq: int
    stored_at_ns: int


@dataclass(slots=True)
class _Lane:
    """One consumer being read: what was asked for, and what came and was not yet taken or acknowledged."""

    name: str
    awaited: int = 0
    forgotten_to: int = 0
    lapses_at_s: float = 0.0
    held_until_s: float = 0.0
    buffer: deque[StreamMessage] = field(default_factory=deque)
    buffer_bytes: int = 0
    unacknowledged: set[int] = field(default_factory=set)


class _Delivered(msgspec.Struct):
    last_active: datetime | None = None


class _Floor(msgspec.Struct):
    stream_seq: int


class _ConsumerInfo(msgspec.Struct):
    """The part of the broker's answer that we use; all up to `ack_floor` is acknowledged."""

    delivered: _Delivered
    ack_floor: _Floor
    num_ack_pending: int
    num_pending: int = 0
    ts: datetime | None = None


class StreamReader:
    """Reads the lanes of the shards this process owns, through one connection.

    Invariants: order within a shard is stream order; a message leaves `take` at most once per delivery; at most
    `_BUFFER_MESSAGES_MAX` messages of a consumer are asked for and not taken; requests are only made while
    somebody takes; no message is acknowledged unless the caller says so, except copies of our own commands.
    """

    def __init__(self, *, ack_wait_s: float) -> None:
        """Hold no connection yet; use `connect`."""
        self._wire: NatsWire
        self._ack_wait_s = ack_wait_s
        self._lanes: dict[str, _Lane] = {}
        self._arrived = asyncio.Event()
        self._prolonged: dict[str, float] = {}
        self._wanted_until_s = 0.0
        self._look_again = False
        self._turn = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, nats_url: str, *, ack_wait_s: float) -> AsyncIterator["StreamReader"]:
        """Read for as long as the context lasts; the connection is renewed for ever meanwhile.

        Raises: StreamUnavailable if the first connection fails.
        """
        reader = cls(ack_wait_s=ack_wait_s)
        try:
            reader._wire = wire = NatsWire(nats_url, arrived=reader._arrive, reconnected=reader._after_reconnect)
            await wire.open()
        except ConnectionError as error:
            raise StreamUnavailable(str(error)) from error
        forgetting = asyncio.create_task(reader._forget(), name="stream-forget")
        try:
            yield reader
        finally:
            forgetting.cancel()
            with suppress(OSError, TimeoutError):
                await wire.deafen(timeout_s=_REQUEST_TIMEOUT_S)
                await reader._refuse(reader._lanes.values(), _REFUSE)
            await wire.close()

    async def own(self, shards: set[int], leftovers: bool) -> None:
        """Read the lanes of these shards from now on; untaken messages of others go back to the broker.

        Taken ones stay the caller's to acknowledge. Call `await_redelivery` first for shards new to us.
        """
        wanted = {*map(consumer_of, shards), *([LEFTOVERS] if leftovers else [])}
        left = [self._lanes.pop(name) for name in list(self._lanes) if name not in wanted]
        for name in sorted(wanted):
            self._lanes.setdefault(name, _Lane(name=name))
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
            taken = self._drain(messages_max=messages_max, bytes_max=bytes_max)
            # What was taken makes room: the next is on its way while this is worked on.
            self._renew(self._lanes.values())
            if taken:
                return taken
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), min(left_s, _RENEW_EVERY_S))

    def take_here(self, *, messages_max: int, bytes_max: int) -> list[StreamMessage]:
        """Give what is here, up to the caps, without waiting; nothing while the order has to be looked at first."""
        self._wanted_until_s = time.monotonic() + _PULL_EXPIRES_S
        if self._look_again:
            return []
        taken = self._drain(messages_max=messages_max, bytes_max=bytes_max)
        self._renew(self._lanes.values())
        return taken

    async def acknowledge(self, messages: Sequence[StreamMessage]) -> None:
        """Tell the broker to forget these; call after the commit that stored them.

        Never fails: an acknowledgement lost with the broker brings the message again, and storing it twice
        equals storing it once.
        """
        await self._answer(messages, _ACK)
        for message in messages:
            lane = self._lanes.get(consumer_of(message.shard))
            if lane is not None:
                lane.unacknowledged.discard(message.stream_seq)

    async def in_progress(self, messages: Sequence[StreamMessage]) -> None:
        """Ask for another `ack_wait` for these, and for what is buffered behind them, as a batch may take that long.

        Sent only for what has waited a part of it: without need, it costs the broker 4 us a message (2026-11-22).
        """
        now_s = time.monotonic()
        before_s = now_s - self._ack_wait_s / _IN_PROGRESS_PARTS
        told = [*messages, *(message for lane in self._lanes.values() for message in lane.buffer)]
        old = [message for message in told if message.arrived_s <= before_s]
        since_s = {message.reply: self._prolonged.get(message.reply, message.arrived_s) for message in old}
        aged = [message for message in old if since_s[message.reply] <= before_s]
        # What is no longer in our hands is forgotten with this.
        self._prolonged = since_s | {message.reply: now_s for message in aged}
        await self._answer(aged, _IN_PROGRESS)

    async def pending_elsewhere(self, shard: int) -> int:
        """Count messages of a shard's lane that were delivered, not acknowledged, and are not in our hands.

        Raises: StreamUnavailable.
        """
        name = consumer_of(shard)
        info = await self._info(name)
        return max(0, info.num_ack_pending - self._in_hand(name))

    async def await_redelivery(self, shards: Iterable[int]) -> None:
        """Wait until what a previous owner of these shards left unacknowledged is due to come again.

        The broker gives due messages before new ones, so that a crash does not turn stream order around.
        Bounded by `ack_wait` and a margin, also if the previous owner lives on and keeps its messages.
        Raises: StreamUnavailable.
        """
        bound_s = time.monotonic() + self._ack_wait_s + _REDELIVERY_MARGIN_S
        names = set(map(consumer_of, shards))
        while names:
            due_in_s = max(await asyncio.gather(*(self._due_in_s(name) for name in names)))
            left_s = min(due_in_s, bound_s - time.monotonic())
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _REDELIVERY_POLL_S))

    async def _forget(self) -> None:
        """Have the broker drop what is acknowledged of our lanes, again and again."""
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            for lane in list(self._lanes.values()):
                # The broker drops from its own stream by itself.
                if lane.name != LEFTOVERS:
                    await self._forget_lane(lane)

    async def _forget_lane(self, lane: _Lane) -> None:
        try:
            floor = (await self._info(lane.name)).ack_floor.stream_seq
            # Lower than before where the store was lost and counts anew.
            if floor != lane.forgotten_to:
                what = b'{"seq":%d}' % (floor + 1)
                await self._wire.request(f"$JS.API.STREAM.PURGE.{lane.name}", what, timeout_s=_REQUEST_TIMEOUT_S)
                lane.forgotten_to = floor
        except (StreamUnavailable, TimeoutError, OSError) as error:
            _log.warning("stream_not_forgotten", lane=lane.name, error=repr(error))

    def _arrive(self, deliveries: Sequence[Delivered]) -> None:
        """Put what has come into its lanes, and ask again where all that was asked for is here."""
        now_s = time.monotonic()
        answers: list[str] = []
        ended: list[_Lane] = []
        for delivered in deliveries:
            if not delivered.reply:
                self._end_request(delivered)
                continue
            reply = delivered.reply.decode()
            delivery = parse_reply(reply)
            lane = self._lanes.get(delivery.consumer)
            if lane is None:
                answers.append(_answer_frame(reply, _REFUSE_LATER))
                continue
            lane.awaited -= 1
            if lane.awaited <= 0:
                ended.append(lane)
            shard, topic = place_of(delivered.subject.decode())
            if shard is None and _is_command(topic):
                # The broker keeps a copy of every command we publish; it is no news to ourselves.
                answers.append(_answer_frame(reply, _ACK))
                continue
            lane.buffer.append(
                StreamMessage(
                    shard=shard,
                    topic=topic,
                    payload=delivered.payload,
                    stream_seq=delivery.stream_seq,
                    stored_at_ms=delivery.stored_at_ns // 1_000_000,
                    redelivered=delivery.deliveries > 1,
                    reply=reply,
                    arrived_s=now_s,
                )
            )
            lane.buffer_bytes += len(delivered.payload)
            lane.unacknowledged.add(delivery.stream_seq)
        self._arrived.set()
        if answers:
            self._write(answers)
        if ended:
            self._renew(ended)

    def _end_request(self, delivered: Delivered) -> None:
        """A request came to its end: expired, over its bytes, refused; the next `take` makes a new one."""
        name = delivered.subject.decode().rpartition(".")[2]
        status = status_of(delivered.header)
        lane = self._lanes.get(name)
        if lane is not None and status != "100":
            lane.awaited = 0
        if status not in ("100", "404", "408", "409"):
            _log.warning("stream_request_refused", consumer=name, status=status)
            if lane is not None:
                lane.held_until_s = max(lane.held_until_s, time.monotonic() + _NOBODY_WAIT_S)

    def _renew(self, lanes: Iterable[_Lane]) -> None:
        """Ask again for what has room, where no request is open, if somebody has taken lately."""
        now_s = time.monotonic()
        if not self._wire.is_connected or now_s > self._wanted_until_s:
            return
        share = max(1, _BUFFER_MESSAGES_MAX // max(1, len(self._lanes)))
        requests: list[str] = []
        for lane in lanes:
            room = share - len(lane.buffer)
            room_bytes = _BUFFER_BYTES_MAX - lane.buffer_bytes
            asked = lane.awaited > 0 and now_s < lane.lapses_at_s
            if asked or now_s < lane.held_until_s:
                continue
            if room < (share + 1) // 2 or room_bytes < _BUFFER_BYTES_MAX // 2:
                continue
            lane.awaited = room
            lane.lapses_at_s = now_s + _PULL_EXPIRES_S + _PULL_LOST_S
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream_of(lane.name)}.{lane.name}"
            request = f'{{"batch":{room},"max_bytes":{room_bytes},"expires":{int(_PULL_EXPIRES_S * 1e9)}}}'
            requests.append(f"PUB {subject} {self._wire.inbox}.{lane.name} {len(request)}\r\n{request}\r\n")
        if requests:
            self._write(requests)

    def _drain(self, *, messages_max: int, bytes_max: int) -> list[StreamMessage]:
        taken: list[StreamMessage] = []
        room_bytes = bytes_max
        lanes = list(self._lanes.values())
        self._turn = (self._turn + 1) % max(1, len(lanes))  # Another lane first each time, so that none starves.
        for lane in lanes[self._turn :] + lanes[: self._turn]:
            if len(taken) + len(lane.buffer) <= messages_max and lane.buffer_bytes <= room_bytes:
                taken.extend(lane.buffer)
                room_bytes -= lane.buffer_bytes
                lane.buffer.clear()
                lane.buffer_bytes = 0
                continue
            while lane.buffer:
                size = len(lane.buffer[0].payload)
                if taken and (len(taken) >= messages_max or size > room_bytes):
                    return taken
                taken.append(lane.buffer.popleft())
                lane.buffer_bytes -= size
                room_bytes -= size
        return taken

    async def _refuse(self, lanes: Collection[_Lane], how: str) -> None:
        buffered = [message for lane in lanes for message in lane.buffer]
        for lane in lanes:
            lane.buffer.clear()
        await self._answer(buffered, how)

    async def _answer(self, messages: Sequence[StreamMessage], how: str) -> None:
        """Answer for messages in one write, and wait until the broker has read it."""
        if not messages:
            return
        self._write([_answer_frame(message.reply, how) for message in messages])
        try:
            await self._wire.flush(timeout_s=_REQUEST_TIMEOUT_S)
        except (TimeoutError, OSError) as error:
            _log.warning("stream_answers_lost", answer=how, error=repr(error))

    def _write(self, frames: Sequence[str]) -> None:
        try:
            self._wire.write("".join(frames).encode())
        except ConnectionError as error:
            _log.warning("stream_answers_lost", frames=len(frames), error=repr(error))

    def _after_reconnect(self) -> None:
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
            subject = f"$JS.API.CONSUMER.INFO.{stream_of(name)}.{name}"
            answer = await self._wire.request(subject, timeout_s=_REQUEST_TIMEOUT_S)
            return msgspec.json.decode(answer, type=_ConsumerInfo)
        except (TimeoutError, OSError, msgspec.MsgspecError) as error:
            raise StreamUnavailable(f"no word on consumer {name}: {error!r}") from error

    def let_go(self, shards: Iterable[int]) -> bool:
        """Ask for nothing more of shards that are to leave; tell whether nothing of them is on its way or in our hands.

        Call it again and again, take and acknowledge meanwhile, then `own` without them.
        """
        lanes = [self._lanes[name] for name in set(map(consumer_of, shards)) if name in self._lanes]
        for lane in lanes:
            lane.held_until_s = math.inf
        now_s = time.monotonic()
        asked = any(lane.awaited > 0 and now_s < lane.lapses_at_s for lane in lanes)
        return not asked and not any(lane.unacknowledged for lane in lanes)

    async def ask_no_more(self) -> None:
        """End what was asked for, to stop: all that the broker has given to us is here when this returns.

        It may still be taken and acknowledged; nothing more comes.
        """
        for lane in self._lanes.values():
            lane.held_until_s = math.inf
        with suppress(OSError, TimeoutError):
            await self._wire.deafen(timeout_s=_REQUEST_TIMEOUT_S)
            for lane in self._lanes.values():
                lane.awaited = 0


async def stream_backlog(nats_url: str) -> int:
    """Count messages that no consumer has acknowledged yet: waiting or in somebody's hands.

    Raises: StreamUnavailable.
    """
    async with StreamReader.connect(nats_url, ack_wait_s=0) as reader:
        infos = await asyncio.gather(*(reader._info(name) for name in (LEFTOVERS, *LANE_CONSUMERS)))
        return sum(info.num_pending + info.num_ack_pending for info in infos)


def parse_reply(reply: str) -> Delivery:
    """Read an acknowledgement subject: the nine-level form, or the later one with domain and account.

    Raises: StreamError on any other form.
    Source: the metadata reader of nats-py 2.16 (nats/aio/msg.py), which takes the last level as optional.
    """
    levels = reply.split(".")
    first = 2 if len(levels) == 9 else 4
    if len(levels) not in (9, 11, 12) or levels[0] != "$JS" or levels[1] != "ACK":
        raise StreamError(f"reply subject: expected $JS.ACK with 9, 11 or 12 levels, got {len(levels)} levels")
    return Delivery(levels[first + 1], int(levels[first + 2]), int(levels[first + 3]), int(levels[first + 5]))


def place_of(subject: str) -> tuple[int | None, str]:
    """Give back the shard and the MQTT topic that a meter published, from the subject its message is stored under."""
    levels = subject.removeprefix(SUBJECT_PREFIX).split(".")
    if len(levels) == DEPTH and levels[0] == "amr" and "/" not in subject:
        return int(levels[2]), f"amr/{levels[3]}/{levels[4]}"
    shard = None
    if levels[-1] == PUSHED:
        levels.pop()
    elif len(levels) == DEPTH and levels[0] == "amr":
        shard, levels = int(levels[2]), [levels[0], *levels[3:5]]
    topic = "/".join(levels)
    if len(levels) == topic.count("/") + 1:
        return shard, topic
    return shard, "/".join("" if level == "/" else level.replace("//", ".") for level in levels)


def _answer_frame(reply: str, how: str) -> str:
    return f"PUB {reply} {len(how)}\r\n{how}\r\n"


def _is_command(topic: str) -> bool:
    levels = topic.split("/")
    return len(levels) == 3 and levels[0] == "amr" and levels[2] == "cmd"
