"""A vending application that takes payments online, and the sandbox gateway that it takes them by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from db.payments import PaymentSums, read_sums
from tests.integration.vending_shop import Clock, Shop, open_shop
from vending.edges.payment_desk import OnlineRecharge, OnlineSettings, ask_due
from vending.edges.razorpay import Razorpay, RazorpaySettings
from vending.edges.sandbox_gateway import Sandbox, Sent, create_sandbox

PUBLIC_URL = "http://shop"
LINK_SECRET = b"l" * 32
WEBHOOKS = "/v1/payments/webhooks/razorpay"
HOUR_MS = 3_600_000


@dataclass(slots=True, kw_only=True)
class Street:
    """The shop, the gateway, and what is between them."""

    shop: Shop
    sandbox: Sandbox

    @property
    def online(self) -> OnlineRecharge:
        """What the application holds."""
        online: OnlineRecharge = self.shop.app.state.vending.online
        return online

    async def begin(self, amount: str = "500.00", *, number: str | None = None) -> httpx.Response:
        """Begin a recharge as an engineer, who may for every account."""
        number = number or self.shop.home.number
        path = f"/v1/accounts/{number}/payments"
        return await self.shop.http.post(path, json={"amount": amount}, headers=self.shop.headers("engineer"))

    async def order(self, amount: str = "500.00") -> str:
        """Begin a recharge that the gateway takes; return the order's id."""
        begun = await self.begin(amount)
        assert begun.status_code == 200, begun.text
        return str(begun.json()["order_id"])

    def link_of(self, order_id: str) -> str:
        """Return the gateway's id of an order."""
        return next(id_ for id_, link in self.sandbox.links.items() if link["reference_id"] == order_id)

    def pay(self, order_id: str, amount_minor: int | None = None) -> str:
        """Let somebody pay at the gateway's page; return the money's id."""
        return self.sandbox.pay(self.link_of(order_id), amount_minor)

    async def deliver(self, sent: Sent, **headers: str) -> httpx.Response:
        """Let one webhook arrive."""
        return await self.shop.http.post(WEBHOOKS, content=sent.body, headers=sent.headers | headers)

    async def deliver_all(self) -> list[str]:
        """Let all that waits arrive, once and in order; return what it came to."""
        return [(await self.deliver(sent)).json()["outcome"] for sent in self.sandbox.take_outbox()]

    async def read(self, order_id: str) -> dict[str, Any]:
        """Read an order."""
        found: dict[str, Any] = (await self.shop.get(f"/v1/payments/{order_id}", "engineer")).json()
        return found

    async def ask(self) -> int:
        """Ask about what is due now."""
        return await ask_due(self.shop.app.state.vending.pool, self.online.payments)

    async def ask_all(self, *, days: int = 40) -> None:
        """Let days go by, until there is nothing that the gateway is asked about."""
        for _ in range(days * 4):
            while await self.ask():
                # What an answer changed is asked about again at once.
                pass
            self.shop.clock.now_ms += 6 * HOUR_MS

    async def sums(self) -> PaymentSums:
        """Add up all money."""
        return await read_sums(self.shop.conn)


@asynccontextmanager
async def open_street(database_url: str) -> AsyncIterator[Street]:
    """Open the shop with its gateway; neither asks nor tells by itself."""
    clock = Clock()
    sandbox = Sandbox(
        key_id="key", key_secret="secret", webhook_secret=b"w" * 32, public_url="http://gateway",
        clock=lambda: clock.now_ms // 1_000,
    )  # fmt: skip
    settings = RazorpaySettings(
        url="http://gateway", key_id="key", key_secret="secret", webhook_secret=b"w" * 32, timeout_s=10
    )
    gateway = Razorpay(settings, transport=httpx.ASGITransport(app=create_sandbox(sandbox)))
    online = OnlineSettings(gateway=gateway, public_url=PUBLIC_URL, link_secret=LINK_SECRET, asks=False)
    async with open_shop(database_url, online=online, clock=clock) as shop:
        yield Street(shop=shop, sandbox=sandbox)
