"""Free and subsidised recharges above what one person may give out: proposed by one, approved by another."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from billing.calendar import from_ms
from db.audit import run_checks
from tests.integration.vending_shop import CALENDAR, MASTER, Shop, open_shop
from vending.edges.key_desk import rotate_key
from vending.edges.keys import issue_api_key
from vending.roles import Role

pytestmark = pytest.mark.db

LARGE = "10000.01"


async def _post(shop: Shop, path: str, body: dict[str, Any], who: str = "engineer") -> httpx.Response:
    return await shop.http.post(path, json=body, headers=shop.headers(who))


def _code(answered: httpx.Response) -> tuple[int, str]:
    return answered.status_code, answered.json()["error"]["code"]


def _asked(shop: Shop, message_id: str = "I-1", amount: str = LARGE) -> dict[str, Any]:
    return {
        "message_id": message_id, "meter": shop.home.serial, "kind": "subsidy", "amount": amount,
        "reason": "flood relief, order 17",
    }  # fmt: skip


async def _decide(shop: Shop, number: int, verdict: str, who: str = "second") -> httpx.Response:
    body = {"verdict": verdict, "reason": "order 17 seen"}
    return await _post(shop, f"/v1/issue-proposals/{number}/decision", body, who)


async def _second_engineer(shop: Shop, label: str = "") -> None:
    shop.keys["second"] = await issue_api_key(shop.conn, Role.ENGINEER, master=MASTER, label=label)


async def _minted(shop: Shop) -> tuple[Any, Any]:
    return await shop.one("select count(*) from tokens"), await shop.one("select count(*) from vends")


def test_large_issue_is_minted_when_another_person_has_approved_it(database_url: str) -> None:
    """Alone it is refused and leaves nothing; proposed it mints nothing; approved by another key it is sold once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await _second_engineer(shop)
            assert _code(await _post(shop, "/v1/issues", _asked(shop))) == (409, "second_person_needed")
            proposed = await _post(shop, "/v1/issue-proposals", _asked(shop))
            assert (proposed.status_code, proposed.json()["state"], proposed.json()["issued"]) == (
                200,
                "proposed",
                False,
            )
            assert (await _post(shop, "/v1/issue-proposals", _asked(shop))).json() == proposed.json()
            other = await _post(shop, "/v1/issue-proposals", _asked(shop, amount="20000"))
            assert _code(other) == (409, "message_id_reused")
            number = proposed.json()["number"]
            waiting = (await shop.get("/v1/issue-proposals", "engineer")).json()["proposals"]
            assert [each["number"] for each in waiting] == [number]
            assert _code(await _decide(shop, number, "approve", "engineer")) == (409, "same_person")
            assert _code(await _decide(shop, number, "approve", "vendor")) == (403, "not_allowed")
            assert _code(await _decide(shop, number + 1, "approve")) == (404, "unknown_proposal")
            assert await _minted(shop) == (0, 0)
            approved = await _decide(shop, number, "approve")
            assert (approved.status_code, approved.json()["state"], approved.json()["issued"]) == (
                200,
                "approved",
                True,
            )
            assert (await _decide(shop, number, "approve")).json() == approved.json()
            assert _code(await _decide(shop, number, "reject")) == (409, "proposal_decided")
            assert await _minted(shop) == (1, 1)
            # Whoever asked for it reads the token under its id.
            issued = await _post(shop, "/v1/issues", _asked(shop))
            assert (issued.status_code, issued.json()["amount_minor"]) == (200, 1_000_001)
            assert issued.json()["receipt_number"] == approved.json()["receipt_number"]
            assert (await shop.get("/v1/issue-proposals", "engineer")).json()["proposals"] == []
            trail = "select count(*) from audit_trail where reference = 'I-1' and outcome in ('proposed', 'vended')"
            assert await shop.one(trail) == 3
            report = await run_checks(shop.conn, calendar=CALENDAR)
            assert report.clean, report

    asyncio.run(story())


def test_issues_of_one_day_to_an_account_count_together(database_url: str) -> None:
    """A large issue cut into small ones is as large; approved and refused ones do not count."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await _second_engineer(shop)
            assert (await _post(shop, "/v1/issues", _asked(shop, "I-1", "9000"))).status_code == 200
            assert _code(await _post(shop, "/v1/issues", _asked(shop, "I-2", "1000.01"))) == (
                409,
                "second_person_needed",
            )
            number = (await _post(shop, "/v1/issue-proposals", _asked(shop, "I-2", "1000.01"))).json()["number"]
            assert (await _decide(shop, number, "approve")).json()["issued"] is True
            assert (await _post(shop, "/v1/issues", _asked(shop, "I-3", "1000"))).status_code == 200
            both = [_post(shop, "/v1/issues", _asked(shop, f"I-{n}", "10")) for n in (4, 5)]
            assert {_code(each) for each in await asyncio.gather(*both)} == {(409, "second_person_needed")}
            units = _asked(shop, "I-6") | {"units": "3.0"}
            del units["amount"]
            assert _code(await _post(shop, "/v1/issues", units)) == (409, "second_person_needed")

    asyncio.run(story())


def test_rejected_issue_stays_unsold_and_one_person_with_two_keys_is_one(database_url: str) -> None:
    """A rejection is kept; a key with the proposer's name on it, or one that it was rotated into, approves nothing."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await _second_engineer(shop, "Rajesh Singh")
            number = (await _post(shop, "/v1/issue-proposals", _asked(shop), "second")).json()["number"]
            await _second_engineer(shop, " rajesh singh")
            assert _code(await _decide(shop, number, "approve")) == (409, "same_person")
            rejected = await _decide(shop, number, "reject", "engineer")
            assert (rejected.json()["state"], rejected.json()["receipt_number"]) == ("rejected", None)
            assert _code(await _decide(shop, number, "approve", "engineer")) == (409, "proposal_decided")
            number = (await _post(shop, "/v1/issue-proposals", _asked(shop, "I-2"))).json()["number"]
            old = shop.keys["engineer"].key_id
            noon = from_ms(shop.clock())
            shop.keys["rotated"] = await rotate_key(
                shop.conn, MASTER, old, overlap=timedelta(hours=1), by="test", now=noon
            )
            assert _code(await _decide(shop, number, "approve", "rotated")) == (409, "same_person")
            assert await _minted(shop) == (0, 0)

    asyncio.run(story())
