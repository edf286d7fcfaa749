"""Which fault of XMLVend stands for which of our codes.

Stage: between a refusal and its rendering. Every code of the catalogue has exactly one fault; where XMLVend has a fault
of a use case's own, that stands for the code within that use case. Our code goes along in `faultCode`. Never: a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from vending.xmlvend.names import UseCase


class Fault(StrEnum):
    """A fault by its name; its type in the schema is the name with `Ex`."""

    UNKNOWN_METER = "UnknownMeter"
    BLOCKED_METER = "BlockedMeter"
    MSNO_CHECK_DIGIT = "MSNOCheckDigit"
    INSUFFICIENT_METER_DATA = "InsufficientMeterData"
    VENDOR_CREDIT = "VendorCredit"
    SGC_AUTHORISATION = "SGCAuthorisation"
    LATEST_KRN = "LatestKRN"
    UPDATE_KEY_SAME = "UpdateMtrKeySame"
    UPDATE_KEY_UNKNOWN_METER = "UnknownMeterUpdateMtrKey"
    CONFIRM_CUSTOMER = "ConfirmCustomer"
    CANCEL = "Cancel"
    REVERSAL = "Reversal"
    LAST_RESPONSE = "LastResponse"
    REPRINT = "Reprint"
    VERIFY_TOKEN = "VerifyToken"
    CONFIRMATION = "Confirmation"
    CLIENT_AUTHORISATION = "ClientIDAuthorisation"
    CLIENT_SSL = "ClientIDSSL"
    REQUEST_AUTHORISATION = "RequestAuthorisation"
    START_BATCH = "StartBatch"
    END_BATCH = "EndBatch"
    CHECK_BATCH_TOTAL = "CheckBatchTotal"
    REPRINT_END_BATCH = "ReprintEndBatch"
    REPRINT_DEPOSIT_SLIP = "ReprintDepositSlip"
    STS_DATA = "STSData"
    USE_CASE_SUPPORT = "UseCaseSupport"
    SCHEMA = "XMLVendSchema"
    SYSTEM = "System"
    # A rule that has no fault of its own: the parent of those of rules.
    BUSINESS_RULE = "BusinessRule"

    @property
    def type_name(self) -> str:
        """The fault's type in the schema."""
        return f"{self.value}Ex"


_CODES_OF: Mapping[Fault, tuple[str, ...]] = {
    Fault.UNKNOWN_METER: ("unknown_meter", "ambiguous_meter"),
    Fault.BLOCKED_METER: ("postpaid_account", "meter_not_billed"),
    Fault.MSNO_CHECK_DIGIT: ("drn_check_digit",),
    Fault.INSUFFICIENT_METER_DATA: ("meter_without_sts", "meter_data_missing"),
    Fault.VENDOR_CREDIT: ("vendor_credit",),
    Fault.SGC_AUTHORISATION: ("vending_key_unknown",),
    # What a key change helps, or should have.
    Fault.LATEST_KRN: ("key_change_needed", "key_expired", "tid_era_exhausted"),
    Fault.STS_DATA: (
        "meter_key_unsupported",
        "meter_not_capable",
        "engine_not_offered",
        "key_type_refused",
        "key_change_refused",
        "record_conflict",
        "record_refused",
    ),
    Fault.CONFIRM_CUSTOMER: ("unknown_account",),
    Fault.CANCEL: ("released_already",),
    Fault.VERIFY_TOKEN: (
        "malformed_token",
        "token_not_issued",
        "token_crc_mismatch",
        "unsupported_token",
        "malformed_paygo_token",
        "paygo_token_mismatch",
    ),
    # Known here as XMLVend knows it: there is no transaction under the message id.
    Fault.LAST_RESPONSE: ("unknown_vend",),
    Fault.CLIENT_AUTHORISATION: ("vendor_inactive", "api_key_wrong"),
    Fault.CLIENT_SSL: (
        "client_mismatch",
        "signature_missing",
        "signature_expired",
        "signature_wrong",
        "nonce_reused",
    ),
    Fault.REQUEST_AUTHORISATION: (
        "not_allowed",
        "second_person_needed",
        "same_person",
        "vend_day_full",
        "unknown_vendor",
        "vendor_required",
    ),
    Fault.CHECK_BATCH_TOTAL: ("unknown_batch", "bad_scope_of_batch"),
    Fault.REPRINT_DEPOSIT_SLIP: ("unknown_deposit",),
    Fault.USE_CASE_SUPPORT: ("use_case_unsupported", "unknown_path", "method_not_allowed"),
    Fault.SCHEMA: (
        "malformed",
        "bad_amount",
        "bad_address",
        "bad_instant",
        "bad_period",
        "bad_threshold",
        "body_too_large",
        "body_too_slow",
        "period_too_long",
    ),
    # Nobody knows what became of it, or it may go well in a moment: ask for the last response, or send it again.
    Fault.SYSTEM: (
        "database_busy",
        "module_absent",
        "module_busy",
        "module_timeout",
        "module_unavailable",
        "gateway_unavailable",
        "internal_error",
        "too_many_requests",
    ),
    Fault.BUSINESS_RULE: (
        "message_id_reused",
        "amount_below_minimum",
        "amount_above_maximum",
        "cash_above_limit",
        "vend_reversed",
        "advice_contradicts",
        "never_confirmed",
        "tid_too_far_ahead",
        "risk_limit",
        "module_refused",
        "deposit_refused",
        "reference_reused",
        "unknown_fault_report",
        "unknown_proposal",
        "proposal_decided",
        # No use case of XMLVend comes to these.
        "coupon_mistyped",
        "coupon_not_for_sale",
        "log_broken",
        "log_gap",
        "unknown_contact",
        "sms_not_configured",
        "payments_not_configured",
        "unknown_payment",
        "payment_not_refundable",
        "too_many_payments",
        "recharge_link_wrong",
        "too_many_contacts",
        "code_wrong",
        "code_expired",
        "code_spent",
        "no_code",
        "too_many_codes",
        "coupons_not_configured",
        "coupon_unknown",
        "coupon_redeemed",
        "coupon_lapsed",
        "coupon_void",
        "coupon_not_sold",
        "coupon_on_hold",
        "coupon_locked",
        "coupon_not_lapsed",
        "coupon_not_voidable",
        "unknown_licence",
        "licence_closed",
        "log_forked",
    ),
}
FAULT_OF_CODE: Mapping[str, Fault] = {code: fault for fault, codes in _CODES_OF.items() for code in codes}
# Where XMLVend has a fault of the use case's own.
FAULT_WITHIN: Mapping[tuple[UseCase, str], Fault] = {
    (UseCase.CONFIRM_CUSTOMER, "meter_not_billed"): Fault.CONFIRM_CUSTOMER,
    (UseCase.REPRINT, "unknown_vend"): Fault.REPRINT,
    (UseCase.CONFIRMATION, "unknown_vend"): Fault.CONFIRMATION,
    (UseCase.CONFIRMATION, "advice_contradicts"): Fault.CONFIRMATION,
    (UseCase.CONFIRMATION, "never_confirmed"): Fault.CONFIRMATION,
    (UseCase.CONFIRMATION, "message_id_reused"): Fault.CONFIRMATION,
    (UseCase.REVERSAL, "unknown_vend"): Fault.REVERSAL,
    (UseCase.REVERSAL, "advice_contradicts"): Fault.REVERSAL,
    (UseCase.REVERSAL, "message_id_reused"): Fault.REVERSAL,
    (UseCase.UPDATE_METER_KEY, "unknown_meter"): Fault.UPDATE_KEY_UNKNOWN_METER,
    (UseCase.UPDATE_METER_KEY, "key_change_refused"): Fault.UPDATE_KEY_SAME,
    (UseCase.START_BATCH, "bad_scope_of_batch"): Fault.START_BATCH,
    (UseCase.END_BATCH, "bad_scope_of_batch"): Fault.END_BATCH,
    (UseCase.END_BATCH, "unknown_batch"): Fault.END_BATCH,
    (UseCase.REPRINT_END_BATCH, "unknown_batch"): Fault.REPRINT_END_BATCH,
}


def fault_of(code: str, use_case: UseCase | None) -> Fault:
    """Return the fault that stands for a code, within a use case where that has its own."""
    if use_case is not None and (use_case, code) in FAULT_WITHIN:
        return FAULT_WITHIN[use_case, code]
    return FAULT_OF_CODE[code]
