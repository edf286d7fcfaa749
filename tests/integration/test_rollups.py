"""Rollups by hour, day and month stay equal to the readings, whatever comes, late, twice, edited or begun again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from db.pool import APPLICATION_ROLE, connect
from db.readings import copy_readings, ensure_partitions
from db.registry import NewMeter, add_meter
from db.rollups import RollupSweep, ZoneChanged, note_late
from prepaid.embedded import EmbeddedNats
from protocols.rows import ReadingRow
from tests.rollup_oracle import expected_rollups, stored_rollups
from tests.support import CALENDAR, DAY_MS, REGISTER_WH, T0, open_site, reading, running_ingest


class Street:
    """Meters whose readings come as ingest stores them: in order by meter, or late and noted as such."""

    def __init__(self, conn: AsyncConnection, rng: Random, calendar: LocalCalendar = CALENDAR) -> None:
        self.conn = conn
        self.rng = rng
        self.sweep = RollupSweep(calendar=calendar, pause=_no_pause, meters_a_block=3, span_days_max=3)
        self.calendar = calendar
        # By meter: instant to register; void ones stay in it, as they stay in the table.
        self.stored: dict[int, dict[int, int]] = {}
        self.wh: dict[int, int] = {}
        self.step_ms: dict[int, int] = {}
        self.correction: int = 0
        self.start_ms = T0

    async def build(self, meters: int, *, at_ms: int) -> None:
        """Register meters with an installation segment each, but for one that has none."""
        for number in range(meters):
            meter = NewMeter(serial=f"S{number}", rated_w=15_000, register_end_wh=10**9)
            await add_meter(self.conn, meter)
            ((meter_id,),) = await self._rows("select id from meters where serial = %s", f"S{number}")
            self.stored[meter_id], self.wh[meter_id] = {}, self.rng.randrange(10**6)
            self.step_ms[meter_id] = self.rng.choice((7, 15, 30, 60, 1_440)) * 60_000
            if number:
                await self._segment(meter_id, at_ms, self.wh[meter_id], 0, "installed")
        ((self.correction,),) = await self._rows(
            "insert into corrections (kind, reason, scope, asked_by) values ('edit', 'test', '{}', 'a') returning id"
        )

    async def add_new(self, meter_id: int) -> None:
        """Store some readings after the meter's latest, with gaps and at times off the grid."""
        held = await self._rows("select max(read_at) from effective_readings where meter_id = %s", meter_id)
        mark = held[0][0]
        at_ms = self.start_ms if mark is None else int(mark.timestamp() * 1000)
        rows = []
        for _ in range(self.rng.randrange(1, 40)):
            gap = self.rng.choice((1,) * 12 + (2, 5, 90))
            at_ms += min(self.step_ms[meter_id] * gap, 2 * DAY_MS) + self.rng.choice((0,) * 9 + (1, 61_234))
            self.wh[meter_id] += self.rng.randrange(0, 400) * gap
            if at_ms not in self.stored[meter_id]:
                rows.append(self._row(meter_id, at_ms, self.wh[meter_id]))
        await self._store(rows)

    async def add_late(self, meter_id: int) -> None:
        """Store readings between others, some of them twice: what is known is dropped, as ingest does."""
        known = sorted(self.stored[meter_id].items())
        rows = {}
        for place in sorted(self.rng.sample(range(1, len(known)), k=min(3, max(0, len(known) - 1)))):
            (before_ms, before_wh), (after_ms, after_wh) = known[place - 1], known[place]
            if after_ms - before_ms > 1 and after_wh >= before_wh:
                at_ms = self.rng.randrange(before_ms + 1, after_ms)
                rows[at_ms] = self._row(meter_id, at_ms, self.rng.randrange(before_wh, after_wh + 1))
        async with self.conn.transaction():
            await self._store(list(rows.values()))
            await note_late(self.conn, [(row.meter_id, row.read_at) for row in rows.values()])

    async def edit(self, meter_id: int) -> None:
        """Put another register in the place of some, void some or take an edit back; the latest above all."""
        if not self.stored[meter_id]:
            return
        instants = sorted(self.stored[meter_id])
        for at_ms in {self.rng.choice(instants), *instants[-self.rng.randrange(1, 4) :]}:
            read = self.stored[meter_id][at_ms]
            value = self.rng.choice((None, read, read + 3))
            async with self.conn.transaction():
                await self.conn.execute(
                    b"update reading_edits set replaced_by = id"
                    b" where meter_id = %s and read_at = %s and replaced_by is null",
                    (meter_id, from_ms(at_ms)),
                )
                await self.conn.execute(
                    b"insert into reading_edits (meter_id, read_at, import_wh, correction_id) values (%s, %s, %s, %s)",
                    (meter_id, from_ms(at_ms), value, self.correction),
                )

    async def begin_again(self, meter_id: int) -> None:
        """Let a register fall to 0 with a reading, or put the meter up elsewhere some time after its last one."""
        instants = self.stored[meter_id]
        if not instants:
            return
        at_ms = max(instants) + self.rng.randrange(60_000, 3 * 3_600_000)
        reason = self.rng.choice(("rollover", "reset", "swap"))
        self.wh[meter_id] = 0
        async with self.conn.transaction():
            await self._segment(meter_id, at_ms, 0, self.rng.randrange(10**6, 10**7), reason)
            late_ms = at_ms if reason != "swap" else at_ms + self.rng.randrange(0, 10**7)
            await self._store([self._row(meter_id, late_ms, 0)])

    async def reset_late(self, meter_id: int) -> None:
        """Record that a register began again between readings that are stored already."""
        instants = sorted(self.stored[meter_id])
        if len(instants) > 2:
            at_ms = self.rng.choice(instants[1:])
            await self._segment(
                meter_id, at_ms, self.stored[meter_id][at_ms], self.rng.randrange(10**6, 10**7), "reset"
            )

    async def flag(self, meter_id: int) -> None:
        """Store a new reading with a note of a rule, in one transaction."""
        async with self.conn.transaction():
            await self.add_new(meter_id)
            held = await self._rows("select max(read_at) from effective_readings where meter_id = %s", meter_id)
            day = held[0][0].astimezone(self.calendar.zone).date()
            await self.conn.execute(
                b"insert into reading_flags (meter_id, day, rule, severity, at, expected, got)"
                b" values (%s, %s, 'stuck', %s, %s, 0, 0) on conflict do nothing",
                (meter_id, day, self.rng.choice(("info", "warning")), held[0][0]),
            )

    async def roll_up(self) -> None:
        """Run a sweep."""
        assert (await self.sweep.run(self.conn)).whole

    def _row(self, meter_id: int, at_ms: int, register_wh: int) -> ReadingRow:
        rng = self.rng
        return ReadingRow(
            meter_id=meter_id,
            read_at=from_ms(at_ms),
            import_wh=register_wh,
            export_wh=rng.choice((None, at_ms // 1_000_000 - 1_740_000)) if meter_id % 2 else None,
            voltage_mv=rng.choice((None, rng.randrange(200_000, 260_000))),
            current_ma=None,
            power_w=None,
            pf_milli=rng.choice((None, rng.randrange(0, 1_000))),
            freq_mhz=None,
        )

    async def _store(self, rows: list[ReadingRow]) -> None:
        await ensure_partitions(self.conn, {row.read_at.date() for row in rows})
        await copy_readings(self.conn, rows)
        for row in rows:
            self.stored[row.meter_id][int(row.read_at.timestamp() * 1000 + 0.5)] = row.import_wh

    async def _segment(self, meter_id: int, at_ms: int, register_wh: int, start_wh: int, reason: str) -> None:
        await self.conn.execute(
            b"insert into register_segments values (%s, %s, %s, %s, %s) on conflict do nothing",
            (meter_id, from_ms(at_ms), register_wh, start_wh, reason),
        )

    async def _rows(self, query: str, *parameters: object) -> list[tuple]:
        cursor = await self.conn.execute(query.encode(), parameters)
        return await cursor.fetchall()


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)


async def _random_life(
    database_url: str, seed: int, *, steps: int, zone: str = "Asia/Kolkata", start_ms: int = T0
) -> None:
    rng = Random(seed)
    async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
        street = Street(conn, rng, LocalCalendar(ZoneInfo(zone)))
        street.start_ms = start_ms
        await street.build(4, at_ms=start_ms - 3 * DAY_MS - 12_345)
        acts = [street.add_new] * 6 + [street.add_late] * 3 + [street.edit] * 2
        acts += [street.begin_again, street.reset_late, street.flag]
        for step in range(steps):
            await rng.choice(acts)(rng.choice(list(street.stored)))
            if rng.random() < 0.4 or step == steps - 1:
                await street.roll_up()
            if step % 8 == 7 or step == steps - 1:
                await street.roll_up()
                expected, found = await expected_rollups(conn, street.calendar), await stored_rollups(conn)
                wrong = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
                such = [(key, expected.get(key), found.get(key)) for key in list(wrong)[:5]]
                assert not wrong, f"seed {seed}, step {step}: {len(wrong)}, such as {such}"


@pytest.mark.db
@pytest.mark.parametrize("seed", range(3))
def test_rollups_after_anything_equal_the_plain_reference(database_url: str, seed: int) -> None:
    """New, late, repeated, edited, voided and restarted readings leave each bucket as the readings say, exactly."""
    asyncio.run(_random_life(database_url, seed, steps=24))


@pytest.mark.db
@pytest.mark.parametrize(("zone", "days"), [("Europe/Berlin", 144), ("Europe/Berlin", 299), ("Asia/Kathmandu", 0)])
def test_rollups_in_other_zones_equal_the_plain_reference(database_url: str, zone: str, days: int) -> None:
    """Hours and days are local ones, also where clocks change and where an hour begins at a quarter by UTC."""
    # From two days before clocks change.
    asyncio.run(_random_life(database_url, 5, steps=16, zone=zone, start_ms=T0 + days * DAY_MS))


@pytest.mark.db
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_rollups_after_many_lives_equal_the_plain_reference(database_url: str, seed: int) -> None:
    """The same over many more orders of what may happen."""
    asyncio.run(_random_life(database_url, seed, steps=60))


@pytest.mark.db
def test_rollups_by_three_sweeps_at_once_equal_those_by_one(database_url: str) -> None:
    """Sweeps share the blocks of meters; none is rolled up twice at once, none is left out."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            street = Street(conn, Random(11))
            await street.build(12, at_ms=T0 - DAY_MS)
            for meter_id in street.stored:
                await street.add_new(meter_id)
                await street.add_late(meter_id)

            async def sweep() -> None:
                async with await connect(database_url, application="test", role=APPLICATION_ROLE) as own:
                    await RollupSweep(calendar=CALENDAR, pause=_no_pause, meters_a_block=2).run(own)

            await asyncio.gather(sweep(), sweep(), sweep())
            await street.roll_up()
            assert await stored_rollups(conn) == await expected_rollups(conn, CALENDAR)

    asyncio.run(life())


@pytest.mark.db
def test_rollups_stopped_within_a_sweep_go_on_where_they_stood(database_url: str) -> None:
    """A block is written whole with its mark or not at all; what a stopped sweep left, the next one does."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            street = Street(conn, Random(12))
            await street.build(9, at_ms=T0 - DAY_MS)
            for meter_id in street.stored:
                await street.add_new(meter_id)
            stop = asyncio.Event()

            async def pause(_: float) -> None:
                stop.set()

            begun = RollupSweep(calendar=CALENDAR, pause=pause, meters_a_block=3)
            assert not (await begun.run(conn, stop=stop)).whole
            assert await stored_rollups(conn) != await expected_rollups(conn, CALENDAR)
            await street.roll_up()
            assert await stored_rollups(conn) == await expected_rollups(conn, CALENDAR)
            ((hours, blocks),) = [(each.hours, each.blocks) for each in [await street.sweep.run(conn)]]
            assert (hours, blocks) == (0, 0)

    asyncio.run(life())


@pytest.mark.db
def test_rollups_of_swapped_meters_reach_to_the_swap_and_go_on_from_it(database_url: str) -> None:
    """The energy between a meter's last reading and its closing register is the old meter's; late data moves it."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            street = Street(conn, Random(7))
            await street.build(3, at_ms=T0)
            old, new = sorted(street.stored)[1:]
            await conn.execute(b"delete from register_segments where meter_id = %s", (new,))
            await conn.execute(b"insert into usage_points (code) values ('P')")
            place = (
                b"insert into installations (usage_point_id, meter_id, role, from_at)"
                b" select max(id), %s, 'billing', %s from usage_points"
            )
            await conn.execute(place, (old, from_ms(T0)))
            await street.add_new(old)
            await street.roll_up()
            ((last, register),) = await street._rows(
                "select read_at, import_wh from readings where meter_id = %s order by 1 desc limit 1", old
            )
            ((begun,),) = await street._rows("select register_wh from register_segments where meter_id = %s", old)
            at, later = last + timedelta(hours=5, minutes=7), last + timedelta(hours=30)
            closing_wh = register - begun + 777
            async with conn.transaction():
                await conn.execute(b"update installations set to_at = %s where meter_id = %s", (at, old))
                await conn.execute(place, (new, at))
                await street._segment(new, int(at.timestamp() * 1000), 50, closing_wh, "swap")
            await street._store([street._row(new, int(later.timestamp() * 1000), 1_050)])
            await street.roll_up()
            assert await stored_rollups(conn) == await expected_rollups(conn, CALENDAR)
            ((total,),) = await street._rows("select sum(import_wh)::bigint from month_rollups")
            assert total == closing_wh + 1_000
            late = street._row(old, int((last + timedelta(hours=2)).timestamp() * 1000), register + 700)
            async with conn.transaction():
                await street._store([late])
                await note_late(conn, [(late.meter_id, late.read_at)])
            await street.roll_up()
            assert await stored_rollups(conn) == await expected_rollups(conn, CALENDAR)

    asyncio.run(life())


@pytest.mark.db
def test_rollups_of_another_zone_are_refused(database_url: str) -> None:
    """Buckets of one zone are never mixed with those of another."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            await RollupSweep(calendar=CALENDAR).run(conn)
            with pytest.raises(ZoneChanged):
                await RollupSweep(calendar=LocalCalendar(ZoneInfo("Europe/Berlin"))).run(conn)

    asyncio.run(life())


@pytest.mark.db
@pytest.mark.broker
def test_rollups_of_ingested_readings_with_late_ones_equal_the_raw_sums(database_url: str, nats: EmbeddedNats) -> None:
    """What comes through the broker in order, late and twice is in the rollups to the Wh."""

    async def life() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            home = await site.add_home(days=3)
            at = [T0 + number * 900_000 for number in range(1, 200)]
            wh = {at_ms: REGISTER_WH + 100 * number for number, at_ms in enumerate(at)}
            late = at[20:30] + at[150:152]
            in_time = [at_ms for at_ms in at if at_ms not in late]
            sweep = RollupSweep(calendar=CALENDAR, pause=_no_pause)
            await site.send(*(reading(home.serial, at_ms, wh[at_ms]) for at_ms in in_time))
            await sweep.run(site.conn)
            await site.send(*(reading(home.serial, at_ms, wh[at_ms]) for at_ms in [*late, *in_time[5:9]]))
            assert await site.one("select count(*) from stale_buckets") == len(late)
            await sweep.run(site.conn)
            assert await site.one("select count(*) from stale_buckets") == 0
            assert await stored_rollups(site.conn) == await expected_rollups(site.conn, CALENDAR)
            sums = await site.rows("select sum(import_wh)::bigint, sum(readings)::bigint from day_rollups")
            assert sums == [(wh[at[-1]] - REGISTER_WH, len(at))]

    asyncio.run(life())
