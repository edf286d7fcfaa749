"""The payment-gateway port: what the payment desk needs of whoever takes the money.

Stage: between the desk and an adapter. A gateway takes an order under our own reference once, tells where it is paid
and what was received for it, sends money back whole, and signs what it tells us by itself. Never: a database, a
decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from billing.notices.signing import SignatureFault
from vending.payments import Fact


class GatewayAway(Exception):
    """No answer, or one that may be another later; what was asked may have been done. Ask again under the same name."""

    code = "gateway_away"


class GatewayRefused(Exception):
    """The gateway will not do this, however often it is asked."""

    code = "gateway_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOrder:
    """An order to be paid. Units: minor units; seconds since 1970."""

    reference: str
    amount_minor: int
    currency: str
    description: str
    return_url: str
    expires_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PayLink:
    """Where an order is paid: the gateway's id of it and its page."""

    gateway_order: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStatus:
    """What a gateway answers about an order: its page, and all that it would tell by itself, as facts."""

    link: PayLink
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A word that a gateway signed; `event_id` is the same on every copy."""

    event_id: str
    fact: Fact


class PaymentGateway(Protocol):
    """A payment gateway. Every call but `read_webhook` may raise GatewayAway and GatewayRefused."""

    @property
    def name(self) -> str:
        """By what name its words are kept apart from those of other gateways."""

    async def create(self, order: LinkOrder) -> PayLink:
        """Take an order, or return the page of the one that was taken under its reference."""

    async def status(self, reference: str, gateway_order: str | None) -> OrderStatus | None:
        """Tell about an order; None for one that was never taken."""

    async def refund(self, capture: str, amount_minor: int) -> bool:
        """Send money back whole; True once it has gone, False while it is on its way. Harmless twice."""

    def read_webhook(self, headers: Mapping[str, str], body: bytes, *, now_s: int) -> Webhook | SignatureFault:
        """Read what the gateway sent, or tell what is wrong with its signature.

        Raises: MalformedRequest for signed bytes that are not of the form.
        """

    async def close(self) -> None:
        """Close connections."""
