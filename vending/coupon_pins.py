"""The PINs of coupons: how they are drawn, read and recognised, and the installation's keys for coupons.

Enters: the master key, a source of chance, digits as typed. Leaves: PINs for the print file, once; keyed digests for
storage. Never: a PIN in a database or a message. The digest's key comes from the master key, which no database holds:
who steals the database cannot try PINs against it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from vending.coupons import BadCoupon, plain_digits
from vending.key_custody import MASTER_KEY_BYTES
from vending.sts.errors import InvalidKey
from vending.sts.identity import is_luhn_valid, luhn_check_digit

# 15 digits of chance and a Luhn digit, which tells a slip of the finger from a guess. No token has 16 digits, so that
# a meter knows a PIN by its length.
PIN_DIGITS = 16
_DRAWN = 10 ** (PIN_DIGITS - 1)
PIN_PATTERN = r"^[0-9]{16}$"
_PIN = re.compile(PIN_PATTERN.strip("^$"), re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponKeys:
    """What an installation recognises PINs and signs licences with. No key shows in `repr`."""

    pin_key: bytes = field(repr=False)
    licence_seed: bytes = field(repr=False)


def coupon_keys(master: bytes) -> CouponKeys:
    """Derive the keys for coupons from the master key.

    Raises: InvalidKey.
    """
    if len(master) != MASTER_KEY_BYTES:
        raise InvalidKey(f"master key: expected {MASTER_KEY_BYTES} bytes, got {len(master)}")
    return CouponKeys(
        pin_key=hmac.digest(master, b"prepaid coupon PIN 1", "sha256"),
        licence_seed=hmac.digest(master, b"prepaid offline licence 1", "sha256"),
    )


def draw_pin(draw: Callable[[int], int]) -> str:
    """Draw a PIN; `draw(n)` returns a number below n that nobody can foresee."""
    digits = f"{draw(_DRAWN):0{PIN_DIGITS - 1}d}"
    return f"{digits}{luhn_check_digit(digits)}"


def read_pin(text: str) -> str:
    """Read a PIN as typed, with or without spaces or dashes between groups.

    Raises: BadCoupon; the message repeats no digit.
    """
    digits = plain_digits(text)
    if not _PIN.fullmatch(digits):
        raise BadCoupon(f"coupon PIN: expected {PIN_DIGITS} digits, got {len(digits)} characters")
    if not is_luhn_valid(digits):
        raise BadCoupon("coupon PIN: expected one with its check digit, got a digit that is mistyped")
    return digits


def pin_digest(keys: CouponKeys, pin: str) -> bytes:
    """Return what is stored in place of a PIN."""
    return hmac.digest(keys.pin_key, pin.encode("ascii"), "sha256")
