"""Questions by SMS through the interface: who is answered what, once, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from billing.journals import JournalKind
from billing.notices import (
    BalanceAnswer,
    Channel,
    Facts,
    HelpAnswer,
    Language,
    NoToken,
    Restored,
    Started,
    Stopped,
    TokenResend,
    UseAnswer,
    WhichAccount,
    read_facts,
)
from billing.notices.signing import sign
from billing.supply import Supply
from db.contacts import last_token
from db.notices import list_notices
from db.posting import lock_and_look, post_money
from headend.edges.notice_port import NoticePort
from tests.integration.vending_shop import CALENDAR, OPENED_AT, RULES, Shop, add_home, open_shop
from tests.notice_support import (
    PHONE,
    SECRET,
    ShiftedClock,
    add_contact,
    running_notifier,
    sms_gateway,
    states,
    tell,
    until,
)
from vending.edges.sms_desk import ANSWERS_PER_DAY_MAX

pytestmark = pytest.mark.db

PATH = "/v1/sms/inbound"


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Shop]:
    """Open a shop that takes messages, its consumer known by a proven telephone, with nothing told yet."""
    async with open_shop(database_url, sms_secret=SECRET) as shop:
        await shop.conn.execute("delete from notices")
        await add_contact(shop.conn, shop.home.account_id)
        yield shop


async def hand_over(
    shop: Shop, text: str = "BAL", *, message_id: str = "MO-1", sender: str = PHONE, secret: bytes = SECRET
) -> httpx.Response:
    """Hand a message over as the gateway does."""
    body = json.dumps({"message_id": message_id, "from": sender, "text": text}).encode()
    headers = sign(
        secret=secret, method="POST", path=PATH, body=body, at_s=shop.clock.now_ms // 1000, nonce="nonce-0001"
    )
    return await shop.http.post(PATH, content=body, headers=headers)


async def outcome(shop: Shop, text: str, **more: Any) -> str:  # Arguments of any type.
    """Hand a message over; return what became of it."""
    answered = await hand_over(shop, text, **more)
    assert answered.status_code == 200, answered.text
    return str(answered.json()["outcome"])


async def answered_with(shop: Shop) -> Facts:
    """Return the facts of the newest notice, which is an answer."""
    cursor = await shop.conn.execute("select kind, facts, contact_id from notices order by id desc limit 1")
    row = await cursor.fetchone()
    assert row is not None
    assert row[2] is not None
    return read_facts(row[0], row[1])


async def set_use(shop: Shop) -> None:
    """Let the home use 30 kWh a day for three days from the month's first, and 5 on the fourth morning."""
    for hours, used_wh in ((24, 30_000), (48, 60_000), (72, 90_000), (80, 95_000)):
        await shop.read(OPENED_AT + timedelta(hours=hours), 5_000 + used_wh)


def test_balance_is_the_one_that_every_other_answer_tells(database_url: str) -> None:
    """BAL tells what the account's own page tells, at the same money time, and what restores supply."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            await set_use(shop)
            assert await outcome(shop, "BAL") == "answered"
            facts = await answered_with(shop)
            page = (await shop.get("/v1/accounts/100200300", "consumer")).json()
            assert isinstance(facts, BalanceAnswer)
            assert facts.balance_minor == page["balance_minor"] < 0
            assert facts.at_ms == int(datetime.fromisoformat(page["money_time"]).timestamp() * 1000)
            assert facts.restores_minor == page["supply"]["restores_with_minor"] > 0
            assert facts.supply is Supply.OFF
            assert facts.days_left is None

    asyncio.run(story())


def test_use_is_the_day_and_month_of_money_time(database_url: str) -> None:
    """USE tells the open day and the month to date, from the same readings as the account's page."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            await set_use(shop)
            assert await outcome(shop, "USE") == "answered"
            facts = await answered_with(shop)
            page = (await shop.get("/v1/accounts/100200300", "consumer")).json()
            statement = (await shop.get("/v1/accounts/100200300/statement", "consumer")).json()
            assert isinstance(facts, UseAnswer)
            assert facts.day.isoformat() == page["today"]["day"] == "2026-11-04"
            assert facts.day_energy_wh == page["today"]["energy_wh"] == 5_000
            assert facts.day_charge_minor == page["today"]["charge_minor"]
            assert facts.month_energy_wh == 95_000
            assert facts.month_charge_minor == statement["totals"]["charge_minor"]

    asyncio.run(story())


def test_token_goes_whole_to_a_proven_number_and_masked_to_another(database_url: str) -> None:
    """The last recharge that stands; who only stands in the books sees which token it was, no more."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            assert await outcome(shop, "TOKEN", message_id="MO-0") == "answered"
            assert isinstance(await answered_with(shop), NoToken)
            vends = [(await shop.vend(f"V-{number}", "500.00")).json() for number in (1, 2)]
            await add_contact(shop.conn, shop.home.account_id, "+919000000001", verified=False)
            await outcome(shop, "TOKEN", message_id="MO-1")
            whole = await answered_with(shop)
            await outcome(shop, "टोकन", message_id="MO-2", sender="9000000001")
            masked = await answered_with(shop)
            assert isinstance(whole, TokenResend)
            assert isinstance(masked, TokenResend)
            assert (whole.token, whole.amount_minor) == (vends[1]["token"]["grouped"], 50_000)
            assert masked.token == f"**** **** **** **** {whole.token[-4:]}"
            shown = await list_notices(
                shop.conn, shop.home.account_id, language=Language.ENGLISH, calendar=CALENDAR, limit=9
            )
            assert whole.token not in "".join(each.body for each in shown)
            found = await last_token(shop.conn, shop.home.account_id)
            assert found is not None
            assert found[0] == vends[1]["token"]["digits"]

    asyncio.run(story())


def test_token_of_a_recharge_that_was_taken_back_is_not_sent(database_url: str) -> None:
    """A reversed recharge has no token to hand out."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            first = (await shop.vend("V-1", "500.00")).json()
            await shop.vend("V-2", "300.00")
            async with shop.conn.transaction():
                view = await lock_and_look(shop.conn, shop.home.account_id, RULES)
                await post_money(shop.conn, view, JournalKind.ADJUSTMENT, -30_000, rules=RULES, now_ms=shop.clock())
            journal_id = await shop.one("select journal_id from vends where message_id = 'V-2'")
            await shop.conn.execute(
                "insert into journals (kind, account_id, about_id) values ('reversal', %s, %s)",
                (shop.home.account_id, journal_id),
            )
            found = await last_token(shop.conn, shop.home.account_id)
            assert found is not None
            assert found[0] == first["token"]["digits"]

    asyncio.run(story())


def test_answer_reaches_who_asked_in_the_language_of_the_question(database_url: str) -> None:
    """As a notice like any other: sent, visible, and only to the number that asked."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            shop.clock.now_ms = ShiftedClock()()
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id, "+919000000001", verified=False, priority=9)
                assert await outcome(shop, "ਬੈਲੇਂਸ", sender="+91 90000 00001") == "answered"
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                async with running_notifier(database_url, ports):
                    await until(lambda: gateway.requests, "the answer is sent")
                (request,) = gateway.requests
                assert request.body["to"] == "+919000000001"
                assert request.body["template"] == "balance_answer.pa"
                assert request.body["text"].startswith("ਖਾਤਾ 100200300: ")

    asyncio.run(story())


def test_message_is_answered_once_however_often_it_comes(database_url: str) -> None:
    """The gateway may repeat a request for ever, at once or later; another message under the id is refused."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            answers = await asyncio.gather(*(hand_over(shop) for _ in range(6)))
            shop.clock.now_ms += 40 * 86_400_000
            answers.append(await hand_over(shop))
            assert {(each.status_code, each.content) for each in answers} == {(200, answers[0].content)}
            assert await shop.count("notices") == 1
            other = await hand_over(shop, "TOKEN")
            assert (other.status_code, other.json()["error"]["code"]) == (409, "message_id_reused")
            assert await shop.count("notices") == 1

    asyncio.run(story())


def test_stranger_is_told_nothing(database_url: str) -> None:
    """A number that stands in no books gets no answer, whatever account it names; the message is kept."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            for number, text in enumerate(("BAL", "BAL 100200300", "TOKEN 100200300", "hello", "STOP")):
                assert await outcome(shop, text, message_id=f"MO-{number}", sender="+919111111111") == "unknown_number"
            assert await shop.count("notices") == 0
            assert await shop.one("select count(*) from inbound_messages where outcome = 'unknown_number'") == 5
            removed = await add_contact(shop.conn, shop.home.account_id, "+919111111111")
            await shop.conn.execute("update contacts set removed_at = now() where id = %s", (removed,))
            assert await outcome(shop, "BAL", message_id="MO-9", sender="+919111111111") == "unknown_number"

    asyncio.run(story())


def test_number_of_several_accounts_is_asked_which(database_url: str) -> None:
    """With the account's number the question is answered; a foreign one is as good as none."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            other = await add_home(shop.conn, "M2", "700")
            stranger = await add_home(shop.conn, "M3", "300")
            await add_contact(shop.conn, other.account_id)
            for number, text in enumerate(("BAL", "ਬੈਲੇਂਸ", f"BAL {stranger.number}")):
                assert await outcome(shop, text, message_id=f"MO-{number}") == "answered"
                facts = await answered_with(shop)
                assert facts == WhichAccount(command="ਬੈਲੇਂਸ" if number == 1 else "BAL")
            await outcome(shop, "bal 700.", message_id="MO-8")
            assert isinstance(await answered_with(shop), BalanceAnswer)
            assert await shop.one("select account_id from notices order by id desc limit 1") == other.account_id
            await outcome(shop, "hello", message_id="MO-9")
            assert isinstance(await answered_with(shop), HelpAnswer)

    asyncio.run(story())


def test_stop_ends_messages_of_the_number_and_start_begins_them_again(database_url: str) -> None:
    """For every account of the number; what is asked for is answered all the same."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            shop.clock.now_ms = ShiftedClock()()
            other = await add_home(shop.conn, "M2", "200")
            await add_contact(shop.conn, other.account_id)
            await shop.conn.execute("update notices set planned_at = now()")
            with sms_gateway() as gateway:
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                async with running_notifier(database_url, ports):
                    assert await outcome(shop, "STOP", message_id="MO-1") == "answered"
                    assert isinstance(await answered_with(shop), Stopped)
                    await until(lambda: len(gateway.requests) == 1, "the end of messages is told")
                    for home in (shop.home, other):
                        stopped = await tell(shop.conn, home.account_id, Restored(balance_minor=1))
                        await until(lambda notice_id=stopped: states(shop.conn, notice_id), "it has its way")
                        assert await states(shop.conn, stopped) == {"sms": ("skipped", "stopped")}
                    assert await outcome(shop, "बंद", message_id="MO-2") == "answered"
                    await until(lambda: len(gateway.requests) == 2, "a second stop is told, too")
                    assert await outcome(shop, "START", message_id="MO-3") == "answered"
                    assert isinstance(await answered_with(shop), Started)
                    await tell(shop.conn, other.account_id, Restored(balance_minor=1))
                    await until(lambda: len(gateway.requests) == 4, "messages come again")

    asyncio.run(story())


def test_loop_of_machines_ends(database_url: str) -> None:
    """After so many answers within a day a number gets none; STOP still stops."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            for number in range(ANSWERS_PER_DAY_MAX):
                assert await outcome(shop, "hello", message_id=f"MO-{number}") == "answered"
            assert await outcome(shop, "hello", message_id="MO-too-many") == "too_many"
            assert await outcome(shop, "STOP", message_id="MO-stop") == "too_many"
            assert await shop.one("select count(*) from contacts where stopped_at is not null") == 1
            assert await shop.count("notices") == ANSWERS_PER_DAY_MAX
            shop.clock.now_ms += 86_400_001
            assert await outcome(shop, "hello", message_id="MO-next-day") == "answered"

    asyncio.run(story())


def test_message_without_a_good_signature_is_refused(database_url: str) -> None:
    """Nobody but the gateway hands messages over, and what was recorded is worth nothing later."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            bare = await shop.http.post(PATH, json={"message_id": "MO-1", "from": PHONE, "text": "BAL"})
            forged = await hand_over(shop, secret=b"x" * 32)
            body = b'{"message_id": "MO-1", "from": "+919876543210", "text": "BAL"}'
            at_s = shop.clock.now_ms // 1000 - 301
            old_headers = sign(secret=SECRET, method="POST", path=PATH, body=body, at_s=at_s, nonce="nonce-0001")
            old = await shop.http.post(PATH, content=body, headers=old_headers)
            moved_headers = sign(
                secret=SECRET, method="POST", path="/sms", body=body, at_s=at_s + 301, nonce="nonce-0001"
            )
            moved = await shop.http.post(PATH, content=body, headers=moved_headers)
            assert [(each.status_code, each.json()["error"]["code"]) for each in (bare, forged, old, moved)] == [
                (401, "signature_missing"),
                (401, "signature_wrong"),
                (401, "signature_expired"),
                (401, "signature_wrong"),
            ]
            assert await shop.count("inbound_messages") == 0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b'{"message_id": "", "from": "+919876543210", "text": "BAL"}', "malformed"),
        (b'{"message_id": "M", "from": "+919876543210"}', "malformed"),
        (b'{"message_id": "M", "from": "PSPCL", "text": "BAL"}', "bad_address"),
        (b'{"message_id": "M", "from": "+919876543210", "text": "\\ud800"}', "malformed"),
        (b'{"message_id": "M", "from": "+919876543210", "text": "BAL", "x": 1}', "malformed"),
    ],
)
def test_message_of_another_form_is_refused(database_url: str, body: bytes, code: str) -> None:
    """Signed or not: what is no message is not stored."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            at_s = shop.clock.now_ms // 1000
            headers = sign(secret=SECRET, method="POST", path=PATH, body=body, at_s=at_s, nonce="nonce-0001")
            answered = await shop.http.post(PATH, content=body, headers=headers)
            assert (answered.status_code, answered.json()["error"]["code"]) == (400, code)
            assert "98765" not in answered.text
            assert await shop.count("inbound_messages") == 0

    asyncio.run(story())


def test_installation_without_a_gateway_takes_no_messages(database_url: str) -> None:
    """Without a shared secret nothing can be believed."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            answered = await hand_over(shop)
            assert (answered.status_code, answered.json()["error"]["code"]) == (404, "sms_not_configured")

    asyncio.run(story())


def test_text_with_a_nul_is_no_fault(database_url: str) -> None:
    """A message is from outside: whatever it holds, it is answered."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            assert await outcome(shop, "BAL \x00 \U0010ffff") == "answered"

    asyncio.run(story())
