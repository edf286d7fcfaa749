"""The database ends sessions, cancels, stands still, refuses, loses its answers: no reading is lost or twice."""

import asyncio
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from db.pool import connect
from headend.edges.stream import stream_backlog
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres
from prepaid.embedded.process import is_running
from tests.faults.harness import (
    DRAIN_S,
    Town,
    Trial,
    at_work,
    flowing,
    frozen,
    kill,
    make_town,
    prove,
    settle_in,
)
from tests.faults.proxy import PostgresProxy
from tests.support import Message, Site, child_processes, ingest_waits, open_site, running_ingest, table_held

pytestmark = [pytest.mark.db, pytest.mark.broker]

INGEST_SESSIONS = "from pg_stat_activity where datname = current_database() and application_name like 'ingest-%%'"


# F1: a worker killed at every step of a batch -------------------------------------------------------------------------


# A step of a worker's transactions by its number, or the first one of a name.
Moment = int | str


class Killer:
    """Kills the worker at a step of its transactions, counted from when it is armed."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._moment: Moment | None = None
        self._pid = 0

    def arm(self, pid: int, moment: Moment) -> None:
        """Count from now on."""
        self.steps, self._pid, self._moment = [], pid, moment

    def at_step(self, step: str) -> bool:
        """Kill when it is time; at the latest at the first thing done after a commit, if there were fewer steps."""
        self.steps.append(step)
        due = step in (self._moment, "went on") or len(self.steps) == self._moment
        if self._moment is None or not due:
            return False
        self._moment = None
        kill(self._pid)
        return True


def _sent_in(town: Town, number: int) -> list[Message]:
    """Four instants of each meter. In every other round some come late and again: the batch takes another path."""
    sent: list[Message] = []
    for place, meter in enumerate(town.meters):
        wanted = sorted(meter.energy_wh)[4 * number : 4 * number + 4]
        if number % 2 and place % 3 == 0:
            wanted = [wanted[1], wanted[0], *wanted[2:], wanted[0]]
        sent += [meter.message(at_ms) for at_ms in wanted]
    return sent


async def _killed_at(site: Site, town: Town, folder: Path, trial: Trial, moments: Sequence[Moment]) -> None:
    """Kill a worker in one batch after the other, at the moment of each."""
    killer = Killer()
    async with PostgresProxy(site.database_url, killer.at_step) as proxy:
        through = replace(site.parts, database_url=proxy.database_url)
        with child_processes(through, folder, ["ingest"]) as system:
            for number, moment in enumerate(moments):
                await site.until(lambda: at_work(site, system), "ingest is at work", within_s=DRAIN_S)
                pid = system.pid("ingest")
                # All of them wait in the broker, so that they are one batch.
                proxy.hold()
                await site.publish(*_sent_in(town, number))
                killer.arm(pid, moment)
                proxy.release()

                async def died(pid: int = pid) -> bool:
                    return not is_running(pid)

                await site.until(died, f"the worker dies at {moment}", within_s=DRAIN_S)
                trial.note(f"round {number}: killed at step {len(killer.steps)} of {killer.steps}")
                assert killer.steps[-1] == moment or not isinstance(moment, str)
                # Not by `tend`, which waits, and gives up after some deaths.
                system._processes["ingest"].child.wait()
                system.start("ingest")
            await site.until(lambda: at_work(site, system), "ingest is at work", within_s=DRAIN_S)
            await prove(site, town)


def _kill_story(database_url: str, nats: EmbeddedNats, folder: Path, seed: int, moments: Sequence[Moment]) -> None:
    async def story() -> None:
        town = make_town(seed, meters=20, readings=4 * len(moments))
        with Trial(seed) as trial:
            async with open_site(database_url, nats) as site:
                await settle_in(site, town)
                await _killed_at(site, town, folder, trial, moments)

    asyncio.run(story())


@pytest.mark.usefixtures("quick")
def test_worker_killed_at_steps_of_a_batch_loses_and_doubles_nothing(
    database_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """F1: `kill -9` at three steps between begin and acknowledgement: the batch comes again, and counts once."""
    seed = 101
    _kill_story(database_url, nats, data_dir, seed, [random.Random(seed).randrange(1, 6), "committed", "went on"])


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quick")
def test_worker_killed_at_every_step_of_a_batch_loses_and_doubles_nothing(
    database_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """F1: `kill -9` at one step after the other, twice: batches of two kinds are killed at each of their steps."""
    steps = [step for step in range(1, 13) for _ in range(2)]
    _kill_story(database_url, nats, data_dir, 102, [*steps, *["committed"] * 2, *["went on"] * 2])


# F5: stopped at once under load --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [1, pytest.param(5, marks=pytest.mark.faults)])
def test_database_stopped_at_once_under_load_loses_nothing(
    own_server: EmbeddedPostgres, own_url: str, nats: EmbeddedNats, stops: int
) -> None:
    """F5: stopped without a checkpoint and started again while readings flow, it recovers with each of them once."""

    async def story() -> None:
        town = make_town(501)
        with Trial(town.seed) as trial:
            async with open_site(own_url, nats) as site, running_ingest_of(site, town):
                async with flowing(site, town.messages, over_s=3.0 * stops) as flow:
                    for number in range(stops):
                        await _load_is_on(site, flow.published)
                        pid = own_server.pid
                        assert pid is not None
                        await asyncio.to_thread(own_server.stop_immediately)
                        assert not is_running(pid), "the server has stopped"
                        trial.note(f"stop {number}: {flow.acknowledged} acknowledged")
                        # In this thread, so that a killed test run takes the server along.
                        own_server.start()
                        await site.reconnect()
                        trial.note("started")
                await prove(site, town)

    asyncio.run(story())


# F6: sessions ended, statements cancelled ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [601, pytest.param(602, marks=pytest.mark.faults)])
def test_ended_sessions_and_cancelled_statements_lose_nothing(database_url: str, nats: EmbeddedNats, seed: int) -> None:
    """F6: inside a batch its session is ended or its statement cancelled; it is tried again, and counts once."""

    async def story() -> None:
        town = make_town(seed)
        with Trial(seed) as trial:
            async with open_site(database_url, nats) as site, running_ingest_of(site, town):
                size = len(town.messages) // 4
                hows = [
                    "pg_cancel_backend",
                    "pg_terminate_backend",
                    *trial.rng.choices(["pg_cancel_backend", "pg_terminate_backend"], k=2),
                ]
                for number, how in enumerate(hows):
                    table = trial.rng.choice(["readings", "batches"])
                    async with table_held(site, table):
                        await site.publish(*town.messages[number * size : (number + 1) * size])
                        await site.until(lambda: ingest_waits(site), f"the batch waits for {table}")
                        struck = await site.one(
                            f"select count({how}(pid)) {INGEST_SESSIONS} and wait_event_type = 'Lock'"
                        )
                        assert struck >= 1
                        trial.note(f"{how} while the batch waited for {table}")
                        await site.until(lambda: _gone_or_idle(site), "the statement has ended")
                await prove(site, town)

    asyncio.run(story())


async def _gone_or_idle(site: Site) -> bool:
    return not await ingest_waits(site)


# F7: frozen ----------------------------------------------------------------------------------------------------------


def test_frozen_database_stops_acknowledgements_and_loses_nothing(
    own_server: EmbeddedPostgres, own_url: str, nats: EmbeddedNats
) -> None:
    """F7: all its processes stand still for 10 s; the broker keeps what meters send, and it is stored right after."""

    async def story() -> None:
        town = make_town(701, readings=60)
        with Trial(town.seed) as trial:
            async with open_site(own_url, nats) as site, running_ingest_of(site, town):
                async with flowing(site, town.messages, over_s=11.0) as flow:
                    await _load_is_on(site, flow.published)
                    assert own_server.pid is not None
                    with frozen(own_server.pid):
                        before = flow.acknowledged
                        trial.note(f"frozen: {before} acknowledged")
                        # Nothing can be done about it from outside, either.
                        with pytest.raises(psycopg.OperationalError):
                            await asyncio.wait_for(psycopg.AsyncConnection.connect(own_url, connect_timeout=3), 9)
                        await asyncio.sleep(7)
                        # Looked at before the backlog is: more is acknowledged while the broker is asked.
                        meanwhile = flow.acknowledged - before
                        trial.note(f"thawed: {before + meanwhile} acknowledged")
                        assert await stream_backlog(nats.nats_url) >= meanwhile > 500
                await prove(site, town)

    asyncio.run(story())


# F8: the commit's answer is lost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [801, pytest.param(802, marks=pytest.mark.faults)])
def test_commit_whose_answer_is_lost_is_not_repeated(database_url: str, nats: EmbeddedNats, seed: int) -> None:
    """F8: the server commits and the connection breaks before the answer; what comes again is counted as duplicate."""

    async def story() -> None:
        town = make_town(seed)
        with Trial(seed) as trial:
            lost: list[int] = []
            committed = 0

            def at_step(step: str) -> bool:
                nonlocal committed
                committed += step == "committed"
                if step != "committed" or len(lost) >= 3 or trial.rng.random() < 0.5:
                    return False
                lost.append(committed)
                trial.note(f"the answer to commit {committed} is lost")
                return True

            async with (
                open_site(database_url, nats) as site,
                PostgresProxy(database_url, at_step) as proxy,
                running_ingest_of(site, town, database_url=proxy.database_url),
            ):
                async with flowing(site, town.messages, over_s=2.0):
                    pass
                await prove(site, town)
                assert proxy.cuts == len(lost) == 3
                # What was committed unheard came again, and was known.
                assert (await site.totals()).duplicate > 0

    asyncio.run(story())


# F10: no connection left ---------------------------------------------------------------------------------------------


@contextmanager
def _worker_login(database_url: str) -> Iterator[tuple[str, str]]:
    """A login without rights of its own, whose connections can be limited; its name and its address."""
    name, password = f"worker_{uuid.uuid4().hex}", uuid.uuid4().hex
    with psycopg.connect(database_url, autocommit=True) as admin:
        make = sql.SQL("create role {} login password {} in role prepaid_app connection limit 2")
        admin.execute(make.format(sql.Identifier(name), sql.Literal(password)))
        place = urlsplit(database_url)
        try:
            yield name, urlunsplit(place._replace(netloc=f"{name}:{password}@{place.netloc.rpartition('@')[2]}"))
        finally:
            admin.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", (name,))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def test_worker_that_gets_no_connection_waits_and_loses_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """F10: the server refuses any connection for a while; the broker keeps what meters send, and it is stored after."""

    async def story() -> None:
        town = make_town(1_001)
        with Trial(town.seed) as trial:
            async with open_site(database_url, nats) as site:
                with _worker_login(database_url) as (name, worker_url):
                    async with running_ingest_of(site, town, database_url=worker_url):
                        half = len(town.messages) // 2
                        await site.publish(*town.messages[:half])
                        limit = sql.SQL("alter role {} connection limit {}")
                        await site.conn.execute(limit.format(sql.Identifier(name), sql.Literal(0)))
                        assert await site.one(f"select count(pg_terminate_backend(pid)) {INGEST_SESSIONS}") == 2
                        trial.note("no connection allowed, the worker's two ended")
                        with pytest.raises(psycopg.OperationalError, match="too many connections"):
                            await connect(worker_url, application="probe")
                        await site.publish(*town.messages[half:])
                        stored = await site.one("select count(*) from readings")
                        assert await site.one(f"select count(*) {INGEST_SESSIONS}") == 0
                        assert await stream_backlog(nats.nats_url) >= len(town.messages) - stored > 0
                        await site.conn.execute(limit.format(sql.Identifier(name), sql.Literal(2)))
                        trial.note(f"connections allowed; {stored} stored so far")
                        await prove(site, town)

    asyncio.run(story())


# F24: slow -----------------------------------------------------------------------------------------------------------


def test_slow_database_builds_a_backlog_that_drains_when_it_is_quick_again(
    database_url: str, nats: EmbeddedNats
) -> None:
    """F24: each answer takes far more than ten times as long; what waits is kept by the broker, then stored in time."""

    async def story() -> None:
        town = make_town(2_401, readings=96)
        with Trial(town.seed) as trial:
            async with (
                open_site(database_url, nats) as site,
                PostgresProxy(database_url) as proxy,
                running_ingest_of(site, town, lease_s=20.0, database_url=proxy.database_url),
            ):
                # An answer over loopback takes about a millisecond.
                proxy.delay_s = 0.1
                async with flowing(site, town.messages, over_s=4.0) as flow:

                    async def backlog() -> int:
                        waiting = await stream_backlog(nats.nats_url)
                        return waiting if waiting > len(town.messages) // 5 and proxy.delayed > 10 else 0

                    waiting = await site.until(backlog, "a backlog builds up")
                    trial.note(f"slow: {waiting} wait, {flow.acknowledged} acknowledged, {proxy.delayed} delays")
                assert await site.one("select count(*) from readings") < len(town.messages)
                proxy.delay_s = 0.0
                trial.note("quick again")
                await prove(site, town)

    asyncio.run(story())


@asynccontextmanager
async def running_ingest_of(site: Site, town: Town, **more: object):  # type: ignore[no-untyped-def]
    """Settle a town in and run ingest for it."""
    await settle_in(site, town)
    async with running_ingest(site, **more) as metrics:  # type: ignore[arg-type]
        yield metrics


async def _load_is_on(site: Site, since: int) -> None:
    """Wait until some of the load has been stored, so that a fault meets ingest at work."""
    stored = await site.one("select count(*) from readings")

    async def more() -> bool:
        return bool(await site.one("select count(*) from readings") > stored + 100)

    await site.until(more, "readings are being stored")
