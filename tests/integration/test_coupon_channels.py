"""Coupons by SMS and typed at the meter: the same coupon, the same vend, once; and who is told what."""

from __future__ import annotations

import asyncio
import time

import pytest

from billing.notices import CouponReason, CouponRefused, Facts, HelpAnswer, TokenResend, WhichAccount, read_facts
from db.coupons import note_coupon_entries
from prepaid.embedded import EmbeddedNats
from protocols.keypad import CouponEntered
from protocols.native import encode_coupon_entered
from protocols.topics import event_topic
from tests.integration.coupon_counter import Counter, open_counter
from tests.integration.test_sms_desk import answered_with, hand_over, outcome
from tests.integration.vending_shop import add_home
from tests.notice_support import PHONE, SECRET, add_contact
from tests.support import open_site, running_ingest
from vending.coupon_pins import draw_pin
from vending.coupons import CALLER_LIMIT, grouped

pytestmark = pytest.mark.db

WAIT_S = 20.0


async def typed(counter: Counter, *pins: str, at_ms: int) -> list[str]:
    """Let PINs come from the home's meter, a millisecond apart; return what became of them once they are settled."""
    home = counter.shop.home
    entered = [
        CouponEntered(serial=home.serial, seq=None, at_ms=at_ms + place, pin=pin) for place, pin in enumerate(pins)
    ]
    await note_coupon_entries(counter.shop.conn, [(home.meter_id, each) for each in entered])
    deadline_s = time.monotonic() + WAIT_S
    while True:
        cursor = await counter.shop.conn.execute("select outcome from coupon_entries order by id")
        told = [row[0] for row in await cursor.fetchall()]
        if None not in told:
            return told[-len(pins) :]
        assert time.monotonic() < deadline_s, "what was typed is settled"
        await asyncio.sleep(0.02)


async def notices(counter: Counter) -> list[Facts]:
    """Return the facts of all notices, oldest first."""
    cursor = await counter.shop.conn.execute("select kind, facts from notices order by id")
    return [read_facts(kind, facts) for kind, facts in await cursor.fetchall()]


def test_coupon_by_sms_credits_the_sender_and_answers_with_the_token(database_url: str) -> None:
    """REDEEM and the PIN, in groups; a proven number gets the token; the same message again redeems nothing."""

    async def story() -> None:
        async with open_counter(database_url, sms_secret=SECRET) as counter:
            shop = counter.shop
            await add_contact(shop.conn, shop.home.account_id)
            await counter.sell(0, 2)
            text = f"redeem {grouped(counter.drawer[0].pin)}"
            assert await outcome(shop, text, message_id="MO-1") == "answered"
            told = await answered_with(shop)
            assert isinstance(told, TokenResend)
            assert (told.amount_minor, told.at_ms) == (50_000, shop.clock())
            assert shop.token_reader().enter(told.token.replace(" ", ""), shop.clock()).accepted
            assert await outcome(shop, text, message_id="MO-1") == "answered"
            assert (await hand_over(shop, "REDEEM 1", message_id="MO-1")).status_code == 409
            assert await shop.one("select count(*) from vends") == 1
            # The same telephone is told its token again; another one hears that the coupon is used.
            assert await outcome(shop, text, message_id="MO-2") == "answered"
            assert await answered_with(shop) == told
            await add_contact(shop.conn, shop.home.account_id, "+919000000001", verified=False)
            await outcome(shop, text, message_id="MO-3", sender="9000000001")
            assert await answered_with(shop) == CouponRefused(reason=CouponReason.COUPON_USED)
            await outcome(shop, f"ਕੂਪਨ {counter.drawer[1].pin} PB000123", message_id="MO-4", sender="9000000001")
            masked = await answered_with(shop)
            assert isinstance(masked, TokenResend)
            assert masked.token.startswith("**** ****")

    asyncio.run(story())


def test_sms_for_another_meter_or_with_a_wrong_number_is_told_plainly(database_url: str) -> None:
    """A meter or account may be named; slips, unknown meters and guesses have their sentence; guesses are locked."""

    async def story() -> None:
        async with open_counter(database_url, sms_secret=SECRET) as counter:
            shop, pin = counter.shop, counter.drawer[0].pin
            await add_contact(shop.conn, shop.home.account_id)
            await counter.sell(0, 1)
            other = await add_home(shop.conn, "PB000200", "100200400")
            reasons = []
            for number, text in enumerate((f"REDEEM {pin[:-1]}", f"REDEEM {pin} NOSUCH", "REDEEM")):
                await outcome(shop, text, message_id=f"A-{number}")
                told = await answered_with(shop)
                assert isinstance(told, CouponRefused)
                reasons.append(told.reason)
            assert reasons == [
                CouponReason.COUPON_MISTYPED, CouponReason.COUPON_METER, CouponReason.COUPON_MISTYPED,
            ]  # fmt: skip
            foreseen = iter(range(100))
            for number in range(CALLER_LIMIT.free + 1):
                await outcome(shop, f"REDEEM {draw_pin(lambda _: next(foreseen))}", message_id=f"G-{number}")
            assert await answered_with(shop) == CouponRefused(reason=CouponReason.COUPON_WAIT)
            shop.clock.now_ms += 60_000
            await outcome(shop, f"REDEEM {pin} pb000200", message_id="B-1")
            assert isinstance(await answered_with(shop), TokenResend)
            assert await shop.one("select account_id from vends") == other.account_id
            await add_contact(shop.conn, other.account_id)
            await outcome(shop, f"REDEEM {counter.drawer[1].pin}", message_id="B-2")
            assert await answered_with(shop) == WhichAccount(command="REDEEM")
            await outcome(shop, "HELLO", message_id="B-3", sender=PHONE)
            assert isinstance(await answered_with(shop), HelpAnswer)

    asyncio.run(story())


def test_coupon_typed_at_the_meter_is_redeemed_and_its_token_entered_there(database_url: str) -> None:
    """The head-end enters the token; the digits of the PIN are gone; a wrong one is told by a notice, and locked."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            shop, pin = counter.shop, counter.drawer[0].pin
            await counter.sell(0)
            assert await typed(counter, pin, at_ms=1) == ["redeemed"]
            assert await shop.one("select count(*) from supply_orders where kind = 'token'") == 1
            # What the meter sends again, or somebody types again, is the same redemption.
            assert await typed(counter, pin, pin, at_ms=1) == ["redeemed", "redeemed"]
            assert await shop.count("coupon_entries") == 2
            assert await shop.one("select count(*) from vends") == 1
            assert await shop.one("select count(*) from coupon_entries where pin is not null") == 0
            assert await shop.one("select channel from coupons where state = 'redeemed'") == "keypad"
            foreseen = iter(range(CALLER_LIMIT.free))
            wrong = [draw_pin(lambda _: next(foreseen)) for _ in range(CALLER_LIMIT.free)]
            told = await typed(counter, *wrong, counter.drawer[1].pin, at_ms=10)
            assert told == ["coupon_unknown"] * CALLER_LIMIT.free + ["coupon_locked"]
            assert (await notices(counter))[-1] == CouponRefused(reason=CouponReason.COUPON_WAIT)

    asyncio.run(story())


@pytest.mark.broker
def test_coupon_of_a_meter_comes_through_broker_and_ingest_once(database_url: str, nats: EmbeddedNats) -> None:
    """The event of a meter becomes one row that waits for the vending desk, however often it is sent."""

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("M1")
            entered = CouponEntered(serial="M1", seq=1, at_ms=1_763_730_000_000, pin="4821093755661208")
            message = (event_topic("M1"), encode_coupon_entered(entered))
            await site.send(message, message)
            assert await site.rows("select pin, outcome from coupon_entries") == [(entered.pin, None)]

    asyncio.run(story())
