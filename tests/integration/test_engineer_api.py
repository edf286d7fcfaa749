"""What engineers ask of the head-end, over HTTP and on the command line; nobody else may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from db.sequences import send_arrivals
from headend.edges.event_notices import store_events
from prepaid.__main__ import app
from prepaid.engineers import add_engineers
from prepaid.settings import Settings
from protocols.topics import shard_of
from tests.integration.vending_shop import MASTER, Shop, open_shop
from tests.support import MINUTE_MS, now_ms

pytestmark = pytest.mark.db

NOW_MS = now_ms()
PATHS = (
    "/v1/headend/counts",
    "/v1/headend/reconciliation",
    "/v1/headend/reconciliation/PB000123",
    "/v1/headend/completeness",
    "/v1/headend/silent",
    "/v1/headend/events",
    "/v1/headend/alarms",
)
MAGNET, COVER = 201, 251
BATCH = (
    "insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined, committed_at)"
    " values (%s, 1, 2, 10, 6, 2, 1, 1, %s)"
)


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Shop]:
    """Open the application as the API process does, with the engineers' routes."""
    async with open_shop(database_url) as shop:
        add_engineers(shop.app, Settings(database_url=database_url))
        yield shop


async def tell_something(shop: Shop) -> None:
    """Let batches, numbers and events of the shop's meter be there."""
    meter_id, shard = shop.home.meter_id, shard_of(shop.home.serial)
    for minutes in (0, 90):
        await shop.conn.execute(BATCH.encode(), (shard, datetime.now(UTC) - timedelta(minutes=minutes)))
    numbers = [(shard, meter_id, seq, seq * MINUTE_MS, b"") for seq in (1, 2, 2, 5)]
    await send_arrivals(shop.conn, numbers, [])
    async with shop.conn.transaction():
        events = [(meter_id, NOW_MS - minutes * MINUTE_MS, code) for minutes, code in ((3, MAGNET), (2, COVER))]
        await store_events(shop.conn, events, now_ms=NOW_MS)


def test_only_engineers_may_ask(database_url: str) -> None:
    """A vendor, a consumer and nobody are refused on every route, in the interface's own words."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            for path in PATHS:
                assert (await shop.http.get(path)).json()["error"]["code"] == "api_key_wrong", path
                for who in ("vendor", "consumer"):
                    refused = await shop.get(path, who)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed"), path
                assert (await shop.get(path, "engineer")).status_code == 200, path
            document = (await shop.http.get("/openapi.json")).json()
            assert set(PATHS) - {"/v1/headend/reconciliation/PB000123"} <= set(document["paths"])
            seen = await shop.http.post(
                "/v1/headend/alarms/1/acknowledgement", json={"by": "X"}, headers=shop.headers("vendor")
            )
            assert seen.status_code == 403

    asyncio.run(story())


def test_engineer_reads_counts_numbers_events_alarms_and_silence(database_url: str) -> None:
    """Each answer adds up; what is asked for wrongly is refused with a code."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            await tell_something(shop)

            async def read(path: str, status: int = 200, **query: Any) -> Any:
                found = await shop.http.get(f"/v1/headend/{path}", params=query, headers=shop.headers("engineer"))
                assert found.status_code == status, found.text
                return found.json() if status == 200 else found.json()["error"]["code"]

            counts = await read("counts", recount=True)
            assert (counts["received"], counts["adds_up"], counts["shards"][0]["stored"]) == (20, True, 12)
            assert counts["recount"] == {
                "adds_up": False, "stored": {"counted": 12, "there": 0},
                "quarantined": {"counted": 2, "there": 0}, "rejected": {"counted": 2, "there": 0},
            }  # fmt: skip
            hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
            assert (await read("counts", **{"from": hour_ago}))["received"] == 10
            assert await read("counts", 400, **{"from": "2026-01-01T00:00:00"}) == "bad_instant"
            of_meter = await read("reconciliation/PB000123")
            assert (of_meter["sent"], of_meter["stored"], of_meter["duplicate"]) == (5, 3, 1)
            assert of_meter["missing_ranges"] == [{"epoch": 0, "first": 3, "last": 4}]
            assert (await read("reconciliation"))["not_counted_yet"] == 4
            assert await read("reconciliation/X9", 404) == "unknown_meter"
            first = await read("events", limit=1)
            rest = await read("events", after=first["next"], limit=5)
            titles = [each["title"] for each in first["events"] + rest["events"]]
            assert sorted(titles) == ["cover opened", "magnet"]
            assert (await read("events", code=MAGNET, severity="info"))["events"] == []
            assert await read("events", 400, after="x~y") == "bad_cursor"
            assert await read("completeness", 400, day="2099-01-01") == "bad_day"
            assert [each["expected"] for each in (await read("completeness"))["now"]] in ([48], [])
            silent = await read("silent", hours=1)
            assert (silent["meters"], silent["hours"]) == ([], 1)

    asyncio.run(story())


def test_engineer_acknowledges_an_alarm_once(database_url: str) -> None:
    """Who has seen it is kept; twice is told; an unknown one and a nameless person are refused."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            await tell_something(shop)

            async def acknowledge(number: int, **body: str) -> tuple[int, str | None]:
                found = await shop.http.post(
                    f"/v1/headend/alarms/{number}/acknowledgement", json=body, headers=shop.headers("engineer")
                )
                return found.status_code, found.json().get("error", {}).get("code")

            listed = (await shop.get("/v1/headend/alarms?severity=alarm", "engineer")).json()["alarms"]
            assert [(each["code"], each["meter"]) for each in listed] == [(COVER, "PB000123"), (MAGNET, "PB000123")]
            assert await acknowledge(listed[0]["id"], by="A. Kaur", note="seal broken") == (200, None)
            assert await acknowledge(listed[0]["id"], by="B. Singh") == (409, "alarm_seen")
            assert await acknowledge(10**9, by="A. Kaur") == (404, "unknown_alarm")
            assert await acknowledge(listed[1]["id"], by="  ") == (400, "malformed")
            still = (await shop.get("/v1/headend/alarms", "engineer")).json()["alarms"]
            assert [each["code"] for each in still] == [MAGNET]

    asyncio.run(story())


@contextmanager
def on_database_of(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """Run commands on an outside database."""
    monkeypatch.setenv("PREPAID_DATABASE_URL", database_url)
    monkeypatch.setenv("PREPAID_LOG_LEVEL", "error")
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())
    yield CliRunner()


def test_commands_print_what_the_routes_answer(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command reads the same rows, in lines for a person and as one JSON object."""

    async def prepare() -> None:
        async with open_shop(database_url) as shop:
            await tell_something(shop)

    asyncio.run(prepare())
    with on_database_of(database_url, monkeypatch) as runner:

        def answer(*arguments: str, status: int = 0) -> Any:
            ended = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
            assert ended.exit_code == status, ended.output
            plain = runner.invoke(app, list(arguments), catch_exceptions=False)
            assert plain.exit_code == status, plain.output
            assert plain.output.strip(), arguments
            return json.loads(ended.stdout)

        assert answer("counts")["received"] == 20
        assert answer("counts", "--from", "2020-01-01", "--to", "2020-01-02", "--shard", "0-3")["received"] == 0
        assert answer("counts", "--recount", status=1)["recount"]["adds_up"] is False
        assert answer("reconcile")["missing"] == 2
        assert answer("reconcile", "--meter", "PB000123")["missing_ranges"] == [{"epoch": 0, "first": 3, "last": 4}]
        assert answer("completeness", "--day", "2026-01-01") == {"day": "2026-01-01", "taken": [], "now": []}
        assert answer("events", "list", "--code", str(MAGNET))["events"][0]["title"] == "magnet"
        alarms = answer("alarms", "list")["alarms"]
        assert [each["code"] for each in alarms] == [COVER, MAGNET]
        seen = runner.invoke(app, ["alarms", "acknowledge", str(alarms[0]["id"]), "--by", "A. Kaur"])
        assert "1 acknowledged by A. Kaur" in seen.output
        assert answer("silent", "--hours", "1")["hours"] == 1
        assert len(runner.invoke(app, ["engineer-key", "--json"]).stdout) > 40
