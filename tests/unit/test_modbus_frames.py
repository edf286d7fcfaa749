"""Frames of Modbus: requests as the standard writes them, answers out of any stream."""

from __future__ import annotations

import struct

import pytest

from protocols.errors import Malformed
from protocols.modbus.frames import (
    Deframer,
    Framing,
    ModbusExceptionAnswer,
    answer_bytes,
    crc16,
    read_pdu,
    registers_of,
    require_echo,
    wrap,
    write_coil_pdu,
    write_register_pdu,
    write_registers_pdu,
)

ANSWER = bytes((4, 4)) + struct.pack(">f", 230.5)


def test_requests_are_the_bytes_of_the_standards_examples() -> None:
    """The examples of the application protocol (6.3, 6.5, 6.6, 6.12) come out byte for byte."""
    assert read_pdu(3, 0x6B, 3).hex() == "03006b0003"
    assert write_coil_pdu(0xAC, True).hex() == "0500acff00"
    assert write_register_pdu(1, 3).hex() == "0600010003"
    assert write_registers_pdu(1, bytes.fromhex("000a0102")).hex() == "100001000204000a0102"


def test_rtu_request_carries_the_known_check_sum() -> None:
    """A read of two holding registers from unit 1 ends with the check sum that public calculators give."""
    assert wrap(Framing.RTU, 1, 0, read_pdu(3, 0, 2)).hex() == "010300000002c40b"
    assert crc16(b"123456789") == 0x4B37


def test_tcp_request_has_transaction_length_and_unit_before_it() -> None:
    """The header counts the unit and the PDU."""
    assert wrap(Framing.TCP, 17, 0x1501, read_pdu(3, 0x6B, 3)).hex() == "15010000000611" + "03006b0003"


def test_registers_of_refusal_raises_the_meters_code() -> None:
    """An exception answer is named with its code, whatever the function."""
    with pytest.raises(ModbusExceptionAnswer, match="exception 2") as caught:
        registers_of(bytes((0x84, 2)))
    assert caught.value.exception_code == 2


@pytest.mark.parametrize("pdu", [b"", b"\x03", b"\x03\x04\x00\x00", b"\x63\x02\x00\x00", b"\x84", b"\x84\x02\x00"])
def test_registers_of_what_is_no_answer_raises_malformed(pdu: bytes) -> None:
    """A length or function that cannot be is the named error, never another."""
    with pytest.raises(Malformed):
        registers_of(pdu)


def test_echo_of_another_write_is_refused() -> None:
    """A write counts as done only when the meter repeats it."""
    request = write_coil_pdu(3, False)
    require_echo(request, request)
    with pytest.raises(Malformed, match="expected 0500030000"):
        require_echo(request, write_coil_pdu(3, True))
    with pytest.raises(ModbusExceptionAnswer, match="exception 3"):
        require_echo(request, bytes((0x85, 3)))


def test_rtu_answer_is_found_behind_garbage_that_begins_like_it() -> None:
    """Bytes that look like the head of the awaited answer, without its check sum, do not hide it."""
    deframer = Deframer(Framing.RTU)
    deframer.expect(7, 4, answer_bytes(4, 2))
    noise = bytes((7, 4, 4, 0, 7, 4))
    (frame,) = deframer.feed(noise + wrap(Framing.RTU, 7, 0, ANSWER))
    assert (frame.unit, frame.pdu) == (7, ANSWER)
    assert deframer.dropped == len(noise)


def test_rtu_answer_of_another_request_is_no_frame() -> None:
    """Another unit, function or length is not what is awaited; a refusal of what was asked is."""
    deframer = Deframer(Framing.RTU)
    deframer.expect(7, 4, answer_bytes(4, 2))
    others = [wrap(Framing.RTU, 8, 0, ANSWER), wrap(Framing.RTU, 7, 0, bytes((3, 4, 0, 0, 0, 0)))]
    assert deframer.feed(b"".join(others)) == []
    (refusal,) = deframer.feed(wrap(Framing.RTU, 7, 0, bytes((0x84, 2))))
    assert refusal.pdu == bytes((0x84, 2))


def test_late_rtu_answer_is_dropped_when_the_next_is_awaited() -> None:
    """What came before a request is not its answer."""
    deframer = Deframer(Framing.RTU)
    deframer.expect(7, 4, answer_bytes(4, 2))
    late = wrap(Framing.RTU, 7, 0, ANSWER)
    deframer.feed(late[:5])
    deframer.expect(7, 4, answer_bytes(4, 2))
    assert deframer.feed(late[5:]) == []
    assert deframer.dropped == 5


def test_flood_without_frames_keeps_memory_bounded() -> None:
    """A line that talks nonsense for ever fills no memory, and an answer after it is found."""
    deframer = Deframer(Framing.RTU)
    deframer.expect(1, 4, answer_bytes(4, 2))
    for _ in range(50):
        assert deframer.feed(b"\x01" * 1000) == []
    assert deframer.dropped > 40_000
    assert len(deframer.feed(wrap(Framing.RTU, 1, 0, ANSWER))) == 1
