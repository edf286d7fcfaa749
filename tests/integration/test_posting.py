"""The one `post` on a real PostgreSQL: money, days, late readings, alarms, orders, and what the ledger refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar, to_ms
from billing.journals import JournalKind
from billing.notices import Cut, Exhausted, Facts, Recharged, Restored, read_facts
from billing.rating import Lines, total
from billing.running import Point, bill_by_month
from billing.supply import Mode, Supply
from db.accounts import AccountView, look
from db.errors import UnknownAccount
from db.migrate import migrate
from db.orders import PostingRules
from db.pool import connect
from db.posting import Posted, lock_and_look, post_days, post_money, post_readings, post_threshold
from db.readings import copy_readings, ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import bills
from headend.edges.close_day import ClosedDays, close_day
from protocols.rows import ReadingRow

pytestmark = pytest.mark.db

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
RULES = PostingRules(calendar=KOLKATA)
TARIFF_ID = "punjab-ds-2026-27"
APRIL, MAY = date(2026, 4, 1), date(2026, 5, 1)
NOW_MS = to_ms(datetime(2026, 6, 1, tzinfo=UTC))
HOUR = timedelta(hours=1)

# An instant and the register seen at it.
Seen = tuple[datetime, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """An account with its meter."""

    account_id: int
    meter_id: int
    number: str


async def home_of(conn: AsyncConnection, number: str) -> Home:
    """Find a home by its account number."""
    found = await rows(
        conn,
        "select a.id, i.meter_id from accounts a join installations i on i.usage_point_id = a.usage_point_id"
        " where a.number = %s",
        number,
    )
    return Home(account_id=found[0]["id"], meter_id=found[0]["meter_id"], number=number)


def local(day: date, hours: float = 0) -> datetime:
    """Return the instant so many hours after a local midnight."""
    return datetime(day.year, day.month, day.day, tzinfo=KOLKATA.zone).astimezone(UTC) + hours * HOUR


def on_database(url: str, story: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Run a story on one connection to a migrated database."""

    async def run() -> None:
        async with await connect(url, application="test") as conn:
            await migrate(conn)
            await story(conn)

    asyncio.run(run())


async def open_home(conn: AsyncConnection, number: str, **terms: Any) -> Home:
    """Register a meter and open an account at it, by default on 1 April with 1,000 rupees and no threshold."""
    await add_meter(conn, NewMeter(serial=f"M-{number}", rated_w=15_000, register_end_wh=1_000_000_000))
    account: dict[str, Any] = {
        "number": number,
        "consumer": f"Consumer {number}",
        "usage_point": f"UP-{number}",
        "meter_serial": f"M-{number}",
        "opened_at": local(APRIL),
        "register_wh": 0,
        "tariff_id": TARIFF_ID,
        "sanctioned_load_w": 2_000,
        "opening_credit_minor": 100_000,
    }
    account_id = await open_account(conn, NewAccount(**(account | terms)), rules=RULES, now_ms=NOW_MS)
    assert account_id is not None
    meter = await rows(conn, "select id from meters where serial = %s", f"M-{number}")
    return Home(account_id=account_id, meter_id=meter[0]["id"], number=number)


async def store(conn: AsyncConnection, home: Home, seen: Iterable[Seen]) -> list[ReadingRow]:
    """Store readings as ingest does, without looking at the account."""
    readings = [ReadingRow(home.meter_id, at, wh, None, None, None, None, None, None) for at, wh in seen]
    await ensure_partitions(conn, {reading.read_at.date() for reading in readings})
    await copy_readings(conn, readings)
    return readings


async def read(
    conn: AsyncConnection,
    home: Home,
    seen: Iterable[Seen],
    *,
    late: bool = False,
    rules: PostingRules = RULES,
    now_ms: int = NOW_MS,
) -> Posted | None:
    """Store readings and let the account catch up with them."""
    stored = await store(conn, home, seen)
    late_since_ms = to_ms(min(reading.read_at for reading in stored)) if late else None
    async with conn.transaction():
        view = await lock_and_look(conn, home.account_id, rules)
        return await post_readings(conn, view, late_since_ms=late_since_ms, rules=rules, now_ms=now_ms)


async def money(
    conn: AsyncConnection, home: Home, kind: JournalKind, amount_minor: int, *, now_ms: int = NOW_MS
) -> Posted:
    """Book money to an account."""
    async with conn.transaction():
        view = await lock_and_look(conn, home.account_id, RULES)
        return await post_money(conn, view, kind, amount_minor, rules=RULES, now_ms=now_ms)


async def close(conn: AsyncConnection, until: date) -> ClosedDays:
    """Close every account's days up to and including one."""
    return await close_day(conn, until, rules=RULES)


async def view_of(conn: AsyncConnection, home: Home) -> AccountView:
    """Look at an account."""
    return (await look(conn, [home.account_id], KOLKATA))[home.account_id]


async def rows(conn: AsyncConnection, query: str, *parameters: object) -> list[dict[str, Any]]:
    """Return the rows of a query by column."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()


async def orders(conn: AsyncConnection, home: Home, kind: str = "supply") -> list[tuple[str | None, str, int]]:
    """Return relay, state and epoch of the orders of a kind, in their order."""
    found = await rows(
        conn,
        "select relay, state, epoch from supply_orders where account_id = %s and kind = %s order by id",
        home.account_id,
        kind,
    )
    return [(row["relay"], row["state"], row["epoch"]) for row in found]


async def alarms(conn: AsyncConnection, home: Home) -> list[tuple[str, int, int]]:
    """Return level, arm and balance of an account's alarms."""
    found = await rows(
        conn, "select level, arm, balance_minor from alarms where account_id = %s order by id", home.account_id
    )
    return [(row["level"], row["arm"], row["balance_minor"]) for row in found]


async def notices(conn: AsyncConnection, home: Home) -> list[str]:
    """Return the kinds of an account's notices."""
    found = await rows(conn, "select kind from notices where account_id = %s order by id", home.account_id)
    return [row["kind"] for row in found]


async def told(conn: AsyncConnection, home: Home) -> list[Facts]:
    """Return what an account's consumer was told, as facts; no sentence is stored beside them."""
    found = await rows(conn, "select kind, facts, body from notices where account_id = %s order by id", home.account_id)
    assert [row["body"] for row in found] == [None] * len(found)
    return [read_facts(row["kind"], row["facts"]) for row in found]


async def booked(conn: AsyncConnection, home: Home) -> dict[date, tuple[int, Lines]]:
    """Return energy and lines of every period as journals and open charge have them, lines of 0 left out."""
    view = await view_of(conn, home)
    found = (await bills(conn, [view], KOLKATA))[home.account_id]
    return {period: (bill.energy_wh, without_zeros(bill.lines)) for period, bill in found.items()}


async def from_scratch(conn: AsyncConnection, home: Home, last_day: date) -> dict[date, tuple[int, Lines]]:
    """Rate all stored readings of an account at once."""
    view = await view_of(conn, home)
    stored = await rows(
        conn, "select read_at, import_wh from readings where meter_id = %s order by read_at", home.meter_id
    )
    curve = [Point(at_ms=view.meter.installed_ms, energy_wh=0)]
    curve += [Point(at_ms=to_ms(row["read_at"]), energy_wh=row["import_wh"]) for row in stored]
    rated = bill_by_month(view.terms, curve, last_day=last_day, calendar=KOLKATA)
    return {period: (energy_wh, without_zeros(lines)) for period, (energy_wh, lines) in rated.items()}


def without_zeros(lines: Mapping[str, int]) -> Lines:
    return {name: amount for name, amount in lines.items() if amount}


def test_vend_credits_the_account_once_in_two_legs(database_url: str) -> None:
    """A vend books to the consumer's money against the vendor's clearing and tells the consumer."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=0, emergency_credit_minor=1_000)
        posted = await money(conn, home, JournalKind.VEND, 50_000)
        view = await view_of(conn, home)
        assert view.checkpoint.posted_minor == 50_000
        assert posted.balance_minor == view.balance_minor(KOLKATA)
        legs = await rows(
            conn, "select ledger, amount_minor from legs where journal_id = %s order by n", posted.journal_ids[0]
        )
        assert [(leg["ledger"], leg["amount_minor"]) for leg in legs] == [
            ("prepaid", 50_000),
            ("vendor_clearing", -50_000),
        ]
        assert await notices(conn, home) == ["recharged"]
        # The opening day's fixed charge: 2 kW at 50 rupees a month, a day of 30, and 15 % duty.
        assert view.balance_minor(KOLKATA) == 50_000 - 333 - 50

    on_database(database_url, story)


def test_threshold_above_balance_alarms_at_once_and_a_lower_one_rearms(database_url: str) -> None:
    """A consumer who asks to be warned at more than there is hears it now; below the balance the level arms anew."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")

        async def threshold(amount_minor: int | None) -> Posted:
            async with conn.transaction():
                view = await lock_and_look(conn, home.account_id, RULES)
                return await post_threshold(conn, view, amount_minor, rules=RULES, now_ms=NOW_MS)

        first = await threshold(200_000)
        assert await alarms(conn, home) == [("low", 1, first.balance_minor)]
        assert await orders(conn, home, "alarm") == [(None, "pending", 1)]
        assert await orders(conn, home, "threshold") == []
        await threshold(50_000)
        assert (await view_of(conn, home)).levels.low_arm == 2
        assert await orders(conn, home, "threshold") == [(None, "pending", 2)]
        await threshold(200_000)
        assert [(level, arm) for level, arm, _ in await alarms(conn, home)] == [("low", 1), ("low", 2)]
        assert await orders(conn, home, "alarm") == [(None, "superseded", 1), (None, "pending", 3)]
        await threshold(None)
        assert not (await view_of(conn, home)).levels.low_raised
        assert await notices(conn, home) == ["low", "low"]

    on_database(database_url, story)


def test_reading_alarms_once_while_the_balance_stays_low(database_url: str) -> None:
    """A second reading below the threshold rings nothing; after a recharge above it the next fall does."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", threshold_minor=20_000)
        assert await read(conn, home, [(local(APRIL, 24), 100_000)]) is None
        assert await read(conn, home, [(local(APRIL, 48), 190_000)]) is not None
        assert await read(conn, home, [(local(APRIL, 72), 191_000)]) is None
        await money(conn, home, JournalKind.VEND, 50_000)
        await read(conn, home, [(local(APRIL, 96), 320_000)])
        assert [(level, arm) for level, arm, _ in await alarms(conn, home)] == [("low", 1), ("low", 2)]

    on_database(database_url, story)


def test_day_closed_twice_is_booked_once(database_url: str) -> None:
    """A sweep that runs again finds nothing to do, and closing days does not move the balance."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        await read(conn, home, [(local(APRIL, 6 * number), 700 * number) for number in range(1, 21)])
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        assert await close(conn, date(2026, 4, 5)) == ClosedDays(accounts=1, days=5, exact=5)
        assert await close(conn, date(2026, 4, 5)) == ClosedDays(accounts=0, days=0, exact=0)
        async with conn.transaction():
            views = await look(conn, [home.account_id], KOLKATA, step="day")
            again = await post_days(conn, views[home.account_id], date(2026, 4, 5), rules=RULES, now_ms=NOW_MS)
        assert again is None
        days = await rows(
            conn, "select local_day, energy_wh, edge_quality from journals where kind = 'day' order by id"
        )
        assert [row["local_day"] for row in days] == [APRIL + timedelta(days=number) for number in range(5)]
        assert [row["energy_wh"] for row in days] == [2_800] * 5
        assert {row["edge_quality"] for row in days} == {"read"}
        assert (await view_of(conn, home)).balance_minor(KOLKATA) == before_minor
        with pytest.raises(psycopg.errors.UniqueViolation):
            await conn.execute(
                "insert into journals (kind, account_id, local_day, period, lines) values ('day', %s, %s, %s, '{}')",
                (home.account_id, APRIL, APRIL),
            )

    on_database(database_url, story)


def test_silent_month_end_is_made_good_by_the_next_reading(database_url: str) -> None:
    """Energy used by a silent meter goes to the month it was used in, to the minor unit of a bill from scratch."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=1_000_000)
        await read(conn, home, [(local(APRIL, 24 * number), 11_000 * number) for number in range(1, 28)])
        await close(conn, date(2026, 5, 2))
        silent = await view_of(conn, home)
        assert silent.checkpoint.part_start_wh == 297_000
        posted = await read(conn, home, [(local(date(2026, 5, 4), 9), 377_123)])
        assert posted is not None
        late = await rows(
            conn, "select kind, period, energy_wh from journals where id = any(%s)", [*posted.journal_ids]
        )
        assert [(row["kind"], row["period"]) for row in late] == [("late_usage", APRIL)]
        assert await booked(conn, home) == await from_scratch(conn, home, date(2026, 5, 4))
        await close(conn, date(2026, 5, 3))
        assert await booked(conn, home) == await from_scratch(conn, home, date(2026, 5, 4))

    on_database(database_url, story)


def test_late_reading_moves_a_closed_month_edge(database_url: str) -> None:
    """A late reading near the edge changes both months' bills by what a bill from scratch says, and only once."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=1_000_000)
        april_30 = date(2026, 4, 30)
        await read(conn, home, [(local(april_30, 6), 310_000), (local(MAY, 18), 340_000), (local(MAY, 60), 350_000)])
        await close(conn, date(2026, 5, 2))
        before = await booked(conn, home)
        assert before == await from_scratch(conn, home, date(2026, 5, 3))
        posted = await read(conn, home, [(local(april_30, 23), 312_000)], late=True)
        assert posted is not None
        after = await booked(conn, home)
        assert after == await from_scratch(conn, home, date(2026, 5, 3))
        assert after[APRIL][0] < before[APRIL][0]
        async with conn.transaction():
            view = await lock_and_look(conn, home.account_id, RULES)
            since_ms = to_ms(local(april_30, 23))
            again = await post_readings(conn, view, late_since_ms=since_ms, rules=RULES, now_ms=NOW_MS)
        assert again is None
        charged_minor = sum(total(lines) for _, lines in after.values())
        assert view.balance_minor(KOLKATA) == 1_000_000 - charged_minor

    on_database(database_url, story)


def test_late_reading_just_after_a_closed_month_edge_moves_it(database_url: str) -> None:
    """A late reading in the new month is the edge's new neighbour, though the edge was made good before."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=1_000_000)
        april_30 = date(2026, 4, 30)
        await read(conn, home, [(local(april_30, 22), 300_000)])
        await close(conn, april_30)
        await read(conn, home, [(local(MAY, 10), 310_000)])
        await read(conn, home, [(local(MAY, 5), 300_500)], late=True)
        assert await booked(conn, home) == await from_scratch(conn, home, MAY)

    on_database(database_url, story)


def test_late_usage_whose_money_cancels_is_booked_all_the_same(database_url: str) -> None:
    """Energy that moves between two closed months at the same price changes no balance, but both months' journals."""

    async def story(conn: AsyncConnection) -> None:
        june = date(2026, 6, 1)
        for number in range(8):
            home = await open_home(conn, f"A{number}", opening_credit_minor=1_000_000)
            seen = [(local(date(2026, 4, 29)), 100_000), (local(date(2026, 5, 3)), 104_000), (local(june, 30), 150_000)]
            await read(conn, home, seen)
        await close(conn, june)
        unmoved = 0
        for number in range(8):
            home = await home_of(conn, f"A{number}")
            before_minor = (await view_of(conn, home)).checkpoint.posted_minor
            # The edge was estimated at 102,000 Wh; the meter says less.
            await read(conn, home, [(local(MAY), 101_990 - 100 * number)], late=True)
            unmoved += (await view_of(conn, home)).checkpoint.posted_minor == before_minor
            assert await booked(conn, home) == await from_scratch(conn, home, date(2026, 6, 2))
        assert unmoved > 0

    on_database(database_url, story)


def test_close_day_settles_a_silent_month_end_before_it_goes_on(database_url: str) -> None:
    """Readings that a batch could not settle are not buried when the next day is closed."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=1_000_000)
        await read(conn, home, [(local(date(2026, 4, 28), 22), 300_000)])
        await close(conn, date(2026, 4, 30))
        await store(conn, home, [(local(MAY, 10), 330_000), (local(MAY, 20), 331_000)])
        await close(conn, MAY)
        assert await booked(conn, home) == await from_scratch(conn, home, date(2026, 5, 2))

    on_database(database_url, story)


def test_account_opened_without_credit_is_exhausted_from_its_opening(database_url: str) -> None:
    """The first day's fixed charge is a debt: alarm and cut-off do not wait for a reading."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=0)
        assert await alarms(conn, home) == [("exhausted", 1, -383)]
        assert await orders(conn, home) == [("off", "pending", 1)]

    on_database(database_url, story)


def test_ledger_and_tokens_are_append_only(database_url: str) -> None:
    """Journals, legs and tokens can be added and read; nothing changes or removes them."""

    async def story(conn: AsyncConnection) -> None:
        await open_home(conn, "A1")
        for table, column in (("journals", "energy_wh"), ("legs", "amount_minor"), ("tokens", "tid")):
            for statement in (
                f"update {table} set {column} = {column} + 1",
                f"delete from {table}",
                f"truncate {table} cascade",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    await conn.execute(statement.encode())

    on_database(database_url, story)


def test_reversal_below_zero_cuts_supply(database_url: str) -> None:
    """A payment taken back leaves the account exhausted: one alarm, one cut-off, the way back in the notice."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=100_000, emergency_credit_minor=300)
        await money(conn, home, JournalKind.VEND, 50_000)
        assert await orders(conn, home) == []
        posted = await money(conn, home, JournalKind.REVERSAL, -150_000)
        # What is left is the opening day's fixed charge and duty, beyond the emergency credit.
        assert posted.balance_minor == -383
        assert posted.decision.supply is Supply.OFF
        assert await alarms(conn, home) == [("exhausted", 1, -383)]
        assert await orders(conn, home) == [("off", "pending", 1)]
        assert await told(conn, home) == [
            Recharged(amount_minor=50_000, balance_minor=149_617),
            Exhausted(balance_minor=-383, restores_minor=84),
        ]

    on_database(database_url, story)


def test_restore_supersedes_the_open_cut_off(database_url: str) -> None:
    """A recharge replaces the cut-off that the meter has not confirmed; a second one changes nothing more."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=10_000)
        await read(conn, home, [(local(APRIL, 24), 100_000)])
        assert await orders(conn, home) == [("off", "pending", 1)]
        await money(conn, home, JournalKind.VEND, 100)
        assert await orders(conn, home) == [("off", "pending", 1)]
        posted = await money(conn, home, JournalKind.VEND, 50_000)
        assert posted.decision.supply is Supply.ON
        await money(conn, home, JournalKind.VEND, 50_000)
        assert await orders(conn, home) == [("off", "superseded", 1), ("on", "pending", 2)]
        state = await rows(conn, "select order_epoch from meter_state where meter_id = %s", home.meter_id)
        assert state[0]["order_epoch"] == 2
        assert (await notices(conn, home))[-3:] == ["recharged", "restored", "recharged"]

    on_database(database_url, story)


def test_account_exhausted_in_protected_hours_is_cut_by_a_posting_in_the_window(database_url: str) -> None:
    """Told in the evening until when; too small a recharge in the window cuts, and enough restores at night."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=20_000, category="GOVT")
        evening = local(APRIL, 44)
        opens = local(APRIL, 24 + 24 + 10)
        await read(conn, home, [(evening, 60_000)], now_ms=to_ms(evening))
        owed_minor = -(await view_of(conn, home)).balance_minor(KOLKATA)
        assert await read(conn, home, [(evening + HOUR, 60_000)], now_ms=to_ms(evening + HOUR)) is None
        exhausted_at = "select exhausted_at, desired from accounts where id = %s"
        waiting = {"exhausted_at": evening, "desired": "on"}
        assert (await rows(conn, exhausted_at, home.account_id), await orders(conn, home)) == ([waiting], [])
        small = await money(conn, home, JournalKind.VEND, 100, now_ms=to_ms(opens))
        assert (small.decision.supply, await orders(conn, home)) == (Supply.OFF, [("off", "pending", 1)])
        cut = {"exhausted_at": evening, "desired": "off"}
        assert await rows(conn, exhausted_at, home.account_id) == [cut]
        # Restored at night.
        await money(conn, home, JournalKind.VEND, owed_minor, now_ms=to_ms(opens + 12 * HOUR))
        assert await rows(conn, exhausted_at, home.account_id) == [{"exhausted_at": None, "desired": "on"}]
        missing_minor = owed_minor - 100
        assert await told(conn, home) == [
            Exhausted(balance_minor=-owed_minor, restores_minor=owed_minor + 1, protected_until_ms=to_ms(opens)),
            Recharged(amount_minor=100, balance_minor=-missing_minor, restores_minor=missing_minor + 1),
            Cut(balance_minor=-missing_minor, restores_minor=missing_minor + 1, cut_at_ms=to_ms(opens)),
            Recharged(amount_minor=owed_minor, balance_minor=100),
            Restored(balance_minor=100),
        ]

    on_database(database_url, story)


def test_postpaid_account_is_never_cut(database_url: str) -> None:
    """An approved postpaid account may owe: no exhaustion, no order."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", mode=Mode.POSTPAID, postpaid_approval="CE/12", opening_credit_minor=0)
        await read(conn, home, [(local(APRIL, 24), 100_000)])
        assert (await view_of(conn, home)).balance_minor(KOLKATA) < 0
        assert await orders(conn, home) == []
        assert await alarms(conn, home) == []

    on_database(database_url, story)


def test_cut_off_on_an_old_reading_is_held_until_the_meter_is_heard(database_url: str) -> None:
    """What a stale reading says is not enough to cut; the next fresh one lets the order go."""
    rules = PostingRules(calendar=KOLKATA, stale_ms=3_600_000)

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=10_000)
        stale_ms = to_ms(local(APRIL, 26))
        await read(conn, home, [(local(APRIL, 24), 100_000)], rules=rules, now_ms=stale_ms)
        assert await orders(conn, home) == [("off", "held", 1)]
        assert await read(conn, home, [(local(APRIL, 24.5), 100_100)], rules=rules, now_ms=stale_ms) is None
        assert await orders(conn, home) == [("off", "held", 1)]
        assert await read(conn, home, [(local(APRIL, 25.5), 100_200)], rules=rules, now_ms=stale_ms) is None
        assert await orders(conn, home) == [("off", "pending", 1)]

    on_database(database_url, story)


def test_every_change_of_an_account_is_in_the_feed(database_url: str) -> None:
    """Each post raises the version and tells the shard's owner; one that is rolled back leaves nothing."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        await money(conn, home, JournalKind.VEND, 1_000)
        async with conn.transaction(force_rollback=True):
            await money(conn, home, JournalKind.VEND, 1_000)
        view = await view_of(conn, home)
        feed = await rows(conn, "select shard, account_id, version from change_feed order by version")
        assert [row["version"] for row in feed] == [2, 3]
        assert {(row["shard"], row["account_id"]) for row in feed} == {(view.shard, home.account_id)}
        assert view.version == 3
        assert await notices(conn, home) == ["recharged"]

    on_database(database_url, story)


def test_account_that_is_not_there_is_named(database_url: str) -> None:
    """Posting to an unknown account is refused by its id."""

    async def story(conn: AsyncConnection) -> None:
        async with conn.transaction():
            with pytest.raises(UnknownAccount, match="got id 404"):
                await lock_and_look(conn, 404, RULES)

    on_database(database_url, story)
