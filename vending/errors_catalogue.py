"""Every code of a refusal or error of the vending interface, with its status and what the station should do.

Stage: beside every use case that refuses. One list, which the interface answers by, serves at `/v1/errors` and shows in
its OpenAPI document; `docs/vending-api.md` prints it. Never: a message, which names the case at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Repeat(StrEnum):
    """What may be sent after a refusal.

    `same_id`: the very same request again, under the same message id; nobody knows what became of the first.
    `corrected`: a corrected request; nothing was stored, so the message id may be used again.
    `new_id`: the answer is stored under its message id for ever; once the cause is removed, ask under a new one.
    `none`: nothing of this kind, until somebody has changed something at the utility.
    """

    SAME_ID = "same_id"
    CORRECTED = "corrected"
    NEW_ID = "new_id"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One code: its status, what it means, what to do, and what may be sent after it."""

    code: str
    status: int
    meaning: str
    to_do: str
    repeat: Repeat

    @property
    def is_stored(self) -> bool:
        """Tell whether a vend that is refused so is answered so for ever."""
        return self.repeat is Repeat.NEW_ID


_TABLE: Mapping[Repeat, tuple[tuple[str, int, str, str], ...]] = {
    # Statuses first: 400 form, 401 who, 402 money, 403 may not, 404 not known, 409 state, 422 value, 429 too often.
    Repeat.CORRECTED: (
        ("malformed", 400, "a field is missing, unknown or not of its form", "correct the field that is named"),
        ("bad_amount", 400, "an amount is not digits with none or two decimals", "correct the amount"),
        ("bad_address", 400, "a phone number or mail address is not of its form", "correct the address"),
        ("bad_instant", 400, "an instant has no zone, or has not passed", "correct the instant"),
        ("bad_period", 400, "a period ends before it begins", "correct the days"),
        ("bad_threshold", 400, "a threshold is not of its form", "correct the threshold"),
        ("drn_check_digit", 400, "the last digit of a DRN does not fit the others", "type the DRN again"),
        ("malformed_token", 400, "a token is not 20 digits, or not 9, 12 or 15", "type the token again"),
        ("api_key_wrong", 401, "the key is unknown, wrong or taken back", "see to the key"),
        ("signature_missing", 401, "a signature was expected", "sign the request"),
        ("signature_expired", 401, "the timestamp is not of the last minutes", "set the clock, sign anew"),
        ("signature_wrong", 401, "the signature does not fit the request", "sign the bytes that are sent"),
        ("nonce_reused", 401, "the number of a signed request was used before", "sign each try anew"),
        ("not_allowed", 403, "the key's role or scopes do not allow it", "ask with another key"),
        ("body_too_large", 413, "the body is longer than any request", "send less"),
        ("body_too_slow", 408, "the body did not come in time", "send it again"),
        ("unknown_path", 404, "there is no such path", "correct the path"),
        ("method_not_allowed", 405, "the path does not take this method", "correct the method"),
        ("message_id_reused", 409, "the message id belongs to another request", "use an id once"),
        ("second_person_needed", 409, "more than one person may issue to an account within a day",
         "propose it: `POST /v1/issue-proposals`, under the same id"),
        ("second_person_needed", 409, "more than one person may issue to an account within a day",
         "propose it: `POST /v1/issue-proposals`, under the same id"),
        ("coupon_mistyped", 400, "a coupon's PIN or serial is not of its form, or a digit is wrong; no try is counted",
         "type it again"),
        ("coupon_not_for_sale", 409, "a coupon of the range is not in stock", "sell others"),
        ("log_broken", 400, "an entry of a station's log is altered or not signed by its key", "tell the utility"),
        ("log_gap", 409, "entries of a station's log are missing", "send them from the number that is named"),
        ("vendor_required", 400, "a key of the utility's asks about no vendor", "name the vendor"),
        ("bad_scope_of_batch", 400, "a bank batch is of the whole vendor", "name no terminal or operator"),
        ("deposit_refused", 400, "a deposit without an amount", "correct the amount"),
        ("reference_reused", 409, "the reference belongs to another deposit", "look at that deposit, use its own"),
        ("too_many_requests", 429, "more requests than allowed", "wait as `Retry-After` says"),
        ("vend_day_full", 429, "the vends or the money of the day are used up", "sell tomorrow, or ask the utility"),
        ("period_too_long", 422, "more days than one answer holds", "ask for fewer days"),
        ("client_mismatch", 403, "the clientID or terminalID of an XMLVend message is not the caller's",
         "send one's own"),
        ("meter_data_missing", 400, "an XMLVend message names no number of a meter", "send the meter's number"),
    ),
    Repeat.NEW_ID: (
        ("unknown_meter", 404, "no meter has this serial or DRN", "ask the consumer for the meter's number"),
        ("ambiguous_meter", 409, "the name is the serial of one meter and the DRN of another", "use the other name"),
        ("meter_not_billed", 409, "no account is billed by the meter now", "send the consumer to the utility"),
        ("meter_without_sts", 409, "the meter has no record to make tokens by", "send the consumer to the utility"),
        ("meter_key_unsupported", 409, "the meter's record cannot be used", "send the consumer to the utility"),
        ("meter_not_capable", 409, "the meter does not take what was asked for", "ask for what it takes"),
        ("engine_not_offered", 409, "no engine makes tokens of this kind here", "send the consumer to the utility"),
        ("key_change_needed", 409, "the meter needs another key before it takes credit",
         "call `POST /v1/meters/{serial}/key-change`, print its tokens, sell under a new id"),
        ("key_change_refused", 409, "the key change is not possible", "send the consumer to the utility"),
        ("key_expired", 409, "the key is past its expiry", "send the consumer to the utility"),
        ("key_type_refused", 409, "the meter has a key that takes no credit", "send the consumer to the utility"),
        ("vending_key_unknown", 409, "no vending key is there for the meter's supply group", "tell the utility"),
        ("tid_too_far_ahead", 409, "the meter has had its tokens of the next minutes", "sell some minutes later"),
        ("tid_era_exhausted", 409, "the meter's base date has no token ids left", "send the consumer to the utility"),
        ("risk_limit", 409, "the security module has made what it may on a day", "tell the utility"),
        ("module_refused", 409, "the security module refuses it", "tell the utility"),
        ("amount_below_minimum", 422, "less than is sold", "ask for the limit or more"),
        ("amount_above_maximum", 422, "more than is sold at once", "ask for the limit or less"),
        ("cash_above_limit", 422, "more than is taken in cash", "take another tender, or less"),
        ("vendor_credit", 402, "the vendor's float does not reach", "make a deposit"),
        ("vendor_inactive", 403, "the vendor has been stopped", "ask the utility"),
        ("postpaid_account", 409, "the account pays by bill", "send the consumer to the utility"),
        ("vend_reversed", 409, "the vend was taken back", "sell under a new id"),
    ),
    Repeat.SAME_ID: (
        ("database_busy", 503, "no answer in time", "send the same again, after `Retry-After`"),
        ("module_absent", 503, "the security module gave no answer", "send the same again, after `Retry-After`"),
        ("module_busy", 503, "the security module is at work for others", "send the same again, after `Retry-After`"),
        ("module_timeout", 503, "the security module gave no answer", "send the same again, after `Retry-After`"),
        ("module_unavailable", 503, "the security module is away", "send the same again, after `Retry-After`"),
        ("internal_error", 500, "a fault of our own", "send the same again, then tell the utility"),
        ("unknown_vend", 404, "no vend of this vendor under this id", "send the vend again under the same id"),
    ),
    Repeat.NONE: (
        ("advice_contradicts", 409, "the vend was confirmed or taken back before", "keep to what was first advised"),
        ("never_confirmed", 409, "the vend was held until its time was over and was then taken back with its money",
         "the token was shown to nobody: give the money back, or sell under a new id"),
        ("unknown_proposal", 404, "no proposed issue has this number", "correct the number"),
        ("same_person", 409, "whoever proposed an issue does not approve it", "let another person approve it"),
        ("proposal_decided", 409, "the proposed issue was decided otherwise", "propose another"),
        ("unknown_proposal", 404, "no proposed issue has this number", "correct the number"),
        ("same_person", 409, "whoever proposed an issue does not approve it", "let another person approve it"),
        ("proposal_decided", 409, "the proposed issue was decided otherwise", "propose another"),
        ("released_already", 409, "the token was given out: too late to cancel", "send a reverse advice"),
        ("use_case_unsupported", 404, "a use case of XMLVend that is not offered here", "nothing"),
        ("unknown_vendor", 404, "no vendor has this name", "correct the name"),
        ("unknown_batch", 404, "the batch has not begun", "read the number of the open one"),
        ("unknown_deposit", 404, "no deposit has this reference", "correct the reference"),
        ("unknown_account", 404, "no account has this number", "correct the number"),
        ("unknown_contact", 404, "no such contact", "correct the contact"),
        ("sms_not_configured", 404, "nobody asks by SMS here", "nothing"),
        ("payments_not_configured", 404, "nobody pays online here, or by this gateway", "nothing"),
        ("unknown_payment", 404, "no online recharge has this order id", "correct the order id"),
        ("payment_not_refundable", 409, "nothing is credited for the order now", "read the order"),
        ("too_many_payments", 429, "more orders than an account may begin in an hour", "pay one of them, or wait"),
        ("gateway_unavailable", 503, "the payment gateway did not take the order", "begin another later"),
        ("recharge_link_wrong", 404, "the link was not made here, or has expired", "ask the utility for another"),
        ("too_many_contacts", 409, "as many contacts as there may be", "remove one first"),
        ("code_wrong", 422, "another code was sent", "type the code again"),
        ("code_expired", 422, "the code is too old", "ask for another"),
        ("code_spent", 422, "too many wrong tries", "ask for another"),
        ("no_code", 422, "no code was asked for", "ask for one"),
        ("too_many_codes", 429, "more codes than are sent in a day", "wait"),
        ("record_conflict", 409, "the meter's record does not allow it now", "look at the record first"),
        ("record_refused", 422, "fields of the record do not fit together", "correct the fields that are named"),
        ("coupons_not_configured", 404, "no coupons are redeemed here", "nothing"),
        ("coupon_unknown", 404, "no coupon has this PIN, or not the serial that came with it; counts as a try",
         "type them again"),
        ("coupon_redeemed", 409, "the coupon was redeemed", "nothing; whoever redeemed it gets the same answer again"),
        ("coupon_lapsed", 409, "the coupon's three months are over",
         "send its holder to the utility's office, which revalidates it"),
        ("coupon_void", 409, "the coupon was taken out of use", "send its holder to whoever sold it"),
        ("coupon_not_sold", 409, "its seller has not activated the coupon", "let the seller activate it"),
        ("coupon_on_hold", 409, "the coupon's station is in good standing no more", "send its holder to the utility"),
        ("coupon_locked", 429, "too many wrong PINs", "wait as `Retry-After` says; a serial beside the PIN may help"),
        ("coupon_not_lapsed", 409, "the coupon needs no revalidation, or can have none", "look at the coupon"),
        ("coupon_not_voidable", 409, "the coupon was redeemed", "nothing"),
        ("unknown_licence", 404, "the vendor has no licence of this number", "correct the number"),
        ("licence_closed", 409, "the licence was settled", "ask the utility for another"),
        ("log_forked", 409, "an entry is known with other contents: the log was rewritten", "tell the utility"),
        ("unknown_fault_report", 404, "no open fault report has this number", "correct the number"),
        ("token_not_issued", 422, "the digits are no token issued here for the meter", "type them again"),
        ("token_crc_mismatch", 422, "the digits are no token of the meter", "type them again"),
        ("unsupported_token", 422, "a token of a kind that is not read here", "nothing"),
        ("malformed_paygo_token", 422, "the digits are no token of the device", "type them again"),
        ("paygo_token_mismatch", 422, "the digits are no token of the device", "type them again"),
    ),
}  # fmt: skip
CATALOGUE: Mapping[str, CatalogueEntry] = {
    code: CatalogueEntry(code=code, status=status, meaning=meaning, to_do=to_do, repeat=repeat)
    for repeat, rows in _TABLE.items()
    for code, status, meaning, to_do in rows
}


def status_of(code: str) -> int:
    """Return the HTTP status of a code."""
    return CATALOGUE[code].status


def described(*codes: str) -> dict[int, str]:
    """Return the codes that a route may answer by status, as its OpenAPI document shows them."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CATALOGUE[code].status, []).append(f"`{code}`: {CATALOGUE[code].meaning}")
    return {status: "; ".join(texts) for status, texts in sorted(by_status.items())}
