"""Razorpay's webhooks: signed over their raw bytes, read field by field."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from billing.notices.signing import SignatureFault
from vending.edges.payment_gateway import Webhook
from vending.edges.razorpay import EVENT_HEADER, SIGNATURE_HEADER, Razorpay, RazorpaySettings
from vending.vends import MalformedRequest

VECTORS = Path(__file__).parent.parent / "vectors" / "gateway_webhooks.jsonl"
SECRET = b"s" * 32
SENT_S = 1_795_262_400


def gateway() -> Razorpay:
    """Return the adapter; nothing here goes out."""
    return Razorpay(
        RazorpaySettings(
            url="http://127.0.0.1:9", key_id="key", key_secret="secret", webhook_secret=SECRET, timeout_s=1.0
        )
    )


def signed(body: bytes) -> dict[str, str]:
    """Sign a body as the gateway does."""
    return {SIGNATURE_HEADER: hmac.new(SECRET, body, hashlib.sha256).hexdigest(), EVENT_HEADER: "evt_1"}


@pytest.mark.parametrize("line", VECTORS.read_text().splitlines())
def test_recorded_webhook_is_read_as_its_fact(line: str) -> None:
    """Of all that is sent only order, money and what went back of it are read."""
    vector: dict[str, Any] = json.loads(line)
    body = json.dumps(vector["body"]).encode()
    heard = gateway().read_webhook(signed(body), body, now_s=SENT_S + 60)
    assert isinstance(heard, Webhook)
    assert (heard.event_id, asdict(heard.fact)) == ("evt_1", vector["expects"])


def test_webhook_changed_unsigned_or_old_is_refused() -> None:
    """Any other byte, no signature, one of two days ago, one of tomorrow."""
    body = json.dumps(json.loads(VECTORS.read_text().splitlines()[0])["body"]).encode()
    headers = signed(body)
    judge = gateway().read_webhook
    assert judge({}, body, now_s=SENT_S) is SignatureFault.MISSING
    for place in range(0, len(body), 97):
        changed = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        assert judge(headers, changed, now_s=SENT_S) is SignatureFault.WRONG
    assert isinstance(judge(headers, body, now_s=SENT_S + 172_800), Webhook)
    assert judge(headers, body, now_s=SENT_S + 172_801) is SignatureFault.EXPIRED
    assert judge(headers, body, now_s=SENT_S - 301) is SignatureFault.EXPIRED


def test_copy_without_an_event_id_is_known_by_its_bytes() -> None:
    """The header is not signed: without it the digest of the body tells copies."""
    body = VECTORS.read_text().splitlines()[0].encode()
    body = json.dumps(json.loads(body)["body"]).encode()
    headers = {SIGNATURE_HEADER: signed(body)[SIGNATURE_HEADER]}
    heard = gateway().read_webhook(headers, body, now_s=SENT_S)
    assert isinstance(heard, Webhook)
    assert heard.event_id == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        json.dumps({"event": "payment_link.paid", "created_at": SENT_S}).encode(),
        json.dumps({"event": "payment_link.paid", "created_at": "now"}).encode(),
        json.dumps(
            {"event": "refund.processed", "created_at": SENT_S,
             "payload": {"payment": {"entity": {"id": "pay_1", "amount": -1, "currency": "INR"}}}}
        ).encode(),
    ],
)  # fmt: skip
def test_signed_bytes_of_another_form_are_malformed(body: bytes) -> None:
    """A good signature makes no good content."""
    with pytest.raises(MalformedRequest):
        gateway().read_webhook(signed(body), body, now_s=SENT_S)
