"""Faults between an order and its meter: a dispatcher killed while it sends, races with recharges, a town exhausted."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from billing.journals import JournalKind
from db.audit import run_checks
from db.order_control import read_status, release_area
from db.pool import connect
from db.posting import lock_and_look, post_money
from headend.dispatch_plan import CutOffLimits
from headend.edges.command_ports import Outgoing
from meter_sim.edges.bulk import BulkPublisher
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from meter_sim.meter import SWITCH_OPEN
from prepaid.embedded import EmbeddedNats
from prepaid.embedded.process import is_running
from prepaid.system import System
from protocols.native import CommandReply, OrderKind, Relay, ReplyResult, decode_command, encode_reply
from protocols.topics import event_topic
from tests.integration.supply_street import CREDIT_MINOR, RememberingMeter, Street, exhausting, tell
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    REGISTER_WH,
    RULES,
    T0,
    WAIT_S,
    Home,
    Site,
    child_processes,
    now_ms,
    open_site,
    post,
    reading,
    running_dispatch,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]


# F2: killed after the publish, before it was noted ------------------------------------------------------------------


def _unread_bytes(port: int) -> int:
    """Count what has been sent to a local port and not been read there."""
    unread = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if int(local.split(":")[1], 16) == port:
            unread += int(queues.split(":")[1], 16)
    return unread


async def _dispatching(site: Site, system: System) -> bool:
    """Tell whether the dispatcher that now runs owns every shard; bring back one that died."""
    system.tend()
    return is_running(system.pid("dispatch")) and bool(
        await site.one(
            "select count(*) = 32 from shard_leases"
            " where role = 'dispatch' and owner like %s and expires_at > clock_timestamp()",
            f"dispatch-{system.pid('dispatch')}-%",
        )
    )


def test_dispatcher_killed_between_publish_and_note_moves_the_relay_once(
    database_url: str, nats: EmbeddedNats, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is on its way, nothing says so: it is sent again under its epoch, and the meter does it once."""
    monkeypatch.setenv("PREPAID_LEASE_S", "1")
    meter = RememberingMeter("M1")

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home("M1", credit_minor=CREDIT_MINOR)
            fleet = Fleet(
                [meter],
                settings=FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port),
                clock=ScaledClock(T0 + DAY_MS),
                rng=random.Random(7),
            )
            with child_processes(site.parts, data_dir, ["dispatch"]) as system:
                async with fleet:
                    await fleet.wait_connected(timeout_s=WAIT_S)
                    await site.until(lambda: _dispatching(site, system), "the dispatcher is at work")
                    await _kill_while_sending(site, home, nats, system)
                    assert await site.rows("select state, attempts, published_at from supply_orders") == [
                        ("sent", 1, None)
                    ]
                    # Its successor knows nothing of what had left.
                    await site.until(lambda: _dispatching(site, system), "another dispatcher is at work")
                    await fleet.wait_for(lambda: len(meter.commands) >= 2, timeout_s=WAIT_S)
                    async with running_ingest(site):
                        await site.until(lambda: _all_confirmed(site), "the meter has confirmed")
                        await site.settled()
                    assert {(command.order_id, command.epoch) for command in meter.commands} == {
                        (meter.commands[0].order_id, 1)
                    }
                    assert meter.relay is Relay.OFF
                    assert await site.rows("select code, count(*) from meter_events group by code") == [
                        (SWITCH_OPEN, 1)
                    ]
                    await _audited(site)

    asyncio.run(told())


async def _kill_while_sending(site: Site, home: Home, nats: EmbeddedNats, system: System) -> None:
    """Let the dispatcher send into a broker that does not read, and kill it there."""
    assert nats.pid is not None
    port = int(nats.nats_url.rsplit(":", 1)[1])
    os.kill(nats.pid, signal.SIGSTOP)
    try:
        await site.post(home, JournalKind.REVERSAL, -CREDIT_MINOR)

        async def sent() -> bool:
            # A command has some 150 bytes, a ping of the broker's client six.
            return _unread_bytes(port) > 100

        await site.until(sent, "the command is with the broker")
        pid = system.pid("dispatch")
        os.kill(pid, signal.SIGKILL)

        async def ended() -> bool:
            return not is_running(pid)

        await site.until(ended, "the dispatcher is gone")
    finally:
        os.kill(nats.pid, signal.SIGCONT)


async def _all_confirmed(site: Site) -> bool:
    return not await site.one("select count(*) from supply_orders where state in ('pending', 'held', 'sent')")


async def _audited(site: Site) -> None:
    """Let the auditor look; only I6 is left out, since these vends come without a vendor."""
    report = await run_checks(site.conn, CALENDAR)
    assert [check.line() for check in report.checks if check.broken and check.id != "I6"] == []


# F27: a recharge and a cut-off at once --------------------------------------------------------------------------------


def test_cut_off_that_a_recharge_is_just_superseding_is_never_sent(database_url: str, nats: EmbeddedNats) -> None:
    """The recharge holds the order's row when the dispatcher comes; it is passed over, and only the restore leaves."""

    async def story(street: Street) -> None:
        site, home = street.site, street.home
        await street.fleet.go_offline("M1")
        await site.send(exhausting())

        async def tried() -> bool:
            return bool(await site.one("select attempts from supply_orders"))

        await site.until(tried, "the first try has left")
        async with await connect(site.database_url, application="vending") as conn, conn.transaction():
            view = await lock_and_look(conn, home.account_id, RULES)
            await post_money(conn, view, JournalKind.VEND, 100_000, rules=RULES, now_ms=now_ms())
            await _next_try_due(site)
            await street.fleet.go_online("M1")
            await street.fleet.wait_connected(timeout_s=WAIT_S)
            # Rounds go by: the order is due, and passed over.
            rounds = _rounds(street)

            async def gone_by() -> bool:
                return _rounds(street) >= rounds + 3

            await site.until(gone_by, "the dispatcher looks three times")
            assert street.meter.commands == []
        await street.until_orders(("off", "superseded"), ("on", "confirmed"))
        assert [command.relay for command in street.meter.given(OrderKind.SUPPLY)] == [Relay.ON]
        await site.settled()
        await _audited(site)

    tell(database_url, nats, story)


async def _next_try_due(site: Site) -> None:
    """Wait out the 2 s after the first try: the row is locked, nobody could bring it forward."""

    async def due() -> bool:
        return bool(await site.one("select next_try_at <= clock_timestamp() from supply_orders"))

    await site.until(due, "the next try is due")


def _rounds(street: Street) -> int:
    found = street.metrics.registry.get_sample_value("prepaid_dispatch_round_seconds_count")
    return int(found or 0)


def test_recharge_that_waits_for_a_claim_restores_right_after(database_url: str, nats: EmbeddedNats) -> None:
    """The dispatcher has claimed the cut-off and not committed; the recharge waits, then supersedes: off, then on."""

    async def story(street: Street) -> None:
        site, home = street.site, street.home
        await site.rows("insert into cut_off_areas (area) values ('test') returning area")
        async with await connect(site.database_url, application="vending") as conn:
            async with _counts_held(site):
                await site.post(home, JournalKind.REVERSAL, -CREDIT_MINOR)
                await site.until(lambda: _waits(site, "dispatch-%"), "the dispatcher stands behind its claim")
                vend = asyncio.create_task(post(conn, home, JournalKind.VEND, 100_000))
                await site.until(lambda: _waits(site, "vending"), "the recharge waits for the order")
            await vend
        await street.until_orders(("off", "superseded"), ("on", "confirmed"))
        assert [command.relay for command in street.meter.given(OrderKind.SUPPLY)] == [Relay.OFF, Relay.ON]
        assert street.meter.relay is Relay.ON
        await site.settled()
        await _audited(site)

    tell(database_url, nats, story)


@asynccontextmanager
async def _counts_held(site: Site) -> AsyncIterator[AsyncConnection]:
    """Make whoever counts a cut-off of the area wait: the rows of these ten seconds and the next are being added."""
    async with await connect(site.database_url, application="holder") as conn, conn.transaction(force_rollback=True):
        await conn.execute(
            b"insert into cut_off_counts (area, at, sent)"
            b" select 'test', date_bin('10 seconds', clock_timestamp() + n * interval '10 seconds', '2000-01-01'), 0"
            b" from generate_series(0, 2) n"
        )
        yield conn


async def _waits(site: Site, application: str) -> bool:
    return bool(
        await site.one(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like %s"
            " and wait_event_type = 'Lock'",
            application,
        )
    )


# F37: a fifth of a town exhausted in one minute -----------------------------------------------------------------------

TOWN, EXHAUSTED, ELSEWHERE = 100, 20, 5
LIMITS = CutOffLimits(per_minute_max=8, per_hour_max=16, minute_s=6)


class AnsweringTransport:
    """Meters that obey at once and confirm over the broker; notes when each was cut."""

    def __init__(self, publisher: BulkPublisher) -> None:
        self.cut: list[tuple[float, str]] = []
        self.relays: dict[str, Relay] = {}
        self._publisher = publisher

    async def send(self, commands: Sequence[Outgoing]) -> None:
        """Obey and answer."""
        for outgoing in commands:
            command = decode_command(outgoing.payload)
            if command.relay is not None:
                self.relays[outgoing.serial] = command.relay
            if command.relay is Relay.OFF:
                self.cut.append((time.monotonic(), outgoing.serial))
            reply = CommandReply(
                serial=outgoing.serial,
                seq=None,
                at_ms=T0 + DAY_MS + command.epoch,
                order_id=command.order_id,
                epoch=command.epoch,
                kind=command.kind,
                result=ReplyResult.DONE,
                relay=self.relays.get(outgoing.serial, Relay.ON),
                threshold_minor=command.threshold_minor,
            )
            await self._publisher.publish(event_topic(outgoing.serial), encode_reply(reply))

    def serials(self, area: str) -> list[str]:
        """Return the meters of an area that were cut."""
        return [serial for _, serial in self.cut if serial.startswith(area)]


def test_fifth_of_a_town_exhausted_at_once_trips_the_breaker(database_url: str, nats: EmbeddedNats) -> None:
    """Never more than the limits, one alarm each, restores and other areas go on; a release lets the rest go."""

    async def told() -> None:
        async with (
            open_site(database_url, nats) as site,
            BulkPublisher(nats.mqtt_host, nats.mqtt_port, connections=1) as publisher,
        ):
            port = AnsweringTransport(publisher)
            town = [await site.add_home(f"T{place}", credit_minor=CREDIT_MINOR, area="town") for place in range(TOWN)]
            others = [await site.add_home(f"E{place}", credit_minor=CREDIT_MINOR, area="else") for place in range(5)]
            await site.rows("update meters set transport = 'answering' returning id")
            ports = {"answering": port}
            async with running_ingest(site), running_dispatch(site, limits=LIMITS, ports=ports):
                gone = [*town[:EXHAUSTED], *others]
                await site.send(*(reading(home.serial, T0 + 5 * HOUR_MS, REGISTER_WH + 20_000) for home in gone))
                await site.until(lambda: _held(site), "the breaker trips")
                assert len(port.serials("T")) == LIMITS.per_hour_max
                assert sorted(port.serials("E")) == [home.serial for home in others]
                waiting = next(home for home in gone if home.serial not in port.serials("T") + port.serials("E"))
                await site.post(waiting, JournalKind.VEND, 100_000)

                async def restored() -> bool:
                    return port.relays.get(waiting.serial) is Relay.ON

                await site.until(restored, "a restore passes the breaker")
                (area,) = [each for each in (await read_status(site.conn, hours=1)).areas if each.kind == "held"]
                assert (area.area, area.waiting) == ("town", EXHAUSTED - LIMITS.per_hour_max - 1)
                await release_area(site.conn, "town", by="A. Kaur", reason="the tariff changed at midnight")
                await site.until(lambda: _all_confirmed(site), "every order is confirmed")
                await site.settled()
            assert sorted({*port.serials("T")}) == sorted(home.serial for home in gone[:EXHAUSTED] if home != waiting)
            for serial in ("T", "E"):
                _within_the_minute(port, serial)
            assert set(Counter(serial for _, serial in port.cut).values()) == {1}
            alarms = await site.rows("select level, arm, count(*) from alarms group by level, arm")
            assert alarms == [("exhausted", 1, EXHAUSTED + ELSEWHERE)]
            differ = (
                "select count(*) from accounts a join installations i on i.usage_point_id = a.usage_point_id"
                " join meter_state s on s.meter_id = i.meter_id where coalesce(s.relay, 'on') <> a.desired"
            )
            assert await site.one(differ) == 0
            await _audited(site)

    asyncio.run(told())


async def _held(site: Site) -> bool:
    return bool(await site.one("select count(*) from supply_alarms where kind = 'held' and ended_at is null"))


def _within_the_minute(port: AnsweringTransport, area: str) -> None:
    """Check the limit over every span of a minute, but for the milliseconds between count and arrival."""
    times = [at_s for at_s, serial in port.cut if serial.startswith(area)]
    for first, beyond in zip(times, times[LIMITS.per_minute_max :], strict=False):
        assert beyond - first > LIMITS.minute_s - 0.5
