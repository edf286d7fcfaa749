"""The notifier against a real database, mail server and gateway: ways, retries, ends, crashes, several at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from billing.notices import Channel, Exhausted, Language, Low, Restored, StatementReady, Tamper, TamperEvent
from billing.notices.planning import QuietHours
from db.notices import PLAN_MOST, claim_deliveries, end_dead, end_sent, list_notices, plan_notices, retry_dead
from headend.edges.notice_port import NoticePort
from tests.integration.vending_shop import Shop, add_home, open_shop
from tests.notice_support import (
    CALENDAR,
    DOMAIN,
    MAIL,
    PHONE,
    ShiftedClock,
    add_contact,
    delivery_rules,
    mail_server,
    running_notifier,
    sms_gateway,
    smtp_port,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.db

RESTORED = Restored(balance_minor=12_345)
HOUR_MS = 3_600_000
NOTED = "select state = 'pending' and last_error is not null from notice_deliveries"


@asynccontextmanager
async def open_silent_shop(database_url: str) -> AsyncIterator[Shop]:
    """Open a shop whose consumers have been told nothing yet, though their accounts begin without credit."""
    async with open_shop(database_url) as shop:
        await shop.conn.execute("delete from notices")
        yield shop


async def settled(conn: AsyncConnection) -> bool:
    """Tell whether every notice has its way and no delivery is under way."""
    cursor = await conn.execute(
        "select (select count(*) from notices where planned_at is null)"
        " + (select count(*) from notice_deliveries where state in ('pending', 'sending'))"
    )
    return await cursor.fetchone() == (0,)


def test_notice_reaches_a_proven_number_by_a_signed_request(database_url: str) -> None:
    """The gateway gets text, language and key of the message; the row says that it was sent."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id, language=Language.PUNJABI)
                await add_contact(shop.conn, shop.home.account_id, MAIL)
                notice_id = await tell(shop.conn, shop.home.account_id, RESTORED)
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}):
                    await until(lambda: settled(shop.conn), "the notice is sent")
                (request,) = gateway.requests
                assert request.signed
                assert request.path == "/sms?route=7"
                assert request.key == f"notice-{notice_id}-sms@{DOMAIN}"
                assert request.body == {
                    "id": request.key,
                    "to": PHONE,
                    "text": "ਖਾਤਾ 100200300: ਬਿਜਲੀ ਬਹਾਲ ਕੀਤੀ ਜਾ ਰਹੀ ਹੈ। ਬੈਲੇਂਸ ₹123.45। ਕੋਈ ਫ਼ੀਸ ਨਹੀਂ ਲੱਗੇਗੀ।",
                    "language": "pa",
                    "template": "restored.pa",
                    "sender": "PSPCL",
                }
                assert await states(shop.conn, notice_id) == {"sms": ("sent", None)}

    asyncio.run(story())


def test_second_channel_is_taken_when_the_first_is_refused_for_good(database_url: str, tmp_path: Path) -> None:
    """The refusal is visible, its contact is marked, and the next message that is taken ends the mark."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway, mail_server(tmp_path) as mail:
                phone = await add_contact(shop.conn, shop.home.account_id)
                await add_contact(shop.conn, shop.home.account_id, MAIL)
                gateway.answers = [(422, {})]
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of(), Channel.EMAIL: smtp_port(mail)}
                async with running_notifier(database_url, ports):
                    first = await tell(shop.conn, shop.home.account_id, RESTORED)
                    await until(mail.messages, "the mail has come")
                    await until(lambda: settled(shop.conn), "the first is settled")
                    assert await states(shop.conn, first) == {"sms": ("dead", "422"), "email": ("sent", None)}
                    failed = "select count(*) from contacts where failed_at is not null and id = %s"
                    assert await shop.one(failed, phone) == 1
                    second = await tell(shop.conn, shop.home.account_id, RESTORED)
                    await until(lambda: settled(shop.conn), "the second is settled")
                assert await states(shop.conn, second) == {"sms": ("sent", None)}
                assert await shop.one(failed, phone) == 0
                assert mail.message_ids() == [f"<notice-{first}-email@{DOMAIN}>"]

    asyncio.run(story())


@pytest.mark.parametrize("verified", [False, None])
def test_second_channel_is_taken_when_the_first_has_no_proven_contact(
    database_url: str, tmp_path: Path, verified: bool | None
) -> None:
    """A number that nobody has confirmed gets no facts of an account."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway, mail_server(tmp_path) as mail:
                if verified is not None:
                    await add_contact(shop.conn, shop.home.account_id, verified=verified)
                await add_contact(shop.conn, shop.home.account_id, MAIL)
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of(), Channel.EMAIL: smtp_port(mail)}
                notice_id = await tell(shop.conn, shop.home.account_id, RESTORED)
                async with running_notifier(database_url, ports):
                    await until(lambda: settled(shop.conn), "the notice is settled")
                reason = "no_contact" if verified is None else "unverified"
                assert await states(shop.conn, notice_id) == {"sms": ("skipped", reason), "email": ("sent", None)}
                assert gateway.requests == []

    asyncio.run(story())


def test_gateway_that_asks_to_come_again_is_asked_again_under_the_same_key(database_url: str) -> None:
    """429 and 503 kill nothing, Retry-After is honoured, and a lost answer repeats the message under its key."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                gateway.answers = [(429, {"Retry-After": "1800"}), (503, {}), (401, {}), None]
                notice_id = await tell(shop.conn, shop.home.account_id, RESTORED)
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}, clock=clock):
                    for tries in range(1, 5):
                        await until(lambda wanted=tries: len(gateway.requests) == wanted, f"try {tries}")
                        await until(lambda: shop.one(NOTED), f"try {tries} is noted")
                        if tries == 1:
                            wait = "select extract(epoch from next_try_at - now()) from notice_deliveries"
                            assert 1_790 < float(await shop.one(wait)) <= 1_800
                        clock.shift_ms += HOUR_MS
                    await until(lambda: settled(shop.conn), "the notice is sent")
                assert gateway.keys() == [f"notice-{notice_id}-sms@{DOMAIN}"] * 5
                assert len({str(request.body) for request in gateway.requests}) == 1
                assert await shop.one("select attempts from notice_deliveries") == 5
                assert await shop.count("notice_deliveries") == 1

    asyncio.run(story())


def test_mail_survives_a_server_that_is_killed_and_comes_back(database_url: str, tmp_path: Path) -> None:
    """Every notice arrives; what arrives twice has the same Message-ID; none has a second row."""
    rng = random.Random(20_261_122)

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with mail_server(tmp_path) as mail:
                homes = [shop.home, *[await add_home(shop.conn, f"M{n}", f"20000000{n}") for n in range(4)]]
                await shop.conn.execute("delete from notices")
                for number, home in enumerate(homes):
                    await add_contact(shop.conn, home.account_id, "crash@b.in" if number == 2 else f"home{number}@b.in")
                ids: list[int] = []

                def came(least: int) -> bool:
                    mail.revive()
                    clock.shift_ms += 1_000
                    return len(mail.message_ids()) >= least

                async with running_notifier(database_url, {Channel.EMAIL: smtp_port(mail)}, clock=clock):
                    for round_number in range(6):
                        for home in homes:
                            ids.append(await tell(shop.conn, home.account_id, RESTORED))
                        if round_number % 2:
                            enough = len(set(mail.message_ids())) + rng.randint(1, 5)
                            await until(lambda least=enough: came(least), "some have come")
                            mail.kill()
                            mail.start()
                        clock.shift_ms += 60_000
                    while not await settled(shop.conn):
                        mail.revive()
                        clock.shift_ms += 60_000
                        await asyncio.sleep(0.2)
                kept = Counter(mail.message_ids())
                assert set(kept) == {f"<notice-{notice_id}-email@{DOMAIN}>" for notice_id in ids}
                assert any(copies > 1 for copies in kept.values()), "the crash before the answer made a copy"
                assert await shop.one("select count(*) from notice_deliveries where state = 'sent'") == len(ids)
                assert await shop.one("select count(*) from notice_deliveries") == len(ids)
                one_of_each = {str(mail_["Message-ID"]): mail_.get_content() for mail_ in mail.messages()}
                assert all(one_of_each[str(copy["Message-ID"])] == copy.get_content() for copy in mail.messages())

    asyncio.run(story())


def test_several_notifiers_send_each_message_once(database_url: str) -> None:
    """What one has claimed no other takes."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                ids = [await tell(shop.conn, shop.home.account_id, RESTORED) for _ in range(150)]
                async with (
                    running_notifier(database_url, {Channel.SMS: gateway.port_of()}),
                    running_notifier(database_url, {Channel.SMS: gateway.port_of()}),
                    running_notifier(database_url, {Channel.SMS: gateway.port_of()}),
                ):
                    await until(lambda: settled(shop.conn), "all are sent")
                assert sorted(gateway.keys()) == sorted(f"notice-{notice_id}-sms@{DOMAIN}" for notice_id in ids)

    asyncio.run(story())


def test_cap_of_the_day_holds_while_several_notifiers_plan(database_url: str) -> None:
    """Never more than the cap, the others visibly skipped; a new local day begins anew."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                other = await add_home(shop.conn, "M2", "200000002")
                await shop.conn.execute("delete from notices")
                await add_contact(shop.conn, other.account_id, "+919876500000")
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                rules = delivery_rules(ports, per_day_max=3)
                # Well inside a local day, so that no midnight passes meanwhile.
                now_ms = clock()
                day = CALENDAR.day_of(now_ms)
                clock.shift_ms = CALENDAR.midnight_ms(day) + 12 * HOUR_MS - now_ms
                for _ in range(10):
                    await tell(shop.conn, shop.home.account_id, RESTORED, age_ms=-clock.shift_ms)
                    await tell(shop.conn, other.account_id, RESTORED, age_ms=-clock.shift_ms)
                async with (
                    running_notifier(database_url, ports, clock=clock, rules=rules),
                    running_notifier(database_url, {Channel.SMS: gateway.port_of()}, clock=clock, rules=rules),
                ):
                    await until(lambda: settled(shop.conn), "all are settled")
                    assert Counter(request.body["to"] for request in gateway.requests) == {PHONE: 3, "+919876500000": 3}
                    skipped = "select count(*) from notice_deliveries where state = 'skipped' and last_error = %s"
                    assert await shop.one(skipped, "daily_cap") == 14
                    clock.shift_ms += 24 * HOUR_MS
                    await tell(shop.conn, shop.home.account_id, RESTORED, age_ms=-clock.shift_ms)
                    await until(lambda: len(gateway.requests) == 7, "the next day's message")

    asyncio.run(story())


def test_dead_notifiers_message_is_sent_by_another_and_its_late_word_changes_nothing(database_url: str) -> None:
    """A claim that was not ended comes again under the same key; who was too slow writes no end."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                notice_id = await tell(shop.conn, shop.home.account_id, RESTORED)
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                await plan_notices(shop.conn, delivery_rules(ports), domain=DOMAIN, now_ms=clock())
                (lost,) = await claim_deliveries(
                    shop.conn, Channel.SMS, most=9, now_ms=clock(), until_ms=clock() + 60_000
                )
                async with running_notifier(database_url, ports, clock=clock):
                    clock.shift_ms += 60_000
                    await until(lambda: settled(shop.conn), "another has sent it")
                assert gateway.keys() == [lost.message_id]
                await end_dead(shop.conn, lost, error="late", contact_fails=True, now_ms=clock())
                await end_sent(shop.conn, lost, now_ms=clock())
                assert await states(shop.conn, notice_id) == {"sms": ("sent", None)}
                assert await shop.one("select count(*) from contacts where failed_at is not null") == 0

    asyncio.run(story())


def test_supply_is_planned_before_the_statements_of_a_month(database_url: str) -> None:
    """What a month brings every account stands behind what is told of supply, however long before it was written."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            await add_contact(shop.conn, shop.home.account_id)
            statement = StatementReady(
                first=date(2026, 10, 1), last=date(2026, 10, 31), energy_wh=1, charge_minor=1, closing_minor=1
            )
            for _ in range(PLAN_MOST):
                await tell(shop.conn, shop.home.account_id, statement)
            urgent = await tell(shop.conn, shop.home.account_id, RESTORED)
            await plan_notices(shop.conn, delivery_rules({}), domain=DOMAIN, now_ms=ShiftedClock()())
            planned = "select planned_at is not null from notices where id = %s"
            assert await shop.one(planned, urgent)
            assert await shop.one("select count(*) from notices where planned_at is null") == 1

    asyncio.run(story())


def test_quiet_hours_hold_what_can_wait_and_let_the_rest_pass(database_url: str) -> None:
    """A cut-off is told at night, a tamper report in the morning."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                now_ms = clock()
                midnight_ms = CALENDAR.midnight_ms(CALENDAR.day_of(now_ms))
                clock.shift_ms = midnight_ms + 2 * HOUR_MS - now_ms
                rules = delivery_rules(ports, quiet=QuietHours(first=21 * 60, last=7 * 60))
                waits = await tell(
                    shop.conn,
                    shop.home.account_id,
                    Tamper(event=TamperEvent.MAGNET, at_ms=clock()),
                    age_ms=-clock.shift_ms,
                )
                passes = await tell(
                    shop.conn,
                    shop.home.account_id,
                    Exhausted(balance_minor=-1, restores_minor=2),
                    age_ms=-clock.shift_ms,
                )
                async with running_notifier(database_url, ports, clock=clock, rules=rules):
                    await until(lambda: gateway.requests, "the urgent one is sent")
                    held = "select next_try_at = to_timestamp(%s) from notice_deliveries where notice_id = %s"
                    await until(lambda: shop.one(held, midnight_ms / 1000 + 7 * 3600, waits), "the other waits")
                    assert gateway.keys() == [f"notice-{passes}-sms@{DOMAIN}"]
                    clock.shift_ms += 5 * HOUR_MS
                    await until(lambda: settled(shop.conn), "the other is sent in the morning")
                assert gateway.keys()[1:] == [f"notice-{waits}-sms@{DOMAIN}"]

    asyncio.run(story())


def test_claimed_message_is_put_back_when_quiet_hours_have_begun(database_url: str) -> None:
    """What was due in the evening is not sent at night because nobody was there to send it."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                ports: dict[Channel, NoticePort] = {Channel.SMS: gateway.port_of()}
                now_ms = clock()
                midnight_ms = CALENDAR.midnight_ms(CALENDAR.day_of(now_ms))
                clock.shift_ms = midnight_ms + 20 * HOUR_MS - now_ms
                rules = delivery_rules(ports, quiet=QuietHours(first=21 * 60, last=7 * 60))
                facts = Tamper(event=TamperEvent.MAGNET, at_ms=clock())
                await tell(shop.conn, shop.home.account_id, facts, age_ms=-clock.shift_ms)
                await plan_notices(shop.conn, rules, domain=DOMAIN, now_ms=clock())
                clock.shift_ms += 2 * HOUR_MS
                async with running_notifier(database_url, ports, clock=clock, rules=rules):
                    held = "select state = 'pending' and attempts = 0 and next_try_at = to_timestamp(%s)"
                    morning = midnight_ms / 1000 + 31 * 3600
                    await until(lambda: shop.one(f"{held} from notice_deliveries", morning), "it waits")
                assert gateway.requests == []

    asyncio.run(story())


def test_message_that_cannot_be_delivered_in_time_is_dead_and_can_be_tried_again(
    database_url: str, tmp_path: Path
) -> None:
    """After its kind's life tries end, visibly; the second channel is too late, too; a retry has the same id."""

    async def story() -> None:
        clock = ShiftedClock()
        async with open_silent_shop(database_url) as shop:
            with mail_server(tmp_path) as mail:
                await add_contact(shop.conn, shop.home.account_id, "busy@b.in")
                notice_id = await tell(shop.conn, shop.home.account_id, RESTORED)
                async with running_notifier(database_url, {Channel.EMAIL: smtp_port(mail)}, clock=clock):
                    while not await settled(shop.conn):
                        clock.shift_ms += HOUR_MS // 4
                        await asyncio.sleep(0.05)
                    assert await states(shop.conn, notice_id) == {"email": ("dead", "451 4.2.1 come again later")}
                    delivery_id = await shop.one("select id from notice_deliveries")
                    await shop.conn.execute("update notice_deliveries set address = 'back@b.in' where state = 'dead'")
                    assert await retry_dead(shop.conn, [delivery_id], now_ms=clock()) == [delivery_id]
                    assert await retry_dead(shop.conn, [delivery_id], now_ms=clock()) == []
                    await until(mail.messages, "the retry has come")
                    await until(lambda: settled(shop.conn), "the retry is noted")
                assert mail.message_ids() == [f"<notice-{notice_id}-email@{DOMAIN}>"]

    asyncio.run(story())


def test_old_notices_are_not_sent_when_a_channel_is_set_up_later(database_url: str) -> None:
    """Whoever turns SMS on gets no flood of last month's alarms."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                old = await tell(shop.conn, shop.home.account_id, RESTORED, age_ms=7 * HOUR_MS)
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}):
                    await until(lambda: settled(shop.conn), "all are settled")
                assert await states(shop.conn, old) == {"sms": ("skipped", "too_old")}
                assert gateway.requests == []

    asyncio.run(story())


def test_notice_that_cannot_be_read_is_dead_and_holds_up_no_other(database_url: str) -> None:
    """A spoiled row ends where an operator sees it; it is no fault of the contact."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                spoiled = await tell(shop.conn, shop.home.account_id, RESTORED)
                strange = await tell(shop.conn, shop.home.account_id, RESTORED)
                good = await tell(shop.conn, shop.home.account_id, RESTORED)
                await shop.conn.execute("update notices set facts = '{\"balance\": 1}' where id = %s", (spoiled,))
                await shop.conn.execute("update notices set kind = 'wedding' where id = %s", (strange,))
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}):
                    await until(lambda: settled(shop.conn), "all are settled")
                state, error = (await states(shop.conn, spoiled))["sms"]
                assert state == "dead"
                assert error is not None
                assert "facts of restored" in error
                assert await states(shop.conn, strange) == {}
                assert await states(shop.conn, good) == {"sms": ("sent", None)}
                assert await shop.one("select count(*) from contacts where failed_at is not null") == 0
                listed = await list_notices(shop.conn, shop.home.account_id, language=Language.HINDI, calendar=CALENDAR)
                assert [(each.id, bool(each.body)) for each in listed[:3]] == [
                    (good, True), (strange, False), (spoiled, False),
                ]  # fmt: skip

    asyncio.run(story())


def test_sentence_that_an_earlier_version_wrote_is_delivered_as_it_stands(database_url: str) -> None:
    """While processes of two versions run, nothing is lost."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                await shop.conn.execute(
                    "insert into notices (account_id, kind, channel, body) values (%s, 'low', 'app', 'Recharge.')",
                    (shop.home.account_id,),
                )
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}):
                    await until(lambda: settled(shop.conn), "it is sent")
                assert gateway.texts() == ["Recharge."]

    asyncio.run(story())


def test_notifier_goes_on_after_its_connections_were_cut(database_url: str) -> None:
    """An outage of the database is waited out."""

    async def story() -> None:
        async with open_silent_shop(database_url) as shop:
            with sms_gateway() as gateway:
                await add_contact(shop.conn, shop.home.account_id)
                async with running_notifier(database_url, {Channel.SMS: gateway.port_of()}) as task:
                    there = "select count(*) from pg_stat_activity where application_name like 'notify-%%'"
                    await until(lambda: shop.one(there), "it is connected")
                    ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    assert await shop.one(
                        f"{ended} where application_name like 'notify-%%' and datname = current_database()"
                    )
                    await tell(shop.conn, shop.home.account_id, Low(balance_minor=1, threshold_minor=2))
                    await until(lambda: settled(shop.conn), "it is sent")
                    assert not task.done()
                assert len(gateway.requests) == 1

    asyncio.run(story())
