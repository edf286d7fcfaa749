"""Storage: what is old goes, what somebody needs stays, packing changes no reading, and counts still add up."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.errors import RaiseException

from billing.calendar import from_ms
from db.counting import recount
from db.pool import APPLICATION_ROLE, connect
from db.readings import copy_readings, ensure_partitions, partition_days
from db.rollups import RollupSweep
from db.storage import PlainStore, place_hold, release_hold, store_of, to_pack
from db.storage_classes import BUILT_IN, DataClass, Retention, RetentionError, parse_retention
from db.storage_retention import RetentionReport, retain
from protocols.rows import ReadingRow
from tests.commands import run_command
from tests.integration.test_rollups import Street
from tests.rollup_oracle import expected_rollups, stored_rollups
from tests.support import CALENDAR, DAY_MS, T0

HALF_DAY_MS = DAY_MS // 2
NOW = from_ms(T0) + timedelta(days=1_096 + 3)


async def _store_days(conn: AsyncConnection, meter_id: int, days: range) -> None:
    """Store two readings a day."""
    rows = [
        ReadingRow(meter_id, from_ms(T0 + day * DAY_MS + half), 1_000 + 10 * day, *(None,) * 6)
        for day in days
        for half in (1, HALF_DAY_MS)
    ]
    await ensure_partitions(conn, {row.read_at.date() for row in rows})
    await copy_readings(conn, rows)
    # As ingest counts them.
    await conn.execute(
        b"insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined)"
        b" values (0, 1, 0, %s, %s, 0, 0, 0)",
        (len(rows), len(rows)),
    )


async def _street(conn: AsyncConnection) -> int:
    street = Street(conn, Random(1))
    await street.build(1, at_ms=T0)
    (meter_id,) = street.stored
    await conn.execute(b"update corrections set state = 'cancelled'")
    return meter_id


async def _retain(conn: AsyncConnection, *, dry_run: bool = False) -> RetentionReport:
    return await retain(conn, BUILT_IN, now=NOW, calendar=CALENDAR, dry_run=dry_run)


@pytest.mark.db
def test_retention_drops_old_readings_once_and_counts_still_add_up(database_url: str) -> None:
    """A dry run drops nothing; what goes is noted; a second run finds nothing; rollups outlive their readings."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            meter_id = await _street(conn)
            await _store_days(conn, meter_id, range(10))
            await RollupSweep(calendar=CALENDAR).run(conn)
            days, rolled = await partition_days(conn), await stored_rollups(conn)
            would = await _retain(conn, dry_run=True)
            assert await partition_days(conn) == days
            done = await _retain(conn)
            assert {each.partition for each in done.dropped} == {each.partition for each in would.dropped}
            # Three days by UTC: of the first only its evening.
            assert [each.rows for each in done.dropped] == [1, 2, 2]
            assert len(await partition_days(conn)) == len(days) - len(done.dropped)
            assert (await _retain(conn)).dropped == ()
            counted = await recount(conn)
            assert counted.adds_up
            assert counted.readings == 20
            await RollupSweep(calendar=CALENDAR).run(conn)
            assert await stored_rollups(conn) == rolled

    asyncio.run(life())


@pytest.mark.db
def test_retention_leaves_what_is_held_needed_or_not_rolled_up(database_url: str) -> None:
    """Readings stay for a hold, for a correction that is not ended, and until they are rolled up."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            meter_id = await _street(conn)
            await _store_days(conn, meter_id, range(4))
            unrolled = await _retain(conn)
            assert unrolled.dropped == ()
            assert {stay.why.split(":")[0] for stay in unrolled.stays} == {"not rolled up"}
            await RollupSweep(calendar=CALENDAR).run(conn)
            hold = await place_hold(conn, from_at=from_ms(T0), to_at=None, reason="case 7", by="an engineer")
            held = await _retain(conn)
            assert {stay.why for stay in held.stays} == {"held for a case"}
            await release_hold(conn, hold, by="an engineer")
            await conn.execute(
                b"insert into corrections (kind, reason, scope, asked_by) values ('terms', 'why', %s, 'a')",
                (json.dumps({"from_day": "2025-06-02"}),),
            )
            needed = await _retain(conn)
            assert {stay.why.split(":")[0] for stay in needed.stays} == {"correction"}
            assert all(each.before_at <= datetime(2025, 6, 2, tzinfo=UTC) for each in needed.dropped)
            await conn.execute(b"update corrections set state = 'cancelled'")
            assert (await _retain(conn)).stays == ()

    asyncio.run(life())


@pytest.mark.db
def test_rollups_go_on_from_the_mark_when_its_reading_was_dropped(database_url: str) -> None:
    """A meter that was silent until its last readings were dropped loses none of the energy in between."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            meter_id = await _street(conn)
            await conn.execute(
                b"insert into register_segments values (%s, %s, 900, 0, 'installed')", (meter_id, from_ms(T0 - DAY_MS))
            )
            await _store_days(conn, meter_id, range(2))
            await RollupSweep(calendar=CALENDAR).run(conn)
            assert sum(each.rows for each in (await _retain(conn)).dropped) == 4
            await _store_days(conn, meter_id, range(40, 41))
            await RollupSweep(calendar=CALENDAR).run(conn)
            cursor = await conn.execute(b"select sum(import_wh)::bigint from hour_rollups")
            assert await cursor.fetchall() == [(1_000 + 10 * 40 - 900,)]

    asyncio.run(life())


@pytest.mark.db
def test_packing_changes_no_reading_and_no_rollup(database_url: str) -> None:
    """A packed partition has the same rows, is packed once, and takes late edits as before."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            meter_id = await _street(conn)
            await _store_days(conn, meter_id, range(3))
            store = await store_of(conn)
            assert isinstance(store, PlainStore)
            due = to_pack(await store.partitions(conn), NOW)
            assert sum(each.rows for each in due) == 6
            for each in due:
                packed = await store.pack(conn, each)
                assert packed.bytes_after is not None
            assert to_pack(await store.partitions(conn), NOW) == []
            await RollupSweep(calendar=CALENDAR).run(conn)
            assert await stored_rollups(conn) == await expected_rollups(conn, CALENDAR)

    asyncio.run(life())


@pytest.mark.db
def test_partition_that_is_not_noted_as_dropped_is_refused(database_url: str) -> None:
    """Only what is noted as dropped may be dropped, and only a partition of ours."""

    async def life() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            await ensure_partitions(conn, {from_ms(T0).date()})
            for name in ("accounts", f"readings_{from_ms(T0):%Y%m%d}"):
                with pytest.raises(RaiseException, match="expected"):
                    await conn.execute(b"select drop_noted_partition(%s)", (name,))

    asyncio.run(life())


def test_retention_text_is_read_over_the_defaults() -> None:
    """Named classes get their days, the others stay as built in; below the least or unknown is refused."""
    read = parse_retention("readings=1461, notices=730")
    assert read == Retention(days={**BUILT_IN.days, DataClass.READINGS: 1_461, DataClass.NOTICES: 730})
    for text in ("readings=729", "ledger=9999", "readings", "readings=x", "rollup_hours=5000"):
        with pytest.raises(RetentionError):
            parse_retention(text)


@pytest.mark.db
def test_storage_commands_show_pack_and_drop(database_url: str) -> None:
    """Status counts bytes a reading, compress says that plain PostgreSQL does not, a dry run drops nothing."""

    async def fill() -> None:
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            meter_id = await _street(conn)
            await _store_days(conn, meter_id, range(2))
            # Old enough to be dropped.
            old = ReadingRow(meter_id, datetime(2020, 1, 1, 6, tzinfo=UTC), 1, *(None,) * 6)
            await ensure_partitions(conn, {old.read_at.date()})
            await copy_readings(conn, [old])

    asyncio.run(fill())
    environment = {"PREPAID_DATABASE_URL": database_url}

    def ask(*arguments: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(run_command(*arguments, "--json", environment=environment).stdout)
        return told

    assert ask("rollup")["whole"]
    shown = ask("storage", "status")
    assert (shown["store"], shown["readings"]["rows"], shown["readings"]["oldest"]) == ("postgresql", 5, "2020-01-01")
    assert shown["readings"]["bytes_per_row_hot"]["total"] > 0
    assert "readings_20200101" in [each["partition"] for each in shown["would_drop"]["dropped"]]
    packed = ask("storage", "compress")
    assert not packed["compresses"]
    assert len(packed["packed"]) == 4
    assert ask("storage", "status")["readings"]["bytes_per_row_cold"]["total"] > 0
    would = ask("storage", "retain", "--dry-run")["dropped"]
    done = ask("storage", "retain")["dropped"]
    assert [each["partition"] for each in done] == [each["partition"] for each in would]
    assert "nothing is old enough" in run_command("storage", "retain", environment=environment).stdout
    assert "does not compress" in run_command("storage", "compress", environment=environment).stdout
    assert "would be dropped today: 0" in run_command("storage", "status", environment=environment).stdout
