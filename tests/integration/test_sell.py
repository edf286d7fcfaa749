"""The one function that every recharge goes through: funding, tender, units, holding back, and inside a transaction."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from db.pool import connect
from tests.integration.vending_desk import Counter, open_counter
from tests.integration.vending_shop import add_home
from tests.support import WAIT_S
from vending.edges.store import REPEATED, VENDED, sell, system_seller, trial
from vending.vends import Funding, Release, Tender, VendOrder, VendState


def test_recharge_of_each_funding_takes_its_money_from_its_own_ledger(database_url: str) -> None:
    """Coupon, online, free and subsidised recharges are vends of the utility's own sellers."""
    ledgers = {
        Funding.COUPON: "coupons",
        Funding.ONLINE: "gateway_clearing",
        Funding.FREE_ISSUE: "free_issues",
        Funding.SUBSIDY: "subsidy_receivable",
    }

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.set_balance(0)
            sold = await counter.sell("V-1")
            assert await _legs(counter, sold.vend_id) == {"prepaid": 50_000, "vendor_clearing": -50_000}
            for number, (funding, ledger) in enumerate(ledgers.items()):
                seller = await system_seller(counter.conn, funding)
                sold = await counter.sell(f"M-{number}", 10_000, seller=seller, tender=None, reason="flood relief")
                assert await _legs(counter, sold.vend_id) == {"prepaid": 10_000, ledger: -10_000}
            assert await counter.balance() == 90_000
            # Nobody has bought the coupon or paid online: only that may be missed.
            assert (await counter.audit()).keys() <= {"coupons", "payments"}

    asyncio.run(story())


def test_sale_inside_a_transaction_is_kept_or_lost_with_it(database_url: str) -> None:
    """A coupon's state and its vend change together: what the caller rolls back was never sold."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            async with counter.conn.transaction(force_rollback=True):
                assert (await counter.sell("V-1")).outcome == VENDED
            assert await counter.one("select count(*) from vends") == 0
            assert await counter.one("select count(*) from tokens") == 0
            async with counter.conn.transaction():
                first = await counter.sell("V-1")
            again = await counter.sell("V-1")
            assert (again.outcome, again.stored, again.token_id) == (REPEATED, first.stored, first.token_id)
            assert await counter.audit() == {}

    asyncio.run(story())


def test_units_are_sold_at_the_running_tariff_and_the_amount_is_told(database_url: str) -> None:
    """The amount for some units buys at least those, a paisa less does not; a trial tells the same, stores nothing."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.set_balance(0)
            order = VendOrder(message_id="U-1", meter=counter.home.serial, energy_wh=25_000, tender=Tender.UPI)
            told = await trial(counter.conn, counter.desk, counter.seller, order)
            assert (told["tid"], told["token_withheld"]) == (None, "trial")
            assert await counter.one("select count(*) from vends") == 0
            sold = await sell(counter.conn, counter.desk, counter.seller, order)
            answer = sold.stored.answer
            assert answer["amount_minor"] == told["amount_minor"]
            assert answer["token"]["amount"] == told["token"]["amount"]  # type: ignore[index]
            assert (answer["energy_asked_wh"], answer["energy_wh"] >= 25_000) == (25_000, True)
            assert {key for key in answer if answer[key] != told.get(key)} <= {
                "tid", "token", "lines", "receipt_number",
            }  # fmt: skip
            await counter.set_balance(0)
            less = await counter.sell("U-2", answer["amount_minor"] - 1)
            assert less.stored.answer["energy_wh"] < 25_000

    asyncio.run(story())


def test_units_of_nothing_and_cash_above_the_limit_are_refused_and_stored(database_url: str) -> None:
    """No sale of zero; cash is taken up to the category's limit (R-26), any other tender above it."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            none = await counter.sell("Z-1", amount_minor=None, energy_wh=0)
            assert none.outcome == "amount_below_minimum"
            cash = await counter.sell("Z-2", 500_001, tender=Tender.CASH)
            assert (cash.stored.status, cash.outcome) == (422, "cash_above_limit")
            assert cash.stored.answer["error"]["limit_minor"] == 500_000
            assert (await counter.sell("Z-2", 500_001, tender=Tender.CASH)).stored == cash.stored
            assert (await counter.sell("Z-3", 500_000, tender=Tender.CASH)).outcome == VENDED
            assert (await counter.sell("Z-4", 500_001, tender=Tender.CARD)).outcome == VENDED
            assert await counter.audit() == {}

    asyncio.run(story())


def test_held_vend_shows_no_digit_before_it_is_confirmed(database_url: str) -> None:
    """A token that waits for the station's word is made and stored, and in no answer, first or repeated."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            held = await counter.sell("H-1", release=Release.ON_CONFIRM)
            digits = await counter.one("select digits from tokens where id = %s", held.token_id)
            assert held.state is VendState.HELD
            again = await counter.sell("H-1", release=Release.ON_CONFIRM)
            assert again.stored == held.stored
            text = str(held.stored.answer).replace(" ", "")
            assert digits not in text
            assert held.stored.answer["token_withheld"] == "until_confirmed"
            assert await counter.audit() == {}

    asyncio.run(story())


def test_last_of_a_float_is_sold_once_and_what_it_does_not_reach_is_minted_for_nobody(database_url: str) -> None:
    """Two shops of one vendor, one recharge left: one sells, the other is refused, and its token never was."""

    async def story() -> None:
        async with open_counter(database_url) as counter, await connect(database_url, application="test") as second:
            neighbour = await add_home(counter.conn, "PB000456", "100200456")
            await counter.conn.execute("update vendor_floats set limit_minor = 60000")
            orders = [
                VendOrder(message_id=f"R-{home.number}", meter=home.serial, amount_minor=50_000, tender=Tender.UPI)
                for home in (counter.home, neighbour)
            ]
            # Both look before either takes: the second one's look is too old by the time it takes.
            async with counter.conn.transaction():
                first = await sell(counter.conn, counter.desk, counter.seller, orders[0])
                late = asyncio.create_task(sell(second, counter.desk, counter.seller, orders[1]))
                await _until_it_waits(counter)
            refused = await late
            assert (first.outcome, refused.outcome, refused.stored.status) == (VENDED, "vendor_credit", 402)
            assert await counter.one("select count(*) from tokens") == 1
            again = await sell(second, counter.desk, counter.seller, orders[1])
            assert (again.outcome, again.stored) == (REPEATED, refused.stored)
            short = replace(orders[1], message_id="R-3")
            assert (await sell(second, counter.desk, counter.seller, short)).outcome == "vendor_credit"
            assert await counter.audit() == {}

    asyncio.run(story())


async def _until_it_waits(counter: Counter) -> None:
    """Let the other session come to the lock that this one holds."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        if await counter.one("select count(*) from pg_locks where not granted"):
            return
        assert time.monotonic() < deadline_s, f"within {WAIT_S:.0f} s: the other sale waits for the float"
        await asyncio.sleep(0.01)


async def _legs(counter: Counter, vend_id: int) -> dict[str, int]:
    return await counter.legs(await counter.one("select journal_id from vends where id = %s", vend_id))
