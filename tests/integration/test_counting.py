"""What came and what became of it: counts over spans, numbers that meters give their messages, completeness of days."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from psycopg import AsyncConnection

import db.migrate
from billing.calendar import from_ms
from db.completeness import intervals_of_day, take_intervals, taken_intervals
from db.counting import KEPT_DAYS, read_counts, recount, roll_up_batches, total_of
from db.migrate import migrate, migrations
from db.pool import APPLICATION_ROLE, connect
from db.reports import batch_totals
from db.sequences import send_arrivals
from headend.edges.reconcile import count_arrivals, reconcile_all, reconcile_meter
from prepaid.embedded import EmbeddedNats
from protocols.native import MeterEvent, Readings, encode_event, encode_readings
from protocols.topics import event_topic, reading_topic, shard_of
from tests.integration.test_order_control import SEED
from tests.support import (
    CALENDAR,
    HOUR_MS,
    MINUTE_MS,
    REGISTER_WH,
    T0,
    Message,
    Site,
    block,
    open_site,
    reading,
    running_ingest,
)

pytestmark = pytest.mark.db

NO_MORE = datetime(9999, 1, 1, tzinfo=UTC)
BATCH = (
    b"insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined, committed_at)"
    b" select s, 1, 1, 10 + g, 5 + g, 2, 1, 2, %(at)s + g * interval '1 minute'"
    b" from generate_series(0, 2) s, generate_series(0, %(number)s - 1) g"
)


def on_database(database_url: str, story: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Tell a story on a migrated database with the rights of a process."""

    async def tell() -> None:
        async with await connect(database_url, application="owner") as owner:
            await migrate(owner)
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            await story(conn)

    asyncio.run(tell())


def on_site(database_url: str, nats: EmbeddedNats, story: Callable[[Site], Awaitable[None]]) -> None:
    """Tell a story on a small installation."""

    async def tell() -> None:
        async with open_site(database_url, nats) as site:
            await story(site)

    asyncio.run(tell())


def numbered(serial: str, seq: int, *, hour: int, register_wh: int | None = None) -> Message:
    """Make a numbered message with one reading, made at its hour."""
    register_wh = REGISTER_WH + hour if register_wh is None else register_wh
    readings = Readings(
        serial=serial, seq=seq, clock_ms=T0 + hour * HOUR_MS, read_at_ms=[T0 + hour * HOUR_MS],
        import_wh=[register_wh], export_wh=[None], voltage_mv=[None], current_ma=[None], power_w=[None],
        pf_milli=[None], freq_mhz=[None], relay=None, credit_minor=None, events=(),
    )  # fmt: skip
    return reading_topic(serial), encode_readings(readings)


@pytest.mark.broker
def test_everything_received_became_something_over_any_span(database_url: str, nats: EmbeddedNats) -> None:
    """Counts of batches add up by row, shard and span, and agree with what is read again."""

    async def story(site: Site) -> None:
        await site.add_home("M1")
        await site.add_home("M2")
        begun = datetime.now(UTC)
        async with running_ingest(site):
            await site.send(
                block("M1", T0 + HOUR_MS, [REGISTER_WH + n for n in range(5)]), reading("M2", T0 + HOUR_MS, 1_001)
            )
            between = datetime.now(UTC)
            await site.send(
                reading("M1", T0 + HOUR_MS, REGISTER_WH),
                reading("M2", T0 + HOUR_MS, 1_002),
                reading("M2", T0 - HOUR_MS, 1_000),
                reading("M3", T0 + HOUR_MS, 1_000),
                (reading_topic("M2"), b"{"),
                (reading_topic("M2"), b"{"),
            )
        found = await read_counts(site.conn, since=begun, until=None, shards=None)
        everything = total_of(found)
        assert all(each.adds_up for each in found)
        assert everything.adds_up
        figures = (everything.received, everything.stored, everything.duplicate)
        assert (*figures, everything.quarantined, everything.rejected) == (12, 6, 1, 2, 3)
        early = total_of(await read_counts(site.conn, since=begun, until=between, shards=None))
        later = total_of(await read_counts(site.conn, since=between, until=None, shards=None))
        assert (early.received, later.received) == (6, 6)
        of_m1 = await read_counts(site.conn, since=None, until=None, shards=[shard_of("M1")])
        assert [(each.shard, each.stored) for each in of_m1] == [(shard_of("M1"), 5)]
        again = await recount(site.conn)
        assert (again.adds_up, again.readings, again.held, again.refused) == (True, 6, 2, 3)
        await site.conn.execute("delete from quarantine where reason = 'malformed'")
        assert not (await recount(site.conn)).adds_up

    on_site(database_url, nats, story)


def test_old_batches_are_kept_by_hour_and_shard_with_the_same_sums(database_url: str) -> None:
    """What is older than a week becomes a row an hour and shard; sums stay, twice is once, the last week stays."""

    async def story(conn: AsyncConnection) -> None:
        now = datetime(2026, 3, 20, 12, 30, tzinfo=UTC)
        edge = datetime(2026, 3, 13, 12, tzinfo=UTC)
        assert now - edge < timedelta(days=KEPT_DAYS, hours=1)
        for at in (edge - timedelta(days=40), edge - timedelta(hours=2), edge):
            await conn.execute(BATCH, {"at": at, "number": 90})
        leftovers = (
            b"insert into batches (epoch, messages, received, stored, duplicate, rejected, quarantined, committed_at)"
        )
        for minute in (1, 2):
            await conn.execute(leftovers + b" values (0, 1, 1, 0, 0, 1, 0, %s)", (edge - timedelta(minutes=minute),))
        before = await batch_totals(conn)
        by_shard = await read_counts(conn, since=None, until=None, shards=None)
        # Of each 90 batches of three shards 60 are of one hour and 30 of the next.
        assert await roll_up_batches(conn, now, pause_s=0) == 2 * 3 * 88 + 1
        assert await batch_totals(conn) == before
        after = await read_counts(conn, since=None, until=None, shards=None)
        assert [replace(each, batches=0) for each in after] == [replace(each, batches=0) for each in by_shard]
        assert [each.batches for each in after] == [94, 94, 94, 1]
        assert await roll_up_batches(conn, now, pause_s=0) == 0
        assert await roll_up_batches(conn, now + timedelta(hours=1), pause_s=0) == 3 * 59
        # A span that is cut at an hour is still right.
        cut = await read_counts(conn, since=edge - timedelta(hours=1), until=edge, shards=[0])
        assert [(each.batches, each.received) for each in cut] == [(1, sum(10 + g for g in range(60, 90)))]

    on_database(database_url, story)


def test_migration_of_a_database_with_meters_knows_their_contacts(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meters that are installed already, and those that come later, are looked for when they are silent."""

    async def story() -> None:
        before = [migration for migration in migrations() if migration.name < "0016"]
        async with await connect(empty_database_url, application="owner") as conn:
            with monkeypatch.context() as patched:
                patched.setattr(db.migrate, "migrations", lambda: before)
                await migrate(conn)
            for statement in SEED.format(n=3, areas=1).split(";\n"):
                await conn.execute(statement.encode())
            assert "0016_counting.sql" in await migrate(conn)
            await conn.execute(
                b"with m as (insert into meters (serial, shard, rated_w, register_end_wh) values ('X', 1, 1, 9)"
                b" returning id), u as (insert into usage_points (code) values ('X') returning id)"
                b" insert into installations (usage_point_id, meter_id, role, from_at)"
                b" select u.id, m.id, 'billing', now() from m, u"
            )
            cursor = await conn.execute(b"select meter_id from meter_contacts where heard_at = '-infinity' order by 1")
            assert await cursor.fetchall() == [(1,), (2,), (3,), (4,)]

    asyncio.run(story())


@pytest.mark.broker
def test_sent_is_told_apart_into_stored_duplicate_quarantined_and_missing(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Numbers are noted with the batch that stored their messages, through a restart of the meter's count."""

    async def story(site: Site) -> None:
        await site.add_home("M1")
        await site.add_home("M2")
        async with running_ingest(site):
            await site.send(
                *(numbered("M1", seq, hour=seq) for seq in (3, 4, 5, 9)), reading("M2", T0 + HOUR_MS, 1_001)
            )
            event = MeterEvent(serial="M1", seq=10, at_ms=T0 + 10 * HOUR_MS, code=151)
            falls = numbered("M1", 11, hour=11, register_wh=1)
            await site.send((event_topic("M1"), encode_event(event)), falls, falls, numbered("M1", 4, hour=4))
            at_once = await reconcile_meter(site.conn, "M1")
            assert at_once is not None
            assert (at_once.sent, at_once.stored, at_once.quarantined) == (9, 5, 1)
            assert (at_once.duplicate, at_once.missing, at_once.ranges) == (2, 3, ((0, 6, 8),))
            waiting = await reconcile_all(site.conn, most=10)
            assert (waiting.waiting, waiting.totals.sent) == (8, 0)
            assert await count_arrivals(site.conn, before=NO_MORE) == 8
            assert await reconcile_meter(site.conn, "M1") == at_once
            # A late message fills a hole; then the meter lost its count.
            await site.send(numbered("M1", 7, hour=7), numbered("M1", 1, hour=12), numbered("M1", 3, hour=14))
        assert await count_arrivals(site.conn, before=NO_MORE) == 3
        assert await count_arrivals(site.conn, before=NO_MORE) == 0
        everything = await reconcile_all(site.conn, most=10)
        assert (everything.waiting, everything.totals.meters, everything.totals.meters_missing) == (0, 1, 1)
        (of_m1,) = everything.meters
        assert of_m1.ranges == ((0, 6, 6), (0, 8, 8), (1, 2, 2))
        assert (of_m1.sent, of_m1.stored, of_m1.quarantined, of_m1.missing) == (12, 8, 1, 3)
        assert (everything.totals.sent, everything.totals.missing) == (12, 3)
        not_counting = await reconcile_meter(site.conn, "M2")
        assert not_counting is not None
        assert (not_counting.sent, not_counting.since) == (0, None)
        assert await reconcile_meter(site.conn, "M9") is None

    on_site(database_url, nats, story)


def test_numbers_are_counted_once_by_whichever_process(database_url: str) -> None:
    """Two that count at once, or one that is stopped between two shards, count every message once."""

    async def story(conn: AsyncConnection) -> None:
        serials = [f"M{n}" for n in range(40)]
        cursor = await conn.execute(
            "insert into meters (serial, shard, rated_w, register_end_wh)"
            " select s, n, 1000, 1000000 from unnest(%s::text[], %s::smallint[]) u(s, n) returning id, shard",
            (serials, [shard_of(serial) for serial in serials]),
        )
        meters = await cursor.fetchall()
        for seq in range(30):
            numbers = [(shard, meter_id, seq, seq * MINUTE_MS, b"") for meter_id, shard in meters if seq % 7]
            await send_arrivals(conn, numbers, [])
        async with await connect(database_url, application="other", role=APPLICATION_ROLE) as other:
            counted = await asyncio.gather(count_arrivals(conn, before=NO_MORE), count_arrivals(other, before=NO_MORE))
        rest = await count_arrivals(conn, before=NO_MORE)
        assert sum(counted) + rest == 40 * 25
        totals = (await reconcile_all(conn, most=1)).totals
        assert (totals.meters, totals.sent, totals.duplicate, totals.missing) == (40, 40 * 29, 0, 40 * 4)

    on_database(database_url, story)


def test_completeness_is_of_each_meters_interval_and_stays_as_it_was_taken(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Intervals count once each, of the part of the day that a meter was installed; late ones change what is live."""

    async def story(site: Site) -> None:
        day, first = CALENDAR.day_of(T0), T0
        homes = [await site.add_home(serial, area="north") for serial in ("M1", "M2")]
        noon = await site.add_home("M3", area="south", opened_at=from_ms(T0 + 12 * HOUR_MS))
        await site.conn.execute("update meters set interval_s = 3600 where serial = 'M3'")

        async def store(meter_id: int, *minutes: int) -> None:
            await site.conn.execute(
                "insert into readings (meter_id, read_at, import_wh)"
                " select %s, to_timestamp((%s + m * 60000) / 1000.0), 1 from unnest(%s::bigint[]) m",
                (meter_id, first, list(minutes)),
            )

        async def now() -> Sequence[tuple[str, int, int, int, int]]:
            found = await intervals_of_day(site.conn, day, CALENDAR, pause_s=0)
            return [(each.area, each.meters, each.whole, each.expected, each.present) for each in found]

        assert await now() == [("north", 2, 0, 96, 0), ("south", 1, 0, 12, 0)]
        # The midnight that begins the day ends the interval before; the one that ends it is its last.
        await store(homes[0].meter_id, 0, 30, 35, 60, 24 * 60, 24 * 60 + 30)
        await store(noon.meter_id, *(60 * hour for hour in range(13, 25)))
        assert await now() == [("north", 2, 0, 96, 3), ("south", 1, 1, 12, 12)]
        at = from_ms(T0 + 32 * HOUR_MS)
        assert await take_intervals(site.conn, day, 8, CALENDAR, now=at, pause_s=0)
        await store(homes[1].meter_id, *(30 * n for n in range(1, 49)))
        assert not await take_intervals(site.conn, day, 8, CALENDAR, now=at, pause_s=0)
        assert await take_intervals(site.conn, day, 12, CALENDAR, now=at, pause_s=0)
        taken = await taken_intervals(site.conn, day)
        assert [(each.hour, each.area, each.whole, each.present) for each in taken] == [
            (8, "north", 0, 3), (8, "south", 1, 12), (12, "north", 1, 51), (12, "south", 1, 12),
        ]  # fmt: skip
        assert (await now())[0] == ("north", 2, 1, 96, 51)
        # A meter that was taken away at noon counts until then.
        await site.conn.execute(
            "update installations set to_at = %s where meter_id = %s",
            (from_ms(T0 + 12 * HOUR_MS), homes[1].meter_id),
        )
        assert (await now())[0] == ("north", 2, 1, 72, 27)
        assert await intervals_of_day(site.conn, date(2020, 1, 1), CALENDAR) == []

    on_site(database_url, nats, story)
