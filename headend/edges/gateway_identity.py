"""Whether the device at a meter's place is the one that is registered: its identity and its serial register.

Stage: before a gateway's first poll of a meter, and again whenever another device may have come: after a time-out, a
new session of the line, a register that fell. What is another device is not read as the meter, and so not published.
"""

from __future__ import annotations

from typing import ClassVar

from headend.edges.gateway_relay import Ask
from headend.edges.modbus_line import Read
from protocols.modbus.frames import ModbusExceptionAnswer, registers_of
from protocols.modbus.maps import Register, RegisterMap


class OtherDevice(Exception):
    """The device that answers is not the registered meter; the message says what was expected and what was told."""

    code: ClassVar[str] = "other_device"


async def require_device(made: RegisterMap, unit: int, expected: str | None, ask: Ask) -> None:
    """Ask the device for its model, where its map knows how; and for its serial, where one is expected.

    Raises: OtherDevice; LineError; FrameError.
    """
    if made.identity is not None:
        words = await _told(made, made.identity.register, unit, ask)
        # An exception says nothing of the model: some firmware has no such register.
        if words is not None and not made.is_identified_by(words):
            values = " or ".join(str(value) for value in made.identity.values)
            got = made.told(made.identity.register, words)
            raise OtherDevice(f"{made.model}: identity: expected {values}, got {got}")
    if expected is not None:
        require_serial(expected, await _serial(made, unit, ask))


def require_serial(expected: str | None, told: str | None) -> None:
    """Compare what a device calls itself with what is registered; None expects nothing.

    Raises: OtherDevice.
    """
    if expected is not None and (told is None or told.strip() != expected):
        raise OtherDevice(f"serial of the device: expected {expected}, got {'none' if told is None else told.strip()}")


async def _serial(made: RegisterMap, unit: int, ask: Ask) -> str | None:
    if made.serial is None:
        return None
    words = await _told(made, made.serial, unit, ask)
    told = None if words is None else made.told(made.serial, words)
    return None if told is None else str(told)


async def _told(made: RegisterMap, entry: Register, unit: int, ask: Ask) -> bytes | None:
    """Read a register of its own; None where the device refuses it."""
    try:
        return registers_of(await ask(unit, Read.of(entry.function, made.wire_address(entry), entry.words)))
    except ModbusExceptionAnswer:
        return None
