"""A lean connection to a NATS server: what reading a stream needs, and nothing else.

Stage: below `headend.edges.stream`. Enters the addresses of one cluster; leaves deliveries of one inbox, by the
batch, in the order they came. Writes what it is given as it is. Speaks INFO, CONNECT, SUB, PING and PONG; parses with
`headend.nats_frames`. No TLS: a server that requires it is refused by name. Renews its connection for ever, on
whichever server of the cluster answers. Why not nats-py: decision 0015.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import structlog

from headend.nats_frames import Beat, Control, Delivered, FrameReader, Info, Refusal, status_of
from protocols.errors import Malformed

_PORT: Final = 4222  # The protocol's own.
_CONNECT_S_MAX: Final = 2.0  # One attempt, to the answered first PING.
_FIRST_CONNECT_S_MAX: Final = 15.0  # Seven attempts: a server that starts is met, one that is not there is told.
_ATTEMPT_EVERY_S: Final = 1.0  # Constant: one attempt a second a process, for as long as it runs.
_PING_EVERY_S: Final = 2.0
_SILENT_PINGS_MAX: Final = 3  # A frozen broker or a half-open connection is noticed in 6 s.
_WRITE_BYTES_MAX: Final = 16 * 2**20  # Acknowledgements of 150,000 messages while the broker is away.
_CLOSE_S_MAX: Final = 1.0
_NO_RESPONDERS: Final = "503"
_SHOWN_MAX: Final = 200

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of the cluster, and how to log in; user and password as they stand in the address."""

    host: str
    port: int
    user: str | None
    password: str | None

    @property
    def name(self) -> str:
        """Return host and port, for messages."""
        return f"{self.host}:{self.port}"


class TlsRequired(ConnectionError):
    """The server talks TLS only, which is not spoken here."""


class NatsWire:
    """One connection at a time to a cluster, subscribed to one inbox.

    Invariants: deliveries reach `arrived` in the order of the wire, all of a read at once; each connection has an
    inbox of its own, so that nothing asked for on an old one comes on a new one; what is written while no server
    answers is sent first on the next connection, up to `_WRITE_BYTES_MAX`, beyond it refused.
    """

    def __init__(
        self, nats_url: str, *, arrived: Callable[[list[Delivered]], None], reconnected: Callable[[], None]
    ) -> None:
        """Know the servers, of which `nats_url` may name several, with commas; then `open`.

        Raises: ConnectionError on what is no address, or one of TLS.
        """
        self._given = [parse_server(url) for url in nats_url.split(",")]
        self._discovered: list[Server] = []
        self._arrived = arrived
        self._reconnected = reconnected
        self._turn = 0
        self._attempt_at_s = -_ATTEMPT_EVERY_S
        self._connection: _Connection | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._number = 0
        self._asked = 0
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and stay connected until `close`.

        Raises: ConnectionError if no server answers, or one that requires TLS does.
        """
        error: OSError | TimeoutError | None = None
        try:
            async with asyncio.timeout(_FIRST_CONNECT_S_MAX):
                while (error := await self._attempt()) is not None:
                    if isinstance(error, TlsRequired):
                        raise error
        except TimeoutError:
            raise ConnectionError(f"no NATS server answers: {error!r}") from error
        self._keeper = asyncio.create_task(self._keep(), name="nats-wire")

    async def deafen(self, *, timeout_s: float) -> None:
        """Let nothing more be delivered; what was on its way when this was called has arrived when it returns.

        Raises: TimeoutError; ConnectionError.
        """
        self.write(b"UNSUB 1\r\n")
        await self.flush(timeout_s=timeout_s)

    async def close(self) -> None:
        """Send what was written, and be connected no more."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._connection is not None:
            await self._connection.close()

    @property
    def is_connected(self) -> bool:
        """Tell whether what is written now goes out now."""
        if self._keeper is not None and self._keeper.done():
            self._keeper.result()
        return self._connection is not None and not self._connection.lost.done()

    @property
    def inbox(self) -> str:
        """Name the inbox of the present connection: its subjects have one level more."""
        return f"{self._inbox}.{self._number}"

    def write(self, frames: bytes) -> None:
        """Send whole frames, or keep them for the next connection.

        Raises: ConnectionError if too much waits already; nothing of it is sent then.
        """
        connection = self._connection
        if connection is not None and not connection.lost.done():
            connection.write(frames)
            return
        if self._unsent_bytes + len(frames) > _WRITE_BYTES_MAX:
            raise ConnectionError(f"unsent: expected at most {_WRITE_BYTES_MAX} bytes, got {len(frames)} more")
        self._unsent.append(frames)
        self._unsent_bytes += len(frames)

    async def flush(self, *, timeout_s: float) -> None:
        """Wait until the server has read all that was written; at once while there is none.

        Raises: TimeoutError; ConnectionError if the connection ends meanwhile.
        """
        connection = self._connection
        if connection is not None and not connection.lost.done():
            async with asyncio.timeout(timeout_s):
                await connection.ping()

    async def request(self, subject: str, payload: bytes = b"", *, timeout_s: float) -> bytes:
        """Ask something of the server and return the answer's payload.

        Raises: TimeoutError; ConnectionError if there is no connection, or nobody to answer.
        """
        connection = self._connection
        if connection is None or connection.lost.done():
            raise ConnectionError("no NATS server answers")
        self._asked += 1
        reply = f"{self.inbox}.answer-{self._asked}".encode()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await connection.ask(subject.encode(), reply, payload)
        finally:
            connection.answers.pop(reply, None)
        if status_of(answer.header) == _NO_RESPONDERS:
            raise ConnectionError(f"nobody answers {subject}")
        return answer.payload

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            assert self._connection is not None, "connected before"
            await self._connection.watch()
            _log.info("stream_connection_lost", reason=self._connection.lost.result()[:_SHOWN_MAX])
            self._connection = None
            while await self._attempt() is not None:
                pass
            self._reconnected()

    async def _attempt(self) -> OSError | TimeoutError | None:
        """Try the next server, a second after the last attempt began; return what went wrong."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._attempt_at_s + _ATTEMPT_EVERY_S - loop.time())
        self._attempt_at_s = loop.time()
        servers = self._given + self._discovered
        server = servers[self._turn % len(servers)]
        self._turn += 1
        try:
            await self._open(server)
        except (OSError, TimeoutError) as error:
            _log.debug("stream_server_away", server=server.name, error=repr(error)[:_SHOWN_MAX])
            return error
        return None

    async def _open(self, server: Server) -> None:
        """Log in, subscribe, and send what has waited.

        Raises: OSError, TimeoutError.
        """
        self._number += 1
        connection = _Connection(self._arrived, lambda info: self._learn(server, info))
        try:
            async with asyncio.timeout(_CONNECT_S_MAX):
                await asyncio.get_running_loop().create_connection(lambda: connection, server.host, server.port)
                info = await connection.greeted()
                if info.tls_required:
                    raise TlsRequired(f"NATS server {server.name}: expected one without TLS, got one that requires it")
                connection.write(b"%bSUB %b.* 1\r\n" % (_log_in(server), self.inbox.encode()))
                await connection.ping()
        except BaseException:
            connection.drop("not connected")
            raise
        unsent = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        self._connection = connection
        if unsent:
            connection.write(unsent)

    def _learn(self, server: Server, info: Info) -> None:
        """Know the cluster's other servers, where we log in as on the one that named them."""
        known = {(each.host, each.port) for each in self._given}
        self._discovered = []
        for url in info.connect_urls:
            with suppress(ConnectionError):
                named = replace(parse_server(url), user=server.user, password=server.password)
                if (named.host, named.port) not in known:
                    self._discovered.append(named)


class _Connection(asyncio.Protocol):
    """One TCP connection, from its first byte to its last.

    Invariants: `lost` is set once, with the reason; nothing is delivered after it; every wait ends with it.
    """

    def __init__(self, arrived: Callable[[list[Delivered]], None], learn: Callable[[Info], None]) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.answers: dict[bytes, asyncio.Future[Delivered]] = {}
        self._arrived = arrived
        self._learn = learn
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._info: asyncio.Future[Info] = loop.create_future()
        # One entry for each PING on its way, None for those that nobody waits for.
        self._pings: deque[asyncio.Future[None] | None] = deque()
        self._refusal = ""
        self._reads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the server speaks first."""
        # A cast, since uvloop's transport of TCP has no base of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Deliver what is whole, obey the rest."""
        if self.lost.done():
            return
        self._reads += 1
        try:
            delivered, controls = self._frames.feed(data)
        except Malformed as error:
            self.drop(str(error))
            return
        for control in controls:
            self._obey(control)
        if self.answers and delivered:
            delivered = [each for each in delivered if not self._answered(each)]
        if delivered:
            self._arrived(delivered)

    def connection_lost(self, exc: Exception | None) -> None:
        """End every wait."""
        self._end(self._refusal or (str(exc) if exc is not None else "closed by the server"))

    def write(self, frames: bytes) -> None:
        """Send frames.

        Raises: ConnectionError if the server takes nothing and too much waits already.
        """
        assert self._transport is not None, "connected"
        waiting = self._transport.get_write_buffer_size()
        if waiting + len(frames) > _WRITE_BYTES_MAX:
            raise ConnectionError(f"unsent: expected at most {_WRITE_BYTES_MAX} bytes, got {waiting}")
        self._transport.write(frames)

    async def greeted(self) -> Info:
        """Wait for the server's first word.

        Raises: ConnectionError.
        """
        return await self._info

    async def ping(self) -> None:
        """Wait until the server has read what was written.

        Raises: ConnectionError.
        """
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.write(b"PING\r\n")
        self._pings.append(answered)
        await answered

    async def ask(self, subject: bytes, reply: bytes, payload: bytes) -> Delivered:
        """Publish a request and wait for its answer.

        Raises: ConnectionError.
        """
        answer: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        self.answers[reply] = answer
        self.write(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))
        return await answer

    async def watch(self) -> None:
        """Wait for the end of the connection; end it when nothing is heard any more."""
        silent, heard = 0, -1
        while not self.lost.done():
            await asyncio.wait({self.lost}, timeout=_PING_EVERY_S)
            silent = silent + 1 if self._reads == heard else 0
            heard = self._reads
            if silent >= _SILENT_PINGS_MAX:
                self.drop("the server does not answer")
            elif not self.lost.done():
                self._send(b"PING\r\n")
                self._pings.append(None)

    async def close(self) -> None:
        """Send what was written, then hang up."""
        if self._transport is not None:
            self._transport.close()
            await asyncio.wait({self.lost}, timeout=_CLOSE_S_MAX)
        self.drop("closed")

    def drop(self, reason: str) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _obey(self, control: Control) -> None:
        if isinstance(control, Info):
            self._frames.limit_payloads(control.max_payload)
            self._learn(control)
            if not self._info.done():
                self._info.set_result(control)
        elif isinstance(control, Refusal):
            # The server closes the connection where it means it; whoever waits is told this as the reason.
            _log.warning("stream_refused", detail=control.text[:_SHOWN_MAX])
            self._refusal = control.text
        elif control is Beat.PING:
            self._send(b"PONG\r\n")
        elif self._pings:
            answered = self._pings.popleft()
            if answered is not None and not answered.done():
                answered.set_result(None)

    def _answered(self, each: Delivered) -> bool:
        """Give an answer to who has asked for it; tell whether it was one."""
        answer = self.answers.pop(each.subject, None)
        if answer is not None and not answer.done():
            answer.set_result(each)
        return answer is not None

    def _send(self, frame: bytes) -> None:
        assert self._transport is not None, "connected"
        self._transport.write(frame)

    def _end(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        for waiting in (self._info, *self._pings, *self.answers.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionError(reason))
                waiting.exception()  # Seen: who waits is told, and where nobody does, nobody has to be.


def parse_server(url: str) -> Server:
    """Read `nats://user:password@host:port`, of which all but the host may be left out; a user alone is a token.

    Raises: ConnectionError on what is no such address, or asks for what is not spoken here.
    Source: the same address as nats-py 2.16 reads it, which takes user and password as they stand.
    """
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise ConnectionError(f"NATS address: expected nats://host:port, got one with {error}") from error
    if parts.scheme != "nats" or not host:
        raise ConnectionError(f"NATS address: expected nats://host:port without TLS, got {parts.scheme}://{host}")
    return Server(host=host, port=port, user=parts.username, password=parts.password)


def _log_in(server: Server) -> bytes:
    options: dict[str, object] = {
        "verbose": False,
        "pedantic": False,
        "lang": "python",
        "version": "1",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
        "name": "stream-reader",
    }
    if server.user is not None and server.password is None:
        options["auth_token"] = server.user
    elif server.user is not None:
        options |= {"user": server.user, "pass": server.password}
    return b"CONNECT %b\r\n" % msgspec.json.encode(options)
