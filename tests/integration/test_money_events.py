"""Money events of the billing office on a real PostgreSQL: what is booked, what is refused, what is done once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from billing.calendar import to_ms
from billing.journals import Ledger
from billing.prepayment import builtin_rules_text
from db.accounts import look
from db.audit import run_checks
from db.errors import UnknownAccount
from db.money_events import (
    Event,
    Instruction,
    MoneyDone,
    MoneyRefused,
    ReferenceReused,
    add_arrears,
    add_security,
    adjust,
    once,
    pay_interest,
    pay_interest_on_advance,
    refund,
    return_security,
    reverse,
    subsidise,
    write_off,
)
from db.pool import connect
from db.posting import lock, post_days
from db.prepayment import add_rules, check_dues
from tests.integration.vending_shop import CALENDAR, NOON, RULES, Shop, open_shop

pytestmark = pytest.mark.db

TODAY = CALENDAR.day_of(to_ms(NOON))
ORDER = Instruction(reason="as the office says", by="A. Kaur", now_ms=to_ms(NOON), rules=RULES)


async def done(shop: Shop, event: Event, *, about: int | None = None) -> MoneyDone:
    """Do one event on the home's account, or about a journal, in a transaction."""
    async with shop.conn.transaction():
        return await event(shop.conn, about or shop.home.account_id, ORDER)


async def refused(shop: Shop, event: Event, match: str, *, about: int | None = None) -> None:
    """An event is refused and leaves no journal."""
    before = await shop.count("journals")
    with pytest.raises(MoneyRefused, match=match):
        await done(shop, event, about=about)
    assert await shop.count("journals") == before


async def legs_of(shop: Shop, journal_id: int) -> dict[str, int]:
    """Return a journal's legs by ledger."""
    rows = await shop.conn.execute("select ledger, amount_minor from legs where journal_id = %s", (journal_id,))
    return dict(await rows.fetchall())


async def require_sound(shop: Shop) -> None:
    """The ledger sums to zero, dues agree with journals, and so does everything else."""
    assert await shop.one("select coalesce(sum(amount_minor), 0)::bigint from legs") == 0
    assert await check_dues(shop.conn) == []
    report = await run_checks(shop.conn, CALENDAR)
    assert report.clean, report.lines()


def of(function: Callable[..., Awaitable[MoneyDone]], *arguments: object, **named: object) -> Event:
    """Make an event of a function and its amounts."""

    async def event(conn, account_id, order):  # type: ignore[no-untyped-def]
        return await function(conn, account_id, *arguments, order, **named)

    return event


def test_refund_pays_out_the_balance_and_no_more(database_url: str) -> None:
    """The journal names refunds payable, the reason and who ordered it; one paisa above the balance is refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(30_000)
            await refused(shop, of(refund, 30_001), r"expected a balance of 300\.01 to refund, got 300\.00")
            answer = await done(shop, of(refund, 10_000))
            assert (answer.kind, answer.amount_minor, answer.balance_minor) == ("refund", -10_000, 20_000)
            assert await legs_of(shop, answer.journal_ids[0]) == {"prepaid": -10_000, "refunds_payable": 10_000}
            reason = await shop.one("select reason from journals where id = %s", answer.journal_ids[0])
            assert reason == "as the office says (by A. Kaur)"
            await require_sound(shop)

    asyncio.run(story())


def test_adjustment_to_the_end_of_credit_cuts_supply_and_back_restores_it(database_url: str) -> None:
    """A money event decides about supply like any other posting."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(30_000)
            assert (await done(shop, of(adjust, -30_000))).supply == "off"
            assert (await done(shop, of(adjust, 1))).supply == "on"
            await refused(shop, of(adjust, 0), "amount: expected above 0")
            await require_sound(shop)

    asyncio.run(story())


def test_write_off_of_a_balance_stops_at_the_debt(database_url: str) -> None:
    """Only what is owed can be given up; a bad debt is booked."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(-5_000)
            await refused(
                shop, of(write_off, 5_001, arrears=False), r"a balance below zero of 50\.01 or more, got 50\.00"
            )
            answer = await done(shop, of(write_off, 5_000, arrears=False))
            assert answer.balance_minor == 0
            assert await legs_of(shop, answer.journal_ids[0]) == {"prepaid": 5_000, "bad_debts": -5_000}
            await require_sound(shop)

    asyncio.run(story())


def test_write_off_of_arrears_leaves_the_balance_and_can_be_taken_back(database_url: str) -> None:
    """A bad debt credits the balance, a recovery takes it; the reversal brings the arrears back."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(1_000)
            await done(shop, of(add_arrears, 8_000))
            await refused(shop, of(write_off, 8_001, arrears=True), "arrears of 80.01 or more")
            answer = await done(shop, of(write_off, 3_000, arrears=True))
            assert (answer.balance_minor, answer.outstanding[Ledger.ARREARS]) == (1_000, 5_000)
            await require_sound(shop)
            back = await done(shop, reverse, about=answer.journal_ids[0])
            assert (back.balance_minor, back.outstanding[Ledger.ARREARS]) == (1_000, 8_000)
            await require_sound(shop)

    asyncio.run(story())


def test_subsidy_and_interest_are_credits_of_their_own_ledgers(database_url: str) -> None:
    """The government's and the utility's money is told apart from the consumer's."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(0)
            subsidy = await done(shop, of(subsidise, 4_000))
            assert await legs_of(shop, subsidy.journal_ids[0]) == {"prepaid": 4_000, "subsidy_receivable": -4_000}
            interest = await done(shop, of(pay_interest, 250))
            assert await legs_of(shop, interest.journal_ids[0]) == {"prepaid": 250, "interest_expense": -250}
            assert interest.balance_minor == 4_250
            await require_sound(shop)

    asyncio.run(story())


def test_interest_on_an_advance_needs_rules_that_pay_it(database_url: str) -> None:
    """Off by default; with a rate and its source it is worked out, actual days over 365."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(0)
            event = of(pay_interest_on_advance, 10_000_000, 73)
            await refused(shop, event, "category DS: expected rules that pay interest on an advance, got none")
            text = builtin_rules_text().replace("effective_from = 2024-11-14", f"effective_from = {TODAY}")
            text = text.replace("on_advance = false", "on_advance = true")
            text = text.replace("rate_basis_points = 0", "rate_basis_points = 900")
            text = text.replace('source = ""', 'source = "the bank\'s lending rate on 1 April"')
            await add_rules(shop.conn, text, first_open_day=TODAY)
            assert (await done(shop, event)).balance_minor == 180_000

    asyncio.run(story())


def test_security_is_brought_in_collected_and_returned(database_url: str) -> None:
    """A liability: brought in it leaves the balance, collected it comes from it, returned it goes there."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(10_000)
            brought = await done(shop, of(add_security, 50_000, collect=False))
            assert (brought.balance_minor, brought.outstanding[Ledger.SECURITY]) == (10_000, 50_000)
            await refused(shop, of(add_security, 10_001, collect=True), "to collect as security")
            collected = await done(shop, of(add_security, 4_000, collect=True))
            assert (collected.balance_minor, collected.outstanding[Ledger.SECURITY]) == (6_000, 54_000)
            await refused(shop, of(return_security, 54_001), "security held of 540.01 or more, got 540.00")
            returned = await done(shop, of(return_security, 52_000))
            assert (returned.balance_minor, returned.outstanding[Ledger.SECURITY]) == (58_000, 2_000)
            await require_sound(shop)

    asyncio.run(story())


def test_reversal_of_a_vend_takes_back_what_arrears_took_of_it(database_url: str) -> None:
    """Balance and arrears are as before the vend; the stored answer stays; there is no second reversal."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await done(shop, of(add_arrears, 20_000))
            await shop.set_balance(1_000)
            sold = await shop.vend("m-1")
            journal_id = await shop.one("select journal_id from vends where journal_id is not null")
            answer = await done(shop, reverse, about=journal_id)
            assert (answer.kind, answer.balance_minor, answer.outstanding[Ledger.ARREARS]) == (
                "reversal",
                1_000,
                20_000,
            )
            assert await legs_of(shop, answer.journal_ids[0]) == {"prepaid": -50_000, "vendor_clearing": 50_000}
            about = await shop.one("select array_agg(about_id order by id) from journals where about_id is not null")
            assert about == [journal_id, journal_id + 1]
            await refused(shop, reverse, "expected one not taken back yet", about=journal_id)
            await refused(shop, reverse, "is of no correction, got reversal", about=answer.journal_ids[0])
            # What was taken back gives its token to nobody any more.
            assert (sold.status_code, (await shop.vend("m-1")).json()["error"]["code"]) == (200, "vend_reversed")
            await require_sound(shop)

    asyncio.run(story())


def test_two_reversals_at_a_time_take_a_journal_back_once(database_url: str) -> None:
    """The second waits for the account and is refused; the unique key stands behind it."""

    async def story() -> None:
        async with open_shop(database_url) as shop, await connect(database_url, application="second") as other:
            await shop.vend("m-1")
            journal_id = await shop.one("select journal_id from vends")

            async def attempt(conn) -> str:  # type: ignore[no-untyped-def]
                try:
                    async with conn.transaction():
                        return (await reverse(conn, journal_id, ORDER)).kind
                except MoneyRefused as refusal:
                    return refusal.code

            assert sorted(await asyncio.gather(attempt(shop.conn), attempt(other))) == ["money_refused", "reversal"]
            await require_sound(shop)

    asyncio.run(story())


def test_usage_and_dues_are_not_reversed(database_url: str) -> None:
    """A day's journal is put right by a correction, a due by its own events; an unknown journal is named."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(50_000)
            arrears = await done(shop, of(add_arrears, 1_000))
            await _close(shop)
            day = await shop.one("select min(id) from journals where kind = 'day'")
            await refused(shop, reverse, "got day; usage is put right by a correction", about=day)
            await refused(shop, reverse, "got arrears_opening", about=arrears.journal_ids[0])
            await refused(shop, reverse, "expected a known id, got 999999", about=999_999)

    asyncio.run(story())


def test_command_under_a_reference_is_done_once(database_url: str) -> None:
    """Again, or ten at a time, it reads the first answer; another command under it is refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop, await connect(database_url, application="second") as other:
            await shop.set_balance(30_000)
            asked = {"command": "refund", "amount_minor": 1_000}

            async def ask(conn, reference: str | None, request: dict[str, object]) -> dict[str, object]:  # type: ignore[no-untyped-def]
                return await once(conn, reference, request, lambda: refund(conn, shop.home.account_id, 1_000, ORDER))

            first, second = await asyncio.gather(ask(shop.conn, "R-1", asked), ask(other, "R-1", asked))
            assert first == second == await ask(shop.conn, "R-1", asked)
            assert first["balance_minor"] == 29_000
            with pytest.raises(ReferenceReused):
                await ask(shop.conn, "R-1", {**asked, "amount_minor": 2_000})
            with pytest.raises(MoneyRefused, match="reference: expected 1-64 letters"):
                await ask(shop.conn, "R 1", asked)
            assert (await ask(shop.conn, None, asked))["balance_minor"] == 28_000
            assert await shop.one("select count(*) from journals where kind = 'refund'") == 2
            with pytest.raises(UnknownAccount):
                await done(shop, of(refund, 1), about=10**9)

    asyncio.run(story())


def test_refused_command_leaves_its_reference_free(database_url: str) -> None:
    """What was not booked is not an answer."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(0)
            account_id = shop.home.account_id
            with pytest.raises(MoneyRefused):
                await once(shop.conn, "R-1", {}, lambda: refund(shop.conn, account_id, 1, ORDER))
            await shop.set_balance(1)
            answer = await once(shop.conn, "R-1", {}, lambda: refund(shop.conn, account_id, 1, ORDER))
            assert answer["balance_minor"] == 0

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_events_leaves_a_ledger_that_sums_to_zero(database_url: str, seed: int) -> None:
    """Vends, events, refusals and reversals in whatever order: books, dues and balances agree at the end."""
    chance = random.Random(seed)

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in range(60):
                amount_minor = chance.choice([1, 999, 5_000, 12_345, 60_000])
                journals = await shop.one("select array_agg(id) from journals")
                events = [
                    of(refund, amount_minor),
                    of(adjust, amount_minor),
                    of(adjust, -amount_minor),
                    of(subsidise, amount_minor),
                    of(pay_interest, amount_minor),
                    of(add_arrears, amount_minor),
                    of(add_security, amount_minor, collect=chance.random() < 0.5),
                    of(return_security, amount_minor),
                    of(write_off, amount_minor, arrears=chance.random() < 0.5),
                ]
                choice = chance.random()
                if choice < 0.35:
                    await shop.vend(f"m-{number}", f"{amount_minor // 100}.00")
                    continue
                with suppress(MoneyRefused):
                    if choice < 0.5 and journals:
                        await done(shop, reverse, about=chance.choice(journals))
                    else:
                        await done(shop, chance.choice(events))
            await require_sound(shop)

    asyncio.run(story())


async def _close(shop: Shop) -> None:
    async with shop.conn.transaction():
        await lock(shop.conn, [shop.home.account_id])
        views = await look(shop.conn, [shop.home.account_id], CALENDAR, step="day")
        until = views[shop.home.account_id].checkpoint.through
        await post_days(shop.conn, views[shop.home.account_id], until, rules=RULES, now_ms=shop.clock())
