"""Loopback TCP in front of a server, that can hold, slow or cut what goes through it; one kind reads PostgreSQL.

Stage: between a process under test and its server. What goes through is passed on unchanged, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 65_536
# A slow link passes on so much at a time: half an ordinary reading.
SLOW_CHUNK_BYTES = 64


class Link:
    """One client's connection through a proxy, and what is known of its conversation."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers = (client, server)
        self.begun = False
        self.inside = False
        self.wrote = False
        self.committed = False
        self.unread = {True: bytearray(), False: bytearray()}

    def cut(self) -> None:
        """Reset both ends: nothing more arrives, not even what was sent."""
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Stands in front of a port of loopback, on a port of its own.

    Invariants: while held, connections stay open and nothing passes; `cuts` and `delayed` count what was done.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._serving: set[asyncio.Task[None]] = set()
        self.links: set[Link] = set()
        self.delay_s = 0.0
        self.bytes_per_s: int | None = None
        self.cuts = self.delayed = self.passed_bytes = 0

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None, "a proxy listens in its context"
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self) -> None:
        """Let nothing through from now on, without a word to anybody."""
        self._flowing.clear()

    def release(self) -> None:
        """Let everything through again, what was held first."""
        self._flowing.set()

    def cut_all(self) -> None:
        """Reset every connection."""
        for link in list(self.links):
            self.cuts += 1
            link.cut()

    def pass_on(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        """Return what to pass on of some bytes."""
        return data

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "a proxy listens in its context"
        self._server.close()
        for link in list(self.links):
            link.cut()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own, and not the one that the server made for us: ours is ended with the proxy.
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server_writer)
        self.links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, reader, server_writer, to_server=True)),
            asyncio.create_task(self._pump(link, server_reader, writer, to_server=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.cut()
            self.links.discard(link)

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES if self.bytes_per_s is None else SLOW_CHUNK_BYTES):
                await self._flowing.wait()
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                if self.delay_s and not to_server:
                    await asyncio.sleep(self.delay_s)
                    self.delayed += 1
                self.passed_bytes += len(data)
                writer.write(self.pass_on(link, data, to_server=to_server))
                await writer.drain()


class PostgresProxy(Proxy):
    """Reads the conversation of clients with PostgreSQL, and names the steps of their transactions.

    `at_step` is called, before the client learns of it, with the name of each step that the server has taken inside a
    transaction: `answered`, `copy begun`, `copied`, `committed` (only where something was written), and `went on` when
    the client sends something after a commit. If it returns true, nothing more passes: the answer is lost.
    Source: PostgreSQL documentation, "Message Formats" of the frontend/backend protocol 3.
    """

    def __init__(self, database_url: str, at_step: Callable[[str], bool] = lambda _: False) -> None:
        self._url = urlsplit(database_url)
        super().__init__(self._url.port or 5432)
        self.at_step = at_step

    @property
    def database_url(self) -> str:
        """The address of the database through this proxy; without encryption, which could not be read."""
        login = (self._url.netloc.rpartition("@")[0] + "@") if "@" in self._url.netloc else ""
        plain = "sslmode=disable&gssencmode=disable"
        return urlunsplit(self._url._replace(netloc=f"{login}{LOOPBACK}:{self.port}", query=plain))

    def pass_on(self, link: Link, data: bytes, *, to_server: bool) -> bytes:
        """Pass on whole messages, up to the step at which the link is to be cut."""
        buffer = link.unread[to_server]
        buffer += data
        start = 0
        while (length := _message_length(buffer, start, typed=link.begun or not to_server)) is not None:
            if start + length > len(buffer):
                break
            kind, body = bytes(buffer[start : start + 1]), bytes(buffer[start + 5 : start + length])
            step = _sent(link) if to_server else _answered(link, kind, body)
            if step is not None and self.at_step(step):
                self.cuts += 1
                link.cut()
                return b""
            start += length
        passed = bytes(buffer[:start])
        del buffer[:start]
        return passed


def _message_length(buffer: bytearray, start: int, *, typed: bool) -> int | None:
    """Return how long the message is that begins here; None while that is not known."""
    head = 1 if typed else 0
    if len(buffer) < start + head + 4:
        return None
    return head + int.from_bytes(buffer[start + head : start + head + 4])


def _sent(link: Link) -> str | None:
    link.begun = True
    if link.committed:
        link.committed = False
        return "went on"
    return None


def _answered(link: Link, kind: bytes, body: bytes) -> str | None:
    if kind == b"G" and link.inside:
        return "copy begun"
    if kind == b"Z" and body == b"T":
        return "answered"
    if kind != b"C":
        return None
    tag = body.rstrip(b"\0")
    if tag == b"BEGIN":
        link.inside, link.wrote = True, False
    elif tag.startswith((b"COPY ", b"INSERT ")):
        link.wrote = link.inside
        return "copied" if link.inside and tag.startswith(b"COPY ") else None
    elif tag in (b"COMMIT", b"ROLLBACK"):
        link.inside = False
        link.committed = tag == b"COMMIT" and link.wrote
        return "committed" if link.committed else None
    return None
