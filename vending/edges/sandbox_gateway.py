"""A payment gateway to try out and to test with: it speaks Razorpay's interface and behaves badly when told to.

Stage: outside the product, where a real gateway would be; it takes no money. Its webhooks wait in `outbox` until
somebody sends them: once, twice, late, in another order, or never. Never: in production.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from vending.edges.razorpay import EVENT_HEADER, SIGNATURE_HEADER

# JSON objects in the gateway's own form.
_Entity = dict[str, Any]
_BASIC = HTTPBasic()
# People at a sandbox wait for a page, not for this.
_SEND_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A webhook as it goes out: the same bytes under the same id on every copy."""

    event: str
    body: bytes
    headers: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """The gateway's books. Units of `clock`: seconds since 1970.

    `fails` answers so many requests with 503 before doing anything; `forgets` does so after having done it, so that
    the answer is lost; `slow_refunds` leaves refunds on their way until `end_refunds`.
    """

    key_id: str
    key_secret: str = field(repr=False)
    webhook_secret: bytes = field(repr=False)
    public_url: str
    clock: Callable[[], int]
    fails: int = 0
    forgets: int = 0
    slow_refunds: bool = False
    links: dict[str, _Entity] = field(default_factory=dict)
    payments: dict[str, _Entity] = field(default_factory=dict)
    outbox: list[Sent] = field(default_factory=list)

    def create(self, body: _Entity) -> _Entity:
        """Take an order; a reference is taken once."""
        if any(link["reference_id"] == body["reference_id"] for link in self.links.values()):
            raise HTTPException(400, "payment link with given reference_id already exists")
        id_ = _name("plink")
        link = {
            "id": id_,
            "amount": body["amount"],
            "currency": body["currency"],
            "reference_id": body["reference_id"],
            "notes": body.get("notes"),
            "callback_url": body.get("callback_url"),
            "description": body.get("description"),
            "expire_by": body.get("expire_by"),
            "payments": None,
            "short_url": f"{self.public_url}/pay/{id_}",
            "status": "created",
            "created_at": self.clock(),
        }
        self.links[id_] = link
        return link

    def pay(self, link_id: str, amount_minor: int | None = None) -> str:
        """Receive money for an order, whatever state it is in; return the money's id."""
        link = self.links[link_id]
        payment = {
            "id": _name("pay"),
            "entity": "payment",
            "amount": link["amount"] if amount_minor is None else amount_minor,
            "amount_refunded": 0,
            "currency": link["currency"],
            "status": "captured",
            "notes": link["notes"] or [],
            "created_at": self.clock(),
            "refunds": [],
        }
        self.payments[payment["id"]] = payment
        paid = {"payment_id": payment["id"], "plink_id": link_id, "amount": payment["amount"], "status": "captured"}
        link["payments"] = [*(link["payments"] or []), paid]
        link["status"] = "paid"
        self._say("payment_link.paid", payment_link=link, payment=payment)
        return str(payment["id"])

    def fail(self, link_id: str) -> None:
        """Let a try to pay fail."""
        link = self.links[link_id]
        payment = {"id": _name("pay"), "amount": link["amount"], "currency": link["currency"], "status": "failed"}
        self._say("payment.failed", payment={**payment, "notes": link["notes"] or []})

    def expire(self, link_id: str) -> None:
        """Let an order end unpaid."""
        link = self.links[link_id]
        if link["status"] == "created":
            link["status"] = "expired"
            self._say("payment_link.expired", payment_link=link)

    def refund(self, payment_id: str, amount_minor: int | None = None) -> _Entity:
        """Send money back, as asked over the interface or at the gateway's own desk."""
        payment = self.payments[payment_id]
        left_minor = payment["amount"] - sum(refund["amount"] for refund in payment["refunds"])
        amount_minor = left_minor if amount_minor is None else amount_minor
        if amount_minor > left_minor:
            raise HTTPException(400, "The refund amount is greater than what is left")
        refund = {"id": _name("rfnd"), "payment_id": payment_id, "amount": amount_minor, "status": "pending"}
        if not self.slow_refunds:
            self._end_refund(refund)
        payment["refunds"].append(refund)
        return refund

    def end_refunds(self) -> None:
        """Let all refunds that are on their way arrive."""
        for payment in self.payments.values():
            for refund in payment["refunds"]:
                if refund["status"] == "pending":
                    self._end_refund(refund)

    def take_outbox(self) -> list[Sent]:
        """Take what waits to be sent."""
        taken, self.outbox = self.outbox, []
        return taken

    @property
    def received_minor(self) -> int:
        """All money received."""
        return sum(payment["amount"] for payment in self.payments.values())

    @property
    def sent_back_minor(self) -> int:
        """All money sent back."""
        return sum(payment["amount_refunded"] for payment in self.payments.values())

    def _end_refund(self, refund: _Entity) -> None:
        payment = self.payments[refund["payment_id"]]
        payment["amount_refunded"] += refund["amount"]
        refund["status"] = "processed"
        if payment["amount_refunded"] == payment["amount"]:
            payment["status"] = "refunded"
        self._say("refund.processed", refund=refund, payment=payment)

    def _say(self, event: str, **entities: _Entity) -> None:
        told = {
            "entity": "event",
            "event": event,
            "contains": sorted(entities),
            "payload": {name: {"entity": entity} for name, entity in entities.items()},
            "created_at": self.clock(),
        }
        body = json.dumps(told, separators=(",", ":")).encode()
        signature = hmac.new(self.webhook_secret, body, hashlib.sha256).hexdigest()
        headers = {
            SIGNATURE_HEADER: signature,
            EVENT_HEADER: _name("evt"),
            "Content-Type": "application/json",
        }
        self.outbox.append(Sent(event=event, body=body, headers=headers))


# What an application does between its start and its stop.
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def sending(sandbox: Sandbox, url: str, *, copies: int) -> Lifespan:
    """Return a lifespan that sends webhooks as they are written, each so often; what is not taken is sent again."""

    async def send() -> None:
        async with httpx.AsyncClient(timeout=10) as http:
            while True:
                waiting = sandbox.take_outbox()
                for sent in [each for each in waiting for _ in range(copies)]:
                    with suppress(httpx.HTTPError):
                        if (await http.post(url, content=sent.body, headers=sent.headers)).is_success:
                            continue
                    sandbox.outbox.append(sent)
                await asyncio.sleep(_SEND_EVERY_S)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(send(), name="webhooks")
        try:
            yield
        finally:
            task.cancel()

    return lifespan


def create_sandbox(sandbox: Sandbox, *, lifespan: Lifespan | None = None) -> FastAPI:
    """Serve a sandbox's books over Razorpay's interface, with a page to pay at."""
    app = FastAPI(title="Sandbox payment gateway", openapi_url=None, lifespan=lifespan)

    def ours(given: Annotated[HTTPBasicCredentials, Depends(_BASIC)]) -> None:
        named = hmac.compare_digest(given.username.encode(), sandbox.key_id.encode())
        if not (named and hmac.compare_digest(given.password.encode(), sandbox.key_secret.encode())):
            raise HTTPException(401, "Authentication failed")
        if sandbox.fails > 0:
            sandbox.fails -= 1
            raise HTTPException(503, "away")

    def told(answer: _Entity) -> _Entity:
        if sandbox.forgets > 0:
            sandbox.forgets -= 1
            raise HTTPException(503, "away")
        return answer

    def one(found: dict[str, _Entity], id_: str) -> _Entity:
        if id_ not in found:
            raise HTTPException(400, "The id provided does not exist")
        return found[id_]

    @app.post("/v1/payment_links", dependencies=[Depends(ours)])
    async def post_link(request: Request) -> _Entity:
        return told(sandbox.create(await request.json()))

    @app.get("/v1/payment_links", dependencies=[Depends(ours)])
    async def get_links(reference_id: str) -> _Entity:
        links = [link for link in sandbox.links.values() if link["reference_id"] == reference_id]
        return told({"payment_links": links})

    @app.get("/v1/payment_links/{link}", dependencies=[Depends(ours)])
    async def get_link(link: str) -> _Entity:
        return told(one(sandbox.links, link))

    @app.get("/v1/payments/{payment}", dependencies=[Depends(ours)])
    async def get_payment(payment: str) -> _Entity:
        return told(one(sandbox.payments, payment))

    @app.get("/v1/payments/{payment}/refunds", dependencies=[Depends(ours)])
    async def get_refunds(payment: str) -> _Entity:
        return told({"items": one(sandbox.payments, payment)["refunds"]})

    @app.post("/v1/payments/{payment}/refund", dependencies=[Depends(ours)])
    async def post_refund(payment: str, request: Request) -> _Entity:
        one(sandbox.payments, payment)
        return told(sandbox.refund(payment, (await request.json()).get("amount")))

    @app.get("/pay/{link}")
    async def get_pay(link: str) -> Response:
        return HTMLResponse(_page(one(sandbox.links, link)))

    @app.post("/pay/{link}")
    async def post_pay(link: str, request: Request) -> Response:
        found = one(sandbox.links, link)
        if parse_qs((await request.body()).decode()).get("what") == ["pay"]:
            sandbox.pay(link)
        else:
            sandbox.fail(link)
        query = urlencode({"razorpay_payment_link_reference_id": found["reference_id"]})
        joint = "&" if "?" in found["callback_url"] else "?"
        return RedirectResponse(f"{found['callback_url']}{joint}{query}", status_code=303)

    return app


def _page(link: _Entity) -> str:
    amount = f"{link['amount'] // 100}.{link['amount'] % 100:02d} {html.escape(link['currency'])}"
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>Sandbox gateway</title><body data-state=to_pay><h1>Sandbox: no money is taken</h1>"
        f"<p>{html.escape(link['description'] or '')}<p>{amount}"
        "<form method=post><button name=what value=pay id=pay>Pay</button> "
        "<button name=what value=fail id=fail>Fail</button></form>"
    )


def _name(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(7)}"
