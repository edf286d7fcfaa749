"""Vendors' floats on a real PostgreSQL: bounds, deposits, what is given back, the upgrade of an older database."""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Count
from dataclasses import replace

import pytest

import db.migrate
from billing.journals import JournalKind, money_journal
from db.audit import run_checks
from db.errors import DatabaseError
from db.float_statements import find_span, read_entries
from db.floats import FloatRefused, find_float, list_floats, post_float_journal, read_float
from db.migrate import migrate, migrations
from db.money_events import ReferenceReused, reverse
from db.pool import connect
from db.registry import RegistryError, add_vendor
from db.vendor_deposits import (
    DepositRefused,
    DepositUnknown,
    NewDeposit,
    deposit,
    find_deposit,
    take_deposit_back,
)
from db.vendors import read_changes, set_active, set_limit
from tests.integration.test_money_events import ORDER
from tests.integration.vending_desk import Counter, open_counter
from tests.integration.vending_shop import CALENDAR, add_home
from vending.edges.store import VENDED, sell
from vending.vends import Tender, VendOrder

pytestmark = pytest.mark.db


async def limit(counter: Counter, limit_minor: int | None) -> None:
    """Set the vendor's credit limit."""
    await set_limit(counter.conn, counter.seller.vendor_id, limit_minor, by="A. Kaur", reason="agreed")


async def pay_in(counter: Counter, amount_minor: int, reference: str = "SLIP-1") -> bool:
    """Deposit for the vendor; True unless it was booked before."""
    async with counter.conn.transaction():
        return (await deposit(counter.conn, slip(counter, amount_minor, reference)))[1]


def slip(counter: Counter, amount_minor: int, reference: str) -> NewDeposit:
    """Return a deposit of the vendor."""
    return NewDeposit(
        vendor_id=counter.seller.vendor_id,
        reference=reference,
        amount_minor=amount_minor,
        channel="bank",
        by="R. Singh",
        note="",
    )


async def balance(counter: Counter) -> int:
    """Return the vendor's float."""
    return (await read_float(counter.conn, counter.seller.vendor_id)).balance_minor


def test_sale_above_float_and_limit_is_refused_and_mints_nothing(database_url: str) -> None:
    """The refusal is the answer of its message id; after a deposit a new id sells, to the last paisa of the limit."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await limit(counter, 10_000)
            await pay_in(counter, 30_000)
            refused = await counter.sell("V-1", 40_001)
            assert (refused.outcome, refused.stored.status) == ("vendor_credit", 402)
            assert "400.00 left" in refused.stored.answer["error"]["message"]
            assert await counter.one("select count(*) from tokens") == 0
            assert (await counter.sell("V-2", 40_000)).outcome == VENDED
            assert await balance(counter) == -10_000
            await pay_in(counter, 50_000, "SLIP-2")
            assert (await counter.sell("V-1", 40_001)).stored == refused.stored
            assert (await counter.sell("V-3", 40_001)).outcome == VENDED
            assert await balance(counter) == -1
            assert await counter.audit() == {}

    asyncio.run(story())


def test_vendor_without_a_limit_sells_on_as_before(database_url: str) -> None:
    """No limit is the default, and the float says what the vendor owes."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            assert (await counter.sell("V-1")).outcome == VENDED
            found = await find_float(counter.conn, "Station 17")
            assert (found.balance_minor, found.limit_minor, found.available_minor) == (-50_000, None, None)
            assert [each.vendor for each in await list_floats(counter.conn)] == ["Station 17"]
            with pytest.raises(RegistryError, match="under itself"):
                await add_vendor(counter.conn, "Coupons")

    asyncio.run(story())


def test_parallel_sales_of_one_vendor_never_pass_its_limit(database_url: str) -> None:
    """Of forty sales at once to ten meters exactly those are sold that float and limit reach for (I7)."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await limit(counter, 5_000)
            await pay_in(counter, 12_000)
            homes = [await add_home(counter.conn, f"M{number}", f"{200 + number}") for number in range(10)]

            async def station(name: str) -> list[str]:
                outcomes = []
                async with await connect(database_url, application="station") as conn:
                    for home in homes:
                        order = VendOrder(
                            message_id=f"{name}-{home.serial}",
                            meter=home.serial,
                            amount_minor=1_000,
                            tender=Tender.CASH,
                        )
                        seller = replace(counter.seller, terminal=name)
                        outcomes.append((await sell(conn, counter.desk, seller, order)).outcome)
                return outcomes

            outcomes = await asyncio.gather(*(station(f"T{number}") for number in range(4)))
            assert Count(outcome for each in outcomes for outcome in each) == {VENDED: 17, "vendor_credit": 23}
            assert await balance(counter) == -5_000
            assert await counter.one("select min(balance_minor) from float_entries") == -5_000
            assert await counter.one("select count(*) from tokens") == 17
            assert await counter.audit() == {}

    asyncio.run(story())


def test_deposit_is_booked_once_under_its_reference(database_url: str) -> None:
    """Twenty copies at once are one deposit; the same reference with another amount is refused."""

    async def story() -> None:
        async with open_counter(database_url) as counter:

            async def copy() -> tuple[int, bool]:
                async with await connect(database_url, application="cashier") as conn, conn.transaction():
                    taken, is_new = await deposit(conn, slip(counter, 25_000, "SBI/77"))
                    return taken.number, is_new

            copies = await asyncio.gather(*(copy() for _ in range(20)))
            assert Count(is_new for _, is_new in copies) == {True: 1, False: 19}
            assert len({number for number, _ in copies}) == 1
            with pytest.raises(ReferenceReused):
                await pay_in(counter, 25_001, "SBI/77")
            for wrong in ((0, "SLIP-0"), (100, "no blanks please")):
                with pytest.raises(DepositRefused):
                    await pay_in(counter, *wrong)
            receipt = await find_deposit(counter.conn, "SBI/77")
            assert (receipt.amount_minor, receipt.balance_minor, receipt.vendor) == (25_000, 25_000, "Station 17")
            assert await counter.legs(receipt.journal_id) == {"vendor_clearing": 25_000, "bank": -25_000}
            with pytest.raises(DepositUnknown):
                await find_deposit(counter.conn, "SBI/78")
            assert await balance(counter) == 25_000
            assert await counter.audit() == {}

    asyncio.run(story())


def test_deposit_that_was_no_money_is_taken_back_once(database_url: str) -> None:
    """The float may fall below its limit by it, and then nothing is sold; the receipt says that it was taken back."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await limit(counter, 0)
            await pay_in(counter, 60_000, "CHEQUE-1")
            await counter.sell("V-1")
            for is_new in (True, False):
                async with counter.conn.transaction():
                    found, done = await take_deposit_back(
                        counter.conn, "CHEQUE-1", by="R. Singh", reason="not honoured"
                    )
                assert (done, found.return_reason, found.amount_minor) == (is_new, "not honoured", 60_000)
            assert await balance(counter) == -50_000
            assert (await counter.sell("V-2", 1_000)).outcome == "vendor_credit"
            assert await counter.audit() == {}

    asyncio.run(story())


def test_reversed_vend_gives_the_float_back_where_it_came_from(database_url: str) -> None:
    """The reversal is an entry of its own, of the same terminal and tender; a second one is refused."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            sold = await counter.sell("V-1", seller=replace(counter.seller, terminal="T1", operator="Asha"))
            async with counter.conn.transaction():
                await reverse(counter.conn, sold.journal_id or 0, ORDER)
            with pytest.raises(DatabaseError, match="not taken back yet"):
                async with counter.conn.transaction():
                    await reverse(counter.conn, sold.journal_id or 0, ORDER)
            rows = await counter.rows(
                "select n, kind, amount_minor, balance_minor, terminal, operator, tender from float_entries order by n"
            )
            assert rows == [
                (1, "vend", -50_000, -50_000, "T1", "Asha", "upi"),
                (2, "reversal", 50_000, 0, "T1", "Asha", "upi"),
            ]
            assert await counter.audit() == {}

    asyncio.run(story())


def test_coupons_sold_to_a_vendor_are_bounded_like_its_sales(database_url: str) -> None:
    """A refusal writes nothing; what is given back for a void coupon is never refused."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await limit(counter, 0)
            await pay_in(counter, 10_000)
            vendor_id = counter.seller.vendor_id
            for amount_minor, left_minor in ((10_001, None), (9_000, 1_000), (-2_000, 3_000)):
                async with counter.conn.transaction():
                    journal = money_journal(JournalKind.COUPON_SALE, amount_minor, "range 7")
                    done = await post_float_journal(counter.conn, vendor_id, journal)
                left = None if isinstance(done, FloatRefused) else done.taken.balance_minor
                assert left == left_minor
            assert await counter.one("select count(*) from journals where kind = 'coupon_sale'") == 2

    asyncio.run(story())


def test_changes_of_a_vendor_are_kept_with_who_and_why(database_url: str) -> None:
    """A stopped vendor sells nothing; limits and stops are read back, the newest first."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await limit(counter, 100)
            await limit(counter, None)
            vendor_id = counter.seller.vendor_id
            await set_active(counter.conn, vendor_id, active=False, by="A. Kaur", reason="audit")
            found = await read_float(counter.conn, vendor_id)
            assert (found.active, found.limit_minor) == (False, None)
            changes = await read_changes(counter.conn, vendor_id)
            assert [(each.act, each.limit_minor, each.by, each.reason) for each in changes] == [
                ("stop", None, "A. Kaur", "audit"),
                ("limit", None, "A. Kaur", "agreed"),
                ("limit", 100, "A. Kaur", "agreed"),
            ]

    asyncio.run(story())


def test_statement_of_any_span_adds_up(database_url: str) -> None:
    """Opening and the entries of a span are its closing, wherever it is cut; entries are read in pages."""

    async def story() -> None:
        rng = random.Random(7)
        async with open_counter(database_url) as counter:
            for number in range(12):
                sold = await counter.sell(f"V-{number}", rng.randrange(1_000, 9_000))
                if number % 4 == 0:
                    await pay_in(counter, rng.randrange(1_000, 90_000), f"SLIP-{number}")
                if number % 5 == 0:
                    async with counter.conn.transaction():
                        await reverse(counter.conn, sold.journal_id or 0, ORDER)
            vendor_id = counter.seller.vendor_id
            entries = await read_entries(counter.conn, vendor_id, after_n=0, last_n=99, most=99)
            assert [each.n for each in entries] == list(range(1, 19))
            assert {each.reference for each in entries if each.kind == "reversal"} == {"V-0", "V-5", "V-10"}
            instants = [each.booked_at for each in entries]
            for _ in range(20):
                first, last = sorted(rng.sample(range(18), 2))
                span = await find_span(counter.conn, vendor_id, instants[first], instants[last])
                paged = []
                while len(paged) < span.last_n - span.before_n:
                    after_n = paged[-1].n if paged else span.before_n
                    paged += await read_entries(counter.conn, vendor_id, after_n=after_n, last_n=span.last_n, most=4)
                assert paged == entries[first:last]
                assert span.opening_minor + sum(each.amount_minor for each in paged) == span.closing_minor

    asyncio.run(story())


def test_upgrade_of_a_database_with_vends_makes_their_entries(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sold and reversed before there were floats is what a vendor owes; it goes on selling without a limit."""
    before = [migration for migration in migrations() if migration.name < "0025"]
    later = [migration for migration in migrations() if not migration.name < "0025"]

    async def story() -> None:
        async with await connect(empty_database_url, application="owner") as conn:
            with monkeypatch.context() as patched:
                patched.setattr(db.migrate, "migrations", lambda: before)
                await migrate(conn)
            for statement in SEED.split(";\n"):
                await conn.execute(statement.encode())
            assert await migrate(conn) == [migration.name for migration in later]
            rows = await conn.execute(
                b"select vendor_id, n, kind, amount_minor, balance_minor, terminal from float_entries"
                b" order by vendor_id, n"
            )
            first = (await find_float(conn, "First")).vendor_id
            second = (await find_float(conn, "Second")).vendor_id
            assert await rows.fetchall() == [
                (first, 1, "vend", -100, -100, "T1"),
                (first, 2, "vend", -250, -350, None),
                (first, 3, "reversal", 100, -250, "T1"),
                (second, 1, "vend", -70, -70, None),
            ]
            found = await list_floats(conn)
            assert [(each.vendor, each.balance_minor, each.limit_minor, each.entries) for each in found] == [
                ("First", -250, None, 3),
                ("Idle", 0, None, 0),
                ("Second", -70, None, 1),
            ]
            report = await run_checks(conn, CALENDAR)
            broken = {check.id for check in report.checks if check.broken}
            assert not broken & {"I7", "I7-floats", "I7-batches"}, report.lines()

    asyncio.run(story())


# Journals of one account, as vends and a reversal have left them.
SEED = """
insert into vendors (name) values ('First'), ('Second'), ('Idle');
insert into consumers (id, name, language) overriding system value values (1, 'C', 'en');
insert into usage_points (id, code, area, feeder) overriding system value values (1, 'UP', '', '');
insert into accounts (id, number, consumer_id, usage_point_id, shard, mode, opened_on, emergency_credit_minor, through,
                      anchor_at) overriding system value
values (1, 'A', 1, 1, 0, 'prepaid', '2026-04-01', 0, '2026-04-01', '2026-03-31 18:30+00');
insert into journals (id, kind, account_id, about_id, reason) overriding system value
values (1, 'vend', 1, null, null), (2, 'vend', 1, null, null), (3, 'vend', 1, null, null), (4, 'reversal', 1, 1, 'why');
insert into legs (journal_id, n, ledger, amount_minor)
values (1, 1, 'prepaid', 100), (1, 2, 'vendor_clearing', -100), (2, 1, 'prepaid', 70), (2, 2, 'vendor_clearing', -70),
       (3, 1, 'prepaid', 250), (3, 2, 'vendor_clearing', -250), (4, 1, 'prepaid', -100), (4, 2, 'vendor_clearing', 100);
insert into vends (vendor_id, message_id, request_sha256, account_id, amount_minor, journal_id, status, answer, state,
                   funding, terminal)
select v.id, s.message, '', 1, s.amount, s.journal, 200, '{}', s.state, 'vendor', s.terminal
from (values ('First', 'm-1', 100, 1, 'reversed', 'T1'), ('Second', 'm-1', 70, 2, 'released', null),
             ('First', 'm-2', 250, 3, 'released', null)) s (vendor, message, amount, journal, state, terminal)
join vendors v on v.name = s.vendor order by s.journal"""
