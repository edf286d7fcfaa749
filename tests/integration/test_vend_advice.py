"""Advices, decisions, reprints and last responses over HTTP: must-deliver, in any order, money and state together."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from db.audit import run_checks
from db.token_deliveries import note_entries
from protocols.keypad import EntryResult, TokenEntered
from tests.integration.vending_shop import CALENDAR, Shop, open_shop


def test_held_sale_is_released_by_its_confirmation_with_the_token_that_was_made(database_url: str) -> None:
    """Held: no digits; confirmed: the digits that were minted with the sale, for every later repeat, too."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            held = await _sell(shop, "H-1", release="on_confirm")
            assert (held.status_code, held.json()["token"]["digits"], held.json()["tid"]) == (200, None, None)
            first = await _advise(shop, "H-1", "confirm")
            again = await _advise(shop, "H-1", "confirm")
            assert first.json() == again.json()
            assert first.json()["state"] == "confirmed"
            digits = await shop.one("select digits from tokens")
            assert first.json()["vend"]["token"]["digits"] == digits
            assert (await _sell(shop, "H-1", release="on_confirm")).json() == first.json()["vend"]
            assert (await _advise(shop, "H-1", "reverse")).json()["error"]["code"] == "advice_contradicts"
            assert await shop.count("tokens") == 1
            await _clean(shop)

    asyncio.run(story())


def test_held_sale_is_taken_back_with_its_money_once(database_url: str) -> None:
    """A reversal of a held sale, however often, leaves one reversal journal, the balance as before and no token."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(5_000)
            await _sell(shop, "H-1", release="on_confirm")
            answers = [(await _advise(shop, "H-1", advice, who)).json() for advice, who in _TAKEN_BACK]
            assert {answer["state"] for answer in answers} == {"reversed"}
            assert await shop.one("select count(*) from journals where kind = 'reversal'") == 1
            assert (await shop.get("/v1/accounts/100200300", "engineer")).json()["balance_minor"] == 5_000
            assert (await _sell(shop, "H-1", release="on_confirm")).json()["error"]["code"] == "vend_reversed"
            assert (await _advise(shop, "H-1", "confirm")).status_code == 409
            await _clean(shop)

    asyncio.run(story())


def test_reversal_that_overtakes_its_sale_blocks_it(database_url: str) -> None:
    """A reversal of an unknown sale is answered and kept: what comes under the id afterwards is not sold."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            early = await _advise(shop, "E-1", "reverse")
            assert (early.status_code, early.json()["state"]) == (200, "reversed")
            late = await _sell(shop, "E-1")
            assert (late.status_code, late.json()["error"]["code"]) == (409, "vend_reversed")
            assert (await shop.get("/v1/vends/E-1")).json() == late.json()
            assert await shop.count("tokens") == 0
            # A confirmation that overtakes waits for its sale.
            assert (await _advise(shop, "E-2", "confirm")).json()["state"] == "awaited"
            assert (await _sell(shop, "E-2", release="on_confirm")).json()["token"]["digits"] is not None
            assert (await shop.get("/v1/vends/E-2/state")).json()["state"] == "confirmed"
            await _clean(shop)

    asyncio.run(story())


def test_reversal_after_release_waits_for_the_meter_or_the_utility(database_url: str) -> None:
    """Unknown until the meter shows the token, or somebody decides with a reason; the float's money moves only then."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for number in (1, 2, 3):
                await _sell(shop, f"U-{number}")
                assert (await _advise(shop, f"U-{number}", "reverse")).json()["state"] == "unknown"
                assert (await _advise(shop, f"U-{number}", "cancel", "supervisor")).status_code == 409
            assert await shop.one("select count(*) from journals where kind = 'reversal'") == 0
            waiting = (await shop.get("/v1/open-vends", "engineer")).json()["vends"]
            assert [vend["message_id"] for vend in waiting] == ["U-1", "U-2", "U-3"]
            await _meter_says(shop, "U-1", EntryResult.ACCEPTED)
            for verdict, vend in (("reverse", waiting[1]), ("confirm", waiting[2])):
                path = f"/v1/open-vends/{vend['receipt_number']}/decision"
                body = {"verdict": verdict, "reason": "the shop's till roll was seen"}
                decided = await shop.http.post(path, json=body, headers=shop.headers("engineer"))
                assert decided.status_code == 200, decided.text
                assert (
                    await shop.http.post(path, json=body, headers=shop.headers("engineer"))
                ).json() == decided.json()
            states = [(await shop.get(f"/v1/vends/U-{number}/state")).json() for number in (1, 2, 3)]
            assert [state["state"] for state in states] == ["confirmed", "reversed", "confirmed"]
            assert [move["by"] for move in states[0]["moves"]][-1] == "the meter"
            assert states[1]["moves"][-1]["reason"] == "the shop's till roll was seen"
            assert (await shop.get("/v1/open-vends", "engineer")).json()["vends"] == []
            # Taking back what the meter has is refused, and a station's late reversal changes nothing.
            assert (await _advise(shop, "U-1", "reverse")).json()["state"] == "confirmed"
            await _clean(shop)

    asyncio.run(story())


def test_last_response_and_reprints_give_stored_answers(database_url: str) -> None:
    """By terminal, message id, receipt number or meter: the answer that was stored, and never another vendor's."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            first = await _sell(shop, "T-1", terminal="T1", operator="Anu")
            await _sell(shop, "T-2", terminal="T2", amount="1.00")
            last = await _sell(shop, "T-3", terminal="T1")
            assert (await shop.get("/v1/last-response?terminal=T1")).json() == last.json()
            assert (await shop.get("/v1/last-response?terminal=T2")).json()["error"]["code"] == "amount_below_minimum"
            assert (await shop.get("/v1/last-response")).json() == last.json()
            assert (await shop.get("/v1/last-response", "other_vendor")).status_code == 404
            number, copies = first.json()["receipt_number"], []
            for body, expected in (
                ({"message_id": "T-1"}, first),
                ({"receipt_number": number}, first),
                ({"meter": shop.home.serial}, last),
            ):
                copy = await _reprint(shop, body)
                assert copy.content == expected.content
                copies.append((copy.json()["message_id"], copy.headers["x-prepaid-duplicate"]))
                assert (await _reprint(shop, body, "other_vendor")).json()["error"]["code"] == "unknown_vend"
            # The station printed the original itself; what the receipt desk prints is counted with it.
            assert copies == [("T-1", "1"), ("T-1", "2"), ("T-3", "1")]
            slip = await shop.http.post(
                "/v1/reprints?format=text", json={"message_id": "T-1"}, headers=shop.headers("vendor")
            )
            assert "DUPLICATE 3" in slip.text
            assert "DUPLICATE 4" in (await shop.get("/v1/vends/T-1/receipt?format=text")).text
            assert (await shop.get("/v1/vends/T-1/receipt")).json()["printed"]["prints"] == 5
            assert (await _reprint(shop, {"meter": "X", "message_id": "T-1"})).status_code == 400
            assert (first.json()["terminal"], first.json()["operator"]) == ("T1", "Anu")

    asyncio.run(story())


def test_opposite_advices_at_once_end_in_one_state_with_its_money(database_url: str) -> None:
    """Twenty confirmations and reversals of one held sale at once: one of them wins, and the ledger agrees."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await _sell(shop, "H-1", release="on_confirm")
            advices = [_advise(shop, "H-1", ("confirm", "reverse")[number % 2]) for number in range(20)]
            answers = await asyncio.gather(*advices)
            assert {answer.status_code for answer in answers} == {200, 409}
            state = (await shop.get("/v1/vends/H-1/state")).json()["state"]
            reversals = await shop.one("select count(*) from journals where kind = 'reversal'")
            assert reversals == {"confirmed": 0, "reversed": 1}[state]
            await _clean(shop)

    asyncio.run(story())


_TAKEN_BACK = [("reverse", "vendor"), ("reverse", "vendor"), ("cancel", "supervisor")]


async def _sell(shop: Shop, message_id: str, **changes: Any) -> httpx.Response:
    body = {"message_id": message_id, "meter": shop.home.serial, "amount": "500.00", **changes}
    return await shop.http.post("/v1/vends", json=body, headers=shop.headers("vendor"))


async def _advise(shop: Shop, message_id: str, advice: str, who: str = "vendor") -> httpx.Response:
    return await shop.http.post(f"/v1/vends/{message_id}/{advice}", json={}, headers=shop.headers(who))


async def _reprint(shop: Shop, body: dict[str, str], who: str = "vendor") -> httpx.Response:
    return await shop.http.post("/v1/reprints", json=body, headers=shop.headers(who))


async def _meter_says(shop: Shop, message_id: str, result: EntryResult) -> None:
    """Let the meter report a sale's token, as ingest stores it."""
    digits, tid = await (
        await shop.conn.execute(
            "select t.digits, t.tid from tokens t join vends v on v.id = t.vend_id where v.message_id = %s",
            (message_id,),
        )
    ).fetchone() or ("", 0)
    entered = TokenEntered(
        serial=shop.home.serial, seq=1, at_ms=shop.clock() + 60_000, tid=tid, last_digits=digits[-4:], result=result
    )
    async with shop.conn.transaction():
        await note_entries(shop.conn, [(shop.home.meter_id, entered)])


async def _clean(shop: Shop) -> None:
    report = await run_checks(shop.conn, CALENDAR)
    assert report.clean, [(check.id, check.examples) for check in report.checks if check.broken]
