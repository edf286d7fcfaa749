"""Numbers of foreign payloads: parsed as decimals, scaled as fractions, rounded once.

Stage: below every make. Energy passes no float on its way to a register: JSON numbers become integers or decimals,
units are exact fractions, and what goes into a native fact is rounded half up to its integer unit. Nothing here knows
a make.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import floor
from typing import Any, Final

import msgspec

from protocols.errors import Malformed
from protocols.native import PAYLOAD_BYTES_MAX

# What JSON decodes to: objects, arrays, texts, integers, decimals, truth values, null.
Json = Any
# An exponent beyond this is no reading of a meter, and a fraction of it would fill the memory.
_EXPONENT_MAX: Final = 30
_SHOWN_MAX: Final = 80
_PLAIN_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)


def parse_json(payload: bytes) -> Json:
    """Parse a payload; numbers with a point or an exponent become decimals.

    Raises: Malformed when it is too long or no JSON; NaN and Infinity are none.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Malformed(f"payload: expected at most {PAYLOAD_BYTES_MAX} bytes, got {len(payload)}")
    try:
        return _DECODER.decode(payload)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise Malformed(f"payload: expected JSON, got: {str(error)[:_SHOWN_MAX]}") from None


def number_of(value: Json, name: str) -> Fraction | None:
    """Read a number, also one written as text; None for null, an empty text and NaN, which say that there is none.

    Raises: Malformed for what is no number or beyond what any meter counts.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ("", "nan", "null"):
            return None
        if _PLAIN_NUMBER.fullmatch(text) is None:
            raise Malformed(f"{name}: expected a number, got {text[:_SHOWN_MAX]!r}")
        return Fraction(text)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise Malformed(f"{name}: expected a number, got {type(value).__name__}")
    number = Decimal(value)
    if not number.is_finite() or (number and abs(number.adjusted()) > _EXPONENT_MAX):
        raise Malformed(f"{name}: expected a number below 10^{_EXPONENT_MAX}, got another")
    return Fraction(number)


def round_half_up(value: Fraction) -> int:
    """Round to an integer.

    Rounds: half up, towards the larger number.
    """
    return floor(value + Fraction(1, 2))
