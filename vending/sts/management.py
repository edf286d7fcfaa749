"""Management tokens, class 2, and the reading of any token.

Enters: contents, or 20 digits, with the meter's decoder key. Leaves: 20 digits, or typed contents of any class.
Never: the decision to issue; the meaning of tariff rate and water factor, which the standard reserves.

Standard: IEC 62055-41, class 2 subclasses 0-10; STS 202-5 for subclass 10 (extended token set). Published
tokens confirm the layouts; of the flag they show that its value is the lowest bit, and that the flag's number
takes the nine bits above is inferred.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from vending.sts.errors import FieldOutOfRange, UnsupportedToken
from vending.sts.key_change import (
    KEY_CHANGE_SUBCLASSES,
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeSection,
    KeyChangeThird,
    KeyChangeThirdSta,
    pack_section,
    unpack_section,
)
from vending.sts.keys import DecoderKey
from vending.sts.tokens import (
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    Token,
    TokenFrame,
    TokenNumber,
    UnitCredit,
    encode_token,
    open_intact,
    seal_frame,
    unpack_fields,
)

EXTENDED_SET_SUBCLASS = 10
FLAG_INDEX = 63
CONTROL_VALUE_MAX = (1 << 10) - 1
FLAG_MAX = (1 << 9) - 1
REGISTER_ALL = 0xFFFF
_CLASS = 2


class ManagementKind(IntEnum):
    """What a management token with a 16-bit value does; the value is its subclass."""

    SET_POWER_LIMIT = 0
    CLEAR_CREDIT = 1
    SET_TARIFF_RATE = 2
    CLEAR_TAMPER = 5
    SET_UNBALANCE_LIMIT = 6
    SET_WATER_FACTOR = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Management:
    """Class 2 with a TID and 16 bits of value.

    Invariants: `value16` is as it stands in the token: a coded amount in watts for the two limits (see
    amounts), a register number for clear credit (0-7, or FFFF for all), 0 for clear tamper, and for tariff
    rate and water factor what the meter's maker says.
    """

    kind: ManagementKind
    rnd: int
    tid: int
    value16: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedControl:
    """Class 2, subclass 10: set one control of the meter's extended list.

    Invariants: `index` is 0-62, `value` 0-1023.
    """

    rnd: int
    tid: int
    index: int
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedFlag:
    """Class 2, subclass 10, index 63: set or clear one flag, 0-511."""

    rnd: int
    tid: int
    flag: int
    value: bool


ManagementToken = Management | ExtendedControl | ExtendedFlag | KeyChangeSection
AnyToken = Token | ManagementToken


def encode_any_token(token: AnyToken, decoder_key: DecoderKey | None) -> TokenNumber:
    """Write a token of any class as 20 digits.

    Raises: FieldOutOfRange when a field does not fit; InvalidKey when an encrypted class comes without key;
        UnsupportedCipher when the meter's cipher is not offered.
    """
    match token:
        case UnitCredit() | CurrencyCredit() | DisplayTest() | ExtendedRead():
            return encode_token(token, decoder_key)
        case _:
            return seal_frame(_CLASS, *pack_management(token), decoder_key)


def decode_any_token(number: TokenNumber, decoder_key: DecoderKey | None) -> AnyToken:
    """Read 20 digits of any class.

    Raises: TokenCrcMismatch, UnsupportedToken; InvalidKey when an encrypted class comes without key.
    """
    frame = open_intact(number, decoder_key)
    if frame.token_class != _CLASS or decoder_key is None:
        return unpack_fields(frame, number)
    return unpack_management(frame, decoder_key)


def pack_management(token: ManagementToken) -> tuple[int, int]:
    """Return subclass and the 44 bits between subclass and CRC.

    Raises: FieldOutOfRange when a field does not fit its place.
    """
    match token:
        case Management():
            return token.kind, _with_tid(token.rnd, token.tid, _fit(token.value16, 16, "value"))
        case ExtendedControl():
            if token.index == FLAG_INDEX:
                raise FieldOutOfRange(f"token field index: expected 0-{FLAG_INDEX - 1}, got that of the flags")
            value = _fit(token.index, 6, "index") << 10 | _fit(token.value, 10, "control value")
            return EXTENDED_SET_SUBCLASS, _with_tid(token.rnd, token.tid, value)
        case ExtendedFlag():
            value = FLAG_INDEX << 10 | _fit(token.flag, 9, "flag") << 1 | token.value
            return EXTENDED_SET_SUBCLASS, _with_tid(token.rnd, token.tid, value)
        case KeyChangeFirst() | KeyChangeSecond() | KeyChangeThirdSta() | KeyChangeThird() | KeyChangeFourth():
            return pack_section(token)
        case _:
            assert_never(token)


def unpack_management(frame: TokenFrame, decoder_key: DecoderKey) -> ManagementToken:
    """Read the contents of an opened class 2 token.

    Raises: UnsupportedToken for a subclass that is a maker's own.
    """
    if frame.subclass in KEY_CHANGE_SUBCLASSES:
        return unpack_section(frame, decoder_key.ea)
    rnd, tid, value16 = frame.field44 >> 40, frame.field44 >> 16 & 0xFFFFFF, frame.field44 & 0xFFFF
    if frame.subclass != EXTENDED_SET_SUBCLASS:
        try:
            kind = ManagementKind(frame.subclass)
        except ValueError:
            raise UnsupportedToken(f"class 2 token: expected subclass 0-10, got {frame.subclass}") from None
        return Management(kind=kind, rnd=rnd, tid=tid, value16=value16)
    if value16 >> 10 == FLAG_INDEX:
        return ExtendedFlag(rnd=rnd, tid=tid, flag=value16 >> 1 & FLAG_MAX, value=bool(value16 & 1))
    return ExtendedControl(rnd=rnd, tid=tid, index=value16 >> 10, value=value16 & CONTROL_VALUE_MAX)


def _with_tid(rnd: int, tid: int, value16: int) -> int:
    return _fit(rnd, 4, "RND") << 40 | _fit(tid, 24, "TID") << 16 | value16


def _fit(value: int, bits: int, whose: str) -> int:
    if not 0 <= value < 1 << bits:
        raise FieldOutOfRange(f"token field {whose}: expected {bits} bits, got {value}")
    return value
