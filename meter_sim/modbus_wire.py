"""Modbus from the meter's side of the wire: requests out of a stream of bytes, answers into frames.

Stage: between `meter_sim.edges.modbus_server` and the units. Written apart from the head-end's frames on purpose: each
is a check of the other. Never a socket, never a clock.

Source: MODBUS Application Protocol Specification V1.1b3 and MODBUS over Serial Line V1.02, as known from public
implementations; the check value was compared with `mbpoll`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from protocols.errors import Malformed

READ_COILS: Final = 1
READ_DISCRETE: Final = 2
READ_HOLDING: Final = 3
READ_INPUT: Final = 4
WRITE_COIL: Final = 5
WRITE_REGISTER: Final = 6
WRITE_COILS: Final = 15
WRITE_REGISTERS: Final = 16
REGISTERS_READ_MAX: Final = 125
COILS_READ_MAX: Final = 2_000
COIL_ON: Final = 0xFF00
COIL_OFF: Final = 0x0000
# A request to write 123 registers is the longest: 260 bytes with its head. A stream with more than that and no frame
# in it is no master.
_WAITING_BYTES_MAX: Final = 1_024
_HEAD_BYTES: Final = 7
_PDU_BYTES_MAX: Final = 253
_SHORT_RTU_BYTES: Final = 8
_POLYNOMIAL: Final = 0xA001


class Exceptional(Enum):
    """Why a unit does not do what it is asked."""

    FUNCTION = 1
    ADDRESS = 2
    VALUE = 3
    DEVICE_FAILURE = 4
    BUSY = 6
    NO_ANSWER_BEHIND_GATEWAY = 11


class Framing(Enum):
    """How a line packs its frames."""

    TCP = "tcp"
    RTU = "rtu"


class Request(NamedTuple):
    """One request; a serial line has no transaction."""

    unit: int
    transaction: int | None
    pdu: bytes


@dataclass(slots=True)
class RequestStream:
    """Takes a connection's bytes apart.

    Invariants: a request is returned once, as soon as its last byte has come; bytes that begin no frame are skipped
    and counted in `skipped`.
    """

    framing: Framing
    skipped: int = 0
    _waiting: bytes = b""

    def feed(self, data: bytes) -> list[Request]:
        """Return the requests that these bytes complete.

        Raises: Malformed if too much waits, or a TCP head announces an impossible length.
        """
        self._waiting += data
        taken = self._take_tcp() if self.framing is Framing.TCP else self._take_rtu()
        if len(self._waiting) > _WAITING_BYTES_MAX:
            raise Malformed(f"modbus request: expected at most {_WAITING_BYTES_MAX} bytes, got {len(self._waiting)}")
        return taken

    def _take_tcp(self) -> list[Request]:
        waiting, at, taken = self._waiting, 0, []
        while len(waiting) - at > _HEAD_BYTES:
            length = int.from_bytes(waiting[at + 4 : at + 6])
            if waiting[at + 2 : at + 4] != b"\x00\x00" or not 2 <= length <= _PDU_BYTES_MAX + 1:
                raise Malformed(
                    f"modbus head: expected protocol 0 and length 2 to 254, got {waiting[at : at + 6].hex()}"
                )
            end = at + 6 + length
            if len(waiting) < end:
                break
            taken.append(
                Request(waiting[at + 6], int.from_bytes(waiting[at : at + 2]), waiting[at + _HEAD_BYTES : end])
            )
            at = end
        self._waiting = waiting[at:]
        return taken

    def _take_rtu(self) -> list[Request]:
        waiting, at, taken = self._waiting, 0, []
        while len(waiting) - at >= _SHORT_RTU_BYTES:
            end = at + _rtu_length(waiting, at)
            if end > len(waiting):
                break
            if crc16(waiting[at : end - 2]) == waiting[end - 2 : end]:
                taken.append(Request(waiting[at], None, waiting[at + 1 : end - 2]))
                at = end
            else:
                at += 1
                self.skipped += 1
        self._waiting = waiting[at:]
        return taken


def framed(request: Request, pdu: bytes) -> bytes:
    """Pack the answer to a request."""
    if request.transaction is None:
        body = bytes((request.unit,)) + pdu
        return body + crc16(body)
    return b"%c%c\x00\x00%c%c%c%b" % (
        request.transaction >> 8,
        request.transaction & 0xFF,
        (len(pdu) + 1) >> 8,
        (len(pdu) + 1) & 0xFF,
        request.unit,
        pdu,
    )


def refusal(pdu: bytes, why: Exceptional) -> bytes:
    """Return the exception that answers a request."""
    return bytes((pdu[0] | 0x80, why.value))


def crc16(data: bytes) -> bytes:
    """Return the check value of a serial frame, low byte first as it is sent."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc.to_bytes(2, "little")


def _rtu_length(waiting: bytes, at: int) -> int:
    """Return how long the frame is if one begins here; the functions that write many say so themselves."""
    if waiting[at + 1] in (WRITE_COILS, WRITE_REGISTERS):
        return 9 + waiting[at + 6]
    return _SHORT_RTU_BYTES


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()
