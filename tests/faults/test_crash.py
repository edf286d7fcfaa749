"""Crashes in the middle of a replay: nothing lost, nothing twice, the same money and alarms as without them."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from itertools import zip_longest
from pathlib import Path

import pytest

from billing.calendar import from_ms
from billing.rating import Lines, total
from billing.tariff_document import builtin_tariff
from db.audit import run_checks
from db.reports import count_lost
from headend.edges.close_day import close_day
from meter_sim.edges.bulk import BulkPublisher
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres
from prepaid.embedded.process import is_running
from prepaid.preview import preview
from prepaid.replay import ReplayMeter, ReplayOptions, blocks_of, make_meters
from prepaid.system import System
from protocols.native import encode_readings
from protocols.topics import reading_topic
from tests.databases import scratch_database
from tests.support import (
    CALENDAR,
    HOUR_MS,
    RULES,
    T0,
    TARIFF,
    WAIT_S,
    Home,
    Message,
    Site,
    Snapshot,
    block,
    child_processes,
    ingest_waits,
    open_site,
    reading,
    running_ingest,
    table_held,
)
from tests.support import CREDIT_MINOR as HOME_CREDIT_MINOR

pytestmark = [pytest.mark.db, pytest.mark.broker]

METERS, BLOCK = 4, 6
# Runs low and then out within the 40 recorded days, at each of the loads.
CREDIT_MINOR, THRESHOLD_MINOR = 60_000, 10_000
# 640 messages in 40 sends at 0.03 s: about a batch each, so that faults fall into many different batches.
SENDS, PACE_S = 40, 0.03

# Ends something, and has it running again when it returns, or tended to.
Fault = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """The replayed homes and everything they send, in order of time."""

    meters: Sequence[ReplayMeter]
    messages: Sequence[Message]

    @property
    def sent(self) -> int:
        """Count the readings sent."""
        return sum(len(meter.curve) - 1 for meter in self.meters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What must not depend on what happened on the way."""

    snapshot: Snapshot
    orders: frozenset[tuple[str, str, str | None]]


@pytest.fixture(scope="module")
def street() -> Street:
    """The packaged recorded home, four times."""
    with resources.as_file(resources.files("prepaid") / "recorded" / "home_hourly.csv") as path:
        options = ReplayOptions(
            files=(path,),
            meters=METERS,
            speed=None,
            shift_days=0,
            block=BLOCK,
            credit_minor=CREDIT_MINOR,
            threshold_minor=THRESHOLD_MINOR,
            tariff_id=TARIFF,
        )
        meters = make_meters(options)
    rounds = zip_longest(*(blocks_of(meter, BLOCK) for meter in meters))
    readings = [one for together in rounds for one in together if one is not None]
    return Street(meters=meters, messages=[(reading_topic(one.serial), encode_readings(one)) for one in readings])


@pytest.fixture(scope="module")
def undisturbed(
    street: Street, postgres: EmbeddedPostgres, migrated: str, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """What a run without any fault leaves."""

    async def story(database_url: str) -> Outcome:
        async with _replayed(database_url, broker, street) as (site, homes), running_ingest(site):
            await _send(site, street)
            await site.settled()
            return await _outcome(site, street, homes)

    broker_folder = tmp_path_factory.mktemp("broker") / "nats"
    with scratch_database(postgres, template=migrated) as name, EmbeddedNats(broker_folder) as broker:
        return asyncio.run(story(postgres.url_of(name)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases and redelivery, for the processes that read the environment."""
    monkeypatch.setenv("PREPAID_LEASE_S", "1")
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", "1")


@asynccontextmanager
async def _replayed(database_url: str, nats: EmbeddedNats, street: Street) -> AsyncIterator[tuple[Site, list[Home]]]:
    async with open_site(database_url, nats) as site:
        homes = [
            await site.add_home(
                meter.serial,
                opened_at=meter.opened_at,
                register_wh=meter.curve[0].energy_wh,
                credit_minor=CREDIT_MINOR,
                threshold_minor=THRESHOLD_MINOR,
                load_w=meter.load_w,
                days=41,
            )
            for meter in street.meters
        ]
        yield site, homes


async def _send(site: Site, street: Street) -> None:
    """Publish everything."""
    await site.publish(*street.messages)


async def _send_through(
    site: Site, street: Street, system: System, faults: Mapping[int, Fault], rng: random.Random
) -> None:
    """Publish everything in many sends; a fault comes some milliseconds after its send, while ingest is at work."""
    size = -(-len(street.messages) // SENDS)
    async with BulkPublisher(site.nats.mqtt_host, site.nats.mqtt_port, connections=2) as publisher:
        for number in range(SENDS):
            if number in faults:
                await site.until(lambda: _at_work(site, system), "ingest is at work")
            for topic, payload in street.messages[number * size : (number + 1) * size]:
                await publisher.publish(topic, payload)
            await asyncio.sleep(rng.uniform(0, PACE_S))
            if number in faults:
                faults[number]()
                await site.reconnect()


async def _at_work(site: Site, system: System) -> bool:
    """Tell whether the ingest process that now runs owns every shard; bring back one that died."""
    system.tend()
    return is_running(system.pid("ingest")) and bool(
        await site.one(
            "select count(*) = 32 from shard_leases"
            " where role = 'ingest' and owner like %s and expires_at > clock_timestamp()",
            f"ingest-{system.pid('ingest')}-%",
        )
    )


def _kill_ingest(system: System) -> None:
    """End ingest without warning; return when it is gone."""
    pid = system.pid("ingest")
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"process {pid} ends"
        time.sleep(0.001)


async def _outcome(site: Site, street: Street, homes: Sequence[Home]) -> Outcome:
    """Close the days, let the auditor look, count what was lost; on a new connection, as those before may be dead."""
    await site.reconnect()
    last_ms = max(meter.curve[-1].at_ms for meter in street.meters)
    await close_day(site.conn, CALENDAR.day_of(last_ms) - timedelta(days=1), rules=RULES)
    await site.settled()
    report = await run_checks(site.conn, CALENDAR)
    assert report.clean, "\n".join(report.lines())
    ids = {home.serial: home.meter_id for home in homes}
    keys = [(ids[m.serial], m.serial, from_ms(point.at_ms)) for m in street.meters for point in m.curve[1:]]
    assert await count_lost(site.conn, keys) == 0
    orders = await site.rows("select m.serial, o.kind, o.relay from supply_orders o join meters m on m.id = o.meter_id")
    assert len(orders) == len(set(orders)), "each home was warned and cut once"
    return Outcome(snapshot=await site.snapshot(homes), orders=frozenset(orders))


def _prove(
    database_url: str,
    nats: EmbeddedNats,
    street: Street,
    undisturbed: Outcome,
    folder: Path,
    *,
    seed: int,
    faults: int,
    fault_of: Callable[[System], Fault],
) -> None:
    """Replay with faults; the outcome is the undisturbed one, and replaying again moves nothing."""

    async def story() -> None:
        async with _replayed(database_url, nats, street) as (site, homes):
            with child_processes(site.parts, folder, ["ingest"]) as system:
                rng = random.Random(seed)
                moments = rng.sample(range(2, SENDS), faults)
                await _send_through(site, street, system, dict.fromkeys(moments, fault_of(system)), rng)
                await site.until(lambda: _at_work(site, system), "ingest is at work after the last fault")
                await site.settled()
                assert await _outcome(site, street, homes) == undisturbed
                before = await site.totals()
                assert before.stored == street.sent
                await _send(site, street)
                await site.settled()
                again = (await site.totals()).since(before)
                assert (again.received, again.duplicate) == (street.sent, street.sent)
                assert await _outcome(site, street, homes) == undisturbed

    asyncio.run(story())


def test_undisturbed_run_charges_what_the_preview_says(street: Street, undisturbed: Outcome) -> None:
    """The reference of this file is itself measured: every bill equals a rating without any database."""
    for meter in street.meters:
        expected = {
            bill.period: (bill.energy_wh, _charged(bill.lines))
            for bill in preview(meter.profile, builtin_tariff(TARIFF), load_w=meter.load_w, calendar=CALENDAR)
        }
        billed = {
            period: (energy_wh, _charged(lines))
            for (serial, period), (energy_wh, lines) in undisturbed.snapshot.bills.items()
            if serial == meter.serial
        }
        assert billed == expected
        charged = sum(total(lines) for _, lines in billed.values())
        assert undisturbed.snapshot.balances[meter.serial] == CREDIT_MINOR - charged
    assert len(undisturbed.snapshot.readings) == street.sent
    assert undisturbed.snapshot.quarantine == frozenset()
    levels = {(serial, level) for serial, level, *_ in undisturbed.snapshot.alarms}
    assert levels == {(meter.serial, level) for meter in street.meters for level in ("low", "exhausted")}


def _charged(lines: Lines) -> Lines:
    """Leave out lines of nothing, which a journal does not keep."""
    return {name: amount_minor for name, amount_minor in lines.items() if amount_minor}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ingest_leaves_the_same_readings_money_and_alarms(
    database_url: str, nats: EmbeddedNats, street: Street, undisturbed: Outcome, data_dir: Path, seed: int
) -> None:
    """`kill -9` of ingest at three random moments of a replay changes nothing; sent again, all is duplicate."""

    def fault_of(system: System) -> Fault:
        return lambda: _kill_ingest(system)

    _prove(database_url, nats, street, undisturbed, data_dir, seed=seed, faults=3, fault_of=fault_of)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["kill", "stop_immediately"])
def test_database_that_dies_leaves_the_same_readings_money_and_alarms(
    nats: EmbeddedNats, street: Street, undisturbed: Outcome, data_dir: Path, how: str
) -> None:
    """The database killed or stopped at once, twice in a replay, recovers with nothing lost and nothing twice."""
    with EmbeddedPostgres(data_dir / "pg") as server:

        def fail() -> None:
            getattr(server, how)()
            server.start()

        _prove(
            server.database_url,
            nats,
            street,
            undisturbed,
            data_dir / "processes",
            seed=len(how),
            faults=2,
            fault_of=lambda system: fail,
        )


@pytest.mark.usefixtures("quick")
def test_broker_that_dies_leaves_the_same_readings_money_and_alarms(
    database_url: str, nats: EmbeddedNats, street: Street, undisturbed: Outcome, data_dir: Path
) -> None:
    """`kill -9` of the broker, twice in a replay: what it acknowledged is still there, the rest is sent again."""

    def fail() -> None:
        nats.kill()
        nats.start()

    _prove(database_url, nats, street, undisturbed, data_dir, seed=3, faults=2, fault_of=lambda system: fail)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("table", ["readings", "quarantine", "batches"])
def test_ingest_killed_inside_its_transaction_has_stored_nothing(
    database_url: str, nats: EmbeddedNats, data_dir: Path, table: str
) -> None:
    """Killed before the readings, after them, or just before the commit: the batch comes again, whole."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home()
            with child_processes(site.parts, data_dir, ["ingest"]) as system:
                await site.until(lambda: _at_work(site, system), "ingest is at work")
                async with table_held(site, table):
                    await site.publish(*BATCH)
                    await site.until(lambda: ingest_waits(site), f"the batch waits for {table}")
                    _kill_ingest(system)
                assert await site.registers("M1") == {}
                await site.until(lambda: _at_work(site, system), "ingest is at work again")
                await _batch_is_there_once(site, home)
                totals = await site.totals()
                assert (totals.stored, totals.duplicate, totals.quarantined) == (3, 0, 1)

    asyncio.run(story())


@pytest.mark.usefixtures("quick")
def test_ingest_and_broker_killed_between_commit_and_acknowledgement_cost_duplicates(
    database_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """What was committed and not acknowledged comes again, is counted as duplicate, and costs nothing."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home()
            with child_processes(site.parts, data_dir, ["ingest"]) as system:
                await site.until(lambda: _at_work(site, system), "ingest is at work")
                assert nats.pid is not None
                async with table_held(site, "batches"):
                    await site.publish(*BATCH)
                    await site.until(lambda: ingest_waits(site), "the batch waits for its commit")
                    # From here on no acknowledgement reaches the broker.
                    os.kill(nats.pid, signal.SIGSTOP)

                async def committed() -> bool:
                    return len(await site.registers("M1")) == 3

                await site.until(committed, "the batch is committed")
                _kill_ingest(system)
                nats.kill()
                nats.start()
                await site.until(lambda: _at_work(site, system), "ingest is at work again")
                await _batch_is_there_once(site, home)
                totals = await site.totals()
                assert (totals.stored, totals.duplicate, totals.quarantined) == (3, 3, 2)

    asyncio.run(story())


# Three good readings and one that fell: a batch that writes readings, quarantine and counts.
BATCH = (block("M1", T0 + HOUR_MS, [1_500, 1_800, 2_000]), reading("M1", T0 + 4 * HOUR_MS, 1))


async def _batch_is_there_once(site: Site, home: Home) -> None:
    await site.settled()
    assert len(await site.registers("M1")) == 3
    assert await site.reasons() == ["register_fell"]
    # One kWh on the first day at 3 kW: energy 3.85, fixed 7.00, rebate -0.04, duty 1.62.
    assert await site.balance(home) == HOME_CREDIT_MINOR - 1_243
