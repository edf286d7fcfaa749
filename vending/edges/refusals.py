"""What routes may refuse, as the OpenAPI document shows it: by status, from the one catalogue of codes.

Stage: where routes are declared. An operation lists every status that it can answer, and no other.
"""

from __future__ import annotations

from vending.edges.models import ErrorAnswer
from vending.errors_catalogue import described
from vending.vends import DeclineReason

# What any request may be answered, and any of a caller with a key.
_ANY = ("malformed", "body_too_slow", "body_too_large", "internal_error", "database_busy")
_OF_CALLERS = (
    "api_key_wrong",
    "signature_missing",
    "signature_expired",
    "signature_wrong",
    "nonce_reused",
    "not_allowed",
    "too_many_requests",
)
_MODULE = ("module_absent", "module_busy", "module_timeout", "module_unavailable")
# What may be told of a meter, and refuse a sale to it.
METER_CODES = (
    "unknown_meter",
    "ambiguous_meter",
    "meter_not_billed",
    "meter_without_sts",
    "meter_key_unsupported",
    "engine_not_offered",
    "drn_check_digit",
    *_MODULE,
)
SALE_CODES = (*(reason.value for reason in DeclineReason), "bad_amount", "drn_check_digit", *_MODULE)

# OpenAPI wants a mapping of statuses to untyped documents.
Responses = dict[int | str, dict[str, object]]


def refusals(*codes: str, is_open: bool = False) -> Responses:
    """Describe what a route refuses, besides what any route does; `is_open` is one that needs no key."""
    every = dict.fromkeys((*codes, *_ANY, *(() if is_open else _OF_CALLERS)))
    return {status: {"model": ErrorAnswer, "description": text} for status, text in described(*every).items()}
