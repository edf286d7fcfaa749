"""Floats and batches over HTTP: who may ask what, and what is answered."""

from __future__ import annotations

import asyncio
import csv
from datetime import timedelta
from typing import Any

import httpx
import pytest

from billing.calendar import from_ms
from db.vendors import set_limit
from tests.integration.vending_shop import CALENDAR, MASTER, Shop, open_shop
from vending.edges.key_desk import give_key, rotate_key
from vending.edges.keys import issue_api_key
from vending.roles import Role

pytestmark = pytest.mark.db

SLIP = {"vendor": "Station 17", "reference": "SBI/2026-77", "amount": "700.00", "by": "R. Singh"}


async def staffed(shop: Shop) -> None:
    """Give out keys of a cashier, an auditor, and the vendor's supervisor."""
    shop.keys["cashier"] = await issue_api_key(shop.conn, Role.CASHIER, master=MASTER)
    shop.keys["auditor"] = await issue_api_key(shop.conn, Role.AUDITOR, master=MASTER)
    shop.keys["supervisor"] = await issue_api_key(shop.conn, Role.SUPERVISOR, vendor_id=shop.vendor_id, master=MASTER)


async def post(shop: Shop, path: str, body: dict[str, Any], who: str) -> httpx.Response:
    """Send a body as a caller."""
    return await shop.http.post(path, json=body, headers=shop.headers(who))


async def answered(shop: Shop, path: str, who: str = "vendor") -> dict[str, Any]:
    """Read what is there."""
    response = await shop.get(path, who)
    assert response.status_code == 200, response.text
    return dict(response.json())


def code(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


def test_vendor_sells_what_was_paid_in_for_it(database_url: str) -> None:
    """A deposit by the cashier is sold from; its receipt reads the same for ever; a copy books nothing."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await staffed(shop)
            await set_limit(shop.conn, shop.vendor_id, 0, by="A. Kaur", reason="prepaid")
            assert code(await shop.vend("m-1", "500.00")) == (402, "vendor_credit")
            first = await post(shop, "/v1/float/deposits", SLIP, "cashier")
            again = await post(shop, "/v1/float/deposits", SLIP, "cashier")
            assert first.status_code == 200, first.text
            assert (first.json(), first.json()["balance_after"]) == (again.json(), "700.00")
            assert (await shop.vend("m-2", "500.00")).status_code == 200
            for who in ("vendor", "cashier", "auditor"):
                assert await answered(shop, "/v1/float/deposits/SBI/2026-77", who) == first.json()
            assert code(await shop.get("/v1/float/deposits/SBI/2026-77", "other_vendor")) == (404, "unknown_deposit")
            found = await answered(shop, "/v1/float")
            assert found == await answered(shop, "/v1/float?vendor=Station 17", "cashier")
            assert (found["balance"], found["credit_limit"], found["available"]) == ("200.00", "0.00", "200.00")
            changed = await post(shop, "/v1/float/deposits", SLIP | {"amount": "700.01"}, "cashier")
            assert code(changed) == (409, "reference_reused")
            back = {"reason": "cheque not honoured"}
            for _ in range(2):
                returned = await post(shop, "/v1/float/deposit-returns/SBI/2026-77", back, "cashier")
                assert (returned.status_code, returned.json()["taken_back"]) == (200, True)
            assert (await answered(shop, "/v1/float"))["balance"] == "-500.00"
            acts = await shop.one(
                "select array_agg(outcome order by id) from audit_trail where act like 'POST /v1/float/%%'"
            )
            assert acts == ["done", "repeated", "reference_reused", "done", "repeated"]

    asyncio.run(story())


# Who asks what, and how it is refused.
REFUSED = [
    ("vendor", "post", "/v1/float/deposits", (403, "not_allowed")),
    ("supervisor", "post", "/v1/float/deposits", (403, "not_allowed")),
    ("auditor", "post", "/v1/float/deposits", (403, "not_allowed")),
    ("engineer", "get", "/v1/float?vendor=Station 17", (403, "not_allowed")),
    ("consumer", "get", "/v1/float", (403, "not_allowed")),
    ("cashier", "get", "/v1/float", (400, "vendor_required")),
    ("cashier", "get", "/v1/float?vendor=Nobody", (404, "unknown_vendor")),
    ("cashier", "get", "/v1/float?vendor=Coupons", (404, "unknown_vendor")),
    ("cashier", "post", "/v1/batches/sales/1/end", (403, "not_allowed")),
    ("vendor", "post", "/v1/batches/sales/1/end", (403, "not_allowed")),
    ("supervisor", "post", "/v1/batches/sales/2/end", (404, "unknown_batch")),
    ("vendor", "get", "/v1/batches/sales/2", (404, "unknown_batch")),
    ("vendor", "get", "/v1/batches/bank/open?of=T1", (400, "bad_scope_of_batch")),
    ("vendor", "get", "/v1/batches/till/open", (400, "malformed")),
    ("vendor", "get", "/v1/float/statement?from=2026-02-30", (400, "bad_period")),
    ("vendor", "get", "/v1/float/statement?from=2026-11-02&to=2026-11-01", (400, "bad_period")),
    ("vendor", "get", "/v1/float/days/9999-12-31", (400, "bad_period")),
]


def test_what_a_caller_may_not_is_refused(database_url: str) -> None:
    """Each refusal has its status and code."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await staffed(shop)
            for who, method, path, expected in REFUSED:
                body = SLIP if path.endswith("deposits") else {}
                response = await (post(shop, path, body, who) if method == "post" else shop.get(path, who))
                assert code(response) == expected, f"{who} {method} {path}"

    asyncio.run(story())


def test_day_of_a_station_from_start_to_statement(database_url: str) -> None:
    """Sales are totalled while the batch is open; ended, its report is the same in every form and on every reprint."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await staffed(shop)
            today = CALENDAR.day_of(int(await shop.one("select (extract(epoch from now()) * 1000)::bigint")))
            started = await post(shop, "/v1/batches/shift/start", {"of": "Asha", "by": "Asha"}, "supervisor")
            assert (started.status_code, started.json()["started_by"]) == (200, "Asha")
            for number, tender in enumerate(("cash", "upi", "cash")):
                body = {
                    "message_id": f"m-{number}",
                    "meter": shop.home.serial,
                    "amount": "100.50",
                    "tender": tender,
                    "terminal": "T1",
                    "operator": "Asha",
                }
                assert (await post(shop, "/v1/vends", body, "vendor")).status_code == 200
            reports = (await answered(shop, "/v1/batches?terminal=T1&operator=Asha"))["batches"]
            assert [each["kind"] for each in reports] == ["sales", "shift", "bank"]
            assert {each["totals"]["net"] for each in reports} == {"301.50"}
            ended = await post(shop, "/v1/batches/sales/1/end", {"of": "T1", "by": "Meena"}, "supervisor")
            assert (ended.json()["state"], ended.json()["ended_by"]) == ("ended", "Meena")
            assert ended.json()["totals"]["sales"] == [
                {"tender": "cash", "count": 2, "amount": "201.00", "amount_minor": 20_100},
                {"tender": "upi", "count": 1, "amount": "100.50", "amount_minor": 10_050},
            ]
            again = await post(shop, "/v1/batches/sales/1/end", {"of": "T1", "by": "another"}, "supervisor")
            assert again.json() == ended.json() == await answered(shop, "/v1/batches/sales/1?of=T1")
            assert (await answered(shop, "/v1/batches/sales/open?of=T1"))["totals"]["sales"] == []
            listed = (await answered(shop, "/v1/batches/sales/ended"))["batches"]
            assert [(each["of"], each["number"]) for each in listed] == [("T1", 1)]
            printed = await shop.get("/v1/batches/sales/1?of=T1&format=text")
            assert "201.00" in printed.text
            assert max(map(len, printed.text.splitlines())) <= 48
            page = await shop.get("/v1/batches/sales/1?of=T1&format=html&lang=pa")
            assert (page.headers["content-language"], "301.50" in page.text) == ("pa", True)
            for path in ("batches/bank/open?", "batches/shift/1?of=Asha&", f"float/days/{today}?"):
                assert "301.50" in (await shop.get(f"/v1/{path}format=text")).text
            day = await answered(shop, f"/v1/float/days/{today}")
            assert (day["opening"], day["totals"]["net"], day["closing"]) == ("0.00", "301.50", "-301.50")
            assert [each["terminal"] for each in day["terminals"]] == ["T1"]
            query = f"/v1/float/statement?from={today}&to={today}"
            statement = await answered(shop, query)
            assert [each["reference"] for each in statement["entries"]] == ["m-0", "m-1", "m-2"]
            assert (await answered(shop, f"{query}&after=1"))["opening_minor"] == -10_050
            rows = list(csv.DictReader((await shop.get(f"{query}&format=csv")).text.splitlines()))
            assert [row["balance"] for row in rows] == ["0.00", "-100.50", "-201.00", "-301.50", "-301.50"]
            assert {row["account"] for row in rows[1:-1]} == {shop.home.number}

    asyncio.run(story())


def test_shop_of_one_key_counts_its_own_day_until_it_has_a_second_one(database_url: str) -> None:
    """A vendor's only key ends its batches, through a rotation too; with another key in force a supervisor has to."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            # Station 18 has one key and nobody to supervise.
            started = await post(shop, "/v1/batches/bank/start", {"by": "Meena"}, "other_vendor")
            assert (started.status_code, started.json()["started_by"]) == (200, "Meena")
            old, noon = shop.keys["other_vendor"].key_id, from_ms(shop.clock())
            shop.keys["new"] = await rotate_key(shop.conn, MASTER, old, overlap=timedelta(hours=1), by="x", now=noon)
            for who in ("other_vendor", "new"):
                ended = await post(shop, "/v1/batches/bank/1/end", {"by": "Meena"}, who)
                assert (ended.status_code, ended.json()["state"]) == (200, "ended")
            shop.keys["till"] = await give_key(shop.conn, MASTER, Role.VENDOR, vendor="Station 18", by="x")
            await staffed(shop)
            for who in ("new", "till", "vendor", "cashier"):
                assert code(await post(shop, "/v1/batches/bank/2/end", {}, who)) == (403, "not_allowed"), who

    asyncio.run(story())
