"""A vend before its writes: what was asked, and what is refused whatever token would carry it.

Stage: after the bytes of a request, before its transaction writes anything. Enters: fields as sent, the limits.
Leaves: a `VendOrder` and its digest, or a `Declined` that is stored as the answer. Never: a database, a clock, the
ledger, a token (see vending.engines), an HTTP status.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from billing.journals import Ledger
from billing.money import format_minor, parse_amount
from billing.prepayment import CategoryRules
from billing.supply import Mode
from vending.sts.identity import DRN_DIGITS, is_luhn_valid
from vending.sts.tokens import TokenNumber

# A message id goes into paths and logs. 64 characters hold a UUID, or terminal, time and number of XMLVend.
MESSAGE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
# What may name a meter: a serial as the meters table allows it; a DRN is a special case of its form.
METER_PATTERN = r"^[A-Za-z0-9_-]{1,32}$"
# Tokens of OpenPAYGO devices; their longest has 20 digits as those of STS.
_DEVICE_TOKEN_DIGITS = (9, 12, 15)

# A terminal or an operator of a vendor, as the vendor names them.
TERMINAL_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
# Units are sold in steps of what a token can hold.
UNITS_PATTERN = r"^[0-9]{1,6}(\.[0-9])?$"
_WH_PER_TENTH_KWH = 100

_MESSAGE_ID = re.compile(MESSAGE_ID_PATTERN.strip("^$"))
_METER = re.compile(METER_PATTERN.strip("^$"))
_TERMINAL = re.compile(TERMINAL_PATTERN.strip("^$"))
_UNITS = re.compile(UNITS_PATTERN.strip("^$"))


class VendingError(Exception):
    """Base of what vending cannot answer as a vend; `code` is stable and part of the interface."""

    code: ClassVar[str] = "vending_error"


class MalformedRequest(VendingError):
    """A field is not of its form. Nothing is stored: the id may be used again."""

    code = "malformed"


class DrnCheckDigit(VendingError):
    """Digits that can only be a DRN, with a wrong last one: most often mistyped. Nothing is stored."""

    code = "drn_check_digit"


class MessageIdReused(VendingError):
    """A message id that belongs to another request of the same vendor."""

    code = "message_id_reused"


class DeclineReason(StrEnum):
    """Why a well-formed vend is refused; the value is the code of the answer."""

    UNKNOWN_METER = "unknown_meter"
    AMBIGUOUS_METER = "ambiguous_meter"
    METER_NOT_BILLED = "meter_not_billed"
    METER_WITHOUT_STS = "meter_without_sts"
    METER_KEY_UNSUPPORTED = "meter_key_unsupported"
    METER_NOT_CAPABLE = "meter_not_capable"
    ENGINE_NOT_OFFERED = "engine_not_offered"
    KEY_CHANGE_REFUSED = "key_change_refused"
    AMOUNT_BELOW_MINIMUM = "amount_below_minimum"
    AMOUNT_ABOVE_MAXIMUM = "amount_above_maximum"
    CASH_ABOVE_LIMIT = "cash_above_limit"
    KEY_CHANGE_NEEDED = "key_change_needed"
    VENDOR_CREDIT = "vendor_credit"
    VEND_REVERSED = "vend_reversed"
    VENDOR_INACTIVE = "vendor_inactive"
    POSTPAID_ACCOUNT = "postpaid_account"
    KEY_EXPIRED = "key_expired"
    KEY_TYPE_REFUSED = "key_type_refused"
    VENDING_KEY_UNKNOWN = "vending_key_unknown"
    TID_TOO_FAR_AHEAD = "tid_too_far_ahead"
    TID_ERA_EXHAUSTED = "tid_era_exhausted"
    RISK_LIMIT = "risk_limit"
    MODULE_REFUSED = "module_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The answer is no, for ever under this message id.

    Invariants: `limit_minor` is set for limits of an amount only.
    """

    reason: DeclineReason
    message: str
    limit_minor: int | None = None


class Funding(StrEnum):
    """Whose money a recharge is; the value is stored."""

    VENDOR = "vendor"
    COUPON = "coupon"
    ONLINE = "online"
    FREE_ISSUE = "free_issue"
    SUBSIDY = "subsidy"


# The ledger that a recharge takes its money from, and a reversal gives it back to.
LEDGER_OF_FUNDING = {
    Funding.VENDOR: Ledger.VENDOR_CLEARING,
    Funding.COUPON: Ledger.COUPONS,
    Funding.ONLINE: Ledger.GATEWAY_CLEARING,
    Funding.FREE_ISSUE: Ledger.FREE_ISSUES,
    Funding.SUBSIDY: Ledger.SUBSIDY_RECEIVABLE,
}


class Tender(StrEnum):
    """How the consumer paid the seller."""

    CASH = "cash"
    CARD = "card"
    UPI = "upi"
    WALLET = "wallet"
    CHEQUE = "cheque"


class Release(StrEnum):
    """When the token is given out: with the answer, or once the station confirms that it was paid."""

    AT_ONCE = "at_once"
    ON_CONFIRM = "on_confirm"


class VendState(StrEnum):
    """Where a vend stands after its answer. `unknown`: taken back by the station after the token was given out."""

    REFUSED = "refused"
    RELEASED = "released"
    HELD = "held"
    CONFIRMED = "confirmed"
    UNKNOWN = "unknown"
    REVERSED = "reversed"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendOrder:
    """What a seller asks for: an amount of money, or the energy that it has to buy.

    Units: `amount_minor` in minor units, `energy_wh` in Wh.
    Invariants: every field is of its form; exactly one of the two is set, 0 or more and not yet held against the
    limits. `tender` is None where nobody pays at a desk, `reason` set where nobody pays.
    """

    message_id: str
    meter: str
    amount_minor: int | None = None
    energy_wh: int | None = None
    tender: Tender | None = Tender.CASH
    release: Release = Release.AT_ONCE
    reason: str | None = None

    def __post_init__(self) -> None:
        one = (self.amount_minor is None) != (self.energy_wh is None)
        assert one, f"vend {self.message_id}: expected an amount or units, not both"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendLimits:
    """The smallest and the largest amount of one vend.

    Invariants: 1 <= `min_minor` <= `max_minor`.
    """

    min_minor: int
    max_minor: int

    def __post_init__(self) -> None:
        assert 1 <= self.min_minor <= self.max_minor, f"vend limits: got {self.min_minor} to {self.max_minor}"


def read_order(
    *,
    message_id: str,
    meter: str,
    amount: str | None = None,
    units: str | None = None,
    tender: Tender | None = Tender.CASH,
    release: Release = Release.AT_ONCE,
    reason: str | None = None,
) -> VendOrder:
    """Read the fields of a vend.

    Raises: MalformedRequest; BadAmount for anything but digits with none or two decimals.
    """
    if (amount is None) == (units is None):
        raise MalformedRequest("body.amount, body.units: expected one of the two, got both or none")
    return VendOrder(
        message_id=read_message_id(message_id),
        meter=read_meter(meter),
        amount_minor=None if amount is None else parse_amount(amount),
        energy_wh=None if units is None else read_units(units),
        tender=tender,
        release=release,
        reason=reason,
    )


def read_message_id(text: str) -> str:
    """Read a message id.

    Raises: MalformedRequest.
    """
    if not _MESSAGE_ID.fullmatch(text):
        raise MalformedRequest(
            f"message_id: expected 1-64 letters, digits, dots, colons, dashes, got {len(text)} characters"
        )
    return text


def read_terminal(text: str | None) -> str | None:
    """Read a vendor's name of a terminal or an operator; None stays None.

    Raises: MalformedRequest.
    """
    if text is not None and not _TERMINAL.fullmatch(text):
        raise MalformedRequest(
            f"terminal, operator: expected 1-64 letters, digits, dots, colons, dashes, got {len(text)} characters"
        )
    return text


def read_units(text: str) -> int:
    """Read energy in kWh with none or one decimal; return Wh.

    Raises: MalformedRequest.
    """
    if not _UNITS.fullmatch(text):
        raise MalformedRequest(f"units: expected kWh with none or one decimal, got {len(text)} characters")
    whole, _, tenths = text.partition(".")
    return (int(whole) * 10 + int(tenths or 0)) * _WH_PER_TENTH_KWH


def read_meter(text: str) -> str:
    """Read what names a meter, serial or DRN.

    Raises: MalformedRequest.
    """
    if not _METER.fullmatch(text):
        raise MalformedRequest(
            f"meter: expected a serial of 1-32 letters, digits, dashes, or a DRN, got {len(text)} characters"
        )
    return text


def order_digest(order: VendOrder) -> bytes:
    """Return the SHA-256 by which two requests under one message id are told apart.

    `500` and `500.00` are the same request; a meter named by serial and by DRN are two. What is usual is left out, so
    that a vend of before there was a choice is told by what it was told by then. Terminal and operator are no part of
    it: they say who asks, not what for.
    """
    canonical: dict[str, object] = {"meter": order.meter}
    if order.amount_minor is not None:
        canonical["amount_minor"] = order.amount_minor
    if order.energy_wh is not None:
        canonical["energy_wh"] = order.energy_wh
    if order.tender is not None and order.tender is not Tender.CASH:
        canonical["tender"] = order.tender.value
    if order.release is not Release.AT_ONCE:
        canonical["release"] = order.release.value
    if order.reason is not None:
        canonical["reason"] = order.reason
    return digest_of(canonical)


def digest_of(canonical: Mapping[str, object]) -> bytes:
    """Return the SHA-256 of what a request asks for."""
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).digest()


def read_digits(text: str) -> str:
    """Read a token as typed, with or without spaces or dashes between groups.

    Raises: MalformedToken for what is neither 20 digits of STS nor 9, 12 or 15 of OpenPAYGO.
    """
    digits = text.replace(" ", "").replace("-", "")
    if len(digits) in _DEVICE_TOKEN_DIGITS and digits.isascii() and digits.isdigit():
        return digits
    return TokenNumber(digits).digits


def require_drn_check_digit(meter: str) -> None:
    """Name the likely slip when nothing is found under digits of a DRN's length.

    Raises: DrnCheckDigit.
    """
    if len(meter) in DRN_DIGITS and meter.isdigit() and not is_luhn_valid(meter):
        raise DrnCheckDigit(f"meter {meter}: expected a serial or a DRN with its check digit, got another last digit")


def judge_amount(amount_minor: int, limits: VendLimits) -> Declined | None:
    """Hold an amount against the limits."""
    if amount_minor < limits.min_minor:
        return Declined(
            reason=DeclineReason.AMOUNT_BELOW_MINIMUM,
            message=f"amount: expected {format_minor(limits.min_minor)} or more, got {format_minor(amount_minor)}",
            limit_minor=limits.min_minor,
        )
    if amount_minor > limits.max_minor:
        return Declined(
            reason=DeclineReason.AMOUNT_ABOVE_MAXIMUM,
            message=f"amount: expected {format_minor(limits.max_minor)} or less, got {format_minor(amount_minor)}",
            limit_minor=limits.max_minor,
        )
    return None


def judge_cash(amount_minor: int, tender: Tender | None, most_minor: int) -> Declined | None:
    """Hold an amount paid in cash against the most that is taken in cash (R-26)."""
    if tender is not Tender.CASH or amount_minor <= most_minor:
        return None
    return Declined(
        reason=DeclineReason.CASH_ABOVE_LIMIT,
        message=f"cash: expected {format_minor(most_minor)} or less, got {format_minor(amount_minor)}",
        limit_minor=most_minor,
    )


def category_limits(outer: VendLimits, rules: CategoryRules) -> VendLimits:
    """Narrow an installation's limits to a category's; where the two do not meet, the installation's bound holds."""

    def bounded(amount_minor: int) -> int:
        return min(max(amount_minor, outer.min_minor), outer.max_minor)

    return VendLimits(min_minor=bounded(rules.recharge_min_minor), max_minor=bounded(rules.recharge_max_minor))


def judge_vendor(*, name: str, active: bool) -> Declined | None:
    """Refuse to sell through a vendor that has been stopped."""
    if active:
        return None
    return Declined(reason=DeclineReason.VENDOR_INACTIVE, message=f"vendor {name}: expected an active one, got stopped")


def judge_mode(mode: Mode, account: str) -> Declined | None:
    """Refuse to sell to an account that pays by bill."""
    if mode is Mode.PREPAID:
        return None
    return Declined(
        reason=DeclineReason.POSTPAID_ACCOUNT, message=f"account {account}: expected a prepaid one, got postpaid"
    )
