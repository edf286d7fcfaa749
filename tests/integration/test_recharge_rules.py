"""Recharges under prepayment rules: limits by category, and the share that earlier arrears take."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from billing.calendar import to_ms
from billing.journals import Ledger
from billing.prepayment import RulesError, builtin_rules_text, parse_rules, recharge_to_keep, split_recharge
from db.audit import run_checks
from db.money_events import Instruction, add_arrears
from db.prepayment import RulesRefused, add_rules, check_dues, dues_outstanding, read_dues, rules_on
from tests.integration.vending_shop import CALENDAR, NOON, RULES, Shop, open_shop
from vending.edges.models import AccountAnswer, MeterAnswer, VendAnswer

pytestmark = pytest.mark.db

TODAY = CALENDAR.day_of(to_ms(NOON))
BUILTIN = parse_rules(builtin_rules_text()).default
LATEST_FACTS = "select facts from notices where kind = %s order by id desc limit 1"


async def bring_arrears(shop: Shop, *amounts_minor: int) -> None:
    """Bring in arrears, a day apart."""
    for number, amount_minor in enumerate(amounts_minor):
        now_ms = shop.clock() - (len(amounts_minor) - number) * 86_400_000
        order = Instruction(reason="old bills", by="A. Kaur", now_ms=now_ms, rules=RULES)
        async with shop.conn.transaction():
            await add_arrears(shop.conn, shop.home.account_id, amount_minor, order)


async def arrears_of(shop: Shop) -> int:
    """Return the home's arrears left."""
    return (await dues_outstanding(shop.conn, shop.home.account_id))[Ledger.ARREARS]


async def require_sound(shop: Shop) -> None:
    """Dues agree with journals, and so does everything else."""
    assert await check_dues(shop.conn) == []
    report = await run_checks(shop.conn, CALENDAR)
    assert report.clean, report.lines()


def rules_text(from_day: date, **changes: str) -> str:
    """Return the shipped rules from another day on, with some rules changed."""
    text = builtin_rules_text().replace("effective_from = 2024-11-14", f"effective_from = {from_day}")
    for rule, value in changes.items():
        lines = [f"{rule} = {value}" if line.startswith(f"{rule} = ") else line for line in text.splitlines()]
        text = "\n".join(lines) + "\n"
    return text


def test_recharge_with_arrears_keeps_what_the_share_leaves_and_the_token_carries_that(database_url: str) -> None:
    """The vend is booked in full, a quarter goes to arrears; answer, receipt, token and account say the same."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 100_000)
            await shop.set_balance(10_000)
            answer = (await shop.vend("m-1")).json()
            VendAnswer.model_validate(answer)
            assert (answer["amount"], answer["balance_before"], answer["balance_after"]) == (
                "500.00",
                "100.00",
                "475.00",
            )
            assert (answer["earlier_arrears_paid"], answer["earlier_arrears_left"]) == ("125.00", "875.00")
            texts = [line["text"] for line in answer["lines"]]
            assert texts[:3] == [
                "Recharge received: INR 500.00",
                "Paid towards earlier arrears: INR 125.00",
                "Credit on account: INR 475.00",
            ]
            assert "Earlier arrears left: INR 875.00" in texts
            # Currency tokens are rounded up to what their field holds, by less than a rupee here.
            entry = shop.token_reader().enter(answer["token"]["digits"], now_ms=0)
            assert 37_500_000 <= (entry.amount or 0) < 37_600_000
            booked = await shop.one(
                "select array_agg(array[j.kind, l.ledger, l.amount_minor::text] order by l.journal_id, l.n)"
                " from journals j join legs l on l.journal_id = j.id where j.kind in ('vend', 'arrears_recovery')"
            )
            assert booked == [
                ["vend", "prepaid", "50000"],
                ["vend", "vendor_clearing", "-50000"],
                ["arrears_recovery", "prepaid", "-12500"],
                ["arrears_recovery", "arrears", "12500"],
            ]
            account = AccountAnswer.model_validate(
                (await shop.get(f"/v1/accounts/{shop.home.number}", "engineer")).json()
            )
            assert (account.balance, account.earlier_arrears) == ("475.00", "875.00")
            assert account.last_recharge is not None
            assert account.last_recharge.amount == "500.00"
            await require_sound(shop)

    asyncio.run(story())


def test_repeated_recharge_recovers_arrears_once(database_url: str) -> None:
    """A retry under the same message id reads the stored answer, even after the arrears are gone."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 12_500)
            await shop.set_balance(0)
            first = await shop.vend("m-1")
            again = [await shop.vend("m-1"), await shop.get("/v1/vends/m-1")]
            assert {each.content for each in again} == {first.content}
            assert first.json()["earlier_arrears_left"] == "0.00"
            assert await arrears_of(shop) == 0
            second = (await shop.vend("m-2")).json()
            assert (second["earlier_arrears_paid"], second["balance_after"]) == ("0.00", "875.00")
            assert "earlier_arrears_left" not in [line["code"] for line in second["lines"]]
            await require_sound(shop)

    asyncio.run(story())


def test_parallel_recharges_recover_no_more_than_the_arrears(database_url: str) -> None:
    """Twenty at a time, each a quarter of 100.00, until 120.00 are paid; each answer counts down."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 12_000)
            responses = await asyncio.gather(*(shop.vend(f"m-{number}", "100.00") for number in range(20)))
            assert {each.status_code for each in responses} == {200}
            paid = sorted((each.json()["earlier_arrears_paid_minor"] for each in responses), reverse=True)
            assert paid == [2_500] * 4 + [2_000] + [0] * 15
            left = sorted(each.json()["earlier_arrears_left_minor"] for each in responses)
            assert left == [0] * 16 + [2_000, 4_500, 7_000, 9_500]
            posted = await shop.one("select posted_minor from accounts where id = %s", shop.home.account_id)
            assert posted == 20 * 10_000 - 12_000
            await require_sound(shop)

    asyncio.run(story())


def test_recovery_pays_the_oldest_arrears_first(database_url: str) -> None:
    """One recharge may settle one due and begin the next."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 10_000, 20_000)
            await shop.vend("m-1")
            dues = await read_dues(shop.conn, shop.home.account_id, Ledger.ARREARS)
            assert [due.outstanding_minor for due in dues] == [0, 17_500]
            await require_sound(shop)

    asyncio.run(story())


def test_recharge_up_to_the_floor_is_kept_whole(database_url: str) -> None:
    """Of 50.00 nothing is recovered and no recovery is booked."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 10_000)
            answer = (await shop.vend("m-1", "50.00")).json()
            assert (answer["earlier_arrears_paid"], answer["earlier_arrears_left"]) == ("0.00", "100.00")
            assert await shop.one("select count(*) from journals where kind = 'arrears_recovery'") == 0

    asyncio.run(story())


def test_confirmation_names_share_and_the_recharge_that_restores_after_it(database_url: str) -> None:
    """Before selling: arrears, share, and the sum of which enough is left; one paisa less leaves supply off."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 100_000)
            await shop.set_balance(100)
            await shop.set_balance(-60_000)
            await shop.confirm_orders()
            confirmed = (await shop.get(f"/v1/meters/{shop.home.serial}")).json()
            MeterAnswer.model_validate(confirmed)
            assert (confirmed["arrears"], confirmed["earlier_arrears"]) == ("600.00", "1000.00")
            assert (confirmed["recovery_share_basis_points"], confirmed["recovery_floor"]) == (2_500, "50.00")
            restores_minor = recharge_to_keep(60_001, 100_000, BUILTIN)
            assert split_recharge(restores_minor, 100_000, BUILTIN).kept_minor == 60_001
            assert confirmed["supply"]["restores_with_minor"] == confirmed["sell_at_least_minor"] == restores_minor
            told = {"balance_minor": -60_000, "restores_minor": restores_minor}
            assert await shop.one(LATEST_FACTS, "exhausted") == told
            short = (await shop.vend("m-1", "800.00")).json()
            assert (short["supply"]["state_after_desired"], short["balance_after"]) == ("off", "0.00")
            confirmed = (await shop.get(f"/v1/meters/{shop.home.serial}")).json()
            assert short["supply"]["restores_with"] == confirmed["supply"]["restores_with"] == "0.01"
            assert confirmed["sell_at_least"] == "10.00"
            enough = (await shop.vend("m-2", "10.00")).json()
            assert enough["supply"]["state_after_desired"] == "on"
            await require_sound(shop)

    asyncio.run(story())


def test_recharge_that_recovery_leaves_too_small_changes_no_supply_and_rings_nothing(database_url: str) -> None:
    """Vend and recovery count as one: no order to restore, none to cut, no second alarm."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 100_000)
            await shop.set_balance(-45_000)
            await shop.confirm_orders()
            before = [await shop.count(table) for table in ("supply_orders", "alarms")]
            answer = (await shop.vend("m-1")).json()
            assert (answer["balance_after"], answer["supply"]["state_after_desired"]) == ("-75.00", "off")
            assert [await shop.count(table) for table in ("supply_orders", "alarms")] == before
            assert await shop.one("select count(*) from notices where kind = 'restored'") == 0
            restores_minor = answer["supply"]["restores_with_minor"]
            told = {"amount_minor": 50_000, "balance_minor": -7_500, "restores_minor": restores_minor}
            assert (await shop.one(LATEST_FACTS, "recharged")).items() >= told.items()

    asyncio.run(story())


def test_recharge_that_pays_the_last_arrears_is_told_with_what_restores_after_them(database_url: str) -> None:
    """What the consumer reads is what the receipt says: arrears that are gone take no share of the next recharge."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await bring_arrears(shop, 12_500)
            await shop.set_balance(-80_000)
            answer = (await shop.vend("m-1")).json()
            assert (answer["earlier_arrears_paid"], answer["earlier_arrears_left"]) == ("125.00", "0.00")
            assert answer["supply"]["restores_with_minor"] == 42_501
            assert (await shop.one(LATEST_FACTS, "recharged"))["restores_minor"] == 42_501

    asyncio.run(story())


def test_recharge_limits_are_the_categorys(database_url: str) -> None:
    """A government connection recharges Rs 1,000 at least; the refusal is stored and names the limit."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute("update assignments set category = 'GOVT'")
            refused = await shop.vend("m-1", "999.99")
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "amount_below_minimum")
            assert refused.json()["error"]["limit"] == "1000.00"
            assert (await shop.vend("m-1", "999.99")).content == refused.content
            confirmed = (await shop.get(f"/v1/meters/{shop.home.serial}")).json()
            assert (confirmed["vend_min"], confirmed["vend_max"], confirmed["cash_max"]) == (
                "1000.00",
                "50000.00",
                "5000.00",
            )
            assert (await shop.vend("m-2", "1000.00")).status_code == 200

    asyncio.run(story())


def test_rules_document_holds_from_its_day_for_every_category(database_url: str) -> None:
    """The day before sells by the old rules, the day itself by the new ones; the shipped ones hold before the first."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            tomorrow = TODAY + timedelta(days=1)
            text = rules_text(tomorrow, share_basis_points="10_000", floor_minor="20_000", maximum_minor="160_000")
            await add_rules(shop.conn, text, first_open_day=TODAY)
            await bring_arrears(shop, 1_000_000)
            assert (await shop.vend("m-1")).json()["earlier_arrears_paid"] == "125.00"
            shop.clock.now_ms += 86_400_000
            assert (await shop.vend("m-2")).json()["earlier_arrears_paid"] == "300.00"
            assert (await shop.vend("m-3", "1600.01")).json()["error"]["limit"] == "1600.00"
            assert (await rules_on(shop.conn, TODAY)).default == BUILTIN
            assert (await rules_on(shop.conn, tomorrow)).default.recovery_floor_minor == 20_000

    asyncio.run(story())


def test_rules_document_is_never_replaced_nor_put_in_force_for_the_past(database_url: str) -> None:
    """The same document again is no news; another for its day, one for a past day, or a broken one is refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            text = rules_text(TODAY, share_basis_points="1_000")
            await add_rules(shop.conn, text, first_open_day=TODAY)
            again = await add_rules(shop.conn, text, first_open_day=TODAY + timedelta(days=9))
            assert again.default.recovery_share_basis_points == 1_000
            with pytest.raises(RulesRefused, match="expected a day without a document"):
                await add_rules(shop.conn, rules_text(TODAY, share_basis_points="2_000"), first_open_day=TODAY)
            with pytest.raises(RulesRefused, match="what is past is sold already"):
                await add_rules(shop.conn, rules_text(TODAY - timedelta(days=1)), first_open_day=TODAY)
            with pytest.raises(RulesError, match=r"rules punjab, category default: arrears\.floor_minor"):
                await add_rules(shop.conn, rules_text(TODAY, floor_minor="-1"), first_open_day=TODAY)
            assert await shop.count("prepayment_rules") == 1

    asyncio.run(story())
