"""What stations and families are told of a supply that is limited, or on without credit, over HTTP."""

from __future__ import annotations

import asyncio
from datetime import date

import pytest

from db.supply_rules import add_supply_rules
from tests.integration.vending_shop import Shop, open_shop
from vending.edges.consumer_models import SummaryAnswer, SupplyHistoryAnswer
from vending.edges.models import AccountAnswer, MeterAnswer, VendAnswer

pytestmark = pytest.mark.db

SCHEME = """
id = "homes"
title = "Homes"
source = "a test"
effective_from = 2026-11-01
default = "homes"

[scheme.homes]
title = "Homes"
source = "a test"
"""
LIMITS = f"{SCHEME}limit_w = 500\n"
# The shop stands at half past five in the evening.
BY_MORNING = f"""{SCHEME}
[[scheme.homes.window]]
days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
from = "10:00"
to = "13:00"
"""


async def exhaust(shop: Shop, rules: str, balance_minor: int) -> None:
    """Put rules in force, and use up the credit of the home, whose meter can limit and does what it is told."""
    await add_supply_rules(shop.conn, rules, first_open_day=date(2026, 11, 1))
    await shop.conn.execute("update meters set can_limit = true")
    for balance in (100_000, balance_minor):
        await shop.set_balance(balance)
        await shop.confirm_orders()


def test_limited_supply_is_told_to_station_and_family_until_a_recharge_lifts_it(database_url: str) -> None:
    """The confirmation, both receipts, the account, the summary and the history say limited, and what lifts it."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await exhaust(shop, LIMITS, -60_000)
            confirmed = MeterAnswer.model_validate((await shop.get(f"/v1/meters/{shop.home.serial}")).json())
            assert (confirmed.supply.desired, confirmed.supply.reported) == ("limited", "limited")
            account = await shop.get(f"/v1/accounts/{shop.home.number}", "consumer")
            assert AccountAnswer.model_validate(account.json()).supply.desired == "limited"
            summary = SummaryAnswer.model_validate((await shop.get("/v1/consumer/me/summary", "consumer")).json())
            assert (summary.supply.reported, summary.supply.why.code) == ("limited", "still_limited")
            assert "limited to a small load" in summary.supply.why.text

            little = VendAnswer.model_validate((await shop.vend("m-1")).json())
            assert (little.supply.state_before, little.supply.state_after_desired) == ("limited", "limited")
            (line,) = [line for line in little.lines if line.code == "supply_limited"]
            assert line.text == "Supply restored: no, it is limited to a small load, INR 100.01 more restores it"
            assert line.amount == little.supply.restores_with == "100.01"
            assert await shop.one("select count(*) from supply_orders where relay = 'limited'") == 1

            enough = VendAnswer.model_validate((await shop.vend("m-2")).json())
            assert (enough.supply.state_before, enough.supply.state_after_desired) == ("limited", "on")
            assert "Supply restored: yes, its limit is lifted by itself" in [line.text for line in enough.lines]
            path = "/v1/consumer/me/supply-history"
            history = SupplyHistoryAnswer.model_validate((await shop.get(path, "consumer")).json())
            assert history.reported is not None
            assert history.reported.supply == "limited"
            told = [(order.supply, order.state) for order in history.orders[:2]]
            assert told == [("on", "pending"), ("limited", "confirmed")]

    asyncio.run(story())


def test_recharge_in_protected_hours_that_leaves_a_debt_says_that_supply_is_on_without_credit(
    database_url: str,
) -> None:
    """Supply need not be off for a debt: the receipt says that it is on, and how much more gives credit."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await exhaust(shop, BY_MORNING, -60_000)
            answer = await shop.vend("m-1")
            assert answer.status_code == 200, answer.text
            sold = VendAnswer.model_validate(answer.json())
            assert (sold.supply.state_after_desired, sold.supply.restores_with) == ("on", "100.01")
            (line,) = [line for line in sold.lines if line.code == "supply_on"]
            assert line.text == "Supply is on without credit, INR 100.01 more gives credit"
            assert await shop.one("select relay from supply_orders order by epoch desc limit 1") == "on"

    asyncio.run(story())
