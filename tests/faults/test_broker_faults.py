"""The broker loses its store, is flooded or stormed, hangs; anything is killed at random: no reading lost or twice."""

import asyncio
import gc
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from db.audit import run_checks
from headend.edges.stream import prepare_stream, stream_backlog
from meter_sim.edges.bulk import BulkPublisher, encode_connect
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres, preparing_stream
from prepaid.embedded.process import is_running
from prepaid.system import System
from protocols.topics import lane_of, shard_of
from tests.faults.harness import DRAIN_S, Trial, at_work, flowing, kill, make_town, prove, settle_in
from tests.faults.proxy import Proxy
from tests.integration.village import HALF_MS, OPENED_MS, open_village
from tests.support import (
    ACK_WAIT_S,
    CALENDAR,
    MINUTE_MS,
    Site,
    block,
    child_processes,
    ingest_waits,
    open_site,
    running_dispatch,
    running_ingest,
    table_held,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

STORM = 2_000
# What a connection gets before it is held to be refused; the broker answers an idle one in a millisecond.
STORM_ANSWER_S = 20.0


# F11: the broker without its store -----------------------------------------------------------------------------------


def test_broker_that_loses_its_store_costs_nothing_that_meters_still_hold(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """F11: killed, and its store gone: what was stored stays, what was not is sent again, and counts once."""

    async def story() -> None:
        town = make_town(1_101)
        third = len(town.messages) // 3
        with Trial(town.seed) as trial:
            async with open_site(database_url, nats) as site:
                await settle_in(site, town)
                async with running_ingest(site):
                    await site.send(*town.messages[:third])
                # The head-end is away: the broker alone has these.
                await site.publish(*town.messages[third : 2 * third])
                assert await stream_backlog(nats.nats_url) == third
                assert nats.pid is not None
                pid = nats.pid
                await asyncio.to_thread(nats.kill)
                assert not is_running(pid), "the broker is gone"
                shutil.rmtree(tmp_path / "nats" / "store")
                # In this thread, so that a killed test run takes the broker along.
                nats.start()
                await prepare_stream(nats.nats_url, nats.mqtt_host, nats.mqtt_port, ack_wait_s=ACK_WAIT_S)
                assert await stream_backlog(nats.nats_url) == 0
                trial.note(f"{third} acknowledged readings are lost with the store")
                async with running_ingest(site):
                    await site.send(*town.messages[2 * third :])
                    missing = len(town.messages) - await site.one("select count(*) from readings")
                    assert missing == third, "what only the broker had is not there"
                    # The meters' own profiles: everything once more.
                    await site.publish(*town.messages)
                    await prove(site, town)
                    assert (await site.totals()).duplicate >= len(town.messages) - third

    asyncio.run(story())


def test_readings_that_only_the_lost_store_had_are_read_again_from_the_meter(database_url: str, tmp_path: Path) -> None:
    """F11: the meter holds them for stored; they are a gap, asked for and filled, and the bill is as ever."""
    folder = tmp_path / "nats"

    async def story(nats: EmbeddedNats) -> None:
        async with open_village(database_url, nats) as village:
            site = village.site
            async with running_ingest(site):
                await village.measure(1, 6)
                await village.send()
            # The head-end is away: the broker alone has these.
            await village.report(7, 30)
            assert await stream_backlog(nats.nats_url) > 0
            assert nats.pid is not None
            kill(nats.pid)
            shutil.rmtree(folder / "store")
            nats.revive()
            assert await stream_backlog(nats.nats_url) == 0, "they are gone, and the stream is prepared"
            await village.report(31, 34)
            async with running_ingest(site), running_dispatch(site):
                await village.until_gaps(("open", 24))
                await village.hurry()
                await village.until_gaps(("filled", 0))
                profile = [stored.register_wh for stored in village.meter._profile]
                await site.send(block("M2", OPENED_MS + HALF_MS, profile, step_ms=HALF_MS))
            assert await site.one("select count(*) from readings") == 68
            bills = await village.bills()
            assert bills["M1"] == bills["M2"]
            report = await run_checks(site.conn, CALENDAR)
            assert report.clean, "\n".join(report.lines())

    with EmbeddedNats(folder, prepare=preparing_stream(ACK_WAIT_S)) as nats:
        asyncio.run(story(nats))


# F22: one meter floods, many connect ---------------------------------------------------------------------------------


def test_meter_that_floods_does_not_hold_up_the_others(database_url: str, nats: EmbeddedNats) -> None:
    """F22: thousands of readings of one meter wait before those of other lanes, which come before half of the flood."""

    async def story() -> None:
        flood = make_town(2_201, meters=1, readings=6_000, step_ms=MINUTE_MS)
        others = make_town(2_202, meters=40, readings=5)
        flooded = lane_of(shard_of(flood.meters[0].serial))
        # A town in which the first meter sends nearly all.
        named = [replace(meter, serial=f"N{number}") for number, meter in enumerate(others.meters)]
        town = replace(flood, meters=(*flood.meters, *named))
        quiet = [meter.serial for meter in named if lane_of(shard_of(meter.serial)) != flooded]
        with Trial(town.seed) as trial:
            async with open_site(database_url, nats, ack_wait_s=30.0) as site:
                await settle_in(site, town)
                async with running_ingest(site, lease_s=20.0, ack_wait_s=30.0):
                    async with table_held(site, "batches"):
                        await site.publish(*flood.messages)
                        await site.publish(*replace(town, meters=tuple(named)).messages)
                        await site.until(lambda: ingest_waits(site), "a batch waits")
                        assert await stream_backlog(nats.nats_url) == len(town.messages)
                    await prove(site, town)
                sent = "from readings r join meters m on m.id = r.meter_id where m.serial"
                last = await site.one(f"select max(r.xmin::text::bigint) {sent} = any(%s)", quiet)
                before = await site.one(f"select count(*) {sent} = 'T0' and r.xmin::text::bigint < %s", last)
                trial.note(f"{before} of the flood were stored before the last of the others")
                assert before < len(flood.messages) // 2

    asyncio.run(story())


async def _storm(nats: EmbeddedNats, trial: Trial) -> None:
    """Connect all at once; each is let in, or told at once that it is not."""
    answers: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(nats.mqtt_host, nats.mqtt_port)
        writers.append(writer)
        writer.write(encode_connect(f"storm-{number}", None, None))
        answers.append(await asyncio.wait_for(reader.read(4), STORM_ANSWER_S))

    try:
        await asyncio.gather(*(one(number) for number in range(STORM)))
        let_in = answers.count(b"\x20\x02\x00\x00")
        trial.note(f"{let_in} of {len(answers)} connections let in")
        assert len(answers) == STORM, "nobody is left without an answer"
        assert let_in > STORM // 2
    finally:
        for writer in writers:
            writer.transport.abort()


def test_storm_of_connections_stops_no_other_meter(database_url: str, nats: EmbeddedNats) -> None:
    """F22: two thousand clients connect at once while others report: each is answered, and every reading is stored."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * STORM + 500
    assert hard == resource.RLIM_INFINITY or hard >= wanted, f"this test needs {wanted} open files"

    async def story() -> None:
        town = make_town(2_221, meters=40, readings=48)
        with Trial(town.seed) as trial:
            async with open_site(database_url, nats) as site:
                await settle_in(site, town)
                async with running_ingest(site):
                    async with flowing(site, town.messages, over_s=2.0) as flow:
                        await _storm(nats, trial)
                        trial.note(f"{flow.acknowledged} readings acknowledged meanwhile")
                    await prove(site, town)

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        asyncio.run(story())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# F12: links that hang, break and crawl -------------------------------------------------------------------------------


# The NATS client leaves a connection that broke in its greeting to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
@pytest.mark.faults
def test_links_that_hang_break_and_crawl_lose_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """F12: the worker's link to the broker hangs half open, then breaks again and again; a meter's link crawls."""

    async def story() -> None:
        town = make_town(1_201)
        half = len(town.messages) // 2
        with Trial(town.seed) as trial:
            port = int(nats.nats_url.rpartition(":")[2])
            async with open_site(database_url, nats) as site, Proxy(port) as proxy, Proxy(nats.mqtt_port) as crawling:
                await settle_in(site, town)
                async with running_ingest(site, nats_url=f"nats://127.0.0.1:{proxy.port}"):
                    async with flowing(site, town.messages[:half], over_s=20.0):
                        passed = proxy.passed_bytes
                        proxy.hold()
                        trial.note("half open")
                        # Two unanswered pings of 2 s, and the third time it is given up.
                        await asyncio.sleep(9)
                        assert proxy.passed_bytes == passed
                        proxy.release()
                        for _ in range(3):

                            async def connected() -> bool:
                                return bool(proxy.links)

                            await site.until(connected, "the worker connects again", within_s=DRAIN_S)
                            proxy.cut_all()
                            trial.note("cut")
                    assert proxy.cuts >= 3
                    # A kilobyte a second: two hundred readings take half a minute.
                    crawling.bytes_per_s = 1_000
                    slow, rest = town.messages[half : half + 200], town.messages[half + 200 :]
                    async with BulkPublisher("127.0.0.1", crawling.port, connections=1) as publisher:
                        for topic, payload in slow:
                            await publisher.publish(topic, payload)
                        await site.publish(*rest)
                        assert publisher.acknowledged < len(slow), "the slow one is still at it"
                        trial.note(f"the slow link has brought {publisher.acknowledged} of {len(slow)}")
                    await prove(site, town)

    asyncio.run(story())
    gc.collect()


# F4: anything killed at any time -------------------------------------------------------------------------------------


class Reaper:
    """Kills what there is to kill, and has it running again, or tended to, when it returns."""

    def __init__(self, site: Site, system: System, server: EmbeddedPostgres) -> None:
        self._site = site
        self._system = system
        self._server = server
        self.kills: dict[str, Callable[[], None]] = {
            "worker": self._worker,
            "session": self._session,
            "database": self._database,
            "database at once": self._database_at_once,
            "broker": self._broker,
        }

    def _worker(self) -> None:
        kill(self._system.pid("ingest"))
        self._system._processes["ingest"].child.wait()
        self._system.start("ingest")

    def _session(self) -> None:
        """As the kernel does that needs memory: the server ends all its sessions and recovers."""
        with psycopg.connect(self._server.url_of("postgres"), autocommit=True) as conn:
            row = conn.execute(
                "select max(pid) from pg_stat_activity where application_name like 'ingest-%'"
            ).fetchone()
        if row is not None and row[0] is not None:
            os.kill(row[0], signal.SIGKILL)

    def _database(self) -> None:
        self._server.kill()
        self._server.start()

    def _database_at_once(self) -> None:
        self._server.stop_immediately()
        self._server.start()

    def _broker(self) -> None:
        self._site.nats.kill()
        self._site.nats.start()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quick")
def test_anything_killed_at_any_time_loses_and_doubles_nothing(
    own_server: EmbeddedPostgres, own_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """F4: for a minute something is killed every 2 to 5 s under load; then everything is there, once."""
    over_s = 60.0

    async def story() -> None:
        town = make_town(401, meters=60, readings=200)
        with Trial(town.seed) as trial:
            async with open_site(own_url, nats) as site:
                await settle_in(site, town)
                with child_processes(site.parts, data_dir, ["ingest"]) as system:
                    await site.until(lambda: at_work(site, system), "ingest is at work")
                    reaper = Reaper(site, system, own_server)
                    killed: list[str] = []
                    async with flowing(site, town.messages, over_s=over_s) as flow:
                        while flow.published < len(town.messages) * 0.95:
                            await asyncio.sleep(trial.rng.uniform(2, 5))
                            # Each kind has its turn before any comes again.
                            left = [kind for kind in reaper.kills if kind not in killed[len(killed) // 5 * 5 :]]
                            killed.append(trial.rng.choice(left))
                            reaper.kills[killed[-1]]()
                            trial.note(f"{killed[-1]} killed; {flow.acknowledged} acknowledged")
                            await _reconnected(site)
                    assert set(killed) == set(reaper.kills)
                    await site.until(lambda: at_work(site, system), "ingest is at work", within_s=DRAIN_S)
                    await prove(site, town)

    asyncio.run(story())


async def _reconnected(site: Site) -> None:
    """Wait until the database answers again: it may be recovering."""

    async def answers() -> bool:
        try:
            await site.reconnect()
        except psycopg.OperationalError:
            return False
        return True

    await site.until(answers, "the database answers", within_s=DRAIN_S)
