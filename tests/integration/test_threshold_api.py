"""A consumer's wishes over HTTP: set as one list, answered as they are read, refused with one stable code each."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.integration.vending_shop import Shop, add_home, open_shop
from vending.edges.consumer_models import ThresholdsAnswer
from vending.edges.keys import Role, issue_api_key

pytestmark = pytest.mark.db

THREE = [{"kind": "amount", "amount": "100.00"}, {"kind": "days", "days": 3}, {"kind": "percent", "percent": 20}]


async def put(shop: Shop, body: object, *, whose: str = "me", who: str = "consumer") -> httpx.Response:
    """Ask to be warned."""
    return await shop.http.put(f"/v1/consumer/{whose}/thresholds", json=body, headers=shop.headers(who))


async def wish(shop: Shop, *wanted: dict[str, object]) -> Any:  # JSON of the route's shape.
    """Ask to be warned by these; the answer is what is read after it."""
    response = await put(shop, {"thresholds": list(wanted)})
    assert response.status_code == 200, response.text
    ThresholdsAnswer.model_validate(response.json())
    assert response.json() == (await shop.get("/v1/consumer/me/thresholds", "consumer")).json()
    return response.json()


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


async def written(shop: Shop) -> list[int]:
    """Count what a change writes."""
    counted = [await shop.count(table) for table in ("alarms", "supply_orders", "notices", "change_feed")]
    return [*counted, await shop.one("select version from accounts")]


def test_wishes_of_every_kind_are_answered_as_they_are_read(database_url: str) -> None:
    """With the balance that each comes to; the same again writes nothing, an empty list ends the warnings."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await shop.vend("m-1", "500.00")).status_code == 200
            await shop.set_balance(20_000)
            answer = await wish(shop, *THREE)
            shown = [(each["kind"], each["warns_at"], each["rung"]) for each in answer["thresholds"]]
            assert shown == [("amount", "100.00", False), ("days", None, False), ("percent", "100.00", False)]
            assert (answer["account_number"], answer["low_alarm"]) == (shop.home.number, False)
            before = await written(shop)
            assert await wish(shop, *THREE) == answer
            assert await wish(shop, *reversed(THREE)) == answer
            assert await written(shop) == before
            await shop.set_balance(10_000)
            summary = (await shop.get("/v1/consumer/me/summary", "consumer")).json()
            assert [each["rung"] for each in (await wish(shop, *THREE))["thresholds"]] == [True, False, True]
            assert summary["low_alarm"] is True
            assert (await wish(shop))["thresholds"] == []
            assert await shop.count("alarms where level = 'low'") == 2

    asyncio.run(story())


def test_share_of_a_recharge_is_of_its_full_amount_and_moves_with_the_next(database_url: str) -> None:
    """What arrears take of a recharge is part of it; a repeated vend moves nothing."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute(
                "insert into account_dues (account_id, ledger, opened_on, total_minor, outstanding_minor, note)"
                " values (%s, 'arrears', '2026-11-01', 100000, 100000, 'old bills')",
                (shop.home.account_id,),
            )
            assert (await wish(shop, THREE[2]))["thresholds"][0]["warns_at"] is None
            for message_id, bought, level in (("m-1", "500.00", "100.00"), ("m-2", "1000.00", "200.00")):
                for _ in range(2):
                    sold = await shop.vend(message_id, bought)
                    assert sold.json()["earlier_arrears_paid_minor"] > 0
                    (found,) = (await shop.get("/v1/consumer/me/thresholds", "consumer")).json()["thresholds"]
                    assert found["warns_at"] == level

    asyncio.run(story())


def test_old_route_changes_the_amount_of_the_meter_and_no_other_wish(database_url: str) -> None:
    """What was asked by days or share stays, rung or not."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await shop.vend("m-1", "500.00")).status_code == 200
            await shop.set_balance(5_000)
            first = await wish(shop, *THREE)
            path = f"/v1/accounts/{shop.home.number}/threshold"
            for amount in ("50.01", None, "10.00"):
                response = await shop.http.put(path, json={"threshold": amount}, headers=shop.headers("consumer"))
                assert (response.status_code, response.json()["threshold"]) == (200, amount)
                found = (await shop.get("/v1/consumer/me/thresholds", "consumer")).json()["thresholds"]
                assert found[-2:] == first["thresholds"][1:]
                assert [each["amount"] for each in found[:-2]] == ([] if amount is None else [amount])

    asyncio.run(story())


@pytest.mark.parametrize(
    ("wanted", "code", "place"),
    [
        ([{"kind": "days", "days": 0}], "bad_threshold", "1 to 90 days, got 0"),
        ([{"kind": "days", "days": 91}], "bad_threshold", "1 to 90 days, got 91"),
        ([{"kind": "percent", "percent": 0}], "bad_threshold", "1 to 100 percent, got 0"),
        ([{"kind": "percent", "percent": 101}], "bad_threshold", "1 to 100 percent, got 101"),
        ([THREE[1], THREE[1]], "bad_threshold", "no two equal"),
        ([{"kind": "amount", "amount": "5"}, {"kind": "amount", "amount": "5.00"}], "bad_threshold", "no two equal"),
        ([{"kind": "amount", "amount": "-5"}], "bad_amount", "-5"),
        ([{"kind": "amount", "amount": "5.001"}], "bad_amount", "5.001"),
        ([{"kind": "amount", "amount": 5}], "malformed", "body.thresholds.0.amount.amount"),
        ([{"kind": "amount"}], "malformed", "body.thresholds.0.amount.amount"),
        ([{"kind": "days", "amount": "5.00"}], "malformed", "body.thresholds.0.days.days"),
        ([{"kind": "days", "days": "3"}], "malformed", "body.thresholds.0.days.days"),
        ([{"kind": "days", "days": 2.5}], "malformed", "body.thresholds.0.days.days"),
        ([{"kind": "days", "days": True}], "malformed", "body.thresholds.0.days.days"),
        ([THREE[1], {"kind": "hours", "hours": 3}], "malformed", "body.thresholds.1"),
        ([{"days": 3}], "malformed", "body.thresholds.0"),
        ([{**THREE[1], "sms": True}], "malformed", "body.thresholds.0.days.sms"),
        ([{"kind": "days", "days": number} for number in range(1, 7)], "malformed", "at most 5"),
        (None, "malformed", "body.thresholds"),
        ({"kind": "days", "days": 3}, "malformed", "body.thresholds"),
    ],
)
def test_wishes_that_are_none_are_refused_and_change_nothing(
    database_url: str, wanted: object, code: str, place: str
) -> None:
    """Each with status 400, one stable code, and what was expected where."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            kept = await wish(shop, *THREE)
            refused = await put(shop, {"thresholds": wanted})
            assert refusal(refused) == (400, code)
            assert place in refused.json()["error"]["message"]
            assert (await shop.get("/v1/consumer/me/thresholds", "consumer")).json() == kept

    asyncio.run(story())


def test_wishes_are_those_of_the_consumer_and_of_engineers_for_any_account(database_url: str) -> None:
    """Nobody, vendors and neighbours are refused, whether the account exists or not; `me` is a consumer's."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            other = await add_home(shop.conn, "PB000999", "100200999", sts=None)
            shop.keys["neighbour"] = await issue_api_key(shop.conn, Role.CONSUMER, account_id=other.account_id)
            body, own = {"thresholds": THREE}, shop.home.number
            assert refusal(await shop.http.put("/v1/consumer/me/thresholds", json=body)) == (401, "api_key_wrong")
            for whose, who in (("me", "vendor"), (own, "vendor"), (own, "neighbour"), ("none", "neighbour")):
                assert refusal(await put(shop, body, whose=whose, who=who)) == (403, "not_allowed")
            assert refusal(await put(shop, body, who="engineer")) == (403, "not_allowed")
            assert refusal(await put(shop, body, whose="none", who="engineer")) == (404, "unknown_account")
            assert await shop.count("alarm_thresholds") == 0
            answers = [await put(shop, body, whose=own, who=who) for who in ("engineer", "consumer")]
            assert [each.status_code for each in answers] == [200, 200]
            assert answers[0].json() == answers[1].json()
            assert await shop.one("select count(distinct account_id) from alarm_thresholds") == 1
            await shop.conn.execute("update installations set to_at = now()")
            assert refusal(await put(shop, body)) == (404, "unknown_account")

    asyncio.run(story())


def test_two_lists_at_once_leave_one_of_them_whole(database_url: str) -> None:
    """Whoever comes second replaces all that the first one asked for."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            lists = [[{"kind": "percent", "percent": number} for number in range(first, first + 4)] for first in (1, 3)]
            done = await asyncio.gather(*(put(shop, {"thresholds": each}) for each in lists * 3))
            assert {each.status_code for each in done} == {200}
            found = (await shop.get("/v1/consumer/me/thresholds", "consumer")).json()["thresholds"]
            assert sorted(each["percent"] for each in found) in ([1, 2, 3, 4], [3, 4, 5, 6])

    asyncio.run(story())


def test_openapi_describes_the_wishes_with_an_example_that_is_taken(database_url: str) -> None:
    """The body's example is a good request, and each refusal is named."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            document = (await shop.http.get("/openapi.json")).json()
            route = document["paths"]["/v1/consumer/{account}/thresholds"]["put"]
            assert set(route["responses"]) >= {"200", "400", "401", "403", "404", "503", "default"}
            schema = route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
            assert schema.endswith("ThresholdsAnswer")
            wishes = document["components"]["schemas"]["ThresholdsBody"]["properties"]["thresholds"]
            assert wishes["maxItems"] == 5
            (example,) = wishes["examples"]
            assert len((await wish(shop, *example))["thresholds"]) == 3
            days = document["components"]["schemas"]["DaysWish"]["properties"]["days"]
            assert (days["minimum"], days["maximum"]) == (1, 90)

    asyncio.run(story())
