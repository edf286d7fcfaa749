"""Signatures between us and an SMS gateway."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.notices.signing import AGE_S_MAX, SignatureFault, judge_signature, sign

SECRET = b"s" * 32
NOW_S = 1_795_000_000
BODY = b'{"id":"1"}'
HEADERS = sign(secret=SECRET, method="POST", path="/sms?x=1", body=BODY, at_s=NOW_S, nonce="n" * 16)


def judged(headers: dict[str, str] | None = None, **changed: object) -> SignatureFault | None:
    """Judge the request with something changed."""
    request = {"secret": SECRET, "method": "POST", "path": "/sms?x=1", "body": BODY, "now_s": NOW_S, **changed}
    return judge_signature(HEADERS if headers is None else headers, **request)  # type: ignore[arg-type]  # By name.


def test_signature_is_the_documented_one() -> None:
    """Anybody can make it from the documentation: HMAC-SHA256 over six lines."""
    lines = f"v1\n{NOW_S}\n{'n' * 16}\nPOST\n/sms?x=1\n{hashlib.sha256(BODY).hexdigest()}"
    assert {
        "X-Prepaid-Timestamp": str(NOW_S),
        "X-Prepaid-Nonce": "n" * 16,
        "X-Prepaid-Signature": "v1=" + hmac.new(SECRET, lines.encode(), hashlib.sha256).hexdigest(),
    } == HEADERS
    assert judged() is None


@pytest.mark.parametrize(
    "changed",
    [{"secret": b"t" * 32}, {"method": "PUT"}, {"path": "/v1/sms/inbound"}, {"path": "/sms"}, {"body": b"{}"}],
)
def test_anything_changed_is_refused(changed: dict[str, object]) -> None:
    """No part can be changed, no request moved elsewhere."""
    assert judged(**changed) is SignatureFault.WRONG


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_is_missing_or_of_another_form_is_refused(name: str) -> None:
    """What cannot be checked is not believed."""
    assert judged({key: value for key, value in HEADERS.items() if key != name}) is SignatureFault.MISSING
    assert judged({**HEADERS, name: "ö"}) in (SignatureFault.MISSING, SignatureFault.WRONG)
    assert judged({**HEADERS, name: HEADERS[name] + "1"}) is SignatureFault.WRONG


def test_request_of_some_time_ago_is_refused() -> None:
    """What was recorded is worth nothing later; clocks may differ by minutes."""
    for late_s in (-AGE_S_MAX, AGE_S_MAX):
        assert judged(now_s=NOW_S + late_s) is None
    for late_s in (-AGE_S_MAX - 1, AGE_S_MAX + 1):
        assert judged(now_s=NOW_S + late_s) is SignatureFault.EXPIRED


@given(st.integers(0, len(BODY) * 8 - 1))
def test_every_bit_of_the_body_counts(bit: int) -> None:
    """A single bit that is turned over is found."""
    changed = bytearray(BODY)
    changed[bit // 8] ^= 1 << bit % 8
    assert judged(body=bytes(changed)) is SignatureFault.WRONG
