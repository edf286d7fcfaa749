"""Who is let in: signatures, plain keys, roles, keys that change under a running process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx
import psycopg
import pytest

import db.migrate as migrate_module
import vending.edges.key_ring as ring_module
from billing.calendar import from_ms
from db.migrate import migrate, migrations
from db.pool import connect, make_pool
from db.registry import add_vendor
from loadtests.signed_client import SignedAuth
from tests.integration.test_vending_edges import code_of
from tests.integration.vending_shop import CALENDAR, MASTER, Clock, Shop, open_shop
from vending.edges.api import create_app
from vending.edges.gate import PlainKeys
from vending.edges.key_desk import KeyRefused, give_key, rotate_key, take_key_back
from vending.edges.key_ring import AGE_MS_MAX, LOOK_EVERY_MS, KeyRing, KnownKey
from vending.edges.keys import NewApiKey, issue_api_key, load_security_module
from vending.roles import Role, Scope
from vending.signatures import sign_request

pytestmark = pytest.mark.db

ELSEWHERE = ("203.0.113.9", 4711)


@asynccontextmanager
async def beside(
    shop: Shop, *, client: tuple[str, int] = ELSEWHERE, plain_keys: PlainKeys = PlainKeys.LOOPBACK
) -> AsyncIterator[httpx.AsyncClient]:
    """Another API process on the shop's database, called from somewhere."""
    app = create_app(
        database_url=shop.conn.info.dsn + f" password={shop.conn.info.password}",
        calendar=CALENDAR,
        security_module=await load_security_module(shop.conn, MASTER),
        vend_min_minor=1_000,
        vend_max_minor=5_000_000,
        stale_reading_s=None,
        master=MASTER,
        plain_keys=plain_keys,
        look_every_ms=0,
        clock=shop.clock,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=client)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as http,
    ):
        yield http


def auth_of(shop: Shop, key: NewApiKey) -> SignedAuth:
    """Sign with a key by the shop's clock."""
    return SignedAuth(key.header, now_s=lambda: shop.clock() // 1000)


def headers_of(
    shop: Shop, key: NewApiKey, method: str, path: str, body: bytes = b"", *, nonce: str = "n" * 16, late_s: int = 0
) -> dict[str, str]:
    """Sign a request whose bytes the test then sends as often and as altered as it likes."""
    at_s = shop.clock() // 1000 - late_s
    signed = {"method": method, "path": path, "body": body, "at_s": at_s, "nonce": nonce}
    return sign_request(key_id=key.key_id, secret=key.secret, **signed)  # type: ignore[arg-type]  # By name.


def test_signed_vend_is_taken_from_anywhere_and_its_copy_gets_the_same_answer(database_url: str) -> None:
    """The very bytes of a vend sell once and are answered again, by every process; other bytes are refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop, beside(shop) as far, beside(shop) as second:
            key, body = shop.keys["vendor"], json.dumps({"message_id": "m-1", "meter": "PB000123", "amount": "500.00"})
            headers = headers_of(shop, key, "POST", "/v1/vends", body.encode()) | {"content-type": "application/json"}
            sold = await far.post("/v1/vends", content=body, headers=headers)
            assert sold.status_code == 200, sold.text
            again = await asyncio.gather(
                *(http.post("/v1/vends", content=body, headers=headers) for http in (far, second))
            )
            assert {each.content for each in again} == {sold.content}
            assert await shop.one("select count(*) from vends where journal_id is not null") == 1
            dearer = await far.post("/v1/vends", content=body.replace("500", "900"), headers=headers)
            assert (dearer.status_code, code_of(dearer)) == (401, "signature_wrong")
            # Another key's name on the same signature.
            other = headers | {"X-Prepaid-Key": shop.keys["other_vendor"].key_id}
            assert code_of(await far.post("/v1/vends", content=body, headers=other)) == "signature_wrong"

    asyncio.run(story())


def test_nonce_is_good_once_whichever_process_sees_it(database_url: str) -> None:
    """A copy of a signed request that is no vend is refused, by another process as well, and after a restart."""

    async def story() -> None:
        async with open_shop(database_url) as shop, beside(shop) as far:
            headers = headers_of(shop, shop.keys["vendor"], "GET", "/v1/meters/PB000123")
            assert (await far.get("/v1/meters/PB000123", headers=headers)).status_code == 200
            for http in (far, shop.http):
                copy = await http.get("/v1/meters/PB000123", headers=headers)
                assert (copy.status_code, code_of(copy)) == (401, "nonce_reused")
            async with beside(shop) as fresh:
                assert code_of(await fresh.get("/v1/meters/PB000123", headers=headers)) == "nonce_reused"
            # The number is the key's own.
            other = headers_of(shop, shop.keys["other_vendor"], "GET", "/v1/meters/PB000123")
            assert (await far.get("/v1/meters/PB000123", headers=other)).status_code == 200
            # What is too old to pass is forgotten, and does not pass.
            shop.clock.now_ms += 700_000
            assert (await far.get("/v1/me", auth=auth_of(shop, shop.keys["vendor"]))).status_code == 200
            assert code_of(await far.get("/v1/meters/PB000123", headers=headers)) == "signature_expired"

    asyncio.run(story())


def test_signature_is_of_these_minutes_of_this_path_and_of_a_key_in_force(database_url: str) -> None:
    """Old, early, of another query, missing, of an unknown or a revoked key: refused, the last two alike."""

    async def story() -> None:
        async with open_shop(database_url) as shop, beside(shop) as far:
            key = shop.keys["vendor"]
            path = "/v1/meters/PB000123"
            for late_s in (-301, 301):
                old = await far.get(path, headers=headers_of(shop, key, "GET", path, late_s=late_s))
                assert (old.status_code, code_of(old)) == (401, "signature_expired")
            for late_s in (-300, 300):
                headers = headers_of(shop, key, "GET", path, late_s=late_s, nonce=f"nonce{late_s:+}".replace("+", "_"))
                assert (await far.get(path, headers=headers)).status_code == 200
            assert (
                code_of(await far.get(path + "?x=1", headers=headers_of(shop, key, "GET", path))) == "signature_wrong"
            )
            bare = await far.get(path, headers={"X-Prepaid-Key": key.key_id})
            assert (bare.status_code, code_of(bare)) == (401, "signature_missing")
            unknown = NewApiKey(key_id="0" * 16, secret=key.secret)
            unsealed = await issue_api_key(shop.conn, Role.ENGINEER)
            await take_key_back(shop.conn, key.key_id, by="A. Kaur", reason="till stolen", now=from_ms(shop.clock()))
            refused = [
                await far.get(path, headers=headers_of(shop, each, "GET", path)) for each in (unknown, unsealed, key)
            ]
            assert {(each.status_code, code_of(each)) for each in refused} == {(401, "signature_wrong")}
            assert len({each.content for each in refused}) == 1

    asyncio.run(story())


LET_IN = {
    PlainKeys.NEVER: set[str](),
    PlainKeys.LOOPBACK: {"vendor here", "consumer here"},
    PlainKeys.CONSUMERS: {"vendor here", "consumer here", "consumer far", "consumer by proxy"},
    PlainKeys.EVERYWHERE: {f"{who} {where}" for who in ("vendor", "consumer") for where in ("here", "far", "by proxy")},
}


def test_plain_key_is_enough_where_the_setting_says(database_url: str) -> None:
    """By default only from this machine, with nothing between; a signature is enough everywhere."""

    async def passing(shop: Shop, plain_keys: PlainKeys) -> set[str]:
        passed = set()
        async with (
            beside(shop, plain_keys=plain_keys) as far,
            beside(shop, plain_keys=plain_keys, client=("::1", 4711)) as here,
        ):
            proxied = {"x-forwarded-for": "127.0.0.1"}
            for who in ("vendor", "consumer"):
                for where, http, more in (("here", here, {}), ("far", far, {}), ("by proxy", here, proxied)):
                    answered = await http.get("/v1/meters/PB000123", headers=shop.headers(who) | more)
                    if answered.status_code == 200:
                        passed.add(f"{who} {where}")
                    else:
                        assert (answered.status_code, code_of(answered)) == (401, "signature_missing")
            signed = await far.get("/v1/me", auth=auth_of(shop, shop.keys["vendor"]))
            assert (signed.status_code, signed.json()["vendor"]) == (200, "Station 17")
        return passed

    async def story() -> None:
        async with open_shop(database_url) as shop:
            for plain_keys, let_in in LET_IN.items():
                assert await passing(shop, plain_keys) == let_in

    asyncio.run(story())


def test_roles_reach_their_own_and_a_narrowed_key_less(database_url: str) -> None:
    """Supervisors sell, auditors only read, cashiers see no account; a key of a terminal is of no other."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            now = from_ms(shop.clock())
            kinds = {
                "supervisor": {"role": Role.SUPERVISOR, "vendor": "Station 17"},
                "reader": {"role": Role.VENDOR, "vendor": "Station 17", "scopes": [Scope.READ_OWN]},
                "till": {"role": Role.VENDOR, "vendor": "Station 17", "terminal": "T17"},
                "cashier": {"role": Role.CASHIER},
                "auditor": {"role": Role.AUDITOR},
            }
            for who, kind in kinds.items():
                shop.keys[who] = await give_key(shop.conn, MASTER, by="A. Kaur", **kind)  # type: ignore[arg-type]
            account = f"/v1/accounts/{shop.home.number}"
            seen = {
                who: [(await shop.get(path, who)).status_code for path in (account, "/v1/vends/m-0", "/v1/audit-trail")]
                for who in ("supervisor", "reader", "cashier", "auditor", "engineer", "consumer")
            }
            assert seen == {
                "supervisor": [403, 404, 403],
                "reader": [403, 404, 403],
                "cashier": [403, 403, 403],
                "auditor": [200, 403, 200],
                "engineer": [200, 403, 403],
                "consumer": [200, 403, 403],
            }
            sold = {}
            for who in ("supervisor", "reader", "till", "cashier", "auditor"):
                body = {"message_id": f"m-{who}", "meter": "PB000123", "amount": "500.00"}
                sold[who] = (await shop.http.post("/v1/vends", json=body, headers=shop.headers(who))).status_code
            assert sold == {"supervisor": 200, "reader": 403, "till": 200, "cashier": 403, "auditor": 403}
            threshold = await shop.http.put(
                f"{account}/threshold", json={"threshold": "1.00"}, headers=shop.headers("auditor")
            )
            assert (threshold.status_code, code_of(threshold)) == (403, "not_allowed")
            other = {"message_id": "m-t", "meter": "PB000123", "amount": "500.00", "terminal": "T18"}
            elsewhere = await shop.http.post("/v1/vends", json=other, headers=shop.headers("till"))
            assert (elsewhere.status_code, code_of(elsewhere)) == (403, "not_allowed")
            me = (await shop.get("/v1/me", "till")).json()
            assert (me["role"], me["terminal"], me["active"]) == ("vendor", "T17", True)
            assert "sell" in me["scopes"]
            assert me["at"] == now.isoformat()
            with pytest.raises(KeyRefused, match="vendor"):
                await give_key(shop.conn, MASTER, Role.VENDOR, vendor="nobody", by="A. Kaur")

    asyncio.run(story())


def test_rotation_keeps_two_keys_in_force_until_the_overlap_has_passed(database_url: str) -> None:
    """The new key has everything of the old one; there is never a third; a revoked old one ends at once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            old = await give_key(
                shop.conn,
                MASTER,
                Role.VENDOR,
                vendor="Station 17",
                terminal="T17",
                scopes=[Scope.READ_OWN],
                by="A. Kaur",
            )

            async def rotate(key: NewApiKey) -> NewApiKey:
                now, hour = from_ms(shop.clock()), timedelta(hours=1)
                return await rotate_key(shop.conn, MASTER, key.key_id, overlap=hour, by="A. Kaur", now=now)

            async def is_let_in(key: NewApiKey) -> bool:
                return (await shop.http.get("/v1/me", auth=auth_of(shop, key))).status_code == 200

            new = await rotate(old)
            assert await is_let_in(old)
            assert await is_let_in(new)
            me = (await shop.http.get("/v1/me", auth=auth_of(shop, new))).json()
            assert (me["vendor"], me["terminal"], me["scopes"]) == ("Station 17", "T17", ["read_own"])
            for each in (old, new):
                with pytest.raises(KeyRefused, match="two"):
                    await rotate(each)
            shop.clock.now_ms += 3_600_000
            assert not await is_let_in(old)
            newest = await rotate(new)
            await take_key_back(shop.conn, new.key_id, by="A. Kaur", reason="leaked", now=from_ms(shop.clock()))
            assert not await is_let_in(new)
            assert await is_let_in(newest)
            with pytest.raises(KeyRefused):
                await take_key_back(shop.conn, new.key_id, by="A. Kaur", reason="again", now=from_ms(shop.clock()))

    asyncio.run(story())


@dataclass(slots=True)
class Steady:
    """A steady clock that a test moves."""

    now_ms: int = 1_000

    def __call__(self) -> int:
        return self.now_ms


def test_calls_cost_no_look_up_and_a_key_taken_back_is_out_within_a_second(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys call, each is read once until something changes; without a database nobody is let in."""
    readings = 0

    async def counted(*args: object, **more: object) -> list[object]:
        nonlocal readings
        readings += 1
        return await read(*args, **more)  # type: ignore[arg-type]  # As it was called.

    read = ring_module.read_called_keys
    monkeypatch.setattr(ring_module, "read_called_keys", counted)

    async def story() -> None:
        steady, clock = Steady(), Clock()
        ring = KeyRing(master=MASTER, clock=clock, steady_ms=steady)
        async with await connect(database_url, application="test") as conn:
            vendor_id = await add_vendor(conn, "Station 17")
            key, other = [await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER) for _ in range(2)]
            pool = make_pool(database_url, application="test", size_max=2)
            await pool.open(wait=True)

            async def found(name: str = key.key_id) -> KnownKey:
                known = await ring.find(pool, name)
                assert known is not None
                return known

            for _ in range(500):
                steady.now_ms += 10
                assert (await found()).secret == key.secret.encode()
                assert (await found(other.key_id)).secret == other.secret.encode()
                assert await ring.find(pool, "nobody") is None
            assert readings == 3
            await take_key_back(conn, key.key_id, by="A. Kaur", reason="lost", now=from_ms(clock()))
            steady.now_ms += LOOK_EVERY_MS
            assert not (await found()).is_in_force(clock())
            assert (await found(other.key_id)).is_in_force(clock())
            # Both were read again in one statement, with the one that is none.
            assert readings == 4
            await conn.execute("update vendors set active = false")
            steady.now_ms += 60_000 + LOOK_EVERY_MS
            assert (await found(other.key_id)).row.vendor_active is False
            late = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER)
            assert (await found(late.key_id)).secret == late.secret.encode()
            await pool.close()
            steady.now_ms += AGE_MS_MAX
            with pytest.raises(psycopg.OperationalError):
                await ring.find(pool, other.key_id)

    asyncio.run(story())


def test_row_read_before_a_change_is_not_kept_after_it(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that a change and its look overtake is answered, and forgotten."""

    async def story() -> None:
        steady, clock = Steady(), Clock()
        ring = KeyRing(master=MASTER, clock=clock, steady_ms=steady)
        async with await connect(database_url, application="test") as conn:
            vendor_id = await add_vendor(conn, "Station 17")
            key = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER)
            pool = make_pool(database_url, application="test", size_max=3)
            await pool.open(wait=True)
            was_read, may_go_on = asyncio.Event(), asyncio.Event()

            async def overtaken(*args: object, **more: object) -> list[object]:
                rows = await read(*args, **more)  # type: ignore[arg-type]  # As it was called.
                was_read.set()
                await may_go_on.wait()
                return rows

            read = ring_module.read_called_keys
            monkeypatch.setattr(ring_module, "read_called_keys", overtaken)
            slow = asyncio.create_task(ring.find(pool, key.key_id))
            await was_read.wait()
            monkeypatch.setattr(ring_module, "read_called_keys", read)
            await take_key_back(conn, key.key_id, by="A. Kaur", reason="lost", now=from_ms(clock()))
            steady.now_ms += LOOK_EVERY_MS
            await ring.find(pool, "somebody")
            may_go_on.set()
            await slow
            known = await ring.find(pool, key.key_id)
            assert known is not None
            assert not known.is_in_force(clock())
            await pool.close()

    asyncio.run(story())


def test_key_under_another_master_key_cannot_sign_and_stops_nobody_else(database_url: str) -> None:
    """A sealed secret that does not open is a key that cannot sign; the header still knows its digest."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute(
                "update api_keys set sealed = (select sealed from api_keys where key_id = %s) where key_id = %s",
                (shop.keys["other_vendor"].key_id, shop.keys["vendor"].key_id),
            )
            moved = await shop.http.get("/v1/me", auth=auth_of(shop, shop.keys["vendor"]))
            assert (moved.status_code, code_of(moved)) == (401, "signature_wrong")
            assert (await shop.get("/v1/me")).status_code == 200
            stored = await shop.one("select string_agg(k::text, ' ') from api_keys k")
            for key in shop.keys.values():
                assert key.secret not in stored
                assert key.secret.encode().hex() not in stored

    asyncio.run(story())


def test_keys_of_before_are_good_as_they_were(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database with keys, vendors and vends is brought up to date; its keys come with the header, and cannot sign."""

    async def story() -> None:
        async with await connect(empty_database_url, application="test") as conn:
            with monkeypatch.context() as before:
                before.setattr(
                    migrate_module, "migrations", lambda: [each for each in migrations() if each.name < "0024"]
                )
                await migrate(conn)
            await conn.execute("insert into vendors (name) values ('Station 1')")
            await conn.execute(
                "insert into api_keys (key_id, sha256, role, vendor_id)"
                " select 'old', sha256('0123456789abcdef0123'), 'vendor', id from vendors"
            )
            await migrate(conn)
        async with open_shop(empty_database_url) as shop:
            header = {"X-Api-Key": "old.0123456789abcdef0123"}
            assert (await shop.http.get("/v1/me", headers=header)).json()["vendor"] == "Station 1"
            old = NewApiKey(key_id="old", secret="0123456789abcdef0123")
            assert code_of(await shop.http.get("/v1/me", auth=auth_of(shop, old))) == "signature_wrong"

    asyncio.run(story())
