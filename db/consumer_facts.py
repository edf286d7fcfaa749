"""What a consumer asks about an account: its use day by day, what it was sold, what was ordered of its meter.

Stage: between rows and the consumer's interface. Reads only, each answer from one snapshot, newest first. Readings are
looked up from the checkpoint on, journals by the account's own indexes, so that an answer costs the same in the tenth
year.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from billing.calendar import LocalCalendar, from_ms, next_period, period_of, to_ms
from billing.forecast import (
    RECENT_DAYS,
    Forecast,
    PresentUse,
    Threshold,
    ThresholdKind,
    UsedDay,
    forecast,
    idle_day_minor,
    present_use,
)
from billing.journals import JournalKind
from billing.rating import total
from billing.running import EdgeQuality
from billing.statement import DAY_MAX, DAY_MIN, BadPeriod, Entry, PeriodTooLong
from billing.supply import Mode, decide
from billing.supply_policy import Verdict
from billing.terms import ONE_DAY
from billing.use_by_day import ConsumerDay, ConsumerMonth, by_day, by_month
from db.accounts import AccountView, look
from db.errors import UnknownAccount
from db.named import sql
from db.prepayment import Prepayment, prepayment_of
from db.statements import open_days, snapshot
from db.vends import read_last_recharge

# What one page of days holds: a year and the month it is asked in, as a statement does.
PAGE_DAYS_MAX = 400
# The month at hand and the twelve before it: this year's beside last year's.
PAGE_MONTHS_MAX = 13
# 400 days of use leave room for 24 payments and corrections a day: more is no consumer's account.
ENTRIES_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerAccount:
    """An account as it is named outside."""

    id: int
    number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSummary:
    """An account at its money time.

    Units: `money_ms` is UTC milliseconds, `balance_minor` the balance at that instant.
    Invariants: `today` is the local day of money time, so far; `yesterday` is None on the account's first day;
    `earlier_minor` and `earlier_wh` are what was booked this month for months before it.
    """

    view: AccountView
    balance_minor: int
    money_ms: int
    today: ConsumerDay
    yesterday: ConsumerDay | None
    month: ConsumerMonth
    earlier_wh: int
    earlier_minor: int
    use: PresentUse | None
    forecast: Forecast | None
    verdict: Verdict
    prepayment: Prepayment
    last_recharge: tuple[int, datetime] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DaysPage:
    """Days from `first` to `last`; `following` is the last day of the page after it, None at the end."""

    view: AccountView
    first: date
    last: date
    days: tuple[ConsumerDay, ...]
    following: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthsPage:
    """Months from that of `first` to that of `last`; `following` is the last month of the page after it."""

    view: AccountView
    first: date
    last: date
    months: tuple[ConsumerMonth, ...]
    following: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One wish to be warned; `warns_at_minor` is the balance in force for it, None while it is not known."""

    threshold: Threshold
    warns_at_minor: int | None
    rung: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerWishes:
    """When the consumer of an account is warned."""

    view: AccountView
    balance_minor: int
    wishes: tuple[Wish, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recharge:
    """One recharge, in full; of it `recovered_minor` went to arrears of before prepayment."""

    id: int
    booked_at: datetime
    amount_minor: int
    recovered_minor: int
    vendor: str | None
    message_id: str | None
    digits: str | None = field(repr=False)
    reversed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyOrderRow:
    """One order to a meter to change supply; `waits_for` is what an open one was put off for."""

    id: int
    meter_serial: str
    relay: str
    cause: str
    state: str
    waits_for: str | None
    balance_minor: int
    created_at: datetime
    confirmed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRelay:
    """What the account's meter last said of its relay; None while it has said nothing."""

    serial: str
    relay: str | None
    relay_at: datetime | None


async def find_consumer_account(
    conn: AsyncConnection, *, account_id: int | None = None, number: str | None = None
) -> ConsumerAccount | None:
    """Find an account by its id or its number."""
    async with conn.cursor(row_factory=class_row(ConsumerAccount)) as cursor:
        await cursor.execute(sql("consumer_account"), {"id": account_id, "number": number})
        return await cursor.fetchone()


async def read_summary(
    conn: AsyncConnection, account_id: int, calendar: LocalCalendar, *, now_ms: int
) -> ConsumerSummary:
    """Read an account at its money time, with the rules that hold now.

    Raises: UnknownAccount.
    """
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar)
        money_ms = max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through))
        money_day = calendar.day_of(money_ms)
        month = period_of(money_day)
        first = min(month, money_day - timedelta(days=RECENT_DAYS))
        entries = await _entries(conn, view, calendar, first=first, last=next_period(month) - ONE_DAY)
        prepayment = await prepayment_of(conn, account_id, calendar.day_of(now_ms))
        last_recharge = await read_last_recharge(conn, account_id)
        balance_minor = view.balance_minor(calendar)
        decision = decide(
            view.levels, balance_minor, may_rearm=False, scheme=view.scheme, now_ms=now_ms, calendar=calendar
        )
    days = {used.day: used for used in by_day(entries, first=first, last=money_day)}
    use = present_use(_complete_days(entries))
    (of_month,) = by_month(entries, first=month, last=month)
    earlier = [entry for entry in entries if entry.lines is not None and entry.energy_month != month]
    earlier = [entry for entry in earlier if entry.kind is not JournalKind.DAY and entry.booked_on >= month]
    return ConsumerSummary(
        view=view,
        balance_minor=balance_minor,
        money_ms=money_ms,
        today=days[money_day],
        yesterday=days.get(money_day - ONE_DAY),
        month=of_month,
        earlier_wh=sum(entry.energy_wh for entry in earlier),
        earlier_minor=-sum(entry.amount_minor for entry in earlier),
        use=use,
        forecast=forecast_of(view, use, balance_minor, money_ms, calendar),
        verdict=decision.verdict,
        prepayment=prepayment,
        last_recharge=last_recharge,
    )


async def read_days(
    conn: AsyncConnection,
    account_id: int,
    calendar: LocalCalendar,
    *,
    first: date | None,
    last: date | None,
    most: int,
) -> DaysPage:
    """Read the latest `most` days of a span; by default of all days up to that of money time.

    Raises: UnknownAccount, BadPeriod, PeriodTooLong.
    """
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar)
        begin, end = _span(view, calendar, first, last)
        page_first = max(begin, end - timedelta(days=most - 1))
        entries = await _entries(conn, view, calendar, first=page_first, last=end)
    return DaysPage(
        view=view,
        first=page_first,
        last=end,
        days=by_day(entries, first=page_first, last=end),
        following=page_first - ONE_DAY if page_first > begin else None,
    )


async def read_months(
    conn: AsyncConnection,
    account_id: int,
    calendar: LocalCalendar,
    *,
    first: date | None,
    last: date | None,
    most: int,
) -> MonthsPage:
    """Read the latest `most` months of a span, whole ones; by default of all up to that of money time.

    Raises: UnknownAccount, BadPeriod, PeriodTooLong.
    """
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar)
        begin, end = (period_of(day) for day in _span(view, calendar, first, last))
        page_first = max(begin, _months_before(end, most - 1))
        entries = await _entries(conn, view, calendar, first=page_first, last=next_period(end) - ONE_DAY)
    return MonthsPage(
        view=view,
        first=page_first,
        last=end,
        months=by_month(entries, first=page_first, last=end),
        following=_months_before(page_first, 1) if page_first > begin else None,
    )


async def read_recharges(conn: AsyncConnection, account_id: int, *, before: int, most: int) -> list[Recharge]:
    """Read an account's recharges whose id is below one, newest first."""
    async with conn.cursor(row_factory=class_row(Recharge)) as cursor:
        await cursor.execute(sql("consumer_recharges"), {"account_id": account_id, "before": before, "most": most})
        return await cursor.fetchall()


async def read_supply_orders(conn: AsyncConnection, account_id: int, *, before: int, most: int) -> list[SupplyOrderRow]:
    """Read the supply orders of an account whose id is below one, newest first."""
    async with conn.cursor(row_factory=class_row(SupplyOrderRow)) as cursor:
        await cursor.execute(sql("consumer_orders"), {"account_id": account_id, "before": before, "most": most})
        return await cursor.fetchall()


async def read_reported_relay(conn: AsyncConnection, account_id: int) -> ReportedRelay | None:
    """Read what an account's billing meter last said of its relay; None without a meter."""
    async with conn.cursor(row_factory=class_row(ReportedRelay)) as cursor:
        await cursor.execute(sql("consumer_relay"), {"account_id": account_id})
        return await cursor.fetchone()


async def read_wishes(conn: AsyncConnection, account_id: int, calendar: LocalCalendar) -> ConsumerWishes:
    """Read what the consumer of an account asked to be warned by; the amount that the meter keeps comes first.

    Raises: UnknownAccount.
    """
    async with snapshot(conn):
        view = await _view(conn, account_id, calendar)
        cursor = await conn.execute(sql("consumer_thresholds"), {"account_id": account_id})
        wishes = [
            Wish(threshold=Threshold(kind=ThresholdKind(kind), value=value), warns_at_minor=level_minor, rung=rung)
            for kind, value, level_minor, rung in await cursor.fetchall()
        ]
    amount_minor = view.levels.threshold_minor
    if amount_minor is not None:
        amount = Threshold(kind=ThresholdKind.AMOUNT, value=amount_minor)
        wishes.insert(0, Wish(threshold=amount, warns_at_minor=amount_minor, rung=view.levels.low_raised))
    return ConsumerWishes(view=view, balance_minor=view.balance_minor(calendar), wishes=tuple(wishes))


def forecast_of(
    view: AccountView, use: PresentUse | None, balance_minor: int, money_ms: int, calendar: LocalCalendar
) -> Forecast | None:
    """Forecast the end of a prepaid account's credit; who pays by bill has none that ends."""
    if view.levels.mode is Mode.POSTPAID:
        return None
    return forecast(
        use,
        balance_minor=balance_minor,
        cut_at_minor=view.levels.cut_at_minor,
        fixed_minor=idle_day_minor(view.walk(calendar)),
        at_ms=money_ms,
        calendar=calendar,
    )


async def _view(conn: AsyncConnection, account_id: int, calendar: LocalCalendar) -> AccountView:
    views = await look(conn, [account_id], calendar, step="day")
    if account_id not in views:
        raise UnknownAccount(f"account: expected one with a billing meter, got id {account_id}")
    return views[account_id]


def _span(view: AccountView, calendar: LocalCalendar, first: date | None, last: date | None) -> tuple[date, date]:
    """Return the days asked for, none before the account's opening.

    Raises: BadPeriod.
    """
    opened_on = view.terms.opened_on
    end = last or max(_money_day(view, calendar), first or opened_on)
    begin = first or min(opened_on, end)
    if not DAY_MIN <= begin <= end <= DAY_MAX:
        raise BadPeriod(
            f"days: expected a first one from {DAY_MIN} and a last one from it to {DAY_MAX}, got {begin} and {end}"
        )
    return min(max(begin, opened_on), end), end


def _money_day(view: AccountView, calendar: LocalCalendar) -> date:
    return max(calendar.day_of(view.points[-1].at_ms), view.checkpoint.through)


async def _entries(
    conn: AsyncConnection, view: AccountView, calendar: LocalCalendar, *, first: date, last: date
) -> list[Entry]:
    """Read what is booked of some local days, and those of them that are open.

    Raises: PeriodTooLong.
    """
    parameters = {
        "account_id": view.id,
        "first": first,
        "last": last,
        "first_at": from_ms(calendar.midnight_ms(first)),
        "end_at": from_ms(calendar.midnight_ms(last + ONE_DAY)),
        "most": ENTRIES_MAX + 1,
    }
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("consumer_entries"), parameters)
        rows = await cursor.fetchall()
    if len(rows) > ENTRIES_MAX:
        raise PeriodTooLong(
            f"days of {view.number}: expected at most {ENTRIES_MAX} bookings, got more; ask for fewer days"
        )
    unposted = open_days(view, _money_day(view, calendar), calendar)
    booked = [_entry_from_row(row, calendar) for row in rows]
    return [*booked, *(entry for entry in unposted if first <= entry.day <= last)]


def _entry_from_row(row: dict[str, Any], calendar: LocalCalendar) -> Entry:
    # A row of `consumer_entries`: its columns are typed by the migrations.
    lines = row["lines"]
    return Entry(
        kind=JournalKind(row["kind"]),
        booked_on=calendar.day_of(to_ms(row["booked_at"])),
        amount_minor=row["amount_minor"] if lines is None else -total(lines),
        local_day=row["local_day"],
        period=row["period"],
        energy_wh=row["energy_wh"],
        quality=EdgeQuality(row["edge_quality"]) if row["edge_quality"] else None,
        lines=lines,
    )


def _complete_days(entries: list[Entry]) -> list[UsedDay]:
    """Return the closed days after whose end the meter was heard."""
    return [
        UsedDay(day=entry.day, energy_wh=entry.energy_wh, charge_minor=-entry.amount_minor)
        for entry in entries
        if entry.kind is JournalKind.DAY and entry.posted and entry.quality is not EdgeQuality.UNREAD
    ]


def _months_before(month: date, number: int) -> date:
    years, months = divmod(month.year * 12 + month.month - 1 - number, 12)
    return date(years, months + 1, 1)
