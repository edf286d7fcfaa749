"""Online money that does not go together is named by the auditor's check `payments`; a true street of it is clean."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from prepaid.embedded import EmbeddedPostgres
from tests.databases import scratch_database
from tests.integration.payment_shop import Street, open_street
from tests.integration.test_audit import audited, broken_checks, corrupt

pytestmark = pytest.mark.db

FREE_LEGS = "alter table legs disable trigger append_only"
CREDITED = "(select id from payments where state = 'credited')"
VEND = "(select vend_id from payments where state = 'credited')"
REVERSED = "(select p.vend_id from payments p join vends v on v.id = p.vend_id where v.state = 'reversed')"

# What is done to the database, and what the report says of it; other checks may speak, too.
CORRUPTIONS = {
    "money_without_its_vend": (
        [f"update payments set vend_id = null where id = {CREDITED}"],
        "its money is credited, no vend of it is there",
    ),
    "vend_of_no_order": (
        [f"update payments set vend_id = null where id = {CREDITED}"],
        "its vend is of no order",
    ),
    "vend_without_money": (
        [
            f"""update payment_captures set was_credited = false, state = 'refund_due'
                where payment_id = {CREDITED} and was_credited"""
        ],
        "its vend is there, no money is credited",
    ),
    "credited_twice": (
        [
            "drop index one_credit_of_payment",
            f"""insert into payment_captures
                    (gateway, capture, payment_id, amount_minor, currency, state, was_credited, seen_at)
                select gateway, 'pay_copy', payment_id, amount_minor, currency, state, true, seen_at
                from payment_captures where payment_id = {CREDITED} and was_credited""",
        ],
        "credited 2 times",
    ),
    "other_amount_paid": (
        [f"update payment_captures set amount_minor = 1 where payment_id = {CREDITED} and was_credited"],
        "of 50000 minor, paid 1, credited 50000",
    ),
    "refund_forgotten_at_the_gateway": (
        [f"""update payment_captures set state = 'credited', refunded_at = null
             where was_credited and payment_id = (select id from payments where vend_id = {REVERSED})"""],
        "its money is kept, its vend was taken back",
    ),
    "refunded_and_still_credited": (
        [f"""update payment_captures set state = 'refunded', refunded_at = seen_at
             where payment_id = {CREDITED} and was_credited"""],
        "its money has gone back or is due to, its vend stands",
    ),
    "state_of_another_story": (
        [f"update payments set state = 'expired' where id = {CREDITED}"],
        "is expired, of its money 1 stand",
    ),
    "ledger_differs": (
        [FREE_LEGS, "update legs set amount_minor = amount_minor - 7 where ledger = 'gateway_clearing' and n = 2"],
        "ledger gateway_clearing: credits",
    ),
}  # fmt: skip


async def _build(url: str) -> None:
    """One order credited and paid twice, one refunded by an engineer, one paid otherwise, one that nobody paid."""
    async with open_street(url) as street:
        twice = await _paid(street)
        street.pay(twice)
        await street.deliver_all()
        back = await _paid(street)
        refund = f"/v1/payments/{back}/refund"
        asked = await street.shop.http.post(
            refund, json={"reason": "asked by the consumer"}, headers=street.shop.headers("engineer")
        )
        assert asked.status_code == 200, asked.text
        street.pay(await street.order(), 70_000)
        await street.order()
        await street.deliver_all()
        await street.ask_all(days=1)


async def _paid(street: Street) -> str:
    order_id = await street.order()
    street.pay(order_id)
    await street.deliver_all()
    return order_id


@pytest.fixture(scope="module")
def template(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A true street to be copied."""
    with scratch_database(postgres, template=migrated) as name:
        asyncio.run(_build(postgres.url_of(name)))
        yield name


@pytest.fixture
def street_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A copy of the true street."""
    with scratch_database(postgres, template=template) as name:
        yield postgres.url_of(name)


def test_true_street_of_online_money_is_clean_and_counted(street_url: str) -> None:
    """Credited, paid twice, refunded, paid otherwise, not paid: all of it agrees, and every order was looked at."""
    report = audited(street_url)
    assert report.clean, report.lines()
    assert next(check for check in report.checks if check.id == "payments").checked == 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_of_online_money_is_reported(street_url: str, name: str) -> None:
    """Each kind of damage to an order, its money or its vend is named with the order."""
    statements, example = CORRUPTIONS[name]
    corrupt(street_url, statements)
    found = broken_checks(audited(street_url))["payments"]
    assert any(example in text for text in found), found
