"""What close-day tells: forecasts and statements, once each, with the figures that the consumer sees elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.journals import JournalKind
from db.consumer_facts import read_summary
from db.daily_notices import FORECAST_AGE_DAYS_MAX, FORECAST_DAYS, STATEMENT_AGE_DAYS_MAX, tell_daily
from db.orders import PostingRules
from db.pool import connect
from db.statements import read_statement
from headend.edges.close_day import settle_prepayment
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    MAY,
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
APRIL_END = MAY - DAY


def rules_on(day: date) -> PostingRules:
    """Return rules of a process whose clock stands at five in the morning of a local day."""
    return PostingRules(calendar=KOLKATA, clock=lambda: to_ms(local(day, 5)))


async def live(conn: AsyncConnection, homes: Sequence[Home], first: date, last: date) -> None:
    """Use the same on each of some days, and close them."""
    days = [first + number * DAY for number in range((last - first).days + 1)]
    for home in homes:
        start_wh = (await view_of(conn, home)).points[-1].energy_wh
        await read(conn, home, [(local(day + DAY), start_wh + (n + 1) * DAY_WH) for n, day in enumerate(days)])
    await close(conn, last)


async def balance_to(conn: AsyncConnection, home: Home, balance_minor: int) -> None:
    """Bring an account to a balance."""
    change_minor = balance_minor - (await view_of(conn, home)).balance_minor(KOLKATA)
    await money(conn, home, JournalKind.ADJUSTMENT, change_minor)


async def told(conn: AsyncConnection, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the notices of a kind: account and facts, in their order."""
    found = await rows(
        conn,
        "select a.number, n.facts from notices n join accounts a on a.id = n.account_id"
        " where n.kind = %s order by n.id",
        kind,
    )
    return [(row["number"], row["facts"]) for row in found]


async def day_charge(conn: AsyncConnection, home: Home) -> int:
    """Return what a day costs at present use."""
    summary = await read_summary(conn, home.account_id, KOLKATA, now_ms=to_ms(local(APRIL)))
    assert summary.use is not None
    return summary.use.day_charge_minor


def test_forecast_is_told_once_to_whom_credit_ends_within_days(database_url: str) -> None:
    """With the figures of the consumer's own interface; not to who has more, has none, pays later or is not known."""
    last = APRIL + 9 * DAY

    async def story(conn: AsyncConnection) -> None:
        near, far, gone, later = [await open_home(conn, name, threshold_minor=None) for name in ("N", "F", "G", "L")]
        await open_home(conn, "new", opened_at=local(last), opening_credit_minor=2_000, threshold_minor=None)
        await live(conn, [near, far, gone, later], APRIL, last)
        a_day = await day_charge(conn, near)
        await balance_to(conn, near, 2 * a_day)
        await balance_to(conn, far, 7 * a_day)
        await balance_to(conn, gone, 0)
        await balance_to(conn, later, 2 * a_day)
        await conn.execute(
            "update accounts set mode = 'postpaid', postpaid_approval = 'test' where id = %s", (later.account_id,)
        )
        await settle_prepayment(conn, last, rules=rules_on(last + DAY))
        summary = await read_summary(conn, near.account_id, KOLKATA, now_ms=to_ms(local(last + DAY)))
        assert summary.forecast is not None
        assert summary.forecast.ends_on is not None
        assert summary.forecast.ends_on - (last + DAY) <= FORECAST_DAYS * DAY
        expected = {
            "balance_minor": summary.balance_minor,
            "days_left": summary.forecast.days_left,
            "ends_on": summary.forecast.ends_on.isoformat(),
        }
        assert await told(conn, "forecast") == [("N", expected)]
        await settle_prepayment(conn, last, rules=rules_on(last + DAY))
        assert len(await told(conn, "forecast")) == 1

    on_database(database_url, story)


def test_forecast_is_not_told_again_until_a_recharge_came_between(database_url: str) -> None:
    """The next day says nothing new; after a recharge that does not last, it is told anew."""
    last = APRIL + 6 * DAY

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", threshold_minor=None)
        await live(conn, [home], APRIL, last)
        await balance_to(conn, home, 3 * await day_charge(conn, home))
        for day in (last, last + DAY):
            if day != last:
                await live(conn, [home], day, day)
            await tell_daily(conn, day, rules=rules_on(day + DAY))
            assert len(await told(conn, "forecast")) == 1
        await money(conn, home, JournalKind.VEND, 500)
        await tell_daily(conn, last + DAY, rules=rules_on(last + 2 * DAY))
        assert len(await told(conn, "forecast")) == 2

    on_database(database_url, story)


def test_statement_ready_has_the_figures_of_the_statement(database_url: str) -> None:
    """Use, money of the month, money and late energy booked after it: the statement's own totals, once an account."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, name, opening_credit_minor=100_000) for name in ("A1", "A2")]
        await live(conn, homes, APRIL, APRIL + 9 * DAY)
        # A register that turns out higher within closed days is booked as late usage.
        await read(conn, homes[0], [(local(APRIL + 3 * DAY, 6), 3 * DAY_WH + 2_900)], late=True)
        await money(conn, homes[0], JournalKind.VEND, 50_000)
        await live(conn, homes, APRIL + 10 * DAY, APRIL_END - DAY)
        await tell_daily(conn, APRIL_END - DAY, rules=rules_on(APRIL_END))
        assert await told(conn, "statement_ready") == []
        await live(conn, homes[:1], APRIL_END, APRIL_END)
        await live(conn, homes[:1], MAY, MAY)
        await tell_daily(conn, APRIL_END, rules=rules_on(MAY))
        statements = [
            await read_statement(conn, home.account_id, KOLKATA, first=APRIL, last=APRIL_END, today=MAY)
            for home in homes
        ]
        expected = [
            (
                home.number,
                {
                    "first": APRIL.isoformat(),
                    "last": APRIL_END.isoformat(),
                    "energy_wh": statement.totals.energy_wh,
                    "charge_minor": statement.totals.charge_minor,
                    "closing_minor": statement.closing_minor,
                },
            )
            for home, statement in zip(homes, statements, strict=True)
        ]
        assert await told(conn, "statement_ready") == expected
        assert expected[0][1]["energy_wh"] == 30 * DAY_WH
        await tell_daily(conn, MAY, rules=rules_on(MAY + DAY))
        assert len(await told(conn, "statement_ready")) == 2

    on_database(database_url, story)


def test_statement_figures_follow_bookings_within_their_month(database_url: str) -> None:
    """With bookings dated in the month itself, as they are when it is lived through, figures still agree."""

    async def story(conn: AsyncConnection) -> None:
        today = KOLKATA.day_of(to_ms((await rows(conn, "select now() as now"))[0]["now"]))
        first, last = today.replace(day=1), (today.replace(day=1) + 31 * DAY).replace(day=1) - DAY
        home = await open_home(conn, "A1", opened_at=local(first))
        await money(conn, home, JournalKind.VEND, 50_000)
        await live(conn, [home], first, last)
        await read(conn, home, [(local(first + 3 * DAY, 6), 3 * DAY_WH + 2_900)], late=True)
        await tell_daily(conn, last, rules=rules_on(last + DAY))
        statement = await read_statement(conn, home.account_id, KOLKATA, first=first, last=last, today=last)
        ((_, facts),) = await told(conn, "statement_ready")
        assert statement.totals.credit_minor == 150_000
        assert facts["energy_wh"] == statement.totals.energy_wh == (last - first + DAY).days * DAY_WH
        assert facts["charge_minor"] == statement.totals.charge_minor
        assert facts["closing_minor"] == statement.closing_minor

    on_database(database_url, story)


def test_two_processes_at_once_tell_each_account_once(database_url: str) -> None:
    """Forecast and statement of the same night, by two at a time and once more after them."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, f"A{number}", threshold_minor=None) for number in range(5)]
        await live(conn, homes, APRIL, APRIL_END)
        for home in homes:
            await balance_to(conn, home, 2 * await day_charge(conn, home))
        rules = rules_on(MAY)
        async with await connect(database_url, application="second") as second:
            await asyncio.gather(*(tell_daily(each, APRIL_END, rules=rules) for each in (conn, second)))
        await tell_daily(conn, APRIL_END, rules=rules)
        for kind in ("forecast", "statement_ready"):
            assert [number for number, _ in await told(conn, kind)] == [home.number for home in homes]

    on_database(database_url, story)


def test_days_closed_long_after_they_were_tell_nobody(database_url: str) -> None:
    """A replay of last year's days neither forecasts nor announces."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", threshold_minor=None)
        await live(conn, [home], APRIL, APRIL_END)
        await balance_to(conn, home, 2 * await day_charge(conn, home))
        await tell_daily(conn, APRIL_END, rules=rules_on(APRIL_END + (STATEMENT_AGE_DAYS_MAX + 1) * DAY))
        assert (await told(conn, "forecast"), await told(conn, "statement_ready")) == ([], [])
        await tell_daily(conn, APRIL_END, rules=rules_on(APRIL_END + STATEMENT_AGE_DAYS_MAX * DAY))
        assert (len(await told(conn, "forecast")), len(await told(conn, "statement_ready"))) == (0, 1)
        await tell_daily(conn, APRIL_END, rules=rules_on(APRIL_END + FORECAST_AGE_DAYS_MAX * DAY))
        assert (len(await told(conn, "forecast")), len(await told(conn, "statement_ready"))) == (1, 1)

    on_database(database_url, story)
