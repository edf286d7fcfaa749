"""What the coupon desk refuses: one class and one stable code for each."""

from __future__ import annotations

from vending.coupons import CouponFault, Refused
from vending.edges.errors import TooManyRequests
from vending.vends import VendingError


class CouponsNotConfigured(VendingError):
    """No coupons here: the installation has no master key to recognise PINs by."""

    code = "coupons_not_configured"


class CouponUnknown(VendingError):
    """A PIN that is none, or not that of the serial."""

    code = CouponFault.UNKNOWN.value


class CouponRedeemed(VendingError):
    """A coupon that was redeemed, by somebody else or for another meter."""

    code = CouponFault.REDEEMED.value


class CouponLapsed(VendingError):
    """A coupon that has to be revalidated before use."""

    code = CouponFault.LAPSED.value


class CouponVoid(VendingError):
    """A coupon that was taken out of use."""

    code = CouponFault.VOID.value


class CouponNotSold(VendingError):
    """A coupon that its seller has not activated."""

    code = CouponFault.NOT_SOLD.value


class CouponOnHold(VendingError):
    """A coupon of a station whose licence is in force no more, or whose money does not reach."""

    code = CouponFault.ON_HOLD.value


class CouponLocked(TooManyRequests):
    """Too many wrong PINs; nothing was looked at."""

    code = CouponFault.LOCKED.value


class CouponNotForSale(VendingError):
    """Some coupon of a range is not in stock."""

    code = "coupon_not_for_sale"


class CouponNotLapsed(VendingError):
    """A coupon that needs no revalidation, or can have none."""

    code = "coupon_not_lapsed"


class CouponNotVoidable(VendingError):
    """A coupon that was redeemed stays so."""

    code = "coupon_not_voidable"


class LicenceUnknown(VendingError):
    """No licence of that number, or of another vendor."""

    code = "unknown_licence"


class LicenceNotInForce(VendingError):
    """A licence that was closed takes no more entries."""

    code = "licence_closed"


class VendorCredit(VendingError):
    """A vendor's float does not reach for coupons."""

    code = "vendor_credit"


class OrderReused(VendingError):
    """A reference of an order of coupons that belongs to another order."""

    code = "reference_reused"


_CLASSES: dict[CouponFault, type[VendingError]] = {
    CouponFault.UNKNOWN: CouponUnknown,
    CouponFault.REDEEMED: CouponRedeemed,
    CouponFault.LAPSED: CouponLapsed,
    CouponFault.VOID: CouponVoid,
    CouponFault.NOT_SOLD: CouponNotSold,
    CouponFault.ON_HOLD: CouponOnHold,
}


def error_of(refused: Refused) -> VendingError:
    """Return the error that a refusal is answered as."""
    if refused.fault is CouponFault.LOCKED:
        return CouponLocked(refused.message, retry_after_s=refused.wait_s or 1)
    return _CLASSES[refused.fault](refused.message)
