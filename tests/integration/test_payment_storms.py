"""F30: webhooks duplicated, out of order, lost, late, beside each other, before and after refunds; seeded."""

from __future__ import annotations

import asyncio
import random

import pytest

from db.audit import run_checks
from tests.integration.payment_shop import HOUR_MS, Street, open_street
from tests.integration.vending_shop import CALENDAR
from vending.edges.sandbox_gateway import Sent

pytestmark = pytest.mark.db

STEPS = 60
AMOUNTS = ("100.00", "250.00", "500.00")


async def storm(street: Street, rng: random.Random) -> None:
    """Let a payer, the gateway, an engineer, the network and the clock do as they please."""
    waiting: list[Sent] = []
    for _ in range(STEPS):
        links = list(street.sandbox.links)
        link = rng.choice(links) if links else None
        match rng.choices(range(9), weights=(3, 5, 1, 1, 1, 2, 8, 2, 1))[0]:
            case 0:
                street.sandbox.fails, street.sandbox.forgets = rng.randrange(2), rng.randrange(2)
                await street.begin(rng.choice(AMOUNTS))
            case 1 if link:
                street.sandbox.pay(link)
            case 2 if link:
                street.sandbox.pay(link, rng.choice((9_999, 10_000, 50_000)))
            case 3 if link:
                street.sandbox.fail(link)
            case 4 if link:
                street.sandbox.expire(link)
            case 5 if street.sandbox.payments:
                payment = rng.choice(list(street.sandbox.payments.values()))
                if not payment["refunds"]:
                    street.sandbox.refund(payment["id"])
            case 6:
                rng.shuffle(waiting)
                arriving = [sent for sent in waiting[: rng.randrange(6)] for _ in range(rng.randint(1, 3))]
                await asyncio.gather(*(street.deliver(sent) for sent in arriving))
                # Some come once more later, or never.
                waiting = [sent for sent in waiting if sent not in arriving or rng.random() < 0.3]
            case 7:
                street.shop.clock.now_ms += rng.randrange(HOUR_MS)
                await asyncio.gather(street.ask(), street.ask())
            case 8 if link:
                order_id = street.sandbox.links[link]["reference_id"]
                path, headers = f"/v1/payments/{order_id}/refund", street.shop.headers("engineer")
                await street.shop.http.post(path, json={"reason": "asked at the office"}, headers=headers)
        waiting += [sent for sent in street.sandbox.take_outbox() if rng.random() > 0.2]


async def healed(street: Street) -> None:
    """Let the gateway answer again and days go by; then what was kept is what was credited, each order once."""
    street.sandbox.fails = street.sandbox.forgets = 0
    await street.ask_all()
    sums = await street.sums()
    sandbox = street.sandbox
    assert (sums.paid_minor, sums.refunded_minor) == (sandbox.received_minor, sandbox.sent_back_minor)
    assert (sums.refund_due_minor, sums.for_people) == (0, 0)
    assert sums.credited_minor == sums.paid_minor - sums.refunded_minor
    vends = (
        "select coalesce(sum(amount_minor) filter (where state <> 'reversed'), 0)::bigint from vends"
        " where funding = 'online' and journal_id is not null"
    )
    assert await street.shop.one(vends) == sums.credited_minor
    report = await run_checks(street.shop.conn, CALENDAR)
    assert {check.id: check.examples for check in report.checks if check.broken} == {}


@pytest.mark.parametrize("seed", range(3))
def test_money_kept_is_money_credited_after_any_storm(database_url: str, seed: int) -> None:
    """Whatever came when: received less sent back equals vends less reversals, by the gateway's own books."""

    async def story() -> None:
        async with open_street(database_url) as street:
            await storm(street, random.Random(seed))
            await healed(street)

    asyncio.run(story())
