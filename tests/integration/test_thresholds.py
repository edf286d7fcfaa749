"""A consumer's several thresholds on a real PostgreSQL: when each rings, what moves its level, what the meter hears."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.forecast import Threshold, ThresholdKind, make_threshold, make_thresholds
from billing.journals import JournalKind
from db.audit import run_checks
from db.money_events import Instruction, reverse
from db.posting import Posted, lock_and_look
from db.thresholds import accounts_by_days, move_day_levels, set_thresholds
from headend.edges.close_day import settle_prepayment
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    NOW_MS,
    RULES,
    Home,
    close,
    local,
    money,
    on_database,
    open_home,
    read,
    rows,
    view_of,
)

pytestmark = pytest.mark.db

DAY = timedelta(days=1)
DAY_WH = 4_000
RECHARGE_MINOR = 50_000
# Readings are stored here without a batch, and recharges booked without a vend.
APART = {"I3-rows", "I6"}


def amount(minor: int) -> Threshold:
    return make_threshold(ThresholdKind.AMOUNT, minor)


def days(number: int) -> Threshold:
    return make_threshold(ThresholdKind.DAYS, number)


def percent(number: int) -> Threshold:
    return make_threshold(ThresholdKind.PERCENT, number)


async def want(conn: AsyncConnection, home: Home, *wanted: Threshold) -> Posted | None:
    """Let the consumer want to be warned by these and no others."""
    async with conn.transaction():
        view = await lock_and_look(conn, home.account_id, RULES)
        return await set_thresholds(conn, view, make_thresholds(wanted), rules=RULES, now_ms=NOW_MS)


async def live(conn: AsyncConnection, home: Home, first: int, last: int, *, day_wh: int = DAY_WH) -> None:
    """Use the same on each of some days of April, counted from 0; close them and do what is due after."""
    start_wh = (await view_of(conn, home)).points[-1].energy_wh
    seen = [(local(APRIL + (day + 1) * DAY), start_wh + (day + 1 - first) * day_wh) for day in range(first, last + 1)]
    await read(conn, home, seen)
    await close_to(conn, APRIL + last * DAY)


async def close_to(conn: AsyncConnection, until: date) -> None:
    """Close the days up to and including one, and do what is due after."""
    await close(conn, until)
    await settle_prepayment(conn, until, rules=RULES)


async def balance_to(conn: AsyncConnection, home: Home, balance_minor: int) -> None:
    """Bring an account to a balance."""
    change_minor = balance_minor - (await view_of(conn, home)).balance_minor(KOLKATA)
    await money(conn, home, JournalKind.ADJUSTMENT, change_minor)


async def open_known(conn: AsyncConnection, balance_minor: int) -> Home:
    """Open a home with a recharge and five days of use, and bring it to a balance."""
    home = await open_home(conn, "A1", opening_credit_minor=0)
    await money(conn, home, JournalKind.VEND, RECHARGE_MINOR)
    await live(conn, home, 0, 4)
    await balance_to(conn, home, balance_minor)
    return home


async def rung(conn: AsyncConnection) -> list[tuple[int, int]]:
    """Return number and arm of the warnings that have rung, in their order."""
    return [
        (row["n"], row["arm"]) for row in await rows(conn, "select n, arm from alarms where level = 'low' order by id")
    ]


async def told(conn: AsyncConnection) -> list[int]:
    """Return the thresholds of the notices of a low balance, in minor units."""
    found = await rows(conn, "select facts from notices where kind = 'low' order by id")
    return [row["facts"]["threshold_minor"] for row in found]


async def orders(conn: AsyncConnection, kind: str) -> list[int | None]:
    """Return the thresholds that a meter's open orders of a kind carry."""
    found = await rows(
        conn, "select threshold_minor from supply_orders where kind = %s and state = 'pending' order by id", kind
    )
    return [row["threshold_minor"] for row in found]


async def kept(conn: AsyncConnection) -> list[tuple[Any, ...]]:
    """Return the further wishes: number, kind, value, level, arm, whether it has rung."""
    found = await rows(conn, "select n, kind, value, level_minor, arm, raised from alarm_thresholds order by n")
    return [tuple(row.values()) for row in found]


async def require_clean(conn: AsyncConnection) -> None:
    """The auditor finds nothing."""
    report = await run_checks(conn, KOLKATA)
    assert [check.line() for check in report.checks if check.broken and check.id not in APART] == []


async def day_charge(conn: AsyncConnection, last: int = 7) -> tuple[int, int]:
    """Return the number of the last complete days and the sum of their charges."""
    found = await rows(
        conn,
        "select (select sum(value::bigint) from jsonb_each_text(lines)) as charge from journals"
        " where kind = 'day' order by local_day desc limit %s",
        last,
    )
    return len(found), int(sum(row["charge"] for row in found))


def level_of(days_ahead: int, use: tuple[int, int]) -> int:
    """Return days of present use, up to the whole rupee."""
    number, charge_minor = use
    return -(-days_ahead * charge_minor // (number * 100)) * 100


@pytest.mark.parametrize(
    ("wanted", "ns", "in_meter"),
    [
        ((amount(6_000),), [0], 6_000),
        ((days(3),), [1], None),
        ((percent(20),), [1], None),
        ((amount(6_000), amount(5_500)), [0, 1], 6_000),
        ((percent(15), amount(100), days(4)), [1, 2], 100),
        ((percent(15), amount(6_000), days(4)), [0, 1, 2], 6_000),
    ],
)
def test_thresholds_set_above_the_balance_ring_at_once(
    database_url: str, wanted: Sequence[Threshold], ns: list[int], in_meter: int | None
) -> None:
    """One alarm each, one notice of the least of them, one command; the meter's own amount stays the first one."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        assert await want(conn, home, *wanted) is not None
        assert await rung(conn) == [(n, 1) for n in ns]
        levels = [row["level_minor"] for row in await rows(conn, "select level_minor from alarms where level = 'low'")]
        assert min(levels) >= 5_000
        assert await told(conn) == [min(levels)]
        assert await orders(conn, "alarm") == [in_meter]
        assert (await view_of(conn, home)).levels.threshold_minor == in_meter
        assert await want(conn, home, *wanted) is None
        assert await want(conn, home, *reversed(wanted)) is None
        assert len(await told(conn)) == 1
        await require_clean(conn)

    on_database(database_url, story)


def test_thresholds_ring_once_each_on_the_way_down_and_again_after_a_recharge(database_url: str) -> None:
    """The higher one first; a recharge arms all that it lifts the balance above, and its share is theirs."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 40_000)
        await want(conn, home, percent(30), amount(10_000), percent(10))
        fall = (16_000, 15_000, 10_001, 10_000, 9_000, 5_001, 4_000, 3_000)
        found = []
        for balance_minor in fall:
            await balance_to(conn, home, balance_minor)
            found.append(await rung(conn))
        assert [len(each) for each in found] == [0, 1, 1, 2, 2, 2, 3, 3]
        assert found[-1] == [(1, 1), (0, 1), (2, 1)]
        assert await told(conn) == [15_000, 10_000, 5_000]
        await money(conn, home, JournalKind.VEND, 100_000)
        assert await kept(conn) == [(1, "percent", 30, 30_000, 2, False), (2, "percent", 10, 10_000, 2, False)]
        for balance_minor in (30_000, 10_000):
            await balance_to(conn, home, balance_minor)
        assert (await rung(conn))[3:] == [(1, 2), (0, 2), (2, 2)]
        assert await told(conn) == [15_000, 10_000, 5_000, 30_000, 10_000]
        await require_clean(conn)

    on_database(database_url, story)


def test_recharge_that_stays_below_a_threshold_neither_arms_nor_rings_it(database_url: str) -> None:
    """One who owes 10 rupees and pays 30 has less than those: warned before, and not again."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 2_000)
        await want(conn, home, percent(100))
        assert await rung(conn) == [(1, 1)]
        await balance_to(conn, home, -1_000)
        await money(conn, home, JournalKind.VEND, 3_000)
        assert await kept(conn) == [(1, "percent", 100, 3_000, 1, True)]
        assert await rung(conn) == [(1, 1)]
        await require_clean(conn)

    on_database(database_url, story)


def test_recharge_may_itself_bring_the_balance_below_its_share(database_url: str) -> None:
    """Who owes 300 rupees and pays 500 has less than half of it left: warned with the recharge."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=0)
        assert await want(conn, home, percent(50)) is not None
        assert await kept(conn) == [(1, "percent", 50, None, 1, False)]
        await balance_to(conn, home, -30_000)
        assert await rung(conn) == []
        await money(conn, home, JournalKind.VEND, 50_000)
        assert (await rung(conn), await told(conn)) == ([(1, 1)], [25_000])
        await require_clean(conn)

    on_database(database_url, story)


def test_reversed_recharge_is_no_basis_of_a_share(database_url: str) -> None:
    """The recharge before counts again; without any, the level is not known, and rings nothing."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=100_000)
        sold = [(await money(conn, home, JournalKind.VEND, minor)).journal_ids[0] for minor in (20_000, 80_000)]
        await want(conn, home, percent(50))
        assert await kept(conn) == [(1, "percent", 50, 40_000, 1, False)]
        order = Instruction(reason="wrong meter", by="A. Kaur", now_ms=NOW_MS, rules=RULES)
        async with conn.transaction():
            await reverse(conn, sold[1], order)
        assert await kept(conn) == [(1, "percent", 50, 10_000, 1, False)]
        await want(conn, home, percent(50), percent(60))
        assert (await kept(conn))[1] == (2, "percent", 60, 12_000, 1, False)
        async with conn.transaction():
            await reverse(conn, sold[0], order)
        assert [row[3] for row in await kept(conn)] == [None, None]
        assert (await view_of(conn, home)).levels.thresholds == ()
        await balance_to(conn, home, 1)
        assert await rung(conn) == []
        await money(conn, home, JournalKind.VEND, 1_000)
        assert [row[3] for row in await kept(conn)] == [500, 600]
        await require_clean(conn)

    on_database(database_url, story)


def test_level_by_days_comes_into_force_with_the_third_complete_day_and_moves_with_use(database_url: str) -> None:
    """Not known after two days; then days of the mean up to the whole rupee, moved by close-day once a day."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=100_000)
        await want(conn, home, days(5))
        await live(conn, home, 0, 1)
        await balance_to(conn, home, 500)
        assert await kept(conn) == [(1, "days", 5, None, 1, False)]
        assert await rung(conn) == []
        await live(conn, home, 2, 2)
        level = level_of(5, await day_charge(conn))
        assert await kept(conn) == [(1, "days", 5, level, 1, True)]
        assert (await rung(conn), await told(conn)) == ([(1, 1)], [level])
        await balance_to(conn, home, 100_000)
        await live(conn, home, 3, 6, day_wh=3 * DAY_WH)
        higher = level_of(5, await day_charge(conn))
        assert await kept(conn) == [(1, "days", 5, higher, 2, False)]
        assert higher > level
        before = (await view_of(conn, home)).version
        await settle_prepayment(conn, APRIL + 6 * DAY, rules=RULES)
        assert (await view_of(conn, home)).version == before
        await require_clean(conn)

    on_database(database_url, story)


def test_level_by_days_rings_when_use_rises_to_the_balance(database_url: str) -> None:
    """The balance has not moved, the days that it lasts have: warned by close-day."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 10_000_000)
        await want(conn, home, days(10))
        assert await rung(conn) == []
        await live(conn, home, 5, 8, day_wh=6 * DAY_WH)
        await balance_to(conn, home, level_of(10, await day_charge(conn)) + 1)
        assert await rung(conn) == []
        await live(conn, home, 9, 9, day_wh=6 * DAY_WH)
        assert await rung(conn) == [(1, 1)]
        await require_clean(conn)

    on_database(database_url, story)


def test_level_by_days_counts_only_lately_read_days(database_url: str) -> None:
    """After a month without a word from the meter what is known stays in force, and a new wish is not known."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 1_000_000)
        await want(conn, home, days(3))
        ((_, _, _, level, _, _),) = await kept(conn)
        assert level == level_of(3, await day_charge(conn))
        await close_to(conn, APRIL + 40 * DAY)
        await want(conn, home, days(3), days(4))
        assert [row[2:4] for row in await kept(conn)] == [(3, level), (4, None)]

    on_database(database_url, story)


def test_wish_that_stays_does_not_ring_again_when_others_come_and_go(database_url: str) -> None:
    """Its number, arm and state stay; only the new one rings."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        await want(conn, home, percent(20), days(3))
        assert await rung(conn) == [(1, 1), (2, 1)]
        await want(conn, home, days(3), percent(30))
        assert await rung(conn) == [(1, 1), (2, 1), (1, 2)]
        assert [row[:3] for row in await kept(conn)] == [(1, "percent", 30), (2, "days", 3)]
        assert len(await told(conn)) == 2
        await require_clean(conn)

    on_database(database_url, story)


def test_wish_taken_away_and_wanted_again_never_rings_under_an_old_arm(database_url: str) -> None:
    """Each time it is at or above the balance it rings anew, under the next arm; not rung, it keeps its arm."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        for _ in range(3):
            await want(conn, home, percent(20))
            await want(conn, home)
            assert await kept(conn) == []
        assert await rung(conn) == [(1, 1), (1, 2), (1, 3)]
        for _ in range(2):
            await want(conn, home, percent(1))
            assert (await kept(conn))[0][4:] == (4, False)
            await want(conn, home)
        await balance_to(conn, home, 400)
        await want(conn, home, percent(1))
        assert (await rung(conn))[3:] == [(1, 4)]
        await require_clean(conn)

    on_database(database_url, story)


def test_amount_of_the_meter_stays_while_it_is_wanted_and_the_next_takes_its_place(database_url: str) -> None:
    """The order of wishes moves nothing; without the meter's own, the first amount goes into the meter."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 50_000)
        await want(conn, home, amount(1_000), amount(2_000), amount(3_000))
        assert await orders(conn, "threshold") == [1_000]
        assert await want(conn, home, amount(3_000), amount(2_000), amount(1_000)) is None
        await want(conn, home, amount(3_000), amount(2_000))
        assert (await view_of(conn, home)).levels.threshold_minor == 3_000
        assert [row[:3] for row in await kept(conn)] == [(1, "amount", 2_000)]
        assert await orders(conn, "threshold") == [3_000]
        await require_clean(conn)

    on_database(database_url, story)


def test_meter_forgets_its_amount_even_where_another_wish_rings_at_once(database_url: str) -> None:
    """An alarm without an amount leaves the meter's as it is: the command that takes it away goes before."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        await want(conn, home, amount(100))
        await want(conn, home, days(3))
        assert await rung(conn) == [(1, 1)]
        assert (await orders(conn, "threshold"), await orders(conn, "alarm")) == ([None], [None])
        found = await rows(conn, "select kind from supply_orders where state = 'pending' order by epoch")
        assert [row["kind"] for row in found if row["kind"] != "supply"] == ["threshold", "alarm"]

    on_database(database_url, story)


def test_meter_hears_of_the_balance_when_a_further_warning_has_ended(database_url: str) -> None:
    """By a recharge above it, or because nobody asks for it any more: the alarm at the meter may end."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        await want(conn, home, amount(100), days(3))
        assert (await orders(conn, "alarm"), await orders(conn, "threshold")) == ([100], [])
        await money(conn, home, JournalKind.VEND, 100_000)
        assert await orders(conn, "threshold") == [100]
        await balance_to(conn, home, 5_000)
        before = await rows(conn, "select max(epoch) as epoch from supply_orders where kind = 'threshold'")
        await want(conn, home, amount(100))
        after = await rows(conn, "select max(epoch) as epoch from supply_orders where kind = 'threshold'")
        assert after[0]["epoch"] > before[0]["epoch"]
        await want(conn, home, amount(100), days(1))
        await want(conn, home, amount(100))
        again = await rows(conn, "select max(epoch) as epoch from supply_orders where kind = 'threshold'")
        assert again == after

    on_database(database_url, story)


def test_levels_by_days_are_moved_page_by_page_and_twice_is_once(database_url: str) -> None:
    """Accounts without such a wish are not looked at; one that was moved is not written again."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, f"A{number}") for number in range(4)]
        for home in homes:
            await read(conn, home, [(local(APRIL + day * DAY), day * DAY_WH) for day in range(1, 5)])
        await close_to(conn, APRIL + 3 * DAY)
        await want(conn, homes[0], days(2))
        await want(conn, homes[1], percent(2))
        await want(conn, homes[2], days(2), days(9), amount(5))
        ids = [homes[0].account_id, homes[2].account_id]
        assert await accounts_by_days(conn, 0) == ids
        assert await accounts_by_days(conn, ids[0]) == ids[1:]
        await conn.execute(b"update alarm_thresholds set level_minor = 1 where kind = 'days'")
        assert await move_day_levels(conn, ids, rules=RULES) == 2
        assert await move_day_levels(conn, ids, rules=RULES) == 0
        assert min(row[3] for row in await kept(conn) if row[1] == "days") > 1

    on_database(database_url, story)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("delete from alarms where n = 1 and arm = 1", "threshold 1 at arm 2, raised: expected 2 alarms, got 1"),
        ("update alarm_thresholds set arm = 3", "threshold 1 at arm 3, raised: expected 3 alarms, got 2"),
        ("update alarms set n = 4 where n = 1 and arm = 2", "threshold 1 at arm 2, raised: expected 2 alarms, got 1"),
        ("update alarms set arm = 7 where n = 2", "threshold 2, not in force: expected 7 alarms, got 1"),
        (
            "update alarm_thresholds set raised = false, arm = 3 where n = 1",
            "balance 4000 minor, threshold 1 at 10000, low was not raised",
        ),
    ],
)
def test_audit_names_a_further_threshold_whose_alarms_are_wrong(database_url: str, damage: str, said: str) -> None:
    """Each arm before the present one has its alarm, also under a number that nobody asks for any more."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_known(conn, 5_000)
        await want(conn, home, percent(20), days(3))
        await want(conn, home, percent(20))
        await balance_to(conn, home, 20_000)
        await balance_to(conn, home, 4_000)
        assert await rung(conn) == [(1, 1), (2, 1), (1, 2)]
        await require_clean(conn)
        await conn.execute(damage.encode())
        report = await run_checks(conn, KOLKATA)
        ((check_id, examples),) = [
            (each.id, each.examples) for each in report.checks if each.broken and each.id not in APART
        ]
        assert check_id == "I9"
        assert said in examples[0]

    on_database(database_url, story)
