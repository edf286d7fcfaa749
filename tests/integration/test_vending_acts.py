"""What is asked once besides sales: issues, key changes, engineering and test tokens, fault reports; the catalogue."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from typing import Any

import httpx

import vending
from db.audit import run_checks
from db.pool import connect
from tests.integration.vending_shop import CALENDAR, MASTER, SGC, VENDING_KEY, Shop, open_shop
from vending.edges.keys import add_vending_key
from vending.errors_catalogue import CATALOGUE
from vending.sts.management import decode_any_token
from vending.sts.tokens import DisplayTest, TokenNumber
from vending.vends import DeclineReason, VendingError

# Bases that are never raised themselves, and codes of what no route does.
_NEVER_ANSWERED = {"vending_error", "declined", "token_unreadable"}
# Codes of the command line alone.
_NEVER_ANSWERED |= {"key_refused", "key_load_refused", "bad_scope", "bad_api_key_owner", "licence_wrong"}


def test_free_and_subsidised_recharges_are_vends_with_a_reason_and_another_ledger(database_url: str) -> None:
    """An engineer issues; the money is the utility's or the government's; no vendor may, and none without a reason."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for kind, ledger in (("free_issue", "free_issues"), ("subsidy", "subsidy_receivable")):
                body = {"message_id": f"I-{kind}", "meter": shop.home.serial, "kind": kind, "amount": "4000.00"}
                assert (await _post(shop, "/v1/issues", body, "engineer")).status_code == 400
                body["reason"] = "flood relief, order 17"
                issued = await _post(shop, "/v1/issues", body, "engineer")
                assert (issued.status_code, issued.json()["kind"], issued.json()["vendor"]) == (200, kind, "Utility")
                assert (await _post(shop, "/v1/issues", body, "engineer")).json() == issued.json()
                assert (await _post(shop, "/v1/issues", body)).json()["error"]["code"] == "not_allowed"
                assert await shop.one("select sum(amount_minor) from legs where ledger = %s", ledger) == -400_000
            assert await shop.one("select count(*) from float_entries") == 0
            await _clean(shop)

    asyncio.run(story())


def test_expired_key_asks_for_a_key_change_which_gives_its_tokens_and_then_sells(database_url: str) -> None:
    """The refusal says what to call; the tokens come in order, and the next sale, under a new id, names them first."""

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await add_vending_key(conn, MASTER, sgc=SGC, krn=2, key=bytes(reversed(VENDING_KEY)))
        async with open_shop(database_url) as shop:
            path = f"/v1/meters/{shop.home.serial}/key-change"
            before = await _post(shop, path, {"message_id": "K-0"})
            assert (before.status_code, before.json()["error"]["code"]) == (409, "key_change_refused")
            assert (await shop.vend("V-0")).status_code == 200
            await _expire(shop)
            refused = await shop.vend("V-1")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "key_change_needed")
            assert (await shop.get(f"/v1/meters/{shop.home.serial}")).json()["refusal"]["code"] == "key_change_needed"
            given = await _post(shop, path, {"message_id": "K-1"})
            assert given.status_code == 200, given.text
            tokens = given.json()["key_change_tokens"]
            assert [len(token["digits"]) for token in tokens] == [20, 20, 20, 20]
            assert (await _post(shop, path, {"message_id": "K-1"})).json() == given.json()
            assert (await _post(shop, path, {"message_id": "K-2"})).json()["key_change_tokens"] == tokens
            assert (await shop.vend("V-1")).json() == refused.json()
            assert (await shop.vend("V-2")).json()["key_change_tokens"] == tokens
            await _clean(shop)

    asyncio.run(story())


def test_pending_key_change_is_given_to_the_station_before_it_sells(database_url: str) -> None:
    """A change that the office has made is asked for by the station first; confirmed, sales go on without a notice."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            path = f"/v1/meters/{shop.home.serial}/key-change"
            assert (await shop.vend("V-0")).status_code == 200
            chosen = await _post(shop, path, {"message_id": "V-9", "tariff_index": "02"})
            assert chosen.json()["error"]["code"] == "not_allowed"
            made = await _post(shop, path, {"message_id": "E-1", "tariff_index": "02", "reason": "new use"}, "engineer")
            assert made.status_code == 200, made.text
            assert [token["kind"] for token in made.json()["unused_tokens"]] == ["credit"]
            await shop.conn.execute("delete from key_change_handouts")
            assert (await shop.vend("V-1")).json()["error"]["code"] == "key_change_needed"
            given = await _post(shop, path, {"message_id": "K-1"})
            assert given.json()["key_change_tokens"] == made.json()["key_change_tokens"]
            sold = (await shop.vend("V-2")).json()
            assert sold["key_change_tokens"] == given.json()["key_change_tokens"]
            assert sold["lines"][0]["code"] == "key_change_first"
            confirmed = await _post(shop, f"{path}/confirm", None)
            assert confirmed.json() == {"meter": shop.home.serial, "version": made.json()["version"]}
            assert (await _post(shop, f"{path}/confirm", None)).json()["error"]["code"] == "record_conflict"
            assert (await shop.vend("V-3")).json()["key_change_tokens"] == []
            await _clean(shop)

    asyncio.run(story())


def test_engineering_tokens_are_given_once_to_engineers_alone(database_url: str) -> None:
    """Each is kept with who and why, repeats give the same digits, and another request under the id is refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            path = f"/v1/meters/{shop.home.serial}/engineering-tokens"
            body: dict[str, Any] = {"message_id": "T-1", "kind": "clear_tamper", "reason": "seal 4711 renewed"}
            assert (await _post(shop, path, body)).status_code == 403
            first = await _post(shop, path, body, "engineer")
            assert first.status_code == 200, first.text
            assert (await _post(shop, path, body, "engineer")).json() == first.json()
            other = await _post(shop, path, body | {"kind": "power_limit", "value": 5_000}, "engineer")
            assert other.json()["error"]["code"] == "message_id_reused"
            body = {
                "message_id": "T-1",
                "meter": shop.home.serial,
                "kind": "subsidy",
                "amount": "1.00",
                "reason": "why",
            }
            assert (await _post(shop, "/v1/issues", body, "engineer")).json()["error"]["code"] == "message_id_reused"
            for kind in ("power_limit", "clear_credit", "unbalance_limit"):
                body = {"message_id": f"T-{kind}", "kind": kind, "value": 3, "reason": "as ordered"}
                assert (await _post(shop, path, body, "engineer")).status_code == 200
            assert await shop.one("select count(distinct tid) from tokens") == 4
            await _clean(shop)

    asyncio.run(story())


def test_test_token_is_the_same_for_every_meter(database_url: str) -> None:
    """Class 1 needs no key: the token of test 0 asks any meter of any maker for all its tests."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            answer = (await shop.get("/v1/test-tokens/0")).json()
            read = decode_any_token(TokenNumber(answer["digits"]), None)
            assert read == DisplayTest(maker_digits=2, maker_code=0, control=(1 << 36) - 1)
            assert (await shop.get("/v1/test-tokens/19")).status_code == 400

    asyncio.run(story())


def test_fault_report_has_a_number_until_it_is_closed(database_url: str) -> None:
    """What a consumer tells a station of is stored once, listed for the utility, and closed with what was done."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            body = {"message_id": "F-1", "meter": shop.home.serial, "what": "no_supply", "note": "since noon"}
            first = await _post(shop, "/v1/fault-reports", body)
            assert (await _post(shop, "/v1/fault-reports", body)).json() == first.json()
            number = first.json()["fault_number"]
            faults = (await shop.get("/v1/fault-reports", "engineer")).json()["faults"]
            assert [(fault["fault_number"], fault["what"]) for fault in faults] == [(number, "no_supply")]
            path, outcome = f"/v1/fault-reports/{number}/close", {"outcome": "fuse of the pole renewed"}
            assert (await _post(shop, path, outcome, "engineer")).json()["closed"] is True
            assert (await _post(shop, path, outcome, "engineer")).json()["error"]["code"] == "unknown_fault_report"
            assert (await shop.get("/v1/fault-reports", "engineer")).json()["faults"] == []

    asyncio.run(story())


def test_every_code_of_a_refusal_is_in_the_catalogue() -> None:
    """A code that may be answered has a status and says what to do."""
    for module in pkgutil.walk_packages(vending.__path__, "vending."):
        importlib.import_module(module.name)
    codes = {reason.value for reason in DeclineReason} | {kind.code for kind in _below(VendingError)}
    assert codes - _NEVER_ANSWERED <= CATALOGUE.keys()


def _below(kind: type[VendingError]) -> set[type[VendingError]]:
    return {kind}.union(*(_below(each) for each in kind.__subclasses__()))


async def _expire(shop: Shop) -> None:
    """Put a record in force whose key ends before the TIDs of today; records are else never rewritten."""
    await shop.conn.execute("alter table meter_records disable trigger keep_record")
    await shop.conn.execute("update meter_records set ken = 1")
    await shop.conn.execute("alter table meter_records enable trigger keep_record")


async def _post(shop: Shop, path: str, body: dict[str, Any] | None, who: str = "vendor") -> httpx.Response:
    return await shop.http.post(path, json=body, headers=shop.headers(who))


async def _clean(shop: Shop) -> None:
    report = await run_checks(shop.conn, CALENDAR)
    assert report.clean, [(check.id, check.examples) for check in report.checks if check.broken]
