"""Statements and past balances from a real PostgreSQL: over a month end, in every form, to whom they belong."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing.calendar import to_ms
from billing.journals import JournalKind
from billing.money import format_minor
from billing.rating import total
from billing.statement import Statement
from billing.tariff_document import builtin_documents
from billing.terms import part_lines
from db import statements
from db.accounts import AccountView, look
from db.posting import lock_and_look, post_days, post_money, post_readings
from db.reports import bills
from db.statements import read_balance_at, read_statement
from db.tariffs import add_tariff
from tests.commands import run_command, settings_for
from tests.integration.vending_shop import CALENDAR, RULES, TARIFF, Shop, add_home, open_shop
from vending.edges.keys import Role, issue_api_key
from vending.edges.statement_models import STATEMENT_EXAMPLE, PastBalanceAnswer, StatementAnswer

pytestmark = pytest.mark.db

# The shop's home opens at midnight of 1 November 2026 with a register of 5,000 Wh.
NOVEMBER, DECEMBER = date(2026, 11, 1), date(2026, 12, 1)
OPENING_WH = 5_000
DAY_WH = 4_000
ONE_DAY = timedelta(days=1)
NOW = datetime(2026, 12, 4, 12, 0, tzinfo=UTC)


def local(day: date, hours: int = 0, minutes: int = 0) -> datetime:
    """Return an instant so long after a local midnight."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=CALENDAR.zone)
    return midnight.astimezone(UTC) + timedelta(hours=hours, minutes=minutes)


async def close(shop: Shop, until: date) -> None:
    """Close the home's days up to and including one."""
    async with shop.conn.transaction():
        await lock_and_look(shop.conn, shop.home.account_id, RULES)
        views = await look(shop.conn, [shop.home.account_id], CALENDAR, step="day")
        await post_days(shop.conn, views[shop.home.account_id], until, rules=RULES, now_ms=shop.clock())


async def book(
    shop: Shop, kind: JournalKind, amount_minor: int, reason: str | None = None, about_id: int | None = None
) -> None:
    """Book money to the home's account."""
    async with shop.conn.transaction():
        view = await lock_and_look(shop.conn, shop.home.account_id, RULES)
        now_ms = shop.clock()
        await post_money(
            shop.conn, view, kind, amount_minor, rules=RULES, now_ms=now_ms, reason=reason, about_id=about_id
        )


async def catch_up(shop: Shop, late_since: datetime) -> None:
    """Let the account book what a late reading changes."""
    async with shop.conn.transaction():
        view = await lock_and_look(shop.conn, shop.home.account_id, RULES)
        await post_readings(shop.conn, view, late_since_ms=to_ms(late_since), rules=RULES, now_ms=shop.clock())


async def date_bookings(shop: Shop, **booked_at: datetime) -> None:
    """Date the journals of some kinds, as if the database had booked them then."""
    await shop.conn.execute("alter table journals disable trigger append_only")
    for kind, at in booked_at.items():
        await shop.conn.execute("update journals set booked_at = %s where kind = %s", (at, kind))
    await shop.conn.execute("alter table journals enable trigger append_only")


async def tell_story(shop: Shop) -> None:
    """Live a month end: use every day, a recharge, a month edge read late, a reversal, a correction, two open days.

    Readings at each midnight up to 30 November, none at 1 December, then 2 and 3 December and 3 December 10:00. The
    register at 1 December, seen late, says that 2,500 Wh of the 8,000 Wh between fell into November, not 4,000.
    """
    shop.clock.now_ms = to_ms(NOW)
    for number in range(1, 30):
        await shop.read(local(NOVEMBER + number * ONE_DAY), OPENING_WH + number * DAY_WH)
    await shop.read(local(DECEMBER + ONE_DAY), OPENING_WH + 31 * DAY_WH)
    await close(shop, DECEMBER)
    assert (await shop.vend("m-1", "500.00")).status_code == 200
    late = local(DECEMBER)
    await shop.read(late, OPENING_WH + 29 * DAY_WH + 2_500)
    await catch_up(shop, late)
    vend_id = await shop.one("select id from journals where kind = 'vend'")
    await book(shop, JournalKind.REVERSAL, -50_000, "sold to the wrong meter", vend_id)
    await book(shop, JournalKind.ADJUSTMENT, 1_234, "goodwill for a late visit")
    await shop.read(local(DECEMBER + 2 * ONE_DAY), OPENING_WH + 32 * DAY_WH)
    await shop.read(local(DECEMBER + 2 * ONE_DAY, hours=10), OPENING_WH + 32 * DAY_WH + 1_700)
    await date_bookings(
        shop,
        day=local(DECEMBER + ONE_DAY, hours=2),
        vend=local(DECEMBER.replace(day=1), hours=23, minutes=59),
        late_usage=local(DECEMBER + ONE_DAY, hours=9),
        reversal=local(DECEMBER + ONE_DAY, hours=10),
        adjustment=local(DECEMBER + ONE_DAY, hours=11),
    )


async def view_of(shop: Shop) -> AccountView:
    """Look at the home's account."""
    return (await look(shop.conn, [shop.home.account_id], CALENDAR))[shop.home.account_id]


async def statement_of(shop: Shop, first: date | None, last: date | None) -> Statement:
    """Read a statement of the home's account as of the clock."""
    today = CALENDAR.day_of(shop.clock())
    return await read_statement(shop.conn, shop.home.account_id, CALENDAR, first=first, last=last, today=today)


def path(shop: Shop, query: str = "", what: str = "statement") -> str:
    """Return the path of the home's statement or balance."""
    return f"/v1/accounts/{shop.home.number}/{what}{query}"


def assert_adds_up(answer: dict[str, Any]) -> None:
    """Add up each column of a JSON statement, and walk down its balances."""
    rows, totals = answer["rows"], answer["totals"]
    balance = answer["opening_balance_minor"]
    for row in rows:
        balance += (row["credit_minor"] or 0) - (row["charge_minor"] or 0)
        assert row["balance_minor"] == balance
        assert sum(line["amount_minor"] for line in row["lines"]) == (row["charge_minor"] or 0)
    assert balance == answer["closing_balance_minor"]
    for column in ("charge_minor", "credit_minor", "energy_wh"):
        assert sum(row[column] or 0 for row in rows) == totals[column]
    for line in totals["lines"]:
        found = [each["amount_minor"] for row in rows for each in row["lines"] if each["line"] == line["line"]]
        assert sum(found) == line["amount_minor"]


def test_statement_over_a_month_end_adds_up_to_the_running_balance(database_url: str) -> None:
    """Recharge, late usage, reversal, correction and open days: every column sums, and the end is the balance shown."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            response = await shop.get(path(shop, "?from=2026-11-01"), "consumer")
            answer = response.json()
            StatementAnswer.model_validate(answer)
            assert response.headers["cache-control"] == "no-store"
            assert_adds_up(answer)
            account = (await shop.get(f"/v1/accounts/{shop.home.number}", "consumer")).json()
            assert answer["closing_balance"] == account["balance"]
            assert (answer["to"], answer["opening_balance"]) == ("2026-12-04", "0.00")
            days = [row for row in answer["rows"] if row["kind"] == "day"]
            assert [row["date"] for row in days] == [str(NOVEMBER + number * ONE_DAY) for number in range(33)]
            assert [row["posted"] for row in days] == [True] * 31 + [False] * 2
            assert sum(row["energy_wh"] for row in answer["rows"] if row["energy_wh"]) == 32 * DAY_WH + 1_700
            view = await view_of(shop)
            billed = (await bills(shop.conn, [view], CALENDAR))[shop.home.account_id]
            assert answer["totals"]["charge_minor"] == sum(total(bill.lines) for bill in billed.values())

    asyncio.run(story())


def test_rows_of_the_month_end_say_what_happened_in_order(database_url: str) -> None:
    """Rows stand by local date with the day's use last; late usage of November shows its month, not December's sum."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            statement = await statement_of(shop, DECEMBER - ONE_DAY, None)
            rows = statement.rows
            shown = [(f"{row.day:%m-%d}", row.kind.value, row.energy_wh, row.month_wh, row.month) for row in rows]
            assert shown == [
                ("11-30", "day", 4_000, 120_000, None),
                ("12-01", "vend", None, None, None),
                ("12-01", "day", 4_000, 4_000, None),
                ("12-02", "late_usage", -1_500, None, NOVEMBER),
                ("12-02", "late_usage", 1_500, 5_500, None),
                ("12-02", "reversal", None, None, None),
                ("12-02", "adjustment", None, None, None),
                ("12-02", "day", 4_000, 9_500, None),
                ("12-03", "day", 1_700, 11_200, None),
            ]
            token = (await shop.one("select digits from tokens"))[-4:]
            assert [row.text for row in rows[1:]] == [
                f"Recharge at Station 17, token ending {token}",
                "Use of the day",
                "Late usage of November 2026: readings came after the days were closed",
                "Late usage of December 2026: readings came after the days were closed",
                "Recharge of 2026-12-01 reversed: sold to the wrong meter",
                "Correction: goodwill for a late visit",
                "Use of the day, not yet posted",
                "Use of the day so far, not yet posted",
            ]
            assert [row.credit_minor for row in rows if row.credit_minor] == [50_000, -50_000, 1_234]
            assert dict(statement.columns)["energy_1"] == "Energy, units 0-300"

    asyncio.run(story())


def test_statements_one_after_another_hand_the_balance_on(database_url: str) -> None:
    """Whatever day a period is cut at, posted or open, the first half closes with what the second opens with."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            whole = await statement_of(shop, NOVEMBER, None)
            for number in (0, 1, 15, 28, 29, 30, 31, 32):
                cut = NOVEMBER + number * ONE_DAY
                left = await statement_of(shop, NOVEMBER, cut)
                right = await statement_of(shop, cut + ONE_DAY, None)
                assert left.closing_minor == right.opening.balance_minor, cut
                rows = (*left.rows, *right.rows)
                assert [row.balance_minor for row in rows] == [row.balance_minor for row in whole.rows]
                assert [row.month_wh for row in rows] == [row.month_wh for row in whole.rows]

    asyncio.run(story())


def test_closing_the_open_days_changes_only_that_they_are_posted(database_url: str) -> None:
    """An open day is shown as closing it books it."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            before = await statement_of(shop, NOVEMBER, DECEMBER + ONE_DAY)
            await close(shop, DECEMBER + ONE_DAY)
            after = await statement_of(shop, NOVEMBER, DECEMBER + ONE_DAY)
            assert after.totals == before.totals
            assert after.closing_minor == before.closing_minor
            assert [row.posted for row in before.rows].count(False) == 1
            assert all(row.posted for row in after.rows)

    asyncio.run(story())


def test_every_form_prints_the_same_figures(database_url: str) -> None:
    """CSV, text and HTML carry the closing balance of the JSON, each under its own media type."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            query = "?from=2026-11-28&to=2026-12-03&format="
            answer = (await shop.get(path(shop, query + "json"), "engineer")).json()
            assert_adds_up(answer)
            closing = answer["closing_balance"]
            printed = {form: await shop.get(path(shop, query + form), "engineer") for form in ("csv", "text", "html")}
            types = {form: response.headers["content-type"].split(";")[0] for form, response in printed.items()}
            assert types == {"csv": "text/csv", "text": "text/plain", "html": "text/html"}
            _, *rows = csv.reader(io.StringIO(printed["csv"].text, newline=""), strict=True)
            assert len(rows) == len(answer["rows"]) + 3
            assert closing in rows[-1]
            assert "attachment" in printed["csv"].headers["content-disposition"]
            assert f"= closing balance {closing}" in printed["text"].text
            assert max(map(len, printed["text"].text.splitlines())) <= 100
            assert printed["html"].text.count("<tr") == len(answer["rows"]) + 4
            assert "default-src 'none'" in printed["html"].headers["content-security-policy"]

    asyncio.run(story())


def test_statement_defaults_to_the_month_to_date(database_url: str) -> None:
    """Without days it begins with the month of the clock and ends with the running balance."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            answer = (await shop.get(path(shop), "consumer")).json()
            assert (answer["from"], answer["to"]) == ("2026-12-01", "2026-12-04")
            assert answer["closing_balance_minor"] == (await view_of(shop)).balance_minor(CALENDAR)
            month = (await shop.get(path(shop, "?to=2026-11-30"), "consumer")).json()
            assert (month["from"], month["closing_balance"]) == ("2026-11-01", answer["opening_balance"])

    asyncio.run(story())


def test_example_of_the_interface_is_an_answer_that_adds_up() -> None:
    """What the OpenAPI document shows has the form of an answer, and its columns sum."""
    StatementAnswer.model_validate(STATEMENT_EXAMPLE)
    assert_adds_up(dict(STATEMENT_EXAMPLE))


def test_statement_belongs_to_its_consumer_and_engineers(database_url: str) -> None:
    """Vendors, nobody, and the consumer of another account are refused; an engineer learns that there is none."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            other = await add_home(shop.conn, "PB000999", "100200999", sts=None)
            shop.keys["neighbour"] = await issue_api_key(shop.conn, Role.CONSUMER, account_id=other.account_id)
            for what in ("statement", "balance?at=2026-11-01T00:00:00Z"):
                asked = f"/v1/accounts/{shop.home.number}/{what}"
                assert (await shop.http.get(asked)).status_code == 401
                for who in ("vendor", "neighbour"):
                    assert refusal(await shop.get(asked, who)) == (403, "not_allowed")
                for who in ("consumer", "engineer"):
                    assert (await shop.get(asked, who)).status_code == 200
                missing = f"/v1/accounts/nobody/{what}"
                assert refusal(await shop.get(missing, "engineer")) == (404, "unknown_account")
                assert refusal(await shop.get(missing, "consumer")) == (403, "not_allowed")

    asyncio.run(story())


def refusal(response: Any) -> tuple[int, str]:  # An httpx response, whose JSON is of any shape.
    """Return status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ("statement?from=2026-11-31", 400, "bad_period"),
        ("statement?from=2026-11-20&to=2026-11-19", 400, "bad_period"),
        ("statement?from=0001-01-01&to=0001-01-02", 400, "bad_period"),
        ("statement?to=9999-12-31", 400, "bad_period"),
        ("statement?from=2999-01-01", 400, "bad_period"),
        ("statement?from=2025-01-01&to=2026-11-21", 422, "period_too_long"),
        ("statement?from=1970-01-01", 422, "period_too_long"),
        ("statement?from=20261101", 400, "malformed"),
        ("statement?from=yesterday", 400, "malformed"),
        ("statement?format=pdf", 400, "malformed"),
        ("statement?since=2026-11-01", 400, "malformed"),
        ("balance", 400, "malformed"),
        ("balance?at=2026-11-01", 400, "malformed"),
        ("balance?at=2026-11-01T00:00:00", 400, "malformed"),
        ("balance?at=2026-02-30T00:00:00Z", 400, "bad_instant"),
        ("balance?at=2026-11-01T25:00:00Z", 400, "bad_instant"),
        ("balance?at=2026-11-21T12:00:01Z", 400, "bad_instant"),
        ("balance?at=0001-01-01T00:00:00%2B14:00", 400, "bad_instant"),
    ],
)
def test_days_and_instants_that_are_none_are_refused(database_url: str, asked: str, status: int, code: str) -> None:
    """Each wrong question gets one stable code, never a fault of the server."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            response = await shop.get(f"/v1/accounts/{shop.home.number}/{asked}", "engineer")
            assert refusal(response) == (status, code)

    asyncio.run(story())


def test_statement_of_more_rows_than_one_holds_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account with more bookings than the limit is answered with a refusal, not with a part of them."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            shop.clock.now_ms = to_ms(datetime.now(UTC))
            monkeypatch.setattr(statements, "STATEMENT_ROWS_MAX", 2)
            for amount_minor in (1, 2):
                await book(shop, JournalKind.ADJUSTMENT, amount_minor)
            assert (await shop.get(path(shop), "engineer")).status_code == 200
            await book(shop, JournalKind.ADJUSTMENT, 3)
            assert refusal(await shop.get(path(shop), "engineer")) == (422, "period_too_long")

    asyncio.run(story())


def test_statement_is_read_only_and_leaves_the_connection_as_it_was(database_url: str) -> None:
    """The snapshot is one transaction of its own; the pooled connection writes again after it."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await statement_of(shop, NOVEMBER, None)
            assert await shop.one("show transaction_isolation") == "read committed"
            await book(shop, JournalKind.ADJUSTMENT, 100)
            async with shop.conn.transaction():
                await shop.conn.execute(statements.sql("statement_snapshot"))
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    async with shop.conn.transaction():
                        await shop.conn.execute("delete from rechecks")

    asyncio.run(story())


async def balance_at(shop: Shop, at: datetime, who: str = "consumer") -> dict[str, Any]:
    """Read the home's balance at an instant, over HTTP."""
    response = await shop.get(path(shop, f"?at={at:%Y-%m-%dT%H:%M:%S}Z", "balance"), who)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    PastBalanceAnswer.model_validate(answer)
    assert answer["balance_minor"] == answer["booked_minor"] - answer["charged_minor"]
    return answer


def charge_of(view: AccountView, day: date, november_wh: int, december_wh: int = 0) -> int:
    """Bill November and December so far, up to and including a day, without a journal."""
    november, december = view.terms.part_at(NOVEMBER), view.terms.part_at(DECEMBER)
    charged = total(
        part_lines(november, before_wh=0, energy_wh=november_wh, zone_wh=(), through_day=min(day, november.last))
    )
    if day >= DECEMBER:
        charged += total(part_lines(december, before_wh=0, energy_wh=december_wh, zone_wh=(), through_day=day))
    return charged


def test_past_balance_is_money_booked_less_the_bill_so_far_as_known_today(database_url: str) -> None:
    """In closed days, at midnights, in open days and after the last reading; November as its late reading tells it."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            view = await view_of(shop)
            november_wh = 29 * DAY_WH + 2_500
            expected = [
                (local(NOVEMBER - ONE_DAY, 12), 0, 0),
                (local(NOVEMBER), 0, charge_of(view, NOVEMBER, 0)),
                (local(NOVEMBER, 12), 0, charge_of(view, NOVEMBER, 2_000)),
                (local(NOVEMBER + 9 * ONE_DAY, 6), 0, charge_of(view, NOVEMBER + 9 * ONE_DAY, 37_000)),
                (local(DECEMBER - ONE_DAY, 12), 0, charge_of(view, DECEMBER - ONE_DAY, 29 * DAY_WH + 1_250)),
                (local(DECEMBER), 0, charge_of(view, DECEMBER, november_wh)),
                (local(DECEMBER, 12), 0, charge_of(view, DECEMBER, november_wh, 2_750)),
                (local(DECEMBER + ONE_DAY), 50_000, charge_of(view, DECEMBER + ONE_DAY, november_wh, 5_500)),
                (local(DECEMBER + ONE_DAY, 12), 1_234, charge_of(view, DECEMBER + ONE_DAY, november_wh, 7_500)),
                (local(DECEMBER + 2 * ONE_DAY, 5), 1_234, charge_of(view, DECEMBER + 2 * ONE_DAY, november_wh, 10_350)),
            ]
            for at, booked_minor, charged_minor in expected:
                found = await balance_at(shop, at)
                assert (found["booked_minor"], found["charged_minor"]) == (booked_minor, charged_minor), at

    asyncio.run(story())


def test_past_balance_at_money_time_and_later_is_the_running_balance(database_url: str) -> None:
    """What the account view shows is the balance of its money time, and of every instant since."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            account = (await shop.get(f"/v1/accounts/{shop.home.number}", "consumer")).json()
            for at in (datetime.fromisoformat(account["money_time"]), NOW):
                found = await balance_at(shop, at)
                assert (found["balance"], found["known_until"]) == (account["balance"], account["money_time"])
            await close(shop, DECEMBER + 2 * ONE_DAY)
            closed = await balance_at(shop, NOW)
            assert closed["balance_minor"] == (await view_of(shop)).balance_minor(CALENDAR)

    asyncio.run(story())


def test_past_balance_does_not_depend_on_what_is_closed(database_url: str) -> None:
    """Closing days moves where the charge is read from, not the charge, whichever zone the instant is written in."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            shop.clock.now_ms = to_ms(NOW)
            for number in range(1, 40):
                await shop.read(local(NOVEMBER, hours=18 * number), OPENING_WH + 3_333 * number)
            instants = [local(NOVEMBER, hours=7 * number) for number in range(1, 100)]
            before = [await past_balance(shop, at) for at in instants]
            for until in (NOVEMBER, NOVEMBER + 10 * ONE_DAY, NOVEMBER + 27 * ONE_DAY):
                await close(shop, until)
                assert [await past_balance(shop, at) for at in instants] == before
            zoned = (await shop.get(path(shop, "?at=2026-11-05T10:00:00 05:30", "balance"), "consumer")).json()
            utc = (await shop.get(path(shop, "?at=2026-11-05T04:30:00Z", "balance"), "consumer")).json()
            assert zoned["balance"] == utc["balance"]
            assert zoned["at"] == "2026-11-05T10:00:00.000+05:30"

    asyncio.run(story())


async def past_balance(shop: Shop, at: datetime) -> int:
    """Read the home's balance at an instant."""
    return (await read_balance_at(shop.conn, shop.home.account_id, CALENDAR, at=at)).balance_minor


def test_statement_of_a_silent_account_shows_its_fixed_charge_only(database_url: str) -> None:
    """An account whose meter was never heard closes day by day without energy, and is marked so."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await close(shop, NOVEMBER + 2 * ONE_DAY)
            statement = await statement_of(shop, NOVEMBER, NOVEMBER + 3 * ONE_DAY)
            assert [row.energy_wh for row in statement.rows] == [0, 0, 0, 0]
            assert [row.posted for row in statement.rows] == [True, True, True, False]
            assert "meter not heard" in statement.rows[0].text
            assert set(statement.totals.lines) <= {"fixed", "duty"}
            assert format_minor(statement.closing_minor).startswith("-")

    asyncio.run(story())


BY_HOURS = """
[zones]
[[zones.zone]]
name = "evening"
surcharge_milli_per_kwh = 200_000
[[zones.zone]]
name = "rest"
rebate_milli_per_kwh = 100_000
[[zones.hours]]
zone = "evening"
from = "18:00"
to = "22:00"
[[zones.hours]]
zone = "rest"
from = "22:00"
to = "18:00"
"""


async def change_terms(shop: Shop, from_day: date) -> None:
    """Put the home on a time-of-day tariff and a greater load from a day on."""
    document = builtin_documents()[TARIFF].replace(TARIFF, "by-hours") + BY_HOURS
    assert await add_tariff(shop.conn, document)
    await shop.conn.execute(
        "insert into assignments (account_id, from_day, tariff_id, category, load_w)"
        " values (%s, %s, 'by-hours', 'DS', 5000)",
        (shop.home.account_id, from_day),
    )


def test_statement_over_a_change_of_terms_adds_up_with_its_time_of_day_lines(database_url: str) -> None:
    """A month of two tariffs, closed or open anywhere: one column a line, and the past balance stays what it was."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            shop.clock.now_ms = to_ms(NOW)
            await change_terms(shop, NOVEMBER + 11 * ONE_DAY)
            for number in range(1, 60):
                await shop.read(local(NOVEMBER, hours=11 * number), OPENING_WH + 3_331 * number)
            instants = [local(NOVEMBER, hours=7 * number) for number in range(30, 92)]
            before = [await past_balance(shop, at) for at in instants]
            whole = await statement_of(shop, NOVEMBER, None)
            titles = dict(whole.columns)
            assert (titles["zone_evening"], titles["zone_rest"]) == ("Time of day, evening", "Time of day, rest")
            for number in (5, 10, 11, 17):
                await close(shop, NOVEMBER + number * ONE_DAY)
                closed = await statement_of(shop, NOVEMBER, None)
                assert (closed.totals, closed.closing_minor) == (whole.totals, whole.closing_minor)
                assert [row.balance_minor for row in closed.rows] == [row.balance_minor for row in whole.rows]
                assert [await past_balance(shop, at) for at in instants] == before
            assert_adds_up((await shop.get(path(shop, "?from=2026-11-05&to=2026-11-20"), "engineer")).json())

    asyncio.run(story())


def prepaid(database_url: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command on a test's database and check its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(database_url, Path(folder))
        return run_command("accounts", "statement", *arguments, environment=settings, status=status)


def test_command_prints_the_statement_of_the_interface(database_url: str) -> None:
    """The same figures on the command line, in each form; a wrong account or day is one line and status 2."""

    async def story() -> dict[str, Any]:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            answer: dict[str, Any] = (await shop.get(path(shop, "?from=2026-11-25&to=2026-12-03"), "engineer")).json()
            return answer

    answer = asyncio.run(story())
    asked = ("100200300", "--from", "2026-11-25", "--to", "2026-12-03")
    assert json.loads(prepaid(database_url, *asked, "--json").stdout) == answer
    assert json.loads(prepaid(database_url, *asked, "--format", "json").stdout) == answer
    for form in ("text", "csv", "html"):
        assert answer["closing_balance"] in prepaid(database_url, *asked, "--format", form).stdout
    for wrong, says in (
        (("nobody",), "unknown_account"),
        (("100200300", "--from", "yesterday"), "expected YYYY-MM-DD"),
        (("100200300", "--from", "2025-01-01", "--to", "2026-11-01"), "period_too_long"),
    ):
        assert says in prepaid(database_url, *wrong, status=2).stderr
