"""Conversion, instalments, long absence and emergency credit by category, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import psycopg
import pytest

from billing.calendar import to_ms
from billing.journals import JournalKind, Ledger
from billing.prepayment import builtin_rules_text
from billing.supply import Mode, Supply
from db.accounts import AccountView, look
from db.audit import run_checks
from db.conversions import (
    Conversion,
    InstalmentsPaid,
    apply_category_credit,
    begin_absence,
    convert,
    end_absence,
    end_absences,
    pay_instalments,
)
from db.money_events import Instruction, MoneyDone, MoneyRefused
from db.pool import connect
from db.posting import lock_and_look, post_money, post_readings
from db.prepayment import add_rules, check_dues, read_dues
from prepaid.embedded import EmbeddedNats
from tests.integration.vending_shop import CALENDAR, NOON, RULES, Home, Shop, add_home, open_shop
from tests.support import HOUR_MS, REGISTER_WH, T0, open_site, reading, running_ingest
from vending.edges.models import AccountAnswer

pytestmark = pytest.mark.db

NOW_MS = to_ms(NOON)
TODAY = CALENDAR.day_of(NOW_MS)
ORDER = Instruction(reason="as the office says", by="A. Kaur", now_ms=NOW_MS, rules=RULES)
DAY = timedelta(days=1)


def clock() -> int:
    """A clock that stands still."""
    return NOW_MS


async def view_of(shop: Shop, home: Home | None = None) -> AccountView:
    """Look at an account."""
    account_id = (home or shop.home).account_id
    return (await look(shop.conn, [account_id], CALENDAR))[account_id]


async def balance_of(shop: Shop, home: Home | None = None) -> int:
    """Return an account's running balance."""
    return (await view_of(shop, home)).balance_minor(CALENDAR)


async def converted(shop: Shop, home: Home, conversion: Conversion) -> MoneyDone:
    """Convert an account in a transaction."""
    async with shop.conn.transaction():
        return await convert(shop.conn, home.account_id, conversion, ORDER)


async def absent(shop: Shop, until: date, deposit_minor: int) -> MoneyDone:
    """Begin an absence of the home's consumer in a transaction."""
    async with shop.conn.transaction():
        return await begin_absence(shop.conn, shop.home.account_id, until, deposit_minor, ORDER)


async def catch_up(shop: Shop, register_wh: int, *, hours: int = 0) -> None:
    """Store a reading and let the account decide about alarms and supply, as ingest does."""
    await shop.read(NOON + timedelta(hours=hours), register_wh)
    async with shop.conn.transaction():
        view = await lock_and_look(shop.conn, shop.home.account_id, RULES)
        await post_readings(shop.conn, view, late_since_ms=None, rules=RULES, now_ms=NOW_MS)


async def pay(shop: Shop, until: date, at: Callable[[], int] = clock) -> InstalmentsPaid:
    """Pay the instalments due."""
    return await pay_instalments(shop.conn, until, rules=RULES, clock=at)


async def rung(shop: Shop) -> tuple[int, int]:
    """Count the cut-offs ordered and the exhaustions that rang."""
    cut_offs = await shop.one("select count(*) from supply_orders where relay = 'off'")
    return cut_offs, await shop.one("select count(*) from alarms where level = 'exhausted'")


async def require_sound(shop: Shop) -> None:
    """Dues agree with journals, and so does everything else."""
    assert await check_dues(shop.conn) == []
    report = await run_checks(shop.conn, CALENDAR)
    # Readings are put in here without the batch that would have counted them.
    broken = [check.line() for check in report.checks if check.broken and check.id != "I3-rows"]
    assert broken == []


def rules_text(from_day: date, **changes: str) -> str:
    """Return the shipped rules from another day on, with some rules changed."""
    text = builtin_rules_text().replace("effective_from = 2024-11-14", f"effective_from = {from_day}")
    for rule, value in changes.items():
        text = "\n".join(f"{rule} = {value}" if line.startswith(f"{rule} = ") else line for line in text.splitlines())
    return text


def test_conversion_brings_arrears_and_security_and_begins_to_cut(database_url: str) -> None:
    """Mode, journals and dues in one; the account is fed to its shard's owner and judged as prepaid at once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            home = await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            before = await view_of(shop, home)
            assert before.balance_minor(CALENDAR) < 0
            assert before.levels.desired is Supply.ON
            answer = await converted(shop, home, Conversion(arrears_minor=150_000, security_minor=90_001))
            assert (answer.outstanding[Ledger.ARREARS], answer.outstanding[Ledger.SECURITY]) == (150_000, 90_001)
            after = await view_of(shop, home)
            assert (after.levels.mode, after.levels.desired, answer.supply) == (Mode.PREPAID, Supply.OFF, "off")
            fed = await shop.one("select max(version) from change_feed where account_id = %s", home.account_id)
            assert fed == after.version
            kinds = await shop.one(
                "select array_agg(kind order by id) from journals where account_id = %s", home.account_id
            )
            assert kinds == ["arrears_opening", "security_opening"]
            sold = (await shop.vend("m-1", meter="POST-1")).json()
            assert sold["earlier_arrears_left"] == "1375.00"
            with pytest.raises(MoneyRefused, match="expected a postpaid one to convert, got prepaid"):
                await converted(shop, home, Conversion(arrears_minor=1, security_minor=0))
            await require_sound(shop)

    asyncio.run(story())


def test_conversion_may_move_an_unpaid_bill_to_the_arrears(database_url: str) -> None:
    """The account begins at zero, not in debt; what it owed is worked off by recharges."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            home = await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            debt_minor = -await balance_of(shop, home)
            conversion = Conversion(arrears_minor=1_000, security_minor=0, debt_to_arrears=True)
            answer = await converted(shop, home, conversion)
            assert (answer.balance_minor, answer.outstanding[Ledger.ARREARS]) == (0, 1_000 + debt_minor)
            dues = await read_dues(shop.conn, home.account_id, Ledger.ARREARS)
            assert [due.outstanding_minor for due in dues] == [1_000, debt_minor]
            await require_sound(shop)

    asyncio.run(story())


def test_conversion_keeps_one_months_security_and_refunds_the_rest_in_instalments(database_url: str) -> None:
    """A month's charges stay held (R-9.7); six parts of what is above go back, on the first of six months."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            home = await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            conversion = Conversion(arrears_minor=0, security_minor=90_000, month_minor=30_000, debt_to_arrears=True)
            await converted(shop, home, conversion)
            before_minor = await balance_of(shop, home)
            assert await pay(shop, date(2026, 11, 30)) == InstalmentsPaid(instalments=0, amount_minor=0)
            assert await pay(shop, date(2026, 12, 1)) == InstalmentsPaid(instalments=1, amount_minor=10_000)
            assert await pay(shop, date(2026, 12, 1)) == InstalmentsPaid(instalments=0, amount_minor=0)
            assert await pay(shop, date(2030, 1, 1)) == InstalmentsPaid(instalments=5, amount_minor=50_000)
            assert await balance_of(shop, home) == before_minor + 60_000
            due_on = await shop.one("select array_agg(due_on order by n) from due_instalments")
            assert due_on == [date(2026, 12, 1), *(date(2027, month, 1) for month in range(1, 6))]
            held = await read_dues(shop.conn, home.account_id, Ledger.SECURITY)
            assert [due.outstanding_minor for due in held] == [30_000, 0]
            await require_sound(shop)

    asyncio.run(story())


def test_instalments_stopped_in_between_go_on_where_they_stood(database_url: str) -> None:
    """A sweep whose connection is killed within an instalment has paid whole ones only; the next pays the rest once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in range(3):
                home = await add_home(shop.conn, f"POST-{number}", f"2{number}", mode=Mode.POSTPAID)
                await converted(shop, home, Conversion(arrears_minor=0, security_minor=10_000))
            calls = 0
            async with await connect(database_url, application="sweep") as conn:
                pid = conn.info.backend_pid

                def killed_at_the_eighth() -> int:
                    nonlocal calls
                    calls += 1
                    if calls == 8:
                        with psycopg.connect(database_url, autocommit=True) as killer:
                            killer.execute("select pg_terminate_backend(%s, 5000)", (pid,))
                    return NOW_MS

                with pytest.raises(psycopg.OperationalError):
                    await pay_instalments(conn, date(2030, 1, 1), rules=RULES, clock=killed_at_the_eighth)
            assert await shop.count("due_instalments") == 7
            await require_sound(shop)
            rest = await pay(shop, date(2030, 1, 1))
            assert rest.instalments == 11
            assert await shop.one("select sum(amount_minor)::bigint from due_instalments") == 30_000
            await require_sound(shop)

    asyncio.run(story())


def test_two_sweeps_at_a_time_pay_each_instalment_once(database_url: str) -> None:
    """They queue at the account and find the other's instalment paid."""

    async def story() -> None:
        async with open_shop(database_url) as shop, await connect(database_url, application="second") as other:
            for number in range(3):
                home = await add_home(shop.conn, f"POST-{number}", f"2{number}", mode=Mode.POSTPAID)
                await converted(shop, home, Conversion(arrears_minor=0, security_minor=10_001))
            sweeps = (pay_instalments(conn, date(2030, 1, 1), rules=RULES, clock=clock) for conn in (shop.conn, other))
            paid = await asyncio.gather(*sweeps)
            assert sum(each.instalments for each in paid) == 18
            assert sum(each.amount_minor for each in paid) == 30_003
            await require_sound(shop)

    asyncio.run(story())


def test_sweeps_leave_an_account_without_a_meter_for_the_next_time(database_url: str) -> None:
    """It holds nobody else up, nothing of it is half done, and once it has its meter again it is met again."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in range(2):
                home = await add_home(shop.conn, f"POST-{number}", f"2{number}", mode=Mode.POSTPAID)
                await converted(shop, home, Conversion(arrears_minor=0, security_minor=6))
            await shop.set_balance(10_000)
            await absent(shop, TODAY + DAY, 3_000)
            await add_rules(shop.conn, rules_text(TODAY, emergency_credit_minor="20_000"), first_open_day=TODAY)

            async def sweep() -> tuple[int, int, int]:
                paid = await pay(shop, date(2030, 1, 1))
                ended = await end_absences(shop.conn, TODAY + DAY, rules=RULES, clock=clock)
                return paid.instalments, ended, await apply_category_credit(shop.conn, TODAY, rules=RULES, clock=clock)

            await shop.conn.execute("update installations set to_at = now() where id in (1, 2)")
            assert await sweep() == (6, 0, 1)
            assert await check_dues(shop.conn) == []
            await shop.conn.execute("update installations set to_at = null")
            assert await sweep() == (6, 1, 2)
            await require_sound(shop)

    asyncio.run(story())


def test_instalments_end_when_the_security_was_returned_otherwise(database_url: str) -> None:
    """A deposit smaller than its instalments' number, or one that left early, pays what there is and no more."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            home = await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            await converted(shop, home, Conversion(arrears_minor=0, security_minor=2))
            assert await pay(shop, date(2030, 1, 1)) == InstalmentsPaid(instalments=2, amount_minor=2)
            assert await shop.one("select count(*) from account_dues where next_on is not null") == 0
            await require_sound(shop)

    asyncio.run(story())


def test_absence_with_a_deposit_stops_the_cut_off_and_its_end_decides_again(database_url: str) -> None:
    """The deposit leaves the balance; credit may run out without a cut; at the end it comes back and supply follows."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(100_000)
            # An account without credit is cut off at its opening.
            opened = await rung(shop)
            until = TODAY + timedelta(days=60)
            begun = await absent(shop, until, 60_000)
            assert (begun.balance_minor, begun.outstanding[Ledger.ABSENCE]) == (40_000, 60_000)
            assert (await view_of(shop)).levels.absent
            account = (await shop.get(f"/v1/accounts/{shop.home.number}", "engineer")).json()
            assert AccountAnswer.model_validate(account).absent_until == until.isoformat()
            # 500 kWh cost more than balance and deposit together.
            await catch_up(shop, 505_000)
            assert -await balance_of(shop) > 60_000
            assert await rung(shop) == opened
            await require_sound(shop)
            assert await end_absences(shop.conn, until - DAY, rules=RULES, clock=clock) == 0
            balance_minor = await balance_of(shop)
            assert await end_absences(shop.conn, until, rules=RULES, clock=clock) == 1
            assert await end_absences(shop.conn, until + DAY, rules=RULES, clock=clock) == 0
            after = await view_of(shop)
            assert after.balance_minor(CALENDAR) == balance_minor + 60_000
            assert (after.levels.absent, after.levels.desired) == (False, Supply.OFF)
            assert await rung(shop) == (opened[0] + 1, opened[1] + 1)
            await require_sound(shop)

    asyncio.run(story())


@pytest.mark.broker
def test_ingest_cuts_no_absent_account_and_cuts_again_after_the_end(database_url: str, nats: EmbeddedNats) -> None:
    """What ingest keeps of an account follows the beginning and the end of its absence, by the change feed."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home(credit_minor=3_000)
            order = replace(ORDER, now_ms=T0)
            until = CALENDAR.day_of(T0) + 30 * DAY
            supply = "select relay, state from supply_orders where kind = 'supply'"
            async with running_ingest(site):
                await site.send(reading("M1", T0 + HOUR_MS, REGISTER_WH + 1_000))
                async with site.conn.transaction():
                    await begin_absence(site.conn, home.account_id, until, 1_500, order)
                await site.send(reading("M1", T0 + 2 * HOUR_MS, REGISTER_WH + 2_000))
                assert await site.balance(home) < 0
                assert await site.rows(supply) == []
                assert await end_absences(site.conn, until, rules=RULES, clock=clock) == 1
                assert await site.balance(home) > 0
                assert await site.rows(supply) == []
                await site.send(reading("M1", T0 + 3 * HOUR_MS, REGISTER_WH + 12_000))
                assert await site.rows(supply) == [("off", "pending")]
            assert await check_dues(site.conn) == []

    asyncio.run(story())


def test_absence_that_ends_with_credit_left_cuts_nothing(database_url: str) -> None:
    """The consumer comes back early: the deposit is theirs again, and the shard's owner hears of it."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(100_000)
            await absent(shop, TODAY + timedelta(days=60), 60_000)
            async with shop.conn.transaction():
                back = await end_absence(shop.conn, shop.home.account_id, ORDER)
            assert (back.balance_minor, back.amount_minor, back.supply) == (100_000, 60_000, "on")
            view = await view_of(shop)
            fed = await shop.one("select max(version) from change_feed where account_id = %s", shop.home.account_id)
            assert fed == view.version
            with pytest.raises(MoneyRefused, match="expected an absent one"):
                async with shop.conn.transaction():
                    await end_absence(shop.conn, shop.home.account_id, ORDER)
            await require_sound(shop)

    asyncio.run(story())


def test_absence_is_refused_without_credit_for_the_deposit_or_for_too_long(database_url: str) -> None:
    """Nothing changes: not the balance, not the flag."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(100_000)
            soon = TODAY + timedelta(days=60)
            cases = [
                (soon, 100_001, "deposit: expected above 0 and no more than the balance of 1000.00"),
                (soon, 0, "deposit: expected above 0"),
                (TODAY, 1_000, "until: expected a day after 2026-11-21 to 2027-11-21"),
                (date(2027, 11, 22), 1_000, "until: expected a day after 2026-11-21 to 2027-11-21"),
            ]
            for until, deposit_minor, match in cases:
                with pytest.raises(MoneyRefused, match=match):
                    await absent(shop, until, deposit_minor)
            await absent(shop, soon, 1_000)
            with pytest.raises(MoneyRefused, match=f"got absent until {soon}"):
                await absent(shop, soon, 1_000)
            assert await balance_of(shop) == 99_000
            await require_sound(shop)

    asyncio.run(story())


def test_emergency_credit_follows_the_category_but_never_below_the_accounts_own(database_url: str) -> None:
    """A new rule restores supply, its end cuts it; an account that was granted more keeps that; twice is once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            granted = await add_home(shop.conn, "GRANTED", "2")
            await shop.conn.execute(
                "update accounts set emergency_credit_minor = 70000 where id = %s", (granted.account_id,)
            )
            async with shop.conn.transaction():
                view = await lock_and_look(shop.conn, granted.account_id, RULES)
                await post_money(shop.conn, view, JournalKind.ADJUSTMENT, 1_000, rules=RULES, now_ms=NOW_MS)
            await shop.set_balance(-10_000)
            assert (await view_of(shop)).levels.desired is Supply.OFF
            await add_rules(shop.conn, rules_text(TODAY, emergency_credit_minor="20_000"), first_open_day=TODAY)
            await add_rules(shop.conn, rules_text(TODAY + DAY), first_open_day=TODAY)

            async def apply(day: date) -> int:
                return await apply_category_credit(shop.conn, day, rules=RULES, clock=clock)

            assert [await apply(TODAY), await apply(TODAY)] == [1, 0]
            view = await view_of(shop)
            assert (view.levels.emergency_credit_minor, view.levels.desired) == (20_000, Supply.ON)
            await require_sound(shop)
            assert await apply(TODAY + DAY) == 1
            assert (await view_of(shop)).levels.desired is Supply.OFF
            assert (await view_of(shop, granted)).levels.emergency_credit_minor == 70_000
            await require_sound(shop)

    asyncio.run(story())


def test_audit_of_dues_names_what_does_not_agree(database_url: str) -> None:
    """A due without its journal, an instalment without its journal's amount, a deposit without an absence."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            home = await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            await converted(shop, home, Conversion(arrears_minor=5_000, security_minor=6_000))
            await pay(shop, date(2026, 12, 1))
            await shop.set_balance(10_000)
            await absent(shop, TODAY + DAY, 3_000)
            assert await check_dues(shop.conn) == []
            await shop.conn.execute(
                "update account_dues set outstanding_minor = outstanding_minor - 1 where ledger = 'arrears'"
            )
            await shop.conn.execute(
                "update account_dues set outstanding_minor = 6000 where ledger = 'security_deposits'"
            )
            await shop.conn.execute("update accounts set absent_until = null")
            assert await check_dues(shop.conn) == [
                "account 2: ledger arrears: journals sum to -5000 minor, dues say -4999",
                "account 2: ledger security_deposits: journals sum to 5000 minor, dues say 6000",
                "account 2: due 2: 0 minor have left it, its instalments say 1000, their journals 1000",
                "account 100200300: absent until None, deposit of 3000 minor",
            ]

    asyncio.run(story())


def test_database_refuses_a_second_journal_of_a_kind_about_another(database_url: str) -> None:
    """Behind the check under the lock stands a key: one reversal per journal."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.vend("m-1")
            about_id = await shop.one("select journal_id from vends")

            async def take_back() -> None:
                async with shop.conn.transaction():
                    view = await lock_and_look(shop.conn, shop.home.account_id, RULES)
                    kind = JournalKind.REVERSAL
                    await post_money(shop.conn, view, kind, -50_000, rules=RULES, now_ms=NOW_MS, about_id=about_id)

            await take_back()
            with pytest.raises(psycopg.errors.UniqueViolation, match="one_journal_about"):
                await take_back()
            assert await shop.one("select count(*) from journals where kind = 'reversal'") == 1

    asyncio.run(story())
