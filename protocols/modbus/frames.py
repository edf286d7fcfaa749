"""Modbus frames: requests out, answers in, over TCP (with its header) and RTU (with its check sum).

Stage: between a line and the values. Requests become bytes; whatever bytes come back become frames, however they are
cut, joined or soiled. Never waits, never owns a socket. Source: Modbus application protocol 1.1b3 and Modbus over
serial line 1.02.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from typing import ClassVar, Final

from protocols.errors import FrameError, Malformed

READ_WORDS_MAX: Final = 125  # An answer's length is one byte: 125 words and the head are 252 of at most 253 bytes.
WRITE_WORDS_MAX: Final = 123
PDU_BYTES_MAX: Final = 253
ADDRESS_MAX: Final = 0xFFFF
# What may lie before an answer on a line: a few old answers. More is dropped from the front, so that memory is bounded.
BUFFER_BYTES_MAX: Final = 4096
_EXCEPTION: Final = 0x80
_COIL_ON: Final = 0xFF00
_TCP_HEAD: Final = struct.Struct(">HHHB")
_WRITES_ECHOED: Final = frozenset({5, 6, 15, 16})
_READS: Final = frozenset({1, 2, 3, 4})


class Framing(StrEnum):
    """How requests and answers are wrapped on a line."""

    TCP = "tcp"
    RTU = "rtu"


class Function(IntEnum):
    """The function codes in use."""

    READ_COILS = 1
    READ_INPUTS = 2
    READ_HOLDING = 3
    READ_INPUT_REGISTERS = 4
    WRITE_COIL = 5
    WRITE_REGISTER = 6
    WRITE_REGISTERS = 16


class ModbusExceptionAnswer(FrameError):
    """The meter answered with an exception: it heard, and refuses.

    Invariants: `exception_code` is what it said: 1 function, 2 address, 3 value, 4 device failure, 6 busy,
    10 and 11 gateway.
    """

    code: ClassVar[str] = "modbus_exception"

    def __init__(self, function: int, exception_code: int) -> None:
        super().__init__(f"answer to function {function}: expected values, got exception {exception_code}")
        self.function = function
        self.exception_code = exception_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One answer off a line.

    Invariants: `transaction` is None on RTU, which has none.
    """

    unit: int
    transaction: int | None
    pdu: bytes


def read_pdu(function: int, address: int, count: int) -> bytes:
    """Ask for `count` words or bits from a wire address."""
    assert function in _READS, f"read function: expected 1 to 4, got {function}"
    assert 1 <= count <= (READ_WORDS_MAX if function in (3, 4) else 2000), f"count: got {count}"
    assert 0 <= address <= ADDRESS_MAX + 1 - count, f"address: expected 0 to 65535, got {address}"
    return struct.pack(">BHH", function, address, count)


def write_coil_pdu(address: int, on: bool) -> bytes:
    """Set one coil."""
    return struct.pack(">BHH", Function.WRITE_COIL, address, _COIL_ON if on else 0)


def write_register_pdu(address: int, value: int) -> bytes:
    """Write one word."""
    return struct.pack(">BHH", Function.WRITE_REGISTER, address, value)


def write_registers_pdu(address: int, words: bytes) -> bytes:
    """Write several words, given as their bytes."""
    assert len(words) in range(2, 2 * WRITE_WORDS_MAX + 1, 2), f"words: got {len(words)} bytes"
    return struct.pack(">BHHB", Function.WRITE_REGISTERS, address, len(words) // 2, len(words)) + words


def answer_bytes(function: int, count: int) -> int:
    """Return the length of the answer's PDU to a read of `count` words or bits, or to a write."""
    if function in _WRITES_ECHOED:
        return 5
    return 2 + (2 * count if function in (3, 4) else (count + 7) // 8)


def crc16(data: bytes) -> int:
    """Compute the check sum of an RTU frame.

    Source: Modbus over serial line 1.02, 6.2.2.
    """
    crc = 0xFFFF
    words = len(data) // 2
    table = _crc_of_words()
    # Two bytes a step: 3 us for the longest frame instead of 40 (2026-11-22).
    for word in struct.unpack_from(f"<{words}H", data):
        crc = table[crc ^ word]
    if len(data) % 2:
        crc = _crc_step(crc ^ data[-1])
    return crc


def wrap(framing: Framing, unit: int, transaction: int, pdu: bytes) -> bytes:
    """Wrap a PDU for a line; RTU has no transaction and leaves it out."""
    if framing is Framing.TCP:
        return _TCP_HEAD.pack(transaction & 0xFFFF, 0, len(pdu) + 1, unit) + pdu
    body = bytes((unit,)) + pdu
    return body + crc16(body).to_bytes(2, "little")


def registers_of(pdu: bytes) -> bytes:
    """Return the bytes of the words (or bits) that a read was answered with.

    Raises: ModbusExceptionAnswer when the meter refused; Malformed when the answer is none to a read.
    """
    if len(pdu) == 2 and pdu[0] & _EXCEPTION:
        raise ModbusExceptionAnswer(pdu[0] & ~_EXCEPTION, pdu[1])
    if len(pdu) < 2 or pdu[0] not in _READS or pdu[1] != len(pdu) - 2:
        raise Malformed(f"answer to a read: expected a function of 1 to 4 and its length, got {pdu[:4].hex()}")
    return pdu[2:]


def require_echo(request: bytes, answer: bytes) -> None:
    """Check that a write was answered as done: by the same address and value or count.

    Raises: ModbusExceptionAnswer when the meter refused; Malformed when the answer is another.
    """
    if len(answer) == 2 and answer[0] == request[0] | _EXCEPTION:
        raise ModbusExceptionAnswer(request[0], answer[1])
    if answer != request[:5]:
        raise Malformed(f"answer to a write: expected {request[:5].hex()}, got {answer[:8].hex()}")


class Deframer:
    """Bytes off a line in, frames out.

    Invariants: however the same bytes are cut into calls of `feed`, the same frames leave in the same order, as long
    as a line's unread bytes stay within `BUFFER_BYTES_MAX`; `dropped` counts the bytes that belonged to no frame.
    """

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.dropped = 0
        self._buffer = bytearray()
        self._heads: tuple[tuple[bytes, int], ...] = ()

    def expect(self, unit: int, function: int, length: int) -> None:
        """Name the answer awaited next: its unit, its function and the length of its PDU.

        What came before was for an earlier request, too late: it is dropped. On TCP the frames tell their own length.
        """
        self.reset()
        head = bytes((unit, function, length - 2)) if function in _READS else bytes((unit, function))
        refusal = bytes((unit, function | _EXCEPTION))
        self._heads = ((head, length + 3), (refusal, 5))

    def reset(self) -> None:
        """Drop what has come and made no frame yet."""
        self.dropped += len(self._buffer)
        self._buffer.clear()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes as they came; return the frames that they complete."""
        self._buffer += data
        frames = list(self._tcp_frames() if self.framing is Framing.TCP else self._rtu_frames())
        if len(self._buffer) > BUFFER_BYTES_MAX:
            excess = len(self._buffer) - BUFFER_BYTES_MAX
            self.dropped += excess
            del self._buffer[:excess]
        return frames

    def _tcp_frames(self) -> Iterator[Frame]:
        at = 0
        buffer = self._buffer
        while (length := _tcp_length(buffer, at)) is not None:
            if length == 0:
                self.dropped += 1
                at += 1
                continue
            if len(buffer) - at < length:
                break
            transaction, _, _, unit = _TCP_HEAD.unpack_from(buffer, at)
            yield Frame(unit=unit, transaction=transaction, pdu=bytes(buffer[at + 7 : at + length]))
            at += length
        del buffer[:at]

    def _rtu_frames(self) -> Iterator[Frame]:
        """Yield awaited frames by their ends: the one that is whole first counts, whatever began before it."""
        while (span := self._first_rtu_span()) is not None:
            start, end = span
            frame = bytes(self._buffer[start:end])
            self.dropped += start
            del self._buffer[:end]
            yield Frame(unit=frame[0], transaction=None, pdu=frame[1:-2])

    def _first_rtu_span(self) -> tuple[int, int] | None:
        spans = [span for head, length in self._heads if (span := self._rtu_span(head, length)) is not None]
        return min(spans, key=lambda span: (span[1], span[0]), default=None)

    def _rtu_span(self, head: bytes, length: int) -> tuple[int, int] | None:
        buffer = self._buffer
        start = buffer.find(head)
        while start >= 0 and start + length <= len(buffer):
            end = start + length
            if crc16(bytes(buffer[start : end - 2])) == buffer[end - 2] | buffer[end - 1] << 8:
                return start, end
            start = buffer.find(head, start + 1)
        return None


def _tcp_length(buffer: bytearray, at: int) -> int | None:
    """Return the length of the frame that begins here; 0 where none can, None where too little has come to say."""
    have = len(buffer) - at
    if have >= 4 and (buffer[at + 2] or buffer[at + 3]):
        return 0
    if have < 9:
        return None
    length = buffer[at + 4] << 8 | buffer[at + 5]
    function, first = buffer[at + 7], buffer[at + 8]
    if function & _EXCEPTION:
        fits = length == 3
    elif function in _READS:
        fits = length == first + 3
    else:
        fits = function in _WRITES_ECHOED and length == 6
    return length + 6 if fits and length <= PDU_BYTES_MAX + 1 else 0


def _crc_step(crc: int) -> int:
    """Move the check sum on by one byte, which is already in its low eight bits."""
    for _ in range(8):
        crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


@cache
def _crc_of_words() -> "array[int]":
    low = [_crc_step(byte) for byte in range(256)]
    once = [word >> 8 ^ low[word & 0xFF] for word in range(0x10000)]
    return array("H", (word >> 8 ^ low[word & 0xFF] for word in once))
