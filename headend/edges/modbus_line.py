"""A Modbus line: one session to whatever stands at its end, one request on it at a time.

Stage: the socket or serial port below a gateway's polls. Requests of `protocols.modbus.frames` go out, the answer to
each comes back or its time-out; what comes too late or belongs to nothing is thrown away and counted. A line that goes
away is opened again and again, by one loop. Knows no register and no meter.

On TCP an answer is known by its transaction. RTU has none: there an answer of the same unit, function and length that
comes after its time-out could be taken for the next one's. So nothing more is asked of a meter right after a time-out:
its poll ends, and it is asked again `headend.polling.BACKOFF_S_FIRST` later at the earliest.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
import tty
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, cast

from protocols.modbus.frames import Deframer, Framing, answer_bytes, read_pdu, wrap

# A gateway in the next street answers within a second; a dead address must not hold the line's other chances.
CONNECT_S_MAX: Final = 5.0
# Five requests in a row without any answer: on TCP the connection may be dead and not know it; a new one costs little.
SILENT_REQUESTS_MAX: Final = 5
_READ_BYTES: Final = 4_096


class LineError(Exception):
    """Base of what goes wrong on a line; `code` is stable."""

    code: ClassVar[str] = "line_error"


class LineLost(LineError):
    """The line is away; whatever was asked may or may not have been done."""

    code: ClassVar[str] = "line_lost"


class NoAnswer(LineError):
    """No answer came in time; whatever was asked may or may not have been done."""

    code: ClassVar[str] = "no_answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAddress:
    """Where a line is and how it is spoken to.

    Invariants: either `host` and `port`, or `device`, `baud` and `parity`.
    """

    framing: Framing
    timeout_s: float
    host: str | None = None
    port: int | None = None
    device: str | None = None
    baud: int | None = None
    parity: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A read, ready to go out: its request and the length of the answer's PDU."""

    pdu: bytes
    answer_bytes: int

    @classmethod
    def of(cls, function: int, address: int, count: int) -> Read:
        """Make the read of so many words or bits."""
        return cls(pdu=read_pdu(function, address, count), answer_bytes=answer_bytes(function, count))


class LineSession(asyncio.Protocol):
    """One connection.

    Invariants: one request is awaited at a time; once `lost` it stays so.
    """

    def __init__(self, address: LineAddress, on_lost: Callable[[], None], on_stray: Callable[[int], None]) -> None:
        self.lost = False
        self._timeout_s = address.timeout_s
        self._framing = address.framing
        self._is_tcp = address.framing is Framing.TCP
        self._deframer = Deframer(address.framing)
        self._on_lost = on_lost
        self._on_stray = on_stray
        self._loop = asyncio.get_running_loop()
        self._write: Callable[[bytes], object] = _unopened
        self._close: Callable[[], object] = _nothing
        self._transaction = 0
        self._waiter: asyncio.Future[bytes] | None = None
        self._awaited = (0, 0)
        self._silent = 0
        self._heard: set[int] = set()
        self._strayed = 0

    async def ask(self, unit: int, pdu: bytes, length: int) -> bytes:
        """Send a request and return the PDU of its answer, an exception's included.

        Raises: NoAnswer after the line's time-out; LineLost.
        """
        if self.lost:
            raise LineLost("line: expected it up, got none")
        self._transaction = transaction = (self._transaction + 1) & 0xFFFF
        if not self._is_tcp:
            self._deframer.expect(unit, pdu[0], length)
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        self._waiter, self._awaited = waiter, (unit, pdu[0])
        timer = self._loop.call_later(self._timeout_s, self._expire, waiter, unit)
        try:
            self._write(wrap(self._framing, unit, transaction, pdu))
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def opened_by(self, write: Callable[[bytes], object], close: Callable[[], object]) -> None:
        """Take what the port under the line is written and closed by."""
        self._write, self._close = write, close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        # A cast, since uvloop's transport of TCP has no base of asyncio's.
        stream = cast(asyncio.Transport, transport)
        self.opened_by(stream.write, stream.abort)

    def data_received(self, data: bytes) -> None:
        """Find the awaited answer in what came."""
        waiter = self._waiter
        for frame in self._deframer.feed(data):
            fits = frame.transaction is None or frame.transaction == self._transaction
            if fits and waiter and not waiter.done() and (frame.unit, frame.pdu[0] & 0x7F) == self._awaited:
                self._silent = 0
                self._heard.add(frame.unit)
                waiter.set_result(frame.pdu)
            else:
                self._on_stray(len(frame.pdu))
        if self._deframer.dropped != self._strayed:
            self._on_stray(self._deframer.dropped - self._strayed)
            self._strayed = self._deframer.dropped

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is awaited, and let the line be opened again."""
        self.lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(LineLost(f"line: expected an answer, got {exc or 'its end'}"))
        self._on_lost()

    def close(self) -> None:
        """End the connection."""
        self.lost = True
        self._close()

    def _expire(self, waiter: asyncio.Future[bytes], unit: int) -> None:
        if waiter.done():
            return
        # A row of meters that never answered says nothing about the connection on which others do.
        self._silent += unit in self._heard or not self._heard
        waiter.set_exception(NoAnswer(f"unit {unit}: expected an answer within {self._timeout_s} s, got none"))
        if self._silent >= SILENT_REQUESTS_MAX:
            self.close()
            self._on_lost()


async def open_line(address: LineAddress, on_lost: Callable[[], None], on_stray: Callable[[int], None]) -> LineSession:
    """Open a line.

    Raises: OSError, TimeoutError.
    """
    session = LineSession(address, on_lost, on_stray)
    if address.device is not None:
        _open_port(address, session)
        return session
    assert address.host is not None, "a line without a device has a host"
    assert address.port is not None, "a line with a host has a port"
    async with asyncio.timeout(CONNECT_S_MAX):
        await asyncio.get_running_loop().create_connection(lambda: session, address.host, address.port)
    return session


def _open_port(address: LineAddress, session: LineSession) -> None:
    assert address.device is not None, "a line without a host has a device"
    fd = os.open(address.device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Two that ask at once would read each other's answers.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _set_raw(fd, address.baud or 9600, address.parity or "none")
    except (termios.error, AttributeError) as error:
        os.close(fd)
        raise OSError(f"serial port {address.device}: expected a port of {address.baud} baud, got {error}") from error
    except OSError:
        os.close(fd)
        raise
    loop = asyncio.get_running_loop()

    def close() -> None:
        nonlocal fd
        if fd >= 0:
            loop.remove_reader(fd)
            os.close(fd)
            fd = -1

    def read() -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            session.data_received(data)
        else:
            close()
            session.connection_lost(None)

    session.opened_by(lambda data: os.write(fd, data), close)
    loop.add_reader(fd, read)


def _set_raw(fd: int, baud: int, parity: str) -> None:
    """Set a port to bytes as they are, one stop bit: 8N1, 8E1 or 8O1, which the makes of our maps speak."""
    tty.setraw(fd, termios.TCSANOW)
    iflag, oflag, cflag, lflag, _, _, cc = termios.tcgetattr(fd)
    cflag &= ~(termios.PARENB | termios.PARODD | termios.CSTOPB | termios.CSIZE | termios.CRTSCTS)
    cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
    if parity != "none":
        cflag |= termios.PARENB | (termios.PARODD if parity == "odd" else 0)
    iflag &= ~(termios.IXON | termios.IXOFF)
    speed = cast(int, getattr(termios, f"B{baud}"))
    termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, speed, speed, cc])
    termios.tcflush(fd, termios.TCIOFLUSH)


def _unopened(data: bytes) -> None:
    raise LineLost("line: expected it open, got none")


def _nothing() -> None:
    return None
