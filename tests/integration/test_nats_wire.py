"""The lean connection to a broker, against servers that do what a real one does only at bad times."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from headend.edges import nats_wire
from headend.edges.nats_wire import NatsWire, TlsRequired, parse_server
from headend.nats_frames import Delivered

WAIT_S = 20.0
Story = Callable[["Peer"], Awaitable[None]]


@dataclass(slots=True)
class Peer:
    """One connection as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def greet(self, **info: object) -> None:
        """Say who we are."""
        self.writer.write(f"INFO {json.dumps({'max_payload': 1000, **info})} \r\n".encode())

    async def line(self) -> bytes:
        """Read one line."""
        return (await self.reader.readline()).removesuffix(b"\r\n")

    async def log_in(self, **info: object) -> tuple[dict[str, object], str]:
        """Greet, take the log-in and the subscription; return both, the latter as the inbox."""
        await self.greet(**info)
        connect, subscribe, ping = [await self.line() for _ in range(3)]
        assert connect.startswith(b"CONNECT ")
        assert ping == b"PING"
        self.writer.write(b"PONG\r\n")
        return json.loads(connect.removeprefix(b"CONNECT ")), subscribe.split(b" ")[1].decode()


@dataclass(slots=True)
class Seen:
    """What the connection's owner is told."""

    delivered: asyncio.Queue[Delivered] = field(default_factory=asyncio.Queue)
    reconnected: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def serving(*stories: Story) -> AsyncIterator[str]:
    """Tell each connection the next story, the last one to all that follow; fail with what fails in one."""
    left = list(stories)
    failures: list[Exception] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await (left.pop(0) if len(left) > 1 else left[0])(Peer(reader, writer))
        except (AssertionError, ValueError, OSError) as error:  # The test is told below.
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        assert failures == []


@asynccontextmanager
async def connected(nats_url: str) -> AsyncIterator[tuple[NatsWire, Seen]]:
    """Be connected; every test ends within a time."""
    seen = Seen()

    def arrived(delivered: list[Delivered]) -> None:
        for each in delivered:
            seen.delivered.put_nowait(each)

    wire = NatsWire(nats_url, arrived=arrived, reconnected=seen.reconnected.set)
    async with asyncio.timeout(WAIT_S):
        await wire.open()
        try:
            yield wire, seen
        finally:
            await wire.close()


async def stay(peer: Peer) -> None:
    """Log in and answer every PING until the other side hangs up."""
    await peer.log_in()
    while line := await peer.line():
        if line == b"PING":
            peer.writer.write(b"PONG\r\n")


def test_server_that_requires_tls_is_refused_by_name() -> None:
    """What is not spoken is said at once, not found out by waiting."""

    async def story() -> None:
        async with serving(lambda peer: peer.greet(tls_required=True)) as address:
            with pytest.raises(TlsRequired, match=rf"{address}.*TLS"):
                async with connected(address):
                    pass

    asyncio.run(story())


@pytest.mark.parametrize("url", ["tls://broker:4222", "ws://broker", "nats://", "nats://broker:x", "nats://[::1"])
def test_address_that_cannot_be_spoken_to_is_refused(url: str) -> None:
    """An address of another kind is refused before anything is opened."""
    with pytest.raises(ConnectionError, match="NATS address: expected"):
        parse_server(url)


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ("", {}),
        ("ann:s3cret@", {"user": "ann", "pass": "s3cret"}),
        ("t0ken@", {"auth_token": "t0ken"}),
    ],
)
def test_login_is_what_the_address_says(login: str, expected: dict[str, str]) -> None:
    """User and password, or a token, go into the log-in, and nothing where the address has none."""
    logins: list[dict[str, object]] = []

    async def note(peer: Peer) -> None:
        logins.append((await peer.log_in())[0])

    async def story() -> None:
        async with serving(note) as address, connected(f"nats://{login}{address}"):
            pass

    asyncio.run(story())
    secrets = {name: value for name, value in logins[0].items() if name in ("user", "pass", "auth_token")}
    assert secrets == expected
    assert (logins[0]["verbose"], logins[0]["headers"], logins[0]["no_responders"]) == (False, True, True)


def test_refused_login_is_told_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot log in is told what the server said, when all tries are over."""
    monkeypatch.setattr(nats_wire, "_FIRST_CONNECT_S_MAX", 0.5)

    async def refuse(peer: Peer) -> None:
        await peer.greet()
        await peer.line()
        peer.writer.write(b"-ERR 'Authorization Violation'\r\n")

    async def story() -> None:
        async with serving(refuse) as address:
            with pytest.raises(ConnectionError, match="Authorization Violation"):
                async with connected(address):
                    pass

    asyncio.run(story())


def test_malformed_bytes_end_the_connection_and_the_next_one_has_an_inbox_of_its_own() -> None:
    """Nothing asked for on a lost connection comes on the next; what was written between them goes first there."""
    inboxes: list[str] = []
    broken = asyncio.Event()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def break_off(peer: Peer) -> None:
        _, inbox = await peer.log_in()
        inboxes.append(inbox)
        peer.writer.write(b"MSG good 1 2\r\nhi\r\n")
        await broken.wait()
        peer.writer.write(b"MSG bad 1 x\r\n")
        while await peer.line():
            pass

    async def go_on(peer: Peer) -> None:
        _, inbox = await peer.log_in()
        inboxes.append(inbox)
        lines.put_nowait(await peer.line())
        peer.writer.write(f"MSG {inbox} 1 1\r\n!\r\n".encode())
        while await peer.line():
            pass

    async def story() -> None:
        async with serving(break_off, go_on) as address, connected(address) as (wire, seen):
            assert (await seen.delivered.get()).payload == b"hi"
            broken.set()
            with pytest.raises(ConnectionError, match="NATS delivery: expected"):
                await wire.flush(timeout_s=WAIT_S)
            assert not wire.is_connected
            wire.write(b"PUB acked 0\r\n")
            await seen.reconnected.wait()
            assert await lines.get() == b"PUB acked 0"
            assert (await seen.delivered.get()).payload == b"!"

    asyncio.run(story())
    assert len(set(inboxes)) == 2


def test_server_of_the_cluster_that_was_never_named_takes_over() -> None:
    """The servers of a cluster are learned from the one that is known, and logged in to as to that one."""
    logins: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def take_over(peer: Peer) -> None:
        login, _ = await peer.log_in()
        logins.put_nowait(login)
        while await peer.line():
            pass

    async def story() -> None:
        async with serving(take_over) as other:

            async def name_other(peer: Peer) -> None:
                await peer.log_in(connect_urls=["broken:port", other])

            async with serving(name_other) as address, connected(f"ann:s3cret@{address}") as (_, seen):
                await seen.reconnected.wait()
        login = await logins.get()
        assert (login["user"], login["pass"]) == ("ann", "s3cret")

    asyncio.run(story())


def test_server_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is frozen, or a connection that is half open, is given up although nothing says so."""
    monkeypatch.setattr(nats_wire, "_PING_EVERY_S", 0.05)
    released = asyncio.Event()

    async def freeze(peer: Peer) -> None:
        await peer.log_in()
        await released.wait()

    async def story() -> None:
        async with serving(freeze, stay) as address, connected(address) as (wire, seen):
            waiting = asyncio.create_task(wire.flush(timeout_s=WAIT_S))
            await seen.reconnected.wait()
            with pytest.raises(ConnectionError, match="does not answer"):
                await waiting
            released.set()
            await wire.flush(timeout_s=WAIT_S)

    asyncio.run(story())


def test_server_that_asks_for_a_sign_of_life_gets_it() -> None:
    """A PING of the server is answered, or it would hang up."""
    answered = asyncio.Event()

    async def ask(peer: Peer) -> None:
        await peer.log_in()
        peer.writer.write(b"PING\r\n")
        assert await peer.line() == b"PONG"
        answered.set()
        await peer.line()

    async def story() -> None:
        async with serving(ask) as address, connected(address):
            await answered.wait()

    asyncio.run(story())


def test_request_that_nobody_answers_is_told_so() -> None:
    """A server without the service says so by a status, which is no answer."""

    async def deny(peer: Peer) -> None:
        await peer.log_in()
        _, _, reply, _ = (await peer.line()).split(b" ")
        peer.writer.write(b"HMSG %b 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % reply)
        while await peer.line():
            pass

    async def story() -> None:
        async with serving(deny) as address, connected(address) as (wire, seen):
            with pytest.raises(ConnectionError, match="nobody answers"):
                await wire.request("$JS.API.INFO", timeout_s=WAIT_S)
            assert seen.delivered.empty()

    asyncio.run(story())


def test_what_waits_for_a_server_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no server reads, what is to be sent is kept up to a limit and refused beyond it."""
    monkeypatch.setattr(nats_wire, "_WRITE_BYTES_MAX", 10)

    async def story() -> None:
        wire = NatsWire("127.0.0.1:1", arrived=lambda _: None, reconnected=lambda: None)
        wire.write(b"123456")
        with pytest.raises(ConnectionError, match="at most 10 bytes"):
            wire.write(b"12345")
        wire.write(b"1234")

    asyncio.run(story())
