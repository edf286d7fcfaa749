"""Statements and past balances, each read from one snapshot of the database.

Stage: between rows and `billing.statement`. Reads only. A statement of at most `STATEMENT_DAYS_MAX` days takes journals
of these days as they stand, the sum of all before them, and the open days from the readings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar, from_ms, period_of, to_ms
from billing.journals import JournalKind
from billing.past_balance import BookedBefore, charge_in_closed_part, owed_at
from billing.rating import total
from billing.running import EdgeQuality, close_days
from billing.statement import (
    DAY_MAX,
    Brought,
    Entry,
    PeriodTooLong,
    Statement,
    StatementHead,
    make_statement,
    require_days,
    statement_days,
)
from billing.statement_titles import line_titles
from billing.terms import ONE_DAY
from billing.zones import zone_clock
from db.accounts import AccountView, look, points_around
from db.errors import UnknownAccount
from db.named import sql
from db.vends import read_consumer_name

# 400 days of use leave room for 24 payments and corrections a day: more is no consumer's account.
STATEMENT_ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PastBalance:
    """An account's balance at an instant: money booked by then less the charge up to then, as known today.

    `known_until_ms` is the account's money time: later instants are charged as it.
    """

    account_number: str
    currency: str
    booked_minor: int
    charged_minor: int
    known_until_ms: int

    @property
    def balance_minor(self) -> int:
        """Return the balance in minor units; below zero is a debt."""
        return self.booked_minor - self.charged_minor


async def read_statement(
    conn: AsyncConnection,
    account_id: int,
    calendar: LocalCalendar,
    *,
    first: date | None,
    last: date | None,
    today: date,
) -> Statement:
    """Read the statement of an account; without a last day it ends with the running balance.

    Raises: UnknownAccount, BadPeriod, PeriodTooLong.
    """
    begin, end = statement_days(first, last, today=today)
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar, step="day")
        money_day = max(calendar.day_of(view.points[-1].at_ms), view.checkpoint.through)
        booked = await _entries(conn, view, calendar, first=begin, last=end)
        days = list(open_days(view, money_day, calendar))
        if end is None:
            end = max(begin, today, money_day, *(entry.day for entry in booked))
            require_days(begin, end)
        head = StatementHead(
            account_number=view.number,
            consumer=await read_consumer_name(conn, account_id),
            meter_serial=view.meter.serial,
            currency=view.terms.tariff.currency,
            time_zone=calendar.zone.key,
        )
        brought = await _brought(conn, account_id, calendar, first=begin)
    statement = make_statement(
        head,
        [*booked, *days],
        first=begin,
        last=end,
        brought=brought,
        line_titles=line_titles(view.terms, first=begin, last=end),
    )
    running_minor = view.balance_minor(calendar)
    whole = last is None
    assert not whole or statement.closing_minor == running_minor, f"{view.number}: expected to close at {running_minor}"
    return statement


async def read_balance_at(
    conn: AsyncConnection, account_id: int, calendar: LocalCalendar, *, at: datetime
) -> PastBalance:
    """Read the balance of an account at an instant; see `billing.past_balance` for what that is.

    Raises: UnknownAccount.
    """
    at_ms = to_ms(at)
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar)
        cursor = await conn.execute(sql("money_booked_until"), {"account_id": account_id, "at": at})
        row = await cursor.fetchone()
        assert row is not None, "money_booked_until returns one row"
        through_ms = calendar.midnight_ms(view.checkpoint.through)
        if at_ms < through_ms:
            charged_minor = await _charge_in_closed_part(conn, view, at_ms, calendar)
        else:
            around = await points_around(conn, view.meter, [at])
            points = sorted({*view.points, *(point for point in around if point.at_ms > view.points[0].at_ms)})
            booked = await _booked_before(conn, view, DAY_MAX, DAY_MAX, DAY_MAX)
            owed_minor = owed_at(view.checkpoint, view.terms, points, at_ms=at_ms, calendar=calendar)
            charged_minor = booked.charged_minor + owed_minor
    return PastBalance(
        account_number=view.number,
        currency=view.terms.tariff.currency,
        booked_minor=row[0],
        charged_minor=charged_minor,
        known_until_ms=max(view.points[-1].at_ms, through_ms),
    )


@asynccontextmanager
async def snapshot(conn: AsyncConnection) -> AsyncIterator[None]:
    """Read everything of one answer from one snapshot; nothing can be written meanwhile."""
    async with conn.transaction():
        await conn.execute(sql("statement_snapshot"))
        yield


async def _view(conn: AsyncConnection, account_id: int, calendar: LocalCalendar, *, step: str = "month") -> AccountView:
    views = await look(conn, [account_id], calendar, step=step)
    if account_id not in views:
        raise UnknownAccount(f"account: expected one with a billing meter, got id {account_id}")
    return views[account_id]


async def _brought(conn: AsyncConnection, account_id: int, calendar: LocalCalendar, *, first: date) -> Brought:
    parameters = {
        "account_id": account_id,
        "first": first,
        "first_at": from_ms(calendar.midnight_ms(first)),
        "month": period_of(first),
    }
    cursor = await conn.execute(sql("statement_brought"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "statement_brought returns one row"
    return Brought(balance_minor=row[0], month_wh=row[1])


async def _entries(
    conn: AsyncConnection, view: AccountView, calendar: LocalCalendar, *, first: date, last: date | None
) -> list[Entry]:
    """Read the journals dated between two days, in the order of booking.

    Raises: PeriodTooLong.
    """
    parameters = {
        "account_id": view.id,
        "first": first,
        "last": last or DAY_MAX,
        "first_at": from_ms(calendar.midnight_ms(first)),
        "end_at": from_ms(calendar.midnight_ms((last or DAY_MAX) + ONE_DAY)),
        "most": STATEMENT_ROWS_MAX + 1,
    }
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("statement_entries"), parameters)
        rows = await cursor.fetchall()
    if len(rows) > STATEMENT_ROWS_MAX:
        raise PeriodTooLong(
            f"statement of {view.number}: expected at most {STATEMENT_ROWS_MAX} rows, got more; ask for fewer days"
        )
    return [_entry_from_row(row, calendar) for row in rows]


def _entry_from_row(row: dict[str, Any], calendar: LocalCalendar) -> Entry:
    # A row of `statement_entries`: its columns are typed by the migrations.
    about_at = row["about_at"]
    return Entry(
        kind=JournalKind(row["kind"]),
        booked_on=calendar.day_of(to_ms(row["booked_at"])),
        amount_minor=row["amount_minor"],
        local_day=row["local_day"],
        period=row["period"],
        energy_wh=row["energy_wh"],
        quality=EdgeQuality(row["edge_quality"]) if row["edge_quality"] else None,
        lines=row["lines"],
        reason=row["reason"],
        vendor=row["vendor"],
        token_tail=row["token_tail"],
        about_on=None if about_at is None else calendar.day_of(to_ms(about_at)),
        noted_minor=row["noted_minor"],
    )


def open_days(view: AccountView, money_day: date, calendar: LocalCalendar) -> Iterator[Entry]:
    """Yield the days that are not closed up to that of money time, as closing them now would book them."""
    closed = close_days(view.checkpoint, view.terms, view.points, until=money_day, calendar=calendar)
    for usage, _ in closed:
        yield Entry(
            kind=JournalKind.DAY,
            booked_on=usage.day,
            amount_minor=-total(usage.lines),
            local_day=usage.day,
            period=usage.period,
            energy_wh=usage.to_wh - usage.from_wh,
            quality=usage.quality,
            lines=usage.lines,
            posted=False,
        )


async def _charge_in_closed_part(conn: AsyncConnection, view: AccountView, at_ms: int, calendar: LocalCalendar) -> int:
    day = calendar.day_of(at_ms)
    part = view.terms.part_at(day)
    fresh = view.terms.fresh_part_at(day)
    edges_ms = [at_ms]
    if part.tariff.zones is not None:
        clock = zone_clock(part.tariff.zones, calendar)
        first_ms = calendar.midnight_ms(part.first)
        edges_ms += [first_ms, *clock.edges_between(first_ms, at_ms)]
    around = await points_around(conn, view.meter, [from_ms(edge_ms) for edge_ms in edges_ms])
    install = view.meter.known[0]
    booked = await _booked_before(conn, view, part.first, fresh.first, day)
    return charge_in_closed_part(view.terms, booked, sorted({install, *around}), at_ms=at_ms, calendar=calendar)


async def _booked_before(conn: AsyncConnection, view: AccountView, part: date, fresh: date, day: date) -> BookedBefore:
    parameters = {"account_id": view.id, "part": part, "fresh": fresh, "day": day}
    cursor = await conn.execute(sql("usage_booked_before"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "usage_booked_before returns one row"
    charged_minor, later_wh, before_wh, demand_w = row
    return BookedBefore(
        charged_minor=charged_minor,
        start_wh=view.checkpoint.closed_wh - later_wh,
        before_wh=before_wh,
        demand_w=demand_w,
    )
