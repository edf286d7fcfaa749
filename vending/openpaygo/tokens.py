"""OpenPAYGO tokens: kind, value and count to digits and back.

Enters: a device, its 16-byte key, and what a token is to say; or digits. Leaves: a `PaygoToken`. Never: the choice of
a count beyond `next_count`, where counts are kept, what a unit of time costs.

A token hides its value in its last digits by adding it to those of the device's starting code. The other digits are
the starting code, with the value in it, hashed as often as the token's count says. The count rises with every token;
even ones add time, odd ones set it, so a device knows which from the count alone.

Standard: OpenPAYGO Token, general documentation (EnAccess), held against the tokens published with OpenPAYGO-python.
Its text says that the two top bits of the folded hash are dropped; the published tokens show the two lowest dropped.
Extended tokens are not in the text: their form is the one of the published tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.errors import (
    MalformedPaygoToken,
    PaygoCountRefused,
    PaygoTokenMismatch,
    PaygoValueOutOfRange,
    ReservedPaygoValue,
)
from vending.openpaygo.siphash import siphash24

DISABLE_PAYG_VALUE = 998
COUNTER_SYNC_VALUE = 999
# Values with a meaning of their own, at any length of token: 996 and 997 are kept for later.
RESERVED_VALUES = (996, 997)
_COMMANDS = range(RESERVED_VALUES[0], COUNTER_SYNC_VALUE + 1)
# A token is hashed once for each count below it, at some 17 µs: 0.3 s at most. 20,000 counts are a
# token to add time every day for 27 years.
COUNT_MAX = 20_000
# How far above the last count that it took a device looks, by the specification; some look 64 counts ahead.
COUNTS_AHEAD = 30


class PaygoKind(StrEnum):
    """What a token does to a device."""

    ADD_TIME = "add_time"
    SET_TIME = "set_time"
    DISABLE_PAYG = "disable_payg"
    COUNTER_SYNC = "counter_sync"

    @property
    def is_even(self) -> bool:
        """Tell whether tokens of this kind have even counts; all others have odd ones."""
        return self is PaygoKind.ADD_TIME

    @property
    def carries_time(self) -> bool:
        """Tell whether the value of such a token is an activation time."""
        return self in (PaygoKind.ADD_TIME, PaygoKind.SET_TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoToken:
    """A token of one device.

    Invariants: `value` is set for tokens that carry time only, in parts of a day (see the device's time divider);
    `repr` and `str` show the last four digits only.
    """

    digits: str
    kind: PaygoKind
    value: int | None
    count: int

    @property
    def masked(self) -> str:
        """The token as it may stand in a log."""
        return f"...{self.digits[-4:]}"

    @property
    def grouped(self) -> str:
        """The token as it is printed: groups of three, 20 digits in groups of four."""
        size = 4 if len(self.digits) % 3 else 3
        return " ".join(self.digits[at : at + size] for at in range(0, len(self.digits), size))

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"PaygoToken({self.masked}, {self.kind.value}, count {self.count})"


def next_count(last_count: int, kind: PaygoKind) -> int:
    """Return the count of a device's next token of a kind: the next even or odd one above the last.

    Raises: PaygoCountRefused when there is none left.
    """
    count = last_count + (1 if (last_count % 2 == 1) is kind.is_even else 2)
    _require_count(kind, count)
    return count


def value_max(device: PaygoDevice) -> int:
    """Return the longest activation time that one token of a device carries, in parts of a day."""
    return device.value_modulus - 1 if device.extended else RESERVED_VALUES[0] - 1


def encode_token(key: bytes, device: PaygoDevice, *, kind: PaygoKind, value: int | None, count: int) -> PaygoToken:
    """Make the token of a count; the same arguments always make the same digits.

    Units: `value` in parts of a day, none for kinds that carry no time.
    Raises: PaygoValueOutOfRange, PaygoCountRefused, InvalidPaygoKey.
    """
    _require_count(kind, count)
    wire_value = _wire_value(device, kind, value)
    base = (device.starting_code + wire_value) % device.value_modulus
    for code in _codes(key, device, base, count):
        last = code
    number = _with_base(device, last, base)
    digits = (
        _to_four_keys(number, device.token_digits) if device.restricted_digits else f"{number:0{device.token_digits}d}"
    )
    return PaygoToken(digits=digits, kind=kind, value=value, count=count)


def decode_token(key: bytes, device: PaygoDevice, digits: str, *, counts: range) -> PaygoToken:
    """Read a token by trying counts; of several that fit, the lowest.

    Shape: `digits` without spaces; `counts` rises.
    Raises: MalformedPaygoToken, ReservedPaygoValue, PaygoTokenMismatch, InvalidPaygoKey.
    """
    number = _number_of(device, digits)
    base = number % device.value_modulus
    wire_value = (base - device.starting_code) % device.value_modulus
    for count, code in enumerate(_codes(key, device, base, min(counts.stop - 1, COUNT_MAX))):
        if count in counts and _with_base(device, code, base) == number:
            kind = _kind_of(wire_value, count)
            return PaygoToken(digits=digits, kind=kind, value=wire_value if kind.carries_time else None, count=count)
    raise PaygoTokenMismatch(
        f"token ...{digits[-4:]}: expected a count of {counts.start} to {counts.stop - 1} of device {device.serial}, "
        "got none of them"
    )


def _require_count(kind: PaygoKind, count: int) -> None:
    # Count 0 would be a token that works for ever, and lets every older one be used again.
    if not 1 <= count <= COUNT_MAX:
        raise PaygoCountRefused(f"count of a {kind.value} token: expected 1 to {COUNT_MAX}, got {count}")
    if (count % 2 == 0) is not kind.is_even:
        expected = "an even one" if kind.is_even else "an odd one"
        raise PaygoCountRefused(f"count of a {kind.value} token: expected {expected}, got {count}")


def _wire_value(device: PaygoDevice, kind: PaygoKind, value: int | None) -> int:
    if not kind.carries_time:
        if value is not None:
            raise PaygoValueOutOfRange(f"{kind.value} token: expected no value, got {value}")
        return DISABLE_PAYG_VALUE if kind is PaygoKind.DISABLE_PAYG else COUNTER_SYNC_VALUE
    if value is None or not 0 <= value <= value_max(device) or value in _COMMANDS:
        raise PaygoValueOutOfRange(
            f"{kind.value} token of device {device.serial}: expected 0 to {value_max(device)} parts of a day"
            f"{' but 996 to 999' if device.extended else ''}, got {value}"
        )
    return value


def _kind_of(wire_value: int, count: int) -> PaygoKind:
    if wire_value in RESERVED_VALUES:
        raise ReservedPaygoValue(f"value of a token: expected one that is defined, got {wire_value}")
    if wire_value == DISABLE_PAYG_VALUE:
        return PaygoKind.DISABLE_PAYG
    if wire_value == COUNTER_SYNC_VALUE:
        return PaygoKind.COUNTER_SYNC
    return PaygoKind.SET_TIME if count % 2 else PaygoKind.ADD_TIME


def _codes(key: bytes, device: PaygoDevice, base: int, count_max: int) -> Iterator[int]:
    """Give the codes of counts 0, 1, 2, ... `count_max`, before the value is put into their last digits."""
    code = _with_base(device, device.starting_code, base)
    yield code
    for _ in range(count_max):
        code = _next_extended(key, code) if device.extended else _next_standard(key, code)
        yield code


def _with_base(device: PaygoDevice, code: int, base: int) -> int:
    return code - code % device.value_modulus + base


def _next_standard(key: bytes, code: int) -> int:
    digest = siphash24(key, code.to_bytes(4, "big") * 2)
    bits30 = (digest >> 32 ^ digest & 0xFFFF_FFFF) >> 2
    return bits30 if bits30 < 10**9 else bits30 - (2**30 - 10**9 + 1)


def _next_extended(key: bytes, code: int) -> int:
    bits40 = siphash24(key, code.to_bytes(8, "big")) >> 24
    return bits40 if bits40 < 10**12 else bits40 - (2**40 - 10**12 + 1)


def _to_four_keys(number: int, digits: int) -> str:
    """Write a number two bits a digit, from the top, as the digits 1 to 4."""
    return "".join(str((number >> 2 * place & 0b11) + 1) for place in reversed(range(digits)))


def _number_of(device: PaygoDevice, digits: str) -> int:
    keys = "1234" if device.restricted_digits else "0123456789"
    if len(digits) != device.token_digits or any(digit not in keys for digit in digits):
        raise MalformedPaygoToken(
            f"token of device {device.serial}: expected {device.token_digits} digits of {keys[0]} to {keys[-1]}, "
            f"got {len(digits)} characters"
        )
    if not device.restricted_digits:
        return int(digits)
    number = int("".join(str(int(digit) - 1) for digit in digits), 4)
    if number >= 10**device.plain_digits:
        raise MalformedPaygoToken(
            f"token of device {device.serial}: expected a number of {device.plain_digits} digits, got a larger one"
        )
    return number
