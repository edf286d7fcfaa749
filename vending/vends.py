"""A vend before and between its writes: what was asked, what is refused, which token carries it.

Stage: after the bytes of a request, before its transaction writes anything. Enters: fields as sent, the meter's
record, the limits, an instant. Leaves: a `VendRequest` and its digest, a `Declined` that is stored as the answer, or
an `IssuedToken`. Never: a database, a clock, the ledger, an HTTP status.

Standard: IEC 62055-41 for the token (class 0 subclass 4, currency credit, electricity).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from billing.calendar import from_ms
from billing.money import MINOR_PER_MAJOR, format_minor, parse_amount
from billing.prepayment import CategoryRules
from billing.supply import Mode
from vending.security import (
    CreditKeyTypeRefused,
    SecurityModule,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CURRENCY_STEPS_PER_UNIT, CurrencyField
from vending.sts.errors import StsError, TidOutOfRange
from vending.sts.identity import (
    DRN_DIGITS,
    IIN_OF_13_DIGIT_DRN,
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    is_luhn_valid,
)
from vending.sts.tid import TidDeclined, TidDeclineReason, is_key_expired, next_tid, tid_at
from vending.sts.tokens import CreditService, TokenNumber

# A message id goes into paths and logs. 64 characters hold a UUID, or terminal, time and number of XMLVend.
MESSAGE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
# What may name a meter: a serial as the meters table allows it; a DRN is a special case of its form.
METER_PATTERN = r"^[A-Za-z0-9_-]{1,32}$"
IIN_OF_11_DIGIT_DRN = "600727"

_MESSAGE_ID = re.compile(MESSAGE_ID_PATTERN.strip("^$"))
_METER = re.compile(METER_PATTERN.strip("^$"))
_STEPS_PER_MINOR = CURRENCY_STEPS_PER_UNIT // MINOR_PER_MAJOR


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
    AMOUNT_BELOW_MINIMUM = "amount_below_minimum"
    AMOUNT_ABOVE_MAXIMUM = "amount_above_maximum"
    VENDOR_INACTIVE = "vendor_inactive"
    POSTPAID_ACCOUNT = "postpaid_account"
    KEY_EXPIRED = "key_expired"
    KEY_TYPE_REFUSED = "key_type_refused"
    VENDING_KEY_UNKNOWN = "vending_key_unknown"
    TID_TOO_FAR_AHEAD = "tid_too_far_ahead"
    TID_ERA_EXHAUSTED = "tid_era_exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The answer is no, for ever under this message id.

    Invariants: `limit_minor` is set for the two amount limits only.
    """

    reason: DeclineReason
    message: str
    limit_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VendRequest:
    """What a station asks for.

    Invariants: every field is of its form; `amount_minor` is 0 or more and not yet held against the limits.
    """

    message_id: str
    meter: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VendLimits:
    """The smallest and the largest amount of one vend.

    Invariants: 1 <= `min_minor` <= `max_minor`.
    """

    min_minor: int
    max_minor: int

    def __post_init__(self) -> None:
        assert 1 <= self.min_minor <= self.max_minor, f"vend limits: got {self.min_minor} to {self.max_minor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StsFields:
    """A meter's STS columns as stored; `last_tid` is the TID of its latest token."""

    drn: str
    ea: int
    dkga: int
    sgc: str
    key_type: int
    krn: int
    tariff_index: str
    ken: int
    base_year: int
    last_tid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A minted token, its TID, and the credit that it really carries, in 10^-5 of the currency."""

    number: TokenNumber
    tid: int
    amount_e5: int


def read_request(*, message_id: str, meter: str, amount: str) -> VendRequest:
    """Read the fields of a vend.

    Raises: MalformedRequest; BadAmount for anything but digits with none or two decimals.
    """
    if not _MESSAGE_ID.fullmatch(message_id):
        raise MalformedRequest(
            f"message_id: expected 1-64 letters, digits, dots, colons, dashes, got {len(message_id)} characters"
        )
    return VendRequest(message_id=message_id, meter=read_meter(meter), amount_minor=parse_amount(amount))


def read_meter(text: str) -> str:
    """Read what names a meter, serial or DRN.

    Raises: MalformedRequest.
    """
    if not _METER.fullmatch(text):
        raise MalformedRequest(
            f"meter: expected a serial of 1-32 letters, digits, dashes, or a DRN, got {len(text)} characters"
        )
    return text


def request_digest(request: VendRequest) -> bytes:
    """Return the SHA-256 by which two requests under one message id are told apart.

    `500` and `500.00` are the same request; a meter named by serial and by DRN are two.
    """
    canonical = {"amount_minor": request.amount_minor, "meter": request.meter}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).digest()


def read_token(text: str) -> TokenNumber:
    """Read 20 digits as typed, with or without spaces or dashes between groups.

    Raises: MalformedToken for anything else, as 19 digits.
    """
    return TokenNumber(text.replace(" ", "").replace("-", ""))


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


def key_record(fields: StsFields) -> MeterKeyRecord | Declined:
    """Read a meter's stored STS columns as the record to mint with."""
    try:
        return MeterKeyRecord(
            iin=IIN_OF_13_DIGIT_DRN if len(fields.drn) == max(DRN_DIGITS) else IIN_OF_11_DIGIT_DRN,
            drn=Drn(fields.drn),
            ea=EncryptionAlgorithm(f"{fields.ea:02d}"),
            dkga=KeyDerivation(f"{fields.dkga:02d}"),
            sgc=fields.sgc,
            kt=KeyType(fields.key_type),
            krn=fields.krn,
            tariff_index=int(fields.tariff_index),
            ken=fields.ken,
            base_date=BaseDate(f"{fields.base_year % 100:02d}"),
        )
    except (StsError, ValueError) as error:
        return Declined(reason=DeclineReason.METER_KEY_UNSUPPORTED, message=f"meter {fields.drn}: {error}")


def choose_tid(record: MeterKeyRecord, last_tid: int | None, *, now_ms: int) -> int | Declined:
    """Return the TID of the meter's next token, above its last one; the caller persists it with the token."""
    try:
        now_tid = tid_at(from_ms(now_ms), record.base_date)
    except TidOutOfRange as error:
        return Declined(reason=DeclineReason.TID_ERA_EXHAUSTED, message=f"meter {record.drn}: {error}")
    tid = next_tid(last_tid, now_tid)
    if isinstance(tid, TidDeclined):
        return _declined_tid(record, tid)
    if is_key_expired(tid, record.ken):
        return Declined(
            reason=DeclineReason.KEY_EXPIRED,
            message=f"meter {record.drn}: expected a key with KEN {tid >> 16} or more, got {record.ken}; "
            "the meter needs a key change first",
        )
    return tid


def judge_key(module: SecurityModule, record: MeterKeyRecord) -> Declined | None:
    """Tell before a sale, as far as can be told without minting, whether the meter's key takes credit."""
    if record.kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
        return Declined(
            reason=DeclineReason.KEY_TYPE_REFUSED,
            message=f"meter {record.drn}: expected key type 2 or 3 to take credit, got {record.kt:d}",
        )
    try:
        module.key_check_value(sgc=record.sgc, krn=record.krn)
    except StsError as error:
        return declined_by_module(record, error)
    return None


def issue_token(module: SecurityModule, fields: StsFields, amount_minor: int, *, now_ms: int) -> IssuedToken | Declined:
    """Mint the token that carries an amount to a meter.

    Rounds: the carried amount up to what the token's field can hold, in the consumer's favour.
    """
    record = key_record(fields)
    if isinstance(record, Declined):
        return record
    tid = choose_tid(record, fields.last_tid, now_ms=now_ms)
    if isinstance(tid, Declined):
        return tid
    try:
        amount = CurrencyField.encode(amount_minor * _STEPS_PER_MINOR)
        number = module.mint_currency_credit(record, service=CreditService.ELECTRICITY, amount=amount, tid=tid)
    except StsError as error:
        return declined_by_module(record, error)
    return IssuedToken(number=number, tid=tid, amount_e5=amount.amount_e5)


def declined_by_module(record: MeterKeyRecord, error: StsError) -> Declined:
    """Turn what the security module refuses into the answer; its messages hold neither keys nor tokens."""
    reasons: dict[type[StsError], DeclineReason] = {
        VendingKeyExpired: DeclineReason.KEY_EXPIRED,
        CreditKeyTypeRefused: DeclineReason.KEY_TYPE_REFUSED,
        VendingKeyUnknown: DeclineReason.VENDING_KEY_UNKNOWN,
    }
    reason = reasons.get(type(error), DeclineReason.METER_KEY_UNSUPPORTED)
    return Declined(reason=reason, message=f"meter {record.drn}: {error}")


def _declined_tid(record: MeterKeyRecord, declined: TidDeclined) -> Declined:
    if declined.reason is TidDeclineReason.ERA_EXHAUSTED:
        reason, expected = DeclineReason.TID_ERA_EXHAUSTED, "a TID inside the meter's era"
    else:
        reason, expected = DeclineReason.TID_TOO_FAR_AHEAD, f"a TID near {declined.now_tid}"
    return Declined(
        reason=reason, message=f"meter {record.drn}: expected {expected}, got {declined.wanted_tid} as the next one"
    )
