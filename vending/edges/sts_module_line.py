"""The line to a hardware security module: TCP or a serial port, cut into lines of text.

Stage: below the client of the module. Enters: bytes to send. Leaves: lines as they came, without their end. Never:
what a line means, a retry, a time-out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
import tty
from typing import Protocol, cast

from vending.sts_module_messages import LINE_BYTES_MAX, LINE_END
from vending.sts_module_settings import ModuleAddress, SerialAddress, TcpAddress

# A reply is one line; several that nobody asked for mean a module that talks nonsense.
_UNREAD_BYTES_MAX = 16 * LINE_BYTES_MAX
_READ_BYTES = 4096


class LineBroken(OSError):
    """The other end closed the line, or sent far more than a reply."""


class ModuleLine(Protocol):
    """A line that can be opened again and again; one conversation at a time."""

    @property
    def has_unread(self) -> bool:
        """Whether anything came that nobody has read."""
        ...

    async def open(self) -> None:
        """Open the line with nothing unread. Raises: OSError."""
        ...

    async def send(self, data: bytes) -> None:
        """Send bytes. Raises: OSError."""
        ...

    async def receive(self) -> bytes:
        """Wait for a whole line and return it without its end. Raises: OSError."""
        ...

    def close(self) -> None:
        """Close the line; what was unread is gone. May be called at any time."""
        ...


def line_to(address: ModuleAddress) -> ModuleLine:
    """Return the line to an address, not yet open."""
    return TcpLine(address) if isinstance(address, TcpAddress) else SerialLine(address)


class TcpLine:
    """A line over TCP."""

    def __init__(self, address: TcpAddress) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._unread = _Unread()

    @property
    def has_unread(self) -> bool:
        """Whether anything came that nobody has read."""
        return self._unread.is_any

    async def open(self) -> None:
        """Connect. Raises: OSError."""
        self.close()
        unread = self._unread = _Unread()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(
            lambda: _Receiver(unread), self._address.host, self._address.port
        )

    async def send(self, data: bytes) -> None:
        """Hand bytes to the system. Raises: LineBroken."""
        if self._transport is None or self._transport.is_closing():
            raise LineBroken("module's line: expected an open one, got a closed one")
        # A request has some hundred bytes and waits for its answer: nothing can pile up here.
        self._transport.write(data)

    async def receive(self) -> bytes:
        """Wait for a line. Raises: LineBroken."""
        return await self._unread.take_line()

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._unread.fail()


class SerialLine:
    """A line over a serial port, set to raw, 8 data bits, no parity, one stop bit, no flow control."""

    def __init__(self, address: SerialAddress) -> None:
        self._address = address
        self._fd: int | None = None
        self._unread = _Unread()

    @property
    def has_unread(self) -> bool:
        """Whether anything came that nobody has read."""
        return self._unread.is_any

    async def open(self) -> None:
        """Open the port. Raises: OSError, also where another process of ours has it open."""
        self.close()
        self._unread = _Unread()
        fd = os.open(self._address.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            # Two that ask at once would read each other's answers.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _set_raw(fd, self._address.baud)
        except termios.error as error:
            os.close(fd)
            raise OSError(f"serial port {self._address.path}: expected a terminal line, got none") from error
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._read_ready, fd, self._unread)

    async def send(self, data: bytes) -> None:
        """Hand bytes to the system. Raises: OSError; one that is full means a port that does not send."""
        if self._fd is None:
            raise LineBroken("module's line: expected an open one, got a closed one")
        if os.write(self._fd, data) != len(data):
            raise LineBroken("module's line: expected room for one request, got less")

    async def receive(self) -> bytes:
        """Wait for a line. Raises: OSError."""
        return await self._unread.take_line()

    def close(self) -> None:
        """Close the port and drop what it still held."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        self._unread.fail()

    def _read_ready(self, fd: int, unread: _Unread) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            unread.feed(data)
        else:
            asyncio.get_running_loop().remove_reader(fd)
            unread.fail()


class _Unread:
    """What came and was not read yet.

    Invariants: bounded; after `fail` whole lines can still be read, then LineBroken.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._broken = False
        self._news = asyncio.Event()

    @property
    def is_any(self) -> bool:
        return bool(self._bytes)

    def feed(self, data: bytes) -> None:
        if len(self._bytes) + len(data) > _UNREAD_BYTES_MAX:
            self._broken = True
        else:
            self._bytes += data
        self._news.set()

    def fail(self) -> None:
        self._broken = True
        self._news.set()

    async def take_line(self) -> bytes:
        while (end := self._bytes.find(LINE_END)) < 0:
            if self._broken or len(self._bytes) > LINE_BYTES_MAX:
                raise LineBroken("module's line: expected a whole line, got none")
            self._news.clear()
            await self._news.wait()
        line = bytes(self._bytes[:end])
        del self._bytes[: end + len(LINE_END)]
        return line


class _Receiver(asyncio.Protocol):
    def __init__(self, unread: _Unread) -> None:
        self._unread = unread

    def data_received(self, data: bytes) -> None:
        self._unread.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.fail()


def _set_raw(fd: int, baud: int) -> None:
    """Set a port to bytes as they are, and drop what it holds from before."""
    tty.setraw(fd, termios.TCSANOW)
    iflag, oflag, cflag, lflag, _, _, cc = termios.tcgetattr(fd)
    cflag &= ~(termios.PARENB | termios.CSTOPB | termios.CSIZE | termios.CRTSCTS)
    cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
    iflag &= ~(termios.IXON | termios.IXOFF)
    speed = cast(int, getattr(termios, f"B{baud}"))
    termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, speed, speed, cc])
    termios.tcflush(fd, termios.TCIOFLUSH)
