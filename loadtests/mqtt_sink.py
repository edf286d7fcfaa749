"""A broker that does nothing: takes connections and publishes, acknowledges each at once, and forgets it.

Stage: beside the flood, in a process of its own, to learn how fast the flood is when nobody holds it up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final, cast

import uvloop

from loadtests.scratch import BenchError
from prepaid.embedded.process import LOOPBACK

START_S_MAX: Final = 30.0
STOP_S_MAX: Final = 10.0
_BACKLOG: Final = 4_096
_CONNECT: Final = 0x10
_PUBLISH: Final = 0x30
_CONNACK: Final = b"\x20\x02\x00\x00"


@contextmanager
def null_sink() -> Iterator[int]:
    """Run a sink for as long as the context lasts; yield its port on loopback.

    Raises: BenchError.
    """
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    child = processes.Process(target=serve_until_closed, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(START_S_MAX):
            raise BenchError(f"bench: expected the sink to listen within {START_S_MAX:.0f} s, got no answer")
        yield ours.recv()
    finally:
        ours.close()
        child.join(STOP_S_MAX)


def serve_until_closed(pipe: Connection) -> None:
    """Serve until the parent closes the pipe or is gone: the main function of the sink's process."""
    uvloop.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    server = await loop.create_server(_Sink, LOOPBACK, 0, family=socket.AF_INET, backlog=_BACKLOG)
    pipe.send(server.sockets[0].getsockname()[1])
    loop.add_reader(pipe.fileno(), over.set)
    await over.wait()
    server.close()


class _Sink(asyncio.Protocol):
    """One connection: each publish is answered, all else is taken in silence."""

    def __init__(self) -> None:
        self._inbound = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep whom to answer."""
        # uvloop's transports are written to, without being of asyncio's class.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        inbound, at, answers = self._inbound + data, 0, []
        while at + 2 <= len(inbound):
            length, body = inbound[at + 1] & 0x7F, at + 2
            if inbound[at + 1] & 0x80:
                # A publish of the benchmark is shorter than 16,384 bytes.
                if body >= len(inbound):
                    break
                length, body = length | inbound[body] << 7, body + 1
            if body + length > len(inbound):
                break
            kind = inbound[at] & 0xF0
            if kind == _PUBLISH:
                packet_id = body + 2 + (inbound[body] << 8 | inbound[body + 1])
                answers.append(b"\x40\x02" + inbound[packet_id : packet_id + 2])
            elif kind == _CONNECT:
                answers.append(_CONNACK)
            at = body + length
        self._inbound = inbound[at:]
        if answers and self._transport is not None:
            self._transport.write(b"".join(answers))
