"""Limits of vendors and terminals, the audit trail, and the commands that give keys out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from billing.calendar import from_ms, to_ms
from db.api_access import NewLimit
from db.pool import APPLICATION_ROLE, connect
from prepaid.__main__ import app
from tests.integration.test_vending_edges import code_of
from tests.integration.vending_shop import CALENDAR, MASTER, Shop, open_shop
from vending.edges.key_desk import give_key, set_limits
from vending.roles import Role

pytestmark = pytest.mark.db

DAY_MS = 86_400_000
TRAIL = "select act, subject, reference, outcome, status, role, key_id, terminal from audit_trail order by id"


async def limit_vendor(shop: Shop, **limits: Any) -> None:
    """Set limits of the shop's vendor or of a terminal."""
    values = {"terminal": "", "requests_per_s": None, "burst": None, "vends_per_day": None, "amount_per_day": None}
    limit = NewLimit(vendor_id=0, set_by="A. Kaur", reason="contract", **(values | limits))
    await set_limits(shop.conn, "Station 17", limit, calendar=CALENDAR, now=from_ms(shop.clock()))


async def trail_of(shop: Shop) -> list[tuple[Any, ...]]:
    """Read the trail without what the preparation of a test did."""
    rows = await (await shop.conn.execute(TRAIL.encode())).fetchall()
    return [row for row in rows if row[5] != "operator"]


def test_requests_above_a_limit_are_429_with_a_time_to_come_back(database_url: str) -> None:
    """The vendor's bucket is shared by its keys, another vendor's is its own; nothing is looked at or stored."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await limit_vendor(shop, requests_per_s=1, burst=2)
            shop.keys["second"] = await give_key(shop.conn, MASTER, Role.VENDOR, vendor="Station 17", by="A. Kaur")
            # The first two empty it; a test that is slow may let one more through.
            answers = [await shop.get("/v1/me", who) for who in ("vendor", "second", "vendor", "second", "vendor")]
            refused = [each for each in answers if each.status_code == 429]
            assert refused
            assert {code_of(each) for each in refused} == {"too_many_requests"}
            assert {each.headers["retry-after"] for each in refused} == {"1"}
            assert (await shop.get("/v1/me", "other_vendor")).status_code == 200
            await limit_vendor(shop)
            assert (await shop.get("/v1/me")).status_code == 200

    asyncio.run(story())


def test_vends_above_the_limit_of_a_day_are_refused_and_may_come_tomorrow(database_url: str) -> None:
    """Earlier sales count, retries do not; the refusal stores nothing, and the id sells after midnight."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            # What the store dates by its own clock must lie on the shop's day.
            shop.clock.now_ms = to_ms(await shop.one("select clock_timestamp()"))
            first = await shop.vend("m-1")
            await limit_vendor(shop, vends_per_day=2)
            assert (await shop.vend("m-2")).status_code == 200
            third = await shop.vend("m-3")
            assert (third.status_code, code_of(third)) == (429, "vend_day_full")
            left_s = int(third.headers["retry-after"])
            midnight_ms = CALENDAR.midnight_ms(CALENDAR.day_of(shop.clock() + DAY_MS))
            assert shop.clock() + left_s * 1_000 >= midnight_ms > shop.clock() + left_s * 1_000 - 1_000
            assert (await shop.vend("m-1")).content == first.content
            assert await shop.one("select count(*) from vends where message_id = 'm-3'") == 0
            assert await shop.one("select sum(vends) from vend_days") == 2
            shop.clock.now_ms = midnight_ms
            assert (await shop.vend("m-3")).status_code == 200

    asyncio.run(story())


def test_twenty_vends_at_once_pass_a_limit_of_money_exactly(database_url: str) -> None:
    """I7 for the day's bound: never above it at once, and all that fits is sold; a terminal has its own."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await limit_vendor(shop, amount_per_day=250_000)
            await limit_vendor(shop, terminal="T17", vends_per_day=3)
            till = await give_key(shop.conn, MASTER, Role.VENDOR, vendor="Station 17", terminal="T17", by="A. Kaur")
            shop.keys["till"] = till

            async def sell(number: int) -> int:
                body = {"message_id": f"m-{number}", "meter": "PB000123", "amount": "500.00"}
                who = "till" if number % 2 else "vendor"
                return (await shop.http.post("/v1/vends", json=body, headers=shop.headers(who))).status_code

            statuses = await asyncio.gather(*(sell(number) for number in range(20)))
            assert sorted(set(statuses)) == [200, 429]
            assert statuses.count(200) == 5
            assert await shop.one("select sum(amount_minor) from vends where journal_id is not null") == 250_000
            counts = dict(await (await shop.conn.execute("select terminal, vends from vend_days")).fetchall())
            assert counts[""] == 5
            assert counts.get("T17", 0) <= 3
            assert await shop.one("select count(*) from tokens") == 5

    asyncio.run(story())


def test_act_is_in_the_trail_with_who_what_and_how_it_ended(database_url: str) -> None:
    """Sold, repeated, refused, not allowed, staff's looks; not what vendors and consumers only read."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            shop.keys["till"] = await give_key(
                shop.conn, MASTER, Role.VENDOR, vendor="Station 17", terminal="T17", by="A. Kaur"
            )
            body = {"message_id": "m-1", "meter": "PB000123", "amount": "500.00"}
            for _ in range(2):
                await shop.http.post("/v1/vends", json=body, headers=shop.headers("till"))
            await shop.vend("m-2", "0.01")
            await shop.http.post("/v1/vends", json=body | {"amount": "900.00"}, headers=shop.headers("till"))
            await shop.http.post("/v1/vends", json=body, headers=shop.headers("consumer"))
            await shop.get("/v1/meters/PB000123")
            await shop.get(f"/v1/accounts/{shop.home.number}", "consumer")
            await shop.get(f"/v1/accounts/{shop.home.number}", "engineer")
            key = {who: shop.keys[who].key_id for who in shop.keys}
            vends = "POST /v1/vends"
            assert await trail_of(shop) == [
                (vends, "PB000123", "m-1", "vended", 200, "vendor", key["till"], "T17"),
                (vends, "PB000123", "m-1", "repeated", 200, "vendor", key["till"], "T17"),
                (vends, "PB000123", "m-2", "amount_below_minimum", 422, "vendor", key["vendor"], None),
                (vends, "", "", "message_id_reused", 409, "vendor", key["till"], "T17"),
                (vends, "", "", "not_allowed", 403, "consumer", key["consumer"], None),
                ("GET /v1/accounts/{id}", "100200300", "", "done", 200, "engineer", key["engineer"], None),
            ]
            digests = await (await shop.conn.execute("select request_digest from audit_trail order by id")).fetchall()
            assert digests[1] == digests[2] != digests[4]

    asyncio.run(story())


def test_key_that_is_refused_again_and_again_has_one_line_a_minute(database_url: str) -> None:
    """Guessing at a known key is seen, and cannot fill the trail; an unknown one leaves no line."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            wrong = {"X-Api-Key": f"{shop.keys['vendor'].key_id}.{'x' * 43}"}
            for _ in range(3):
                await shop.http.get("/v1/me", headers=wrong)
                await shop.http.get("/v1/me", headers={"X-Api-Key": f"nobody.{'x' * 43}"})
            assert [row[3:7] for row in await trail_of(shop)] == [
                ("api_key_wrong", 401, "vendor", shop.keys["vendor"].key_id)
            ]
            shop.clock.now_ms += 60_000
            await shop.http.get("/v1/me", headers=wrong)
            assert len(await trail_of(shop)) == 2

    asyncio.run(story())


def test_vend_and_its_line_are_there_together_or_not_at_all(database_url: str) -> None:
    """A vend that fails leaves only the line of the error; a line that cannot be written undoes the vend."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute("alter table tokens rename to tokens_away")
            assert (await shop.vend("m-1")).status_code == 500
            await shop.conn.execute("alter table tokens_away rename to tokens")
            assert [row[3:5] for row in await trail_of(shop)] == [("internal_error", 500)]
            await shop.conn.execute("alter table audit_trail rename to trail_away")
            assert (await shop.vend("m-1")).status_code == 500
            assert await shop.one("select count(*) from vends where journal_id is not null") == 0
            await shop.conn.execute("alter table trail_away rename to audit_trail")
            assert (await shop.vend("m-1")).status_code == 200
            assert [row[3] for row in await trail_of(shop)] == ["internal_error", "vended"]

    asyncio.run(story())


def test_trail_and_limits_take_inserts_only(database_url: str) -> None:
    """The processes' role has no right to change a line, and a trigger refuses it to the owner."""

    async def story() -> None:
        for role in (None, APPLICATION_ROLE):
            async with await connect(database_url, application="test", role=role) as conn:
                for table in ("audit_trail", "api_limits"):
                    for statement in (f"update {table} set vendor_id = 0", f"delete from {table}", f"truncate {table}"):
                        with pytest.raises(psycopg.errors.InsufficientPrivilege):
                            await conn.execute(statement.encode())

    asyncio.run(story())


def test_auditor_pages_through_the_trail(database_url: str) -> None:
    """By actor, act, subject, outcome and time, the newest first; the same rows as the command prints."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            shop.keys["auditor"] = await give_key(shop.conn, MASTER, Role.AUDITOR, by="A. Kaur")
            for number in range(3):
                await shop.vend(f"m-{number}")
            found = (await shop.get("/v1/audit-trail?actor=Station%2017&limit=2", "auditor")).json()
            assert [each["reference"] for each in found["acts"]] == ["m-2", "m-1"]
            path = f"/v1/audit-trail?act=POST%20/v1/v&subject=PB000123&before={found['next']}"
            rest = (await shop.get(path, "auditor")).json()
            assert ([each["reference"] for each in rest["acts"]], rest["next"]) == (["m-0"], None)
            nothing = (await shop.get("/v1/audit-trail?outcome=vended&until=2000-01-01T00:00:00Z", "auditor")).json()
            assert nothing == {"acts": [], "next": None}
            bad = await shop.get("/v1/audit-trail?since=2026-11-21T00:00:00", "auditor")
            assert (bad.status_code, code_of(bad)) == (400, "bad_instant")
            # Looking at the trail is an act itself.
            own = (await shop.get("/v1/audit-trail?act=GET%20/v1/audit-trail", "auditor")).json()
            assert len(own["acts"]) == 4

    asyncio.run(story())


def test_commands_give_keys_out_and_show_what_was_done(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Add, list, rotate, limit, revoke; each with who and why, and none prints a secret twice."""
    monkeypatch.setenv("PREPAID_DATABASE_URL", database_url)
    monkeypatch.setenv("PREPAID_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())
    monkeypatch.setenv("PREPAID_LOG_LEVEL", "error")

    async def prepare() -> None:
        async with open_shop(database_url):
            pass

    asyncio.run(prepare())
    runner = CliRunner()

    def ask(*arguments: str) -> dict[str, Any]:
        done = runner.invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        return dict(json.loads(done.stdout))

    by = ("--by", "A. Kaur")
    key = ask("api-keys", "add", "vendor", "--vendor", "Station 17", "--terminal", "T17", "--scope", "read_own", *by)
    new = ask("api-keys", "rotate", key["key_id"], "--overlap-h", "1", *by)
    assert new["api_key"] == f"{new['key_id']}.{new['secret']}"
    ask("api-keys", "revoke", key["key_id"], "--reason", "till stolen", *by)
    ask("api-keys", "limit", "Station 17", "--amount-per-day", "500.00", "--reason", "small shop", *by)
    limits = ask("api-keys", "limits", "--vendor", "Station 17")["limits"]
    assert [(each["amount_per_day"], each["set_by"], each["in_force"]) for each in limits] == [
        (50_000, "A. Kaur", True)
    ]
    listed = ask("api-keys", "list", "--vendor", "Station 17", "--role", "vendor")["keys"]
    assert [(each["key_id"], each["active"], each["can_sign"], each["scopes"]) for each in listed][:2] == [
        (new["key_id"], True, True, ["read_own"]),
        (key["key_id"], False, True, ["read_own"]),
    ]
    assert key["secret"] not in json.dumps(listed)
    acts = ask("audit-trail", "--act", "api-keys", "--actor", "A. Kaur")["acts"]
    assert [(each["act"], each["subject"], each["reference"]) for each in acts] == [
        ("api-keys limit", "Station 17", "small shop"),
        ("api-keys revoke", key["key_id"], "till stolen"),
        ("api-keys rotate", key["key_id"], f"by {new['key_id']}"),
        ("api-keys add", key["key_id"], ""),
    ]
    for refused in (
        ("api-keys", "revoke", key["key_id"], "--reason", "again", *by),
        ("api-keys", "add", "vendor", *by),
        ("api-keys", "add", "vendor", "--vendor", "Station 17", "--scope", "deposit", *by),
        ("api-keys", "add", "king", *by),
    ):
        assert type(runner.invoke(app, list(refused)).exception).__name__ in ("AccessRefused", "CommandRefused")
    for shown in (("api-keys", "list"), ("api-keys", "limits"), ("audit-trail",)):
        printed = runner.invoke(app, list(shown))
        assert printed.exit_code == 0, printed.exception
        assert "A. Kaur" in printed.stdout or "Station 17" in printed.stdout
