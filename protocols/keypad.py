"""What is typed at a meter's keypad, as the meter tells of it: tokens that it judged, coupons that it passes on.

Decode stage, beside `protocols.native`, whose messages carry these. Values alone.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class EntryResult(StrEnum):
    """What a meter says of a token that was entered: results of IEC 62055-41, by the names they have there."""

    ACCEPTED = "accepted"
    FORMAT_ERROR = "format_error"
    CRC_ERROR = "crc_error"
    MFR_CODE_ERROR = "mfr_code_error"
    OLD = "old"
    USED = "used"
    KEY_EXPIRED = "key_expired"
    DDTK_ERROR = "ddtk_error"
    KEY_TYPE_ERROR = "key_type_error"
    OVERFLOW_ERROR = "overflow_error"
    RANGE_ERROR = "range_error"
    FUNCTION_ERROR = "function_error"
    LOCKOUT = "lockout"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntered:
    """What became of a token at its meter, typed or pushed.

    Invariants: told only of tokens whose CRC agreed under the meter's own key; `tid` is None for a token without one,
    a section of a key change. `last_digits` are four; the others never leave the meter.
    """

    serial: str
    seq: int | None
    at_ms: int
    tid: int | None
    last_digits: str
    result: EntryResult


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponEntered:
    """The PIN of a recharge coupon, typed at a meter's keypad: 16 digits, which no token has; `repr` hides them."""

    serial: str
    seq: int | None
    at_ms: int
    pin: str = field(repr=False)
