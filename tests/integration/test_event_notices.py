"""Meter events on a real database: new ones are told once, repeated, old and short ones are not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.notices import read_facts
from db.event_notices import StoredEvent
from db.pool import connect
from db.registry import NewMeter, add_meter
from headend.edges.event_notices import CHECK_MS, OutageWatch, store_events, tell_outages
from headend.events import APART_MS, OUTAGE_MS_MIN, POWER_BACK, POWER_FAILED, TOLD_WITHIN_MS
from prepaid.embedded import EmbeddedNats
from protocols.native import MeterEvent, encode_event
from protocols.topics import event_topic
from tests.integration.test_posting import Home, on_database, open_home, rows
from tests.support import now_ms, open_site, running_ingest

pytestmark = pytest.mark.db

NOW_MS = now_ms()
MAGNET, COVER, SWITCH = 201, 251, 301


async def store(conn: AsyncConnection, *events: StoredEvent, at_ms: int = NOW_MS) -> None:
    """Store events as a batch does, in a transaction."""
    async with conn.transaction():
        await store_events(conn, events, now_ms=at_ms)


async def told(conn: AsyncConnection) -> list[tuple[Any, ...]]:
    """Return what consumers were told: kind and facts, in its order."""
    found = await rows(conn, "select kind, facts from notices order by id")
    assert [read_facts(row["kind"], row["facts"]).kind for row in found] == [row["kind"] for row in found]
    return [(row["kind"], *row["facts"].values()) for row in found]


async def count(conn: AsyncConnection, table: str) -> int:
    """Count rows."""
    found = await rows(conn, f"select count(*) as rows from {table}")
    return int(found[0]["rows"])


async def outage(conn: AsyncConnection, home: Home, since_ms: int, until_ms: int) -> None:
    """Let power fail and come back, told in two batches."""
    await store(conn, (home.meter_id, since_ms, POWER_FAILED))
    await store(conn, (home.meter_id, until_ms, POWER_BACK))


def test_new_tamper_is_told_once_however_often_it_comes(database_url: str) -> None:
    """Of a repeated event, a repeated batch and further ones within minutes there is one notice; of each kind one."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        first = (home.meter_id, NOW_MS, MAGNET)
        await store(conn, first, first, (home.meter_id, NOW_MS + 1, MAGNET), (home.meter_id, NOW_MS, SWITCH))
        assert await told(conn) == [("tamper", NOW_MS, "magnet")]
        await store(conn, first, (home.meter_id, NOW_MS - APART_MS + 1, MAGNET))
        await store(conn, (home.meter_id, NOW_MS + APART_MS - 1, MAGNET), at_ms=NOW_MS + APART_MS)
        assert len(await told(conn)) == 1
        await store(conn, (home.meter_id, NOW_MS + APART_MS, MAGNET), first, at_ms=NOW_MS + APART_MS)
        await store(conn, (home.meter_id, NOW_MS, COVER))
        assert (await told(conn))[1:] == [("tamper", NOW_MS + APART_MS, "magnet"), ("tamper", NOW_MS, "cover_open")]
        assert await count(conn, "meter_events") == 7

    on_database(database_url, story)


def test_old_event_future_event_and_meter_without_an_account_tell_nobody(database_url: str) -> None:
    """They are stored, and that is all."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        await add_meter(conn, NewMeter(serial="spare", rated_w=5_000, register_end_wh=1_000_000))
        spare = (await rows(conn, "select id from meters where serial = 'spare'"))[0]["id"]
        await store(
            conn,
            (home.meter_id, NOW_MS - TOLD_WITHIN_MS - 1, MAGNET),
            (home.meter_id, NOW_MS - TOLD_WITHIN_MS - 1, POWER_FAILED),
            (home.meter_id, NOW_MS + TOLD_WITHIN_MS, MAGNET),
            (spare, NOW_MS, MAGNET),
            (spare, NOW_MS, POWER_FAILED),
        )
        assert await count(conn, "meter_events") == 5
        assert (await told(conn), await count(conn, "outages_to_tell")) == ([], 0)

    on_database(database_url, story)


def test_power_that_is_back_is_told_once_and_a_flicker_is_not(database_url: str) -> None:
    """An outage of minutes gives one notice with both instants, in whatever order its two events come."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        since_ms = NOW_MS - 20 * OUTAGE_MS_MIN
        for flicker in range(3):
            at_ms = since_ms - (9 - flicker) * 10_000
            await outage(conn, home, at_ms, at_ms + 5_000)
        assert await told(conn) == []
        await outage(conn, home, since_ms, since_ms + OUTAGE_MS_MIN)
        await outage(conn, home, since_ms, since_ms + OUTAGE_MS_MIN)
        assert await told(conn) == [("restored_power", since_ms, since_ms + OUTAGE_MS_MIN)]
        later_ms = NOW_MS - 2 * OUTAGE_MS_MIN
        await store(conn, (home.meter_id, NOW_MS, POWER_BACK))
        await store(conn, (home.meter_id, later_ms, POWER_FAILED))
        assert (await told(conn))[1:] == [("restored_power", later_ms, NOW_MS)]
        # All of them are over, so that nothing is left to tell.
        assert await tell_outages(conn, now_ms=NOW_MS) == 4
        assert len(await told(conn)) == 2

    on_database(database_url, story)


def test_outage_that_lasts_is_told_once_by_whichever_process(database_url: str) -> None:
    """Not before it has lasted a while, then once, by several processes at once; power back is told after it."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, f"A{number}") for number in range(3)]
        await store(conn, *((home.meter_id, NOW_MS, POWER_FAILED) for home in homes))
        await store(conn, *((home.meter_id, NOW_MS, POWER_FAILED) for home in homes))
        lasting_ms = NOW_MS + OUTAGE_MS_MIN
        assert await tell_outages(conn, now_ms=lasting_ms - 1) == 0
        async with await connect(database_url, application="second") as second:
            taken = await asyncio.gather(*(tell_outages(each, now_ms=lasting_ms) for each in (conn, second)))
        assert sum(taken) == 3
        assert await told(conn) == [("outage", NOW_MS)] * 3
        assert await tell_outages(conn, now_ms=lasting_ms) == 0
        await store(conn, (homes[0].meter_id, lasting_ms, POWER_BACK), at_ms=lasting_ms)
        assert (await told(conn))[3:] == [("restored_power", NOW_MS, lasting_ms)]

    on_database(database_url, story)


def test_watch_looks_every_few_seconds_and_again_after_a_clock_was_set_back(database_url: str) -> None:
    """Between its looks it asks the database nothing; an outage that has lasted waits for the next one."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        clock_ms = [NOW_MS]
        watch = OutageWatch(lambda: clock_ms[0])
        await watch.step(conn)
        await store(conn, (home.meter_id, NOW_MS - OUTAGE_MS_MIN, POWER_FAILED))
        clock_ms[0] += CHECK_MS - 1
        await watch.step(conn)
        assert await told(conn) == []
        clock_ms[0] = NOW_MS - 1
        await watch.step(conn)
        assert await told(conn) == []
        clock_ms[0] = NOW_MS - 1 + CHECK_MS
        await watch.step(conn)
        assert await told(conn) == [("outage", NOW_MS - OUTAGE_MS_MIN)]

    on_database(database_url, story)


def test_batch_that_is_rolled_back_tells_nobody_and_the_same_again_tells_once(database_url: str) -> None:
    """Event, notice and noted outage are one transaction: killed between, all come with the next try."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        events = ((home.meter_id, NOW_MS, MAGNET), (home.meter_id, NOW_MS, POWER_FAILED))
        async with conn.transaction(force_rollback=True):
            await store_events(conn, events, now_ms=NOW_MS)
            assert await count(conn, "notices") == 1
        left = [await count(conn, table) for table in ("meter_events", "notices", "outages_to_tell")]
        assert left == [0, 0, 0]
        await store(conn, *events)
        assert [await count(conn, table) for table in ("meter_events", "notices", "outages_to_tell")] == [2, 1, 1]

    on_database(database_url, story)


@pytest.mark.broker
def test_event_of_a_meter_reaches_its_consumer_through_ingest(database_url: str, nats: EmbeddedNats) -> None:
    """From the broker to the outbox; sent twice, told once; an outage that had lasted is told by ingest's watch."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home("M1")
            sent = [
                (event_topic("M1"), encode_event(MeterEvent(serial="M1", seq=None, at_ms=at_ms, code=code)))
                for at_ms, code in ((NOW_MS, MAGNET), (NOW_MS - OUTAGE_MS_MIN, POWER_FAILED))
            ]
            async with running_ingest(site):
                await site.send(*sent)
                await site.send(*sent)

                async def both() -> bool:
                    return await site.one("select count(*) from notices where account_id = %s", home.account_id) == 2

                await site.until(both, "tamper and outage are told")
            assert await told(site.conn) == [("tamper", NOW_MS, "magnet"), ("outage", NOW_MS - OUTAGE_MS_MIN)]

    asyncio.run(story())
