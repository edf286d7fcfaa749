"""What a person is told of a coupon that was not taken, by SMS or at the keypad: one of a few sentences a code."""

from __future__ import annotations

from billing.notices import CouponReason
from vending.coupons import CouponFault

_REASONS = {
    "coupon_mistyped": CouponReason.COUPON_MISTYPED,
    CouponFault.UNKNOWN.value: CouponReason.COUPON_UNKNOWN,
    CouponFault.REDEEMED.value: CouponReason.COUPON_USED,
    CouponFault.LAPSED.value: CouponReason.COUPON_LAPSED,
    CouponFault.VOID.value: CouponReason.COUPON_UNUSABLE,
    CouponFault.NOT_SOLD.value: CouponReason.COUPON_UNUSABLE,
    CouponFault.ON_HOLD.value: CouponReason.COUPON_UNUSABLE,
    CouponFault.LOCKED.value: CouponReason.COUPON_WAIT,
    "unknown_meter": CouponReason.COUPON_METER,
    "drn_check_digit": CouponReason.COUPON_METER,
}


def reason_of(code: str) -> CouponReason:
    """Return the sentence for a code; what has none of its own is the meter's, for which nothing can be sold now."""
    return _REASONS.get(code, CouponReason.COUPON_NOT_NOW)
