"""What each day brings, told once: credit that ends within days, a month's statement.

Stage: after close-day, page by page, each page a transaction. A row an account and kind says what was told last, so
that a run that was stopped goes on, one that runs twice tells nobody again, and two at once tell each account once.
Posts nothing, locks no account. Days that were closed long after they were tell nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import date, timedelta

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, period_of
from billing.forecast import RECENT_DAYS, USE_DAYS, USE_DAYS_MIN, PresentUse
from billing.notices import Facts, Forecast, NoticeKind, StatementReady
from billing.terms import ONE_DAY
from db.accounts import AccountView, look
from db.consumer_facts import forecast_of
from db.named import sql
from db.notices import write_notices
from db.orders import PostingRules
from db.thresholds import present_uses

# 500 accounts, half of them looked at one by one, take 0.1 s (2026-11-22): a page is below 0.5 s; nobody waits for it.
ACCOUNTS_A_PAGE = 2_000
# Three days: a weekend and the day to pay on.
FORECAST_DAYS = 3
# Posted credit is that of the last closed midnight: today's use up to now and the rest of today come on top.
_POSTED_DAYS = FORECAST_DAYS + 2
# Who closes the day before yesterday is late; who closes older days works through the past.
FORECAST_AGE_DAYS_MAX = 2
# As long as the notice of a statement is worth reading (billing/notices/kinds.toml).
STATEMENT_AGE_DAYS_MAX = 7

# Tells the accounts of a page, after an id and up to one.
_Page = Callable[[int, int], Awaitable[None]]


async def tell_daily(conn: AsyncConnection, until: date, *, rules: PostingRules) -> None:
    """Tell what the end of a closed day brings; harmless twice."""
    calendar = rules.calendar
    today = calendar.day_of(rules.clock())

    async def forecasts(after: int, upto: int) -> None:
        await _tell_forecasts(conn, after, upto, calendar)

    async def statements(after: int, upto: int) -> None:
        await _tell_statements(conn, after, upto, last, calendar)

    if (today - until).days <= FORECAST_AGE_DAYS_MAX:
        await _by_pages(conn, forecasts)
    last = period_of(until + ONE_DAY) - ONE_DAY
    if (today - last).days <= STATEMENT_AGE_DAYS_MAX:
        await _by_pages(conn, statements)


async def _by_pages(conn: AsyncConnection, tell: _Page) -> None:
    after = 0
    while True:
        cursor = await conn.execute(sql("accounts_page"), {"after": after, "most": ACCOUNTS_A_PAGE})
        row = await cursor.fetchone()
        if row is None or row[0] is None:
            return
        async with conn.transaction():
            # A scan of all journals for one page would stall the run.
            await conn.execute(sql("probe_by_key"))
            await tell(after, row[0])
        after = row[0]


async def _tell_forecasts(conn: AsyncConnection, after: int, upto: int, calendar: LocalCalendar) -> None:
    """Tell whose credit ends within days: once an exhaustion's arm and recharge."""
    parameters = {
        "after": after,
        "upto": upto,
        "recent_days": RECENT_DAYS,
        "days_most": USE_DAYS,
        "days_least": USE_DAYS_MIN,
        "days_near": _POSTED_DAYS,
    }
    cursor = await conn.execute(sql("accounts_running_out"), parameters)
    keys: dict[int, str] = dict(await cursor.fetchall())
    if not keys:
        return
    uses = await present_uses(conn, list(keys))
    views = await look(conn, list(keys), calendar)
    near = {account_id: _near_end(view, uses.get(account_id), calendar) for account_id, view in views.items()}
    told: dict[int, Facts] = {account_id: facts for account_id, facts in near.items() if facts is not None}
    fresh = await _claim(conn, NoticeKind.FORECAST, {account_id: keys[account_id] for account_id in told})
    await write_notices(conn, [(account_id, told[account_id]) for account_id in fresh])


async def _tell_statements(conn: AsyncConnection, after: int, upto: int, last: date, calendar: LocalCalendar) -> None:
    """Tell who has a month closed of its figures, which are those of the statement."""
    first = period_of(last)
    parameters = {"after": after, "upto": upto, "last": last, "period_key": f"{first:%Y-%m}"}
    cursor = await conn.execute(sql("statements_to_tell"), parameters)
    fresh = await _claim(conn, NoticeKind.STATEMENT_READY, dict(await cursor.fetchall()))
    if not fresh:
        return
    figures = {
        "ids": fresh,
        "first": first,
        "last": last,
        "first_at": from_ms(calendar.midnight_ms(first)),
        "end_at": from_ms(calendar.midnight_ms(last + ONE_DAY)),
    }
    cursor = await conn.execute(sql("month_figures"), figures)
    notices: list[tuple[int, Facts]] = [
        (
            account_id,
            StatementReady(
                first=first, last=last, energy_wh=energy_wh, charge_minor=charge_minor, closing_minor=closing_minor
            ),
        )
        for account_id, energy_wh, charge_minor, closing_minor in await cursor.fetchall()
    ]
    await write_notices(conn, notices)


def _near_end(view: AccountView, use: PresentUse | None, calendar: LocalCalendar) -> Forecast | None:
    """Return the forecast of an account whose credit ends within days, None for any other."""
    balance_minor = view.balance_minor(calendar)
    money_ms = max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through))
    found = forecast_of(view, use, balance_minor, money_ms, calendar)
    if found is None or found.ends_on is None or balance_minor <= view.levels.cut_at_minor:
        return None
    if found.ends_on - calendar.day_of(money_ms) > timedelta(days=FORECAST_DAYS):
        return None
    return Forecast(balance_minor=balance_minor, days_left=found.days_left, ends_on=found.ends_on)


async def _claim(conn: AsyncConnection, kind: NoticeKind, keys: Mapping[int, str]) -> list[int]:
    """Note what accounts are told of a kind, by the period it is about; return those that were not told yet."""
    parameters = {"kind": kind.value, "account_ids": list(keys), "period_keys": list(keys.values())}
    cursor = await conn.execute(sql("claim_daily"), parameters)
    return sorted(row[0] for row in await cursor.fetchall())
