"""What the payment desk refuses: one class and one stable code for each."""

from __future__ import annotations

from vending.vends import VendingError


class PaymentsNotConfigured(VendingError):
    """Nobody can pay online here."""

    code = "payments_not_configured"


class PaymentUnknown(VendingError):
    """No order of that id, or of another account."""

    code = "unknown_payment"


class PaymentNotRefundable(VendingError):
    """Nothing was credited for the order, or it has gone back."""

    code = "payment_not_refundable"


class TooManyPayments(VendingError):
    """As many orders were begun for the account as may be for now."""

    code = "too_many_payments"


class GatewayUnavailable(VendingError):
    """The gateway did not take the order; nothing was paid. Begin a new one later."""

    code = "gateway_unavailable"


class LinkWrong(VendingError):
    """A recharge link that is none of ours, or has expired."""

    code = "recharge_link_wrong"
