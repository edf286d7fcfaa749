"""Receipts over HTTP: the forms of one sale, how prints are counted, and what shows no token."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import psycopg
import pytest
from pydantic import TypeAdapter

from billing.money import parse_amount
from db.pool import APPLICATION_ROLE, connect
from tests.integration.vending_shop import Shop, open_shop
from vending.edges.receipt_models import AnyReceipt
from vending.slips.text import COLUMNS, cells

pytestmark = pytest.mark.db

AnyReceiptModel: TypeAdapter[AnyReceipt] = TypeAdapter(AnyReceipt)
MONEY = re.compile(r"(-?)Rs ([\d,]+\.\d{2})(?!\d)")


async def sold(shop: Shop, message_id: str, **more: object) -> dict[str, Any]:
    """Sell and return the answer."""
    body = {"message_id": message_id, "meter": shop.home.serial, "amount": "500.00", **more}
    response = await shop.http.post("/v1/vends", json=body, headers=shop.headers("vendor"))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def text_of(shop: Shop, message_id: str, query: str = "") -> str:
    """Print a receipt as text."""
    response = await shop.get(f"/v1/vends/{message_id}/receipt?format=text{query}")
    assert response.status_code == 200, response.text
    return response.text


def minors_in(value: Any) -> set[int]:  # JSON of any shape.
    """Return every amount of an answer, in minor units."""
    if isinstance(value, dict):
        own = {each for name, each in value.items() if name.endswith("_minor") and each is not None}
        return own.union(*(minors_in(each) for each in value.values()))
    return set().union(*(minors_in(each) for each in value)) if isinstance(value, list) else set()


def test_receipt_has_three_forms_of_one_sale_and_counts_what_is_printed(database_url: str) -> None:
    """JSON is the answer with what holds now and is no print; the first paper is the original, the next a duplicate."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(-12_000)
            sale = await sold(shop, "m-1", operator="Asha")
            read = (await shop.get("/v1/vends/m-1/receipt")).json()
            assert {name: read[name] for name in sale} == sale
            assert (read["printed"]["state"], read["printed"]["qr"], read["printed"]["prints"]) == (
                "released",
                sale["token"]["digits"],
                0,
            )
            assert read["printed"]["issued_local"].endswith("+05:30")
            text = await text_of(shop, "m-1")
            assert text.isascii()
            assert sale["token"]["grouped"].replace(" ", "  ") in text
            assert sale["receipt_number"] in text
            assert "DUPLICATE" not in text
            assert max(cells(line) for line in text.splitlines()) <= COLUMNS
            printed = [
                parse_amount(digits.replace(",", "")) * (-1 if sign else 1) for sign, digits in MONEY.findall(text)
            ]
            assert {50_000, -12_000, 38_000} <= set(printed) <= minors_in(sale)
            assert sum(each["amount_minor"] for each in sale["buys"]["steps"] + sale["buys"]["lines"]) <= 38_000
            assert sale["month"]["charged_minor"] == sum(each["amount_minor"] for each in sale["month"]["lines"])
            page = await shop.get("/v1/vends/m-1/receipt?format=html&lang=pa")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert (page.headers["content-language"], page.headers["cache-control"]) == ("pa", "no-store")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "\u0a28\u0a15\u0a32 1" in page.text
            shop.clock.now_ms += 60_000
            assert "DUPLICATE 2" in await text_of(shop, "m-1")
            again = (await shop.get("/v1/vends/m-1/receipt?format=json")).json()["printed"]
            assert (again["prints"], again["first_printed_at"], again["last_printed_at"]) == (
                3, "2026-11-21T12:00:00.000+00:00", "2026-11-21T12:01:00.000+00:00",
            )  # fmt: skip
            assert (await shop.get("/v1/vends/m-1")).json() == sale

    asyncio.run(story())


def test_receipt_is_negotiated_by_headers_and_a_poor_printer_gets_english(database_url: str) -> None:
    """Accept and Accept-Language choose where the query does not; ascii means English, without a drawn code."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await sold(shop, "m-1")

            async def form(query: str = "", **headers: str) -> tuple[str, str]:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                response = await shop.http.get(
                    f"/v1/vends/m-1/receipt{query}", headers={**shop.headers("vendor"), **named}
                )
                assert response.status_code == 200, response.text
                return response.headers["content-type"].partition(";")[0], response.headers["content-language"]

            assert await form() == ("application/json", "en")
            assert await form(accept="text/html, */*;q=0.1", accept_language="ta, hi-IN;q=0.9, pa;q=0.8") == (
                "text/html",
                "hi",
            )
            assert await form(accept="text/html;q=0, text/plain;q=0.2", accept_language="pa;q=x") == (
                "text/plain",
                "en",
            )
            assert await form("?format=text&lang=pa", accept="text/html", accept_language="hi") == ("text/plain", "pa")
            assert await form("?format=text&lang=pa&charset=ascii") == ("text/plain", "en")
            assert "\u2588" in await text_of(shop, "m-1", "&lang=pa&qr=true")
            assert (await text_of(shop, "m-1", "&lang=pa&qr=true&charset=ascii")).isascii()
            wrong = await shop.get("/v1/vends/m-1/receipt?format=pdf")
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "malformed")

    asyncio.run(story())


def test_prints_at_once_get_a_number_each_and_stay_for_ever(database_url: str) -> None:
    """Twenty at once are one original and nineteen duplicates; a process cannot take a print back."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await sold(shop, "m-1")
            texts = await asyncio.gather(*(text_of(shop, "m-1") for _ in range(20)))
            marks = sorted(int(found[1]) for text in texts if (found := re.search(r"DUPLICATE (\d+)", text)))
            assert marks == list(range(1, 20))
            async with await connect(database_url, application="process", role=APPLICATION_ROLE) as conn:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await conn.execute("delete from receipt_prints")

    asyncio.run(story())


def test_receipt_of_a_refusal_or_of_somebody_else_is_the_error(database_url: str) -> None:
    """A stored refusal is answered as it is and counts as no print; another vendor's sale is unknown."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await sold(shop, "m-1")
            refused = await shop.vend("m-2", meter="PB999")
            answered = await shop.get("/v1/vends/m-2/receipt?format=html")
            assert (answered.status_code, answered.json()) == (refused.status_code, refused.json())
            for who, message_id, status, code in (
                ("vendor", "m-3", 404, "unknown_vend"),
                ("other_vendor", "m-1", 404, "unknown_vend"),
                ("engineer", "m-1", 404, "unknown_vend"),
                ("consumer", "m-1", 403, "not_allowed"),
            ):
                response = await shop.get(f"/v1/vends/{message_id}/receipt?format=text", who)
                assert (response.status_code, response.json()["error"]["code"]) == (status, code), who
            assert await shop.count("receipt_prints") == 0

    asyncio.run(story())


def test_receipt_of_a_sale_that_may_be_taken_back_has_its_mark_and_no_token(database_url: str) -> None:
    """Held, under inquiry, reversed, cancelled before release: the state of the moment, in text and JSON."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await sold(shop, "m-1", release="on_confirm")
            digits = await shop.one("select digits from tokens")
            assert "NOT RELEASED YET" in await text_of(shop, "m-1")
            await shop.conn.execute("update vends set state = 'unknown'")
            assert "UNDER INQUIRY" in await text_of(shop, "m-1")
            await shop.conn.execute("update vends set state = 'reversed'")
            assert "REVERSED" in await text_of(shop, "m-1")
            await shop.conn.execute(
                "insert into vend_moves (vend_id, at, from_state, to_state, by)"
                " select id, now(), 'held', 'reversed', 'station' from vends"
            )
            assert "CANCELLED" in (text := await text_of(shop, "m-1"))
            assert digits not in text.replace(" ", "")
            read = await shop.get("/v1/vends/m-1/receipt")
            printed = read.json()["printed"]
            assert (printed["state"], printed["qr"], read.json()["token_withheld"]) == (
                "cancelled", None, "cancelled",
            )  # fmt: skip
            assert digits not in read.text.replace(" ", "")

    asyncio.run(story())


def test_receipts_of_what_is_no_purchase_are_read_by_who_asked_for_it(database_url: str) -> None:
    """Free issue, engineering token and key change of an engineer, fault report of a station; the set comes first."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            meter = shop.home.serial
            asked = {
                "i-1": ("engineer", "/v1/issues", {"meter": meter, "kind": "free_issue", "amount": "50.00"}),
                "e-1": ("engineer", f"/v1/meters/{meter}/engineering-tokens", {"kind": "power_limit", "value": 3_000}),
                "k-1": ("engineer", f"/v1/meters/{meter}/key-change", {"tariff_index": "02"}),
                "f-1": ("vendor", "/v1/fault-reports", {"meter": meter, "what": "display"}),
            }
            texts = {}
            for message_id, (who, path, body) in asked.items():
                reason = {"reason": "order 17"} if who == "engineer" else {}
                given = await shop.http.post(
                    path, json={"message_id": message_id, **body, **reason}, headers=shop.headers(who)
                )
                assert given.status_code == 200, given.text
                read = (await shop.get(f"/v1/vends/{message_id}/receipt", who)).json()
                assert {**given.json(), "printed": read["printed"]} == read
                AnyReceiptModel.validate_json(json.dumps(read))
                shown = await shop.get(f"/v1/vends/{message_id}/receipt?format=text", who)
                other = await shop.get(
                    f"/v1/vends/{message_id}/receipt?format=text", "vendor" if who == "engineer" else "engineer"
                )
                assert (shown.status_code, other.status_code) == (200, 404)
                texts[message_id] = shown.text
            assert "FREE ISSUE" in texts["i-1"]
            assert "power limit (W) 3000" in texts["e-1"]
            assert "display" in texts["f-1"]
            assert "Not used yet" in texts["k-1"]
            sections = [
                digits for (digits,) in await rows(shop, "select digits from tokens where section > 0 order by section")
            ]
            sale = await sold(shop, "m-1")
            AnyReceiptModel.validate_json((await shop.get("/v1/vends/m-1/receipt")).text)
            for text in (texts["k-1"], await text_of(shop, "m-1")):
                digits = "".join(mark for mark in text if mark.isdigit())
                places = [digits.index(each) for each in sections]
                assert places == sorted(places)
                assert "BEFORE" in text
            assert places[-1] < digits.index(sale["token"]["digits"])

    asyncio.run(story())


async def rows(shop: Shop, query: str) -> list[tuple[Any, ...]]:  # Rows as the query says.
    """Return the rows of a query."""
    return await (await shop.conn.execute(query.encode())).fetchall()
