"""Alarms of events on a real database: rung once, ended by their ends, seen by somebody; meters not heard of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.event_alarms import (
    AlarmsAsked,
    AlarmSeen,
    EventsAsked,
    UnknownAlarm,
    acknowledge_alarm,
    acknowledge_area,
    list_alarms,
    list_events,
)
from db.event_notices import StoredEvent
from db.readings import ensure_partitions
from db.silence import list_silent, silent_by_area
from headend.edges.event_alarms import end_old_flags
from headend.edges.event_notices import store_events
from headend.edges.watch import SILENCE, Watch, WatchSettings, look_for_silence
from headend.event_alarms import FLAG_APART_MS, GROUP_FROM, ORDER_SLACK_MS, SAME_WITHIN_MS
from headend.events import COMMUNICATION_LOST, MOVED_BY_ITSELF, OWN_CODES, POWER_BACK, POWER_FAILED, ended_codes
from headend.validate import LATE_WINDOW_MS
from prepaid.embedded import EmbeddedNats
from protocols.native import Readings, decode_uplink, encode_readings
from protocols.topics import reading_topic
from tests.integration.test_order_control import SEED
from tests.integration.test_posting import Home, on_database, open_home, rows
from tests.support import (
    CALENDAR,
    HOUR_MS,
    MINUTE_MS,
    REGISTER_WH,
    WAIT_S,
    Message,
    now_ms,
    open_site,
    reading,
    running_ingest,
)

pytestmark = pytest.mark.db

NOW_MS = now_ms()
MAGNET, MAGNET_OVER, COVER, OVER_VOLTAGE, SWITCH_OPEN, SWITCH_CLOSED = 201, 202, 251, 7, 301, 302
ASKED = AlarmsAsked(since=from_ms(NOW_MS - LATE_WINDOW_MS), ended=True, group_from=GROUP_FROM)


async def store(conn: AsyncConnection, *events: StoredEvent, flags: Sequence[StoredEvent] = ()) -> None:
    """Store events, and flags of readings, as a batch does."""
    async with conn.transaction():
        await store_events(conn, [*events, *flags], flags=set(flags), now_ms=NOW_MS)


async def rung(conn: AsyncConnection) -> list[tuple[Any, ...]]:
    """Return alarms in the order in which they were raised: code, times, minutes ago when they began and ended."""
    found = await rows(conn, "select code, times, first_at, ended_at from event_alarms order by id")

    def ago(at: datetime | None) -> int | None:
        return None if at is None else round((from_ms(NOW_MS) - at).total_seconds() / 60)

    return [(each["code"], each["times"], ago(each["first_at"]), ago(each["ended_at"])) for each in found]


def at(home: Home, minutes_ago: int, code: int) -> StoredEvent:
    """Return an event of a home's meter so many minutes ago."""
    return home.meter_id, NOW_MS - minutes_ago * MINUTE_MS, code


def test_alarm_rings_once_for_what_happens_again_and_ends_with_its_end(database_url: str) -> None:
    """A chattering magnet is one alarm with a count; its end closes it, in whatever order the two came."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        await store(conn, at(home, 60, MAGNET), at(home, 60, MAGNET), at(home, 59, COVER), at(home, 59, 151))
        await store(conn, at(home, 60, MAGNET), at(home, 58, MAGNET))
        assert await rung(conn) == [(MAGNET, 2, 60, None), (COVER, 1, 59, None)]
        await store(conn, at(home, 50, MAGNET_OVER))
        assert (await rung(conn))[0] == (MAGNET, 2, 60, 50)
        # Begun again within a quarter of an hour it is the same, later another.
        again = 50 - SAME_WITHIN_MS // MINUTE_MS
        await store(conn, at(home, again, MAGNET), at(home, again - 1, MAGNET_OVER))
        assert (await rung(conn))[0] == (MAGNET, 3, 60, again - 1)
        await store(conn, at(home, 5, MAGNET_OVER))
        await store(conn, at(home, 10, MAGNET))
        assert (await rung(conn))[2:] == [(MAGNET, 1, 10, 5)]
        # What is long ago, and what a clock ahead makes of it, rings nobody; it is stored.
        old = LATE_WINDOW_MS // MINUTE_MS + 1
        await store(conn, at(home, old, COVER), at(home, -60, COVER))
        assert len(await rung(conn)) == 3

    on_database(database_url, story)


def test_flag_that_readings_repeat_is_one_event_and_ends_when_they_do_not(database_url: str) -> None:
    """A day of readings that all say over-voltage is one event and one alarm, over two hours after the last."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        for minutes in range(600, 299, -30):
            await store(conn, flags=[at(home, minutes, OVER_VOLTAGE)])
        await store(conn, flags=[at(home, 540, OVER_VOLTAGE), at(home, 300, COVER)])
        stored = await rows(conn, "select code from meter_events order by code")
        assert [each["code"] for each in stored] == [OVER_VOLTAGE, COVER]
        assert await rung(conn) == [(OVER_VOLTAGE, 1, 600, None), (COVER, 1, 300, None)]
        assert await end_old_flags(conn, now_ms=NOW_MS - 300 * MINUTE_MS + FLAG_APART_MS) == 0
        assert await end_old_flags(conn, now_ms=NOW_MS - 300 * MINUTE_MS + FLAG_APART_MS + 1) == 2
        assert await rung(conn) == [(OVER_VOLTAGE, 1, 600, 300), (COVER, 1, 300, 300)]
        await store(conn, flags=[at(home, 0, OVER_VOLTAGE)])
        assert (await rung(conn))[2:] == [(OVER_VOLTAGE, 1, 0, None)]

    on_database(database_url, story)


def test_switch_that_moves_without_an_order_rings_and_one_that_obeys_does_not(database_url: str) -> None:
    """An opened switch is by itself unless a cut-off was on its way; a cut-off does not explain one that closes."""

    async def story(conn: AsyncConnection) -> None:
        home, other = await open_home(conn, "A1"), await open_home(conn, "A2")
        sent = from_ms(NOW_MS - 60 * MINUTE_MS)
        await conn.execute(
            "insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause, state,"
            " sent_at, confirmed_at) values (%s, %s, 1, 'supply', 1, 'off', 0, 'reading', 'confirmed', %s, %s)",
            (home.meter_id, home.account_id, sent, sent + timedelta(minutes=5)),
        )
        slack = ORDER_SLACK_MS // MINUTE_MS
        obeys = at(home, 60, SWITCH_OPEN), at(home, 60 + slack, SWITCH_OPEN), at(home, 55 - slack, SWITCH_OPEN)
        await store(conn, *obeys)
        assert await rung(conn) == []
        await store(conn, at(home, 50, SWITCH_CLOSED))
        await store(conn, at(home, 54 - slack, SWITCH_OPEN), at(other, 60, SWITCH_OPEN))
        assert await rung(conn) == [(MOVED_BY_ITSELF, 2, 50, None), (MOVED_BY_ITSELF, 1, 60, None)]

    on_database(database_url, story)


def test_alarm_is_seen_once_and_is_over_by_it_where_nothing_else_ends_it(database_url: str) -> None:
    """Who has seen it is kept; a second person is told so; a magnet rings on until it is over, a cover does not."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        await store(conn, at(home, 60, MAGNET), at(home, 60, COVER))
        magnet, cover = (each["id"] for each in await rows(conn, "select id from event_alarms order by code"))
        for number in (magnet, cover):
            await acknowledge_alarm(conn, number, by="A. Kaur", note="seal broken", ending=ended_codes())
        with pytest.raises(AlarmSeen, match=r"A\. Kaur"):
            await acknowledge_alarm(conn, magnet, by="B. Singh", note=None, ending=ended_codes())
        with pytest.raises(UnknownAlarm):
            await acknowledge_alarm(conn, 10**9, by="B. Singh", note=None, ending=ended_codes())
        shown = {each.code: each for each in await list_alarms(conn, ASKED, skip=0, most=9)}
        assert (shown[MAGNET].ended_at, shown[MAGNET].acknowledged_by, shown[MAGNET].note) == (
            None,
            "A. Kaur",
            "seal broken",
        )
        assert shown[COVER].ended_at is not None
        still = await list_alarms(conn, replace(ASKED, ended=False), skip=0, most=9)
        assert [each.code for each in still] == [MAGNET]

    on_database(database_url, story)


def test_many_alike_in_an_area_are_one_line_and_are_seen_together(database_url: str) -> None:
    """A street without power is one line with how many meters; each meter's own stays to be asked for."""

    async def story(conn: AsyncConnection) -> None:
        for statement in SEED.format(n=GROUP_FROM * 2 + 5, areas=2).split(";\n"):
            await conn.execute(statement.encode())
        of_area = await rows(
            conn, "select i.meter_id, u.area from installations i join usage_points u on u.id = i.usage_point_id"
        )
        out = [each["meter_id"] for each in of_area if each["area"] == "area 1"]
        lone = [each["meter_id"] for each in of_area if each["area"] == "area 0"][:3]
        await store(conn, *((meter_id, NOW_MS - MINUTE_MS, POWER_FAILED) for meter_id in [*out, *lone]))
        found = await list_alarms(conn, ASKED, skip=0, most=9)
        assert [(each.area, each.meters, each.of_area) for each in found if each.of_area] == [
            ("area 1", len(out), True)
        ]
        assert len(found) == 4
        of_one = await list_alarms(conn, replace(ASKED, serial=f"S{out[0]}"), skip=0, most=9)
        assert [(each.serial, each.meters) for each in of_one] == [(f"S{out[0]}", 1)]
        seen = await acknowledge_area(conn, "area 1", POWER_FAILED, by="A. Kaur", note=None, ending=ended_codes())
        assert seen == len(out)
        with pytest.raises(UnknownAlarm):
            await acknowledge_area(conn, "area 1", POWER_FAILED, by="A. Kaur", note=None, ending=ended_codes())
        await store(conn, *((meter_id, NOW_MS, POWER_BACK) for meter_id in out))
        assert len(await list_alarms(conn, replace(ASKED, ended=False), skip=0, most=9)) == 3

    on_database(database_url, story)


def test_events_are_listed_page_by_page_by_what_was_asked(database_url: str) -> None:
    """Each event once over all pages, the last to come first; meter, codes and time leave the others out."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, f"A{number}") for number in range(3)]
        for home in homes:
            await store(conn, *(at(home, minutes, code) for minutes in (9, 8) for code in (MAGNET, COVER, 151)))
        asked = EventsAsked(since=from_ms(NOW_MS - HOUR_MS), until=from_ms(NOW_MS + HOUR_MS))
        pages, last = [], None
        while page := await list_events(conn, replace(asked, after=last), most=4):
            pages.append(page)
            last = page[-1]
        listed = [each for page in pages for each in page]
        assert len(listed) == len({(each.serial, each.at, each.code) for each in listed}) == 18
        assert [each.received_at for each in listed] == sorted((each.received_at for each in listed), reverse=True)
        some = await list_events(conn, replace(asked, serial="M-A1", codes=[MAGNET, 151]), most=99)
        assert sorted({(each.serial, each.code) for each in some}) == [("M-A1", 151), ("M-A1", MAGNET)]
        early = await list_events(conn, replace(asked, until=from_ms(NOW_MS - 8 * MINUTE_MS)), most=99)
        assert len(early) == 9

    on_database(database_url, story)


async def silent(conn: AsyncConnection, hours: int = 24, **asked: Any) -> list[str]:
    """Return the serials of silent meters."""
    now = from_ms(NOW_MS)
    found = await list_silent(conn, now=now, cutoff=now - timedelta(hours=hours), most=100, **asked)
    return [each.serial for each in found]


def test_meter_is_silent_when_nothing_of_it_came_and_rings_until_it_is_heard_of(database_url: str) -> None:
    """Readings, events, answers and quarantined frames are words; silence rings once and ends with a reading."""

    async def story(conn: AsyncConnection) -> None:
        names = ("reads", "tells", "obeys", "garbles", "mute", "never")
        homes = {name: await open_home(conn, name) for name in names}
        now = from_ms(NOW_MS)
        await ensure_partitions(conn, {(now - timedelta(hours=hours)).date() for hours in (0, 1, 30, 100)})

        async def read(name: str, hours: int) -> None:
            await conn.execute(
                "insert into readings (meter_id, read_at, import_wh) values (%s, %s, 1)",
                (homes[name].meter_id, now - timedelta(hours=hours)),
            )

        for name in names[:-1]:
            await read(name, 100)
        await read("reads", 1)
        await store(conn, (homes["tells"].meter_id, NOW_MS - 30 * HOUR_MS, 151))
        order = homes["obeys"]
        await conn.execute(
            "insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause, state,"
            " confirmed_at) values (%s, %s, 1, 'supply', 1, 'on', 0, 'vend', 'confirmed', now())",
            (order.meter_id, order.account_id),
        )
        await conn.execute(
            "insert into quarantine (topic, serial, reason, detail, raw, sha256, item)"
            " values ('t', 'M-garbles', 'future', '', '', '\\x00', 0)"
        )
        assert await silent(conn) == ["M-mute", "M-never"]
        assert await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24) == 6
        # Only who is still silent is looked at again.
        assert await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24) == 2
        assert await silent(conn) == ["M-mute", "M-never"]
        assert await silent(conn, area="elsewhere") == []
        assert await silent(conn, hours=101) == ["M-never"]
        assert [(each.area, each.meters) for each in await silent_by_area(conn)] == [("", 2)]
        found = await list_silent(conn, now=now, cutoff=now - timedelta(days=1), most=1, after=0)
        assert (found[0].read_at, found[0].balance_unknown_since) == (now - timedelta(hours=100), found[0].read_at)
        assert [code for code, *_ in await rung(conn)] == [COMMUNICATION_LOST] * 2
        await read("mute", 0)
        assert await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24) == 2
        assert await silent(conn) == ["M-never"]
        ended = await rows(conn, "select ended_at is not null as over from event_alarms order by meter_id")
        assert [each["over"] for each in ended] == [True, False]

    on_database(database_url, story)


def test_many_meters_of_an_area_that_fall_silent_together_are_one_alarm(database_url: str) -> None:
    """An area that is lost rings once for all its meters, ends when most are heard of, and then the rest ring alone."""

    async def story(conn: AsyncConnection) -> None:
        many = SILENCE.area_meters_min + 5
        for statement in SEED.format(n=2 * many, areas=2).split(";\n"):
            await conn.execute(statement.encode())
        now = from_ms(NOW_MS)
        await ensure_partitions(conn, {(now - timedelta(hours=hours)).date() for hours in range(0, 200, 12)})
        reads = (
            b"insert into readings (meter_id, read_at, import_wh)"
            b" select i.meter_id, %(at)s + i.meter_id * interval '1 ms', 1 from installations i"
            b" join usage_points u on u.id = i.usage_point_id where u.area = %(area)s and i.meter_id > %(after)s"
        )
        await conn.execute(reads, {"at": now - timedelta(hours=25), "area": "area 1", "after": 0})
        # Of the other area most report, and five are out for days, each for itself.
        await conn.execute(reads, {"at": now - timedelta(hours=2), "area": "area 0", "after": 10})
        await conn.execute(reads, {"at": now - timedelta(hours=150), "area": "area 0", "after": 0})
        await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24)
        await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24)
        found = await list_alarms(conn, ASKED, skip=0, most=99)
        lines = [(each.severity, each.area, each.meters, each.of_area) for each in found]
        assert lines == [("alarm", "area 1", many, True), *([("warning", "area 0", 1, False)] * 5)]
        # All but three come back.
        back = (await rows(conn, "select max(id) - 6 as id from usage_points"))[0]["id"]
        await conn.execute(
            b"insert into readings (meter_id, read_at, import_wh) select i.meter_id, %s, 2 from installations i"
            b" join usage_points u on u.id = i.usage_point_id where u.area = 'area 1' and i.meter_id <= %s",
            (now - timedelta(minutes=5), back),
        )
        await look_for_silence(conn, now_ms=NOW_MS, silent_after_h=24)
        found = await list_alarms(conn, replace(ASKED, ended=False), skip=0, most=99)
        assert sorted(each.area for each in found) == ["area 0"] * 5 + ["area 1"] * 3
        assert not any(each.of_area for each in found)

    on_database(database_url, story)


@pytest.mark.broker
def test_flags_of_readings_through_ingest_are_one_event_and_the_watch_ends_it(
    database_url: str, nats: EmbeddedNats
) -> None:
    """What three half-hours say is stored once and rings once; the watch, whose clock has gone on, ends it."""

    def flagged(hours_ago: int, register_wh: int) -> Message:
        topic, payload = reading("M1", first_ms + (10 - hours_ago) * HOUR_MS, register_wh)
        uplink = decode_uplink(topic, payload)
        assert isinstance(uplink, Readings)
        return reading_topic("M1"), encode_readings(msgspec.structs.replace(uplink, events=(OVER_VOLTAGE,)))

    first_ms = NOW_MS - 10 * HOUR_MS

    async def tell() -> None:
        async with open_site(database_url, nats) as site:
            await site.add_home("M1", opened_at=from_ms(first_ms), days=2)
            async with running_ingest(site):
                for number, hours_ago in enumerate((9, 8, 7)):
                    await site.send(flagged(hours_ago, REGISTER_WH + number))
            assert await site.rows("select code from meter_events") == [(OVER_VOLTAGE,)]
            assert await site.rows("select code, times, ended_at from event_alarms") == [(OVER_VOLTAGE, 1, None)]
            settings = WatchSettings(
                database_url=database_url, calendar=CALENDAR, silent_after_h=1, clock=lambda: NOW_MS + 2 * HOUR_MS
            )
            stop = asyncio.Event()
            watch = asyncio.create_task(Watch(settings).run(stop))
            await site.until(
                lambda: site.one("select exists (select 1 from event_alarms where code > %s)", OWN_CODES),
                "the watch rings",
            )
            stop.set()
            await asyncio.wait_for(watch, WAIT_S)
            found = await site.rows("select code, ended_at from event_alarms order by code")
            last = datetime.fromtimestamp((NOW_MS - 7 * HOUR_MS) / 1000, UTC)
            assert found == [(OVER_VOLTAGE, last), (COMMUNICATION_LOST, None)]

    asyncio.run(tell())
