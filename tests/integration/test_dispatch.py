"""The dispatcher on the real database and broker: hours, contradictions, transports, absent meters, set clocks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

import pytest

from billing.calendar import to_ms
from billing.journals import JournalKind
from db.audit import run_checks
from db.supply_rules import add_supply_rules
from headend.dispatch_plan import Patience
from headend.edges.command_ports import Outgoing, TransportDown
from headend.edges.due_orders import BACKOFF_S_MAX, LONG_AWAY_ATTEMPTS, LONG_AWAY_BACKOFF_S, RESTORE_BACKOFF_S_MAX
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind, Relay, decode_command
from tests.integration.supply_street import Street, exhausting, reply, tell
from tests.support import CALENDAR, DAY_MS, HOUR_MS, REGISTER_WH, T0, WAIT_S, Site, reading

pytestmark = [pytest.mark.db, pytest.mark.broker]

# Seconds of a test in the place of the minutes that an operator would wait.
IMPATIENT = Patience(grace_ms=300, again_ms=1_000)
# Rules of a day that only the dispatcher has reached: what ingest orders at any hour now, it sends within these.
LATER_RULES = """
id = "later"
title = "Cut in the late morning only"
source = "a test"
effective_from = 2091-01-01
default = "late_morning"

[scheme.late_morning]
title = "10:00 to 13:00"
source = "a test"

[[scheme.late_morning.window]]
days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
from = "10:00"
to = "13:00"
"""


def _local_ms(hour: int, minute: int = 0, second: int = 0) -> int:
    return to_ms(datetime(2091, 1, 10, hour, minute, second, tzinfo=CALENDAR.zone).astimezone(UTC))


class _Clock:
    """A wall clock that a test moves."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def __call__(self) -> int:
        return self.at_ms


async def _waits_for(site: Site) -> str | None:
    found: str | None = await site.one(
        "select case when next_try_at > clock_timestamp() then waits_for end from supply_orders"
        " where kind = 'supply' order by id desc limit 1"
    )
    return found


async def _until_waiting(street: Street, why: str) -> None:
    async def waiting() -> bool:
        return await _waits_for(street.site) == why

    await street.site.until(waiting, f"the order waits for {why}")


async def _try_now(street: Street) -> None:
    """Let the time that open orders wait be over."""
    await street.site.rows("update supply_orders set next_try_at = '-infinity' where state <> 'confirmed' returning id")


def test_cut_off_waits_for_the_hours_of_its_scheme_and_expires_with_them(database_url: str, nats: EmbeddedNats) -> None:
    """Exhausted in the evening, a home is cut in the window, by a command that dies with it."""
    clock = _Clock(_local_ms(18))

    async def story(street: Street) -> None:
        await add_supply_rules(street.site.conn, LATER_RULES, first_open_day=date(2091, 1, 1))
        await street.site.send(exhausting())
        await _until_waiting(street, "hours")
        assert street.meter.given(OrderKind.SUPPLY) == []
        clock.at_ms = _local_ms(9, 59, 59)
        await _try_now(street)
        await _until_waiting(street, "hours")
        assert await street.site.one("select attempts from supply_orders") == 0
        # The second before the opening puts it off for this second, not for the hour.
        due_s = "select extract(epoch from next_try_at - looked_at) from supply_orders"
        assert 0.9 < await street.site.one(due_s) <= 1
        clock.at_ms = _local_ms(12, 58)
        await street.until_orders(("off", "confirmed"))
        (command,) = street.meter.given(OrderKind.SUPPLY)
        assert command.expires_at_ms == _local_ms(13)

    tell(database_url, nats, story, now_ms=clock)


def test_lost_cut_off_is_not_sent_again_when_its_hours_are_over(database_url: str, nats: EmbeddedNats) -> None:
    """Each try asks again: a cut-off whose window closed while the meter was away waits; a recharge is sent at once."""
    clock = _Clock(_local_ms(12, 59))

    async def story(street: Street) -> None:
        await add_supply_rules(street.site.conn, LATER_RULES, first_open_day=date(2091, 1, 1))
        await street.fleet.go_offline("M1")
        await street.site.send(exhausting())

        async def tried() -> bool:
            return bool(await street.site.one("select attempts from supply_orders"))

        await street.site.until(tried, "the first try has left")
        clock.at_ms = _local_ms(13)
        await _try_now(street)
        await _until_waiting(street, "hours")
        await street.fleet.go_online("M1")
        await street.fleet.wait_connected(timeout_s=WAIT_S)
        await _try_now(street)
        await street.site.post(street.home, JournalKind.VEND, 1_000_000)
        await street.until_orders(("off", "superseded"), ("on", "confirmed"))
        assert {command.relay for command in street.meter.given(OrderKind.SUPPLY)} == {Relay.ON}

    tell(database_url, nats, story, now_ms=clock)


def test_meter_that_moves_back_after_it_confirmed_is_ordered_again(database_url: str, nats: EmbeddedNats) -> None:
    """Somebody's lever opens the difference again: a new epoch because of `reported`, and not often."""

    async def story(street: Street) -> None:
        await street.use(1, 11_000)
        await street.until_orders(("off", "confirmed"))
        for times in (1, 2):
            street.meter.relay = Relay.ON
            await street.use(1 + times, 10)
            await street.until_orders(*[("off", "confirmed")] * (times + 1))
            assert street.meter.relay is Relay.OFF
        causes = await street.site.rows("select epoch, cause from supply_orders order by epoch")
        assert causes == [(1, "reading"), (2, "reported"), (3, "reported")]
        gaps = await street.site.rows(
            "select extract(epoch from b.sent_at - a.sent_at) >= 1 from supply_orders a"
            " join supply_orders b on b.meter_id = a.meter_id and b.epoch = a.epoch + 1"
        )
        assert gaps == [(True,), (True,)]
        await street.site.settled()
        report = await run_checks(street.site.conn, CALENDAR)
        assert [check.line() for check in report.checks if check.broken and check.id == "I8"] == []

    tell(database_url, nats, story, patience=IMPATIENT)


def test_contradicting_meter_waits_visibly(database_url: str, nats: EmbeddedNats) -> None:
    """By default a switch that is moved back is moved again after minutes; meanwhile the order says why it waits."""

    async def story(street: Street) -> None:
        await street.use(1, 11_000)
        await street.until_orders(("off", "confirmed"))
        street.meter.relay = Relay.ON
        await street.use(2, 10)
        await _until_waiting(street, "contradicting")
        assert await street.orders() == [("off", "confirmed"), ("off", "pending")]
        # Tried again or not, it was given one order.
        assert len({command.epoch for command in street.meter.given(OrderKind.SUPPLY)}) == 1
        # A recharge waits for nothing.
        await street.site.post(street.home, JournalKind.VEND, 1_000_000)
        await street.until_orders(("off", "confirmed"), ("off", "superseded"), ("on", "confirmed"))

    tell(database_url, nats, story)


def test_done_order_with_the_other_relay_is_replaced_by_a_new_epoch(database_url: str, nats: EmbeddedNats) -> None:
    """The meter did it, its answer was lost, the switch was moved back: it will not do the same epoch again."""

    async def story(street: Street) -> None:
        await street.fleet.go_offline("M1")
        await street.site.send(exhausting())

        async def tried() -> bool:
            return bool(await street.site.one("select attempts from supply_orders"))

        await street.site.until(tried, "the first try has left")
        ((order_id, epoch),) = await street.site.rows("select id, epoch from supply_orders")
        await street.site.send(reply(order_id, epoch, Relay.ON))
        await street.fleet.go_online("M1")
        await street.until_orders(("off", "superseded"), ("off", "confirmed"))
        assert street.meter.relay is Relay.OFF
        assert [command.epoch for command in street.meter.given(OrderKind.SUPPLY)] == [2]
        # The answer to the first, come once more, is stale.
        await street.site.send(reply(order_id, epoch, Relay.ON, at_ms=T0 + DAY_MS - 1))
        assert await street.orders() == [("off", "superseded"), ("off", "confirmed")]

    tell(database_url, nats, story, patience=IMPATIENT)


def test_report_that_ingest_missed_is_found_by_the_sweep(database_url: str, nats: EmbeddedNats) -> None:
    """Reported differs from desired with nothing ordered, whoever lost that: both ways are ordered away."""

    async def story(street: Street) -> None:
        await street.use(1, 100)
        changed = "update meter_state set relay = %s returning meter_id"
        await street.site.rows(changed, "off")
        await street.until_orders(("on", "confirmed"))
        await street.use(2, 11_000)
        await street.until_orders(("on", "confirmed"), ("off", "confirmed"))
        await street.site.rows(changed, "on")
        await street.until_orders(("on", "confirmed"), ("off", "confirmed"), ("off", "confirmed"))

    tell(database_url, nats, story, patience=IMPATIENT)


class _Modbus:
    """A port of another transport that notes what it is given; down as long as told."""

    def __init__(self) -> None:
        self.down = False
        self.commands: list[Outgoing] = []

    async def send(self, commands: Sequence[Outgoing]) -> None:
        if self.down:
            raise TransportDown("gateway: no answer")
        self.commands += commands


def test_orders_leave_by_their_meters_transport(database_url: str, nats: EmbeddedNats) -> None:
    """A Modbus meter's order goes to that port and no other; without a port it waits, and says so."""
    modbus = _Modbus()

    async def story(street: Street) -> None:
        site = street.site
        other, lost = await site.add_home("M2", credit_minor=2_000), await site.add_home("M3", credit_minor=2_000)
        await site.rows("update meters set transport = 'modbus' where id = %s returning id", other.meter_id)
        await site.rows("update meters set transport = 'carrier' where id = %s returning id", lost.meter_id)
        modbus.down = True
        await site.send(
            exhausting(), *(reading(serial, T0 + 5 * HOUR_MS, REGISTER_WH + 20_000) for serial in ("M2", "M3"))
        )
        # A transport that is down stops no other.
        await street.until_orders(("off", "confirmed"))
        assert modbus.commands == []
        modbus.down = False
        await site.until(lambda: _given(modbus), "the port is given its order")
        assert modbus.commands[0].serial == "M2"
        assert decode_command(modbus.commands[0].payload).relay is Relay.OFF
        waits = await site.rows(
            "select attempts, waits_for, next_try_at > now() from supply_orders where meter_id = %s", lost.meter_id
        )
        assert waits == [(0, "transport", True)]

    tell(database_url, nats, story, ports={"modbus": modbus})


async def _given(modbus: _Modbus) -> bool:
    return bool(modbus.commands)


@pytest.mark.parametrize(
    ("relay", "tries", "longest_s"),
    [
        ("off", LONG_AWAY_ATTEMPTS - 1, BACKOFF_S_MAX),
        ("off", LONG_AWAY_ATTEMPTS, LONG_AWAY_BACKOFF_S),
        ("on", LONG_AWAY_ATTEMPTS, RESTORE_BACKOFF_S_MAX),
    ],
)
def test_meter_away_for_a_day_is_served_when_it_returns(
    database_url: str, nats: EmbeddedNats, relay: str, tries: int, longest_s: int
) -> None:
    """After a day of tries the next one is minutes away, never given up; the meter obeys it and confirms."""

    async def story(street: Street) -> None:
        if relay == "on":
            await street.use(1, 11_000)
            await street.until_orders(("off", "confirmed"))
        await street.fleet.go_offline("M1")
        if relay == "on":
            await street.site.post(street.home, JournalKind.VEND, 1_000_000)
        else:
            await street.site.send(exhausting())
        open_order = "relay = %s and state = 'sent'"

        async def sent() -> bool:
            return bool(await street.site.one(f"select count(*) from supply_orders where {open_order}", relay))

        await street.site.until(sent, "the first try has left")
        # A day ago, some 300 tries since.
        await street.site.rows(
            "update supply_orders set attempts = %s, created_at = created_at - interval '1 day',"
            " sent_at = sent_at - interval '1 day', next_try_at = '-infinity', looked_at = looked_at - interval '1 day'"
            f" where {open_order} returning id",
            tries,
            relay,
        )

        async def tried() -> bool:
            return bool(
                await street.site.one(f"select attempts > %s from supply_orders where {open_order}", tries, relay)
            )

        await street.site.until(tried, "it is tried once more")
        wait_s = await street.site.one(
            f"select extract(epoch from next_try_at - looked_at) from supply_orders where {open_order}", relay
        )
        assert 0.75 * longest_s <= wait_s <= 1.25 * longest_s
        await street.fleet.go_online("M1")
        await street.fleet.wait_connected(timeout_s=WAIT_S)
        await _try_now(street)
        await street.fleet.wait_for(lambda: street.meter.relay is Relay(relay), timeout_s=WAIT_S)

        async def confirmed() -> bool:
            return (await street.orders())[-1] == (relay, "confirmed")

        await street.site.until(confirmed, "the order is confirmed")

    tell(database_url, nats, story)


def test_alarm_follows_the_cut_off_of_the_same_moment(database_url: str, nats: EmbeddedNats) -> None:
    """A meter has one command on its way: the cut-off leaves first, the alarm says what it waits for, and follows."""

    async def story(street: Street) -> None:
        # The first cut-off ever of an area leaves a round later, when the area is known.
        await street.site.rows("insert into cut_off_areas (area) values ('test') returning area")
        await street.use(2, 15_000)
        await street.until_orders(("off", "confirmed"))
        await street.until_orders((None, "confirmed"), kind="alarm")
        assert [command.kind for command in street.meter.commands] == [OrderKind.SUPPLY, OrderKind.ALARM]

    tell(database_url, nats, story, threshold_minor=1_500, credit_minor=4_000)


# Clocks that are set (F20) -------------------------------------------------------------------------------------------


def test_order_scheduled_under_a_clock_ahead_is_tried_again_at_once(database_url: str, nats: EmbeddedNats) -> None:
    """The clock went back by an hour: whatever had been tried or put off in its future is due for the next owner."""

    async def story(street: Street) -> None:
        await street.fleet.go_offline("M1")
        await street.site.send(exhausting())

        async def tried() -> bool:
            return bool(await street.site.one("select attempts from supply_orders"))

        await street.site.until(tried, "the first try has left")
        # As if everything so far had happened under a clock an hour ahead.
        await street.site.rows(
            "update supply_orders set created_at = created_at + interval '1 hour',"
            " sent_at = sent_at + interval '1 hour', looked_at = looked_at + interval '1 hour',"
            " next_try_at = next_try_at + interval '1 hour' returning id"
        )
        # The owner's lease, too: it is taken by another, who looks at what it finds.
        await street.site.rows(
            "update shard_leases set owner = 'dispatch-gone', epoch = epoch + 1,"
            " expires_at = clock_timestamp() + interval '1 hour' where role = 'dispatch' returning shard"
        )
        await street.fleet.go_online("M1")
        await street.until_orders(("off", "confirmed"))
        assert await street.site.one("select count(*) from shard_leases where owner = 'dispatch-gone'") == 0

    tell(database_url, nats, story)


def test_clock_set_forward_by_a_day_sends_each_order_once(database_url: str, nats: EmbeddedNats) -> None:
    """All that waits is due at once, is tried once, and waits for its meter's answer again."""

    async def story(street: Street) -> None:
        site = street.site
        others = [await site.add_home(f"M{number}", credit_minor=2_000) for number in range(2, 12)]
        await street.fleet.go_offline("M1")
        homes = [street.home, *others]
        await site.send(*(reading(home.serial, T0 + 5 * HOUR_MS, REGISTER_WH + 20_000) for home in homes))

        async def tried(times: int) -> bool:
            return bool(await site.one("select min(attempts) >= %s from supply_orders", times))

        await site.until(lambda: tried(1), "each was tried")
        await site.rows(
            "update supply_orders set next_try_at = next_try_at - interval '1 day', attempts = 20,"
            " looked_at = looked_at - interval '1 day' returning id"
        )
        await site.until(lambda: tried(21), "each is tried again")
        await site.settled()
        assert await site.rows("select distinct attempts from supply_orders") == [(21,)]

    tell(database_url, nats, story)
