"""A lean MQTT client of thousands of connections: encoded publishes leave on a schedule that waits for nobody.

Stage: the meters' end of `bench ingest`, in the flood's own process. Frames enter; the instant of every write and of
every PUBACK leaves. Only what a publisher needs of MQTT 3.1.1 is here: CONNECT with keep-alive, PUBLISH at QoS 1,
PUBACK, PINGREQ, DISCONNECT.

A write is due at its place in the schedule. One that cannot leave then, because its connection has a full window or is
being opened again, leaves as soon as it can and keeps its due time, which is what waiting times are counted from: a
broker that slows down is not asked more slowly. When the broker closes a connection it is opened again after a pause,
and what has no PUBACK yet is sent again in its order.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from loadtests.flood_frames import Frames
from meter_sim.edges.bulk import encode_connect, take_packets
from protocols.errors import Malformed

# A connection stands for some fifty meters behind one address, each with one message unanswered. 2,000 connections
# have 128,000 messages on their way at most: 28 MB of single readings, in the broker or in its sockets.
WINDOW_MESSAGES: Final = 64
# The schedule is looked at a thousand times a second: at 20,000 writes/s 20 leave together, on as many connections.
TICK_S: Final = 0.001
# More at once, after a pause of the machine, would keep PUBACKs waiting in the sockets and their clock running.
WRITES_PER_TICK_MAX: Final = 500
KEEP_ALIVE_S: Final = 60
# Each connection pings twice in its keep-alive; one that has said nothing between two pings is dead.
PING_EVERY_S: Final = 30.0
CONNECT_S_MAX: Final = 20.0
# 200 at a time: 2,000 are open within a second, and the broker's queue for new ones is not overrun.
CONNECTING_MAX: Final = 200
# 0.1 s doubling to 5 s, spread by the connection's number so that thousands do not come back in one wave.
BACKOFF_S_FIRST, BACKOFF_S_MAX = 0.1, 5.0

_PUBACK: Final = 0x40
_CONNACK: Final = 0x20
_DUP: Final = 0x08
_PINGREQ: Final = b"\xc0\x00"
_DISCONNECT: Final = b"\xe0\x00"
# Fixed header of a CONNECT of less than 128 bytes, protocol name, level and flags stand before the keep-alive.
_KEEP_ALIVE_AT: Final = 10


class Burst:
    """Frames under way: when each write was due and left, and when each message was acknowledged.

    Units: nanoseconds since `began_ns` of the monotonic clock; -1 is not yet. `rate` is messages a second; None means
    that each connection has one write under way all the time.
    """

    def __init__(self, frames: Frames, rate: float | None) -> None:
        self.frames = frames
        self.rate = rate
        self.writes = frames.writes
        self.packet_ids = frames.packet_ids
        self.each = frames.part.mode.messages_per_write
        self.window = self.each if rate is None else max(WINDOW_MESSAGES, self.each)
        self.left = frames.part.count
        self.sent_ns = array("q", [-1]) * len(frames.writes)
        self.acked_ns = array("q", [-1]) * frames.part.count
        self.began_ns = 0
        self.began_at_ns = 0
        self.done = asyncio.Event()

    def begin(self) -> None:
        """Start the clock."""
        self.began_ns, self.began_at_ns = time.monotonic_ns(), time.time_ns()
        if not self.left:
            self.done.set()

    def now_ns(self) -> int:
        """Return the time since the beginning."""
        return time.monotonic_ns() - self.began_ns

    def due(self) -> int:
        """Return how many writes are due by now."""
        if self.rate is None:
            return len(self.writes)
        return min(len(self.writes), int(self.now_ns() * self.rate / (self.each * 1e9)) + 1)

    def acknowledge(self, message: int, at_ns: int) -> None:
        """Note a PUBACK."""
        self.acked_ns[message] = at_ns
        self.left -= 1
        if not self.left:
            self.done.set()


@dataclass(slots=True, kw_only=True)
class Trouble:
    """What went wrong with connections, each counted: what the broker answers when it has too much to do."""

    closed: int = 0
    refused: int = 0
    unreachable: int = 0
    silent: int = 0
    resent: int = 0
    unexpected: int = 0

    def copy(self) -> Trouble:
        """Return the counts as they are now."""
        return replace(self)

    def since(self, before: Trouble) -> dict[str, int]:
        """Return what has been added since an earlier count."""
        return {name: getattr(self, name) - getattr(before, name) for name in self.__slots__}


class Flood:
    """Connections that publish bursts, one after the other.

    Invariants: a connection has at most its window of messages unanswered; what waits for it stands in the schedule's
    order; a message is acknowledged once.
    """

    def __init__(self, host: str, port: int, connections: int, *, name: str) -> None:
        self.host, self.port = host, port
        self.burst: Burst | None = None
        self.trouble = Trouble()
        self.closing = False
        self.opening = asyncio.Semaphore(CONNECTING_MAX)
        self.tasks: set[asyncio.Task[None]] = set()
        self._lanes = [_Lane(self, index, f"{name}-{index}") for index in range(connections)]

    async def open(self) -> None:
        """Open all connections.

        Raises: ConnectionError, TimeoutError when the broker does not take one.
        """
        await asyncio.gather(*(lane.open() for lane in self._lanes))
        self._start(self._ping())

    async def send(self, burst: Burst, *, seconds_max: float) -> None:
        """Publish a burst; return when all of it is acknowledged, or after so many seconds."""
        self.burst = burst
        burst.begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._offer(burst)
                await burst.done.wait()
        for lane in self._lanes:
            lane.forget()
        self.burst = None

    async def close(self) -> None:
        """Say goodbye on all connections."""
        self.closing = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for lane in self._lanes:
            lane.close()
        # One turn of the loop writes what is said, the next closes.
        await asyncio.sleep(0.05)

    def reopen(self, lane: _Lane) -> None:
        """Open a lost connection again, unless all is over."""
        if not self.closing:
            self._start(lane.reopen())

    async def _offer(self, burst: Burst) -> None:
        """Hand each write to its connection when it is due."""
        lanes, connection_of = self._lanes, burst.frames.connection_of
        offered, total = 0, len(burst.writes)
        while offered < total:
            due = min(burst.due(), offered + WRITES_PER_TICK_MAX)
            for write in range(offered, due):
                lanes[connection_of(write)].offer(write)
            behind = due - offered >= WRITES_PER_TICK_MAX
            offered = due
            await asyncio.sleep(0 if behind else TICK_S)

    async def _ping(self) -> None:
        """Ping every connection in turn, all of them within `PING_EVERY_S`."""
        while True:
            for lane in self._lanes:
                await asyncio.sleep(PING_EVERY_S / len(self._lanes))
                lane.ping()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class _Lane(asyncio.Protocol):
    """One connection, and the messages on it, which outlive it.

    Invariants: `_unacked` has the messages sent and unanswered in their order, `_queued` the writes not sent; nothing
    is written outside a session.
    """

    __slots__ = ("_connect", "_flood", "_heard", "_inbound", "_index", "_queued", "_session", "_transport", "_unacked")

    def __init__(self, flood: Flood, index: int, client_id: str) -> None:
        self._flood = flood
        self._index = index
        connect = bytearray(encode_connect(client_id, None, None))
        connect[_KEEP_ALIVE_AT : _KEEP_ALIVE_AT + 2] = KEEP_ALIVE_S.to_bytes(2)
        self._connect = bytes(connect)
        self._transport: asyncio.Transport | None = None
        self._session: asyncio.Future[None] | None = None
        self._unacked: deque[int] = deque()
        self._queued: deque[int] = deque()
        self._inbound = bytearray()
        self._heard = True

    async def open(self) -> None:
        """Open the connection and its session. Raises: ConnectionError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with self._flood.opening, asyncio.timeout(CONNECT_S_MAX):
            self._session = loop.create_future()
            self._inbound.clear()
            transport, _ = await loop.create_connection(lambda: self, self._flood.host, self._flood.port)
            try:
                transport.write(self._connect)
                await self._session
            except BaseException:
                transport.abort()
                raise
            self._transport, self._heard = transport, True

    async def reopen(self) -> None:
        """Open the connection again, as often as it takes, then send again what was not acknowledged."""
        backoff_s = BACKOFF_S_FIRST * (1 + self._index % 97 / 97)
        while True:
            await asyncio.sleep(backoff_s)
            try:
                await self.open()
                break
            except (OSError, TimeoutError):
                self._flood.trouble.unreachable += 1
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
        self._resend()
        self._send_queued()

    def offer(self, write: int) -> None:
        """Take a write that is due; it leaves now or as soon as it can."""
        burst = self._flood.burst
        assert burst is not None, "writes are of a burst"
        if self._queued or self._transport is None or len(self._unacked) >= burst.window:
            self._queued.append(write)
        else:
            self._send(burst, write)

    def forget(self) -> None:
        """Let go of what was not acknowledged of a burst that is over."""
        self._unacked.clear()
        self._queued.clear()

    def ping(self) -> None:
        """Keep the connection alive; close one that has gone silent."""
        if self._transport is None:
            return
        if not self._heard:
            self._flood.trouble.silent += 1
            self._transport.abort()
            return
        self._heard = False
        self._transport.write(_PINGREQ)

    def close(self) -> None:
        """Say goodbye and close."""
        if self._transport is not None:
            self._transport.write(_DISCONNECT)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take acknowledgements; nearly always one, and whole."""
        self._heard = True
        burst = self._flood.burst
        if burst is not None and not self._inbound and data[0] == _PUBACK and len(data) == 4:
            self._acknowledge(burst, data[2] << 8 | data[3], time.monotonic_ns() - burst.began_ns)
        else:
            self._receive(data)
        if self._queued:
            self._send_queued()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it and come back later."""
        was_open, self._transport = self._transport is not None, None
        if self._session is not None and not self._session.done():
            self._session.set_exception(ConnectionResetError("closed before CONNACK"))
        if was_open and not self._flood.closing:
            self._flood.trouble.closed += 1
            self._flood.reopen(self)

    def _receive(self, data: bytes) -> None:
        """Take packets of any kind and cut."""
        self._inbound += data
        try:
            packets = take_packets(self._inbound)
        except Malformed:
            self._flood.trouble.unexpected += 1
            if self._transport is not None:
                self._transport.abort()
            return
        burst = self._flood.burst
        for first, body in packets:
            if first == _PUBACK and burst is not None:
                self._acknowledge(burst, body[0] << 8 | body[1], burst.now_ns())
            elif first == _CONNACK and self._session is not None and not self._session.done():
                self._begin(body)

    def _begin(self, connack: bytes) -> None:
        assert self._session is not None, "a CONNACK follows a CONNECT"
        if connack[1:] == b"\x00":
            self._session.set_result(None)
        else:
            self._flood.trouble.refused += 1
            self._session.set_exception(ConnectionRefusedError(f"CONNACK: expected code 0, got {connack[1:].hex()}"))

    def _acknowledge(self, burst: Burst, packet_id: int, at_ns: int) -> None:
        unacked = self._unacked
        if not unacked or burst.packet_ids[unacked[0]] != packet_id:
            found = next((message for message in unacked if burst.packet_ids[message] == packet_id), None)
            if found is None:
                self._flood.trouble.unexpected += 1
                return
            unacked.remove(found)
            unacked.appendleft(found)
        burst.acknowledge(unacked.popleft(), at_ns)

    def _send_queued(self) -> None:
        burst = self._flood.burst
        while self._queued and burst is not None and self._transport is not None and len(self._unacked) < burst.window:
            self._send(burst, self._queued.popleft())

    def _send(self, burst: Burst, write: int) -> None:
        assert self._transport is not None, "sent in a session"
        self._transport.write(burst.writes[write])
        burst.sent_ns[write] = time.monotonic_ns() - burst.began_ns
        if burst.each == 1:
            self._unacked.append(write)
        else:
            self._unacked.extend(range(write * burst.each, (write + 1) * burst.each))

    def _resend(self) -> None:
        burst = self._flood.burst
        if burst is None or self._transport is None:
            return
        for message in self._unacked:
            write, place = divmod(message, burst.each)
            frame = next(frame for number, frame in enumerate(_split(burst.writes[write])) if number == place)
            self._transport.write(bytes((frame[0] | _DUP,)) + frame[1:])
        self._flood.trouble.resent += len(self._unacked)


def _split(write: bytes) -> Iterator[bytes]:
    """Yield the frames of a write one by one."""
    at = 0
    while at < len(write):
        length, shift, body = 0, 0, at + 1
        while True:
            byte, body = write[body], body + 1
            length, shift = length | (byte & 0x7F) << shift, shift + 7
            if not byte & 0x80:
                break
        yield write[at : body + length]
        at = body + length
