"""Razorpay as a payment gateway: standard payment links, refunds, signed webhooks.

Stage: behind the payment-gateway port. Our order id is the link's `reference_id`, which Razorpay takes once. A webhook
is signed over its raw body by HMAC-SHA256 in hex under the webhook's own secret; its id comes in a header that is not
signed, so the digest of the body takes its place where it is missing. Razorpay repeats a webhook for a day: what is
older than two is refused, what is younger is heard once. Never: a key or a body in a log.

Source: documents/paymentLink.md and refund.md of razorpay/razorpay-python, razorpay.com/docs/payment-links/api, and
webhooks as others have recorded them. The header of the event's id was not found in what could be read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import msgspec

from billing.notices.signing import SignatureFault
from vending.edges.payment_gateway import GatewayAway, GatewayRefused, LinkOrder, OrderStatus, PayLink, Webhook
from vending.payments import Fact, FactKind
from vending.vends import MalformedRequest

SIGNATURE_HEADER = "X-Razorpay-Signature"
EVENT_HEADER = "X-Razorpay-Event-Id"
# Razorpay tries for 24 hours; a day more for clocks and for a webhook that was switched on again by hand.
_AGE_S_MAX = 172_800
_AHEAD_S_MAX = 300
_LATER = frozenset({401, 403, 408, 409, 425, 429})
_KIND_OF_EVENT = {
    "payment_link.paid": FactKind.PAID,
    "payment_link.expired": FactKind.EXPIRED,
    "payment_link.cancelled": FactKind.EXPIRED,
    "payment.failed": FactKind.FAILED,
    "refund.processed": FactKind.REFUNDED,
}
_ENDED = frozenset({"expired", "cancelled"})
# Razorpay keeps our reference in the notes of an order, which it copies to its payments.
_NOTE = "order_id"
_ID_CHARACTERS_MAX = 64

# A JSON object of Razorpay's; its fields are read one by one, each checked.
_Entity = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RazorpaySettings:
    """Where Razorpay is and who we are there."""

    url: str
    key_id: str
    key_secret: str = field(repr=False)
    webhook_secret: bytes = field(repr=False)
    timeout_s: float


class Razorpay:
    """Razorpay behind the port."""

    def __init__(self, settings: RazorpaySettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Take the settings; `transport` stands for the network where there is none."""
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            auth=(settings.key_id, settings.key_secret),
            timeout=settings.timeout_s,
            follow_redirects=False,
            transport=transport,
        )

    @property
    def name(self) -> str:
        """By what name its words are kept."""
        return "razorpay"

    async def create(self, order: LinkOrder) -> PayLink:
        """Take an order, or find the one that was taken under its reference."""
        body = {
            "amount": order.amount_minor,
            "currency": order.currency,
            "accept_partial": False,
            "expire_by": order.expires_s,
            "reference_id": order.reference,
            "description": order.description,
            # It is we who tell the consumer.
            "notify": {"sms": False, "email": False},
            "reminder_enable": False,
            "notes": {_NOTE: order.reference},
            "callback_url": order.return_url,
            "callback_method": "get",
        }
        try:
            return _link(await self._call("POST", "/v1/payment_links", json=body))
        except GatewayRefused:
            taken = await self._find(order.reference)
            if taken is None:
                raise
            return _link(taken)

    async def status(self, reference: str, gateway_order: str | None) -> OrderStatus | None:
        """Ask about an order, and about each payment for it."""
        if gateway_order is None:
            found = await self._find(reference)
        else:
            found = await self._call("GET", f"/v1/payment_links/{gateway_order}")
        if found is None:
            return None
        facts = []
        for paid in found.get("payments") or []:
            payment = await self._call("GET", f"/v1/payments/{_text(paid, 'payment_id')}")
            if payment.get("status") in ("captured", "refunded"):
                facts += _facts_of_payment(payment, reference)
        if found.get("status") in _ENDED:
            facts.append(Fact(kind=FactKind.EXPIRED, reference=reference))
        return OrderStatus(link=_link(found), facts=tuple(facts))

    async def refund(self, capture: str, amount_minor: int) -> bool:
        """Send money back whole. It is asked first what is on its way back: a lost answer refunds nothing twice."""
        told = await self._call("GET", f"/v1/payments/{capture}/refunds")
        begun = [refund for refund in told.get("items") or [] if refund.get("status") != "failed"]
        if sum(_number(refund, "amount") for refund in begun) < amount_minor:
            begun.append(await self._call("POST", f"/v1/payments/{capture}/refund", json={"amount": amount_minor}))
        return all(refund.get("status") == "processed" for refund in begun)

    def read_webhook(self, headers: Mapping[str, str], body: bytes, *, now_s: int) -> Webhook | SignatureFault:
        """Check the signature over the raw bytes, then read them."""
        signature = headers.get(SIGNATURE_HEADER)
        if signature is None:
            return SignatureFault.MISSING
        expected = hmac.new(self._settings.webhook_secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return SignatureFault.WRONG
        event = _entity(body)
        if not -_AGE_S_MAX <= _number(event, "created_at") - now_s <= _AHEAD_S_MAX:
            return SignatureFault.EXPIRED
        event_id = headers.get(EVENT_HEADER) or hashlib.sha256(body).hexdigest()
        return Webhook(event_id=event_id[:_ID_CHARACTERS_MAX], fact=_fact(event))

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def _find(self, reference: str) -> _Entity | None:
        found = await self._call("GET", "/v1/payment_links", params={"reference_id": reference})
        links = [link for link in found.get("payment_links") or [] if link.get("reference_id") == reference]
        return links[0] if links else None

    async def _call(self, method: str, path: str, **parts: Any) -> _Entity:  # What httpx takes: json or params.
        try:
            answered = await self._http.request(method, path, **parts)
        except httpx.HTTPError as error:
            raise GatewayAway(f"gateway: {method} {path}: expected an answer, got {type(error).__name__}") from None
        if answered.is_success:
            try:
                return _entity(answered.content)
            except MalformedRequest:
                raise GatewayAway(f"gateway: {method} {path}: expected JSON, got other bytes") from None
        told = f"gateway: {method} {path}: expected success, got {answered.status_code}"
        if answered.is_client_error and answered.status_code not in _LATER:
            raise GatewayRefused(told)
        raise GatewayAway(told)


def _link(link: _Entity) -> PayLink:
    return PayLink(gateway_order=_text(link, "id"), url=_text(link, "short_url"))


def _facts_of_payment(payment: _Entity, reference: str | None) -> list[Fact]:
    """Say of a payment that it was received and, if so, that it has gone back."""
    paid = _money(FactKind.PAID, payment, reference)
    if paid.refunded_minor == 0:
        return [paid]
    return [paid, _money(FactKind.REFUNDED, payment, reference)]


def _fact(event: _Entity) -> Fact:
    kind = _KIND_OF_EVENT.get(str(event.get("event")), FactKind.OTHER)
    payload = event.get("payload")
    entities = {
        name: part["entity"]
        for name, part in (payload.items() if isinstance(payload, dict) else ())
        if isinstance(part, dict) and isinstance(part.get("entity"), dict)
    }
    payment, link = entities.get("payment", {}), entities.get("payment_link", {})
    reference = link.get("reference_id") or _note(payment)
    match kind:
        case FactKind.PAID | FactKind.REFUNDED:
            return _money(kind, payment, reference)
        case FactKind.FAILED | FactKind.EXPIRED if reference is not None:
            return Fact(kind=kind, reference=reference)
        case _:
            return Fact(kind=FactKind.OTHER)


def _money(kind: FactKind, payment: _Entity, reference: str | None) -> Fact:
    return Fact(
        kind=kind,
        reference=reference,
        capture=_text(payment, "id"),
        amount_minor=_number(payment, "amount"),
        currency=_text(payment, "currency"),
        refunded_minor=_number(payment, "amount_refunded"),
    )


def _note(payment: _Entity) -> str | None:
    # Without notes Razorpay sends an empty list instead of an object.
    notes = payment.get("notes")
    reference = notes.get(_NOTE) if isinstance(notes, dict) else None
    return reference if isinstance(reference, str) else None


def _entity(body: bytes) -> _Entity:
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = None
    if not isinstance(decoded, dict):
        raise MalformedRequest("body: expected a JSON object")
    return cast(_Entity, decoded)


def _text(entity: _Entity, name: str) -> str:
    value = entity.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 2_000:
        raise MalformedRequest(f"{name}: expected a text")
    return value


def _number(entity: _Entity, name: str) -> int:
    value = entity.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value < 2**53:
        raise MalformedRequest(f"{name}: expected a whole number")
    return value
