"""A simulated security module on a line, TCP or a serial port, that can fail as such modules do.

Stage: test peer and demonstration. Enters: requests. Leaves: answers, or what a fault makes of them. Never: a key on
the line or in a log.

As behind a serial server, the module has one line: answers go to the connection opened last, also those to requests of
an earlier one. Held-back answers go out around the next answer, not after a time, so that a test says exactly what
overtakes what.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Self

from meter_sim.security_module import BUSY_LINE, SimulatedModule, with_crc

LOOPBACK = "127.0.0.1"
# A request has some hundred characters.
_REQUEST_BYTES_MAX = 1024
_END = b"\r"


class Fault(Enum):
    """What becomes of one request and its answer."""

    NONE = auto()
    BUSY = auto()
    SILENT = auto()
    GARBAGE = auto()
    DAMAGED = auto()
    HALF = auto()
    CUT = auto()
    LATE = auto()
    OVERTAKEN = auto()
    TWICE = auto()
    TWICE_LATE = auto()
    OTHER_REGISTER = auto()


class ModuleServer:
    """A module that listens on a port of loopback.

    Invariants: `asked` counts the requests of each kind that arrived, `opened` the connections; a request is answered
    before the next is read.
    """

    def __init__(self, module: SimulatedModule, *, fault_of: Callable[[str], Fault] = lambda request: Fault.NONE):
        self.module = module
        self.fault_of = fault_of
        self.asked: list[str] = []
        self.opened = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._before: list[bytes] = []
        self._after: list[bytes] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._arrived = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None, "the module listens in its context"
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self) -> None:
        """Answer nothing until released: a slow module."""
        self._flowing.clear()

    def release(self) -> None:
        """Answer what was held, and everything after it."""
        self._flowing.set()

    async def until_asked(self, requests: int) -> None:
        """Return when so many requests have arrived in all, held ones too."""
        while len(self.asked) < requests:
            self._arrived.clear()
            await self._arrived.wait()

    async def listen(self, port: int = 0) -> None:
        """Listen; port 0 is any free one."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, port, limit=_REQUEST_BYTES_MAX)

    async def stop(self) -> None:
        """Close the port and cut every connection, as a module that loses its power."""
        assert self._server is not None, "the module listens in its context"
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers = []
        self._flowing.set()
        await asyncio.gather(*self._serving)
        await self._server.wait_closed()

    async def serve_forever(self) -> None:
        """Listen until cancelled."""
        assert self._server is not None, "the module listens in its context"
        await self._server.serve_forever()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is served by a task of its own"
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.opened += 1
        self._writers.append(writer)
        try:
            while True:
                request = (await reader.readuntil(_END)).decode("ascii", "replace").rstrip("\r")
                self.note(request)
                await self._flowing.wait()
                for data in self.replies(request):
                    self._writers[-1].write(data)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, IndexError):
            pass
        finally:
            if writer in self._writers:
                self._writers.remove(writer)
            writer.transport.abort()

    def note(self, request: str) -> None:
        """Count a request that arrived."""
        self.asked.append(request[:5])
        self._arrived.set()

    def replies(self, request: str) -> list[bytes]:
        """Return what goes on the line after one request.

        Raises: ConnectionResetError for a cut.
        """
        fault = self.fault_of(request)
        if fault is Fault.BUSY:
            return [with_crc(BUSY_LINE).encode() + _END]
        if fault is Fault.OTHER_REGISTER:
            request = self._with_other_register(request)
        reply = self.module.answer(request).encode() + _END
        if fault is Fault.CUT:
            raise ConnectionResetError
        now, before, after = _split(fault, reply)
        sent = [*self._before, *now, *self._after] if now else []
        if now:
            self._before, self._after = [], []
        self._before += before
        self._after += after
        return sent

    def _with_other_register(self, request: str) -> str:
        """Return a request as if it named another register; one that reads a token stays as it is.

        A module that minted and read under the same wrong key would be one that holds it there.
        """
        header, fields = request[:5], request[5:-4].split("~")
        if header == "SM?VT" or not fields[0].startswith("N"):
            return request
        others = [number for number in self.module.registers if fields[0] != f"N{number}"]
        return with_crc(header + "~".join([f"N{others[0]}", *fields[1:]])) if others else request


def _split(fault: Fault, reply: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return what goes out now, before the next answer, and after it."""
    match fault:
        case Fault.SILENT:
            return [], [], []
        case Fault.GARBAGE:
            return [b"\x00\xff~~GL!\x07" + _END], [], []
        case Fault.DAMAGED:
            return [reply[:9] + bytes([reply[9] ^ 1]) + reply[10:]], [], []
        case Fault.HALF:
            return [reply[: len(reply) // 2]], [], []
        case Fault.LATE:
            return [], [reply], []
        case Fault.OVERTAKEN:
            return [], [], [reply]
        case Fault.TWICE:
            return [reply + reply], [], []
        case Fault.TWICE_LATE:
            return [reply], [reply], []
        case _:
            return [reply], [], []


class SerialModule:
    """The same module at the far end of a serial port that is open already.

    Invariants: `server.fault_of` makes its faults; a cut is silence, since a serial line has no end.
    """

    def __init__(self, server: ModuleServer, fd: int) -> None:
        self._server = server
        self._fd = fd
        self._unread = b""

    def __enter__(self) -> Self:
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self._read_ready)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    def _read_ready(self) -> None:
        self._unread += os.read(self._fd, _REQUEST_BYTES_MAX)
        while _END in self._unread:
            request, _, self._unread = self._unread.partition(_END)
            text = request.decode("ascii", "replace")
            self._server.note(text)
            try:
                replies = self._server.replies(text)
            except ConnectionResetError:
                continue
            for data in replies:
                os.write(self._fd, data)
