"""Register values: words as they lie on the wire to integers in the unit a reading is stored in.

Stage: below the maps. Enters the bytes of one value; leaves an integer or nothing. Integers are exact; a binary
fraction is taken exactly as it stands, too (its own digits, no float arithmetic), scaled by an exact fraction and
rounded once.
"""

import struct
from enum import StrEnum
from fractions import Fraction
from math import isfinite
from typing import Final

from protocols.errors import Malformed


class RegisterType(StrEnum):
    """What the words of a value are.

    Invariants: acc32 is an accumulator as SunSpec has it, unsigned; text is bytes, high byte first in each word, and
        has as many words as its register says; `number_form` is that of floating point alone.
    """

    words: int
    is_signed: bool
    number_form: struct.Struct | None

    # Attributes instead of tables by type: a member's hash costs more than all else of a value (2026-11-22).
    def __new__(cls, name: str, words: int, is_signed: bool = False, number_form: str | None = None) -> "RegisterType":
        member = str.__new__(cls, name)
        member._value_ = name
        member.words = words
        member.is_signed = is_signed
        member.number_form = None if number_form is None else struct.Struct(number_form)
        return member

    U16 = "u16", 1
    I16 = "i16", 1, True
    U32 = "u32", 2
    I32 = "i32", 2, True
    U64 = "u64", 4
    I64 = "i64", 4, True
    F32 = "f32", 2, False, ">f"
    F64 = "f64", 4, False, ">d"
    ACC32 = "acc32", 2
    TEXT = "text", 0


class WordOrder(StrEnum):
    """In which order the bytes of a 32-bit value 0xAABBCCDD come; longer and shorter values likewise.

    Invariants: abcd has the high word first, cdab the low word; badc and dcba have the bytes of each word swapped.
    """

    ABCD = "abcd"
    CDAB = "cdab"
    BADC = "badc"
    DCBA = "dcba"

    @property
    def other(self) -> "WordOrder":
        """The same with the words the other way round."""
        return _OTHER[self]


_OTHER: Final = {
    WordOrder.ABCD: WordOrder.CDAB,
    WordOrder.CDAB: WordOrder.ABCD,
    WordOrder.BADC: WordOrder.DCBA,
    WordOrder.DCBA: WordOrder.BADC,
}


class Form(StrEnum):
    """What a number means beyond its scale.

    Invariants: FOUR_QUADRANT is a power factor whose size above 1 says leading: the true one is 2 less the size.
    """

    PLAIN = "plain"
    FOUR_QUADRANT = "four_quadrant"


# No meter measures a fraction as near to zero as this; words in the wrong order look like it.
_LEAST: Final = 1e-9


def ordered(data: bytes, order: WordOrder) -> bytes:
    """Return the bytes of a value with the highest first."""
    if order is WordOrder.ABCD:
        return data
    if order is WordOrder.DCBA:
        return data[::-1]
    if order is WordOrder.CDAB:
        if len(data) == 4:
            return data[2:] + data[:2]
        return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
    return b"".join(data[at + 1 : at - 1 : -1] if at else data[1::-1] for at in range(0, len(data), 2))


def value_of(
    data: bytes,
    kind: RegisterType,
    order: WordOrder,
    factor: Fraction,
    *,
    invalid: frozenset[int] = frozenset(),
    form: Form = Form.PLAIN,
) -> int | None:
    """Turn the bytes of a value into an integer; None for a pattern that says there is none, and for no number.

    Units: raw value times `factor` is the stored unit. `invalid` are raw patterns, read as unsigned.
    Rounds: to the nearest integer, halves to the even one, once. A number and unit that fit the stored unit are exact.
    Raises: Malformed when the bytes are not as many as the type has.
    """
    if len(data) != 2 * kind.words:
        raise Malformed(f"value of type {kind.value}: expected {2 * kind.words} bytes, got {len(data)}")
    raw = ordered(data, order)
    if invalid and int.from_bytes(raw, "big") in invalid:
        return None
    number_form = kind.number_form
    if number_form is None:
        above, below = int.from_bytes(raw, "big", signed=kind.is_signed), 1
    else:
        number = number_form.unpack(raw)[0]
        if not isfinite(number) or 0 < abs(number) < _LEAST:
            return None
        above, below = number.as_integer_ratio()
    above, below = above * factor.numerator, below * factor.denominator
    if form is Form.FOUR_QUADRANT:
        above = _in_one_quadrant(above, below)
    return _round_half_even(above, below)


def text_of(data: bytes, order: WordOrder) -> str | None:
    """Turn the bytes of a text value into text up to its first zero; None when nothing readable is left."""
    swapped = order in (WordOrder.BADC, WordOrder.DCBA)
    raw = ordered(data[: len(data) // 2 * 2], WordOrder.BADC) if swapped else data
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace").strip()
    return text if text.isprintable() and "\ufffd" not in text and text else None


def _in_one_quadrant(above: int, below: int) -> int:
    """Fold a four-quadrant power factor, in thousandths: beyond 1000 it counts back to 0 at 2000."""
    whole = 1000 * below
    if abs(above) <= whole:
        return above
    return (2 * whole - above) if above > 0 else -(2 * whole + above)


def _round_half_even(above: int, below: int) -> int:
    if below == 1:
        return above
    quotient, rest = divmod(above, below)
    twice = 2 * rest
    return quotient + (twice > below or (twice == below and quotient & 1))
