"""Recharge coupons: serials, three calendar months, who may redeem one, and how long a guesser waits.

Stage: between a coupon as it is stored and what is done with it. Enters: texts as typed, a coupon's state, local days.
Leaves: what may be done, or the fault to be told. Never: a database, a clock, a PIN (see vending.coupon_pins), a token:
a coupon is a promise of money, the token is minted when it is redeemed.

A coupon is valid from the local day of its sale through the same day of the third month after it, that day included,
or through that month's last day where it is shorter: 30 November to 28 or 29 February (R-17iv).
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from vending.sts.identity import is_luhn_valid, luhn_check_digit
from vending.vends import VendingError

VALID_MONTHS = 3
BATCHES_MAX = 99_999
# A million of the same amount is more than any printer delivers at once; it leaves six digits for the number.
COUPONS_MAX = 999_999
# One transaction and one file; 10,000 rows take half a second.
BATCH_COUPONS_MAX = 10_000
SERIAL_PATTERN = r"^[0-9]{12}$"
_SERIAL = re.compile(SERIAL_PATTERN.strip("^$"), re.ASCII)
_MS = 1_000
_MONTHS = 12


class CouponState(StrEnum):
    """Where a coupon stands. One that has lapsed is still `sold`: whether it has is asked of a day."""

    ISSUED = "issued"
    RESERVED = "reserved"
    SOLD = "sold"
    REDEEMED = "redeemed"
    VOID = "void"


class CouponFault(StrEnum):
    """Why a coupon is not redeemed; the value is the code of the answer."""

    UNKNOWN = "coupon_unknown"
    REDEEMED = "coupon_redeemed"
    LAPSED = "coupon_lapsed"
    VOID = "coupon_void"
    NOT_SOLD = "coupon_not_sold"
    ON_HOLD = "coupon_on_hold"
    LOCKED = "coupon_locked"


class CouponChannel(StrEnum):
    """How a coupon came to be redeemed."""

    STATION = "station"
    WEB = "web"
    SMS = "sms"
    KEYPAD = "keypad"


class BadCoupon(VendingError):
    """A serial or PIN that is not of the form, or with a wrong check digit: mistyped. It counts as no try."""

    code = "coupon_mistyped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeemer:
    """Who redeems: `who` is the same for everybody who may be told the answer again.

    Invariants: `who` is vendor:<id>, account:<id>, phone:<number> or meter:<id>; `guesser` is whose tries are counted.
    """

    channel: CouponChannel
    who: str
    guesser: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupon:
    """A coupon as it stands; `may_draw` says of a reserved one whether its licence is in force.

    Invariants: `valid_until` is set once it is sold; `redeemed_by` and `meter_id` once it is redeemed.
    """

    serial: str
    state: CouponState
    amount_minor: int
    valid_until: date | None = None
    may_draw: bool = False
    redeemed_by: str | None = None
    meter_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The answer is no. `wait_s` is set for `LOCKED` alone."""

    fault: CouponFault
    message: str
    wait_s: int | None = None


class Redeemable(StrEnum):
    """What a redemption comes to."""

    NOW = "now"
    AGAIN = "again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TryLimit:
    """How many wrong PINs are free, and how the wait grows after them.

    Units: seconds. `forget_s` without a wrong PIN makes all good again.
    """

    free: int
    wait_s_first: int
    wait_s_max: int
    forget_s: int

    def wait_s(self, wrong: int) -> int:
        """Return how long to wait after so many wrong PINs."""
        beyond = wrong - self.free
        # The shift is bounded: 2^20 minutes are two years.
        return 0 if beyond < 0 else min(self.wait_s_max, self.wait_s_first << min(beyond, 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Wrong PINs of one guesser so far."""

    wrong: int
    last_ms: int


# A family's slips of the finger are caught by the check digit. After five wrong PINs a minute, doubling to a day: some
# 15 on the first day and one a day after that.
CALLER_LIMIT = TryLimit(free=5, wait_s_first=60, wait_s_max=86_400, forget_s=172_800)
# A station types for a hundred people a day. At most one an hour in the end.
VENDOR_LIMIT = TryLimit(free=20, wait_s_first=60, wait_s_max=3_600, forget_s=86_400)
# All together: some 530 wrong PINs a day where every caller is another one. With ten million coupons among 10^15 PINs
# a day of that hits one with a chance of 1 in 200,000. Whoever names the serial, too, is not held up by it.
EVERYBODY_LIMIT = TryLimit(free=500, wait_s_first=60, wait_s_max=3_600, forget_s=86_400)
EVERYBODY = "everybody"


def serial_of(batch: int, number: int) -> str:
    """Return the serial of a batch's coupon: 5 digits of the batch, 6 of its number, a Luhn digit."""
    assert 1 <= batch <= BATCHES_MAX, f"coupon batch: expected 1 to {BATCHES_MAX}, got {batch}"
    assert 1 <= number <= COUPONS_MAX, f"coupon number: expected 1 to {COUPONS_MAX}, got {number}"
    digits = f"{batch:05d}{number:06d}"
    return f"{digits}{luhn_check_digit(digits)}"


def read_serial(text: str) -> str:
    """Read a serial as typed, with or without spaces or dashes between groups.

    Raises: BadCoupon.
    """
    digits = plain_digits(text)
    if not _SERIAL.fullmatch(digits):
        raise BadCoupon(f"coupon serial: expected 12 digits, got {len(digits)} characters")
    if not is_luhn_valid(digits):
        raise BadCoupon(f"coupon serial {digits}: expected one with its check digit, got another last digit")
    return digits


def serials_between(first: str, last: str) -> int:
    """Return how many coupons of one batch lie from one serial to another, both included.

    Raises: BadCoupon for serials of two batches, or in the wrong order.
    """
    number = int(last[5:11]) - int(first[5:11]) + 1
    if first[:5] != last[:5] or number < 1:
        raise BadCoupon(f"coupons {first} to {last}: expected a rising range of one batch")
    return number


def plain_digits(text: str) -> str:
    """Return what was typed without the blanks and dashes between groups."""
    return text.replace(" ", "").replace("-", "")


def grouped(digits: str) -> str:
    """Return digits in groups of four, as they are printed."""
    return " ".join(digits[place : place + 4] for place in range(0, len(digits), 4))


def valid_until(sold_on: date) -> date:
    """Return the last local day on which a coupon sold, or revalidated, on a day can be redeemed.

    The same day of the third month after it, or that month's last day where it has no such day.
    """
    months = sold_on.month - 1 + VALID_MONTHS
    year, month = sold_on.year + months // _MONTHS, months % _MONTHS + 1
    return date(year, month, min(sold_on.day, monthrange(year, month)[1]))


def has_lapsed(coupon: Coupon, today: date) -> bool:
    """Tell whether a coupon has to be revalidated before use."""
    until = coupon.valid_until
    return coupon.state in (CouponState.SOLD, CouponState.RESERVED) and until is not None and today > until


def judge_redemption(coupon: Coupon, redeemer: Redeemer, *, meter_id: int | None, today: date) -> Redeemable | Refused:
    """Say whether a coupon may be redeemed by somebody for a meter, now or as the answer that was given before.

    `meter_id` is None where the meter is not known: nothing is redeemed for it, and nothing told again.
    """
    match coupon.state:
        case CouponState.REDEEMED:
            if coupon.redeemed_by == redeemer.who and meter_id is not None and coupon.meter_id == meter_id:
                return Redeemable.AGAIN
            # Nothing of who, when or for which meter: whoever finds a used coupon learns nothing by it.
            return _refused(coupon, CouponFault.REDEEMED, "expected one not redeemed yet")
        case CouponState.VOID:
            return _refused(coupon, CouponFault.VOID, "expected one in force, got one that was taken out of use")
        case CouponState.ISSUED:
            return _refused(coupon, CouponFault.NOT_SOLD, "expected one that was sold; the seller has to activate it")
        case CouponState.RESERVED if not coupon.may_draw:
            return _refused(coupon, CouponFault.ON_HOLD, "expected one of a station in good standing; ask the utility")
        case _:
            if has_lapsed(coupon, today):
                return _refused(coupon, CouponFault.LAPSED, lapsed_text(coupon))
            return Redeemable.NOW


def lapsed_text(coupon: Coupon) -> str:
    """Say since when a coupon has lapsed and what its holder does about it."""
    return (
        f"expected one within {VALID_MONTHS} months of its sale, got one that was valid through {coupon.valid_until}; "
        "its money is not lost: the utility's office revalidates it for a further three months"
    )


def wait_of(tries: Tries | None, limit: TryLimit, now_ms: int) -> int:
    """Return for how many whole seconds a guesser still has to wait, 0 for not at all."""
    if tries is None:
        return 0
    left_ms = tries.last_ms + limit.wait_s(tries.wrong) * _MS - now_ms
    return max(0, -(-left_ms // _MS))


def one_more(tries: Tries | None, limit: TryLimit, now_ms: int) -> Tries:
    """Count a wrong PIN."""
    if tries is None or now_ms - tries.last_ms > limit.forget_s * _MS:
        return Tries(wrong=1, last_ms=now_ms)
    return Tries(wrong=tries.wrong + 1, last_ms=now_ms)


def limit_of(guesser: str) -> TryLimit:
    """Return the limit that a guesser is held to."""
    if guesser == EVERYBODY:
        return EVERYBODY_LIMIT
    return VENDOR_LIMIT if guesser.startswith("vendor:") else CALLER_LIMIT


def locked(wait_s: int, *, everybody: bool) -> Refused:
    """Refuse a guesser who has to wait."""
    why = "too many wrong PINs of all callers; name the serial, too" if everybody else "too many wrong PINs"
    return Refused(fault=CouponFault.LOCKED, message=f"coupon: {why}; try again in {wait_s} s", wait_s=wait_s)


def unknown() -> Refused:
    """Refuse a PIN that is none, or not that of the serial: the two look alike."""
    message = "coupon: expected a PIN that was issued, and its serial if any, got others"
    return Refused(fault=CouponFault.UNKNOWN, message=message)


def _refused(coupon: Coupon, fault: CouponFault, message: str) -> Refused:
    return Refused(fault=fault, message=f"coupon {coupon.serial}: {message}")
