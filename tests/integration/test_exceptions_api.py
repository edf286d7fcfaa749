"""The exceptions desk over HTTP and on the command line: the same answers, two people, refusals with a code."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_engineer_api import open_desk
from tests.integration.test_money_commands import Office
from tests.integration.vending_shop import MASTER, Shop, open_shop
from vending.edges.keys import issue_api_key
from vending.roles import Role

pytestmark = pytest.mark.db

START = datetime(2026, 11, 2, 0, 0, tzinfo=UTC)
HALF_HOUR = timedelta(minutes=30)
WHO = ("--by", "A. Kaur", "--why", "seen on site")


async def fill(shop: Shop) -> None:
    """Two days of half-hours, a reading of them flagged, and a gap that was given up after them."""
    register_wh = 5_000
    for number in range(97):
        register_wh += 200
        await shop.read(START + number * HALF_HOUR, register_wh)
    end = START + 96 * HALF_HOUR
    await shop.read(end + timedelta(hours=6), register_wh + 2_400)
    await shop.conn.execute("update meters set interval_s = 1800")
    for rule in ("stuck", "gap"):
        await shop.conn.execute(
            "insert into reading_flags (meter_id, day, rule, severity, at, expected, got)"
            " values (%s, '2026-11-03', %s, 'warning', %s, 1, 2)",
            (shop.home.meter_id, rule, START + 20 * HALF_HOUR),
        )
    await shop.conn.execute(
        "insert into gaps (meter_id, shard, from_at, to_at, state, missing, closed_at)"
        " values (%s, 1, %s, %s, 'given_up', 11, now())",
        (shop.home.meter_id, end, end + timedelta(hours=6)),
    )


def test_engineers_decide_over_http_alone_and_by_two(database_url: str) -> None:
    """Queue, evidence, dry run, decision and approval; a person is a key's name; what does not fit has its code."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            await fill(shop)
            for name, label in (("first", "A. Kaur"), ("second", "S. Gill")):
                shop.keys[name] = await issue_api_key(shop.conn, Role.ENGINEER, master=MASTER, label=label)

            async def ask(path: str, body: dict[str, Any] | None = None, who: str = "first", status: int = 200) -> Any:
                headers, url = shop.headers(who), f"/v1/exceptions{path}"
                sent = (
                    shop.http.get(url, headers=headers)
                    if body is None
                    else shop.http.post(url, json=body, headers=headers)
                )
                answered = await sent
                assert answered.status_code == status, answered.text
                return answered.json() if status == 200 else answered.json()["error"]["code"]

            assert await ask("", who="vendor", status=403) == "not_allowed"
            first = await ask("?limit=2")
            rest = await ask(f"?after={first['next'].replace('+', '%2B')}")
            items = [each["item"] for each in first["exceptions"] + rest["exceptions"]]
            assert items == ["flag-1", "flag-2", "gap-1"]
            assert await ask("?after=x", status=400) == "bad_cursor"
            assert (await ask("/counts"))["open"] == 3
            assert (await ask("/rules"))["id"] == "built-in"
            shown = await ask("/gap-1")
            assert [len(span["edges"]) for span in shown["spans"]] == [13]
            assert {each["rule"] for each in shown["spans"][0]["estimates"]} >= {"interpolation", "proxy_day"}
            assert shown["places"][0]["account"] == shop.home.number
            assert await ask("/gap-9", status=404) == "unknown_exception"
            # The days are open: the register after the gap has it all.
            estimate = {"action": "estimate", "rule": "proxy_day"}
            assert await ask("/gap-1/dry-run", estimate, status=409) == "exception_refused"
            assert (await ask("/flag-1/assignment", {"to": "S. Gill", "why": "hers"}))["assigned_to"] == "S. Gill"
            edit = {"action": "edit", "import_wh": 9_150}
            looked = await ask("/flag-1/dry-run", edit)
            assert looked["needs_second_person"]
            decided = await ask("/flag-1/decision", {**edit, "why": "photograph"})
            assert (decided["state"], decided["effect"]) == ("proposed", looked)
            approval = {"why": "compared", "cut_offs": looked["cut_offs"]}
            assert await ask("/flag-1/approval", approval, status=409) == "exception_refused"
            approved = await ask("/flag-1/approval", approval, who="second")
            assert (approved["state"], approved["asked_by"], approved["ended_by"]) == ("done", "a. kaur", "s. gill")
            assert await ask("/flag-1/approval", approval, who="second", status=409) == "exception_refused"
            bulk = {"items": ["flag-1", "flag-2", "gap-1"], "action": "keep", "why": "off", "bound_minor": 0}
            assert (await ask("/bulk", {**bulk, "dry_run": True}))["counts"]["looked"] == 2
            assert (await ask("/bulk", bulk))["counts"] == {"looked": 0, "done": 2, "proposed": 0, "refused": 1}
            assert (await ask(""))["exceptions"] == []

    asyncio.run(story())


def test_examples_of_the_description_are_accepted_as_they_stand(database_url: str) -> None:
    """Every body that the OpenAPI document shows for these routes has the form that the route asks for."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            document = (await shop.http.get("/openapi.json")).json()
            bodies = document["components"]["schemas"]
            paths = {path: each for path, each in document["paths"].items() if path.startswith("/v1/exceptions")}
            assert len(paths) == 10
            for path, operations in paths.items():
                if "post" not in operations:
                    continue
                schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                example = bodies[schema.rpartition("/")[2]]["example"]
                url = path.replace("{item}", "gap-77")
                answered = await shop.http.post(url, json=example, headers=shop.headers("engineer"))
                # There is no such exception; many are refused one by one.
                assert answered.status_code == (200 if path.endswith("bulk") else 404), (path, answered.text)

    asyncio.run(story())


@pytest.mark.slow
def test_office_works_through_the_queue_by_commands(database_url: str, tmp_path: Path) -> None:
    """The commands give the same answers; a refusal is one line and status 2; the plain output is for a person."""

    async def prepare() -> None:
        async with open_shop(database_url) as shop:
            await fill(shop)

    asyncio.run(prepare())
    office = Office(database_url, tmp_path)
    assert [each["item"] for each in office.ask("exceptions", "list")["exceptions"]] == ["flag-1", "flag-2", "gap-1"]
    assert "interpolation" in office.run("exceptions", "show", "gap-1").stdout
    void = ("--action", "void")
    assert office.ask("exceptions", "dry-run", "flag-1", *void)["needs_second_person"]
    assert office.ask("exceptions", "decide", "flag-1", *void, *WHO)["state"] == "proposed"
    approval = ("exceptions", "approve", "flag-1", "--by", "S. Gill", "--why", "photograph", "--cut-offs", "0")
    assert office.ask(*approval)["state"] == "done"
    refused = office.run(*approval, status=2).stderr
    assert refused.startswith("prepaid: exception_refused: exception flag-1: expected a decision")
    assert refused.count("\n") == 1
    kept = office.run("exceptions", "bulk", "flag-2", "gap-1", "--action", "keep", "--bound-minor", "0", *WHO).stdout
    assert kept.splitlines()[-1].startswith("2 done; ")
    assert office.ask("exceptions", "counts") == {"open": 0, "counts": []}
