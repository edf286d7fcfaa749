"""Batches of vendors: every sale in exactly one of each kind, also while somebody ends them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from psycopg.errors import InsufficientPrivilege

from db.float_batches import BatchOf, BatchUnknown, end_batch, find_batch, open_batch, start_batch, sum_batch
from db.money_events import reverse
from db.pool import connect
from tests.integration.test_money_events import ORDER
from tests.integration.vending_desk import Counter, open_counter
from tests.integration.vending_shop import add_home
from vending.edges.store import sell
from vending.floats import EntryKind, Moved, Totals, totals_of
from vending.slips.batch import TenderTotal
from vending.vends import Tender, VendOrder

pytestmark = pytest.mark.db


def of(counter: Counter, kind: str, scope: str = "") -> BatchOf:
    """Name the batches of the vendor's terminal or operator."""
    return BatchOf(vendor_id=counter.seller.vendor_id, kind=kind, scope=scope)


async def totals(counter: Counter, batches: BatchOf, number: int) -> Totals:
    """Return what a batch holds."""
    sums = await sum_batch(counter.conn, batches, await find_batch(counter.conn, batches, number))
    return totals_of(
        Moved(kind=EntryKind(each.kind), tender=each.tender, count=each.count, amount_minor=each.amount_minor)
        for each in sums
    )


async def ended(counter: Counter, batches: BatchOf, number: int, by: str = "Meena") -> int:
    """End a batch; return its last entry."""
    async with counter.conn.transaction():
        batch = await end_batch(counter.conn, batches, number, by)
    assert batch.last_n is not None
    return batch.last_n


def test_totals_are_by_tender_with_reversals_apart(database_url: str) -> None:
    """Sales are of a terminal, a shift is of an operator, the bank's is of all; a reversal counts when it is booked."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.set_balance(0)
            asha = replace(counter.seller, terminal="T1", operator="Asha")
            vikram = replace(counter.seller, terminal="T2", operator="Vikram")
            first = await counter.sell("V-1", 10_000, seller=asha, tender=Tender.CASH)
            await counter.sell("V-2", 20_000, seller=asha, tender=Tender.CARD)
            await counter.sell("V-3", 3_000, seller=vikram, tender=Tender.CASH)
            await counter.sell("V-4", 4_000, seller=replace(vikram, terminal="T1"), tender=Tender.CHEQUE)
            await ended(counter, of(counter, "sales", "T1"), 1)
            async with counter.conn.transaction():
                await reverse(counter.conn, first.journal_id or 0, ORDER)
            sales = await totals(counter, of(counter, "sales", "T1"), 1)
            assert sales == Totals(
                sales=(
                    TenderTotal(tender="card", count=1, amount_minor=20_000),
                    TenderTotal(tender="cash", count=1, amount_minor=10_000),
                    TenderTotal(tender="cheque", count=1, amount_minor=4_000),
                )
            )
            after = await totals(counter, of(counter, "sales", "T1"), 2)
            assert after == Totals(reversals=(TenderTotal(tender="cash", count=1, amount_minor=10_000),))
            shift = await totals(counter, of(counter, "shift", "Vikram"), 1)
            assert (shift.sold_minor, shift.reversed_minor, shift.to_bank_minor) == (7_000, 0, 7_000)
            bank = await totals(counter, of(counter, "bank"), 1)
            assert (bank.sold_minor, bank.reversed_minor, bank.net_minor, bank.to_bank_minor) == (
                37_000,
                10_000,
                27_000,
                7_000,
            )
            assert await counter.audit() == {}

    asyncio.run(story())


def test_batch_is_started_and_ended_once(database_url: str) -> None:
    """Starting and ending again change nothing; the next batch begins where the last one ended; none is skipped."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            shift = of(counter, "shift", "Asha")
            for by in ("Asha", "somebody else"):
                async with counter.conn.transaction():
                    batch = await start_batch(counter.conn, shift, by)
                assert (batch.number, batch.started_by, batch.last_n) == (1, "Asha", None)
            await counter.sell("V-1", seller=replace(counter.seller, operator="Asha"))
            assert [await ended(counter, shift, 1), await ended(counter, shift, 1, "again")] == [1, 1]
            assert (await find_batch(counter.conn, shift, 1)).ended_by == "Meena"
            following = await open_batch(counter.conn, shift)
            assert (following.number, following.first_n, following.began_at is None) == (2, 2, False)
            for number in (3, 4):
                with pytest.raises(BatchUnknown, match="up to 2"):
                    await ended(counter, shift, number)
            assert await ended(counter, shift, 2) == 1
            assert (await totals(counter, shift, 2)).sales == ()
            assert await counter.audit() == {}

    asyncio.run(story())


def test_sales_that_race_the_ends_of_batches_are_in_exactly_one(database_url: str) -> None:
    """Two people end the same batches while four stations sell: the batches together are the sales, to the paisa."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            homes = [await add_home(counter.conn, f"M{number}", f"{200 + number}") for number in range(6)]
            batches = [of(counter, "sales", "T0"), of(counter, "sales", "T1"), of(counter, "bank")]
            selling = asyncio.Event()

            async def station(number: int) -> None:
                async with await connect(database_url, application="station") as conn:
                    for sale, home in enumerate(homes * 3):
                        order = VendOrder(
                            message_id=f"S{number}-{sale}",
                            meter=home.serial,
                            amount_minor=1_000 + 17 * sale + number,
                            tender=(Tender.CASH, Tender.UPI)[sale % 2],
                        )
                        await sell(conn, counter.desk, replace(counter.seller, terminal=f"T{number % 2}"), order)

            async def supervisor(name: str) -> dict[BatchOf, dict[int, tuple[int | None, str | None]]]:
                seen: dict[BatchOf, dict[int, tuple[int | None, str | None]]] = {each: {} for each in batches}
                async with await connect(database_url, application="supervisor") as conn:
                    while not selling.is_set():
                        for each in batches:
                            number = (await open_batch(conn, each)).number
                            async with conn.transaction():
                                batch = await end_batch(conn, each, number, name)
                            seen[each][number] = (batch.last_n, batch.ended_by)
                return seen

            supervisors = [asyncio.create_task(supervisor(name)) for name in ("Meena", "Dev")]
            await asyncio.gather(*(station(number) for number in range(4)))
            selling.set()
            first, second = await asyncio.gather(*supervisors)
            assert sum(len(numbers) for numbers in first.values()) > 6
            for each in batches:
                both = first[each].keys() & second[each].keys()
                assert {number: first[each][number] for number in both} == {n: second[each][n] for n in both}
                last = (await open_batch(counter.conn, each)).number
                parts = [await totals(counter, each, number) for number in range(1, last + 1)]
                sold = await counter.rows(
                    "select tender, count(*), sum(amount_minor)::bigint from vends where journal_id is not null"
                    " and (%s in ('', terminal)) group by tender order by tender",
                    each.scope,
                )
                for tender, count, amount_minor in sold:
                    in_batches = [x for part in parts for x in part.sales if x.tender == tender]
                    assert sum(x.count for x in in_batches) == count
                    assert sum(x.amount_minor for x in in_batches) == amount_minor
            assert await counter.audit() == {}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("alter table float_entries disable trigger append_only;"
         " update float_entries set amount_minor = amount_minor - 1 where n = 2", "I7"),
        ("alter table float_entries disable trigger append_only; delete from float_entries where n = 2", "I7"),
        ("alter table float_entries disable trigger append_only;"
         " update float_entries set limit_minor = 1 where n = 1", "I7"),
        ("alter table float_entries disable trigger append_only; update float_entries set terminal = 'X' where n = 1",
         "I7"),
        ("update vendor_floats set balance_minor = balance_minor + 1", "I7-floats"),
        ("alter table vendor_batches disable trigger keep_batch;"
         " update vendor_batches set last_n = 9 where number = 1", "I7-batches"),
    ],
)  # fmt: skip
def test_damage_to_a_float_is_found(database_url: str, damage: str, check: str) -> None:
    """An entry that was changed, left out, past its limit or misfiled, a float or a batch that does not follow."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            for number in range(3):
                await counter.sell(f"V-{number}")
            await ended(counter, of(counter, "bank"), 1)
            assert await counter.audit() == {}
            await counter.conn.execute(damage.encode())
            assert check in await counter.audit()

    asyncio.run(story())


@pytest.mark.parametrize("table", ["float_entries", "vendor_deposits", "vendor_changes", "vendor_batches"])
def test_what_is_booked_of_vendors_cannot_be_changed(database_url: str, table: str) -> None:
    """Neither the processes' role nor the owner of the schema changes or deletes it."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell("V-1")
            await ended(counter, of(counter, "bank"), 1)
            for role in (b"set local role prepaid_app", b"select 1"):
                with pytest.raises(InsufficientPrivilege):
                    await _delete(counter, role, table)

    asyncio.run(story())


async def _delete(counter: Counter, role: bytes, table: str) -> None:
    async with counter.conn.transaction():
        await counter.conn.execute(role)
        await counter.conn.execute(f"delete from {table}".encode())
