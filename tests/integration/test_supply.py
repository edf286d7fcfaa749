"""Supply control and alarms end to end: database, dispatcher, broker and a simulated meter."""

import asyncio

import pytest

from billing.calendar import from_ms
from billing.journals import JournalKind
from db.posting import lock_and_look, post_threshold
from db.supply_holds import approve_hold, ask_hold, set_exemption
from headend.dispatch_plan import CutOffLimits
from meter_sim.meter import SWITCH_OPEN
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind, Relay
from tests.integration.supply_street import CREDIT_MINOR, Street, exhausting, reply, tell
from tests.support import (
    DAY_MS,
    HOUR_MS,
    REGISTER_WH,
    RULES,
    T0,
    WAIT_S,
    now_ms,
    open_site,
    reading,
    running_dispatch,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

EXHAUSTED_MINOR = 1_000_000


def test_exhausted_credit_cuts_supply_and_a_recharge_restores_it(database_url: str, nats: EmbeddedNats) -> None:
    """At the end of the credit the meter opens and confirms; a recharge closes it; nothing is ordered twice."""

    async def story(street: Street) -> None:
        await street.use(1, 1_000)
        assert await street.orders() == []
        await street.use(2, 10_000)
        await street.fleet.wait_for(lambda: street.meter.relay is Relay.OFF, timeout_s=WAIT_S)
        await street.until_orders(("off", "confirmed"))
        register_wh = street.meter.register_wh
        await street.use(3, 10_000)
        assert street.meter.register_wh == register_wh
        balance = await street.site.balance(street.home)
        assert balance < 0
        await street.site.post(street.home, JournalKind.VEND, 10_000)
        await street.fleet.wait_for(lambda: street.meter.relay is Relay.ON, timeout_s=WAIT_S)
        await street.until_orders(("off", "confirmed"), ("on", "confirmed"))
        # A restore costs nothing.
        assert await street.site.balance(street.home) == balance + 10_000
        assert street.meter.balance_minor == balance + 10_000
        assert await street.alarms() == [("exhausted", 1)]
        assert await street.notices() == ["exhausted", "recharged", "restored"]
        assert await street.site.one("select relay from meter_state") == "on"
        assert len(street.meter.given(OrderKind.SUPPLY)) == 2

    tell(database_url, nats, story)


@pytest.mark.parametrize("kept_by", ["hold", "exemption"])
def test_hold_or_exemption_restores_an_account_that_is_cut(database_url: str, nats: EmbeddedNats, kept_by: str) -> None:
    """Approved while supply is off, it brings supply back by itself: no recharge and no reading is waited for."""

    async def story(street: Street) -> None:
        await street.use(2, 15_000)
        await street.until_orders(("off", "confirmed"))
        conn, account_id, now = street.site.conn, street.home.account_id, from_ms(now_ms())
        if kept_by == "hold":
            hold_id = await ask_hold(conn, account_id, reason="oxygen", by="A. Kaur", until=None, now=now)
            await approve_hold(conn, hold_id, by="B. Singh", now=now)
        else:
            await set_exemption(conn, account_id, reason="oxygen", by="A. Kaur", now=now)
        await street.until_orders(("off", "confirmed"), ("on", "confirmed"))
        assert street.meter.relay is Relay.ON
        assert await street.notices() == ["exhausted", "restored"]

    tell(database_url, nats, story)


def test_recharge_that_leaves_a_debt_restores_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """Supply stays off until the balance is above exhaustion."""

    async def story(street: Street) -> None:
        await street.use(2, 15_000)
        await street.until_orders(("off", "confirmed"))
        owed = -await street.site.balance(street.home)
        await street.site.post(street.home, JournalKind.VEND, owed)
        await street.site.settled()
        assert await street.orders() == [("off", "confirmed")]
        await street.site.post(street.home, JournalKind.VEND, 1)
        await street.until_orders(("off", "confirmed"), ("on", "confirmed"))
        assert street.meter.relay is Relay.ON

    tell(database_url, nats, story)


def test_lost_command_is_sent_again_until_the_meter_confirms(database_url: str, nats: EmbeddedNats) -> None:
    """A command to a meter that is away is lost, not queued; the order is tried again under the same epoch."""

    async def story(street: Street) -> None:
        await street.fleet.go_offline("M1")
        await street.site.send(exhausting())

        async def sent() -> bool:
            return bool(await street.site.one("select count(*) from supply_orders where published_at is not null"))

        await street.site.until(sent, "the first try has left")
        await street.fleet.go_online("M1")
        await street.fleet.wait_connected(timeout_s=WAIT_S)
        assert street.meter.commands == []
        assert street.meter.relay is Relay.ON
        await street.fleet.wait_for(lambda: street.meter.relay is Relay.OFF, timeout_s=WAIT_S)
        await street.until_orders(("off", "confirmed"))
        assert await street.site.one("select attempts from supply_orders") >= 2
        assert {command.epoch for command in street.meter.commands} == {1}

    tell(database_url, nats, story)


def test_refused_command_is_sent_again_until_the_switch_moves(database_url: str, nats: EmbeddedNats) -> None:
    """A switch that sticks for a moment refuses; the order stays open and is obeyed at a later try."""

    async def story(street: Street) -> None:
        street.meter.relay_stuck = True
        await street.site.send(exhausting())
        await street.fleet.wait_for(lambda: bool(street.meter.commands), timeout_s=WAIT_S)
        assert street.meter.relay is Relay.ON
        street.meter.relay_stuck = False
        await street.fleet.wait_for(lambda: street.meter.relay is Relay.OFF, timeout_s=WAIT_S)
        await street.until_orders(("off", "confirmed"))

    tell(database_url, nats, story)


def test_repeated_command_moves_the_relay_once(database_url: str, nats: EmbeddedNats) -> None:
    """A dispatcher that died after it published sends again; the meter confirms again and moves nothing."""

    async def story(street: Street) -> None:
        await street.use(2, 15_000)
        await street.until_orders(("off", "confirmed"))
        await street.site.rows(
            "update supply_orders set state = 'sent', confirmed_at = null, next_try_at = '-infinity' returning id"
        )
        await street.until_orders(("off", "confirmed"))
        await street.site.settled()
        assert [command.epoch for command in street.meter.given(OrderKind.SUPPLY)] == [1, 1]
        assert await street.site.rows("select code, count(*) from meter_events group by code") == [(SWITCH_OPEN, 1)]

    tell(database_url, nats, story)


def test_stale_or_foreign_confirmation_changes_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """Only the meter's own answer to the current epoch confirms an order."""

    async def story(street: Street) -> None:
        await street.fleet.go_offline("M1")
        await street.site.add_home("M2")
        await street.site.send(exhausting())
        ((order_id, epoch),) = await street.site.rows("select id, epoch from supply_orders")
        await street.site.send(
            reply(order_id, epoch + 1, Relay.OFF),
            reply(order_id, epoch - 1, Relay.OFF),
            reply(order_id + 1, epoch, Relay.OFF),
            reply(order_id, epoch, Relay.OFF, serial="M2"),
        )
        assert (await street.orders())[0][1] == "sent"
        await street.site.send(reply(order_id, epoch, Relay.OFF))
        assert await street.orders() == [("off", "confirmed")]
        confirmed_at = "select confirmed_at from supply_orders where relay = 'off'"
        first = await street.site.one(confirmed_at)
        await street.site.send(reply(order_id, epoch, Relay.OFF))
        assert await street.site.one(confirmed_at) == first

    tell(database_url, nats, story)


def test_restore_supersedes_a_cut_off_that_was_never_confirmed(database_url: str, nats: EmbeddedNats) -> None:
    """A recharge while the meter is away replaces the cut-off: the meter, back again, is only told to stay on."""

    async def story(street: Street) -> None:
        await street.fleet.go_offline("M1")
        await street.site.send(exhausting())
        ((order_id, epoch),) = await street.site.rows("select id, epoch from supply_orders")
        await street.site.post(street.home, JournalKind.VEND, 100_000)
        assert [relay for relay, _ in await street.orders()] == ["off", "on"]
        assert (await street.orders())[0] == ("off", "superseded")
        await street.site.send(reply(order_id, epoch, Relay.ON, at_ms=T0 + DAY_MS))
        assert (await street.orders())[0] == ("off", "superseded")
        await street.fleet.go_online("M1")
        await street.until_orders(("off", "superseded"), ("on", "confirmed"))
        await street.site.settled()
        assert street.meter.relay is Relay.ON
        assert {command.relay for command in street.meter.given(OrderKind.SUPPLY)} == {Relay.ON}
        epochs = await street.site.rows("select epoch from supply_orders order by id")
        assert epochs == sorted(set(epochs))
        assert await street.site.one("select desired from accounts") == "on"

    tell(database_url, nats, story)


def test_held_cut_off_is_released_when_the_meter_is_heard(database_url: str, nats: EmbeddedNats) -> None:
    """A cut-off on the word of an old reading waits for a fresh one; it is not sent before."""
    now = now_ms()
    opened_ms = now - 3 * DAY_MS

    async def story(street: Street) -> None:
        await street.site.send(exhausting(now - 2 * DAY_MS))
        assert await street.orders() == [("off", "held")]
        await street.site.send(reading("M1", now - DAY_MS, REGISTER_WH + 20_100))
        assert await street.orders() == [("off", "held")]
        assert street.meter.commands == []
        await street.site.send(reading("M1", now - 1_000, REGISTER_WH + 20_200))
        await street.fleet.wait_for(lambda: street.meter.relay is Relay.OFF, timeout_s=WAIT_S)
        await street.until_orders(("off", "confirmed"))
        assert await street.alarms() == [("exhausted", 1)]

    tell(database_url, nats, story, stale_reading_s=3_600, opened_ms=opened_ms)


def test_held_cut_off_is_superseded_by_a_recharge(database_url: str, nats: EmbeddedNats) -> None:
    """A meter whose consumer paid before it was heard again is never cut."""
    now = now_ms()

    async def story(street: Street) -> None:
        await street.site.send(exhausting(now - 2 * DAY_MS))
        assert await street.orders() == [("off", "held")]
        await street.site.post(street.home, JournalKind.VEND, 1_000_000)
        await street.until_orders(("off", "superseded"), ("on", "confirmed"))
        await street.site.send(reading("M1", now - 1_000, REGISTER_WH + 20_200))
        assert {command.relay for command in street.meter.given(OrderKind.SUPPLY)} == {Relay.ON}
        assert street.meter.relay is Relay.ON

    tell(database_url, nats, story, stale_reading_s=3_600, opened_ms=now - 3 * DAY_MS)


def test_low_balance_alarms_once_at_the_meter_and_as_a_notice(database_url: str, nats: EmbeddedNats) -> None:
    """One alarm per crossing: not again with later readings, again after a recharge and another fall."""

    async def story(street: Street) -> None:
        await street.use(1, 100)
        assert await street.alarms() == []
        await street.use(2, 5_000)
        await street.until_orders((None, "confirmed"), kind="alarm")
        assert street.meter.buzzer_on
        assert street.meter.display.startswith("LOW")
        await street.fleet.press_button("M1")
        for hour in (3, 4, 5):
            await street.use(hour, 100)
        assert not street.meter.buzzer_on
        assert await street.alarms() == [("low", 1)]
        assert await street.notices() == ["low"]
        assert len(street.meter.given(OrderKind.ALARM)) == 1
        await street.site.post(street.home, JournalKind.VEND, 5_000)
        await street.use(6, 100)
        await street.use(7, 14_000)
        await street.until_orders((None, "confirmed"), (None, "confirmed"), kind="alarm")
        assert await street.alarms() == [("low", 1), ("low", 2)]
        assert await street.notices() == ["low", "recharged", "low"]
        assert len(street.meter.given(OrderKind.ALARM)) == 2
        assert street.meter.buzzer_on

    tell(database_url, nats, story, threshold_minor=5_000, credit_minor=7_000)


def test_low_and_exhausted_in_one_batch_each_alarm_once(database_url: str, nats: EmbeddedNats) -> None:
    """A reading that passes both levels raises both, and the meter is both warned and cut."""

    async def story(street: Street) -> None:
        await street.use(2, 15_000)
        await street.until_orders(("off", "confirmed"))
        await street.until_orders((None, "confirmed"), kind="alarm")
        await street.use(3, 0)
        assert sorted(await street.alarms()) == [("exhausted", 1), ("low", 1)]
        assert sorted(await street.notices()) == ["exhausted", "low"]

    tell(database_url, nats, story, threshold_minor=1_500, credit_minor=4_000)


def test_changed_threshold_reaches_the_meter_and_may_alarm_at_once(database_url: str, nats: EmbeddedNats) -> None:
    """The meter keeps the consumer's threshold; one at or above the balance rings now, one below ends the alarm."""

    async def story(street: Street) -> None:
        async def choose(threshold_minor: int | None) -> None:
            async with street.site.conn.transaction():
                view = await lock_and_look(street.site.conn, street.home.account_id, RULES)
                await post_threshold(street.site.conn, view, threshold_minor, rules=RULES, now_ms=now_ms())

        await street.use(1, 100)
        await choose(500)
        await street.until_orders((None, "confirmed"), kind="threshold")
        assert street.meter.threshold_minor == 500
        assert not street.meter.buzzer_on
        await choose(CREDIT_MINOR)
        await street.until_orders((None, "confirmed"), kind="alarm")
        assert street.meter.buzzer_on
        assert street.meter.threshold_minor == CREDIT_MINOR
        assert await street.alarms() == [("low", 1)]
        assert await street.notices() == ["low"]
        await choose(None)
        await street.until_orders((None, "confirmed"), (None, "confirmed"), kind="threshold")
        assert street.meter.threshold_minor is None
        assert not street.meter.buzzer_on

    tell(database_url, nats, story)


def test_cut_offs_of_an_area_are_capped_by_the_minute(database_url: str, nats: EmbeddedNats) -> None:
    """A bug or an attacker cannot black out an area at once: the cap holds, restores and warnings go on."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            homes = [await site.add_home(f"M{number}", credit_minor=CREDIT_MINOR) for number in range(1, 5)]
            limits = CutOffLimits(per_minute_max=2, per_hour_max=100)
            async with running_ingest(site), running_dispatch(site, limits=limits):
                await site.send(*(reading(home.serial, T0 + 5 * HOUR_MS, REGISTER_WH + 20_000) for home in homes))
                assert await site.one("select count(*) from supply_orders where relay = 'off'") == 4

                async def published(relay: str) -> set[int]:
                    rows = await site.rows(
                        "select meter_id from supply_orders where relay = %s and published_at is not null", relay
                    )
                    return {meter_id for (meter_id,) in rows}

                async def place_is_full() -> set[int]:
                    cut = await published("off")
                    return cut if len(cut) >= 2 else set()

                cut = await site.until(place_is_full, "cut-offs are published")
                waiting = next(home for home in homes if home.meter_id not in cut)
                await site.post(waiting, JournalKind.VEND, EXHAUSTED_MINOR)
                await site.until(lambda: published("on"), "the restore is published")
                assert await published("off") == cut
                assert await site.one("select count(*) from supply_orders where state = 'pending'") == 1

    asyncio.run(told())
