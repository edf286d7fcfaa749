"""Values into Modbus registers: the meter's side of the maps, written apart from the head-end's.

Stage: below `meter_sim.modbus_meter`. An integer in the unit that readings are kept in enters with a register's
description, the bytes of its registers leave. Only the description comes from `protocols.modbus.maps`; types, word
orders and roundings are understood here once more, so that each side checks the other.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

_BYTES: Final[Mapping[str, int]] = {
    "u16": 2, "i16": 2, "u32": 4, "i32": 4, "acc32": 4, "u64": 8, "i64": 8, "f32": 4, "f64": 8
}  # fmt: skip
_FLOATS: Final[Mapping[str, str]] = {"f32": ">f", "f64": ">d"}


def encode(value: int, *, kind: str, order: str, step: Fraction) -> bytes:
    """Return the bytes of a value in its registers.

    Units: `step` is how many of the value's unit one count of the register is. Rounds: down to a whole count, as
    counters do; the float types to what they hold. What is too much for a counter begins again at zero.
    """
    if kind in _FLOATS:
        high_first = struct.pack(_FLOATS[kind], float(value / step))
    else:
        width = _BYTES[kind]
        count = value // step
        high_first = (count % (1 << 8 * width)).to_bytes(width)
    return ordered(high_first, order)


def ordered(high_first: bytes, order: str) -> bytes:
    """Arrange bytes that stand high byte first as a make sends them; each letter of `order` names a byte of four.

    More or fewer than four go by the same rule: words in either order, bytes within them in either order.
    """
    words = [high_first[at : at + 2] for at in range(0, len(high_first), 2)]
    if order in ("cdab", "dcba"):
        words.reverse()
    if order in ("badc", "dcba"):
        words = [word[::-1] for word in words]
    return b"".join(words)


def text_registers(text: str, registers: int) -> bytes:
    """Return a text in so many registers, two characters each, filled up with zero bytes."""
    return text.encode("ascii")[: 2 * registers].ljust(2 * registers, b"\x00")


def width_of(kind: str) -> int:
    """Return how many registers a number takes."""
    return _BYTES[kind] // 2


class RegisterBank:
    """All registers that a unit has.

    Invariants: registers of one function with at most `gap_max` others between them can be read together, and read as
    zero between; any other address is none of the unit's.
    """

    def __init__(self, widths: Mapping[tuple[int, int], int], *, gap_max: int) -> None:
        spans: dict[int, list[tuple[int, int]]] = {}
        for (function, address), width in sorted(widths.items()):
            of_function = spans.setdefault(function, [])
            if of_function and address - of_function[-1][1] <= gap_max:
                of_function[-1] = (of_function[-1][0], max(of_function[-1][1], address + width))
            else:
                of_function.append((address, address + width))
        self._starts = {function: [start for start, _ in found] for function, found in spans.items()}
        self._bytes = {
            function: [bytearray(2 * (end - start)) for start, end in found] for function, found in spans.items()
        }

    def write(self, function: int, address: int, registers: bytes) -> None:
        """Put bytes where they are read from; the place has to be one of the bank's."""
        span = bisect_right(self._starts[function], address) - 1
        at = 2 * (address - self._starts[function][span])
        self._bytes[function][span][at : at + len(registers)] = registers

    def read(self, function: int, address: int, count: int) -> bytes | None:
        """Return so many registers; None if one of them is none of the unit's."""
        starts = self._starts.get(function, ())
        span = bisect_right(starts, address) - 1
        if span < 0:
            return None
        at = 2 * (address - starts[span])
        found = self._bytes[function][span][at : at + 2 * count]
        return bytes(found) if len(found) == 2 * count else None
