"""The consumer's own facts over HTTP: equal to the statement to the paisa, bound to one account, paged, kept by tag."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from billing.calendar import to_ms
from billing.journals import JournalKind
from billing.notices import Recharged
from billing.supply_rule_document import builtin_supply_documents
from db.notices import write_notice
from db.supply_rules import add_supply_rules
from tests.integration.test_statement import DECEMBER, NOVEMBER, ONE_DAY, book, close, local, tell_story
from tests.integration.test_vending_edges import served
from tests.integration.vending_shop import CALENDAR, Shop, add_home, open_shop
from vending.edges.consumer_models import (
    SUMMARY_EXAMPLE,
    DaysAnswer,
    MonthsAnswer,
    NoticesAnswer,
    RechargesAnswer,
    SummaryAnswer,
    SupplyHistoryAnswer,
    ThresholdsAnswer,
)
from vending.edges.keys import Role, issue_api_key

pytestmark = pytest.mark.db

FACTS: dict[str, type[BaseModel]] = {
    "summary": SummaryAnswer,
    "daily": DaysAnswer,
    "months": MonthsAnswer,
    "recharges": RechargesAnswer,
    "notices": NoticesAnswer,
    "thresholds": ThresholdsAnswer,
    "supply-history": SupplyHistoryAnswer,
}


async def facts(shop: Shop, what: str, query: str = "", who: str = "consumer") -> Any:  # JSON of the route's shape.
    """Read facts of the home's account as its consumer; their form is checked."""
    whose = "me" if who == "consumer" else shop.home.number
    response = await shop.get(f"/v1/consumer/{whose}/{what}{query}", who)
    assert response.status_code == 200, response.text
    answer = response.json()
    FACTS[what].model_validate(answer)
    return answer


async def statement(shop: Shop, query: str = "") -> Any:  # JSON of the statement's shape.
    """Read the home's statement as its consumer."""
    return (await shop.get(f"/v1/accounts/{shop.home.number}/statement{query}", "consumer")).json()


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


def test_summary_says_what_account_and_statement_say(database_url: str) -> None:
    """Balance, today, yesterday, the month's energy and each of its lines are those of the other two answers."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            summary = await facts(shop, "summary")
            account = (await shop.get(f"/v1/accounts/{shop.home.number}", "consumer")).json()
            same = ("balance", "money_time", "latest_reading_at", "today", "emergency_credit", "earlier_arrears")
            assert {name: summary[name] for name in same} == {name: account[name] for name in same}
            assert {name: summary["supply"][name] for name in account["supply"]} == account["supply"]
            assert summary["last_recharge"] == account["last_recharge"]
            rows = (await statement(shop))["rows"]
            yesterday = next(row for row in rows if (row["date"], row["kind"]) == ("2026-12-02", "day"))
            assert summary["yesterday"]["charge"] == yesterday["charge"]
            assert summary["month"]["energy_wh"] == rows[-1]["month_energy_wh"]
            own = [row for row in rows if row["charge"] is not None and row["of_month"] in (None, "2026-12")]
            for line in summary["month"]["lines"]:
                booked = [each["amount_minor"] for row in own for each in row["lines"] if each["line"] == line["line"]]
                assert sum(booked) == line["amount_minor"]
            totals = (await statement(shop))["totals"]
            month = summary["month"]
            assert month["charge_minor"] + month["earlier_charge_minor"] == totals["charge_minor"]
            assert month["energy_wh"] + month["earlier_energy_wh"] == totals["energy_wh"]
            assert (month["earlier_energy_wh"], month["recharged"]) == (-1_500, "500.00")

    asyncio.run(story())


def test_days_add_up_to_the_statement_of_the_same_days(database_url: str) -> None:
    """Charge, energy, recharges and other money of each day are its statement rows, posted or open."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            answer = await facts(shop, "daily", "?from=2026-11-01&limit=400")
            assert [row["day"] for row in answer["days"]] == [
                str(NOVEMBER + number * ONE_DAY) for number in reversed(range(33))
            ]
            assert (answer["from"], answer["to"], answer["next"]) == ("2026-11-01", "2026-12-03", None)
            told = await statement(shop, "?from=2026-11-01&to=2026-12-03")
            for day in answer["days"]:
                rows = [row for row in told["rows"] if row["date"] == day["day"]]
                assert day["charge_minor"] + day["later_charge_minor"] == sum(row["charge_minor"] or 0 for row in rows)
                assert day["energy_wh"] + day["later_energy_wh"] == sum(row["energy_wh"] or 0 for row in rows)
                assert day["recharged_minor"] + day["other_minor"] == sum(row["credit_minor"] or 0 for row in rows)
                assert day["posted"] == all(row["posted"] for row in rows)
            changed = sum(day["recharged_minor"] + day["other_minor"] for day in answer["days"])
            charged = sum(day["charge_minor"] + day["later_charge_minor"] for day in answer["days"])
            assert changed - charged == told["closing_balance_minor"] - told["opening_balance_minor"]

    asyncio.run(story())


def test_months_are_bills_as_known_today_and_add_up_to_the_balance(database_url: str) -> None:
    """November's row has the late reading's energy taken back; all months together are the balance."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            answer = await facts(shop, "months")
            december, november = answer["months"]
            assert (november["month"], november["energy_wh"], november["open_days"]) == ("2026-11", 118_500, 0)
            assert (december["month"], december["energy_wh"], december["open_days"]) == ("2026-12", 11_200, 2)
            for month in answer["months"]:
                assert sum(line["amount_minor"] for line in month["lines"]) == month["charge_minor"]
            credit = sum(month["recharged_minor"] + month["other_minor"] for month in answer["months"])
            charge = sum(month["charge_minor"] for month in answer["months"])
            summary = await facts(shop, "summary")
            assert credit - charge == summary["balance_minor"]
            assert december["charge"] == summary["month"]["charge"]
            assert december["lines"] == summary["month"]["lines"]

    asyncio.run(story())


def test_pages_of_days_and_months_leave_nothing_out_and_repeat_nothing(database_url: str) -> None:
    """Following `next` with any size of page yields the same rows as one page."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            for what, rows, limits in (("daily", "days", (1, 7, 32, 33, 34)), ("months", "months", (1, 2))):
                whole = (await facts(shop, what, "?limit=400" if what == "daily" else ""))[rows]
                for limit in limits:
                    found, last = [], ""
                    while True:
                        page = await facts(shop, what, f"?limit={limit}{last}")
                        found += page[rows]
                        if page["next"] is None:
                            break
                        last = f"&to={page['next']}"
                    assert found == whole, (what, limit)

    asyncio.run(story())


def test_day_that_money_time_has_not_reached_has_money_and_no_use(database_url: str) -> None:
    """A recharge after the meter's last word stands under its day; energy and charge of it are not known."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            bought = datetime.fromisoformat((await facts(shop, "recharges"))["recharges"][0]["at"])
            today = CALENDAR.day_of(to_ms(bought)) + 3 * ONE_DAY
            await book(shop, JournalKind.ADJUSTMENT, 500)
            await shop.conn.execute("alter table journals disable trigger append_only")
            await shop.conn.execute(
                "update journals set booked_at = %s where id = (select max(id) from journals)", (local(today, 9),)
            )
            await shop.conn.execute("alter table journals enable trigger append_only")
            day = (await facts(shop, "daily", f"?from={today}&to={today}"))["days"][0]
            assert (day["energy_wh"], day["charge"], day["quality"], day["other"]) == (None, None, None, "5.00")

    asyncio.run(story())


def test_forecast_names_the_day_that_credit_at_present_use_ends(database_url: str) -> None:
    """Seven complete days of 4 kWh: the mean of their charges, days down, and the earlier day."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await tell_story(shop)
            before = await facts(shop, "summary")
            used = [day for day in (await facts(shop, "daily"))["days"] if day["posted"] and day["quality"] != "unread"]
            week = sum(day["charge_minor"] for day in used[:7])
            assert before["average"] == {
                "days": 7,
                "energy_wh": sum(day["energy_wh"] for day in used[:7]) // 7,
                "charge_minor": -(-week // 7),
                "charge": f"{-(-week // 7) // 100}.{-(-week // 7) % 100:02d}",
            }
            assert before["forecast"] == {"days_left": 0, "ends_on": before["today"]["day"]}
            await shop.set_balance(week + 1)
            after = await facts(shop, "summary")
            assert after["forecast"]["days_left"] == 7
            assert after["forecast"]["ends_on"] == str(DECEMBER + 9 * ONE_DAY)

    asyncio.run(story())


def test_forecast_of_a_young_account_is_not_knowable(database_url: str) -> None:
    """With two complete days there is neither mean nor forecast, and nothing to warn by days."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in (1, 2):
                await shop.read(local(NOVEMBER + number * ONE_DAY), 5_000 + number * 4_000)
            await close(shop, NOVEMBER + ONE_DAY)
            summary = await facts(shop, "summary")
            assert (summary["average"], summary["forecast"]) == (None, None)
            await shop.read(local(NOVEMBER + 3 * ONE_DAY), 17_000)
            await close(shop, NOVEMBER + 2 * ONE_DAY)
            summary = await facts(shop, "summary")
            assert (summary["average"]["days"], summary["average"]["energy_wh"]) == (3, 4_000)
            assert summary["forecast"]["days_left"] == 0

    asyncio.run(story())


def test_supply_and_its_history_say_why_in_plain_words(database_url: str) -> None:
    """Cut off, confirmed, restored by a recharge: each step has its reason, cause and state."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await facts(shop, "summary"))["supply"]["why"]["code"] == "still_off"
            await shop.set_balance(50_000)
            await shop.confirm_orders()
            summary = await facts(shop, "summary")
            assert (summary["supply"]["why"]["code"], summary["supply"]["restores_with"]) == ("credit", "0.00")
            await shop.set_balance(-12_345)
            cut = (await facts(shop, "summary"))["supply"]
            assert (cut["desired"], cut["reported"], cut["waiting"]) == ("off", "on", True)
            assert (cut["why"]["code"], cut["restores_with"]) == ("still_off", "123.46")
            assert "without a fee" in cut["why"]["text"]
            await shop.confirm_orders()
            assert (await shop.vend("m-1", "123.45")).status_code == 200
            assert (await facts(shop, "summary"))["supply"]["restores_with"] == "0.01"
            assert (await shop.vend("m-2", "10.00")).status_code == 200
            history = await facts(shop, "supply-history")
            assert history["reported"]["supply"] == "off"
            shown = [(each["supply"], each["cause"], each["state"]) for each in history["orders"]]
            assert shown[:2] == [("on", "vend", "pending"), ("off", "adjustment", "confirmed")]
            assert history["orders"][0]["cause_text"] == "a recharge was received"
            await shop.conn.execute(
                "update supply_orders set waits_for = 'transport', next_try_at = 'infinity' where state = 'pending'"
            )
            history = await facts(shop, "supply-history")
            assert history["orders"][0]["state_text"] == "waits for a way to the meter"
            page = await facts(shop, "supply-history", "?limit=1")
            rest = await facts(shop, "supply-history", f"?before={page['next']}")
            assert page["orders"] + rest["orders"] == history["orders"]

    asyncio.run(story())


def test_supply_reason_follows_mode_exemption_and_hold(database_url: str) -> None:
    """What keeps supply on is said before what the balance says."""

    async def story() -> None:
        async with open_shop(database_url) as shop:

            async def code() -> str:
                return str((await facts(shop, "summary"))["supply"]["why"]["code"])

            await shop.conn.execute(
                "insert into supply_holds (account_id, reason, asked_by, asked_at, approved_by, approved_at)"
                " values (%s, 'medical', 'A', now(), 'B', now())",
                (shop.home.account_id,),
            )
            assert await code() == "held"
            await shop.conn.execute("update accounts set exempt_reason = 'hospital'")
            assert await code() == "exempt_account"
            await shop.conn.execute("update accounts set mode = 'postpaid', postpaid_approval = 'x'")
            assert await code() == "postpaid"
            assert (await facts(shop, "summary"))["forecast"] is None

    asyncio.run(story())


def test_supply_in_protected_hours_says_until_when(database_url: str) -> None:
    """In happy hours from Saturday 17:30 supply stays on till Monday 11:00, and the recharge needed is said."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            text = builtin_supply_documents()["bihar"].replace("2026-01-01", "2020-01-01")
            await add_supply_rules(shop.conn, text, first_open_day=date(2020, 1, 1))
            await shop.set_balance(50_000)
            await shop.set_balance(-10_000)
            supply = (await facts(shop, "summary"))["supply"]
            assert (supply["desired"], supply["why"]["code"]) == ("on", "protected")
            assert supply["why"]["until"] == "2026-11-23T05:30:00.000+00:00"
            assert supply["restores_with"] == "100.01"

    asyncio.run(story())


def test_recharges_mask_their_tokens_for_all_but_the_consumer_who_asks(database_url: str) -> None:
    """Whole digits only with the consumer's own key and only when asked for, and then never kept by a browser."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in range(5):
                assert (await shop.vend(f"m-{number}", f"{100 + number}.00")).status_code == 200
            digits = await shop.one("select digits from tokens order by id desc limit 1")
            masked = await facts(shop, "recharges")
            assert masked["recharges"][0]["token"] == f"...{digits[-4:]}"
            assert masked["recharges"][0]["message_id"] == "m-4"
            assert (await facts(shop, "recharges", who="engineer")) == masked
            shown = await shop.get("/v1/consumer/me/recharges?show_tokens=true", "consumer")
            assert shown.json()["recharges"][0]["token"] == digits
            assert (shown.headers["cache-control"], "etag" in shown.headers) == ("no-store", False)
            path = f"/v1/consumer/{shop.home.number}/recharges?show_tokens=true"
            assert refusal(await shop.get(path, "engineer")) == (403, "not_allowed")
            assert (await shop.get(path, "consumer")).json() == shown.json()
            first = await facts(shop, "recharges", "?limit=2")
            second = await facts(shop, "recharges", f"?limit=3&before={first['next']}")
            assert first["recharges"] + second["recharges"] == masked["recharges"]
            assert second["next"] is None

    asyncio.run(story())


def test_recharge_row_shows_what_arrears_took_and_that_it_was_reversed(database_url: str) -> None:
    """The row has the full amount, the share of arrears, and the instant of the reversal."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute(
                "insert into account_dues (account_id, ledger, opened_on, total_minor, outstanding_minor, note)"
                " values (%s, 'arrears', '2026-11-01', 100000, 100000, 'old bills')",
                (shop.home.account_id,),
            )
            sold = (await shop.vend("m-1", "500.00")).json()
            assert sold["earlier_arrears_paid_minor"] > 0
            row = (await facts(shop, "recharges"))["recharges"][0]
            assert (row["amount"], row["earlier_arrears_paid"]) == ("500.00", sold["earlier_arrears_paid"])
            assert row["reversed_at"] is None
            vend_id = await shop.one("select id from journals where kind = 'vend'")
            await book(shop, JournalKind.REVERSAL, -50_000, "sold to the wrong meter", vend_id)
            assert (await facts(shop, "recharges"))["recharges"][0]["reversed_at"] is not None
            summary = await facts(shop, "summary")
            assert summary["earlier_arrears"] == sold["earlier_arrears_left"]

    asyncio.run(story())


def test_thresholds_show_the_amount_in_the_meter_first_and_then_the_others(database_url: str) -> None:
    """None at first; then the amount of the threshold route, and further wishes with the level in force for each."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await facts(shop, "thresholds"))["thresholds"] == []
            body = {"threshold": "100.00"}
            path = f"/v1/accounts/{shop.home.number}/threshold"
            await shop.http.put(path, json=body, headers=shop.headers("consumer"))
            answer = await facts(shop, "thresholds")
            (wish,) = answer["thresholds"]
            assert (wish["kind"], wish["amount"], wish["warns_at"]) == ("amount", "100.00", "100.00")
            assert (answer["low_alarm"], wish["rung"]) == (True, True)
            await shop.conn.execute(
                "insert into alarm_thresholds (account_id, n, kind, value, level_minor)"
                " values (%(id)s, 2, 'percent', 30, 15000), (%(id)s, 1, 'days', 5, null)",
                {"id": shop.home.account_id},
            )
            _, days, percent = (await facts(shop, "thresholds"))["thresholds"]
            assert (days["days"], days["warns_at"], days["rung"]) == (5, None, False)
            assert (percent["percent"], percent["warns_at"]) == (30, "150.00")

    asyncio.run(story())


def test_notices_come_latest_first_and_page_by_id(database_url: str) -> None:
    """Every notice once, whatever the size of the page."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in range(5):
                assert (await shop.vend(f"m-{number}", "100.00")).status_code == 200
            whole = await facts(shop, "notices", "?limit=100")
            ids = [told["id"] for told in whole["notices"]]
            assert ids == sorted(ids, reverse=True)
            assert [told["kind"] for told in whole["notices"]].count("recharged") == 5
            found, before = [], ""
            while True:
                page = await facts(shop, "notices", f"?limit=2{before}")
                found += page["notices"]
                if page["next"] is None:
                    break
                before = f"&before={page['next']}"
            assert found == whole["notices"]

    asyncio.run(story())


def test_notices_are_told_in_the_language_asked_for(database_url: str) -> None:
    """The same facts in three languages, English without one; a whole token stays out of the list."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            told = Recharged(amount_minor=12_345, balance_minor=67_890, token="01234567890123456789")
            await write_notice(shop.conn, shop.home.account_id, told)
            texts = {
                language: (await facts(shop, "notices", f"?language={language}"))["notices"][0]["text"]
                for language in ("en", "hi", "pa")
            }
            assert len(set(texts.values())) == 3
            assert all("123.45" in text and "678.90" in text for text in texts.values())
            assert not any("0123" in text for text in texts.values())
            assert (await facts(shop, "notices"))["notices"][0]["text"] == texts["en"]

    asyncio.run(story())


def test_answer_that_has_not_changed_is_304_by_its_tag(database_url: str) -> None:
    """The tag of an answer saves its body until something in it changes."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            tags = {}
            for what in FACTS:
                path = f"/v1/consumer/me/{what}"
                fresh = await shop.get(path, "consumer")
                tags[what] = {**shop.headers("consumer"), "If-None-Match": f'"other", W/{fresh.headers["etag"]}'}
                again = await shop.http.get(path, headers=tags[what])
                assert (again.status_code, again.content) == (304, b""), what
                assert again.headers["etag"] == fresh.headers["etag"]
                assert fresh.headers["cache-control"] == "private, no-cache"
            await shop.vend("m-1", "700.00")
            for what in ("summary", "months", "recharges", "notices", "thresholds", "supply-history"):
                assert (await shop.http.get(f"/v1/consumer/me/{what}", headers=tags[what])).status_code == 200, what

    asyncio.run(story())


def test_facts_belong_to_their_consumer_and_to_engineers(database_url: str) -> None:
    """Nobody, vendors and neighbours are refused, whether the account exists or not; `me` is a consumer's."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            other = await add_home(shop.conn, "PB000999", "100200999", sts=None)
            shop.keys["neighbour"] = await issue_api_key(shop.conn, Role.CONSUMER, account_id=other.account_id)
            for what in FACTS:
                own, me, none = (f"/v1/consumer/{whose}/{what}" for whose in (shop.home.number, "me", "nobody"))
                assert refusal(await shop.http.get(own)) == (401, "api_key_wrong")
                for path in (own, me, none):
                    assert refusal(await shop.get(path, "vendor")) == (403, "not_allowed")
                assert refusal(await shop.get(own, "neighbour")) == (403, "not_allowed")
                assert refusal(await shop.get(none, "neighbour")) == (403, "not_allowed")
                assert refusal(await shop.get(me, "engineer")) == (403, "not_allowed")
                assert refusal(await shop.get(none, "engineer")) == (404, "unknown_account")
                same = [(await shop.get(path, who)).json() for path, who in ((own, "engineer"), (own, "consumer"))]
                assert same == [(await shop.get(me, "consumer")).json()] * 2
                assert (await shop.get(me, "neighbour")).json()["account_number"] == "100200999"

    asyncio.run(story())


def test_facts_of_an_account_without_a_meter_are_those_that_need_none(database_url: str) -> None:
    """What was bought and told is still there; balance and days are not, and the refusal says why."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await shop.vend("m-1")).status_code == 200
            await shop.conn.execute("update installations set to_at = now()")
            for what in FACTS:
                response = await shop.get(f"/v1/consumer/me/{what}", "consumer")
                if what in ("recharges", "notices", "supply-history"):
                    assert response.status_code == 200, what
                else:
                    assert refusal(response) == (404, "unknown_account"), what
            assert (await facts(shop, "supply-history"))["reported"] is None

    asyncio.run(story())


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("daily?from=2026-11-31", "bad_period"),
        ("daily?from=2026-11-20&to=2026-11-19", "bad_period"),
        ("daily?to=9999-12-31", "bad_period"),
        ("daily?from=0001-01-01", "bad_period"),
        ("daily?from=yesterday", "malformed"),
        ("daily?limit=0", "malformed"),
        ("daily?limit=401", "malformed"),
        ("daily?since=2026-11-01", "malformed"),
        ("months?from=2026-13", "bad_period"),
        ("months?from=2026-11-01", "malformed"),
        ("months?limit=14", "malformed"),
        ("recharges?before=0", "malformed"),
        ("recharges?before=99999999999999999999", "malformed"),
        ("recharges?limit=101", "malformed"),
        ("recharges?show_tokens=maybe", "malformed"),
        ("notices?language=fr", "malformed"),
        ("supply-history?before=x", "malformed"),
    ],
)
def test_questions_that_are_none_are_refused(database_url: str, asked: str, code: str) -> None:
    """Each wrong question gets one stable code, never a fault of the server."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert refusal(await shop.get(f"/v1/consumer/me/{asked}", "consumer")) == (400, code)

    asyncio.run(story())


def test_days_before_the_opening_and_after_money_time_are_empty(database_url: str) -> None:
    """A span without an entry is an answer without rows, and has no next page."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for query in ("?to=2020-01-01", "?from=2030-01-01", "?from=2030-01-01&to=2030-12-31&limit=400"):
                answer = await facts(shop, "daily", query)
                assert (answer["days"], answer["next"]) == ([], None)
            assert (await facts(shop, "months", "?to=2020-01"))["months"] == []

    asyncio.run(story())


def test_example_of_the_summary_is_an_answer_that_adds_up() -> None:
    """What the OpenAPI document shows has the form of an answer, and the month's lines sum to its charge."""
    SummaryAnswer.model_validate(SUMMARY_EXAMPLE)
    month: Any = SUMMARY_EXAMPLE["month"]
    assert sum(line["amount_minor"] for line in month["lines"]) == month["charge_minor"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_examples_of_the_document_are_commands_that_work(database_url: str) -> None:
    """Every curl of docs/consumer-api.md gets JSON without an error from a real server."""
    document = (Path(__file__).resolve().parents[2] / "docs" / "consumer-api.md").read_text()
    (block,) = re.findall(r"```sh run\n(.*?)```", document, re.DOTALL)
    commands = block.strip().splitlines()

    async def story() -> None:
        async with open_shop(database_url) as shop, served(shop) as url:
            await tell_story(shop)
            environment = {
                "PATH": os.environ["PATH"],
                "API": url,
                "KEY": shop.keys["consumer"].header,
                "ENGINEER_KEY": shop.keys["engineer"].header,
            }
            for command in commands:
                child = await asyncio.create_subprocess_exec(
                    "sh", "-c", command, env=environment, stdout=asyncio.subprocess.PIPE
                )
                printed, _ = await child.communicate()
                assert child.returncode == 0, command
                assert json.loads(printed)["account_number"] == shop.home.number

    asyncio.run(story())
    assert len(commands) == len(FACTS) + 3


def test_openapi_describes_every_fact_with_its_refusals(database_url: str) -> None:
    """Each route names its answer and its refusals, and the summary has an example."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            document = (await shop.http.get("/openapi.json")).json()
            for what, answer in FACTS.items():
                responses = document["paths"][f"/v1/consumer/{{account}}/{what}"]["get"]["responses"]
                assert set(responses) >= {"200", "304", "401", "403", "404", "default"}
                assert responses["200"]["content"]["application/json"]["schema"]["$ref"].endswith(answer.__name__)
            (example,) = document["components"]["schemas"]["SummaryAnswer"]["examples"]
            assert example["month"] == SUMMARY_EXAMPLE["month"]

    asyncio.run(story())
