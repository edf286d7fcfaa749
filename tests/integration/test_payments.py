"""Online recharges over the interface: paid, told twice, late or never, refused, refunded; links and deliveries."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from db.audit import run_checks
from tests.commands import run_command, settings_for
from tests.integration.payment_shop import LINK_SECRET, WEBHOOKS, Street, open_street
from tests.integration.vending_shop import CALENDAR, CONSUMER
from vending.recharge_links import make_link

pytestmark = pytest.mark.db


async def audited(street: Street) -> None:
    """Prove that what was received and kept is what was credited, and the books by the auditor."""
    sums = await street.sums()
    assert sums.paid_minor - sums.refunded_minor - sums.refund_due_minor == sums.credited_minor
    report = await run_checks(street.shop.conn, CALENDAR)
    assert {check.id: check.examples for check in report.checks if check.broken} == {}


def test_paid_order_is_credited_once_and_tells_its_token(database_url: str) -> None:
    """The webhook, its copies and the gateway's own answer are one credit; the token goes to its meter by itself."""

    async def story() -> None:
        async with open_street(database_url) as street:
            order_id = await street.order()
            street.pay(order_id)
            (sent,) = street.sandbox.take_outbox()
            answers = await asyncio.gather(*(street.deliver(sent) for _ in range(8)))
            assert sorted(each.json()["outcome"] for each in answers) == ["credited"] + ["duplicate"] * 7
            assert (await street.deliver(sent, **{"X-Razorpay-Event-Id": "evt_other"})).json() == {
                "outcome": "duplicate"
            }
            await street.ask_all()
            told = await street.read(order_id)
            assert (told["state"], told["pay_link"], told["supply_after"]) == ("credited", None, "on")
            assert len(told["token"].replace(" ", "")) == 20
            assert await street.shop.count("vends") == 1
            legs = "select array_agg(ledger || amount_minor order by ledger) from legs"
            assert await street.shop.one(legs) == ["gateway_clearing-50000", "prepaid50000"]
            facts = await street.shop.one("select facts from notices where kind = 'recharged'")
            assert facts["token"] == told["token"]
            assert [each["way"] for each in told["delivery"]["attempts"]] == ["answer", "meter"]
            assert told["delivery"]["state"] == "under_way"
            await audited(street)

    asyncio.run(story())


def test_webhook_that_comes_before_the_gateway_has_answered_is_credited(database_url: str) -> None:
    """The order is stored before the gateway hears of it: its answer may be lost, its word may overtake it."""

    async def story() -> None:
        async with open_street(database_url) as street:
            street.sandbox.forgets = 1
            begun = await street.begin()
            # The gateway took the order, its answer was lost: the second question finds it by its reference.
            assert (begun.status_code, begun.json()["error"]["code"]) == (503, "gateway_unavailable")
            (link,) = street.sandbox.links.values()
            street.pay(link["reference_id"])
            assert await street.deliver_all() == ["credited"]
            assert (await street.read(link["reference_id"]))["state"] == "credited"
            street.sandbox.fails = 1
            assert (await street.begin()).status_code == 503
            await street.ask_all(days=3)
            assert await street.shop.one("select count(*) from payments where next_ask_at is null") == 1
            await audited(street)

    asyncio.run(story())


def test_lost_webhooks_are_made_good_by_asking(database_url: str) -> None:
    """Paid, failed, expired, paid late after the end, refunded at the gateway's own desk: no webhook is needed."""

    async def story() -> None:
        async with open_street(database_url) as street:
            paid, late, never, gone = [await street.order() for _ in range(4)]
            street.pay(paid)
            gone_money = street.pay(gone)
            street.shop.clock.now_ms += 60_000
            await street.ask()
            for order_id in (late, never):
                street.sandbox.expire(street.link_of(order_id))
            street.shop.clock.now_ms += 3_600_000
            await street.ask()
            assert [(await street.read(each))["state"] for each in (paid, late, never, gone)] == [
                "credited", "expired", "expired", "credited",
            ]  # fmt: skip
            street.pay(late)
            street.sandbox.refund(gone_money)
            await street.ask_all()
            street.sandbox.take_outbox()
            assert [(await street.read(each))["state"] for each in (paid, late, never, gone)] == [
                "credited", "credited", "expired", "refunded",
            ]  # fmt: skip
            assert await street.shop.one("select posted_minor from accounts") == 100_000
            await audited(street)

    asyncio.run(story())


def test_money_that_is_not_sold_goes_back_once(database_url: str) -> None:
    """Another amount, paid twice, an account that pays by bill meanwhile: sent back whole, told with the reason."""

    async def story() -> None:
        async with open_street(database_url) as street:
            wrong, twice, refused = [await street.order() for _ in range(3)]
            street.pay(wrong, 49_999)
            street.pay(twice)
            street.pay(twice)
            assert await street.deliver_all() == ["amount_mismatch", "credited", "paid_twice"]
            await street.shop.conn.execute("update accounts set mode = 'postpaid', postpaid_approval = 'PSERC-1'")
            street.pay(refused)
            assert await street.deliver_all() == ["vend_refused"]
            street.sandbox.slow_refunds = True
            # Refunds are asked for, their answers lost, and asked for again.
            street.sandbox.forgets = 3
            await street.ask_all(days=1)
            assert (await street.read(refused))["state"] == "refund_due"
            street.sandbox.end_refunds()
            outcomes = await street.deliver_all()
            assert set(outcomes) == {"refunded"}
            assert street.sandbox.sent_back_minor == 49_999 + 50_000 + 50_000
            told = await street.read(refused)
            assert (told["state"], told["refusal"], told["token"]) == ("refunded", "postpaid_account", None)
            assert [each["why"] for each in told["received"]] == ["vend_refused"]
            assert (await street.read(twice))["state"] == "credited"
            assert (await street.read(wrong))["state"] == "refunded"
            begun = await street.begin()
            assert (begun.status_code, begun.json()["error"]["code"]) == (409, "postpaid_account")
            # The auditor would mind the cut-offs of before: this account changed its mode behind everybody's back.
            await street.shop.conn.execute("update accounts set mode = 'prepaid', postpaid_approval = null")
            await audited(street)

    asyncio.run(story())


def test_refund_after_credit_takes_the_credit_back_once(database_url: str) -> None:
    """Asked for by an engineer or made at the gateway, told twice, before or after its payment: one reversal each."""

    async def story() -> None:
        async with open_street(database_url) as street:
            asked, at_gateway, first = [await street.order() for _ in range(3)]
            street.pay(asked)
            money = street.pay(at_gateway)
            assert await street.deliver_all() == ["credited", "credited"]
            await street.shop.set_balance(10_000)
            before_minor = await street.shop.one("select posted_minor from accounts")
            refund = {"json": {"reason": "paid for the wrong account"}, "headers": street.shop.headers("engineer")}
            for _ in range(2):
                told = await street.shop.http.post(f"/v1/payments/{asked}/refund", **refund)
                assert (told.status_code, told.json()["state"]) == (200, "refund_due")
            street.sandbox.refund(money)
            (sent,) = street.sandbox.take_outbox()
            assert (await street.deliver(sent)).json()["outcome"] == "taken_back"
            assert (await street.deliver(sent)).json()["outcome"] == "duplicate"
            await street.ask_all(days=1)
            assert await street.deliver_all() == ["duplicate"]
            assert street.sandbox.received_minor == street.sandbox.sent_back_minor == 100_000
            # Never clamped: what was used of it is a debt, and supply follows its own rules.
            assert await street.shop.one("select posted_minor from accounts") == before_minor - 100_000
            assert await street.shop.one("select count(*) from journals where kind = 'reversal'") == 2
            assert await street.shop.one("select count(*) from vends where state = 'reversed'") == 2
            money = street.pay(first)
            street.sandbox.refund(money)
            paid, gone = street.sandbox.take_outbox()
            assert (await street.deliver(gone)).json()["outcome"] == "refunded"
            assert (await street.deliver(paid)).json()["outcome"] == "duplicate"
            assert (await street.read(first))["state"] == "refunded"
            again = await street.shop.http.post(f"/v1/payments/{first}/refund", **refund)
            assert again.json()["error"]["code"] == "payment_not_refundable"
            await audited(street)

    asyncio.run(story())


def test_webhook_without_a_good_signature_changes_nothing(database_url: str) -> None:
    """Unsigned, changed, of another gateway; a word about an unknown order is kept for people."""

    async def story() -> None:
        async with open_street(database_url) as street:
            order_id = await street.order()
            street.pay(order_id)
            (sent,) = street.sandbox.take_outbox()
            shop = street.shop
            unsigned = await shop.http.post(WEBHOOKS, content=sent.body)
            assert (unsigned.status_code, unsigned.json()["error"]["code"]) == (401, "signature_missing")
            changed = await shop.http.post(WEBHOOKS, content=sent.body + b" ", headers=sent.headers)
            assert (changed.status_code, changed.json()["error"]["code"]) == (401, "signature_wrong")
            other = await shop.http.post("/v1/payments/webhooks/other", content=sent.body, headers=sent.headers)
            assert other.json()["error"]["code"] == "payments_not_configured"
            assert await shop.count("payment_events") == 0
            street.sandbox.links[street.link_of(order_id)]["reference_id"] = "P" + "0" * 20
            street.pay("P" + "0" * 20)
            assert await street.deliver_all() == ["unknown_order"]
            assert (await street.sums()).for_people == 1
            await audited(street)

    asyncio.run(story())


def test_link_opens_one_account_masked_and_pays_for_it(database_url: str) -> None:
    """No login: balance, what restores supply, and the order with its token; nothing of another account."""

    async def story() -> None:
        async with open_street(database_url) as street:
            shop = street.shop
            path = f"/v1/accounts/{shop.home.number}/recharge-link"
            made = await shop.http.post(path, json={"days": 2}, headers=shop.headers("consumer"))
            link = made.json()["url"].removeprefix("http://shop/r/")
            facts = (await shop.http.get(f"/v1/recharge/{link}")).json()
            assert (facts["account_number"], facts["balance"]) == ("******300", "-8.05")
            assert CONSUMER not in str(facts)
            assert facts["suggested_minor"][0] >= facts["restores_with_minor"] > 0
            begun = await shop.http.post(f"/v1/recharge/{link}/payments", json={"amount": "100"})
            order_id = begun.json()["order_id"]
            assert begun.json()["pay_link"].startswith("http://gateway/pay/")
            street.pay(order_id)
            await street.deliver_all()
            told = (await shop.http.get(f"/v1/recharge/{link}/payments/{order_id}")).json()
            assert (told["state"], len(told["token"])) == ("credited", 24)
            other = make_link(LINK_SECRET, shop.home.account_id + 1, expires_s=2**32 - 1)
            missed = await shop.http.get(f"/v1/recharge/{other}/payments/{order_id}")
            assert (missed.status_code, missed.json()["error"]["code"]) == (404, "unknown_payment")
            shop.clock.now_ms += 2 * 86_400_000
            ended = await shop.http.get(f"/v1/recharge/{link}")
            assert (ended.status_code, ended.json()["error"]["code"]) == (404, "recharge_link_wrong")

    asyncio.run(story())


def test_account_begins_so_many_orders_an_hour(database_url: str) -> None:
    """A link that was passed on floods no gateway."""

    async def story() -> None:
        async with open_street(database_url) as street:
            for _ in range(20):
                await street.order()
            refused = await street.begin()
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_payments")
            street.shop.clock.now_ms += 3_600_001
            await street.order()

    asyncio.run(story())


def test_token_used_at_its_meter_counts_as_delivered(database_url: str) -> None:
    """Each attempt is a record, for the vendor that sold it alone; a push is one order however often asked for."""

    async def story() -> None:
        async with open_street(database_url) as street:
            shop = street.shop
            await shop.vend("T-1")
            path = "/v1/vends/T-1/delivery"
            assert (await shop.get(path)).json()["state"] == "given_out"
            assert (await shop.get(path, "other_vendor")).json()["error"]["code"] == "unknown_vend"
            for _ in range(2):
                pushed = await shop.http.post(path, headers=shop.headers("vendor"))
                assert pushed.json()["state"] == "under_way"
            assert [each["way"] for each in pushed.json()["attempts"]] == ["answer", "meter"]
            await shop.conn.execute(
                "insert into token_deliveries (token_id, meter_id, result, entered_at)"
                " select id, meter_id, 'used', now() from tokens"
            )
            told = (await shop.http.post(path, headers=shop.headers("vendor"))).json()
            assert (told["state"], told["result"]) == ("delivered", "used")
            assert len(told["attempts"]) == 2

    asyncio.run(story())


def test_consumer_is_told_once_of_money_that_goes_back(database_url: str) -> None:
    """Sent back unsold, asked for by an engineer, or sent back at the gateway: one notice each, however often heard."""

    async def story() -> None:
        async with open_street(database_url) as street:
            wrong, asked, at_gateway = [await street.order() for _ in range(3)]
            street.pay(wrong, 49_999)
            street.pay(asked)
            money = street.pay(at_gateway)
            await street.deliver_all()
            refund = {"json": {"reason": "asked for"}, "headers": street.shop.headers("engineer")}
            for _ in range(2):
                await street.shop.http.post(f"/v1/payments/{asked}/refund", **refund)
            street.sandbox.refund(money)
            await street.ask_all(days=2)
            await street.deliver_all()
            rows = await street.shop.conn.execute(
                "select facts ->> 'order', facts ->> 'amount_minor', facts ->> 'taken_back_minor' from notices"
                " where kind = 'payment_refunded' order by id"
            )
            told = await rows.fetchall()
            assert sorted(told) == sorted(
                [(wrong, "49999", None), (asked, "50000", "50000"), (at_gateway, "50000", "50000")]
            )
            await audited(street)

    asyncio.run(story())


def test_words_for_people_are_listed_by_a_command(database_url: str, tmp_path: Path) -> None:
    """A refund in part changes nothing, and an operator sees it with the ids that its gateway knows it by."""

    async def story() -> tuple[str, str]:
        async with open_street(database_url) as street:
            order_id = await street.order()
            money = street.pay(order_id)
            await street.deliver_all()
            street.sandbox.refund(money, 20_000)
            assert await street.deliver_all() == ["partial_refund"]
            assert (await street.sums()).for_people == 1
            return order_id, money

    order_id, money = asyncio.run(story())
    listed = run_command("payments", "exceptions", environment=settings_for(database_url, tmp_path)).stdout
    assert f"partial_refund razorpay: order {order_id}, payment {money}, Rs 500.00, Rs 200.00 of it gone back" in listed
    told = run_command("payments", "totals", "--json", environment=settings_for(database_url, tmp_path)).stdout
    assert json.loads(told)["for_people"] == 1
