"""The calendar's edges in running processes: beside readings, locks and deaths, and out to a meter that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from billing.calendar import from_ms
from db.audit import run_checks
from db.pool import connect
from db.posting import lock_free
from db.readings import ensure_partitions
from db.supply_holds import clear_exemption, set_exemption
from db.supply_rules import add_supply_rules
from headend.edges import calendar_sweep
from headend.edges.calendar_sweep import READ_MS
from headend.edges.ingest import Ingest, IngestSettings
from headend.edges.metrics import IngestMetrics
from loadtests.population import serial_of
from loadtests.seed_accounts import seed_accounts
from meter_sim.edges.fleet import Fleet, FleetSettings
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind, Relay
from protocols.topics import shard_of
from tests.integration.calendar_town import (
    CREDIT_MINOR,
    JUNE_1,
    MUCH_WH,
    NIGHT_RULES,
    SHOP,
    SetClock,
    Told,
    any_time_from,
    at,
    told,
)
from tests.integration.supply_street import RememberingMeter
from tests.support import (
    ACK_WAIT_S,
    CALENDAR,
    LEASE_S,
    OPENED_AT,
    REGISTER_WH,
    TARIFF,
    WAIT_S,
    Home,
    Message,
    Site,
    open_site,
    reading,
    running_dispatch,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

CUT = [("off", "pending", "calendar")]
# A sweep looks at one page between two waits for messages, 0.2 s each: some 7 s for 32 shards of a quiet town.
SWEEP_WAIT_S = 4 * WAIT_S
MANY = 2_000
# A page of them, and one that does not fill it: two steps for each shard.
ACCOUNTS_A_PAGE = 40
BURST = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A site whose processes go by a clock that the test sets."""

    site: Site
    clock: SetClock

    async def home(self, serial: str, *, category: str = "DS") -> Home:
        """Open an account; its readings are of the first two weeks of June."""
        return await self.site.add_home(serial, credit_minor=CREDIT_MINOR, category=category, days=16)

    def much_used(self, serial: str) -> Message:
        """Make a reading of now that exhausts the credit."""
        return reading(serial, self.clock.at_ms, REGISTER_WH + MUCH_WH)

    async def until_cut(self, *homes: Home) -> None:
        """Wait until all of them are ordered to be off."""

        async def cut() -> bool:
            return bool(await self.site.one(
                "select count(*) = %s from accounts where desired = 'off' and id = any(%s)",
                len(homes),
                [home.account_id for home in homes],
            ))  # fmt: skip

        await self.site.until(cut, "the homes are cut", within_s=SWEEP_WAIT_S)

    async def told(self, home: Home) -> Told:
        """Return what has become of a home."""
        return await told(self.site.conn, home)


@asynccontextmanager
async def open_installation(database_url: str, nats: EmbeddedNats, *, at_ms: int) -> AsyncIterator[Installation]:
    """Open a site whose rules protect nights; no process runs yet."""
    async with open_site(database_url, nats) as site:
        await add_supply_rules(site.conn, NIGHT_RULES, first_open_day=JUNE_1)
        yield Installation(site=site, clock=SetClock(at_ms=at_ms))


def tell(database_url: str, nats: EmbeddedNats, at_ms: int, story: Callable[[Installation], Awaitable[None]]) -> None:
    """Tell a story of an installation with ingest that begins at an instant."""

    async def run() -> None:
        async with (
            open_installation(database_url, nats, at_ms=at_ms) as installed,
            running_ingest(installed.site, clock=installed.clock),
        ):
            await story(installed)

    asyncio.run(run())


@pytest.mark.slow
def test_exempt_account_is_cut_when_it_is_taken_off_the_list(database_url: str, nats: EmbeddedNats) -> None:
    """The office's change reaches the shard's owner: within a window it acts, with no edge and no reading to come."""

    async def story(installed: Installation) -> None:
        site, home = installed.site, await installed.home("M1", category=SHOP)
        now = from_ms(installed.clock.at_ms)
        await set_exemption(site.conn, home.account_id, reason="dialysis", by="A. Kaur", now=now)
        await site.send(installed.much_used("M1"))
        quiet = await installed.told(home)
        assert (quiet.orders, quiet.notices, quiet.alarms) == ([], [], [("exhausted", 0, 1)])
        await clear_exemption(site.conn, home.account_id, reason="moved", by="A. Kaur", now=now)
        await installed.until_cut(home)
        cut = await installed.told(home)
        assert [order[0] for order in cut.orders] == ["off"]
        assert (cut.kinds, cut.alarms) == (["cut"], [("exhausted", 0, 1)])

    tell(database_url, nats, at(5, "20:00"), story)


@pytest.mark.slow
def test_exempt_account_that_is_taken_off_the_list_at_night_is_cut_at_the_opening(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Off the list is not off the hours."""

    async def story(installed: Installation) -> None:
        site, home = installed.site, await installed.home("M1")
        now = from_ms(installed.clock.at_ms)
        await set_exemption(site.conn, home.account_id, reason="dialysis", by="A. Kaur", now=now)
        await site.send(installed.much_used("M1"))
        await clear_exemption(site.conn, home.account_id, reason="moved", by="A. Kaur", now=now)
        # Whatever the feed told before this reading has been acted on with it.
        installed.clock.at_ms += 60_000
        await site.send(installed.much_used("M1"))
        assert (await installed.told(home)).orders == []
        installed.clock.at_ms = at(6, "10:00")
        await installed.until_cut(home)
        assert (await installed.told(home)).orders == CUT

    tell(database_url, nats, at(5, "20:00"), story)


@pytest.mark.slow
def test_account_that_is_busy_at_the_opening_is_settled_when_it_is_free(database_url: str, nats: EmbeddedNats) -> None:
    """The sweep goes on past a locked account and comes back to it by itself."""

    async def story(installed: Installation) -> None:
        site = installed.site
        busy, free = await installed.home("M1"), await installed.home("M2")
        await site.send(installed.much_used("M1"), installed.much_used("M2"))
        async with await connect(database_url, application="vending") as vending, vending.transaction():
            await lock_free(vending, [busy.account_id])
            installed.clock.at_ms = at(6, "10:00")
            await installed.until_cut(free)

            async def left() -> bool:
                return bool(await site.one("select count(*) from rechecks where account_id = %s", busy.account_id))

            await site.until(left, "the busy account is left for later", within_s=SWEEP_WAIT_S)
            assert (await installed.told(busy)).orders == []
        await installed.until_cut(busy)
        await site.settled()
        for home in (busy, free):
            cut = await installed.told(home)
            assert [order[0] for order in cut.orders] == ["off"]
            assert (cut.kinds, cut.alarms) == (["exhausted", "cut"], [("exhausted", 0, 1)])

    tell(database_url, nats, at(5, "20:00"), story)


def test_readings_after_new_rules_are_decided_by_them(database_url: str, nats: EmbeddedNats) -> None:
    """Accounts that ingest knows are known with their scheme: new rules make them unknown."""

    async def story(installed: Installation) -> None:
        site, waiting, known = installed.site, await installed.home("M1"), await installed.home("M2")
        await site.send(installed.much_used("M1"), reading("M2", installed.clock.at_ms, REGISTER_WH + 100))
        await add_supply_rules(site.conn, any_time_from(CALENDAR.day_of(installed.clock.at_ms)), first_open_day=JUNE_1)
        installed.clock.at_ms += READ_MS
        # The sweep has seen the new rules.
        await installed.until_cut(waiting)
        await site.send(reading("M2", at(6, "12:00"), REGISTER_WH + MUCH_WH))
        cut = await installed.told(known)
        assert ([order[0] for order in cut.orders], cut.kinds) == (["off"], ["exhausted"])
        assert "protected_until_ms" not in cut.notices[0][1]

    tell(database_url, nats, at(5, "20:00"), story)


def test_taker_of_a_dead_owners_shards_finishes_its_sweep(
    database_url: str, nats: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner dies between two pages of a shard; who stood by sweeps what is left, and nobody is cut or told twice."""
    monkeypatch.setattr(calendar_sweep, "ACCOUNTS_A_PAGE", 3)

    async def run() -> None:
        async with open_installation(database_url, nats, at_ms=at(5, "20:00")) as installed:
            site, shard = installed.site, shard_of("M1")
            serials = [serial for number in range(1, 1_000) if shard_of(serial := f"M{number}") == shard][:20]
            homes = [await installed.home(serial) for serial in serials]

            async def cut() -> int:
                return int(await site.one("select count(*) from supply_orders where relay = 'off'"))

            life = AsyncExitStack()
            await life.enter_async_context(_mortal_ingest(installed))
            # The other stands by meanwhile: it has seen the opening, and had no shard to sweep.
            async with life, running_ingest(site, clock=installed.clock):
                await site.send(*(installed.much_used(serial) for serial in serials))
                installed.clock.at_ms = at(6, "10:00")
                await site.until(cut, "the sweep has begun", within_s=SWEEP_WAIT_S)
                await life.aclose()
                assert 0 < await cut() < len(homes)
                await installed.until_cut(*homes)
                await site.settled()
            for home in homes:
                found = await installed.told(home)
                # Whoever takes shards over also looks at what the feed told last: either cause is right.
                assert [order[:2] for order in found.orders] == [("off", "pending")]
                assert (found.kinds, found.alarms) == (["exhausted", "cut"], [("exhausted", 0, 1)])

    asyncio.run(run())


@pytest.mark.slow
def test_two_thousand_waiting_accounts_are_cut_page_by_page_beside_readings(
    database_url: str, nats: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings do not wait for a whole town's opening: they are stored between its pages, and each home is cut once."""
    monkeypatch.setattr(calendar_sweep, "ACCOUNTS_A_PAGE", ACCOUNTS_A_PAGE)
    evening_ms, opening_ms = at(5, "20:00"), at(6, "10:00")

    async def run() -> None:
        async with open_installation(database_url, nats, at_ms=evening_ms) as installed:
            site = installed.site
            await seed_accounts(database_url, MANY, opened_at=OPENED_AT, opened_on=JUNE_1, tariff_id=TARIFF)
            await ensure_partitions(site.conn, {from_ms(ms).date() for ms in (evening_ms, opening_ms)})
            registers = dict(await site.rows("select meter_id, register_wh from register_segments"))

            def used(number: int, at_ms: int, more_wh: int) -> Message:
                return reading(serial_of(number), at_ms, registers[number] + 400_000 + more_wh)

            async def cut() -> int:
                return int(await site.one("select count(*) from accounts where desired = 'off'"))

            async with running_ingest(site, clock=installed.clock):
                await site.publish(*(used(number, evening_ms, 0) for number in range(1, MANY + 1)))
                await site.settled(within_s=SWEEP_WAIT_S)
                waiting = "select count(*) from accounts where exhausted_raised and desired = 'on'"
                assert await site.one(waiting) == MANY
                installed.clock.at_ms = opening_ms
                bursts, between = 0, 0
                while (done := await cut()) < MANY:
                    numbers = range(1 + BURST * (bursts % (MANY // BURST)), 1 + BURST * (bursts % (MANY // BURST) + 1))
                    lap = 1 + bursts // (MANY // BURST)
                    await site.send(*(used(number, opening_ms + lap, lap) for number in numbers))
                    bursts += 1
                    between += 0 < done < MANY
                await site.settled()
            # With the default page of 500, or of a shard, as much.
            assert between >= 3
            assert await site.one("select count(*) from readings") == MANY + BURST * bursts
            orders = "select relay, cause, count(*) from supply_orders where kind = 'supply' group by 1, 2"
            assert await site.rows(orders) == [("off", "calendar", MANY)]
            notices = "select kind, count(*), count(distinct account_id) from notices group by 1 order by 1"
            assert (await site.rows(notices))[:2] == [("cut", MANY, MANY), ("exhausted", MANY, MANY)]
            alarms = "select count(*), count(distinct account_id) from alarms where level = 'exhausted'"
            assert await site.rows(alarms) == [(MANY, MANY)]
            assert await site.one("select count(*) from rechecks") == 0

    asyncio.run(run())


def test_cut_off_of_the_last_minute_is_not_sent_at_night(database_url: str, nats: EmbeddedNats) -> None:
    """Ordered at 12:59 of a meter that is away: not sent after 13:00 though it is back; sent at the next opening."""

    async def run() -> None:
        async with open_installation(database_url, nats, at_ms=at(6, "12:59")) as installed:
            site, clock = installed.site, installed.clock
            home, meter = await installed.home("M1"), RememberingMeter("M1")
            settings = FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port)
            async with (
                running_ingest(site, clock=clock),
                running_dispatch(site, now_ms=clock),
                Fleet([meter], settings=settings, clock=clock, rng=random.Random(7)) as fleet,
            ):
                await fleet.wait_connected(timeout_s=WAIT_S)
                await fleet.go_offline("M1")
                await site.send(installed.much_used("M1"))
                await _until_order(site, "state = 'sent' and attempts = 1")
                for night in (at(6, "13:00"), at(6, "23:00"), at(7, "09:59:59")):
                    clock.at_ms = night
                    await _look_again(site)
                    await _until_order(site, "waits_for = 'hours' and next_try_at > clock_timestamp()")
                    if not fleet.is_connected("M1"):
                        await fleet.go_online("M1")
                        await fleet.wait_connected(timeout_s=WAIT_S)
                assert await site.rows("select attempts, epoch from supply_orders") == [(1, 1)]
                assert (meter.commands, meter.relay) == ([], Relay.ON)
                clock.at_ms = at(7, "10:00")
                await _look_again(site)
                await fleet.wait_for(lambda: meter.relay is Relay.OFF, timeout_s=WAIT_S)
                await _until_order(site, "state = 'confirmed'")
                await site.settled()
            (command,) = meter.given(OrderKind.SUPPLY)
            assert (command.epoch, await site.one("select attempts from supply_orders")) == (1, 2)
            assert at(7, "10:00") < command.expires_at_ms <= at(7, "13:00")
            found = await installed.told(home)
            assert (found.kinds, found.alarms) == (["exhausted"], [("exhausted", 0, 1)])
            report = await run_checks(site.conn, CALENDAR)
            assert [check.line() for check in report.checks if check.broken] == []

    asyncio.run(run())


@asynccontextmanager
async def _mortal_ingest(installed: Installation) -> AsyncIterator[None]:
    """Run ingest as a task that owns all shards and ends as a killed process does: its leases stay where they are."""
    settings = IngestSettings(
        database_url=installed.site.database_url,
        nats_url=installed.site.nats.nats_url,
        calendar=CALENDAR,
        lease_s=LEASE_S,
        ack_wait_s=ACK_WAIT_S,
        stale_reading_s=None,
        clock=installed.clock,
    )
    owned = "select count(*) = 32 and count(distinct owner) = 1 from shard_leases where role = 'ingest'"
    task = asyncio.create_task(Ingest(settings, IngestMetrics()).run(asyncio.Event()))
    try:
        await installed.site.until(lambda: installed.site.one(owned), "it owns all shards")
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _until_order(site: Site, condition: str) -> None:
    async def so() -> bool:
        return bool(await site.one(f"select count(*) from supply_orders where kind = 'supply' and {condition}"))

    await site.until(so, f"an order has {condition}")


async def _look_again(site: Site) -> None:
    """Let the time that the open order waits be over; what it last waited for is forgotten."""
    await site.rows(
        "update supply_orders set next_try_at = '-infinity', waits_for = null"
        " where state in ('pending', 'sent') returning id"
    )
