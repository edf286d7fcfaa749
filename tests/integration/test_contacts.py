"""Contacts and their codes through the interface: who may, what is proven, what is refused, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from billing.notices import Channel, Language
from db.contacts import unreachable_accounts
from db.notices import list_notices
from headend.edges.notice_port import NoticePort
from tests.integration.vending_shop import CALENDAR, Shop, add_home, open_shop
from tests.notice_support import (
    MAIL,
    PHONE,
    ShiftedClock,
    add_contact,
    running_notifier,
    sms_gateway,
    until,
)
from vending.edges.contact_desk import CODE_TRIES_MAX, CODES_PER_CONSUMER_MAX, CODES_PER_HOUR_MAX, CONTACTS_MAX

pytestmark = pytest.mark.db

CONTACTS = "/v1/accounts/100200300/contacts"
MINUTE_MS, HOUR_MS = 60_000, 3_600_000


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Shop]:
    """Open a shop at the time of its database, with nothing told yet."""
    async with open_shop(database_url) as shop:
        await shop.conn.execute("delete from notices")
        shop.clock.now_ms = ShiftedClock()()
        yield shop


async def post(shop: Shop, path: str, who: str = "consumer", **body: object) -> httpx.Response:
    """Post as a caller."""
    return await shop.http.post(path, json=body or None, headers=shop.headers(who))


async def new_contact(shop: Shop, address: str = PHONE, who: str = "consumer", **more: object) -> dict[str, Any]:
    """Add a contact as a caller; return it."""
    channel = "email" if "@" in address else "sms"
    answered = await post(shop, CONTACTS, who, channel=channel, address=address, **more)
    assert answered.status_code == 200, answered.text
    return dict(answered.json())


async def code_of(shop: Shop, contact_id: int) -> str:
    """Read the newest code where the notifier finds it."""
    return str(
        await shop.one(
            "select facts ->> 'code' from notices where kind = 'otp' and contact_id = %s order by id desc limit 1",
            contact_id,
        )
    )


def code_in(answered: httpx.Response) -> str:
    """Return the code of a refusal."""
    return str(answered.json()["error"]["code"])


def test_contact_is_proven_by_the_code_that_reached_it(database_url: str) -> None:
    """The code leaves as a notice to that contact alone, in its language, and is forgotten once delivered."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            with sms_gateway() as gateway:
                contact = await new_contact(shop, "98765 43210", language="hi")
                assert (contact["address"], contact["verified_at"]) == (PHONE, None)
                path = f"{CONTACTS}/{contact['id']}"
                sent = await post(shop, f"{path}/code")
                assert sent.status_code == 202
                assert "code" not in sent.json()
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                async with running_notifier(database_url, ports):
                    await until(
                        lambda: shop.one("select count(*) from notice_deliveries where state = 'sent'"), "it is sent"
                    )
                (request,) = gateway.requests
                assert request.body["template"] == "otp.hi"
                code = request.body["text"][:6]
                assert code.isdigit()
                stored = await shop.one(
                    "select string_agg(t::text, ' ') from (select n, o from notices n, contact_otps o) t"
                )
                assert code not in stored
                proven = await post(shop, f"{path}/verify", code=code)
                assert proven.status_code == 200
                assert proven.json()["verified_at"] is not None
                again = await post(shop, f"{path}/verify", code=code)
                assert (again.status_code, code_in(again)) == (422, "no_code")

    asyncio.run(story())


def test_code_is_never_listed(database_url: str) -> None:
    """Who may read an account's notices cannot prove a telephone that he does not have."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            contact = await new_contact(shop)
            await post(shop, f"{CONTACTS}/{contact['id']}/code")
            assert await code_of(shop, contact["id"])
            listed = await list_notices(
                shop.conn, shop.home.account_id, language=Language.ENGLISH, calendar=CALENDAR, show_tokens=True
            )
            assert listed == []

    asyncio.run(story())


def test_wrong_codes_are_counted_and_end_the_code(database_url: str) -> None:
    """After five wrong tries the right code is worth nothing; a new one is."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            contact = await new_contact(shop)
            path = f"{CONTACTS}/{contact['id']}"
            assert code_in(await post(shop, f"{path}/verify", code="000000")) == "no_code"
            await post(shop, f"{path}/code")
            right = await code_of(shop, contact["id"])
            wrong = f"{(int(right) + 1) % 1_000_000:06d}"
            for left in reversed(range(CODE_TRIES_MAX)):
                answered = await post(shop, f"{path}/verify", code=wrong)
                assert (answered.status_code, code_in(answered)) == (422, "code_wrong")
                assert f"{left} tries left" in answered.text
            assert code_in(await post(shop, f"{path}/verify", code=right)) == "code_spent"
            await post(shop, f"{path}/code")
            newest = await code_of(shop, contact["id"])
            if newest != right:
                assert code_in(await post(shop, f"{path}/verify", code=right)) == "code_wrong"
            assert (await post(shop, f"{path}/verify", code=f" {newest} ")).status_code == 200

    asyncio.run(story())


def test_code_holds_for_ten_minutes(database_url: str) -> None:
    """A code that comes too late proves nothing."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            contact = await new_contact(shop)
            await post(shop, f"{CONTACTS}/{contact['id']}/code")
            code = await code_of(shop, contact["id"])
            shop.clock.now_ms += 10 * MINUTE_MS
            late = await post(shop, f"{CONTACTS}/{contact['id']}/verify", code=code)
            assert (late.status_code, code_in(late)) == (422, "code_expired")
            shop.clock.now_ms -= 1
            assert (await post(shop, f"{CONTACTS}/{contact['id']}/verify", code=code)).status_code == 200

    asyncio.run(story())


def test_codes_to_an_address_are_few_whoever_asks(database_url: str) -> None:
    """Nobody's telephone is flooded, not by many accounts nor at the same time; a consumer's codes are few, too."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            other = await add_home(shop.conn, "M2", "200300400")
            mine = await new_contact(shop)
            theirs = await post(shop, f"/v1/accounts/{other.number}/contacts", "engineer", channel="sms", address=PHONE)
            paths = [
                f"{CONTACTS}/{mine['id']}/code",
                f"/v1/accounts/{other.number}/contacts/{theirs.json()['id']}/code",
            ]
            answered = await asyncio.gather(*(post(shop, paths[n % 2], "engineer") for n in range(8)))
            assert sorted(each.status_code for each in answered) == [202] * CODES_PER_HOUR_MAX + [429] * 5
            assert {code_in(each) for each in answered if each.status_code == 429} == {"too_many_codes"}
            shop.clock.now_ms += HOUR_MS
            assert (await post(shop, paths[0])).status_code == 202
            sent = await shop.one(
                "select count(*) from contact_otps o join contacts c on c.id = o.contact_id where c.id = %s", mine["id"]
            )
            for number in range(CODES_PER_CONSUMER_MAX - sent):
                contact = await new_contact(shop, f"a{number % (CONTACTS_MAX - 1)}@b.in")
                shop.clock.now_ms += 21 * MINUTE_MS
                assert (await post(shop, f"{CONTACTS}/{contact['id']}/code")).status_code == 202
            fresh = await new_contact(shop, "a0@b.in")
            assert (await post(shop, f"{CONTACTS}/{fresh['id']}/code")).status_code == 429
            shop.clock.now_ms += 24 * HOUR_MS
            assert (await post(shop, f"{CONTACTS}/{fresh['id']}/code")).status_code == 202

    asyncio.run(story())


def test_only_who_may_see_an_account_touches_its_contacts(database_url: str) -> None:
    """Consumers their own, engineers and vendors any, vendors without reading addresses; nobody else."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            other = await add_home(shop.conn, "M2", "200300400")
            contact = await new_contact(shop)
            theirs = f"/v1/accounts/{other.number}/contacts"
            for answered in (
                await shop.get(theirs, "consumer"),
                await post(shop, theirs, channel="sms", address=PHONE),
                await post(shop, f"{theirs}/{contact['id']}/code"),
                await post(shop, f"{theirs}/{contact['id']}/verify", code="1"),
                await shop.http.delete(f"{CONTACTS}/{contact['id']}", headers=shop.headers("vendor")),
            ):
                assert (answered.status_code, code_in(answered)) == (403, "not_allowed")
            assert (await shop.http.get(CONTACTS)).status_code == 401
            # Of another account the contact does not exist, for whoever asks.
            gone = await post(shop, f"{theirs}/{contact['id']}/code", "engineer")
            assert (gone.status_code, code_in(gone)) == (404, "unknown_contact")
            assert (await shop.get("/v1/accounts/NONE/contacts", "engineer")).status_code == 404
            for who, address in (("engineer", PHONE), ("vendor", "*********3210"), ("consumer", PHONE)):
                (listed,) = (await shop.get(CONTACTS, who)).json()["contacts"]
                assert listed["address"] == address

    asyncio.run(story())


def test_contact_again_changes_its_language_and_keeps_its_proof(database_url: str) -> None:
    """Adding is harmless twice; one that was removed has to be proven again."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            contact = await new_contact(shop, MAIL)
            await shop.conn.execute("update contacts set verified_at = now()")
            changed = await new_contact(shop, MAIL, language="pa", priority=3)
            assert changed["id"] == contact["id"]
            assert (changed["language"], changed["priority"], bool(changed["verified_at"])) == ("pa", 3, True)
            path = f"{CONTACTS}/{contact['id']}"
            left = await shop.http.delete(path, headers=shop.headers("consumer"))
            assert left.json() == {"account_number": "100200300", "contacts": []}
            assert (await shop.http.delete(path, headers=shop.headers("consumer"))).status_code == 404
            assert (await new_contact(shop, MAIL))["verified_at"] is None

    asyncio.run(story())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"channel": "sms", "address": "123"}, 400, "bad_address"),
        ({"channel": "email", "address": "a@b.in\r\nBcc: c@d.in"}, 400, "bad_address"),
        ({"channel": "app", "address": "x"}, 400, "malformed"),
        ({"channel": "sms", "address": PHONE, "language": "fr"}, 400, "malformed"),
        ({"channel": "sms", "address": PHONE, "priority": 0}, 400, "malformed"),
        ({"channel": "sms", "address": PHONE, "verified_at": "now"}, 400, "malformed"),
    ],
)
def test_contact_that_is_none_is_refused(database_url: str, body: dict[str, object], status: int, code: str) -> None:
    """What cannot be reached is not stored."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            answered = await post(shop, CONTACTS, **body)
            assert (answered.status_code, code_in(answered)) == (status, code)
            assert "123" not in answered.json()["error"]["message"]
            assert await shop.count("contacts") == 0

    asyncio.run(story())


def test_consumer_has_so_many_contacts_and_no_more(database_url: str) -> None:
    """The one too many is not stored; one that is there can still be changed."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            for number in range(CONTACTS_MAX):
                await new_contact(shop, f"a{number}@b.in")
            full = await post(shop, CONTACTS, channel="email", address="more@b.in")
            assert (full.status_code, code_in(full)) == (409, "too_many_contacts")
            assert await shop.count("contacts") == CONTACTS_MAX
            await new_contact(shop, "a0@b.in", language="hi")

    asyncio.run(story())


def test_report_lists_whom_no_message_can_reach(database_url: str) -> None:
    """No contact, none proven, all failing or all stopped; one usable contact is enough."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            homes = {name: await add_home(shop.conn, name, f"20{n}") for n, name in enumerate("ABCDE")}
            await add_contact(shop.conn, homes["B"].account_id, "b@b.in", verified=False)
            await add_contact(shop.conn, homes["C"].account_id, "c@b.in")
            await add_contact(shop.conn, homes["D"].account_id, "d@b.in")
            for address in ("e1@b.in", "e2@b.in"):
                await add_contact(shop.conn, homes["E"].account_id, address)
            await shop.conn.execute("update contacts set failed_at = now() where address in ('c@b.in', 'e1@b.in')")
            await shop.conn.execute("update contacts set stopped_at = now() where address = 'd@b.in'")
            gone = await add_contact(shop.conn, shop.home.account_id, "gone@b.in")
            await shop.conn.execute("update contacts set removed_at = now() where id = %s", (gone,))
            found = {}
            accounts = 0
            async for count, rows in unreachable_accounts(shop.conn, accounts_per_range=2):
                accounts += count
                found |= {row.number: row.reason for row in rows}
            assert accounts == 6
            assert found == {
                "100200300": "no_contact", "200": "no_contact", "201": "unverified", "202": "failing", "203": "stopped",
            }  # fmt: skip

    asyncio.run(story())
