"""A lean MQTT publisher: readings of very many meters over a few busy connections, at the broker's own pace.

Topics and payloads enter; the count of what the broker has stored leaves. Only what that needs of MQTT 3.1.1
is here (CONNECT, PUBLISH at QoS 1, PUBACK, DISCONNECT); a meter with a conversation of its own uses
`meter_sim.edges.fleet`. Measured on 2 cores with one NATS server beside it, 160-byte readings stored before
they are acknowledged: aiomqtt 5,500 messages/s, this 33,000 to 60,000 at 4 us of CPU each. Standard: MQTT
3.1.1, as far as NATS server 2.15 speaks it; its clauses were not gone through one by one.
"""

import asyncio
import secrets
from contextlib import AsyncExitStack
from types import TracebackType
from typing import ClassVar, Final, Self
from zlib import crc32

import structlog

from protocols.errors import Malformed

# The broker takes some 38,000 messages/s and answers within 50 ms when busy: about 1,900 in flight keep it
# busy, 512 on each of the usual 4 connections. At 160 bytes that is 82 kB a connection; at the payload limit
# of 64 kB, 33 MB.
WINDOW_MESSAGES: Final = 512
WRITE_BYTES: Final = 32_768  # Some 200 readings a system call; larger writes gained nothing.
CONNECT_S_MAX: Final = 10.0  # A broker replaying its store after a crash answers within seconds.
ACK_S_MAX: Final = 30.0  # Six hundred times the usual answer: the connection is dead, not slow.
# 0.2 s doubling to 5 s, 10 tries in a row without one acknowledgement: gives a broker 26 s to come back.
BACKOFF_S_FIRST: Final = 0.2
BACKOFF_S_MAX: Final = 5.0
TRIES_MAX: Final = 10
PACKET_ID_MAX: Final = 65_535

_CONNACK: Final = 0x20
_PUBLISH_QOS1: Final = 0x32
_DUP: Final = 0x08
_PUBACK: Final = 0x40
_DISCONNECT: Final = b"\xe0\x00"
_LENGTH_BYTES_MAX: Final = 4

_log = structlog.get_logger(__name__)


class FleetError(Exception):
    """The simulator's connections failed."""

    code: ClassVar[str] = "fleet_error"


class BrokerUnreachable(FleetError):
    """The broker did not answer within all tries."""

    code: ClassVar[str] = "broker_unreachable"


class BrokerRefused(FleetError):
    """The broker answered and refused the connection; trying again is of no use."""

    code: ClassVar[str] = "broker_refused"


def encode_connect(client_id: str, username: str | None, password: str | None) -> bytes:
    """Encode a CONNECT of MQTT 3.1.1 with a clean session and no keep-alive."""
    flags, fields = 0x02, _text(client_id)
    if username is not None:
        flags, fields = flags | 0x80, fields + _text(username)
        if password is not None:
            flags, fields = flags | 0x40, fields + _text(password)
    body = _text("MQTT") + bytes((4, flags, 0, 0)) + fields
    return b"\x10" + _length(len(body)) + body


def encode_publish(topic: str, payload: bytes, packet_id: int) -> bytes:
    """Encode a PUBLISH at QoS 1."""
    name = topic.encode()
    head = b"%c%b" % (_PUBLISH_QOS1, _length(len(name) + len(payload) + 4))
    return b"".join((head, len(name).to_bytes(2), name, packet_id.to_bytes(2), payload))


def take_packets(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take every whole packet off the front of a buffer: first byte and body each; leave the rest.

    Raises: Malformed if a length has more than four bytes.
    """
    packets: list[tuple[int, bytes]] = []
    start, end = 0, len(buffer)
    while start + 2 <= end:
        length, at = buffer[start + 1], start + 2
        if length & 0x80:
            counted = _long_length(buffer, start + 1)
            if counted is None:
                break
            length, at = counted
        if at + length > end:
            break
        packets.append((buffer[start], bytes(buffer[at : at + length])))
        start = at + length
    del buffer[:start]
    return packets


class BulkPublisher:
    """Publishes for very many meters over a few connections, each message until it is acknowledged.

    Invariants: a topic's meter always uses the same connection, so its messages are stored in the order
    published and, after a lost connection, sent again in that order; no more than `WINDOW_MESSAGES` a
    connection are unacknowledged; a message counts as acknowledged once, when its PUBACK came.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connections: int = 4,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        prefix = f"bulk-{secrets.token_hex(4)}"
        self._lanes = [
            _Lane(host, port, encode_connect(f"{prefix}-{index}", username, password), f"{prefix}-{index}")
            for index in range(connections)
        ]
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._tasks = [group.create_task(lane.run(), name=lane.name) for lane in self._lanes]
        try:
            for lane in self._lanes:
                await lane.wait_settled()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.drain()
        finally:
            await self._close()

    @property
    def acknowledged(self) -> int:
        """Count the messages the broker has stored."""
        return sum(lane.acknowledged for lane in self._lanes)

    @property
    def republished(self) -> int:
        """Count the messages sent again after a lost connection."""
        return sum(lane.republished for lane in self._lanes)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1; wait only while the window of the meter's connection is full.

        Raises: BrokerUnreachable or BrokerRefused when the connection was given up.
        """
        meter, _, _ = topic.rpartition("/")
        lane = self._lanes[crc32(meter.encode()) % len(self._lanes)]
        if lane.is_full or lane.failure is not None:
            await lane.wait_room()
        lane.send(topic, payload)

    async def drain(self) -> int:
        """Wait until everything published is acknowledged; return how many messages that is in all.

        Raises: BrokerUnreachable or BrokerRefused when a connection was given up.
        """
        for lane in self._lanes:
            await lane.wait_empty()
        return self.acknowledged

    async def _close(self) -> None:
        for lane in self._lanes:
            lane.close()
        for task in self._tasks:
            task.cancel()
        await self._stack.aclose()


class _Lane(asyncio.Protocol):
    """One connection and the messages on it, which outlive the connection.

    Invariants: `_unacked` holds in the order published what has no PUBACK yet; while no session is open
    nothing is written, and opening one sends all of `_unacked` first.
    """

    def __init__(self, host: str, port: int, connect: bytes, name: str) -> None:
        self.name = name
        self.failure: FleetError | None = None
        self.acknowledged = 0
        self.republished = 0
        self._host = host
        self._port = port
        self._connect = connect
        self._unacked: dict[int, bytes] = {}
        self._packet_id = 0
        self._transport: asyncio.Transport | None = None
        self._in_session = False
        self._inbound = bytearray()
        self._outbound: list[bytes] = []
        self._outbound_bytes = 0
        self._settled = asyncio.Event()
        self._session = asyncio.Event()
        self._lost = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_full(self) -> bool:
        """Tell whether the window has no room."""
        return len(self._unacked) >= WINDOW_MESSAGES

    def send(self, topic: str, payload: bytes) -> None:
        """Take a message into the window and, in session, onto the wire."""
        self._packet_id = self._packet_id % PACKET_ID_MAX + 1
        while self._packet_id in self._unacked:
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
        frame = encode_publish(topic, payload, self._packet_id)
        if not self._unacked:
            self._empty.clear()
        self._unacked[self._packet_id] = frame
        if self._in_session:
            self._write(frame)

    async def wait_settled(self) -> None:
        """Wait for the first session, or for its failure."""
        await self._settled.wait()
        self._raise_failure()

    async def wait_room(self) -> None:
        """Wait until half the window is free, so that each wake writes many messages at once."""
        while self.is_full and self.failure is None:
            self._room.clear()
            await self._room.wait()
        self._raise_failure()

    async def wait_empty(self) -> None:
        """Wait until nothing is unacknowledged."""
        await self._empty.wait()
        self._raise_failure()

    async def run(self) -> None:
        """Keep the connection up until closed; give up after too many tries without an acknowledgement."""
        tries, acknowledged = 0, 0
        while self.failure is None:
            try:
                await self._open()
                await self._watch()
            except (OSError, TimeoutError) as error:
                _log.info("bulk_connection_lost", client_id=self.name, reason=str(error) or type(error).__name__)
            self._drop()
            tries = 1 if self.acknowledged > acknowledged else tries + 1
            acknowledged = self.acknowledged
            if self.failure is None and tries >= TRIES_MAX:
                self._give_up(
                    BrokerUnreachable(f"broker: expected an answer in {TRIES_MAX} tries, got none, {self.name}")
                )
            if self.failure is None:
                await asyncio.sleep(min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** (tries - 1)))

    def close(self) -> None:
        """Say goodbye, if there is anyone to say it to, and close the connection."""
        if self._transport is not None and self._in_session:
            self._flush()
            self._transport.write(_DISCONNECT)
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Count acknowledgements; open the session on CONNACK."""
        self._inbound += data
        try:
            packets = take_packets(self._inbound)
        except Malformed:
            self._lost.set()
            return
        for first, body in packets:
            if first & 0xF0 == _PUBACK and len(body) >= 2:
                if self._unacked.pop(body[0] << 8 | body[1], None) is not None:
                    self.acknowledged += 1
            elif first & 0xF0 == _CONNACK:
                self._begin(body)
        if len(self._unacked) <= WINDOW_MESSAGES // 2:
            self._room.set()
        if not self._unacked:
            self._empty.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let `run` open another connection."""
        self._in_session = False
        self._lost.set()

    async def _open(self) -> None:
        self._lost.clear()
        self._session.clear()
        async with asyncio.timeout(CONNECT_S_MAX):
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
            self._transport.write(self._connect)
            await self._session.wait()

    async def _watch(self) -> None:
        """Wait for the end of the connection; end it when acknowledgements stop coming."""
        while self.failure is None:
            acknowledged, waiting = self.acknowledged, bool(self._unacked)
            try:
                async with asyncio.timeout(ACK_S_MAX):
                    await self._lost.wait()
                    raise ConnectionResetError("closed by the broker")
            except TimeoutError:
                if waiting and self.acknowledged == acknowledged:
                    raise

    def _begin(self, connack: bytes) -> None:
        if len(connack) != 2 or connack[1] != 0:
            code = connack[1] if len(connack) == 2 else -1
            self._give_up(BrokerRefused(f"CONNACK: expected code 0, got {code}, {self.name}"))
        else:
            self.republished += len(self._unacked) if self._settled.is_set() else 0
            for frame in self._unacked.values():
                self._write(bytes((frame[0] | _DUP,)) + frame[1:])
            self._in_session = True
        self._settled.set()
        self._session.set()

    def _give_up(self, failure: FleetError) -> None:
        self.failure = failure
        for event in (self._settled, self._session, self._room, self._empty, self._lost):
            event.set()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _drop(self) -> None:
        self._in_session = False
        self._inbound.clear()
        self._outbound.clear()
        self._outbound_bytes = 0
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _write(self, frame: bytes) -> None:
        if not self._outbound:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbound.append(frame)
        self._outbound_bytes += len(frame)
        if self._outbound_bytes >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._outbound and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outbound))
        self._outbound.clear()
        self._outbound_bytes = 0


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2) + encoded


def _length(count: int) -> bytes:
    encoded = bytearray()
    while True:
        count, low = divmod(count, 0x80)
        encoded.append(low | (0x80 if count else 0))
        if not count:
            return bytes(encoded)


def _long_length(buffer: bytearray, start: int) -> tuple[int, int] | None:
    length = 0
    for index in range(_LENGTH_BYTES_MAX):
        if start + index >= len(buffer):
            return None
        byte = buffer[start + index]
        length |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return length, start + index + 1
    raise Malformed(f"MQTT length: expected at most {_LENGTH_BYTES_MAX} bytes, got more, broker")
