"""F30 with kills: an API process that dies inside a webhook has done nothing of it, and its copy does all of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from db.payments import read_sums
from prepaid.system import System
from tests.faults.harness import Trial
from tests.faults.vend_street import Street, api_processes, end, open_street, prove, table_held
from tests.integration.vending_shop import MASTER
from vending.edges.sandbox_gateway import Sandbox, Sent, create_sandbox
from vending.recharge_links import make_link

pytestmark = pytest.mark.db

# Where a webhook can be stopped before its commit, in the order in which it comes there.
POINTS = ("vends", "supply_orders", "payment_captures", "payments", "payment_events")
WEBHOOKS = "/v1/payments/webhooks/razorpay"


@asynccontextmanager
async def served_sandbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    """Serve a sandbox gateway, and let processes that read the environment take payments by it."""
    secret = secrets.token_hex(16)
    sandbox = Sandbox(
        key_id="key", key_secret=secret, webhook_secret=secret.encode(), public_url="", clock=lambda: int(time.time())
    )
    server = uvicorn.Server(uvicorn.Config(create_sandbox(sandbox), lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sandbox.public_url = url
        settings = {
            "MASTER_KEY": MASTER.hex(), "PAYMENT_URL": url, "PAYMENT_KEY_ID": "key", "PAYMENT_KEY_SECRET": secret,
            "PAYMENT_WEBHOOK_SECRET": secret, "PUBLIC_URL": url, "RECHARGE_LINK_SECRET": secret,
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"PREPAID_{name}", value)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield sandbox
        finally:
            server.should_exit = True
            await serving


async def begin(street: Street, system: System) -> str:
    """Begin a recharge by link; return the gateway's id of it."""
    secret = os.environ["PREPAID_RECHARGE_LINK_SECRET"].encode()
    link = make_link(secret, street.homes[0].account_id, expires_s=2**32 - 1)
    async with httpx.AsyncClient(base_url=system.api_url, timeout=60) as http:
        begun = await http.post(f"/v1/recharge/{link}/payments", json={"amount": "500"})
    assert begun.status_code == 200, begun.text
    return str(begun.json()["pay_link"]).rsplit("/", 1)[1]


async def deliver(system: System, sent: Sent) -> str:
    """Let a webhook arrive at a process; return what it came to."""
    async with httpx.AsyncClient(base_url=system.api_url, timeout=60) as http:
        return str((await http.post(WEBHOOKS, content=sent.body, headers=sent.headers)).json()["outcome"])


async def killed_inside(street: Street, system: System, sent: Sent, table: str) -> None:
    """Kill a process inside a webhook's transaction, where it is about to write to a table."""
    async with table_held(street, table):
        hearing = asyncio.create_task(deliver(system, sent))
        await street.until(street.vend_waits, f"the webhook waits for {table}")
        end(system)
    with pytest.raises(httpx.TransportError):
        await hearing


def test_api_killed_inside_a_webhook_credits_once(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paid or refunded: the gateway tells again, another process credits or takes back, once."""

    async def story() -> None:
        with Trial(30) as trial:
            async with open_street(database_url) as street, served_sandbox(monkeypatch) as sandbox:
                points = trial.rng.sample(POINTS, 2)
                async with api_processes([database_url] * 3, data_dir) as systems:
                    living, first, second = systems
                    link = await begin(street, first)
                    money = sandbox.pay(link)
                    (paid,) = sandbox.take_outbox()
                    await killed_inside(street, first, paid, points[0])
                    trial.note(f"killed before {points[0]}")
                    assert await street.one("select count(*) from vends") == 0
                    assert await deliver(living, paid) == "credited"
                    assert await deliver(living, paid) == "duplicate"
                    sandbox.refund(money)
                    (gone,) = sandbox.take_outbox()
                    await killed_inside(street, second, gone, "payment_captures")
                    trial.note("killed inside the refund")
                    assert await street.one("select count(*) from journals where kind = 'reversal'") == 0
                    assert await deliver(living, gone) == "taken_back"
                    assert await deliver(living, gone) == "duplicate"
                sums = await read_sums(street.conn)
                assert (sums.paid_minor, sums.refunded_minor, sums.credited_minor) == (50_000, 50_000, 0)
                await prove(street)

    asyncio.run(story())
